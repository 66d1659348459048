"""Output check: rejects broken generated faces before anything is published.

Each generated face is compared with the source face that it replaces, so a cartoon may be as flat and a night
shot as grainy as its source. Every plausible face passes; beauty and lip-sync are not judged. The module does
not know how the faces were generated. It rejects:

    not finite     NaN or infinity anywhere
    noise          dense pixel noise far above the source's, or kept pixels that do not resemble the source:
                   untrained or damaged networks
    mask-coloured  the mouth still has the mid-grey that masks it in the model's input
    flat           no texture where the source has some
    miscoloured    the skin around the mouth has another hue than the source's, or the kept part has other
                   colours, as models paint that were trained on other faces

A viewer does not notice one bad frame in a second, but a run or a share of them (`MAX_RUN`, `MAX_SHARE`).
"""

from __future__ import annotations

from collections import Counter
from typing import cast

import cv2
import numpy as np

from lipsync_engine.errors import ErrorCode, OutputError
from lipsync_engine.utils import BoolArray, FloatArray

MAX_RUN = 5
"""Largest tolerated number of bad frames in a row: a fifth of a second at 25 fps."""

MAX_SHARE = 0.1
"""Largest tolerated share of bad frames among all frames of one `OutputCheck`."""

GRID = 64
"""All checks but noise use the mean colours of this many cells a side, at any resolution."""

MOUTH_ROWS = (0.55, 0.78)
MOUTH_COLUMNS = (0.33, 0.67)
"""Position of the mouth in an aligned crop, as shares of R."""

NOISE_FILTER = np.outer([1.0, -2.0, 1.0], [1.0, -2.0, 1.0]).astype(np.float32)
NOISE_MEDIAN = 0.6745 * 6.0
"""Median magnitude of the filter's response to normal noise of deviation 1; its gain for noise is 6."""

NOISE_LEVELS, NOISE_RATIO = 8.0, 3.0
"""Noise is rejected above `NOISE_LEVELS` plus `NOISE_RATIO` times the source's. Sharp faces have at most 1.5
levels, rough reconstructions 5, an untrained decoder about 20."""

GREY = 127.5
GREY_NEAR = 12.0
GREY_SHARE = 0.85
GREY_EXCESS = 0.3
"""A mouth is mask-coloured if more than `GREY_SHARE` of its cells are within `GREY_NEAR` levels of mid-grey
in all three channels, and `GREY_EXCESS` more than in the source, which may be grey itself."""

FLAT_SOURCE, FLAT_LEVELS, FLAT_RATIO = 2.0, 1.5, 0.1
"""The check is skipped if the source's mouth has less texture than `FLAT_SOURCE` levels. A generated mouth is
flat below both `FLAT_LEVELS` and `FLAT_RATIO` times the source's texture. Closed lips on dark skin keep 4
levels, a tenth of an open mouth with white teeth."""

KEPT_CONTRAST, KEPT_CORRELATION = 4.0, 0.3
"""The kept part is compared if its contrast has at least `KEPT_CONTRAST` levels; its correlation with the
source must reach `KEPT_CORRELATION`. Rough reconstructions have above 0.9, untrained decoders at most 0.2."""

HUE_LEVELS, HUE_SHARE = 20.0, 0.4
"""Skin is miscoloured if more than `HUE_SHARE` of it differs by more than `HUE_LEVELS` from the source's hue,
after a colour cast over the whole face is removed. Measured shares: a mouth at another moment about 0.05, a
turned head in overexposed footage 0.39, the tiny model on a real face 0.47 (median)."""

KEPT_CAST, KEPT_REST = 10.0, 0.25
"""The kept part is an input of the model. A model that still paints it in other colours (mean difference
above `KEPT_CAST` levels) and shapes (residual above `KEPT_REST` of the contrast) was not trained on such
faces. The tiny model on a real face: 13 to 20 levels and 0.3 to 0.4; on drawn presenters at most 3 and
0.15."""

