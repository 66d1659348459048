"""Alignment: from three points on a face to the matrix and the crop of standard geometry.

Two sets of functions. Ours work in float32 with one resampling. Those named `reference_…` repeat LatentSync's
numerics (parity pack section 6), so that its numbers can be compared. Both crop exactly the same part of the
image, so a model that was trained on one can be run on the other. Pure: no I/O, no detector, no model.

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
from lipsync_engine.utils import FloatArray, ImageArray

BASE_RESOLUTION = 256
CROP_UNITS = (75, 100)
TEMPLATE_UNITS = ((17.0, 20.0), (58.0, 20.0), (37.5, 40.0))
UNITS_TO_PIXELS = 2.8
FILL = 127.0
"""Grey level that the reference fills in where the crop reaches outside the image."""

ANTIALIAS = 0.4
"""Sigma of the blur before shrinking n-fold, in units of sqrt(n² - 1): as soft as a bicubic reduction. 0.5
costs 3 dB when a face smaller than R returns to its frame, and a third lets fine detail flicker."""

MARGIN_PX = 8
"""Pixels around the crop that a region keeps for the filters. Even for a face 20 times too large for R the
pixels beyond contribute less than half a level."""


# --- geometry ---


def crop_size(resolution: int) -> tuple[int, int]:
    """Return (width, height) of the 3:4 crop."""
    k = UNITS_TO_PIXELS * resolution / BASE_RESOLUTION
    return int(CROP_UNITS[0] * k), int(CROP_UNITS[1] * k)


def template_points(resolution: int) -> npt.NDArray[np.float64]:
    """Return (3, 2): the positions of the left brow, the right brow and the nose in the crop."""
    return np.array(TEMPLATE_UNITS) * (UNITS_TO_PIXELS * resolution / BASE_RESOLUTION)


def solve_matrix(points: npt.ArrayLike, resolution: int) -> FloatArray:
    """Solve for the rotation, scale and shift that map three points to the template.

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
    """Return (matrix, offset of the nose between both normalised triangles)."""
    target = template_points(resolution)
    mean_p, mean_q = points.mean(axis=0), target.mean(axis=0)
    p, q = points - mean_p, target - mean_q
    spread_p, spread_q = p.std(ddof=1), q.std(ddof=1)
    if spread_p < 1e-6:
        raise FaceError(
            ErrorCode.FACE_NOT_FOUND,
            "The three alignment points of a face coincide: provide two brows and a nose that lie apart.",
        )
    p, q = p / spread_p, q / spread_q
    u, _, vt = np.linalg.svd(p.T @ q)
    rotation = vt.T @ u.T
    if np.linalg.det(rotation) < 0:
        vt[-1] *= -1
        rotation = vt.T @ u.T
    linear = spread_q / spread_p * rotation
    return np.column_stack([linear, mean_q - linear @ mean_p]), q[2] - p[2]


def square_matrix(matrix: FloatArray, resolution: int) -> npt.NDArray[np.float64]:
    """Extend a matrix to the pixels of the square. Resizing keeps pixel edges, so centres move by half."""
    scale = resolution / np.array(crop_size(resolution), dtype=np.float64)
    composed = scale[:, None] * matrix.astype(np.float64)
    composed[:, 2] += 0.5 * scale - 0.5
    return composed


def face_region(matrix: FloatArray, resolution: int, width: int, height: int) -> Box:
    """Compute the region that cropping reads and pasting writes: the crop and the reach of the filters.

    It is even-aligned, so that it holds whole chroma samples, except at the far border of an odd image. It is
    clipped to the image and never empty: for a face outside it is a strip of the nearest border.
    """
    back = cv2.invertAffineTransform(square_matrix(matrix, resolution))
    low, high = -0.5, resolution - 0.5
    corners = np.array([[x, y, 1.0] for x in (low, high) for y in (low, high)]) @ back.T
    x0, y0 = (corners.min(axis=0) - MARGIN_PX).tolist()
    x1, y1 = (corners.max(axis=0) + MARGIN_PX).tolist()
    (left, right), (top, bottom) = even_span(x0, x1, width), even_span(y0, y1, height)
    return left, top, right, bottom


def even_span(low: float, high: float, size: int) -> tuple[int, int]:
    """Widen [low, high] to even borders inside [0, size], at least two pixels wide."""
    start = max(0, min(math.floor(low), size - 2)) // 2 * 2
    return start, min(size, max(start + 2, math.ceil(high / 2) * 2))


