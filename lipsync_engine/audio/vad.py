"""Detect voice activity and measure loudness, in bounded memory for audio of any length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
from whisper.audio import N_FFT, mel_filters

from lipsync_engine.audio.features import BLOCK_MEL, MEL_PER_S, SAMPLES_PER_S, FloatArray, Mel

BoolArray = npt.NDArray[np.bool_]

LOWEST_SPEECH_HZ = 100.0
"""Below lie mains hum and rumble."""

N_GROUPS = 6
"""Mel bands are summed into groups, each with its own noise floor, so that a hum hides only its group."""

SMOOTH_MEL = 5
"""Frames of the running mean of each group's power: noise flickers, phonemes last longer."""

FLOOR_CELL_MEL = 50
FLOOR_REACH_CELLS = 10
FLOOR_PERCENTILE = 20.0
"""Noise floor: the 20th percentile of each half second, the lowest of these within 5 s on either side."""

ONSET_DB, KEEP_DB = 11.0, 6.0
"""Mean height of the two clearest groups over their floors: a stretch over KEEP that reaches ONSET speaks."""

DEPTH_DB = 40.0
"""What lies further than this under the file's loud frames is rest, however silent the recording."""

AUDIBLE_DB = -60.0
"""Softer frames (white noise under about -78 dBFS) cannot be heard, and do not tell how loud the voice is."""

MIN_SPEECH_S = 0.08
"""Longer than a click fills after smoothing."""

LOOK_AHEAD_S, HANGOVER_S = 0.10, 0.12
"""Lips move before the sound and close after it."""

RAMP_S = 0.14
FILL_GAP_S = LOOK_AHEAD_S + HANGOVER_S + 2 * RAMP_S
"""A shorter gap, as in words and between close ones, leaves no time to close the mouth and open it again."""


def voice_activity(mel: Mel, times_s: npt.ArrayLike) -> FloatArray:
    """Return the voice gate: 1 from 0.1 s before speech to 0.12 s after it, 0 in pauses.

    Between them lie raised cosines of 0.14 s.

    Audio counts as speech when it exceeds the steady noise around it in some part of the spectrum. Therefore
    music with a beat counts as speech, a hum does not.

    Args:
        mel: of the whole file.
        times_s: (F,) moments.

    Returns:
        float32 (F,).
    """
    times = np.asarray(times_s, dtype=np.float64)
    intervals = np.array(_speech_intervals(mel), dtype=np.float64).reshape(-1, 2) / MEL_PER_S
    if len(intervals) == 0:
        return np.zeros(len(times), dtype=np.float32)
    starts, stops = intervals[:, 0] - LOOK_AHEAD_S, intervals[:, 1] + HANGOVER_S
    following = np.searchsorted(starts, times, side="right")
    until_next = np.append(starts, np.inf)[following] - times
    since_last = times - np.insert(stops, 0, -np.inf)[following]
    distance = np.clip(np.minimum(until_next, since_last), 0.0, RAMP_S)
    gate: FloatArray = (0.5 + 0.5 * np.cos(np.pi * distance / RAMP_S)).astype(np.float32)
    return gate


LOUD_RANGE_DB = 35.0


def loudness(chunks: Iterable[npt.NDArray[np.int16]], per_second: int) -> FloatArray:
    """Return the loudness of each interval, (N,): 1 at the 95th percentile of the voice, 0 from 35 dB below.

    Args:
        chunks: samples at 16 kHz, mono.
        per_second: number of intervals.
    """
    size, rest, powers = SAMPLES_PER_S // per_second, np.empty(0, np.float32), []
    for chunk in chunks:
        samples = np.concatenate([rest, chunk.astype(np.float32)])
        whole = len(samples) // size * size
        powers.append((samples[:whole].reshape(-1, size) ** 2).mean(axis=1))
        rest = samples[whole:]
    if len(rest):
        powers.append(np.array([np.mean(rest**2)], dtype=np.float32))
    level_db = 10 * np.log10(np.maximum(np.concatenate(powers), 1.0))
    top_db = max(45.0, float(np.percentile(level_db, 95)))  # a silent file is not loud anywhere
    return np.asarray(np.clip((level_db - top_db) / LOUD_RANGE_DB + 1, 0, 1), dtype=np.float32)


