"""One face out of a frame and back in.

Two ways to do the same: `SoftCompositor` is ours (float32, one resampling, a soft edge around the generated
    part only, colours matched to the skin around it); `ReferenceCompositor` repeats LatentSync's rounding and
    paste-back, so that its numbers can be compared. It knows neither models nor files.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lipsync_engine.faces import align
from lipsync_engine.media.yuv import Box, Frame, blend_region, region_to_rgb

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Crop:
    """A face as the model sees it, and the way back.

    Attributes:
        face: float32 (R, R, 3) RGB 0..255.
        box: the frame's region that the face came from.
        matrix: float32 (2, 3), region pixels → crop pixels.
    """

    face: FloatArray
    box: Box
    matrix: FloatArray


class Compositor(Protocol):
    """How faces are cut out and put back; stateless, safe to call from several threads."""

    def matrices(self, points: FloatArray) -> FloatArray:
        """(N, 3, 2) alignment points in displayed pixels → (N, 2, 3) matrices; NaN rows stay NaN."""

    def crop(self, frame: Frame, matrix: FloatArray) -> Crop:
        """The face under `matrix`."""

    def paste(
        self, frame: Frame, crop: Crop, face: FloatArray, weight: float, matte: FloatArray | None
    ) -> Frame:
        """`frame` with the generated face.

        Args:
            face: float32 (R, R, 3) RGB 0..255, not clamped.
            weight: 0 leaves the frame, 1 shows the face fully.
            matte: float32 (H, W) 0..1 over the whole frame; 1 keeps the source's pixel.
        """


class SoftCompositor:
    """The default.

    Args:
        keep_mask: float32 (R, R), 1 where the crop is kept, 0 where it is generated.
        sample_aspect_ratio: width of one stored pixel over its height.
    """

    def __init__(self, keep_mask: FloatArray, sample_aspect_ratio: Fraction) -> None:
        self._keep_mask = keep_mask
        self._resolution = len(keep_mask)
        self._soft = align.soft_mask(keep_mask)
        self._aspect = float(sample_aspect_ratio)

    def matrices(self, points: FloatArray) -> FloatArray:
        square = points * np.array([self._aspect, 1.0], dtype=np.float32)
        solved = np.stack([_solve(three, self._resolution) for three in square])
        # Pixels need not be square: the model must see the face undistorted, the frame keeps its own grid.
        solved[:, :, 0] *= self._aspect
        return solved.astype(np.float32)

    def crop(self, frame: Frame, matrix: FloatArray) -> Crop:
        box = align.face_region(matrix, self._resolution, frame.format.width, frame.format.height)
        local = align.shift_matrix(matrix, box)
        return Crop(align.crop_face(region_to_rgb(frame, box), local, self._resolution), box, local)

    def paste(
        self, frame: Frame, crop: Crop, face: FloatArray, weight: float, matte: FloatArray | None
    ) -> Frame:
        matched = align.match_colour(face, crop.face, self._keep_mask)
        x0, y0, x1, y1 = crop.box
        rgb, alpha = align.paste((y1 - y0, x1 - x0), matched, self._soft * np.float32(weight), crop.matrix)
        return blend_region(frame, crop.box, rgb, _uncovered(alpha, crop.box, matte))


class ReferenceCompositor:
    """LatentSync's numerics on 8-bit RGB (parity sections 6 to 8). Whole frames, because its feather depends
    on them.

    Args:
        keep_mask: float32 (R, R), 1 where the crop is kept, 0 where it is generated.
    """

    def __init__(self, keep_mask: FloatArray) -> None:
        self._keep_mask = keep_mask[..., None]
        self._resolution = len(keep_mask)

    def matrices(self, points: FloatArray) -> FloatArray:
        solved = np.full((len(points), 2, 3), np.nan, dtype=np.float32)
        known = np.isfinite(points).all(axis=(1, 2))
        if known.any():
            solved[known] = align.reference_matrices(np.rint(points[known]), self._resolution)
        return solved

    def crop(self, frame: Frame, matrix: FloatArray) -> Crop:
        face = align.reference_crop(_rgb8(frame), matrix, self._resolution)
        return Crop(face.astype(np.float32), _whole(frame), matrix)

    def paste(
        self, frame: Frame, crop: Crop, face: FloatArray, weight: float, matte: FloatArray | None
    ) -> Frame:
        kept = self.restore(crop.face, face)
        chw = np.ascontiguousarray((kept / 127.5 - 1.0).transpose(2, 0, 1), dtype=np.float32)
        pasted = align.reference_paste(_rgb8(frame), chw, crop.matrix).astype(np.float32)
        alpha = np.full(pasted.shape[:2], weight, dtype=np.float32)
        return blend_region(frame, crop.box, pasted, _uncovered(alpha, crop.box, matte))

    def restore(self, source: FloatArray, face: FloatArray) -> FloatArray:
        """Put the kept part of the input face back over the generated one (parity section 7)."""
        return np.asarray(face * (1 - self._keep_mask) + source * self._keep_mask, dtype=np.float32)


def _solve(points: FloatArray, resolution: int) -> FloatArray:
    if not np.isfinite(points).all():
        return np.full((2, 3), np.nan, dtype=np.float32)
    return align.solve_matrix(points, resolution)


def _uncovered(alpha: FloatArray, box: Box, matte: FloatArray | None) -> FloatArray:
    if matte is None:
        return alpha
    x0, y0, x1, y1 = box
    return alpha * (1.0 - matte[y0:y1, x0:x1])


def _whole(frame: Frame) -> Box:
    return (0, 0, frame.format.width, frame.format.height)


def _rgb8(frame: Frame) -> npt.NDArray[np.uint8]:
    return np.clip(np.rint(region_to_rgb(frame, _whole(frame))), 0, 255).astype(np.uint8)
