"""Compositing: cut one face out of a frame and paste the generated face back.

`SoftCompositor` is the default: float32, one resampling each way, a soft edge around the generated part only,
colours matched to the skin around it. `ReferenceCompositor` repeats LatentSync's rounding and paste-back, so
that its numbers can be compared. The module depends on neither models nor files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from lipsync_engine.faces.align import (
    FILL,
    antialias,
    bilinear,
    crop_face,
    crop_size,
    even_span,
    face_region,
    reference_crop,
    reference_matrices,
    row_norms,
    shift_matrix,
    solve_matrix,
    square_matrix,
)
from lipsync_engine.media import VideoInfo
from lipsync_engine.media.yuv import Box, Frame, blend_region, region_to_rgb
from lipsync_engine.params import SyncParams
from lipsync_engine.utils import FloatArray, ImageArray

RAMP = 1 / 32
"""Width of the soft edge around the generated part, as a share of R. The mask is as far from the border."""

RING = 1 / 12
"""Width of the ring of kept pixels on which the colour offset is measured, as a share of R."""

COLOUR_GRID = 64
"""Cells a side of the grid on which the colour offset is estimated. The offset is smooth."""

COLOUR_SPREAD = 1 / 10
"""Sigma of the Gaussian that carries the ring's offsets into the generated part, as a share of R."""

COLOUR_TRUST = 6.0
"""A cell whose offset is this many levels from the median counts half: its contents differ."""

MAX_COLOUR_OFFSET = 16.0
"""Largest correction, levels. A larger offset comes from other contents and not from a colour cast."""

DETAIL_BLUR = 1 / 48
"""Sigma of the Gaussian before generated and source are compared, as a share of R. Their fine texture differs
everywhere, because crop and autoencoder remove it. What counts is whether the shapes below it agree."""

DETAIL_FULL, DETAIL_NONE = 4.0, 12.0
"""Differences, levels, up to which the source's detail is restored fully, and from which not at all. Skin
that no speech moves differs by less than 4 levels after colour matching, moved lips by 20 and more."""


@dataclass(frozen=True, slots=True)
class Crop:
    """One face in the model's geometry, with the transform back to the frame.

    Attributes:
        face: float32 (R, R, 3) RGB 0..255.
        box: the frame's region that the face came from.
        matrix: float32 (2, 3), region pixels → crop pixels.
    """

    face: FloatArray
    box: Box
    matrix: FloatArray


class Compositor(Protocol):
    """Cuts faces out of frames and pastes them back. Stateless, safe to call from several threads."""

    def matrices(self, points: FloatArray) -> FloatArray:
        """Map (N, 3, 2) alignment points in displayed pixels to (N, 2, 3) matrices. NaN rows stay NaN."""

    def crop(self, frame: Frame, matrix: FloatArray) -> Crop:
        """Cut out the face under `matrix`."""

    def paste(
        self, frame: Frame, crop: Crop, face: FloatArray, weight: float, matte: FloatArray | None
    ) -> Frame:
        """Return `frame` with the generated face.

        Args:
            face: float32 (R, R, 3) RGB 0..255, not clamped.
            weight: 0 leaves the frame, 1 shows the face fully.
            matte: float32 (H, W) 0..1 over the whole frame; 1 keeps the source's pixel.
        """


