"""Detect voice activity and measure loudness, in bounded memory for audio of any length.

Silero VAD decides what is speech. It is the same for every process: samples are evaluated in blocks at fixed
places, and the gate that follows is stored in the plan of a job.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lipsync_engine.audio.features import SAMPLES_PER_S
from lipsync_engine.audio.silero import CONTEXT_SAMPLES, WINDOW_SAMPLES, SileroVad, State
from lipsync_engine.utils import FloatArray, runs_of

GATE_VERSION = "silero-1"
"""Name of this way to decide; plans that another one made are not reused."""

WINDOW_S = WINDOW_SAMPLES / SAMPLES_PER_S

BLOCK_WINDOWS = 256
"""Windows that the network evaluates at once: 8 s."""

ONSET, KEEP = 0.5, 0.25
"""An interval above KEEP that reaches ONSET is speech. ONSET is Silero's own. It recommends 0.35 for KEEP; at
0.25 soft consonants before a vowel are kept, and drums still leave 97 % of the pauses closed."""

MIN_SPEECH_WINDOWS = 2
"""Clicks fill one window."""

QUIET_DB = -45.0
QUIET_GAIN_DB = 30.0
"""Silero misses voices below about -50 dBFS. Files whose loud moments lie below QUIET_DB are evaluated with
this gain."""

LOUD_DB = 10.0
"""Windows within this of the file's loud moments (95th percentile) count as loud."""

MAX_CLOSED_RATIO = 0.5
"""Where more of the loud windows than this contain no detected speech, the detector is not trusted."""

LOOK_AHEAD_S, HANGOVER_S = 0.10, 0.12
"""Lips move before the voice is audible and close after it."""

RAMP_S = 0.14
PAUSE_STEPS_PER_S = 100
"""Resolution of `find_pauses`."""

MIN_PAUSE_S = LOOK_AHEAD_S + HANGOVER_S + 2 * RAMP_S
"""A shorter pause leaves no time to close the mouth and open it again."""


@dataclass(frozen=True, slots=True)
class VoiceActivity:
    """Speech in an audio file.

    Attributes:
        intervals: (start, stop) of speech in seconds, in order, at least `MIN_PAUSE_S` apart.
        is_bypassed: most of the loud audio contains no detected speech (singing, noise above the voice), so
            the gate stays open throughout.
    """

    intervals: tuple[tuple[float, float], ...]
    is_bypassed: bool = False

    def gate(self, times_s: npt.ArrayLike) -> FloatArray:
        """Return the voice gate: 1 from 0.1 s before speech to 0.12 s after it, 0 in pauses.

        Between them lie raised cosines of 0.14 s.

        Args:
            times_s: (F,) times.

        Returns:
            float32 (F,).
        """
        times = np.asarray(times_s, dtype=np.float64)
        if self.is_bypassed:
            return np.ones(len(times), dtype=np.float32)
        if not self.intervals:
            return np.zeros(len(times), dtype=np.float32)
        bounds = np.asarray(self.intervals, dtype=np.float64)
        starts, stops = bounds[:, 0] - LOOK_AHEAD_S, bounds[:, 1] + HANGOVER_S
        following = np.searchsorted(starts, times, side="right")
        until_next = np.append(starts, np.inf)[following] - times
        since_last = times - np.insert(stops, 0, -np.inf)[following]
        distance = np.clip(np.minimum(until_next, since_last), 0.0, RAMP_S)
        gate: FloatArray = (0.5 + 0.5 * np.cos(np.pi * distance / RAMP_S)).astype(np.float32)
        return gate


