"""From samples to what the model hears: log-mel, Whisper hidden states, the tokens of each video frame, and when
somebody speaks.

Everything streams: samples come in chunks, log-mel and hidden states lie on disk, so memory does not grow with the
length. Numbers: parity pack section 5. It does not know containers or codecs.

Hidden states come at 50 Hz, `n_layer + 1` of them per step (the input of the first block, then each block's output; no
final norm). Whisper reads pieces of 30 s. The reference cuts the sound into independent pieces, which puts a seam every
30 s, and fills the last one with a value that is not silence. Our default reads overlapping pieces, blends them where
they overlap and fills with silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from whisper.audio import HOP_LENGTH, N_FFT, SAMPLE_RATE, mel_filters
from whisper.model import AudioEncoder

FloatArray = npt.NDArray[np.float32]

STEPS_PER_S = 50
"""Hidden states per second; each covers two mel frames."""

MEL_PER_S = SAMPLE_RATE // HOP_LENGTH
PIECE_MEL = 3000
PIECE_STEPS = PIECE_MEL // 2

STRIDE_STEPS = 1000
"""Our pieces begin every 20 s, so that neighbours share 10 s."""

BLEND_STEPS = 100
"""In the middle of what they share, two pieces are blended over 2 s; on either side each has 4 s more of context."""

BLOCK_MEL = 3000
"""Mel frames computed at a time."""

MIN_SAMPLES = 2 * N_FFT
"""Shorter sounds are filled with silence up to this, which gives Whisper's STFT something to stand on."""

REST_LOG_MEL = -10.0
"""log10 of the smallest power that the mel can show."""


# --- log-mel ---


@dataclass(frozen=True, slots=True)
class Mel:
    """Log-mel of a whole file, on disk.

    Attributes:
        path: float32 (frames, n_mels), log10 power before Whisper's normalisation.
        frames: T, 100 per second.
        n_mels: bands.
        n_samples: of the sound at 16 kHz.
        peak: largest value of the whole file; the normalisation stands on it.
    """

    path: Path
    frames: int
    n_mels: int
    n_samples: int
    peak: float

    @property
    def duration_s(self) -> float:
        return self.n_samples / SAMPLE_RATE

    @property
    def silence(self) -> float:
        """What the normalised log-mel shows where there is no sound."""
        return (max(REST_LOG_MEL, self.peak - 8.0) + 4.0) / 4.0

    def raw(self, start: int, stop: int) -> FloatArray:
        """(n, n_mels) log10 power of frames [start, stop), clipped to what there is."""
        start, stop = max(0, start), min(self.frames, stop)
        count = max(0, stop - start) * self.n_mels
        rows = np.fromfile(self.path, np.float32, count=count, offset=4 * start * self.n_mels)
        return rows.reshape(-1, self.n_mels)

    def read(self, start: int, stop: int) -> FloatArray:
        """(n_mels, n) normalised as Whisper does it: at most 8 below the peak, then (x + 4) / 4."""
        return (np.maximum(self.raw(start, stop).T, self.peak - 8.0) + 4.0) / 4.0


class MelWriter:
    """Takes samples in chunks of any length and leaves the same log-mel as one pass over the whole would.

    Args:
        path: file to write.
        n_mels: bands that the encoder wants.
    """

    def __init__(self, path: Path, n_mels: int = 80) -> None:
        self._path, self._n_mels = path, n_mels
        self._file = path.open("wb")
        self._filters = mel_filters("cpu", n_mels)
        self._window = torch.hann_window(N_FFT)
        self._samples = np.zeros(0, dtype=np.float32)  # from the start of the next frame's window on
        self._n_samples = 0
        self._frames = 0
        self._peak = -np.inf
        self._begun = False

    def add(self, samples: npt.NDArray[np.int16]) -> None:
        """Mono 16 kHz samples that follow the last ones."""
        chunk = samples.astype(np.float32) / np.float32(32768.0)
        self._n_samples += len(chunk)
        self._samples = np.concatenate([self._samples, chunk])
        self._begin()
        self._write_blocks(last=False)

    def finish(self) -> Mel:
        """No more samples."""
        n_samples = self._n_samples
        if n_samples < MIN_SAMPLES:
            self.add(np.zeros(MIN_SAMPLES - n_samples, dtype=np.int16))
        self._write_blocks(last=True)
        self._file.close()
        return Mel(self._path, self._frames, self._n_mels, n_samples, float(self._peak))

    def _begin(self) -> None:
        """The first window reaches before the file: the sound is mirrored there."""
        half = N_FFT // 2
        if not self._begun and len(self._samples) > half:
            self._samples = np.concatenate([self._samples[half:0:-1], self._samples])
            self._begun = True

    def _write_blocks(self, *, last: bool) -> None:
        if not self._begun:
            return
        half = N_FFT // 2
        if last:  # the last window reaches beyond the file
            self._samples = np.concatenate([self._samples, self._samples[-2 : -half - 2 : -1]])
        total = self._n_samples // HOP_LENGTH  # whisper drops the frame centred on the end
        while True:
            ready = (len(self._samples) - N_FFT) // HOP_LENGTH + 1 if len(self._samples) >= N_FFT else 0
            count = min(BLOCK_MEL, ready)
            if last:
                count = min(count, total - self._frames)
            if count <= 0 or (not last and ready < BLOCK_MEL):
                return
            block = torch.from_numpy(self._samples[: (count - 1) * HOP_LENGTH + N_FFT])
            spectrum = torch.stft(block, N_FFT, HOP_LENGTH, window=self._window, center=False, return_complex=True)
            mel = torch.clamp(self._filters @ (spectrum.abs() ** 2), min=1e-10).log10().T
            self._file.write(mel.contiguous().numpy().tobytes())
            self._peak = max(self._peak, float(mel.max()))
            self._frames += count
            self._samples = self._samples[count * HOP_LENGTH :]


