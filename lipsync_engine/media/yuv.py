"""Planar YUV frames, and the conversion of a region to RGB and back.

The pipeline never converts a whole frame. Only the face region becomes RGB, and only its difference is added
to the planes, so all other samples reach the encoder bit for bit.
Pure: no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from lipsync_engine.utils import FloatArray

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in luma pixels; right and bottom are exclusive."""

Plane = npt.NDArray[Any]


class Matrix(StrEnum):
    """Matrix from R'G'B' to luma and chroma."""

    BT601 = "bt601"
    BT709 = "bt709"
    BT2020 = "bt2020"


class Chroma(StrEnum):
    """Chroma subsampling."""

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
    """Size and sample format of a planar YUV frame.

    Attributes:
        width, height: luma pixels, as displayed.
        bit_depth: 8 or 10; above 8 samples are 16-bit little-endian.
        matrix, full_range: meaning of the sample values.
    """

    width: int
    height: int
    chroma: Chroma
    bit_depth: int
    matrix: Matrix
    full_range: bool

    @property
    def pix_fmt(self) -> str:
        """Name of the pixel format in FFmpeg."""
        return f"yuv{self.chroma}p" + ("" if self.bit_depth == 8 else f"{self.bit_depth}le")

    @property
    def steps(self) -> tuple[int, int]:
        """Luma pixels per chroma sample, (horizontally, vertically)."""
        return {Chroma.C420: (2, 2), Chroma.C422: (2, 1), Chroma.C444: (1, 1)}[self.chroma]

    @property
    def plane_shapes(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Rows and columns of Y, U and V; chroma of odd sizes is rounded up."""
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
    """A decoded frame. The planes must not be written to; a change creates a new `Frame`."""

    format: FrameFormat
    y: Plane
    u: Plane
    v: Plane

    @classmethod
    def from_bytes(cls, format: FrameFormat, buffer: bytes | bytearray | memoryview | Plane) -> Frame:
        """Create a frame over `buffer` without a copy: Y, U, V one after the other, rows without padding.

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
        """Serialise to the layout that `from_bytes` reads."""
        return b"".join(plane.tobytes() for plane in self.planes())


def region_to_rgb(frame: Frame, box: Box) -> FloatArray:
    """Convert the pixels of `box` to R'G'B'.

    Chroma is interpolated bilinearly; horizontally its samples sit on the even luma columns, vertically
    halfway between two rows for 4:2:0 (the siting that video codecs assume by default).

    Args:
        box: inside the frame.

    Returns:
        float32 (h, w, 3), clipped to 0..255 whatever the bit depth.
    """
    x0, y0, x1, y1 = box
    luma = frame.y[y0:y1, x0:x1].astype(np.float32)
    rgb = cv2.transform(cv2.merge([luma, _upsample_chroma(frame, box)]), _yuv_to_rgb(frame.format))
    return cast(FloatArray, np.clip(rgb, 0.0, 255.0, out=rgb))


def blend_region(frame: Frame, box: Box, rgb: FloatArray, weight: FloatArray) -> Frame:
    """Blend `rgb` into `box`: source * (1 - weight) + rgb * weight.

    Only the difference to the region's own RGB is converted, averaged down to the chroma grid and added.
    Therefore samples keep their exact value where `weight` is 0 or `rgb` equals `region_to_rgb(frame, box)`.

    Args:
        frame: not modified.
        box: inside the frame.
        rgb: (h, w, 3), 0..255.
        weight: (h, w), 0..1.
    """
    if not weight.any():
        return frame
    x0, y0 = box[:2]
    fmt = frame.format
    step_x, step_y = fmt.steps
    _, luma_unit, _, chroma_unit = _sample_levels(fmt)
    kr, kb = _KR_KB[fmt.matrix]
    difference = (rgb - region_to_rgb(frame, box)) * weight[..., None]
    luma = difference @ np.array([kr, 1 - kr - kb, kb], dtype=np.float32)
    blue = (difference[..., 2] - luma) * np.float32(chroma_unit / (2 * (1 - kb)))
    red = (difference[..., 0] - luma) * np.float32(chroma_unit / (2 * (1 - kr)))

    y = _add_clipped(frame.y, luma * np.float32(luma_unit), x0, y0, fmt.bit_depth)
    blue, red = (_pad_to_chroma(delta, box, fmt) for delta in (blue, red))
    u, v = (
        _add_clipped(
            plane, _downsample_chroma(delta, step_x, step_y), x0 // step_x, y0 // step_y, fmt.bit_depth
        )
        for plane, delta in ((frame.u, blue), (frame.v, red))
    )
    return Frame(fmt, y, u, v)


def _pad_to_chroma(delta: FloatArray, box: Box, fmt: FrameFormat) -> FloatArray:
    """Pad to whole chroma samples: with 0 outside the box, with the edge at the frame's border."""
    x0, y0, x1, y1 = box
    step_x, step_y = fmt.steps
    missing_x, missing_y = -x1 % step_x, -y1 % step_y
    at_edge = ((0, missing_y if y1 == fmt.height else 0), (0, missing_x if x1 == fmt.width else 0))
    inside = (
        (y0 % step_y, missing_y - at_edge[0][1]),
        (x0 % step_x, missing_x - at_edge[1][1]),
    )
    return np.pad(np.pad(delta, at_edge, mode="edge"), inside)


def _yuv_to_rgb(fmt: FrameFormat) -> npt.NDArray[np.float64]:
    """Return the (3, 4) matrix from samples (Y, Cb, Cr, 1) to R', G', B' in 0..255.

    Luma is kr R' + kb B' + (1 - kr - kb) G'.
    """
    kr, kb = _KR_KB[fmt.matrix]
    luma_zero, luma_unit, chroma_zero, chroma_unit = _sample_levels(fmt)
    blue, red = 2 * (1 - kb), 2 * (1 - kr)
    rest = 1 - kr - kb
    linear = np.array([[1, 0, red], [1, -kb * blue / rest, -kr * red / rest], [1, blue, 0]])
    linear /= (luma_unit, chroma_unit, chroma_unit)
    return np.column_stack([linear, -linear @ (luma_zero, chroma_zero, chroma_zero)])


def _sample_levels(fmt: FrameFormat) -> tuple[float, float, float, float]:
    """Return the luma of black, luma steps per RGB level, the neutral chroma, chroma steps per RGB level.

    An RGB level is 1/255 of the full scale. Limited range maps the scale to 219 (luma) and 224 (chroma) steps
    of an 8-bit sample (BT.709-6 table 4); deeper samples have more steps per 8-bit one.
    """
    steps = 2.0 ** (fmt.bit_depth - 8)
    if fmt.full_range:
        unit = (2**fmt.bit_depth - 1) / 255
        return 0.0, unit, 128 * steps, unit
    return 16 * steps, 219 * steps / 255, 128 * steps, 224 * steps / 255


def _upsample_chroma(frame: Frame, box: Box) -> FloatArray:
    """Interpolate both chroma planes at the luma positions of `box`: (h, w, 2)."""
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


def _downsample_chroma(delta: FloatArray, step_x: int, step_y: int) -> FloatArray:
    """Average at the positions of the chroma samples: 1-2-1 across columns, 1-1 across rows; edges repeat."""
    if step_y == 2:
        delta = (delta[0::2] + delta[1::2]) * np.float32(0.5)
    if step_x == 2:
        before = np.concatenate((delta[:, :1], delta[:, 1:-1:2]), axis=1)
        delta = np.float32(0.25) * (before + delta[:, 1::2]) + np.float32(0.5) * delta[:, 0::2]
    return delta


def _add_clipped(plane: Plane, delta: FloatArray, x0: int, y0: int, bit_depth: int) -> Plane:
    """Return a copy of `plane` with `delta` added at (x0, y0); what lies beyond the plane is dropped."""
    result = plane.copy()
    part = result[y0 : y0 + delta.shape[0], x0 : x0 + delta.shape[1]]
    total = np.rint(part + delta[: part.shape[0], : part.shape[1]])
    part[...] = np.clip(total, 0, 2**bit_depth - 1)
    return result
