"""Mel-frequency cepstral coefficients as SyncNet was trained on them.

The published network hears what the library python_speech_features 0.6 gives with its defaults; these are its
numbers (a test compares). 100 columns a second; column t covers the samples from 160 t on, 25 ms of them,
without a window.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from lipsync_engine.sync_score.network import COEFFICIENTS

SAMPLE_RATE = 16000
STEP = 160
LENGTH = 400

_FFT = 512
_BANDS = 26
_EMPHASIS = 0.97
_LIFTER = 22


def cepstrum(samples: npt.NDArray[np.int16], start: int, columns: int) -> npt.NDArray[np.float32]:
    """(13, columns) coefficients of the columns from `start` on.

    Args:
        samples: int16 (n,), 16 kHz mono, from column 0's first sample on.

    What lies behind the sound's end is silence.
    """
    first, count = start * STEP, (columns - 1) * STEP + LENGTH
    heard = samples[max(0, first - 1) : first + count].astype(np.float64)
    sharp = np.append(heard[:1] if first == 0 else [], heard[1:] - _EMPHASIS * heard[:-1])
    sharp = np.pad(sharp, (0, count - len(sharp)))
    frames = np.lib.stride_tricks.sliding_window_view(sharp, LENGTH)[::STEP]
    power = np.abs(np.fft.rfft(frames, _FFT)) ** 2 / _FFT
    bands = np.log(_positive(power @ _filters().T))
    coefficients = bands @ _cosines().T
    coefficients[:, 0] = np.log(_positive(power.sum(axis=1)))
    return coefficients.T.astype(np.float32)


def _positive(power: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(power == 0, np.finfo(float).eps, power)


@functools.cache
def _filters() -> npt.NDArray[np.float64]:
    """(26, 257): triangles of equal width in mel, with corners on whole bins."""
    top_mel = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    corners_hz = 700 * (10 ** (np.linspace(0, top_mel, _BANDS + 2) / 2595) - 1)
    corners = np.floor((_FFT + 1) * corners_hz / SAMPLE_RATE)
    bins = np.arange(_FFT // 2 + 1)
    low, middle, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising = np.divide(bins - low, middle - low, where=middle > low, out=np.zeros((_BANDS, len(bins))))
    falling = np.divide(high - bins, high - middle, where=high > middle, out=np.zeros((_BANDS, len(bins))))
    inside = np.where(bins < middle, rising, falling)
    return np.where((bins >= low) & (bins < high), inside, 0.0)


@functools.cache
def _cosines() -> npt.NDArray[np.float64]:
    """(13, 26): orthonormal cosine transform, its rows lifted."""
    k, n = np.arange(COEFFICIENTS)[:, None], np.arange(_BANDS)[None, :]
    scale = np.sqrt(np.where(k == 0, 1.0, 2.0) / _BANDS)
    lift = 1 + _LIFTER / 2 * np.sin(np.pi * k / _LIFTER)
    return np.asarray(lift * scale * np.cos(np.pi * k * (2 * n + 1) / (2 * _BANDS)))
