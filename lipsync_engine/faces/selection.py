"""Selection: which of a clip's faces speaks, as one face path per speaker.

A path can be requested while the clip is still being read. Every decision depends on a bounded look-ahead
only, so the settled rows of a path stay true whatever follows.
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

from lipsync_engine import media
from lipsync_engine.errors import ErrorCode, FaceError, ParameterError
from lipsync_engine.faces.align import alignment_points
from lipsync_engine.faces.smoothing import (
    FACE_SIZE_PER_BROW_DISTANCE,
    FacePath,
    UntouchedReason,
    smooth_path,
)
from lipsync_engine.faces.tracking import MAX_MISSING_S, MIN_FACE_PX, FaceTracks, Track
from lipsync_engine.params import FaceChoice, FaceRule, SyncParams
from lipsync_engine.utils import FloatArray

CHOICE_S = 10.0
"""A rule selects among the faces of a shot's first seconds. If none matches, the next seconds are tried."""

LOOK_AHEAD_S = 2.0
"""A path is settled up to this long before the last known frame. A lost face counts as absent after a second
(`tracking.MAX_MISSING_S`), and smoothing uses positions of up to half a second later.
"""

SIGNIFICANT_SHARE = 0.2
"""A face counts for left, right and numbers when it is visible in this share of the frames considered."""

SAME_PERSON_SIZE = 1.5
SAME_PERSON_DISTANCE = 1.0
"""A track that begins after another's end is the same person when size and place (in face sizes) are near."""

MASK_COVER = 0.2
"""Share of a face box that a mask must cover to select the face."""

BOX_POINTS = np.array([[0.27, 0.27], [0.73, 0.27], [0.50, 0.52]], dtype=np.float32)
"""Where the alignment points lie in a face box, for boxes without points. Measured on YuNet's boxes."""

MAX_FILE_BYTES = 64 * 2**20
MAX_LISTED = 6
"""Messages list at most this many faces."""


def speaker_paths(
    tracks: FaceTracks, params: SyncParams, size: tuple[int, int], choices: Sequence[FaceChoice]
) -> list[FacePath]:
    """Compute the face path of each speaker.

    Args:
        tracks: of the clip, as far as it is known.
        params: gives the faces file, the masks and the largest head turn. A mask selects the face only where
            there is one speaker.
        size: width and height of the frames.
        choices: of each speaker.

    Raises:
        FaceError: no face matches a choice, or two speakers have the same face.
        ParameterError: the faces file cannot be used.
    """
    if params.faces_file is not None:
        tracks = load_faces_file(params.faces_file, tracks)
    mask, mask_file = None, params.face_mask
    if mask_file is None and choices[0] == FaceChoice():
        mask_file = params.mask_image
    if mask_file is not None and len(choices) == 1:
        mask = media.read_mask(mask_file, *size)
    paths = [choose_speaker(tracks, choice, params.max_yaw_deg, mask=mask) for choice in choices]
    for one, other in itertools.combinations(paths, 2):
        both = ~(np.isnan(one.points) | np.isnan(other.points))
        if both.any() and np.array_equal(one.points[both], other.points[both]):
            raise FaceError(
                ErrorCode.FACE_CHOICE_UNMATCHED,
                "Two of the speakers are the same person in the video: choose another face for one of them, "
                f"or use a video that shows both. The video shows {describe_people(tracks)}.",
            )
    return paths


