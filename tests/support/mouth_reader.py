"""Reads the mouth of a drawn presenter back from a picture, to measure lip-sync against the truth.

Analysis by synthesis: the identity and the head's pose are known, so mouths of many shapes are drawn into the
same place, and the one that comes nearest to the picture is what is read. It has learned nothing and knows
nothing of the model that made the picture.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from tests.support.presenter import SUPERSAMPLE, Canvas, Identity, Pose, paint, paint_mouth

SIDE = 160
"""Pictures are read at this size."""

BOX = np.array([(-0.27, 0.33), (0.27, 0.33), (-0.27, 0.74), (0.27, 0.74)])
"""Corners of what is compared, in face coordinates: from under the nose to above the chin."""

SHAPES = ((0.5, 0.0), (0.9, 0.0), (0.2, 0.8))
COARSE = (0.0, 0.12, 0.25, 0.4, 0.6, 0.8, 1.0)
FINE = (0.08, 0.04, 0.02)


def read_openness(picture: np.ndarray, who: Identity, pose: Pose) -> float:
    """How far the mouth is open.

    Args:
        picture: uint8 (S, S, 3) RGB, the whole square frame.
        pose: of the head; its mouth is not looked at.

    Returns:
        0 closed … 1 wide open, in steps of 0.02.
    """
    small = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    canvas = Canvas(SIDE, pose)
    paint(canvas, who, pose, with_mouth=False)
    corners = canvas.to_pixels(BOX) / SUPERSAMPLE
    (x0, y0), (x1, y1) = (
        np.clip(np.rint(edge), 0, SIDE).astype(int) for edge in (corners.min(0), corners.max(0))
    )
    bare, target = canvas.part(x0, y0, x1, y1), small[y0:y1, x0:x1]

    def error(openness: float, width: float, rounding: float) -> float:
        drawn = bare.part(0, 0, x1 - x0, y1 - y0)
        mouth = dataclasses.replace(pose, openness=openness, width=width, rounding=rounding)
        paint_mouth(drawn, who, mouth)
        return float(np.mean((drawn.shown() - target) ** 2))

    best = min((error(openness, *shape), openness, shape) for shape in SHAPES for openness in COARSE)
    for step in FINE:
        _, openness, shape = best
        near = (openness - step, openness + step)
        best = min(best, *((error(at, *shape), at, shape) for at in near if 0 <= at <= 1))
    return best[1]
