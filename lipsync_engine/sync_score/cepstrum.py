"""Mel-frequency cepstral coefficients (MFCC), the audio input of SyncNet.

The published network was trained with the defaults of the library python_speech_features 0.6; a test compares
the numbers. There are 100 columns per second. Column t covers 25 ms of samples from 160 t on, without a
window function.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from lipsync_engine.sync_score.network import COEFFICIENTS

SAMPLE_RATE = 16000
HOP = 160
FRAME_LENGTH = 400

_FFT_SIZE = 512
_MEL_BANDS = 26
_PREEMPHASIS = 0.97
_LIFTER = 22


def compute_mfcc(samples: npt.NDArray[np.int16], start: int, columns: int) -> npt.NDArray[np.float32]:
    """Compute float32 (13, columns) coefficients from column `start` on; silence follows the last sample.

    Args:
        samples: int16 (n,), 16 kHz mono, beginning with column 0.
    """
    first, count = start * HOP, (columns - 1) * HOP + FRAME_LENGTH
    signal = samples[max(0, first - 1) : first + count].astype(np.float64)
    emphasized = np.append(signal[:1] if first == 0 else [], signal[1:] - _PREEMPHASIS * signal[:-1])
    emphasized = np.pad(emphasized, (0, count - len(emphasized)))
    frames = np.lib.stride_tricks.sliding_window_view(emphasized, FRAME_LENGTH)[::HOP]
    power = np.abs(np.fft.rfft(frames, _FFT_SIZE)) ** 2 / _FFT_SIZE
    bands = np.log(_avoid_zero(power @ _mel_filters().T))
    coefficients = bands @ _dct_matrix().T
    coefficients[:, 0] = np.log(_avoid_zero(power.sum(axis=1)))
    return coefficients.T.astype(np.float32)


def _avoid_zero(power: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(power == 0, np.finfo(float).eps, power)


@functools.cache
def _mel_filters() -> npt.NDArray[np.float64]:
    """Return (26, 257) triangular filters of equal width in mel, with corners on whole bins."""
    top_mel = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    corners_hz = 700 * (10 ** (np.linspace(0, top_mel, _MEL_BANDS + 2) / 2595) - 1)
    corners = np.floor((_FFT_SIZE + 1) * corners_hz / SAMPLE_RATE)
    bins = np.arange(_FFT_SIZE // 2 + 1)
    low, middle, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising = np.divide(bins - low, middle - low, where=middle > low, out=np.zeros((_MEL_BANDS, len(bins))))
    falling = np.divide(
        high - bins, high - middle, where=high > middle, out=np.zeros((_MEL_BANDS, len(bins)))
    )
    inside = np.where(bins < middle, rising, falling)
    return np.where((bins >= low) & (bins < high), inside, 0.0)


@functools.cache
def _dct_matrix() -> npt.NDArray[np.float64]:
    """Return the (13, 26) orthonormal cosine transform with liftered rows."""
    k, n = np.arange(COEFFICIENTS)[:, None], np.arange(_MEL_BANDS)[None, :]
    scale = np.sqrt(np.where(k == 0, 1.0, 2.0) / _MEL_BANDS)
    lift = 1 + _LIFTER / 2 * np.sin(np.pi * k / _LIFTER)
    return np.asarray(lift * scale * np.cos(np.pi * k * (2 * n + 1) / (2 * _MEL_BANDS)))
