"""Whether generated mouths are fit to be shown, decided before anything is published.

Each generated face is compared with the source face it replaces, so that a cartoon may be as flat and a night
shot as grainy as it was. Not judged here: beauty, or whether the lips fit the voice. The module does not know
how the faces were made; it lets every plausible face pass and stops what no one would want to see:

    not finite     NaN or infinity anywhere
    noise          dense pixel noise far above the source's own; or a face that does not even resemble its
                   source where the source was given, as untrained or damaged networks make them
    mask-coloured  the mouth is still the mid-grey that hides it in the model's input
    flat           no texture where the source has some
    miscoloured    the skin around the mouth has another hue than the source's, or the kept part comes out in
                   other colours, as models paint that were made for other faces

One bad frame in a second is not seen; a run or a share of them is (`MAX_RUN`, `MAX_SHARE`).
"""

from __future__ import annotations

from collections import Counter
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from lipsync_engine.errors import ErrorCode, OutputError

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

MAX_RUN = 5
"""Bad frames in a row that are tolerated: a fifth of a second at 25 frames per second."""

MAX_SHARE = 0.1
"""Share of bad frames that is tolerated in what one `MouthCheck` saw."""

GRID = 64
"""Everything but noise is judged on the mean colours of this many cells a side, whatever the resolution."""

CORE_ROWS = (0.55, 0.78)
CORE_COLUMNS = (0.33, 0.67)
"""Where the mouth lies in an aligned crop, as shares of R."""

NOISE_FILTER = np.outer([1.0, -2.0, 1.0], [1.0, -2.0, 1.0]).astype(np.float32)
NOISE_MEDIAN = 0.6745 * 6.0
"""Median size of the filter's answer to normal noise of deviation 1; it multiplies deviations by 6."""

NOISE_LEVELS, NOISE_RATIO = 8.0, 3.0
"""Noise is refused above `NOISE_LEVELS + NOISE_RATIO` times the source's. Sharp faces measure at most 1.5
levels, rough reconstructions 5, an untrained decoder about 20."""

GREY = 127.5
GREY_NEAR = 12.0
GREY_SHARE = 0.85
GREY_EXCESS = 0.3
"""A mouth is mask-coloured when more than `GREY_SHARE` of its cells lie within `GREY_NEAR` levels of mid-grey
in all three channels, and `GREY_EXCESS` more than in the source, which may be grey itself."""

FLAT_SOURCE, FLAT_LEVELS, FLAT_RATIO = 2.0, 1.5, 0.1
"""A source's mouth with less texture than `FLAT_SOURCE` levels says nothing. A generated one is flat below
`FLAT_LEVELS` that are also below this share of the source's: closed lips on dark skin keep 4 levels, a tenth
of an open mouth with white teeth."""

KEPT_CONTRAST, KEPT_CORRELATION = 4.0, 0.3
"""Levels of contrast below which the kept part says nothing, and the correlation with the source that it must
reach there. Rough reconstructions measure above 0.9, untrained decoders within 0.2 of zero."""

HUE_LEVELS, HUE_SHARE = 20.0, 0.4
"""Skin is miscoloured when more than this share of it lies further than this from the source's, brightness
and a cast over the whole face left aside. Another moment's mouth moves about a twentieth of it that far, one
of a turned head in overexposed footage 0.39; the median of the tiny model's on a real face is 0.47."""

KEPT_CAST, KEPT_REST = 10.0, 0.25
"""A model that is given the kept part and still paints it in other colours (mean further than this many
levels) and other shapes (what remains is more than this share of its contrast) does not know such faces. The
tiny model on a real face: 13 to 20 levels and 0.3 to 0.4; on its own presenters, 3 and 0.15 at most."""

