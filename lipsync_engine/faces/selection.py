"""From all faces to the one that speaks: chosen, cleaned, smoothed, with its fades.

The path has a row for every decoded frame. Where no usable face is seen its weight is 0 and the frame stays
as it is; next to such gaps, and where the head turns too far, the weight rises and falls softly. At shot cuts
and at the clip's
ends nothing fades: a cut hides the change. Anything else that later covers a face lowers the weight the same
    way.

A path can be asked for while the clip is still being read. Every decision is made from a bounded look ahead,
so that what was said of a frame stays true whatever follows.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipsync_engine.errors import ErrorCode, FaceError, ParameterError
from lipsync_engine.faces.align import alignment_points
from lipsync_engine.faces.tracking import MAX_MISSING_S, FaceTracks, Track
from lipsync_engine.params import FaceChoice, FaceRule

FloatArray = NDArray[np.float32]

CHOICE_S = 10.0
"""A rule chooses among the faces of a shot's first seconds; where it finds none, among those of the next."""

LOOK_AHEAD_S = 2.0
"""So far behind the last frame that is known a path is settled: a lost face counts as gone after a second
(`track.MAX_MISSING_S`), and positions are smoothed with those of half a second later.
"""

SIGNIFICANT_SHARE = 0.2
"""A face counts for left, right and numbers when it is seen in this share of the seconds looked at."""

SAME_PERSON_SIZE = 1.5
SAME_PERSON_DISTANCE = 1.0
"""A track that begins after another's end is the same person when size and place (in face sizes) are near."""

MAX_GAP_S = 0.4
FADE_S = 0.2
YAW_FADE_DEG = 8.0
SMOOTH_S = 0.12
"""Width of the local quadratic fit: a nod of 1 Hz keeps 97 %, detector noise shrinks 2.5 times."""

OUTLIER_SIZE = 0.15
"""A point further than this, in face sizes, from the median of five frames is a misdetection."""

MASK_COVER = 0.2

BOX_POINTS = np.array([[0.27, 0.27], [0.73, 0.27], [0.50, 0.52]], dtype=np.float32)
"""Where the alignment points lie in a face box, for boxes given without points; measured on YuNet's boxes."""

MAX_FILE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class FacePath:
    """The speaker's face in every decoded frame.

    Attributes:
        points: float32 (N, 3, 2) left brow, right brow, nose in full-size pixels; NaN where nothing is known.
        weight: float32 (N,) how much of a generated face may show; 0 leaves the frame.
        shots: int64 (N,).
        settled: so many rows stay as they are when more of the clip becomes known; all of a clip that ended.
    """

    points: FloatArray
    weight: FloatArray
    shots: NDArray[np.int64]
    settled: int


def choose_speaker(
    tracks: FaceTracks,
    choice: FaceChoice,
    max_yaw_deg: float,
    *,
    mask: NDArray[np.uint8] | None = None,
) -> FacePath:
    """Follow the person asked for.

    The rule is applied in every shot anew, to its first CHOICE_S (or the first later ones in which it finds
    somebody); a point names a face in its own shot, in the others the largest is taken.

    Args:
        tracks: of the clip, as far as it is known.
        choice: the rule.
        max_yaw_deg: heads turned further fade out.
        mask: uint8 (H, W), white over the speaker; overrides `choice`.

    Raises:
        FaceError: of a clip that ended: FACE_NOT_FOUND, or FACE_CHOICE_UNMATCHED saying how many faces there
            are.
    """
    if tracks.ended and not tracks.tracks:
        raise FaceError(
            ErrorCode.FACE_NOT_FOUND,
            "No face was found in the picture: it must be at least 50 px wide and turned to the camera. The "
            "tiny model knows drawn presenters only; people need a LatentSync model (docs/models.md).",
        )
    n = len(tracks.pts_s)
    points = np.full((n, 3, 2), np.nan, dtype=np.float32)
    weight = np.zeros(n, dtype=np.float32)
    settled = n
    matched = False
    most = 0
    for shot in np.unique(tracks.shots):
        first, stop = (int(edge) for edge in np.searchsorted(tracks.shots, [shot, shot + 1]))
        found = _find(tracks, first, stop, choice, mask, ended=tracks.ended or stop < n)
        most = max(most, found.most)
        settled = min(settled, found.settled)
        if found.person:
            matched = True
            points[first:stop], weight[first:stop] = _follow(
                found.person, tracks.pts_s[first:stop], first, max_yaw_deg
            )
    if tracks.ended and not matched:
        raise FaceError(
            ErrorCode.FACE_CHOICE_UNMATCHED,
            f"The face asked for was not found; at most {most} face(s) are seen together. Faces are counted "
            "from the left, starting at 0.",
        )
    return FacePath(points, weight, tracks.shots, settled)


