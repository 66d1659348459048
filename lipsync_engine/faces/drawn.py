"""The face detector for our drawn presenters: a small convolutional network of our own.

It sees the picture at several sizes. Each cell of its output says whether a face's middle lies there, how
large the face is and where its three alignment points are. It is not meant for photographed people.
"""

from __future__ import annotations

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
"""The picture's longest side in each look; a face should be 24 to 110 pixels wide in one of them."""

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

    def forward(self, pictures: Tensor) -> Tensor:
        out: Tensor = self.layers(pictures)
        return out


class DrawnFaceDetector:
    """See `lipsync_engine.faces.FaceDetector`.

    Args:
        weights: `detector.safetensors` of the tiny model.
    """

    name = "drawn-1"

    def __init__(self, weights: Path) -> None:
        with torch.device("meta"):
            self._net = FaceNet()
        load_strict(self._net, read_checkpoint(weights))
        self._net.float().eval()

    @torch.inference_mode()
    def detect(self, image: NDArray[np.uint8]) -> list[Detection]:
        found: list[Detection] = []
        for side in SIDES:
            scale = side / max(image.shape[:2])
            small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            x = torch.from_numpy(small.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1.0)[None]
            pad = [-small.shape[1] % STRIDE, -small.shape[0] % STRIDE]
            grid = self._net(functional.pad(x, (0, pad[0], 0, pad[1])))[0].numpy()
            found += _faces(grid, np.float32(1 / scale))
        found.sort(key=lambda d: d.score, reverse=True)
        kept: list[Detection] = []
        for face in found:
            if not any(_same(face.box, other.box) for other in kept):
                kept.append(face)
        return kept


def _faces(grid: NDArray[np.float32], scale: np.float32) -> list[Detection]:
    score = torch.from_numpy(grid[0]).sigmoid().numpy()
    peak = score == cv2.dilate(score, np.ones((3, 3), np.uint8))
    faces = []
    for row, column in np.argwhere(peak & (score > MIN_SCORE)):
        # The cells around a peak see the same face: their mean is steadier.
        near = np.s_[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
        weight = (score[near] * (score[near] > 0.3))[..., None, None]
        rows, columns = np.mgrid[near]
        cells = (np.dstack([columns, rows]).astype(np.float32) + 0.5)[:, :, None] * STRIDE
        size = np.exp(grid[1][near])[..., None, None]
        points = cells + grid[2:, near[0], near[1]].transpose(1, 2, 0).reshape(*weight.shape[:2], 3, 2) * size
        three = (points * weight).sum(axis=(0, 1)) / weight.sum() * scale
        width = float(np.linalg.norm(three[1] - three[0])) / 0.4
        middle = (three[0] + three[1]) / 2 + (0, 0.14 * width)
        faces.append(
            Detection(
                (middle + BOX * width).reshape(4).astype(np.float32), float(score[row, column]), three, 0.0
            )
        )
    return faces


def _same(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    """One box holds the other's middle: the same face seen at another size."""
    return _holds(a, b) or _holds(b, a)


def _holds(box: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    middle = (other[:2] + other[2:]) / 2
    return bool(np.all(middle > box[:2]) and np.all(middle < box[2:]))
