"""Smoothing: from one person's detections to a face path with its fades.

The path has a row for every decoded frame. Where no usable face is visible its weight is 0 and the frame
stays unchanged. Next to such gaps, and where the head turns too far, the weight rises and falls softly. At
shot cuts and at the clip's ends nothing fades, because a cut hides the change.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipsync_engine.faces.tracking import Track

FloatArray = NDArray[np.float32]

MAX_GAP_S = 0.4
"""Longest gap between detections that is bridged, seconds."""

FADE_S = 0.2
YAW_FADE_DEG = 8.0
SMOOTH_S = 0.12
"""Width of the local quadratic fit: a nod of 1 Hz keeps 97 %, detector noise shrinks 2.5 times."""

OUTLIER_SIZE = 0.15
"""A point further than this, in face sizes, from the median of five frames is a misdetection."""

FACE_SIZE_PER_BROW_DISTANCE = 2.2


@dataclass(frozen=True, slots=True)
class FacePath:
    """The speaker's face in every decoded frame.

    Attributes:
        points: float32 (N, 3, 2) left brow, right brow, nose in full-size pixels; NaN where nothing is known.
        weight: float32 (N,) how much of a generated face may show; 0 leaves the frame unchanged.
        shots: int64 (N,).
        n_settled: number of leading rows that stay as they are when more of the clip becomes known; all rows
            of a complete clip.
    """

    points: FloatArray
    weight: FloatArray
    shots: NDArray[np.int64]
    n_settled: int


def smooth_path(
    person: Sequence[Track], pts_s: NDArray[np.float64], first: int, max_yaw_deg: float
) -> tuple[FloatArray, FloatArray]:
    """Smooth the points of one person through one shot and compute the weight of every frame.

    Args:
        person: the person's tracks, one after the other.
        pts_s: float64 (N,) times of the shot's frames, seconds.
        first: number of the shot's first frame.
        max_yaw_deg: heads that turn further fade out.

    Returns:
        float32 (N, 3, 2) points, NaN in gaps; float32 (N,) weight.
    """
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
    for start, stop in _runs_of(known):
        inside = (numbers >= start) & (numbers < stop)
        smooth[start:stop] = _local_quadratic(times[inside], flat[inside], pts_s[start:stop])

    turned = np.interp(pts_s, times, np.abs(yaw))
    fade = np.clip((max_yaw_deg - turned) / YAW_FADE_DEG, 0.0, 1.0)
    weight = _gap_fade(known & (fade > 0), pts_s) * fade * fade * (3 - 2 * fade)
    return smooth.reshape(-1, 3, 2).astype(np.float32), weight.astype(np.float32)


def _inliers(points: FloatArray) -> NDArray[np.bool_]:
    """Return False for single frames whose points jump away and back."""
    if len(points) < 5:
        return np.ones(len(points), dtype=bool)
    padded = np.pad(points, ((2, 2), (0, 0), (0, 0)), mode="edge")
    median = np.median(np.stack([padded[i : i + len(points)] for i in range(5)]), axis=0)
    size = FACE_SIZE_PER_BROW_DISTANCE * np.linalg.norm(median[:, 1] - median[:, 0], axis=1)
    distance = np.linalg.norm(points - median, axis=2).max(axis=1)
    return np.asarray(distance <= OUTLIER_SIZE * np.maximum(size, 1.0))


def _local_quadratic(
    times: NDArray[np.float64], values: NDArray[np.float64], at: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Fit a weighted quadratic around each moment. It is symmetric and so without lag (Savitzky, Golay)."""
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
    """Return 0 in gaps and a raised cosine next to them. The shot's own ends do not fade."""
    weight = known.astype(np.float64)
    tick = float(np.median(np.diff(pts_s))) if len(pts_s) > 1 else FADE_S
    for start, stop in _runs_of(known):
        times = pts_s[start:stop]
        if start > 0:
            weight[start:stop] = np.minimum(weight[start:stop], _rise(times - times[0] + tick))
        if stop < len(known):
            weight[start:stop] = np.minimum(weight[start:stop], _rise(times[-1] - times + tick))
    return weight


def _rise(distance_s: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * np.clip(distance_s / FADE_S, 0.0, 1.0)))


def _runs_of(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