MESSAGES: dict[ErrorCode, str] = {
    ErrorCode.OUTPUT_NOISE: "The generated mouths are noise",
    ErrorCode.OUTPUT_MASK_COLOURED: "The generated mouths have the grey of the model's input mask",
    ErrorCode.OUTPUT_FLAT: "The generated mouths are flat patches without lips",
    ErrorCode.OUTPUT_MISCOLOURED: "The generated faces have the wrong colours",
}
ADVICE = (
    "nothing was published. The model's weights are probably damaged, untrained or trained on other faces "
    "(`tiny` was trained on drawn faces only). Run `lipsync weights verify`. If the weights are intact, use "
    "--dtype fp32 or more steps."
)


class OutputCheck:
    """Check of a sequence of generated faces, in constant memory.

    Args:
        keep_mask: float32 (R, R), 1 where the crop is kept, 0 where it is generated.
    """

    def __init__(self, keep_mask: FloatArray) -> None:
        self._face_check = FaceCheck(keep_mask)
        self._n_faces = 0
        self._n_bad: Counter[ErrorCode] = Counter()
        self._bad_in_a_row = 0

    def add(self, number: int, face: FloatArray, source: FloatArray) -> None:
        """Check the next face.

        Args:
            number: of the frame, for the message.
            face: float32 (R, R, 3) RGB 0..255 as decoded, not clamped.
            source: float32 (R, R, 3), the crop that it replaces.

        Raises:
            OutputError: a value is not finite, or more than `MAX_RUN` frames in a row are bad.
        """
        verdict = self._face_check.verdict_of(face, source)
        self._n_faces += 1
        if verdict is None:
            self._bad_in_a_row = 0
            return
        if verdict is ErrorCode.OUTPUT_NOT_FINITE:
            raise OutputError(verdict, f"The model produced NaN or Inf in frame {number}; {ADVICE}")
        self._n_bad[verdict] += 1
        self._bad_in_a_row += 1
        if self._bad_in_a_row > MAX_RUN:
            raise self._output_error(f"{self._bad_in_a_row} frames in a row up to frame {number}")

    def raise_if_unfit(self) -> None:
        """Check the sequence as a whole, at its end.

        Raises:
            OutputError: more than `MAX_SHARE` of the faces are bad.
        """
        n_bad = self._n_bad.total()
        if n_bad > MAX_SHARE * self._n_faces:
            raise self._output_error(f"{n_bad} of {self._n_faces} frames")

    def _output_error(self, frames: str) -> OutputError:
        code = self._n_bad.most_common(1)[0][0]
        return OutputError(code, f"{MESSAGES[code]} ({frames}); {ADVICE}")