SENTENCES: dict[ErrorCode, str] = {
    ErrorCode.OUTPUT_NOISE: "The generated mouths are noise, not faces",
    ErrorCode.OUTPUT_MASK_COLOURED: "The generated mouths are the grey that hides them from the model",
    ErrorCode.OUTPUT_FLAT: "The generated mouths are flat patches without lips",
    ErrorCode.OUTPUT_MISCOLOURED: "The generated faces have the wrong colours",
}
ADVICE = (
    "nothing was published. The model's weights are probably damaged, untrained or made for other faces "
    "(`tiny` knows drawn ones only): run `lipsync weights verify`; with sound weights, try --dtype fp32 or "
    "more steps."
)


class MouthCheck:
    """Watches a stream of generated faces; holds a few numbers, however long the stream.

    Args:
        keep_mask: float32 (R, R), 1 where the crop is kept, 0 where it is generated.
    """

    def __init__(self, keep_mask: FloatArray) -> None:
        self._judge = MouthJudge(keep_mask)
        self._seen = 0
        self._bad: Counter[ErrorCode] = Counter()
        self._run = 0

    def add(self, number: int, face: FloatArray, source: FloatArray) -> None:
        """Take the next face.

        Args:
            number: of the frame, for the message.
            face: float32 (R, R, 3) RGB 0..255 as decoded, not clamped.
            source: float32 (R, R, 3), the crop that it replaces.

        Raises:
            OutputError: as soon as what was seen cannot be published: a value that is not finite, or more
                than `MAX_RUN` bad frames in a row.
        """
        verdict = self._judge.verdict(face, source)
        self._seen += 1
        if verdict is None:
            self._run = 0
            return
        if verdict is ErrorCode.OUTPUT_NOT_FINITE:
            raise OutputError(
                verdict,
                f"The model computed values that are not numbers in frame {number}; {ADVICE}",
            )
        self._bad[verdict] += 1
        self._run += 1
        if self._run > MAX_RUN:
            raise self._unfit(f"{self._run} frames in a row up to frame {number}")

    def raise_if_unfit(self) -> None:
        """Judge the stream as a whole, at its end.

        Raises:
            OutputError: more than `MAX_SHARE` of the faces are bad.
        """
        n_bad = self._bad.total()
        if n_bad > MAX_SHARE * self._seen:
            raise self._unfit(f"{n_bad} of {self._seen} frames")

    def _unfit(self, where: str) -> OutputError:
        code = self._bad.most_common(1)[0][0]
        return OutputError(code, f"{SENTENCES[code]} ({where}); {ADVICE}")


