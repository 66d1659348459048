"""Three points on a face → a crop of standard geometry, and the generated face back into the picture.

Two sets of functions. Ours work in float32 with one resampling each way. Those named `reference_…` repeat
LatentSync's numerics (parity pack sections 6 and 8), so that its numbers can be compared. Both see exactly
the same piece of the picture, so a model trained on the one can be fed by the other. Pure: the module knows
neither who the points came from nor what made the new face.

Geometry: a *matrix* is float32 (2, 3) and maps image pixels to pixels of the 3:4 crop (210 x 280 at R = 256),
which is then squeezed to a square of R x R. Integer coordinates are pixel centres in the image, the crop and
the square. Squeezing keeps the outer edges, which lie at -0.5 and n - 0.5 in a grid of n pixels; hence
square = (crop + 0.5) * R / n - 0.5.
"""

from __future__ import annotations

import math
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from lipsync_engine.errors import ErrorCode, FaceError
from lipsync_engine.media.yuv import Box

FloatArray = npt.NDArray[np.float32]
Uint8Array = npt.NDArray[np.uint8]

BASE_RESOLUTION = 256
CROP_UNITS = (75, 100)
TEMPLATE_UNITS = ((17.0, 20.0), (58.0, 20.0), (37.5, 40.0))
UNITS_TO_PIXELS = 2.8
FILL = 127.0
"""The reference paints this where the crop reaches outside the picture."""

ANTIALIAS = 0.4
"""Sigma of the blur before shrinking n-fold, in units of sqrt(n² - 1): as soft as a bicubic reduction. 0.5
costs 3 dB when a face smaller than R comes back into its picture; a third lets fine detail flicker."""

MARGIN_PX = 8
"""Pixels around the crop that a region keeps for the filters; even a face 20 times too large for R reads less
than half a level beyond them."""

RAMP = 1 / 32
"""Width of the soft edge around the generated part, as a share of R: the mask's distance from the border."""

RING = 1 / 12
"""Kept pixels this near to the generated part tell how its colours are off, as a share of R."""

COLOUR_GRID = 64
"""The colour offset is smooth: it is estimated on a grid of this many cells a side."""

COLOUR_SPREAD = 1 / 10
"""Sigma of the Gaussian that carries the ring's offsets into the generated part, as a share of R."""

COLOUR_TRUST = 6.0
"""Levels: a place whose offset is this far from the usual one counts half; there the contents differ."""

MAX_COLOUR_OFFSET = 16.0
"""Levels; a larger offset is no colour cast but another picture, and is not painted over."""


# --- geometry ---


def crop_size(resolution: int) -> tuple[int, int]:
    """(width, height) of the 3:4 crop."""
    k = UNITS_TO_PIXELS * resolution / BASE_RESOLUTION
    return int(CROP_UNITS[0] * k), int(CROP_UNITS[1] * k)


def template_points(resolution: int) -> npt.NDArray[np.float64]:
    """(3, 2): where the left brow, the right brow and the nose lie in the crop."""
    return np.array(TEMPLATE_UNITS) * (UNITS_TO_PIXELS * resolution / BASE_RESOLUTION)


def solve_matrix(points: npt.ArrayLike, resolution: int) -> FloatArray:
    """The rotation, scale and shift that bring three points to the template.

    The scale is the ratio of the spreads of both triangles, not a least-squares fit (parity pack section 6).

    Args:
        points: (3, 2) left brow, right brow, nose in image pixels.
        resolution: R.

    Raises:
        FaceError: the three points coincide.
    """
    return _similarity(np.asarray(points, dtype=np.float64), resolution)[0].astype(np.float32)


