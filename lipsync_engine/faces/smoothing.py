"""Smoothing: from one person's detections to a face path with its fades.

The path has a row for every decoded frame. Where no usable face is visible its weight is 0 and the frame
stays untouched, for a reason that the path names. Next to such gaps, and where the head turns too far, the
weight rises and falls softly. At cuts and at the clip's ends nothing fades, because a cut hides the change.

A punch-in or a jump cut inside one room is no shot cut to the tracker: the person goes on. The path breaks
there all the same, and nothing from before the break is used after it.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipsync_engine.faces.detect import MIN_PRESENCE
from lipsync_engine.faces.tracking import Track
from lipsync_engine.utils import FloatArray, runs_of

MAX_GAP_S = 0.4
"""Longest gap between detections that is bridged, seconds. A face that is usable for less than this between
two untouched moments stays untouched too, so that the mouth does not flicker."""

MIN_COVERED_S = 0.12
"""Shorter dips of presence are no occlusion."""

FADE_S = 0.2
YAW_FADE_DEG = 8.0

OUTLIER_SIZE = 0.15
"""A point further than this, in face sizes, from the median of five frames is a misdetection."""

FACE_SIZE_PER_BROW_DISTANCE = 2.2

JUMP_STEP = 0.15
"""A jump moves a point by more than this from one frame to the next, in distances between the brows."""

JUMP_SCALE = 1.5
"""How a change of size compares with a movement: as a logarithm, times this."""

JUMP_ISOLATION = 2.5
"""A jump is so many times larger than the movements before and after it. No head accelerates like that."""

JUMP_CHANGE, JUMP_CHANGE_QUANTILE, JUMP_CHANGE_S, MIN_CHANGE = 2.0, 0.85, 0.5, 1.5
"""At a jump the image in the face box changes so many times more than at the upper quantile of the frames
around it. A regular stutter of dropped frames makes a fifth of the frames change more than the rest."""


class UntouchedReason(enum.IntEnum):
    """Why a frame is left as it is."""

    NONE = 0
    """It is not left as it is."""

    NO_FACE = 1
    TURNED = 2
    SMALL = 3
    LOW_PRESENCE = 4
    """A face was found, but its points cannot be trusted: too much of it is hidden."""


UNTOUCHED_TEXT = {
    "no_face": "show no face",
    "turned": "show the head turned too far",
    "small": "show the face too small",
    "low_presence": "show too little of the face",
}
"""What frames of a reason show, by the reason's name in lower case."""


def count_reasons(reasons: NDArray[np.int8]) -> dict[str, int]:
    """Count the untouched frames among `reasons` by the reason's name in lower case; no zeros."""
    counts = {
        reason.name.lower(): int(np.count_nonzero(reasons == reason)) for reason in UntouchedReason if reason
    }
    return {name: count for name, count in counts.items() if count}


def describe_untouched(counts: Mapping[str, int]) -> str:
    """Describe how many frames are left as they are, and why: "3 show no face, 2 show …"."""
    return ", ".join(f"{count} {UNTOUCHED_TEXT[name]}" for name, count in counts.items())


@dataclass(frozen=True, slots=True)
class FacePath:
    """The speaker's face in every decoded frame.

    Attributes:
        points: float32 (N, 3, 2) left brow, right brow, nose in full-size pixels; NaN where nothing is known.
        weight: float32 (N,) how much of a generated face may show; 0 leaves the frame untouched.
        reasons: int8 (N,) `UntouchedReason` of each frame.
        is_covered: bool (N,) something seems to hide a part of the face.
        shots: int64 (N,) number of the shot, counted on at every jump of the face, too.
        n_settled: number of leading rows that stay as they are when more of the clip becomes known; all rows
            of a complete clip.
    """

    points: FloatArray
    weight: FloatArray
    reasons: NDArray[np.int8]
    is_covered: NDArray[np.bool_]
    shots: NDArray[np.int64]
    n_settled: int


def merge_shots(paths: Sequence[FacePath]) -> NDArray[np.int64]:
    """Number the shots of several speakers' paths: int64 (N,), counted on wherever one of them breaks."""
    breaks = [np.diff(path.shots, prepend=path.shots[:1]) != 0 for path in paths]
    return np.cumsum(np.any(breaks, axis=0))


@dataclass(frozen=True, slots=True)
class ShotPath:
    """A person's face in every frame of one shot; see `FacePath`.

    Attributes:
        jumps: bool (N,) the face has jumped since the frame before.
    """

    points: FloatArray
    weight: FloatArray
    reasons: NDArray[np.int8]
    is_covered: NDArray[np.bool_]
    jumps: NDArray[np.bool_]


