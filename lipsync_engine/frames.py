"""One decoded picture as the planes that the decoder gave, and the way from a region to RGB and back.

The pipeline never converts a whole frame: only the face region becomes RGB, and only what changes there is added
back to the planes, so everything else reaches the encoder bit for bit. Pure: no I/O; it knows neither files nor faces.

Formulas: ITU-R BT.601, BT.709 and BT.2020 (non-constant luminance). Chroma of 4:2:0 is sited as MPEG-2 has it: level
with the left luma sample horizontally, between two luma lines vertically.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1; right and bottom exclusive."""

FloatArray = npt.NDArray[np.float32]
Plane = npt.NDArray[Any]


class Matrix(StrEnum):
    """Luma weights of a colour space."""

    BT601 = "bt601"
    BT709 = "bt709"
    BT2020 = "bt2020"


class Chroma(StrEnum):
    """How often colour is sampled."""

    C420 = "420"
    C422 = "422"
    C444 = "444"


_RED_BLUE = {Matrix.BT601: (0.299, 0.114), Matrix.BT709: (0.2126, 0.0722), Matrix.BT2020: (0.2627, 0.0593)}


@dataclass(frozen=True, slots=True)
class FrameFormat:
    """Size and meaning of a frame's planes."""

    width: int
    height: int
    chroma: Chroma
    bit_depth: int
    matrix: Matrix
    full_range: bool

    @property
    def pix_fmt(self) -> str:
        """FFmpeg's name."""
        deep = "" if self.bit_depth == 8 else f"{self.bit_depth}le"
        return f"yuv{self.chroma}p{deep}"

    @property
    def steps(self) -> tuple[int, int]:
        """Luma samples per chroma sample, (horizontally, vertically)."""
        return {Chroma.C420: (2, 2), Chroma.C422: (2, 1), Chroma.C444: (1, 1)}[self.chroma]

    @property
    def plane_shapes(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        sx, sy = self.steps
        small = (-(-self.height // sy), -(-self.width // sx))
        return (self.height, self.width), small, small

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8 if self.bit_depth == 8 else "<u2")

    @property
    def frame_bytes(self) -> int:
        return sum(h * w for h, w in self.plane_shapes) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Frame:
    """Planes as the decoder gave them, luma (H, W) and two chroma planes."""

    format: FrameFormat
    y: Plane
    u: Plane
    v: Plane

    @classmethod
    def from_bytes(cls, form: FrameFormat, data: bytes | bytearray | memoryview) -> Frame:
        """View raw planar data."""
        samples = np.frombuffer(data, dtype=form.dtype)
        planes, start = [], 0
        for height, width in form.plane_shapes:
            planes.append(samples[start : start + height * width].reshape(height, width))
            start += height * width
        return cls(form, *planes)

    def planes(self) -> tuple[Plane, Plane, Plane]:
        return self.y, self.u, self.v


def region_to_rgb(frame: Frame, box: Box) -> FloatArray:
    """Part of a frame as float32 (h, w, 3) RGB 0..255, unrounded and unclipped.

    Args:
        box: inside the frame; left and top must be even where chroma is subsampled.
    """
    x0, y0, x1, y1 = box
    luma = frame.y[y0:y1, x0:x1].astype(np.float32)
    blue, red = (_chroma_full(plane, frame.format, box) for plane in (frame.u, frame.v))
    return _rgb(luma, blue, red, frame.format)


def blend_region(frame: Frame, box: Box, rgb: FloatArray, weight: FloatArray) -> Frame:
    """A frame that shows `rgb` in a region as strongly as `weight` says.

    Only differences are added to the planes: where `weight` is 0, or `rgb` is what the frame shows already, samples
    stay as they are, to the bit.

    Args:
        box: as for `region_to_rgb`.
        rgb: float32 (h, w, 3), 0..255, clipped here.
        weight: float32 (h, w), 0..1.
    """
    x0, y0, x1, y1 = box
    form = frame.format
    change = (np.clip(rgb, 0.0, 255.0) - region_to_rgb(frame, box)) * weight[..., None]
    luma, blue, red = _yuv_change(change, form)
    sx, sy = form.steps
    chroma_box = (x0 // sx, y0 // sy, -(-x1 // sx), -(-y1 // sy))
    return Frame(
        form,
        _added(frame.y, box, luma, form),
        _added(frame.u, chroma_box, _chroma_small(blue, form), form),
        _added(frame.v, chroma_box, _chroma_small(red, form), form),
    )


def _added(plane: Plane, box: Box, change: FloatArray, form: FrameFormat) -> Plane:
    x0, y0, x1, y1 = box
    result = plane.copy()
    part = plane[y0:y1, x0:x1].astype(np.float32) + change
    result[y0:y1, x0:x1] = np.clip(np.rint(part), 0, 2**form.bit_depth - 1).astype(form.dtype)
    return result


def _scales(form: FrameFormat) -> tuple[float, float, float, float]:
    """(luma offset, luma range, chroma middle, chroma range) in samples."""
    unit = float(2 ** (form.bit_depth - 8))
    if form.full_range:
        top = float(2**form.bit_depth - 1)
        return 0.0, top, 128.0 * unit, top
    return 16.0 * unit, 219.0 * unit, 128.0 * unit, 224.0 * unit


def _rgb(luma: FloatArray, blue: FloatArray, red: FloatArray, form: FrameFormat) -> FloatArray:
    low, span, middle, chroma_span = _scales(form)
    kr, kb = _RED_BLUE[form.matrix]
    y = (luma - low) * np.float32(255.0 / span)
    cb = (blue - middle) * np.float32(255.0 / chroma_span)
    cr = (red - middle) * np.float32(255.0 / chroma_span)
    r = y + np.float32(2 * (1 - kr)) * cr
    b = y + np.float32(2 * (1 - kb)) * cb
    g = (y - np.float32(kr) * r - np.float32(kb) * b) * np.float32(1 / (1 - kr - kb))
    return np.dstack([r, g, b])


def _yuv_change(change: FloatArray, form: FrameFormat) -> tuple[FloatArray, FloatArray, FloatArray]:
    """A difference of RGB as differences of samples; linear, so that offsets play no part."""
    _, span, _, chroma_span = _scales(form)
    kr, kb = _RED_BLUE[form.matrix]
    r, g, b = change[..., 0], change[..., 1], change[..., 2]
    y = np.float32(kr) * r + np.float32(1 - kr - kb) * g + np.float32(kb) * b
    to_chroma = np.float32(chroma_span / 255.0)
    cb = (b - y) * np.float32(1 / (2 * (1 - kb))) * to_chroma
    cr = (r - y) * np.float32(1 / (2 * (1 - kr))) * to_chroma
    return y * np.float32(span / 255.0), cb, cr


def _chroma_full(plane: Plane, form: FrameFormat, box: Box) -> FloatArray:
    """Chroma at every luma pixel of a region, bilinear."""
    x0, y0, x1, y1 = box
    sx, sy = form.steps
    if sx == sy == 1:
        return plane[y0:y1, x0:x1].astype(np.float32)
    # One more sample on each side gives the interpolation its neighbours; the frame's border repeats.
    height, width = plane.shape
    rows = np.clip(np.arange(y0 // sy - 1, -(-y1 // sy) + 1), 0, height - 1)
    columns = np.clip(np.arange(x0 // sx - 1, -(-x1 // sx) + 1), 0, width - 1)
    samples = plane[rows[:, None], columns].astype(np.float32)
    # Luma pixel x lies at (x - x0) / sx + 1 in `samples`; vertically 4:2:0 samples sit half a line lower.
    shift_y = 0.25 if sy == 2 else 0.0
    to_samples = np.array([[1 / sx, 0.0, 1.0], [0.0, 1 / sy, 1.0 - shift_y]])
    return cast(
        FloatArray,
        cv2.warpAffine(
            samples,
            to_samples,
            (x1 - x0, y1 - y0),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        ),
    )


def _chroma_small(full: FloatArray, form: FrameFormat) -> FloatArray:
    """Differences averaged down to the chroma grid: [1 2 1] / 4 across (left-sited), two lines down."""
    sx, sy = form.steps
    if sx == 1:
        return full
    height, width = full.shape
    padded = np.pad(full, ((0, height % sy), (0, width % sx)), mode="edge")
    across = cv2.filter2D(
        padded, -1, np.array([[0.25, 0.5, 0.25]], dtype=np.float32), borderType=cv2.BORDER_REPLICATE
    )[:, ::2]
    return across if sy == 1 else 0.5 * (across[::2] + across[1::2])