class SoftCompositor:
    """The default compositor: float32, one resampling each way, soft edge, matched colours.

    Args:
        keep_mask: float32 (R, R), 1 where the crop is kept, 0 where it is generated.
        sample_aspect_ratio: width of one stored pixel over its height.
    """

    def __init__(self, keep_mask: FloatArray, sample_aspect_ratio: Fraction) -> None:
        self._keep_mask = keep_mask
        self._resolution = len(keep_mask)
        self._soft = soft_mask(keep_mask)
        self._aspect = float(sample_aspect_ratio)

    def matrices(self, points: FloatArray) -> FloatArray:
        square = points * np.array([self._aspect, 1.0], dtype=np.float32)
        solved = np.stack([_solve(triangle, self._resolution) for triangle in square])
        # Pixels need not be square: the model must see the face undistorted, the frame keeps its own grid.
        solved[:, :, 0] *= self._aspect
        return solved.astype(np.float32)

    def crop(self, frame: Frame, matrix: FloatArray) -> Crop:
        box = face_region(matrix, self._resolution, frame.format.width, frame.format.height)
        local = shift_matrix(matrix, box)
        return Crop(crop_face(region_to_rgb(frame, box), local, self._resolution), box, local)

    def paste(
        self, frame: Frame, crop: Crop, face: FloatArray, weight: float, matte: FloatArray | None
    ) -> Frame:
        matched = match_colour(face, crop.face, self._keep_mask)
        agreement = detail_agreement(matched, crop.face)
        x0, y0, x1, y1 = crop.box
        # Where generated and source agree, the change is pasted onto the source itself. Its finest band,
        # which the crop cannot hold, stays, and a model that returns its input leaves the source's pixels.
        change, weights = paste_face(
            (y1 - y0, x1 - x0),
            matched - agreement[..., None] * crop.face,
            np.dstack([self._soft * np.float32(weight), agreement]),
            crop.matrix,
        )
        rgb = change + weights[..., 1:] * region_to_rgb(frame, crop.box)
        return blend_region(frame, crop.box, rgb, _uncovered(weights[..., 0], crop.box, matte))


class ReferenceCompositor:
    """LatentSync's numerics on 8-bit RGB (parity pack sections 6 to 8).

    It works on whole frames, because the width of its feather depends on them.

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
            solved[known] = reference_matrices(np.rint(points[known]), self._resolution)
        return solved

    def crop(self, frame: Frame, matrix: FloatArray) -> Crop:
        face = reference_crop(_rgb8(frame), matrix, self._resolution)
        return Crop(face.astype(np.float32), _whole(frame), matrix)

    def paste(
        self, frame: Frame, crop: Crop, face: FloatArray, weight: float, matte: FloatArray | None
    ) -> Frame:
        kept = self.restore(crop.face, face)
        chw = np.ascontiguousarray((kept / 127.5 - 1.0).transpose(2, 0, 1), dtype=np.float32)
        pasted = reference_paste(_rgb8(frame), chw, crop.matrix).astype(np.float32)
        alpha = np.full(pasted.shape[:2], weight, dtype=np.float32)
        return blend_region(frame, crop.box, pasted, _uncovered(alpha, crop.box, matte))

    def restore(self, source: FloatArray, face: FloatArray) -> FloatArray:
        """Restore the kept part of the input face over the generated one (parity pack section 7)."""
        return np.asarray(face * (1 - self._keep_mask) + source * self._keep_mask, dtype=np.float32)


def compositor_for(params: SyncParams, keep_mask: FloatArray, video: VideoInfo) -> Compositor:
    """Return the compositor that a job's parameters select.

    Args:
        keep_mask: float32 (R, R) of the model, 1 where the crop is kept, 0 where it is generated.
        video: as probed, for the shape of its pixels.
    """
    if params.reference_numerics:
        return ReferenceCompositor(keep_mask)
    return SoftCompositor(keep_mask, video.sample_aspect_ratio)


# --- soft paste ---


def paste_face(
    size: tuple[int, int], face: FloatArray, weight: FloatArray, matrix: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Warp a face and its weights into the pixels of a region, the inverse of `align.crop_face`.

    Args:
        size: (height, width) of the region.
        face: float32 (R, R, 3).
        weight: float32 (R, R), or (R, R, C) for several weights; 0 at the border.
        matrix: region → 3:4 crop.

    Returns:
        float32 (H, W, 3) and float32 (H, W) or (H, W, C); the weight is exactly 0 outside the crop.
    """
    height, width = size
    square = square_matrix(matrix, len(face))
    smooth = antialias(face, *row_norms(square))
    inverse = cv2.WARP_INVERSE_MAP
    rgb = cv2.warpAffine(
        smooth, square, (width, height), flags=cv2.INTER_CUBIC | inverse, borderMode=cv2.BORDER_REPLICATE
    )
    alpha = cv2.warpAffine(
        weight, square, (width, height), flags=cv2.INTER_LINEAR | inverse, borderMode=cv2.BORDER_CONSTANT
    )
    return rgb, alpha