def smooth_path(
    person: Sequence[Track], pts_s: NDArray[np.float64], first: int, max_yaw_deg: float, smooth_s: float
) -> ShotPath:
    """Smooth the points of one person through one shot and compute the weight of every frame.

    Args:
        person: the person's tracks, one after the other.
        pts_s: float64 (N,) times of the shot's frames, seconds.
        first: number of the shot's first frame.
        max_yaw_deg: heads that turn further fade out.
        smooth_s: width of the local quadratic fit, seconds.
    """
    numbers = np.concatenate([track.frames for track in person]) - first
    points = np.concatenate([track.points for track in person])
    change = np.concatenate([track.change for track in person])
    yaw = np.abs(np.concatenate([track.yaw_deg for track in person]))
    causes = np.concatenate([row_reasons(track) for track in person])
    _close_short_runs(causes, pts_s[numbers])
    is_usable = causes == UntouchedReason.NONE

    n = len(pts_s)
    smooth, is_known, jumps = np.full((n, 6), np.nan), np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    yaw_at = np.zeros(n)
    is_jump = _find_jumps(points, change, pts_s[numbers])
    for part in _parts(pts_s[numbers], is_usable, is_jump):
        jumps[numbers[part.start]] = is_jump[part.start]
        is_inlier = _inliers(points[part])
        rows = numbers[part][is_inlier]
        flat = points[part][is_inlier].reshape(len(rows), 6).astype(np.float64)
        # A face that appears late or leaves early by less than the gap is held there.
        start, stop = numbers[part.start], numbers[part.stop - 1] + 1
        if part.start == 0 and pts_s[start] - pts_s[0] <= MAX_GAP_S:
            start = 0
        if part.stop == len(numbers) and pts_s[-1] - pts_s[stop - 1] <= MAX_GAP_S:
            stop = n
        elif part.stop < len(numbers) and is_jump[part.stop]:
            following = numbers[part.stop]
            stop = following if pts_s[following] - pts_s[stop - 1] <= MAX_GAP_S else stop
        is_known[start:stop] = True
        smooth[start:stop] = _local_quadratic(pts_s[rows], flat, pts_s[start:stop], smooth_s)
        yaw_at[start:stop] = np.interp(pts_s[start:stop], pts_s[rows], yaw[part][is_inlier])

    fade = np.clip((max_yaw_deg - yaw_at) / YAW_FADE_DEG, 0.0, 1.0)
    weight = (_gap_fade(is_known & (fade > 0), pts_s) * fade * fade * (3 - 2 * fade)).astype(np.float32)
    reasons = np.full(n, UntouchedReason.NO_FACE, dtype=np.int8)
    reasons[numbers] = causes
    reasons[is_known] = UntouchedReason.TURNED
    reasons[weight > 0] = UntouchedReason.NONE
    is_covered = np.zeros(n, dtype=bool)
    is_covered[numbers] = np.concatenate([track.is_covered for track in person])
    return ShotPath(smooth.reshape(-1, 3, 2).astype(np.float32), weight, reasons, is_covered, jumps)


def covered_intervals(
    is_covered: NDArray[np.bool_], times_s: NDArray[np.float64]
) -> tuple[tuple[float, float], ...]:
    """Return (start, stop) in seconds of the intervals in which a face seems to be covered.

    Args:
        is_covered: bool (K,) of consecutive frames.
        times_s: float64 (K,) their times.
    """
    intervals = [
        (round(float(times_s[start]), 2), round(float(times_s[stop - 1]), 2))
        for start, stop in runs_of(is_covered)
    ]
    return tuple((start_s, stop_s) for start_s, stop_s in intervals if stop_s - start_s >= MIN_COVERED_S)


def row_reasons(track: Track) -> NDArray[np.int8]:
    """Return `UntouchedReason` of each row, as far as it follows from the row alone."""
    causes = np.full(len(track.frames), UntouchedReason.NONE, dtype=np.int8)
    causes[track.presence < MIN_PRESENCE] = UntouchedReason.LOW_PRESENCE
    causes[track.is_small] = UntouchedReason.SMALL
    return causes


def _close_short_runs(causes: NDArray[np.int8], times_s: NDArray[np.float64]) -> None:
    """Extend causes over short usable runs between unusable ones."""
    for start, stop in runs_of(causes == UntouchedReason.NONE):
        is_inside = start > 0 and stop < len(causes)
        if is_inside and times_s[stop] - times_s[start - 1] < MAX_GAP_S:
            causes[start:stop] = causes[start - 1]