def _similarity(
    points: npt.NDArray[np.float64], resolution: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(matrix, offset of the nose between both normalised triangles)."""
    target = template_points(resolution)
    mean_p, mean_q = points.mean(axis=0), target.mean(axis=0)
    p, q = points - mean_p, target - mean_q
    spread_p, spread_q = p.std(ddof=1), q.std(ddof=1)
    if spread_p < 1e-6:
        raise FaceError(
            ErrorCode.FACE_NOT_FOUND,
            "The three alignment points of a face coincide: give two brows and a nose that lie apart.",
        )
    p, q = p / spread_p, q / spread_q
    u, _, vt = np.linalg.svd(p.T @ q)
    rotation = vt.T @ u.T
    if np.linalg.det(rotation) < 0:
        vt[-1] *= -1
        rotation = vt.T @ u.T
    linear = spread_q / spread_p * rotation
    return np.column_stack([linear, mean_q - linear @ mean_p]), q[2] - p[2]


def _to_square(matrix: FloatArray, resolution: int) -> npt.NDArray[np.float64]:
    """The same map, on to the pixels of the square: resizing keeps pixel edges, so centres move by half."""
    scale = resolution / np.array(crop_size(resolution), dtype=np.float64)
    composed = scale[:, None] * matrix.astype(np.float64)
    composed[:, 2] += 0.5 * scale - 0.5
    return composed


def face_region(matrix: FloatArray, resolution: int, width: int, height: int) -> Box:
    """The part of a picture that cropping reads and pasting writes: the crop and the reach of the filters.

    Even-aligned, so that it holds whole chroma samples, except at the far border of an odd picture. Clipped
    to the picture and never empty: for a face outside it is a strip of the nearest border.
    """
    back = cv2.invertAffineTransform(_to_square(matrix, resolution))
    low, high = -0.5, resolution - 0.5
    corners = np.array([[x, y, 1.0] for x in (low, high) for y in (low, high)]) @ back.T
    x0, y0 = (corners.min(axis=0) - MARGIN_PX).tolist()
    x1, y1 = (corners.max(axis=0) + MARGIN_PX).tolist()
    (left, right), (top, bottom) = _even_span(x0, x1, width), _even_span(y0, y1, height)
    return left, top, right, bottom


def _even_span(low: float, high: float, size: int) -> tuple[int, int]:
    start = max(0, min(math.floor(low), size - 2)) // 2 * 2
    return start, min(size, max(start + 2, math.ceil(high / 2) * 2))


def shift_matrix(matrix: FloatArray, box: Box) -> FloatArray:
    """`matrix` for coordinates that begin at the box's corner."""
    shifted = matrix.astype(np.float64)
    shifted[:, 2] += shifted[:, :2] @ np.array(box[:2], dtype=np.float64)
    return shifted.astype(np.float32)


# --- ours ---


def crop_face(image: FloatArray, matrix: FloatArray, resolution: int) -> FloatArray:
    """The square crop, in one resampling.

    Args:
        image: float32 (H, W, 3).
        matrix: image → 3:4 crop.

    Returns:
        float32 (R, R, 3). Beyond the picture its border pixels continue, which disturbs a face at the edge
        less than the reference's grey.
    """
    square = _to_square(matrix, resolution)
    smooth = _antialias(image, *_row_norms(cv2.invertAffineTransform(square)))
    warped = cv2.warpAffine(
        smooth, square, (resolution, resolution), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return cast(FloatArray, np.clip(warped, 0.0, 255.0, out=warped))


def paste(
    size: tuple[int, int], face: FloatArray, weight: FloatArray, matrix: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The face and its weight in the pixels of a region: the way back of `crop_face`.

    Args:
        size: (height, width) of the region.
        face: float32 (R, R, 3).
        weight: float32 (R, R), 0 at the border.
        matrix: region → 3:4 crop.

    Returns:
        float32 (H, W, 3) and float32 (H, W); the weight is exactly 0 outside the crop.
    """
    height, width = size
    square = _to_square(matrix, len(face))
    smooth = _antialias(face, *_row_norms(square))
    inverse = cv2.WARP_INVERSE_MAP
    rgb = cv2.warpAffine(
        smooth, square, (width, height), flags=cv2.INTER_CUBIC | inverse, borderMode=cv2.BORDER_REPLICATE
    )
    alpha = cv2.warpAffine(
        weight, square, (width, height), flags=cv2.INTER_LINEAR | inverse, borderMode=cv2.BORDER_CONSTANT
    )
    return rgb, alpha


def _antialias(image: FloatArray, shrink_x: float, shrink_y: float) -> FloatArray:
    """Blur as much as shrinking by these factors needs; nothing for enlarging."""
    sigma_x, sigma_y = (ANTIALIAS * math.sqrt(max(0.0, s * s - 1.0)) for s in (shrink_x, shrink_y))
    if max(sigma_x, sigma_y) < 0.2:
        return image
    blurred = cv2.GaussianBlur(
        image, (0, 0), sigmaX=max(sigma_x, 0.01), sigmaY=max(sigma_y, 0.01), borderType=cv2.BORDER_REPLICATE
    )
    return cast(FloatArray, blurred)


def _row_norms(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How far x and how far y move, at most, per step of one pixel in any direction."""
    return np.hypot(matrix[:, 0], matrix[:, 1])


def soft_mask(keep_mask: FloatArray) -> FloatArray:
    """How much of the generated face shows, in crop space.

    1 across the generated part; outside it falls to 0, with zero slope at both ends, over `RAMP`: there the
    decoded face is a reconstruction of the source, so that blending hides the edge. 0 at the crop's border.

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
    """Take a smooth colour cast off a decoded face.

    Around the generated part the decoded face and the source show the same skin; their difference there is
    the cast. It is spread smoothly into the generated part (a normalised convolution) and added. Places where
    the difference is unlike the rest's count less: there something else has moved.

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
    strange = np.abs(offset - np.median(offset[ring], axis=0)).max(axis=-1)
    trust = (ring / (1.0 + np.square(strange / COLOUR_TRUST))).astype(np.float32)
    known = np.dstack([offset * trust[..., None], trust])
    spread = cv2.GaussianBlur(known, (0, 0), COLOUR_SPREAD * grid, borderType=cv2.BORDER_REPLICATE)
    field = spread[..., :3] / np.maximum(spread[..., 3:], 1e-6)
    limited = np.clip(field, -MAX_COLOUR_OFFSET, MAX_COLOUR_OFFSET)
    full = cv2.resize(limited, (resolution, resolution), interpolation=cv2.INTER_LINEAR)
    return cast(FloatArray, face + full)


def _cells(image: FloatArray, grid: int) -> FloatArray:
    return cast(FloatArray, cv2.resize(image, (grid, grid), interpolation=cv2.INTER_AREA))


# --- the reference's ---

LEFT_BROW = (43, 48, 49, 51, 50)
RIGHT_BROW = (101, 102, 103, 104, 105)
NOSE = (74, 77, 83, 86)
"""Indices of the 106-point landmarks whose means are the three alignment points."""


def alignment_points(landmarks106: npt.ArrayLike) -> FloatArray:
    """(N, 106, 2) → (N, 3, 2) left brow, right brow, nose, unrounded."""
    marks = np.asarray(landmarks106, dtype=np.float32)
    return np.stack([marks[:, list(group)].mean(axis=1) for group in (LEFT_BROW, RIGHT_BROW, NOSE)], axis=1)


def reference_points(landmarks106: npt.ArrayLike) -> FloatArray:
    """The same from integer landmarks, rounded half-to-even again."""
    return np.rint(alignment_points(np.rint(np.asarray(landmarks106))))


def reference_matrices(points: npt.ArrayLike, resolution: int) -> FloatArray:
    """(N, 3, 2) → (N, 2, 3), with the carried-over offset of the nose, in frame order."""
    matrices = []
    carried: npt.NDArray[np.float64] | None = None
    for three in np.asarray(points, dtype=np.float64):
        matrix, offset = _similarity(three, resolution)
        carried = offset if carried is None else 0.2 * carried + 0.8 * offset
        matrix[:, 2] += carried
        matrices.append(matrix)
    return np.stack(matrices).astype(np.float32)


def reference_crop(image: Uint8Array, matrix: FloatArray, resolution: int) -> Uint8Array:
    """uint8 (H, W, 3) → uint8 (R, R, 3): bilinear, grey outside, truncated, squeezed with Lanczos."""
    width, height = crop_size(resolution)
    x0, y0, x1, y1 = face_region(matrix, resolution, image.shape[1], image.shape[0])
    inverse = cv2.invertAffineTransform(matrix.astype(np.float64))
    inverse[:, 2] -= x0, y0
    warped = _bilinear(image[y0:y1, x0:x1].astype(np.float32), inverse, width, height, FILL)
    truncated = np.clip(warped, 0, 255).astype(np.uint8)
    squeezed = cv2.resize(truncated, (resolution, resolution), interpolation=cv2.INTER_LANCZOS4)
    return cast(Uint8Array, squeezed)


def reference_paste(frame: Uint8Array, face: FloatArray, matrix: FloatArray) -> Uint8Array:
    """Put a face back as the reference does (parity pack section 8).

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
    warped = _bilinear(resized.permute(1, 2, 0).numpy(), forward, width, height, FILL)
    restored = np.clip(warped / 2 + 0.5, 0.0, 1.0) * 255.0
    inside = _bilinear(np.ones((crop_height, crop_width, 1), np.float32), forward, width, height, 0.0)[..., 0]
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
    """All that the crop and its feather touch; beyond it the paste is the frame itself.

    The feather is a twentieth of the square root of the crop's area in the frame; erosion and blur reach
    three of them in all.
    """
    back = cv2.invertAffineTransform(forward)
    corners = np.array([[x, y, 1.0] for x in (-1, crop_width) for y in (-1, crop_height)]) @ back.T
    reach = 4 + 3 * math.sqrt((crop_width + 1) * (crop_height + 1) / abs(np.linalg.det(forward[:, :2]))) / 20
    low, high = corners.min(axis=0) - reach, corners.max(axis=0) + reach
    (left, right), (top, bottom) = _even_span(low[0], high[0], width), _even_span(low[1], high[1], height)
    return left, top, right, bottom


def _bilinear(
    image: FloatArray, to_image: npt.NDArray[np.float64], width: int, height: int, fill: float
) -> FloatArray:
    """Exact bilinear samples of (H, W, C) at `to_image` (u, v, 1); OpenCV rounds positions to 1/32 pixel."""
    u, v = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    x = to_image[0, 0] * u + to_image[0, 1] * v + to_image[0, 2]
    y = to_image[1, 0] * u + to_image[1, 1] * v + to_image[1, 2]
    rows, columns = image.shape[:2]
    grid = np.stack([2 * x / max(1, columns - 1) - 1, 2 * y / max(1, rows - 1) - 1], axis=-1)
    source = torch.from_numpy(np.dstack([image, np.ones((rows, columns), np.float32)]))
    sampled = functional.grid_sample(
        source.permute(2, 0, 1)[None].double(),
        torch.from_numpy(grid)[None],
        mode="bilinear",
        padding_mode="zeros",
        align_corners=True,
    )[0].permute(1, 2, 0)
    result = sampled[..., :-1] + fill * (1.0 - sampled[..., -1:])
    return cast(FloatArray, result.float().numpy())