def load_faces_file(path: Path, tracks: FaceTracks) -> FaceTracks:
    """Faces given by the user instead of a detector, for cartoons say.

    The file: `{"frames": [{"frame": 0, "box": [x0, y0, x1, y1]}, …]}`, in decoded frames counted from 0 and
        displayed pixels. Instead of a box an entry may give `"points": [[x, y] * 3]` (left brow, right brow,
        nose) or `"landmarks106": [[x, y] * 106]`. Frames that are not listed follow the rules for gaps.

    Args:
        path: of the file.
        tracks: times and shots of the clip.

    Raises:
        ParameterError: what is wrong in the file, and where.
    """
    if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
        raise ParameterError(f"faces_file={path.name!r} is not a file of at most {MAX_FILE_BYTES >> 20} MiB.")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["frames"]
        rows = sorted((_entry(entry, len(tracks.pts_s)) for entry in entries), key=lambda row: row[0])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ParameterError(f"faces_file={path.name!r} is not understood: {error}.") from error
    if not rows or len({number for number, _, _ in rows}) < len(rows):
        raise ParameterError(f"faces_file={path.name!r} lists no frame, or one frame twice.")
    found: list[Track] = []
    for shot in np.unique(tracks.shots[[number for number, _, _ in rows]]):
        here = [row for row in rows if tracks.shots[row[0]] == shot]
        found.append(
            Track(
                len(found),
                np.array([number for number, _, _ in here], dtype=np.int64),
                np.stack([box for _, box, _ in here]),
                np.stack([points for _, _, points in here]),
                np.ones(len(here), dtype=np.float32),
                np.zeros(len(here), dtype=np.float32),
            )
        )
    return dataclasses.replace(tracks, tracks=tuple(found))


def _entry(entry: Any, n_frames: int) -> tuple[int, FloatArray, FloatArray]:
    number = entry["frame"]
    if not isinstance(number, int) or not 0 <= number < n_frames:
        raise ValueError(f"frame {number!r} is not one of the {n_frames} frames of the video")
    if "box" in entry:
        box = _numbers(entry["box"], (4,), number)
        if box[2] <= box[0] or box[3] <= box[1]:
            raise ValueError(f"the box of frame {number} is empty")
        return number, box, box[:2] + BOX_POINTS * (box[2:] - box[:2])
    if "points" in entry:
        points = _numbers(entry["points"], (3, 2), number)
    else:
        points = alignment_points(_numbers(entry["landmarks106"], (106, 2), number)[None])[0]
    centre, size = points.mean(axis=0), 2.2 * np.linalg.norm(points[1] - points[0])
    return number, np.concatenate([centre - size / 2, centre + size / 2]).astype(np.float32), points


def _numbers(value: Any, shape: tuple[int, ...], number: int) -> FloatArray:
    array = np.asarray(value, dtype=np.float32)
    if array.shape != shape or not np.isfinite(array).all() or np.abs(array).max() > 1e6:
        raise ValueError(f"frame {number} needs {' x '.join(map(str, shape))} finite pixel positions")
    return array


# --- choice ---


@dataclass(frozen=True, slots=True)
class _Found:
    """Who was chosen in a shot.

    Attributes:
        person: tracks, one after the other; empty: nobody, or nobody yet.
        most: how many faces were seen together.
        settled: of the clip's frames, how many have their final rows.
    """

    person: tuple[Track, ...]
    most: int
    settled: int


def _find(
    tracks: FaceTracks,
    first: int,
    stop: int,
    choice: FaceChoice,
    mask: NDArray[np.uint8] | None,
    *,
    ended: bool,
) -> _Found:
    """Choose in the shot of frames [first, stop); `ended`: there is no more of it."""
    pts_s = tracks.pts_s
    present = [t for t in tracks.tracks if first <= t.frames[0] < stop]
    known_s = float(pts_s[stop - 1])
    behind = len(pts_s) if ended else int(np.searchsorted(pts_s, known_s - LOOK_AHEAD_S))
    most, at = 0, first
    pointed = _pointed(choice, mask, pts_s, first, stop, ended=ended)
    if pointed is None:
        return _Found((), 0, first)  # the moment that was pointed at may still come
    while at < stop:
        until = int(np.searchsorted(pts_s[:stop], pts_s[at] + CHOICE_S))
        if until == stop and not ended:
            return _Found((), most, at if pointed < 0 else first)  # who is pointed at was there before, too
        seen = [part for track in present if (part := _between(track, at, until)) is not None]
        most = max(most, len(_significant(seen, until - at)))
        if at <= pointed < until and seen:
            chosen, since = _at_point(seen, pointed, choice), first
        elif pointed >= 0:
            chosen, since = None, at
        else:
            chosen, since = _choose(seen, until - at, choice, mask), at
        if chosen is not None:
            parts = [part for track in present if (part := _between(track, since, stop)) is not None]
            return _Found(_person(chosen.track_id, parts), most, behind)
        at = until
    return _Found((), most, behind)