# --- hidden states ---


@dataclass(frozen=True, slots=True)
class AudioFeatures:
    """Hidden states of a whole file, on disk, and those of silence at the same positions in a piece.

    Attributes:
        path: float32 (length, layers, dim); next to it `.json` with these fields and `.silence` with one piece.
        length: L, 50 per second.
        layers, dim: states per step, and their width.
        pieces: how many overlapping pieces they were blended from; 0 for the reference's independent pieces.
        n_samples: of the sound at 16 kHz.
    """

    path: Path
    length: int
    layers: int
    dim: int
    pieces: int
    n_samples: int

    @classmethod
    def open(cls, path: Path) -> AudioFeatures:
        return cls(path, **json.loads(path.with_suffix(".json").read_text()))

    @property
    def duration_s(self) -> float:
        return self.n_samples / SAMPLE_RATE

    def rows(self, start: int, stop: int) -> FloatArray:
        """(n, layers, dim) of steps [start, stop); steps outside the file repeat its ends."""
        low, high = (min(max(step, 0), self.length - 1) for step in (start, stop - 1))
        size = self.layers * self.dim
        stored = np.fromfile(self.path, np.float32, count=(high - low + 1) * size, offset=4 * low * size)
        steps = np.clip(np.arange(start, stop), 0, self.length - 1) - low
        return stored.reshape(-1, self.layers, self.dim)[steps]

    def silent_rows(self, start: int, stop: int) -> FloatArray:
        """The same steps if nothing sounded: the encoder knows positions, so silence differs by position."""
        piece = np.fromfile(self.path.with_suffix(".silence"), np.float32)
        piece = piece.reshape(PIECE_STEPS, self.layers, self.dim)
        steps = np.clip(np.arange(start, stop), 0, self.length - 1)
        if self.pieces == 0:
            return piece[steps % PIECE_STEPS]
        newer, weight = _placement(steps, self.pieces)
        late = piece[steps - newer * STRIDE_STEPS]
        early = piece[np.minimum(steps - np.maximum(newer - 1, 0) * STRIDE_STEPS, PIECE_STEPS - 1)]
        return late * weight[:, None, None] + early * (1 - weight[:, None, None])