def shift_matrix(matrix: FloatArray, box: Box) -> FloatArray:
    """Return `matrix` for coordinates that begin at the box's corner."""
    shifted = matrix.astype(np.float64)
    shifted[:, 2] += shifted[:, :2] @ np.array(box[:2], dtype=np.float64)
    return shifted.astype(np.float32)


# --- crop ---


def crop_face(image: FloatArray, matrix: FloatArray, resolution: int) -> FloatArray:
    """Resample the square crop of a face, once.

    Args:
        image: float32 (H, W, 3).
        matrix: image → 3:4 crop.

    Returns:
        float32 (R, R, 3). Beyond the image its border pixels are repeated, which disturbs a face at the edge
        less than the reference's grey.
    """
    square = square_matrix(matrix, resolution)
    smooth = antialias(image, *row_norms(cv2.invertAffineTransform(square)))
    warped = cv2.warpAffine(
        smooth, square, (resolution, resolution), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return cast(FloatArray, np.clip(warped, 0.0, 255.0, out=warped))


def antialias(image: FloatArray, shrink_x: float, shrink_y: float) -> FloatArray:
    """Blur as much as shrinking by these factors needs. Enlarging needs no blur."""
    sigma_x, sigma_y = (ANTIALIAS * math.sqrt(max(0.0, s * s - 1.0)) for s in (shrink_x, shrink_y))
    if max(sigma_x, sigma_y) < 0.2:
        return image
    blurred = cv2.GaussianBlur(
        image, (0, 0), sigmaX=max(sigma_x, 0.01), sigmaY=max(sigma_y, 0.01), borderType=cv2.BORDER_REPLICATE
    )
    return cast(FloatArray, blurred)


def row_norms(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return how far x and y move, at most, per step of one pixel in any direction."""
    return np.hypot(matrix[:, 0], matrix[:, 1])


# --- the reference's numerics ---

LEFT_BROW = (43, 48, 49, 51, 50)
RIGHT_BROW = (101, 102, 103, 104, 105)
NOSE = (74, 77, 83, 86)
"""Indices of the 106-point landmarks whose means are the three alignment points."""


def alignment_points(landmarks106: npt.ArrayLike) -> FloatArray:
    """Reduce (N, 106, 2) landmarks to (N, 3, 2): left brow, right brow, nose, unrounded."""
    landmarks = np.asarray(landmarks106, dtype=np.float32)
    return np.stack(
        [landmarks[:, list(group)].mean(axis=1) for group in (LEFT_BROW, RIGHT_BROW, NOSE)], axis=1
    )


def reference_points(landmarks106: npt.ArrayLike) -> FloatArray:
    """Compute the same from integer landmarks, rounded half-to-even again."""
    return np.rint(alignment_points(np.rint(np.asarray(landmarks106))))


def reference_matrices(points: npt.ArrayLike, resolution: int) -> FloatArray:
    """Map (N, 3, 2) points in frame order to (N, 2, 3) matrices with the carried-over offset of the nose."""
    matrices = []
    carried: npt.NDArray[np.float64] | None = None
    for triangle in np.asarray(points, dtype=np.float64):
        matrix, offset = _similarity(triangle, resolution)
        carried = offset if carried is None else 0.2 * carried + 0.8 * offset
        matrix[:, 2] += carried
        matrices.append(matrix)
    return np.stack(matrices).astype(np.float32)


def reference_crop(image: ImageArray, matrix: FloatArray, resolution: int) -> ImageArray:
    """Crop uint8 (H, W, 3) to uint8 (R, R, 3): bilinear, grey outside, truncated, squeezed with Lanczos."""
    width, height = crop_size(resolution)
    x0, y0, x1, y1 = face_region(matrix, resolution, image.shape[1], image.shape[0])
    inverse = cv2.invertAffineTransform(matrix.astype(np.float64))
    inverse[:, 2] -= x0, y0
    warped = bilinear(image[y0:y1, x0:x1].astype(np.float32), inverse, width, height, FILL)
    truncated = np.clip(warped, 0, 255).astype(np.uint8)
    squeezed = cv2.resize(truncated, (resolution, resolution), interpolation=cv2.INTER_LANCZOS4)
    return cast(ImageArray, squeezed)


def bilinear(
    image: FloatArray, to_image: npt.NDArray[np.float64], width: int, height: int, fill: float
) -> FloatArray:
    """Sample (H, W, C) bilinearly at `to_image` (u, v, 1), exactly. OpenCV rounds positions to 1/32 pixel."""
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