def _pointed(
    choice: FaceChoice,
    mask: NDArray[np.uint8] | None,
    pts_s: NDArray[np.float64],
    first: int,
    stop: int,
    *,
    ended: bool,
) -> int | None:
    """The frame of this shot that a point lies in; -1: in none of it; None: not known yet."""
    if mask is not None or choice.rule is not FaceRule.POINT:
        return -1
    if not ended and choice.time_s > pts_s[stop - 1] - MAX_MISSING_S:
        return None
    number = int(np.clip(np.searchsorted(pts_s, choice.time_s + 1e-6) - 1, 0, len(pts_s) - 1))
    return number if first <= number < stop else -1


def _between(track: Track, start: int, stop: int) -> Track | None:
    """The part of a track that lies in frames [start, stop)."""
    a, b = np.searchsorted(track.frames, [start, stop])
    if a == b:
        return None
    parts = {name: getattr(track, name)[a:b] for name in ("frames", "boxes", "points", "scores", "yaw_deg")}
    return Track(track.track_id, **parts)


def _area(track: Track) -> float:
    sides = np.maximum(track.boxes[:, 2:] - track.boxes[:, :2], 0)
    return float(np.prod(sides, axis=1).sum())


def _mean_x(track: Track) -> float:
    return float(track.boxes[:, [0, 2]].mean())


def _significant(present: Sequence[Track], n_frames: int) -> list[Track]:
    """Faces seen long enough, from left to right."""
    seen = [track for track in present if len(track.frames) >= SIGNIFICANT_SHARE * n_frames]
    return sorted(seen, key=_mean_x)


def _choose(
    seen: Sequence[Track], n_frames: int, choice: FaceChoice, mask: NDArray[np.uint8] | None
) -> Track | None:
    if not seen:
        return None
    if mask is not None:
        covered = max(seen, key=lambda track: _cover(track, mask))
        return covered if _cover(covered, mask) >= MASK_COVER else None
    largest = max(seen, key=_area)
    row = _significant(seen, n_frames) or [largest]
    match choice.rule:
        case FaceRule.LEFT:
            return row[0]
        case FaceRule.RIGHT:
            return row[-1]
        case FaceRule.INDEX:
            return row[choice.index] if choice.index < len(row) else None
        case _:
            return largest


def _at_point(present: Sequence[Track], number: int, choice: FaceChoice) -> Track | None:
    def distance(track: Track) -> float:
        """In face sizes, at the track's frame nearest to the moment."""
        box = track.boxes[np.abs(track.frames - number).argmin()]
        size = max(1.0, float(np.max(box[2:] - box[:2])))
        return float(np.hypot(*((box[:2] + box[2:]) / 2 - (choice.x, choice.y)))) / size

    nearest = min(present, key=distance)
    return nearest if distance(nearest) <= 1.0 else None


def _cover(track: Track, mask: NDArray[np.uint8]) -> float:
    """Share of the face's box that is white, on average."""
    shares = []
    for box in track.boxes:
        x0, y0, x1, y1 = (max(0, int(v)) for v in box)
        part = mask[y0:y1, x0:x1]
        shares.append(float(part.mean()) / 255.0 if part.size else 0.0)
    return float(np.mean(shares))


def _person(track_id: int, parts: Sequence[Track]) -> tuple[Track, ...]:
    """The chosen track, and those before and after it that are the same person, lost from sight and back."""
    chosen = next(track for track in parts if track.track_id == track_id)
    found = [chosen]
    for track in sorted(parts, key=lambda t: int(t.frames[-1]), reverse=True):
        if track.frames[-1] < found[0].frames[0] and _is_near(track.boxes[-1], found[0].boxes[0]):
            found.insert(0, track)
    for track in sorted(parts, key=lambda t: int(t.frames[0])):
        if track.frames[0] > found[-1].frames[-1] and _is_near(found[-1].boxes[-1], track.boxes[0]):
            found.append(track)
    return tuple(found)


def _is_near(one: FloatArray, other: FloatArray) -> bool:
    sizes = [float(np.sqrt(np.prod(box[2:] - box[:2]))) for box in (one, other)]
    away = float(np.hypot(*((one[:2] + one[2:]) / 2 - (other[:2] + other[2:]) / 2)))
    return max(sizes) / min(sizes) <= SAME_PERSON_SIZE and away <= SAME_PERSON_DISTANCE * max(sizes)