def _speech_intervals(mel: Mel) -> list[tuple[int, int]]:
    """Return [start, stop) in mel frames of every speech interval."""
    # 1. Loudness and noise floor.
    loudest, cells = [], []
    for _, levels in _group_levels(mel):
        loudest.append(levels.max(axis=1))
        parts = np.split(levels, range(FLOOR_CELL_MEL, len(levels), FLOOR_CELL_MEL))
        cells += [np.percentile(part, FLOOR_PERCENTILE, axis=0) for part in parts]
    audible = np.concatenate(loudest)
    audible = audible[audible > AUDIBLE_DB]
    if len(audible) == 0:
        return []
    loud_db = np.percentile(audible, 95)
    padded = np.pad(np.stack(cells), ((FLOOR_REACH_CELLS, FLOOR_REACH_CELLS), (0, 0)), mode="edge")
    floors = np.lib.stride_tricks.sliding_window_view(padded, 2 * FLOOR_REACH_CELLS + 1, axis=0).min(axis=-1)
    floors = np.maximum(floors, loud_db - DEPTH_DB - ONSET_DB)

    # 2. Level of each frame over the floor.
    clear = np.zeros(mel.frames, dtype=np.float32)
    centres = (np.arange(len(floors)) + 0.5) * FLOOR_CELL_MEL
    for start, levels in _group_levels(mel):
        frames = np.arange(start, start + len(levels))
        floor = np.stack([np.interp(frames, centres, floors[:, group]) for group in range(N_GROUPS)], axis=1)
        clear[frames] = np.sort(levels - floor, axis=1)[:, -2:].mean(axis=1)

    # 3. Intervals: hysteresis, then no clicks, then no gaps.
    speech = np.zeros(mel.frames, dtype=bool)
    for start, stop in _true_runs(clear > KEEP_DB):
        speech[start:stop] = stop - start >= MIN_SPEECH_S * MEL_PER_S and clear[start:stop].max() > ONSET_DB
    for start, stop in _true_runs(~speech):
        inside = start > 0 and stop < len(speech)
        speech[start:stop] = inside and stop - start < FILL_GAP_S * MEL_PER_S
    return _true_runs(speech)


def _group_levels(mel: Mel) -> Iterator[tuple[int, FloatArray]]:
    """Yield (first frame, (n, N_GROUPS) decibels), block by block."""
    peaks_hz = mel_filters("cpu", mel.n_mels).argmax(dim=1).numpy() * (SAMPLES_PER_S / N_FFT)
    first = int(np.searchsorted(peaks_hz, LOWEST_SPEECH_HZ))
    reach = SMOOTH_MEL // 2
    for start in range(0, mel.frames, BLOCK_MEL):
        stop = min(start + BLOCK_MEL, mel.frames)
        power = 10.0 ** mel.power(start - reach, stop + reach)[:, first:]
        groups = np.stack([part.sum(axis=1) for part in np.array_split(power, N_GROUPS, axis=1)], axis=1)
        missing = (reach - min(reach, start), reach - min(reach, mel.frames - stop))
        groups = np.pad(groups, (missing, (0, 0)), mode="edge")
        smooth = np.lib.stride_tricks.sliding_window_view(groups, SMOOTH_MEL, axis=0).mean(axis=-1)
        levels: FloatArray = 10.0 * np.log10(smooth)
        yield start, levels


def _true_runs(flags: BoolArray) -> list[tuple[int, int]]:
    """Return [start, stop) of every run of True."""
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]
