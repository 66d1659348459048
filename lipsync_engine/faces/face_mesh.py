"""MediaPipe's face mesh: 468 points on one face, and the measures taken from them.

The network receives one square crop of an image. Everything else, which faces there are and where to crop,
belongs to the detector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsync_engine.utils import FloatArray

N_POINTS = 468
SIDE = 192
"""Side of the network's input, pixels."""

REGION_SIZE = 1.5
"""Side of the region that a face is measured in, in sizes of its mesh. The network was trained with it."""

PRESENCE_MIDDLE, PRESENCE_SCALE = 4.0, 4.0
"""The logit at which presence is one half, and how fast presence rises.

The published sigmoid saturates. On real faces a correctly placed region gives logits of 15 to 40, in the dark
too. A hand or a microphone at the mouth brings them down to between 12 and 0, where the points drift away. A
region turned by 90 degrees or more gives up to 10, which the published sigmoid maps to 0.99995.
"""

LEFT_BROW = (70, 63, 105, 66, 107)
RIGHT_BROW = (336, 296, 334, 293, 300)
NOSE_BRIDGE, NOSE_TIP = (195, 5), 4
LEFT_NOSTRIL, RIGHT_NOSTRIL = (129, 48, 64), (358, 278, 294)
LEFT_CHEEK, RIGHT_CHEEK = 234, 454
LEFT_EYE, RIGHT_EYE = (33, 133, 159, 145), (263, 362, 386, 374)
"""Outer corner, inner corner, upper lid, lower lid. "Left" is the image's left of an upright face."""

LIPS = (13, 14)
OUTER_LIPS = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
INNER_LIPS = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191)
LIP_PATCH = 64
MIN_LIP_SPAN = 4.0
"""Side that the mouth is resampled to for its colour, and its least width in the image, pixels."""

BOX_HEIGHT, BOX_RISE = 1.16, 0.08
"""A face box reaches up to the hair: its height and the shift of its centre, in heights of the mesh. This
is YuNet's mean box, so that boxes mean the same wherever they come from."""


@dataclass(frozen=True, slots=True)
class Region:
    """A square part of an image that the mesh is measured in.

    Attributes:
        centre: float64 (2,), pixels.
        size: side, pixels.
        roll: angle of the face in it, radians, clockwise in the image.
    """

    centre: NDArray[np.float64]
    size: float
    roll: float

    def agrees_with(self, other: Region) -> bool:
        """Return whether both regions are so near that a measurement in either gives the same points."""
        turn = math.remainder(self.roll - other.roll, 2 * math.pi)
        distance = float(np.hypot(*(self.centre - other.centre)))
        return (
            distance <= AGREEMENT_DISTANCE * self.size
            and abs(math.log(other.size / self.size)) <= AGREEMENT_SIZE
            and abs(turn) <= AGREEMENT_ROLL
        )