class MouthJudge:
    """Judges single faces; keeps only what follows from the mask.

    Args:
        keep_mask: float32 (R, R), 1 where the crop is kept, 0 where it is generated.
    """

    def __init__(self, keep_mask: FloatArray) -> None:
        size = len(keep_mask)
        self._grid = grid = min(GRID, size)
        generated = keep_mask < 0.5
        share = cv2.resize(generated.astype(np.float32), (grid, grid), interpolation=cv2.INTER_AREA)
        self._kept: BoolArray = share < 0.01
        self._core: BoolArray = _core(grid) & (share > 0.99)
        self._skin: BoolArray = ~_core(grid) & (share > 0.99)
        self._box = _bounds(generated)
        inner = slice(None, None, max(1, size // 256))
        self._sample = (inner, inner)
        self._areas = [
            area[self._box][self._sample] for area in (generated, generated & _core(size)) if area.any()
        ]
        rows, columns = np.nonzero(self._core)
        self._plane = np.linalg.qr(np.column_stack([rows, columns, np.ones(len(rows))]))[0].astype(np.float32)

    def verdict(self, face: FloatArray, source: FloatArray) -> ErrorCode | None:
        """What is wrong with a face (R, R, 3) 0..255, given its source; None if nothing is."""
        if not np.isfinite(face).all():
            return ErrorCode.OUTPUT_NOT_FINITE
        shown = np.clip(face, 0.0, 255.0)
        noise, own = self._noise(shown), self._noise(source)
        if any(n > NOISE_LEVELS + NOISE_RATIO * s for n, s in zip(noise, own, strict=True)):
            return ErrorCode.OUTPUT_NOISE
        cells, source_cells = self._cells(shown), self._cells(source)
        if self._grey(cells) > max(GREY_SHARE, self._grey(source_cells) + GREY_EXCESS):
            return ErrorCode.OUTPUT_MASK_COLOURED
        texture = self._texture(source_cells)
        if texture > FLAT_SOURCE and self._texture(cells) < min(FLAT_LEVELS, FLAT_RATIO * texture):
            return ErrorCode.OUTPUT_FLAT
        if not self._resembles(cells[self._kept], source_cells[self._kept]):
            return ErrorCode.OUTPUT_NOISE
        if self._is_repainted(cells[self._kept], source_cells[self._kept]):
            return ErrorCode.OUTPUT_MISCOLOURED
        if self._off_hue(cells - source_cells) > HUE_SHARE:
            return ErrorCode.OUTPUT_MISCOLOURED
        return None

    def _cells(self, image: FloatArray) -> FloatArray:
        return cast(FloatArray, cv2.resize(image, (self._grid, self._grid), interpolation=cv2.INTER_AREA))

    def _noise(self, image: FloatArray) -> list[float]:
        """Standard deviation of dense fine detail, in the generated part and at the mouth.

        Immerkær's filter (1996) is blind to straight edges, and the median to sparse detail of any strength.
        """
        detail = np.abs(cv2.filter2D(image[self._box], -1, NOISE_FILTER))[self._sample]
        return [float(np.median(detail[area])) / NOISE_MEDIAN for area in self._areas]

    def _grey(self, cells: FloatArray) -> float:
        return float((np.abs(cells[self._core] - GREY).max(axis=-1, initial=0.0) < GREY_NEAR).mean())

    def _texture(self, cells: FloatArray) -> float:
        """Spread of the mouth's colours around the best plane, so that plain light across a face is none."""
        core = cells[self._core]
        rest = core - self._plane @ (self._plane.T @ core)
        return float(np.sqrt(np.mean(rest * rest)))

    def _off_hue(self, difference: FloatArray) -> float:
        """Share of the skin whose hue is not the source's."""
        hue = difference - difference.mean(axis=-1, keepdims=True)
        cast_over_all = np.median(hue[self._kept], axis=0) if self._kept.any() else np.float32(0.0)
        far = np.abs(hue[self._skin] - cast_over_all).max(axis=-1, initial=0.0) > HUE_LEVELS
        return float(far.mean()) if far.size else 0.0

    def _is_repainted(self, kept: FloatArray, source: FloatArray) -> bool:
        difference = kept - source
        cast_over_all = difference.mean(axis=0)
        rest, contrast = difference - cast_over_all, source - source.mean(axis=0)
        spread, own = (float(np.sqrt(np.mean(part * part))) for part in (rest, contrast))
        return float(np.abs(cast_over_all).max()) > KEPT_CAST and spread > KEPT_REST * own

    def _resembles(self, kept: FloatArray, source: FloatArray) -> bool:
        a, b = kept - kept.mean(axis=0), source - source.mean(axis=0)
        contrast = float(np.sqrt(np.mean(b * b)))
        if contrast < KEPT_CONTRAST:
            return True
        product = float(np.sqrt(np.mean(a * a))) * contrast
        return float(np.mean(a * b)) >= KEPT_CORRELATION * product


def _bounds(area: BoolArray) -> tuple[slice, slice]:
    rows, columns = (np.flatnonzero(area.any(axis=axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _core(size: int) -> BoolArray:
    inside = np.zeros((size, size), dtype=np.bool_)
    rows, columns = ([round(share * size) for share in span] for span in (CORE_ROWS, CORE_COLUMNS))
    inside[slice(*rows), slice(*columns)] = True
    return inside