def choose_speaker(
    tracks: FaceTracks,
    choice: FaceChoice,
    max_yaw_deg: float,
    *,
    mask: NDArray[np.uint8] | None = None,
) -> FacePath:
    """Select one person and follow it through the clip.

    The rule is applied in every shot anew, to its first CHOICE_S (or the first later ones in which it matches
    a face). A point selects a face in its own shot. In the other shots the largest face is used.

    Args:
        tracks: of the clip, as far as it is known.
        choice: the rule.
        max_yaw_deg: heads turned further fade out.
        mask: uint8 (H, W), white over the speaker; overrides `choice`.

    Raises:
        FaceError: of a complete clip: FACE_NOT_FOUND, or FACE_CHOICE_UNMATCHED with the number of faces.
    """
    if tracks.is_complete and not tracks.tracks:
        raise FaceError(
            ErrorCode.FACE_NOT_FOUND,
            f"The video shows no face: it must be at least {MIN_FACE_PX} px wide and turned to the "
            "camera. The tiny model knows drawn presenters only; people need a LatentSync model "
            "(docs/models.md).",
        )
    n = len(tracks.pts_s)
    points = np.full((n, 3, 2), np.nan, dtype=np.float32)
    weight = np.zeros(n, dtype=np.float32)
    reasons = np.full(n, UntouchedReason.NO_FACE, dtype=np.int8)
    is_covered = np.zeros(n, dtype=bool)
    breaks = np.diff(tracks.shots, prepend=tracks.shots[:1]) != 0
    n_settled = n
    is_matched = False
    max_faces = 0
    for shot in np.unique(tracks.shots):
        first, stop = (int(edge) for edge in np.searchsorted(tracks.shots, [shot, shot + 1]))
        selection = _select_in_shot(
            tracks, first, stop, choice, mask, is_complete=tracks.is_complete or stop < n
        )
        max_faces = max(max_faces, selection.max_faces)
        n_settled = min(n_settled, selection.n_settled)
        if selection.person:
            is_matched = True
            path = smooth_path(
                selection.person, tracks.pts_s[first:stop], first, max_yaw_deg, tracks.smooth_s
            )
            points[first:stop], weight[first:stop] = path.points, path.weight
            reasons[first:stop], is_covered[first:stop] = path.reasons, path.is_covered
            breaks[first:stop] |= path.jumps
    if tracks.is_complete and not is_matched:
        rule = f"face={choice}" if mask is None else "the mask"
        raise FaceError(
            ErrorCode.FACE_CHOICE_UNMATCHED,
            f"No face matches {rule}: the video shows at most {max_faces} at once. Choose one of "
            f"{describe_people(tracks)}.",
        )
    return FacePath(points, weight, reasons, is_covered, np.cumsum(breaks), n_settled)


def count_people(tracks: FaceTracks) -> int:
    """Return how many faces that a rule can select are visible together, at most."""
    return max((len(row) for row in _selectable_rows(tracks)), default=0)


def describe_people(tracks: FaceTracks) -> str:
    """List the faces that a number selects, with position and time: "face 0 at 9,7 from 0 to 4.2 s, …"."""
    rows = _selectable_rows(tracks)
    people = [
        f"face {number} at {x:.0f},{y:.0f} from {start_s:.1f} to {stop_s:.1f} s"
        for row in rows
        for number, track in enumerate(row)
        for x, y in [np.median((track.boxes[:, :2] + track.boxes[:, 2:]) / 2, axis=0)]
        for start_s, stop_s in [tracks.pts_s[track.frames[[0, -1]]]]
    ]
    if len(people) > MAX_LISTED:
        people = [*people[:MAX_LISTED], f"{len(people) - MAX_LISTED} more"]
    return ", ".join(people) or "no usable face"


def _selectable_rows(tracks: FaceTracks) -> list[list[Track]]:
    """Return the tracks that numbers select in each shot, from left to right."""
    rows = []
    for shot in np.unique(tracks.shots):
        first, stop = np.searchsorted(tracks.shots, [shot, shot + 1])
        until = int(np.searchsorted(tracks.pts_s[:stop], tracks.pts_s[first] + CHOICE_S))
        parts = [part for track in tracks.tracks if (part := track.between(first, until)) is not None]
        by_id = {track.track_id: track for track in tracks.tracks}
        rows.append([by_id[part.track_id] for part in _significant(parts, until - first)])
    return rows


