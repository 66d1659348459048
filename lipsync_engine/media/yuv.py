"""One decoded picture as the planes that the decoder gave, and the way from a region to RGB and back.

The pipeline never converts a whole frame: only the face region becomes RGB, and only what a change in RGB
means is added to the planes, so everything else reaches the encoder bit for bit.
Pure: no I/O. It knows neither files nor faces.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in luma pixels; right and bottom are exclusive."""

Plane = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]


class Matrix(StrEnum):
    """How luma and chroma were made from R'G'B'."""

    BT601 = "bt601"
    BT709 = "bt709"
    BT2020 = "bt2020"


class Chroma(StrEnum):
    """How often colour is sampled."""

    C420 = "420"
    C422 = "422"
    C444 = "444"


_KR_KB = {
    Matrix.BT601: (0.299, 0.114),
    Matrix.BT709: (0.2126, 0.0722),
    Matrix.BT2020: (0.2627, 0.0593),
}
"""Luma weights of red and blue: BT.601-7 2.5.1, BT.709-6 3.2, BT.2020-2 table 4 (non-constant luminance)."""


@dataclass(frozen=True, slots=True)
class FrameFormat:
    """Size and sample format of a planar YUV picture.

    Attributes:
        width, height: luma pixels, as displayed.
        bit_depth: 8 or 10; above 8 samples are 16-bit little-endian.
        matrix, full_range: what the sample values mean.
    """

    width: int
    height: int
    chroma: Chroma
    bit_depth: int
    matrix: Matrix
    full_range: bool

    @property
    def pix_fmt(self) -> str:
        """FFmpeg's name of the pixel format."""
        return f"yuv{self.chroma}p" + ("" if self.bit_depth == 8 else f"{self.bit_depth}le")

    @property
    def steps(self) -> tuple[int, int]:
        """Luma pixels per chroma sample, (horizontally, vertically)."""
        return {Chroma.C420: (2, 2), Chroma.C422: (2, 1), Chroma.C444: (1, 1)}[self.chroma]

    @property
    def plane_shapes(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """(rows, columns) of Y, U and V; chroma of odd sizes is rounded up."""
        step_x, step_y = self.steps
        chroma = (-(-self.height // step_y), -(-self.width // step_x))
        return (self.height, self.width), chroma, chroma

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8 if self.bit_depth == 8 else "<u2")

    @property
    def frame_bytes(self) -> int:
        return sum(rows * columns for rows, columns in self.plane_shapes) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture. The planes are not to be written to; a change makes a new `Frame`."""

    format: FrameFormat
    y: Plane
    u: Plane
    v: Plane

    @classmethod
    def from_bytes(cls, format: FrameFormat, buffer: bytes | bytearray | memoryview | Plane) -> Frame:
        """Planes over `buffer` without a copy: Y, U, V one after the other, rows without padding.

        Raises:
            ValueError: the buffer has another size than `format.frame_bytes`.
        """
        samples = np.frombuffer(buffer, dtype=format.dtype)
        shapes = format.plane_shapes
        sizes = [rows * columns for rows, columns in shapes]
        if samples.size != sum(sizes):
            raise ValueError(
                f"A {format.pix_fmt} frame has {format.frame_bytes} bytes, got {samples.nbytes}."
            )
        y, u, v = np.split(samples, np.cumsum(sizes)[:2])
        return cls(format, y.reshape(shapes[0]), u.reshape(shapes[1]), v.reshape(shapes[2]))

    def planes(self) -> tuple[Plane, Plane, Plane]:
        return self.y, self.u, self.v

    def to_bytes(self) -> bytes:
        """The layout that `from_bytes` reads."""
        return b"".join(plane.tobytes() for plane in self.planes())


def region_to_rgb(frame: Frame, box: Box) -> FloatArray:
    """The pixels of `box` as R'G'B'.

    Chroma is interpolated bilinearly; horizontally its samples sit on the even luma columns, vertically
    halfway between two rows for 4:2:0 (the siting that video codecs assume when nothing else is said).

    Args:
        box: inside the picture.

    Returns:
        float32 (h, w, 3), clipped to 0..255 whatever the bit depth.
    """
    x0, y0, x1, y1 = box
    luma = frame.y[y0:y1, x0:x1].astype(np.float32)
    rgb = cv2.transform(cv2.merge([luma, _upsampled(frame, box)]), _to_rgb(frame.format))
    return cast(FloatArray, np.clip(rgb, 0.0, 255.0, out=rgb))


def blend_region(frame: Frame, box: Box, rgb: FloatArray, weight: FloatArray) -> Frame:
    """Mix `rgb` into `box`: own * (1 - weight) + rgb * weight.

    Only the difference to the region's own RGB is converted, averaged down to the chroma grid and added.
    So samples keep their exact value where `weight` is 0 or `rgb` equals `region_to_rgb(frame, box)`.

    Args:
        frame: not modified.
        box: inside the picture.
        rgb: (h, w, 3), 0..255.
        weight: (h, w), 0..1.
    """
    if not weight.any():
        return frame
    x0, y0 = box[:2]
    form = frame.format
    step_x, step_y = form.steps
    _, luma_unit, _, chroma_unit = _levels(form)
    kr, kb = _KR_KB[form.matrix]
    change = (rgb - region_to_rgb(frame, box)) * weight[..., None]
    luma = change @ np.array([kr, 1 - kr - kb, kb], dtype=np.float32)
    blue = (change[..., 2] - luma) * np.float32(chroma_unit / (2 * (1 - kb)))
    red = (change[..., 0] - luma) * np.float32(chroma_unit / (2 * (1 - kr)))

    y = _added(frame.y, luma * np.float32(luma_unit), x0, y0, form.bit_depth)
    blue, red = (_on_even_pixels(delta, box, form) for delta in (blue, red))
    u, v = (
        _added(plane, _downsampled(delta, step_x, step_y), x0 // step_x, y0 // step_y, form.bit_depth)
        for plane, delta in ((frame.u, blue), (frame.v, red))
    )
    return Frame(form, y, u, v)


def _on_even_pixels(delta: FloatArray, box: Box, form: FrameFormat) -> FloatArray:
    """Extend to whole chroma samples: nothing changes outside the box, the picture's edge repeats."""
    x0, y0, x1, y1 = box
    step_x, step_y = form.steps
    missing_x, missing_y = -x1 % step_x, -y1 % step_y
    at_edge = ((0, missing_y if y1 == form.height else 0), (0, missing_x if x1 == form.width else 0))
    inside = (
        (y0 % step_y, missing_y - at_edge[0][1]),
        (x0 % step_x, missing_x - at_edge[1][1]),
    )
    return np.pad(np.pad(delta, at_edge, mode="edge"), inside)


def _to_rgb(form: FrameFormat) -> npt.NDArray[np.float64]:
    """(3, 4): samples Y, Cb, Cr, 1 → R', G', B' in 0..255; luma is kr R' + kb B' + the rest of G'."""
    kr, kb = _KR_KB[form.matrix]
    luma_zero, luma_unit, chroma_zero, chroma_unit = _levels(form)
    blue, red = 2 * (1 - kb), 2 * (1 - kr)
    rest = 1 - kr - kb
    linear = np.array([[1, 0, red], [1, -kb * blue / rest, -kr * red / rest], [1, blue, 0]])
    linear /= (luma_unit, chroma_unit, chroma_unit)
    return np.column_stack([linear, -linear @ (luma_zero, chroma_zero, chroma_zero)])


def _levels(form: FrameFormat) -> tuple[float, float, float, float]:
    """Sample value of black, samples per RGB level, sample value of no colour, samples per level of colour.

    RGB levels are 1/255 of the whole. Limited range puts 219 (luma) and 224 (chroma) steps of an 8-bit sample
    on it (BT.709-6 table 4); deeper samples have more steps per 8-bit one.
    """
    steps = 2.0 ** (form.bit_depth - 8)
    if form.full_range:
        unit = (2**form.bit_depth - 1) / 255
        return 0.0, unit, 128 * steps, unit
    return 16 * steps, 219 * steps / 255, 128 * steps, 224 * steps / 255


def _upsampled(frame: Frame, box: Box) -> FloatArray:
    """(h, w, 2): both planes of chroma at the luma positions of `box`; only samples around it are read."""
    x0, y0, x1, y1 = box
    step_x, step_y = frame.format.steps
    offset_y = 0.5 if step_y == 2 else 0.0
    left, top = max(0, x0 // step_x - 1), max(0, y0 // step_y - 1)
    part = np.s_[top : (y1 - 1) // step_y + 2, left : (x1 - 1) // step_x + 2]
    chroma = cv2.merge([plane[part].astype(np.float32) for plane in (frame.u, frame.v)])
    # Halves and quarters of a sample, which OpenCV's table of 32 places between two holds exactly.
    to_chroma = np.array(
        [[1 / step_x, 0, x0 / step_x - left], [0, 1 / step_y, (y0 - offset_y) / step_y - top]]
    )
    return cast(
        FloatArray,
        cv2.warpAffine(
            chroma,
            to_chroma,
            (x1 - x0, y1 - y0),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        ),
    )


def _downsampled(delta: FloatArray, step_x: int, step_y: int) -> FloatArray:
    """Averages at the chroma samples' places: 1-2-1 across columns, 1-1 across rows; edges repeat."""
    if step_y == 2:
        delta = (delta[0::2] + delta[1::2]) * np.float32(0.5)
    if step_x == 2:
        before = np.concatenate((delta[:, :1], delta[:, 1:-1:2]), axis=1)
        delta = np.float32(0.25) * (before + delta[:, 1::2]) + np.float32(0.5) * delta[:, 0::2]
    return delta


def _added(plane: Plane, delta: FloatArray, x0: int, y0: int, bit_depth: int) -> Plane:
    """A copy of `plane` with `delta` added at (x0, y0); rows and columns beyond the plane are dropped."""
    changed = plane.copy()
    part = changed[y0 : y0 + delta.shape[0], x0 : x0 + delta.shape[1]]
    moved = np.rint(part + delta[: part.shape[0], : part.shape[1]])
    part[...] = np.clip(moved, 0, 2**bit_depth - 1)
    return changed