class FaceCheck:
    """Check of single faces; holds only what follows from the mask.

    Args:
        keep_mask: float32 (R, R), 1 where the crop is kept, 0 where it is generated.
    """

    def __init__(self, keep_mask: FloatArray) -> None:
        size = len(keep_mask)
        self._grid = grid = min(GRID, size)
        is_generated = keep_mask < 0.5
        generated_share = cv2.resize(
            is_generated.astype(np.float32), (grid, grid), interpolation=cv2.INTER_AREA
        )
        is_mouth = _mouth_area(grid)
        self._kept_cells: BoolArray = generated_share < 0.01
        self._mouth_cells: BoolArray = is_mouth & (generated_share > 0.99)
        self._skin_cells: BoolArray = ~is_mouth & (generated_share > 0.99)
        self._generated_box = _bounding_box(is_generated)
        every_nth = slice(None, None, max(1, size // 256))
        self._noise_sample = (every_nth, every_nth)
        self._noise_areas = [
            area[self._generated_box][self._noise_sample]
            for area in (is_generated, is_generated & _mouth_area(size))
            if area.any()
        ]
        rows, columns = np.nonzero(self._mouth_cells)
        basis = np.linalg.qr(np.column_stack([rows, columns, np.ones(len(rows))]))[0]
        self._plane_basis = basis.astype(np.float32)

    def verdict_of(self, face: FloatArray, source: FloatArray) -> ErrorCode | None:
        """Return what is wrong with a face (R, R, 3) 0..255, compared with its source, or None."""
        if not np.isfinite(face).all():
            return ErrorCode.OUTPUT_NOT_FINITE
        face_levels = np.clip(face, 0.0, 255.0)
        noise, source_noise = self._noise_levels(face_levels), self._noise_levels(source)
        if any(n > NOISE_LEVELS + NOISE_RATIO * s for n, s in zip(noise, source_noise, strict=True)):
            return ErrorCode.OUTPUT_NOISE
        cells, source_cells = self._cell_means(face_levels), self._cell_means(source)
        if self._grey_share(cells) > max(GREY_SHARE, self._grey_share(source_cells) + GREY_EXCESS):
            return ErrorCode.OUTPUT_MASK_COLOURED
        source_texture = self._mouth_texture(source_cells)
        limit = min(FLAT_LEVELS, FLAT_RATIO * source_texture)
        if source_texture > FLAT_SOURCE and self._mouth_texture(cells) < limit:
            return ErrorCode.OUTPUT_FLAT
        if not _resembles_source(cells[self._kept_cells], source_cells[self._kept_cells]):
            return ErrorCode.OUTPUT_NOISE
        if _is_repainted(cells[self._kept_cells], source_cells[self._kept_cells]):
            return ErrorCode.OUTPUT_MISCOLOURED
        if self._off_hue_share(cells - source_cells) > HUE_SHARE:
            return ErrorCode.OUTPUT_MISCOLOURED
        return None

    def _cell_means(self, image: FloatArray) -> FloatArray:
        return cast(FloatArray, cv2.resize(image, (self._grid, self._grid), interpolation=cv2.INTER_AREA))

    def _noise_levels(self, image: FloatArray) -> list[float]:
        """Return the standard deviation of dense fine detail in the generated part and at the mouth.

        Immerkær's filter (1996) ignores straight edges; the median ignores sparse detail of any strength.
        """
        detail = np.abs(cv2.filter2D(image[self._generated_box], -1, NOISE_FILTER))[self._noise_sample]
        return [float(np.median(detail[area])) / NOISE_MEDIAN for area in self._noise_areas]

    def _grey_share(self, cells: FloatArray) -> float:
        is_grey = np.abs(cells[self._mouth_cells] - GREY).max(axis=-1, initial=0.0) < GREY_NEAR
        return float(is_grey.mean())

    def _mouth_texture(self, cells: FloatArray) -> float:
        """Return the deviation of the mouth's colours from their best plane, which even light gives."""
        mouth = cells[self._mouth_cells]
        residual = mouth - self._plane_basis @ (self._plane_basis.T @ mouth)
        return float(np.sqrt(np.mean(residual * residual)))

    def _off_hue_share(self, difference: FloatArray) -> float:
        """Return the share of the skin whose hue differs from the source's."""
        hue = difference - difference.mean(axis=-1, keepdims=True)
        colour_cast = np.median(hue[self._kept_cells], axis=0) if self._kept_cells.any() else np.float32(0.0)
        is_off = np.abs(hue[self._skin_cells] - colour_cast).max(axis=-1, initial=0.0) > HUE_LEVELS
        return float(is_off.mean()) if is_off.size else 0.0


def _is_repainted(face_cells: FloatArray, source_cells: FloatArray) -> bool:
    """Return whether the kept part has other colours and other shapes than in the source."""
    difference = face_cells - source_cells
    colour_cast = difference.mean(axis=0)
    residual = _root_mean_square(difference - colour_cast)
    contrast = _root_mean_square(source_cells - source_cells.mean(axis=0))
    return float(np.abs(colour_cast).max()) > KEPT_CAST and residual > KEPT_REST * contrast


def _resembles_source(face_cells: FloatArray, source_cells: FloatArray) -> bool:
    """Return whether the kept part correlates with the source, if the source has contrast."""
    a, b = face_cells - face_cells.mean(axis=0), source_cells - source_cells.mean(axis=0)
    contrast = _root_mean_square(b)
    if contrast < KEPT_CONTRAST:
        return True
    return float(np.mean(a * b)) >= KEPT_CORRELATION * (_root_mean_square(a) * contrast)


def _root_mean_square(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(values * values)))


def _bounding_box(area: BoolArray) -> tuple[slice, slice]:
    rows, columns = (np.flatnonzero(area.any(axis=axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _mouth_area(size: int) -> BoolArray:
    area = np.zeros((size, size), dtype=np.bool_)
    rows, columns = ([round(share * size) for share in span] for span in (MOUTH_ROWS, MOUTH_COLUMNS))
    area[slice(*rows), slice(*columns)] = True
    return area