def find_pauses(chunks: Iterable[npt.NDArray[np.int16]], network: SileroVad) -> list[tuple[float, float]]:
    """Return (start, stop) in seconds of the pauses in which a job's voice gate would be closed.

    Args:
        chunks: samples at 16 kHz, mono.
        network: from `silero.load_silero`.
    """
    detector, n_samples = VoiceDetector(network), 0
    for chunk in chunks:
        detector.add(chunk)
        n_samples += len(chunk)
    times_s = np.arange(n_samples * PAUSE_STEPS_PER_S // SAMPLES_PER_S) / PAUSE_STEPS_PER_S
    is_closed = detector.finish().gate(times_s) < 0.5
    return [(start / PAUSE_STEPS_PER_S, stop / PAUSE_STEPS_PER_S) for start, stop in runs_of(is_closed)]


class VoiceDetector:
    """Streaming voice detection in samples that arrive in chunks of any length.

    Args:
        network: from `silero.load_silero`.
    """

    def __init__(self, network: SileroVad) -> None:
        self._estimators = [_ProbabilityEstimator(network, gain_db) for gain_db in (0.0, QUIET_GAIN_DB)]
        self._buffer = np.zeros(BLOCK_WINDOWS * WINDOW_SAMPLES, dtype=np.int16)
        self._filled = 0
        self._levels_db: list[FloatArray] = []

    def add(self, samples: npt.NDArray[np.int16]) -> None:
        """Append samples: int16 (n,), mono, 16 kHz."""
        at = 0
        while at < len(samples):
            part = samples[at : at + len(self._buffer) - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            at += len(part)
            if self._filled == len(self._buffer):
                self._evaluate_block(self._buffer)
                self._filled = 0

    def finish(self) -> VoiceActivity:
        """Evaluate the last samples and return the activity of the whole file."""
        if self._filled:
            rest = self._buffer[: self._filled]
            self._evaluate_block(np.pad(rest, (0, -self._filled % WINDOW_SAMPLES)))
            self._filled = 0
        if not self._levels_db:
            return VoiceActivity(())
        levels_db = np.concatenate(self._levels_db)
        loud_db = float(np.percentile(levels_db, 95))
        estimator = self._estimators[1 if loud_db < QUIET_DB else 0]
        activity = VoiceActivity(tuple(_speech_intervals(np.concatenate(estimator.probabilities))))
        is_loud = (levels_db > loud_db - LOUD_DB) & (levels_db > QUIET_DB)
        is_closed = activity.gate((np.arange(len(levels_db)) + 0.5) * WINDOW_S) < 0.5
        if np.count_nonzero(is_closed & is_loud) > MAX_CLOSED_RATIO * np.count_nonzero(is_loud):
            return VoiceActivity(activity.intervals, is_bypassed=True)
        return activity

    def _evaluate_block(self, samples: npt.NDArray[np.int16]) -> None:
        waveform = samples.astype(np.float32) / np.float32(32768.0)
        power = np.square(waveform).reshape(-1, WINDOW_SAMPLES).mean(axis=1)
        self._levels_db.append(10.0 * np.log10(np.maximum(power, np.float32(1e-10))))
        for estimator in self._estimators:
            estimator.add_block(waveform)


class _ProbabilityEstimator:
    """The network's state along a file whose samples are multiplied by a gain."""

    def __init__(self, network: SileroVad, gain_db: float) -> None:
        self._network, self._gain = network, np.float32(10.0 ** (gain_db / 20.0))
        self._context = np.zeros(CONTEXT_SAMPLES, dtype=np.float32)
        self._state: State | None = None
        self.probabilities: list[FloatArray] = []

    def add_block(self, waveform: FloatArray) -> None:
        scaled = np.clip(waveform * self._gain, -1.0, 1.0)
        samples = torch.from_numpy(np.concatenate([self._context, scaled]))
        probabilities, self._state = self._network(samples, self._state)
        self.probabilities.append(probabilities.numpy())
        self._context = scaled[-CONTEXT_SAMPLES:]


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


def _speech_intervals(probabilities: FloatArray) -> Iterator[tuple[float, float]]:
    """Yield (start, stop) in seconds: hysteresis, then no clicks, then no short pauses."""
    is_speech = np.zeros(len(probabilities), dtype=bool)
    for start, stop in runs_of(probabilities >= KEEP):
        is_long = stop - start >= MIN_SPEECH_WINDOWS
        is_speech[start:stop] = is_long and probabilities[start:stop].max() >= ONSET
    for start, stop in runs_of(~is_speech):
        is_inside = start > 0 and stop < len(is_speech)
        is_speech[start:stop] = is_inside and (stop - start) * WINDOW_S < MIN_PAUSE_S
    for start, stop in runs_of(is_speech):
        yield start * WINDOW_S, stop * WINDOW_S
