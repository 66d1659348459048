"""An imperceptible watermark in generated faces: spread spectrum in the aligned crop. Pure.

One fixed noise-like pattern is added to a generated face's luma, the same in every frame, where the face's
own alignment puts it. So it is found again by aligning the faces of a film and averaging them, whatever was
done to the picture around them. Of what the face itself has along the pattern most is taken away (improved
spread spectrum, Malvar and Florêncio, 2003), so that a face does not drown its mark. Where skin has texture
more is added than where it is smooth. The mark says that a face was generated here, and nothing else.

It knows neither files nor who found a face.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

SIDE = 128
"""Patterns live in the square crop at this size, whatever the model's is."""

PERIODS = (5.5, 12.0)
"""Pixels of that crop per wave: shorter ones are lost when a film shrinks, longer ones drown in the face."""

WINDOW = (
    *((8, 52), (36, 52), (36, 68), (92, 68), (92, 52), (120, 52), (120, 76)),
    *((112, 92), (98, 104), (84, 110), (44, 110), (30, 104), (16, 92), (8, 76)),
)
"""Corners (x, y) of the part of the crop that carries the mark: a little inside LatentSync's mask."""

REACH = 18.0
"""How far a marked face is to lie along the pattern, in flattened levels."""

MAX_RMS = 1.6
"""Levels: a face that would need more is marked less. 44 dB."""

REMAINS = 0.15
"""Of what the face itself has along the pattern, this share is left."""

FLOOR = 2.0
"""Levels: the texture of skin that has none."""

LOUDEST = 2.0
"""Where there is texture, at most so many times as much is added as on smooth skin."""

TEXTURE = 2.0
"""Sigma of the neighbourhood whose texture counts, pixels."""

UNUSED = 192
"""Patterns that are in no mark: what a film shows along them is chance."""

THRESHOLD = 5.5
"""Score from which a mark counts as found; docs/trust.md tells what films without one score."""

SHIFTS = (-4, -3, -2, -1, 0, 1, 2, 3, 4)
SCALES = (0.97, 0.98, 0.99, 1.0, 1.01, 1.02, 1.03)
"""Where a later alignment may differ from the one that the mark was put by: pixels, and size."""


@dataclass(frozen=True, slots=True)
class Watermark:
    """What a film says of a mark.

    Attributes:
        found: the score is at least `THRESHOLD`.
        score: how far the mark stands out from chance, in chance's standard deviations, at the best place.
        frames: faces that were averaged.
    """

    found: bool
    score: float
    frames: int


def marked(face: FloatArray) -> FloatArray:
    """The face with the mark.

    Args:
        face: float32 (R, R, 3) RGB 0..255, aligned.
    """
    signal, texture = _flattened(cv2.resize(_luma(face), (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    pattern = _patterns()[0].reshape(SIDE, SIDE)
    wave = np.minimum(texture, LOUDEST * FLOOR) * pattern
    # Whoever looks for the wave flattens it: this much of the pattern is left of it then.
    heard = float((wave * _flattening(texture) * pattern).sum())
    own = float((signal * pattern).sum())
    added = wave * np.float32((REACH - (1 - REMAINS) * own) / heard)
    rms = math.sqrt(float(np.square(added).sum()) / float(_window().sum()))
    added *= np.float32(min(1.0, MAX_RMS / max(rms, 1e-6)))
    spread = cv2.resize(added, face.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return cast(FloatArray, face + spread[..., None])


class WatermarkReader:
    """Averages the faces of a film and looks for the mark."""

    def __init__(self) -> None:
        self._sum = np.zeros((SIDE, SIDE), np.float32)
        self._frames = 0

    def add(self, face: FloatArray) -> None:
        """One more aligned face, float32 (SIDE, SIDE, 3) RGB 0..255."""
        self._sum += _flattened(_luma(face))[0]
        self._frames += 1

    def result(self) -> Watermark:
        """What all of them say."""
        score = float(self.scores()[0])
        return Watermark(score >= THRESHOLD, round(score, 2), self._frames)

    def scores(self) -> FloatArray:
        """float32 (1 + UNUSED,): the mark's score, and what each unused pattern would have for one."""
        if not self._frames:
            return np.zeros(1 + UNUSED, np.float32)
        mean, patterns = (self._sum / self._frames).astype(np.float32), _patterns()
        best = np.full(len(patterns), -np.inf, np.float32)
        for scale in SCALES:
            along = _moved(mean, scale) @ patterns.T
            chance = np.maximum(along[:, 1:].std(axis=1, keepdims=True), 1e-6)
            best = np.maximum(best, (along / chance).max(axis=0))
        return best


def _luma(rgb: FloatArray) -> FloatArray:
    return rgb @ np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)


def _flattened(luma: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The waves of the pattern's lengths with edges turned down; the texture around each place."""
    waves = cv2.GaussianBlur(luma, (0, 0), PERIODS[0] / 7) - cv2.GaussianBlur(luma, (0, 0), PERIODS[1] / 4)
    texture = FLOOR + np.sqrt(cv2.GaussianBlur(waves * waves, (0, 0), TEXTURE))
    return waves * _flattening(texture), cast(FloatArray, texture)


def _flattening(texture: FloatArray) -> FloatArray:
    """What waves are multiplied by: the inverse of their variance, as for the best guess under such noise."""
    return (FLOOR / np.square(texture)).astype(np.float32)


def _moved(picture: FloatArray, scale: float) -> FloatArray:
    """float32 (n, SIDE²): the picture at that size, at every place at which the mark may be."""
    rest, found = (SIDE - 1) / 2 * (1 - scale), []
    for x in SHIFTS:
        for y in SHIFTS:
            matrix = np.array([[scale, 0, rest + x], [0, scale, rest + y]], np.float32)
            found.append(cv2.warpAffine(picture, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR).reshape(-1))
    return np.stack(found)


@functools.cache
def _patterns() -> FloatArray:
    """float32 (1 + UNUSED, SIDE²), orthonormal: the mark's, and those for chance."""
    waves = np.hypot(*np.meshgrid(np.arange(SIDE), np.arange(SIDE))) / (2 * SIDE)
    used = (waves >= 1 / PERIODS[1]) & (waves <= 1 / PERIODS[0])
    # The generator's raw words, unlike its distributions, are the same in every version of numpy.
    words = np.random.PCG64(2026).random_raw((1 + UNUSED) * SIDE * SIDE)
    signs = (words >> np.uint64(63)).astype(np.float32).reshape(-1, SIDE, SIDE) * 2 - 1
    shaped = [(cv2.idct(one * used.astype(np.float32)) * _window()).reshape(-1) for one in signs]
    basis, triangle = np.linalg.qr(np.stack(shaped, axis=1))
    return np.ascontiguousarray((basis * np.sign(np.diag(triangle))).T, dtype=np.float32)


@functools.cache
def _window() -> FloatArray:
    """1 in the middle of what models generate, 0 at its edge and outside."""
    inside = np.zeros((SIDE, SIDE), np.float32)
    cv2.fillPoly(inside, [np.array(WINDOW, np.int32)], 1.0)
    return cast(FloatArray, cv2.GaussianBlur(inside, (0, 0), 1.5))