def load_faces_file(path: Path, tracks: FaceTracks) -> FaceTracks:
    """Read faces that the user provides instead of a detector, for cartoons for example.

    The file: `{"frames": [{"frame": 0, "box": [x0, y0, x1, y1]}, …]}`, in decoded frames counted from 0 and
    displayed pixels. Instead of a box an entry may have `"points": [[x, y] * 3]` (left brow, right brow,
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
        rows = sorted((_parse_entry(entry, len(tracks.pts_s)) for entry in entries), key=lambda row: row[0])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ParameterError(f"faces_file={path.name!r} is not understood: {error}.") from error
    if not rows or len({number for number, _, _ in rows}) < len(rows):
        raise ParameterError(f"faces_file={path.name!r} lists no frame, or one frame twice.")
    file_tracks: list[Track] = []
    for shot in np.unique(tracks.shots[[number for number, _, _ in rows]]):
        in_shot = [row for row in rows if tracks.shots[row[0]] == shot]
        file_tracks.append(
            Track.from_points(
                len(file_tracks),
                np.array([number for number, _, _ in in_shot], dtype=np.int64),
                np.stack([box for _, box, _ in in_shot]),
                np.stack([points for _, _, points in in_shot]),
            )
        )
    return dataclasses.replace(tracks, tracks=tuple(file_tracks))


def _parse_entry(entry: Any, n_frames: int) -> tuple[int, FloatArray, FloatArray]:
    """Return frame number, box and points of one entry."""
    number = entry["frame"]
    if not isinstance(number, int) or not 0 <= number < n_frames:
        raise ValueError(f"frame {number!r} is not one of the {n_frames} frames of the video")
    if "box" in entry:
        box = _parse_numbers(entry["box"], (4,), number)
        if box[2] <= box[0] or box[3] <= box[1]:
            raise ValueError(f"the box of frame {number} is empty")
        return number, box, box[:2] + BOX_POINTS * (box[2:] - box[:2])
    if "points" in entry:
        points = _parse_numbers(entry["points"], (3, 2), number)
    else:
        points = alignment_points(_parse_numbers(entry["landmarks106"], (106, 2), number)[None])[0]
    centre = points.mean(axis=0)
    size = FACE_SIZE_PER_BROW_DISTANCE * np.linalg.norm(points[1] - points[0])
    return number, np.concatenate([centre - size / 2, centre + size / 2]).astype(np.float32), points


def _parse_numbers(value: Any, shape: tuple[int, ...], number: int) -> FloatArray:
    array = np.asarray(value, dtype=np.float32)
    if array.shape != shape or not np.isfinite(array).all() or np.abs(array).max() > 1e6:
        raise ValueError(f"frame {number} needs {' x '.join(map(str, shape))} finite pixel positions")
    return array


@dataclass(frozen=True, slots=True)
class _ShotSelection:
    """The person selected in a shot.

    Attributes:
        person: tracks, one after the other; empty: nobody, or nobody yet.
        max_faces: how many faces are visible together.
        n_settled: number of the clip's frames that have their final rows.
    """

    person: tuple[Track, ...]
    max_faces: int
    n_settled: int


def _select_in_shot(
    tracks: FaceTracks,
    first: int,
    stop: int,
    choice: FaceChoice,
    mask: NDArray[np.uint8] | None,
    *,
    is_complete: bool,
) -> _ShotSelection:
    """Select the person in the shot of frames [first, stop).

    Args:
        is_complete: the shot has no further frames.
    """
    pts_s = tracks.pts_s
    in_shot = [track for track in tracks.tracks if first <= track.frames[0] < stop]
    last_s = float(pts_s[stop - 1])
    n_settled = len(pts_s) if is_complete else int(np.searchsorted(pts_s, last_s - LOOK_AHEAD_S))
    max_faces, start = 0, first
    point_frame = _frame_of_point(choice, mask, pts_s, first, stop, is_complete=is_complete)
    if point_frame is None:
        return _ShotSelection((), 0, first)  # the moment of the point may still come
    while start < stop:
        until = int(np.searchsorted(pts_s[:stop], pts_s[start] + CHOICE_S))
        if until == stop and not is_complete:
            # A face selected by a point was there before it, too.
            return _ShotSelection((), max_faces, start if point_frame < 0 else first)
        candidates = [part for track in in_shot if (part := track.between(start, until)) is not None]
        max_faces = max(max_faces, len(_significant(candidates, until - start)))
        if start <= point_frame < until and candidates:
            track, since = _track_at_point(candidates, point_frame, choice), first
        elif point_frame >= 0:
            track, since = None, start
        else:
            track, since = _select_by_rule(candidates, until - start, choice, mask), start
        if track is not None:
            parts = [part for other in in_shot if (part := other.between(since, stop)) is not None]
            return _ShotSelection(_person_of(track.track_id, parts), max_faces, n_settled)
        start = until
    return _ShotSelection((), max_faces, n_settled)


def _frame_of_point(
    choice: FaceChoice,
    mask: NDArray[np.uint8] | None,
    pts_s: NDArray[np.float64],
    first: int,
    stop: int,
    *,
    is_complete: bool,
) -> int | None:
    """Return the frame of this shot that a point lies in; -1: in none of it; None: not known yet."""
    if mask is not None or choice.rule is not FaceRule.POINT:
        return -1
    if not is_complete and choice.time_s > pts_s[stop - 1] - MAX_MISSING_S:
        return None
    number = int(np.clip(np.searchsorted(pts_s, choice.time_s + 1e-6) - 1, 0, len(pts_s) - 1))
    return number if first <= number < stop else -1


def _area(track: Track) -> float:
    """Return the area of a face over all frames in which it is usable."""
    sides = np.maximum(track.boxes[:, 2:] - track.boxes[:, :2], 0)
    return float(np.prod(sides, axis=1)[track.is_usable].sum())


def _mean_x(track: Track) -> float:
    return float(track.boxes[:, [0, 2]].mean())


def _significant(candidates: Sequence[Track], n_frames: int) -> list[Track]:
    """Return the faces that are usable long enough, from left to right."""
    share = SIGNIFICANT_SHARE * n_frames
    significant = [track for track in candidates if np.count_nonzero(track.is_usable) >= share]
    return sorted(significant, key=_mean_x)


def _select_by_rule(
    candidates: Sequence[Track], n_frames: int, choice: FaceChoice, mask: NDArray[np.uint8] | None
) -> Track | None:
    if not candidates:
        return None
    if mask is not None:
        under_mask = [track for track in candidates if _mask_cover(track, mask) >= MASK_COVER]
        return max(under_mask, key=lambda track: (_area(track) > 0, _mask_cover(track, mask)), default=None)
    largest = max(candidates, key=_area)
    row = _significant(candidates, n_frames) or [largest]
    match choice.rule:
        case FaceRule.LEFT:
            return row[0]
        case FaceRule.RIGHT:
            return row[-1]
        case FaceRule.INDEX:
            return row[choice.index] if choice.index < len(row) else None
        case _:
            return largest


def _track_at_point(candidates: Sequence[Track], number: int, choice: FaceChoice) -> Track | None:
    def distance(track: Track) -> float:
        """Return the distance in face sizes, at the track's frame nearest to the moment."""
        box = track.boxes[np.abs(track.frames - number).argmin()]
        size = max(1.0, float(np.max(box[2:] - box[:2])))
        return float(np.hypot(*((box[:2] + box[2:]) / 2 - (choice.x, choice.y)))) / size

    nearest = min(candidates, key=distance)
    return nearest if distance(nearest) <= 1.0 else None


