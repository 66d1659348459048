"""Square face crops for SyncNet; pure.

The published weights were trained on squares built from a detector's boxes: 1.4 half box sizes to each side
of the center, 1 above it, 1.8 below. Here the boxes are derived from the three alignment points, so that
faces from any detector, plan or file are cropped alike. The position of the points' mean in a box, and their
spread, were measured on YuNet's boxes. A plan's matrices preserve mean and spread of the points.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from lipsync_engine.utils import FloatArray

BOX_PER_SPREAD = 6.07
"""A box's longer side in standard deviations of the three points: median of 25 images, within 0.13."""

POINTS_TO_CENTER = 0.14
"""Distance from the points' mean down to the box's center, relative to its longer side."""

SQUARE_SIDE, SQUARE_ABOVE = 1.4, 0.5
"""The square's side, and its extent above the center, relative to the box's longer side."""

MEDIAN_FRAMES = 13
PADDING_GREY = 110
"""Grey level of the square's part outside the frame."""


def compute_squares(points: FloatArray) -> FloatArray:
    """Compute the squares of consecutive frames, smoothed by a median over 13 frames.

    Args:
        points: (n, 3, 2) left brow, right brow, nose in pixels.

    Returns:
        float32 (n, 3): left edge, top edge, side.
    """
    mean = points.mean(axis=1)
    box = BOX_PER_SPREAD * (points - mean[:, None]).reshape(len(points), -1).std(axis=1, ddof=1)
    center_y = mean[:, 1] + POINTS_TO_CENTER * box
    left, top = mean[:, 0] - SQUARE_SIDE / 2 * box, center_y - SQUARE_ABOVE * box
    raw = np.stack([left, top, SQUARE_SIDE * box], axis=1)
    padded = np.pad(raw, ((MEDIAN_FRAMES // 2, MEDIAN_FRAMES // 2), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, MEDIAN_FRAMES, axis=0)
    return np.asarray(np.median(windows, axis=-1), dtype=np.float32)


def crop_square(frame: npt.NDArray[np.uint8], square: FloatArray, side: int) -> npt.NDArray[np.uint8]:
    """Crop a face and resize it to uint8 (side, side, 3).

    Args:
        frame: uint8 (H, W, 3).
        square: left edge, top edge, side.
    """
    x0, y0, size = (round(float(value)) for value in square)
    size = max(2, size)
    height, width = frame.shape[:2]
    left, top, right, bottom = max(0, x0), max(0, y0), min(width, x0 + size), min(height, y0 + size)
    if left >= right or top >= bottom:
        return np.full((side, side, 3), PADDING_GREY, np.uint8)
    padding = top - y0, y0 + size - bottom, left - x0, x0 + size - right
    face = frame[top:bottom, left:right]
    if any(padding):
        face = cv2.copyMakeBorder(face, *padding, cv2.BORDER_CONSTANT, value=(PADDING_GREY,) * 3)
    interpolation = cv2.INTER_AREA if size > side else cv2.INTER_LINEAR
    return cast(npt.NDArray[np.uint8], cv2.resize(face, (side, side), interpolation=interpolation))