def encode(
    mel: Mel, encoder: AudioEncoder, path: Path, *, reference: bool = False
) -> Generator[tuple[int, int], None, AudioFeatures]:
    """Run Whisper's encoder over a file of any length in bounded memory.

    Args:
        mel: of the file.
        encoder: openai-whisper's, on any device in any dtype.
        path: where the states go.
        reference: independent 30 s pieces, the last filled with 0.0 as the reference does it.

    Yields:
        (pieces done, pieces in all).

    Returns:
        The states, readable from `path` by any process.
    """
    length = max(1, mel.frames // 2)
    stride = PIECE_STEPS if reference else STRIDE_STEPS
    pieces = 1 + max(0, -(-(length - PIECE_STEPS) // stride))
    fill = 0.0 if reference else mel.silence
    held: FloatArray | None = None  # the part of the last piece that the next one may be blended with
    with path.open("wb") as file:
        for k in range(pieces):
            start = k * stride
            states = _hidden_states(encoder, mel.read(2 * start, 2 * start + PIECE_MEL), fill)
            stop = length if k == pieces - 1 else start + (stride if reference else stride + _BLEND_STOP)
            begin = start if reference or k == 0 else start + _BLEND_START
            part = states[begin - start : stop - start]
            if held is not None:
                rising = ((np.arange(len(held)) + 0.5) / BLEND_STEPS).astype(np.float32)[:, None, None]
                part[: len(held)] = part[: len(held)] * rising + held * (1 - rising)
            if not reference and k < pieces - 1:
                part, held = part[:-BLEND_STEPS], part[-BLEND_STEPS:].copy()
            file.write(np.ascontiguousarray(part).tobytes())
            yield k + 1, pieces
    silence = _hidden_states(encoder, np.full((mel.n_mels, PIECE_MEL), mel.silence, np.float32), fill)
    silence.tofile(path.with_suffix(".silence"))
    features = AudioFeatures(
        path, length, silence.shape[1], silence.shape[2], 0 if reference else pieces, mel.n_samples
    )
    fields = {name: getattr(features, name) for name in ("length", "layers", "dim", "pieces", "n_samples")}
    path.with_suffix(".json").write_text(json.dumps(fields))
    return features


_BLEND_START = (PIECE_STEPS - STRIDE_STEPS - BLEND_STEPS) // 2
_BLEND_STOP = _BLEND_START + BLEND_STEPS


def _placement(
    steps: npt.NDArray[np.int64], pieces: int
) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """(the newest piece that a step was taken from, its weight against the piece before)."""
    newer = np.clip((steps - _BLEND_START) // STRIDE_STEPS, 0, pieces - 1)
    into = steps - newer * STRIDE_STEPS - _BLEND_START
    weight = np.where(newer > 0, np.clip((into + 0.5) / BLEND_STEPS, 0.0, 1.0), 1.0)
    return newer, weight.astype(np.float32)


@torch.inference_mode()
def _hidden_states(encoder: AudioEncoder, mel: FloatArray, fill: float) -> FloatArray:
    """(n_mels, up to 3000) → float32 (1500, n_layer + 1, n_state)."""
    weight = encoder.conv1.weight
    padded = np.pad(mel, ((0, 0), (0, PIECE_MEL - mel.shape[1])), constant_values=fill)
    x = torch.from_numpy(padded.astype(np.float32))[None].to(weight.device, weight.dtype)
    x = functional.gelu(encoder.conv1(x))
    x = functional.gelu(encoder.conv2(x)).transpose(1, 2)
    x = x + encoder.positional_embedding.to(x.dtype)
    states = [x]
    for block in encoder.blocks:
        x = block(x)
        states.append(x)
    stacked: FloatArray = torch.cat(states).transpose(0, 1).float().cpu().numpy()
    return stacked


# --- what a frame hears ---


def frame_windows(
    features: AudioFeatures, times_s: npt.ArrayLike, context: tuple[int, int] = (2, 2)
) -> Tensor:
    """Audio tokens around each frame.

    Args:
        times_s: (F,) when the frames are shown.
        context: 40 ms steps before and after.

    Returns:
        float32 (F, 2 * (left + right + 1) * layers, dim): time-major, layers inside (parity pack section 5).
    """
    return _gather(features.rows, features, times_s, context)


def conditioned_windows(
    features: AudioFeatures,
    times_s: npt.ArrayLike,
    gate: npt.NDArray[np.float32] | None,
    context: tuple[int, int] = (2, 2),
) -> Tensor:
    """`frame_windows` that fade to the tokens of silence where `gate` (F,) falls to 0; None leaves them."""
    heard = frame_windows(features, times_s, context)
    if gate is None or np.all(gate == 1.0):
        return heard
    silent = _gather(features.silent_rows, features, times_s, context)
    open_ = torch.from_numpy(np.asarray(gate, dtype=np.float32))[:, None, None]
    return heard * open_ + silent * (1.0 - open_)


def _gather(
    rows: Callable[[int, int], FloatArray],
    features: AudioFeatures,
    times_s: npt.ArrayLike,
    context: tuple[int, int],
) -> Tensor:
    left, right = context
    centres = np.rint(np.asarray(times_s, dtype=np.float64) * STEPS_PER_S).astype(np.int64)
    first, count = -2 * left, 2 * (left + right + 1)
    low = int(centres.min()) + first
    block = rows(low, int(centres.max()) + first + count)
    windows = [block[c + first - low : c + first - low + count] for c in centres]
    return torch.from_numpy(np.stack(windows)).reshape(len(centres), count * features.layers, features.dim)


# --- voice activity ---

SPEECH_HZ = (150.0, 4500.0)
MIN_CONTRAST_DB = 8.0
"""Speech stands out from what else is heard by at least this; less is a hum."""

MAX_CONTRAST_DB = 45.0
"""In a clean recording what lies this far under the voice is rest, however silent the room."""

MIN_LEVEL_DB = -70.0
"""Below this nothing is heard at all."""

FILL_GAP_S = 0.32
"""Closures inside words and between close words do not rest the mouth."""

MIN_SPEECH_S = 0.05
LOOK_AHEAD_S = 0.10
HANGOVER_S = 0.12
RAMP_S = 0.14
"""Lips move before the sound and close after it; the gate rises and falls smoothly."""


def voice_activity(mel: Mel, times_s: npt.ArrayLike) -> FloatArray:
    """How much each moment is speech: 1 where somebody speaks, 0 in rest, smooth between.

    Energy in the speech band against a noise floor that follows the recording, with hysteresis, closures filled.

    Args:
        mel: of the whole file.
        times_s: (F,) moments.

    Returns:
        float32 (F,).
    """
    energy = _speech_energy_db(mel)
    speech = _speech_frames(energy)
    ramp = np.hanning(round(RAMP_S * MEL_PER_S) + 2)
    padded = np.pad(speech.astype(np.float64), len(ramp), mode="edge")
    smooth = np.convolve(padded, ramp / ramp.sum(), mode="same")[len(ramp) : -len(ramp)]
    moments = np.asarray(times_s, dtype=np.float64) * MEL_PER_S
    gate = np.interp(moments, np.arange(len(smooth)), smooth, right=0.0)
    return gate.astype(np.float32)


def _speech_energy_db(mel: Mel) -> FloatArray:
    """(T,) power in the speech band, decibels."""
    centres = 700 * (10 ** (np.linspace(0, 2840.02, mel.n_mels + 2)[1:-1] / 2595) - 1)  # good enough to pick bands
    bands = (centres >= SPEECH_HZ[0]) & (centres <= SPEECH_HZ[1])
    parts = [
        10 * np.log10(np.mean(10.0 ** mel.raw(start, start + BLOCK_MEL)[:, bands], axis=1))
        for start in range(0, mel.frames, BLOCK_MEL)
    ]
    return np.concatenate(parts).astype(np.float32)


def _speech_frames(energy: FloatArray) -> npt.NDArray[np.bool_]:
    level = max(float(np.percentile(energy, 95)), MIN_LEVEL_DB)
    floor = np.clip(_noise_floor(energy), level - MAX_CONTRAST_DB, level)
    contrast = level - floor
    high = floor + np.maximum(6.0, 0.40 * contrast)
    low = floor + np.maximum(3.5, 0.25 * contrast)
    sure = (energy > high) & (contrast >= MIN_CONTRAST_DB) & (energy > MIN_LEVEL_DB)
    maybe = energy > low
    speech = np.zeros(len(energy), dtype=bool)
    for start, stop in _stretches(maybe):  # hysteresis: what is loud enough once stays until it is soft
        speech[start:stop] = sure[start:stop].any()
    for start, stop in _stretches(~speech):
        if start > 0 and stop < len(speech) and stop - start < FILL_GAP_S * MEL_PER_S:
            speech[start:stop] = True
    for start, stop in _stretches(speech):
        if stop - start < MIN_SPEECH_S * MEL_PER_S:
            speech[start:stop] = False
    wide = np.zeros_like(speech)
    for start, stop in _stretches(speech):
        wide[max(0, start - round(LOOK_AHEAD_S * MEL_PER_S)) : stop + round(HANGOVER_S * MEL_PER_S)] = True
    return wide


def _noise_floor(energy: FloatArray, block: int = 10, reach: int = 50) -> FloatArray:
    """What is heard in the softest tenth of ten seconds around each frame."""
    blocks = np.array([part.mean() for part in np.array_split(energy, max(1, len(energy) // block))])
    padded = np.pad(blocks, reach, mode="reflect" if len(blocks) > reach else "edge")
    floors = np.concatenate(
        [
            np.percentile(
                np.lib.stride_tricks.sliding_window_view(padded[i : i + 4096 + 2 * reach], 2 * reach + 1), 10, axis=1
            )
            for i in range(0, len(blocks), 4096)
        ]
    )
    places = (np.arange(len(blocks)) + 0.5) * len(energy) / len(blocks)
    return np.interp(np.arange(len(energy)), places, floors).astype(np.float32)


def _stretches(flags: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """[start, stop) of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