def _mask_cover(track: Track, mask: NDArray[np.uint8]) -> float:
    """Return the share of the face's box that is white, on average."""
    shares = []
    for box in track.boxes:
        x0, y0, x1, y1 = (max(0, int(v)) for v in box)
        part = mask[y0:y1, x0:x1]
        shares.append(float(part.mean()) / 255.0 if part.size else 0.0)
    return float(np.mean(shares))


def _person_of(track_id: int, parts: Sequence[Track]) -> tuple[Track, ...]:
    """Return the selected track with those before and after it that are the same person, lost and back."""
    person = [next(track for track in parts if track.track_id == track_id)]
    for track in sorted(parts, key=lambda t: int(t.frames[-1]), reverse=True):
        if track.frames[-1] < person[0].frames[0] and _is_near(track.boxes[-1], person[0].boxes[0]):
            person.insert(0, track)
    for track in sorted(parts, key=lambda t: int(t.frames[0])):
        if track.frames[0] > person[-1].frames[-1] and _is_near(person[-1].boxes[-1], track.boxes[0]):
            person.append(track)
    return tuple(person)


def _is_near(one: FloatArray, other: FloatArray) -> bool:
    sizes = [float(np.sqrt(np.prod(box[2:] - box[:2]))) for box in (one, other)]
    distance = float(np.hypot(*((one[:2] + one[2:]) / 2 - (other[:2] + other[2:]) / 2)))
    return max(sizes) / min(sizes) <= SAME_PERSON_SIZE and distance <= SAME_PERSON_DISTANCE * max(sizes)