def _parts(
    times_s: NDArray[np.float64], is_usable: NDArray[np.bool_], is_jump: NDArray[np.bool_]
) -> list[slice]:
    """Cut the usable rows where frames are missing for too long, are unusable or show a jump."""
    breaks = is_jump.copy()
    breaks[1:] |= np.diff(times_s) > MAX_GAP_S
    parts = []
    for start, stop in runs_of(is_usable):
        edges = [start, *(start + 1 + np.flatnonzero(breaks[start + 1 : stop])), stop]
        parts += [slice(int(a), int(b)) for a, b in itertools.pairwise(edges)]
    return parts


def _find_jumps(points: FloatArray, change: FloatArray, times_s: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which rows show the face after a cut inside the shot.

    The face moves or changes its size suddenly, for one frame only, and so does the image in its box.
    """
    if len(points) < 2:
        return np.zeros(len(points), dtype=bool)
    spread = np.sqrt(np.square(points - points.mean(axis=1, keepdims=True)).sum(axis=(1, 2)))
    brows = np.maximum(np.linalg.norm(points[:, 1] - points[:, 0], axis=1), 1e-3)
    movement = np.linalg.norm(np.diff(points, axis=0), axis=2).max(axis=1) / np.minimum(brows[1:], brows[:-1])
    scaling = np.abs(np.diff(np.log(np.maximum(spread, 1e-3))))
    step = np.concatenate([[0.0], np.maximum(movement, JUMP_SCALE * scaling), [0.0]])
    neighbours = np.maximum(step[:-2], step[2:])
    candidates = (step[1:-1] >= JUMP_STEP) & (step[1:-1] >= JUMP_ISOLATION * neighbours)
    jumps = np.zeros(len(points), dtype=bool)
    for row in np.flatnonzero(candidates) + 1:
        around = np.abs(times_s - times_s[row]) <= JUMP_CHANGE_S
        around[row] = False
        others = change[around & np.isfinite(change)]
        usual = np.quantile(others, JUMP_CHANGE_QUANTILE) if len(others) else 0.0
        jumps[row] = change[row] >= JUMP_CHANGE * max(MIN_CHANGE, usual)
    return jumps


def _inliers(points: FloatArray) -> NDArray[np.bool_]:
    """Return False for single frames whose points jump away and back."""
    if len(points) < 5:
        return np.ones(len(points), dtype=bool)
    padded = np.pad(points, ((2, 2), (0, 0), (0, 0)), mode="edge")
    median = np.median(np.stack([padded[i : i + len(points)] for i in range(5)]), axis=0)
    size = FACE_SIZE_PER_BROW_DISTANCE * np.linalg.norm(median[:, 1] - median[:, 0], axis=1)
    distance = np.linalg.norm(points - median, axis=2).max(axis=1)
    is_inlier = distance <= OUTLIER_SIZE * np.maximum(size, 1.0)
    # Where no frame agrees with its neighbours, there is nothing to prefer.
    return is_inlier if is_inlier.any() else np.ones(len(points), dtype=bool)


def _local_quadratic(
    times: NDArray[np.float64], values: NDArray[np.float64], at: NDArray[np.float64], smooth_s: float
) -> NDArray[np.float64]:
    """Fit a weighted quadratic around each moment. It is symmetric and so without lag (Savitzky, Golay)."""
    result = np.empty((len(at), values.shape[1]))
    low = np.searchsorted(times, at - 4 * smooth_s)
    high = np.searchsorted(times, at + 4 * smooth_s, side="right")
    for i, moment in enumerate(at):
        rows = slice(low[i], high[i])
        dt = (times[rows] - moment) / smooth_s
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
    """Return 0 in gaps and a raised cosine next to them. The shot's own ends do not fade."""
    weight = known.astype(np.float64)
    tick = float(np.median(np.diff(pts_s))) if len(pts_s) > 1 else FADE_S
    for start, stop in runs_of(known):
        times = pts_s[start:stop]
        if start > 0:
            weight[start:stop] = np.minimum(weight[start:stop], _rise(times - times[0] + tick))
        if stop < len(known):
            weight[start:stop] = np.minimum(weight[start:stop], _rise(times[-1] - times + tick))
    return weight


def _rise(distance_s: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * np.clip(distance_s / FADE_S, 0.0, 1.0)))