# --- path ---


def _follow(
    person: Sequence[Track], pts_s: NDArray[np.float64], first: int, max_yaw_deg: float
) -> tuple[FloatArray, FloatArray]:
    """Points and weight of one person through one shot."""
    numbers = np.concatenate([track.frames for track in person]) - first
    order = np.argsort(numbers)
    numbers = numbers[order]
    points = np.concatenate([track.points for track in person])[order]
    yaw = np.concatenate([track.yaw_deg for track in person])[order]
    breaks = np.flatnonzero(np.diff(pts_s[numbers]) > MAX_GAP_S) + 1
    good = np.concatenate([_inliers(part) for part in np.split(points, breaks)])
    numbers, points, yaw = numbers[good], points[good], yaw[good]

    times = pts_s[numbers]
    known = np.zeros(len(pts_s), dtype=bool)
    known[numbers] = True
    for a, b in itertools.pairwise(numbers):
        if pts_s[b] - pts_s[a] <= MAX_GAP_S:
            known[a:b] = True
    # A face that appears late or leaves early in the shot by less than the gap is held there.
    if pts_s[numbers[0]] - pts_s[0] <= MAX_GAP_S:
        known[: numbers[0]] = True
    if pts_s[-1] - pts_s[numbers[-1]] <= MAX_GAP_S:
        known[numbers[-1] :] = True

    flat = points.reshape(len(points), 6).astype(np.float64)
    smooth = np.full((len(pts_s), 6), np.nan)
    for start, stop in _stretches(known):
        inside = (numbers >= start) & (numbers < stop)
        smooth[start:stop] = _local_quadratic(times[inside], flat[inside], pts_s[start:stop])

    turned = np.interp(pts_s, times, np.abs(yaw))
    fade = np.clip((max_yaw_deg - turned) / YAW_FADE_DEG, 0.0, 1.0)
    weight = _gap_fade(known & (fade > 0), pts_s) * fade * fade * (3 - 2 * fade)
    return smooth.reshape(-1, 3, 2).astype(np.float32), weight.astype(np.float32)


def _inliers(points: FloatArray) -> NDArray[np.bool_]:
    """False for single frames whose points jump away and back."""
    if len(points) < 5:
        return np.ones(len(points), dtype=bool)
    padded = np.pad(points, ((2, 2), (0, 0), (0, 0)), mode="edge")
    median = np.median(np.stack([padded[i : i + len(points)] for i in range(5)]), axis=0)
    size = 2.2 * np.linalg.norm(median[:, 1] - median[:, 0], axis=1)
    away = np.linalg.norm(points - median, axis=2).max(axis=1)
    return np.asarray(away <= OUTLIER_SIZE * np.maximum(size, 1.0))


def _local_quadratic(
    times: NDArray[np.float64], values: NDArray[np.float64], at: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weighted quadratic fits around each moment: symmetric, so without lag (Savitzky, Golay)."""
    result = np.empty((len(at), values.shape[1]))
    low = np.searchsorted(times, at - 4 * SMOOTH_S)
    high = np.searchsorted(times, at + 4 * SMOOTH_S, side="right")
    for i, moment in enumerate(at):
        rows = slice(low[i], high[i])
        dt = (times[rows] - moment) / SMOOTH_S
        if len(dt) == 0:
            result[i] = values[np.abs(times - moment).argmin()]
            continue
        gauss = np.exp(-0.5 * dt * dt)
        # Beyond the last sample a parabola runs away: there the fit is a constant.
        inside = dt[0] <= 0 <= dt[-1]
        degree = min(2 if inside else 0, len(dt) - 1)
        base = dt[:, None] ** np.arange(degree + 1)
        weighted = base * gauss[:, None]
        normal = weighted.T @ base + 1e-9 * np.eye(degree + 1)
        result[i] = np.linalg.solve(normal, weighted.T @ values[rows])[0]
    return result


def _gap_fade(known: NDArray[np.bool_], pts_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 in gaps, a raised cosine next to them; the shot's own ends do not fade."""
    weight = known.astype(np.float64)
    tick = float(np.median(np.diff(pts_s))) if len(pts_s) > 1 else FADE_S
    for start, stop in _stretches(known):
        times = pts_s[start:stop]
        if start > 0:
            weight[start:stop] = np.minimum(weight[start:stop], _rise(times - times[0] + tick))
        if stop < len(known):
            weight[start:stop] = np.minimum(weight[start:stop], _rise(times[-1] - times + tick))
    return weight


def _rise(distance_s: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * np.clip(distance_s / FADE_S, 0.0, 1.0)))


def _stretches(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