AGREEMENT_DISTANCE, AGREEMENT_SIZE, AGREEMENT_ROLL = 0.06, 0.12, math.radians(8)
"""Differences that the network tolerates: of the centre in sizes of the region, of the size as a logarithm,
of the roll in radians."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """The points of one face.

    Attributes:
        points: float32 (468, 3), x and y in image pixels, z in the same unit, smaller towards the camera.
        presence: 0..1, the network's confidence that the region showed an upright face.
    """

    points: FloatArray
    presence: float

    @property
    def region(self) -> Region:
        """The region to measure this face in: upright with the eyes, around all points."""
        roll = self.roll
        low, high = self._extent(roll)
        size = REGION_SIZE * float((high - low).max())
        return Region(_turned((low + high) / 2, roll), max(size, 1.0), roll)

    @property
    def roll(self) -> float:
        """Angle of the line through the outer eye corners, radians, clockwise in the image."""
        x, y = self.points[RIGHT_EYE[0], :2] - self.points[LEFT_EYE[0], :2]
        return math.atan2(y, x)

    @property
    def yaw(self) -> float:
        """Head turn from the depth of both cheeks, radians, positive towards the image's right if upright."""
        across = self.points[RIGHT_CHEEK] - self.points[LEFT_CHEEK]
        return math.atan2(across[2], math.hypot(across[0], across[1]))

    @property
    def alignment_points(self) -> FloatArray:
        """float32 (3, 2): left brow, right brow, nose.

        They are means of the groups that stand for those of the 106-point landmarks (`align.LEFT_BROW` and so
        on): the upper line of each brow; the bridge, the tip and both wings of the nose.
        """
        p = self.points[:, :2]
        nose = (
            p[list(NOSE_BRIDGE)].mean(axis=0)
            + p[NOSE_TIP]
            + p[list(LEFT_NOSTRIL)].mean(axis=0)
            + p[list(RIGHT_NOSTRIL)].mean(axis=0)
        ) / 4
        return np.stack([p[list(LEFT_BROW)].mean(axis=0), p[list(RIGHT_BROW)].mean(axis=0), nose])

    @property
    def box(self) -> FloatArray:
        """float32 (4,): x0, y0, x1, y1 of the face, hair line included."""
        roll = self.roll
        low, high = self._extent(roll)
        width, height = high - low
        centre = _turned((low + high) / 2 - (0, BOX_RISE * height), roll)
        cos, sin = math.cos(roll), math.sin(roll)
        # Of the ellipse in the turned box: at 45 degrees the box around its corners would be too large.
        half_width = math.hypot(width * cos, BOX_HEIGHT * height * sin) / 2
        half_height = math.hypot(width * sin, BOX_HEIGHT * height * cos) / 2
        half = np.array([half_width, half_height])
        return np.concatenate([centre - half, centre + half]).astype(np.float32)

    @property
    def mouth_opening(self) -> float:
        """Gap between the inner lips, in distances between the outer eye corners."""
        return _distance(self.points, *LIPS) / max(_distance(self.points, LEFT_EYE[0], RIGHT_EYE[0]), 1e-3)

    @property
    def eye_opening(self) -> float:
        """Gap between the lids in widths of the eye, mean of both eyes. A blink is a short dip."""
        gaps = [
            _distance(self.points, upper, lower) / max(_distance(self.points, outer, inner), 1e-3)
            for outer, inner, upper, lower in (LEFT_EYE, RIGHT_EYE)
        ]
        return sum(gaps) / len(gaps)

    def _extent(self, roll: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Smallest and largest coordinates in axes turned by `roll`."""
        upright = _turned(self.points[:, :2].astype(np.float64), -roll)
        return upright.min(axis=0), upright.max(axis=0)


class FaceMeshNet:
    """The network, through OpenCV's DNN module. Not safe to call from several threads.

    Args:
        model: `face_landmark.tflite` of MediaPipe 0.10.
    """

    def __init__(self, model: Path) -> None:
        self._net: Any = cv2.dnn.readNetFromTFLite(str(model))
        self._outputs = list(self._net.getUnconnectedOutLayersNames())

    def measure(self, image: NDArray[np.uint8], region: Region) -> Mesh:
        """Measure the face in a region of an RGB image, uint8 (H, W, 3), once."""
        scale = SIDE / region.size
        cos, sin = math.cos(region.roll) * scale, math.sin(region.roll) * scale
        linear = np.array([[cos, sin], [-sin, cos]])
        to_crop = np.column_stack([linear, (SIDE - 1) / 2 - linear @ region.centre])
        crop = cv2.warpAffine(
            image, to_crop, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        self._net.setInput(cv2.dnn.blobFromImage(crop, 1 / 255.0))
        outputs = sorted(self._net.forward(self._outputs), key=lambda output: int(output.size))
        raw = outputs[-1].reshape(N_POINTS, 3)
        to_image = cv2.invertAffineTransform(to_crop)
        xy = (raw[:, :2] - 0.5) @ to_image[:, :2].T + to_image[:, 2]
        points = np.column_stack([xy, raw[:, 2] / scale]).astype(np.float32)
        return Mesh(points, _presence(float(outputs[0].item())))

    def fit(self, image: NDArray[np.uint8], region: Region, max_runs: int) -> Mesh:
        """Measure again in the region that the mesh itself asks for, until both agree.

        Args:
            image: uint8 (H, W, 3) RGB.
            region: where to begin.
            max_runs: of the network.
        """
        mesh = self.measure(image, region)
        for _ in range(max_runs - 1):
            following = mesh.region
            if region.agrees_with(following):
                break
            region = following
            mesh = self.measure(image, region)
        return mesh


def measure_lip_contrast(image: NDArray[np.uint8], mesh: Mesh) -> float:
    """Return how much redder the lips are than the skin around them: the difference of log(R / G).

    It does not depend on brightness. Where something else covers the lips, it falls, also under a hand.

    Args:
        image: uint8 (H, W, 3) RGB.
        mesh: in pixels of the image.

    Returns:
        NaN where the lips are a few pixels wide or lie outside the image.
    """
    outer = mesh.points[list(OUTER_LIPS), :2]
    low, high = outer.min(axis=0), outer.max(axis=0)
    span = float((high - low).max())
    margin = 0.35 * span
    x0, y0 = np.maximum(np.floor(low - margin), 0).astype(int)
    x1, y1 = np.ceil(high + margin).astype(int)
    part = image[y0:y1, x0:x1]
    if span < MIN_LIP_SPAN or x1 <= x0 or y1 <= y0 or not part.size:
        return math.nan
    scale = LIP_PATCH / (span + 2 * margin)
    height, width = (max(1, round(side * scale)) for side in part.shape[:2])
    patch = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)
    filled = np.zeros(patch.shape[:2], np.uint8)
    lips = [
        np.rint((mesh.points[list(group), :2] - (x0, y0)) * scale).astype(np.int32)
        for group in (OUTER_LIPS, INNER_LIPS)
    ]
    cv2.fillPoly(filled, [lips[0]], 1)
    kernel = np.ones((3, 3), np.uint8)
    near, far = cv2.dilate(filled, kernel, iterations=2), cv2.dilate(filled, kernel, iterations=7)
    cv2.fillPoly(filled, [lips[1]], 0)
    is_lip, is_skin = filled > 0, far > near
    if not is_lip.any() or not is_skin.any():
        return math.nan
    lip, skin = patch[is_lip].mean(axis=0) + 1.0, np.median(patch[is_skin], axis=0) + 1.0
    return float(np.log(lip[0] / lip[1]) - np.log(skin[0] / skin[1]))


def _presence(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(min(50.0, (PRESENCE_MIDDLE - logit) / PRESENCE_SCALE)))


def _turned(points: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """Rotate (…, 2) clockwise in the image."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.asarray(points @ np.array([[cos, sin], [-sin, cos]]))


def _distance(points: FloatArray, one: int, other: int) -> float:
    return float(np.linalg.norm(points[one] - points[other]))