def soft_mask(keep_mask: FloatArray) -> FloatArray:
    """Compute how much of the generated face shows, in crop space.

    The weight is 1 across the generated part and 0 at the crop's border. Outside the generated part it falls
    to 0 over `RAMP`, with zero slope at both ends: there the decoded face is a reconstruction of the source,
    so that blending hides the edge.

    Args:
        keep_mask: float32 (R, R), 1 = kept, 0 = generated.
    """
    kept = (keep_mask >= 0.5).astype(np.uint8)
    distance = cv2.distanceTransform(kept, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    rest = np.clip(1.0 - distance / max(1.5, RAMP * len(kept)), 0.0, 1.0)
    weight = (rest * rest * (3.0 - 2.0 * rest)).astype(np.float32)
    weight[[0, -1], :] = 0.0
    weight[:, [0, -1]] = 0.0
    return cast(FloatArray, weight)


def match_colour(face: FloatArray, source: FloatArray, keep_mask: FloatArray) -> FloatArray:
    """Remove a smooth colour cast from a decoded face.

    Around the generated part the decoded face and the source show the same skin, so their difference there is
    the cast. It is spread smoothly into the generated part (a normalised convolution) and added. Cells whose
    difference is unlike the median count less, because their contents differ.

    Args:
        face, source: float32 (R, R, 3), 0..255.
        keep_mask: float32 (R, R), 1 = kept.

    Returns:
        float32 (R, R, 3); no pixel moved by more than `MAX_COLOUR_OFFSET`.
    """
    resolution = len(face)
    grid = min(COLOUR_GRID, resolution)
    kept = (_cells((keep_mask >= 0.5).astype(np.float32), grid) > 0.99).astype(np.uint8)
    distance = cv2.distanceTransform(kept, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    ring = (distance > 0) & (distance <= max(2.0, RING * grid))
    if not ring.any():
        return face
    offset = _cells(source - face, grid)
    deviation = np.abs(offset - np.median(offset[ring], axis=0)).max(axis=-1)
    trust = (ring / (1.0 + np.square(deviation / COLOUR_TRUST))).astype(np.float32)
    known = np.dstack([offset * trust[..., None], trust])
    spread = cv2.GaussianBlur(known, (0, 0), COLOUR_SPREAD * grid, borderType=cv2.BORDER_REPLICATE)
    field = spread[..., :3] / np.maximum(spread[..., 3:], 1e-6)
    limited = np.clip(field, -MAX_COLOUR_OFFSET, MAX_COLOUR_OFFSET)
    full = cv2.resize(limited, (resolution, resolution), interpolation=cv2.INTER_LINEAR)
    return cast(FloatArray, face + full)


def detail_agreement(face: FloatArray, source: FloatArray) -> FloatArray:
    """Compute where a generated face shows the same as the source, apart from fine texture.

    Args:
        face, source: float32 (R, R, 3), 0..255, colours matched.

    Returns:
        float32 (R, R): 1 where the source's detail belongs to the generated face too, 0 where it does not.
    """
    resolution = len(face)
    grid = min(2 * COLOUR_GRID, resolution)
    difference = cv2.GaussianBlur(_cells(face - source, grid), (0, 0), DETAIL_BLUR * grid)
    distance = np.abs(difference).max(axis=-1)
    # A moved edge also agrees to its sides: the largest difference nearby decides.
    distance = cv2.dilate(distance, np.ones((3, 3), np.uint8), iterations=max(1, grid // 64))
    share = np.clip((DETAIL_NONE - distance) / (DETAIL_NONE - DETAIL_FULL), 0.0, 1.0)
    smooth = cv2.GaussianBlur(share * share * (3.0 - 2.0 * share), (0, 0), DETAIL_BLUR * grid)
    return cast(FloatArray, cv2.resize(smooth, (resolution, resolution), interpolation=cv2.INTER_LINEAR))


def _cells(image: FloatArray, grid: int) -> FloatArray:
    return cast(FloatArray, cv2.resize(image, (grid, grid), interpolation=cv2.INTER_AREA))


# --- the reference's paste ---


def reference_paste(frame: ImageArray, face: FloatArray, matrix: FloatArray) -> ImageArray:
    """Paste a face into a frame as the reference does (parity pack section 8).

    Args:
        frame: uint8 (H, W, 3).
        face: float32 (3, R, R) in [-1, 1].
        matrix: frame → crop.
    """
    crop_width, crop_height = crop_size(face.shape[-1])
    resized = functional.interpolate(
        torch.from_numpy(face)[None],
        (crop_height, crop_width),
        mode="bicubic",
        align_corners=False,
        antialias=True,
    )[0]
    forward = matrix.astype(np.float64)
    x0, y0, x1, y1 = _feathered_region(forward, crop_width, crop_height, frame.shape[1], frame.shape[0])
    forward[:, 2] += forward[:, :2] @ (x0, y0)
    width, height = x1 - x0, y1 - y0
    warped = bilinear(resized.permute(1, 2, 0).numpy(), forward, width, height, FILL)
    restored = np.clip(warped / 2 + 0.5, 0.0, 1.0) * 255.0
    inside = bilinear(np.ones((crop_height, crop_width, 1), np.float32), forward, width, height, 0.0)[..., 0]
    eroded = cv2.erode(inside, np.ones((2, 2), np.uint8))
    edge = int(math.sqrt(float(eroded.sum(dtype=np.float64)))) // 20
    kernel = np.ones((2 * edge, 2 * edge), np.uint8) if edge else np.ones((3, 3), np.uint8)
    centre = cv2.erode(eroded, kernel)
    sigma = 0.3 * (edge - 1) + 0.8
    soft = cv2.GaussianBlur(centre, (2 * edge + 1, 2 * edge + 1), sigma)[..., None]
    mixed = soft * (eroded[..., None] * restored) + (1 - soft) * frame[y0:y1, x0:x1].astype(np.float32)
    pasted = frame.copy()
    pasted[y0:y1, x0:x1] = np.clip(mixed, 0, 255)
    return pasted


def _feathered_region(
    forward: npt.NDArray[np.float64], crop_width: int, crop_height: int, width: int, height: int
) -> Box:
    """Compute the region that the crop and its feather touch. The paste changes nothing outside it.

    The feather is a twentieth of the square root of the crop's area in the frame. Erosion and blur together
    reach three of them.
    """
    back = cv2.invertAffineTransform(forward)
    corners = np.array([[x, y, 1.0] for x in (-1, crop_width) for y in (-1, crop_height)]) @ back.T
    reach = 4 + 3 * math.sqrt((crop_width + 1) * (crop_height + 1) / abs(np.linalg.det(forward[:, :2]))) / 20
    low, high = corners.min(axis=0) - reach, corners.max(axis=0) + reach
    (left, right), (top, bottom) = even_span(low[0], high[0], width), even_span(low[1], high[1], height)
    return left, top, right, bottom


# --- helpers ---


def _solve(points: FloatArray, resolution: int) -> FloatArray:
    if not np.isfinite(points).all():
        return np.full((2, 3), np.nan, dtype=np.float32)
    return solve_matrix(points, resolution)


def _uncovered(alpha: FloatArray, box: Box, matte: FloatArray | None) -> FloatArray:
    if matte is None:
        return alpha
    x0, y0, x1, y1 = box
    return alpha * (1.0 - matte[y0:y1, x0:x1])


def _whole(frame: Frame) -> Box:
    return (0, 0, frame.format.width, frame.format.height)


def _rgb8(frame: Frame) -> npt.NDArray[np.uint8]:
    return np.clip(np.rint(region_to_rgb(frame, _whole(frame))), 0, 255).astype(np.uint8)
