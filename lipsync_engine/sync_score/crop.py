"""The square around a face that SyncNet sees.

The published weights were trained on squares built from a detector's boxes: 1.4 half box sizes to either side
of the middle, 1 above it, 1.8 below. Here boxes come from the three alignment points, so that faces from any
detector, from a plan or from a file are cut alike; where their mean lies in a box, and how far they spread,
was measured on YuNet's. Mean and spread are what a plan's matrices keep of the points. Pure.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

SPREADS = 6.07
"""A box's longer side, in standard deviations of the three points: median of 25 pictures, 0.13 either way."""

POINTS_TO_MIDDLE = 0.14
"""From the three points' mean down to the middle of the box, in its longer sides."""

SIDE, UP = 1.4, 0.5
"""The square's side, and how far it reaches above the middle, in the box's longer sides."""

MEDIAN_FRAMES = 13
BEYOND = 110
"""Grey where the square reaches beyond the picture."""


def squares(points: FloatArray) -> FloatArray:
    """Where the squares lie in consecutive pictures, steadied by a median over 13 of them.

    Args:
        points: (n, 3, 2) left brow, right brow, nose in pixels.

    Returns:
        float32 (n, 3): left edge, top edge, side.
    """
    mean = points.mean(axis=1)
    longer = SPREADS * (points - mean[:, None]).reshape(len(points), -1).std(axis=1, ddof=1)
    middle_y = mean[:, 1] + POINTS_TO_MIDDLE * longer
    raw = np.stack([mean[:, 0] - SIDE / 2 * longer, middle_y - UP * longer, SIDE * longer], axis=1)
    padded = np.pad(raw, ((MEDIAN_FRAMES // 2, MEDIAN_FRAMES // 2), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, MEDIAN_FRAMES, axis=0)
    return np.asarray(np.median(windows, axis=-1), dtype=np.float32)


def cut(picture: npt.NDArray[np.uint8], square: FloatArray, side: int) -> npt.NDArray[np.uint8]:
    """The face, uint8 (side, side, 3).

    Args:
        picture: uint8 (H, W, 3).
        square: left edge, top edge, side.
    """
    x0, y0, size = (round(float(value)) for value in square)
    size = max(2, size)
    height, width = picture.shape[:2]
    left, top, right, bottom = max(0, x0), max(0, y0), min(width, x0 + size), min(height, y0 + size)
    if left >= right or top >= bottom:
        return np.full((side, side, 3), BEYOND, np.uint8)
    edges = top - y0, y0 + size - bottom, left - x0, x0 + size - right
    inside = picture[top:bottom, left:right]
    if any(edges):
        inside = cv2.copyMakeBorder(inside, *edges, cv2.BORDER_CONSTANT, value=(BEYOND,) * 3)
    how = cv2.INTER_AREA if size > side else cv2.INTER_LINEAR
    return cast(npt.NDArray[np.uint8], cv2.resize(inside, (side, side), interpolation=how))
