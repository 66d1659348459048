"""The face detector for our drawn presenters: a small convolutional network of our own.

It runs on the image at several sizes. Each cell of its output gives the score of a face's centre there, the
size of the face and its three alignment points. It is not meant for photographed people.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lipsync_engine.faces import Detection
from lipsync_engine.weights import load_strict, read_checkpoint

STRIDE = 8
SIDES = (128, 256)
"""Longest sides of the image in each run. A face should be 24 to 110 pixels wide in one of them."""

MIN_SCORE = 0.5
BOX = np.array([[-0.48, -0.44], [0.48, 0.70]], dtype=np.float32)
"""A face's box around the middle of the eyes and brows, in face widths; the brows are 0.4 widths apart."""


class FaceNet(nn.Module):
    """(B, 3, H, W) in [-1, 1] → (B, 8, H/8, W/8): score, log size, three points relative to the cell."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 5, stride=2, padding=2),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=2, dilation=2),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=4, dilation=4),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=2, dilation=2),
            nn.SiLU(),
            nn.Conv2d(2 * width, 8, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.layers(images)
        return out


class DrawnFaceDetector:
    """A `FaceDetector` for drawn presenters.

    Args:
        weights: `detector.safetensors` of the tiny model.
    """

    name = "drawn-1"
    smooth_s = 0.12

    def __init__(self, weights: Path) -> None:
        with torch.device("meta"):
            self._net = FaceNet()
        load_strict(self._net, read_checkpoint(weights))
        self._net.float().eval()

    @torch.inference_mode()
    def detect(
        self, image: NDArray[np.uint8], previous: Sequence[Detection] = (), *, search: bool = True
    ) -> list[Detection]:
        candidates: list[Detection] = []
        for side in SIDES:
            scale = side / max(image.shape[:2])
            small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            x = torch.from_numpy(small.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1.0)[None]
            pad = [-small.shape[1] % STRIDE, -small.shape[0] % STRIDE]
            grid = self._net(functional.pad(x, (0, pad[0], 0, pad[1])))[0].numpy()
            candidates += _decode(grid, np.float32(1 / scale))
        candidates.sort(key=lambda d: d.score, reverse=True)
        faces: list[Detection] = []
        for face in candidates:
            if not any(_is_same(face.box, other.box) for other in faces):
                faces.append(face)
        return faces


def _decode(grid: NDArray[np.float32], scale: np.float32) -> list[Detection]:
    """Return the faces at the peaks of the score.

    Args:
        grid: float32 (8, h, w), output of `FaceNet`.
        scale: pixels of the image per pixel that the network received.
    """
    score = torch.from_numpy(grid[0]).sigmoid().numpy()
    peak = score == cv2.dilate(score, np.ones((3, 3), np.uint8))
    faces = []
    for row, column in np.argwhere(peak & (score > MIN_SCORE)):
        # The cells around a peak measure the same face. Their mean is steadier.
        near = np.s_[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
        weight = (score[near] * (score[near] > 0.3))[..., None, None]
        rows, columns = np.mgrid[near]
        cells = (np.dstack([columns, rows]).astype(np.float32) + 0.5)[:, :, None] * STRIDE
        size = np.exp(grid[1][near])[..., None, None]
        points = cells + grid[2:, near[0], near[1]].transpose(1, 2, 0).reshape(*weight.shape[:2], 3, 2) * size
        face_points = (points * weight).sum(axis=(0, 1)) / weight.sum() * scale
        width = float(np.linalg.norm(face_points[1] - face_points[0])) / 0.4
        centre = (face_points[0] + face_points[1]) / 2 + (0, 0.14 * width)
        faces.append(
            Detection(
                (centre + BOX * width).reshape(4).astype(np.float32),
                float(score[row, column]),
                face_points,
                yaw_deg=0.0,
            )
        )
    return faces


def _is_same(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    """Return whether one box contains the other's centre: the same face at another size."""
    return _contains_centre(one, other) or _contains_centre(other, one)


def _contains_centre(box: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    centre = (other[:2] + other[2:]) / 2
    return bool(np.all(centre > box[:2]) and np.all(centre < box[2:]))
