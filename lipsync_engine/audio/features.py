"""Compute the audio features of the model: log-mel, Whisper hidden states, the tokens of each frame.

Everything streams: samples arrive in chunks, log-mel and hidden states lie on disk, so memory does not grow
with the length.

Hidden states have a rate of 50 Hz and n_layer + 1 layers: the input of the first block, then each block's
output, no final norm (parity pack, section 5). Whisper reads chunks of 30 s with positional embeddings, so
the same audio gives different states at different places of a chunk; with the pack's random weights their
cosine is about 0.6. LatentSync cuts the audio into independent chunks, which causes a jump of the mouth every
30 s, and pads the last chunk with a value that is not silence.

Our default reads overlapping chunks and cross-fades from one to the next over 2 s, where both have 4 s more
of true audio on either side. A step then moves at most a 64th of the way between the chunks: its cosine with
the same step without the fade is above 0.999. The last chunk is padded with silence. Audio of up to 30 s is
one chunk, which differs from the reference in that silence only.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from whisper.audio import HOP_LENGTH, N_FFT, SAMPLE_RATE, mel_filters
from whisper.model import AudioEncoder

from lipsync_engine.utils import FloatArray, IntArray

SAMPLES_PER_S: int = SAMPLE_RATE
MEL_PER_S = SAMPLES_PER_S // HOP_LENGTH
STEPS_PER_S = MEL_PER_S // 2
"""Hidden states per second: the encoder's second convolution halves the rate."""

CHUNK_STEPS = 1500
"""Length of one encoder input: 30 s."""

STRIDE_STEPS = 1000
"""Chunks begin every 20 s, so neighbours overlap by 10 s."""

BLEND_STEPS = 100
"""Length of the cross-fade in the middle of the overlap of two chunks."""

BLOCK_MEL = 3000
"""Mel frames computed or read at a time. Blocks lie at fixed places: any split of the input gives the same
bits."""

MIN_SAMPLES = 2 * HOP_LENGTH
"""Samples of one hidden state; shorter audio is padded with silence to this."""

MIN_LOG_MEL = -10.0
"""log10 of the smallest power that Whisper's log-mel represents."""

LOG_MEL_RANGE = 8.0
"""Whisper clips values further than this below the peak of the whole file."""


# --- log-mel ---


@dataclass(frozen=True, slots=True)
class Mel:
    """Log-mel of a whole file, on disk.

    Attributes:
        path: float32 (frames, n_mels), log10 power, before clipping and scaling.
        frames: T, 100 per second.
        n_mels: number of bands.
        n_samples: number of input samples at 16 kHz.
        peak: largest value of the whole file; Whisper's scale depends on it.
    """

    path: Path
    frames: int
    n_mels: int
    n_samples: int
    peak: float

    @property
    def duration_s(self) -> float:
        return self.n_samples / SAMPLES_PER_S

    @property
    def silence(self) -> float:
        """Value of every band where this file is silent, on Whisper's scale."""
        return float(self._scaled(np.full(1, MIN_LOG_MEL, dtype=np.float32))[0])

    def power(self, start: int, stop: int) -> FloatArray:
        """Read log10 power of frames [start, stop), clipped to the file: (n, n_mels)."""
        start, stop = max(0, start), min(self.frames, stop)
        count = max(0, stop - start) * self.n_mels
        rows = np.fromfile(self.path, np.float32, count=count, offset=4 * start * self.n_mels)
        return rows.reshape(-1, self.n_mels)

    def read(self, start: int, stop: int) -> FloatArray:
        """Read frames [start, stop) on Whisper's scale, clipped to the file: (n_mels, n).

        Equal to openai-whisper's `log_mel_spectrogram` of the whole file up to the rounding of the latter.
        """
        return self._scaled(self.power(start, stop).T)

    def _scaled(self, power: FloatArray) -> FloatArray:
        limited = np.maximum(power, np.float32(self.peak - LOG_MEL_RANGE))
        return (limited + np.float32(4.0)) / np.float32(4.0)


class MelWriter:
    """Streaming log-mel of samples that arrive in chunks of any length.

    Frame t is centred on sample 160 t; the audio is mirrored at both of its ends, as in `torch.stft`. Window
    and filters are Whisper's, but sums are float64: next to loud partials, float32 loses up to 5e-5 of a soft
    band, and two float32 transforms differ by more than one differs from the exact value.

    Args:
        path: file to write.
        n_mels: number of bands of the encoder, 80 or 128.
    """

    def __init__(self, path: Path, n_mels: int = 80) -> None:
        self._path, self._n_mels = path, n_mels
        self._filters = mel_filters("cpu", n_mels).double()
        self._window = torch.hann_window(N_FFT).double()
        # One block's samples, from N_FFT / 2 before the centre of its first frame on.
        self._buffer = np.zeros((BLOCK_MEL - 1) * HOP_LENGTH + N_FFT, dtype=np.int16)
        self._filled = N_FFT // 2
        self._frames = 0
        self._n_samples = 0
        self._peak = -np.inf
        path.write_bytes(b"")

    def add(self, samples: npt.NDArray[np.int16]) -> None:
        """Append samples: int16 (n,), mono, 16 kHz."""
        if samples.dtype != np.int16 or samples.ndim != 1:
            raise TypeError(f"samples must be int16 (n,), not {samples.dtype} {samples.shape}")
        self._n_samples += len(samples)
        self._buffer_samples(samples)

    def finish(self) -> Mel:
        """Write the last frames and return the log-mel of all samples."""
        n_samples = self._n_samples
        if n_samples < MIN_SAMPLES:
            self._buffer_samples(np.zeros(MIN_SAMPLES - n_samples, dtype=np.int16))
        # Whisper drops the frame that is centred on the end.
        if n_missing := max(n_samples, MIN_SAMPLES) // HOP_LENGTH - self._frames:
            samples = self._buffer[: self._filled]
            mirrored = np.concatenate([samples, samples[-2 : -2 - N_FFT // 2 : -1]])
            self._write_block(mirrored[: (n_missing - 1) * HOP_LENGTH + N_FFT])
        return Mel(self._path, self._frames, self._n_mels, n_samples, self._peak)

    def _buffer_samples(self, samples: npt.NDArray[np.int16]) -> None:
        at = 0
        while at < len(samples):
            part = samples[at : at + len(self._buffer) - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            at += len(part)
            if self._filled == len(self._buffer):
                self._write_block(self._buffer)
                rest = self._buffer[BLOCK_MEL * HOP_LENGTH :]
                self._buffer[: len(rest)] = rest
                self._filled = len(rest)

    def _write_block(self, samples: npt.NDArray[np.int16]) -> None:
        if self._frames == 0:
            half = N_FFT // 2
            samples[:half] = samples[2 * half : half : -1]
        waveform = torch.from_numpy(samples / 32768.0)
        spectrum = torch.stft(
            waveform, N_FFT, HOP_LENGTH, window=self._window, center=False, return_complex=True
        )
        mel = torch.clamp(self._filters @ spectrum.abs().square(), min=10.0**MIN_LOG_MEL).log10().float()
        with self._path.open("ab") as file:
            file.write(mel.T.contiguous().numpy().tobytes())
        self._peak = max(self._peak, float(mel.max()))
        self._frames += mel.shape[1]


# --- hidden states ---


@dataclass(frozen=True, slots=True)
class _ChunkLayout:
    """Layout of the chunks over a file's steps, and their blend weights."""

    length: int
    reference: bool

    @property
    def stride(self) -> int:
        return CHUNK_STEPS if self.reference else STRIDE_STEPS

    @property
    def blend(self) -> int:
        return 0 if self.reference else BLEND_STEPS

    @property
    def margin(self) -> int:
        """Steps at the start of a chunk that are taken from the chunk before."""
        return (CHUNK_STEPS - self.stride - self.blend) // 2

    @property
    def count(self) -> int:
        return 1 + max(0, -(-(self.length - CHUNK_STEPS) // self.stride))

    def span(self, chunk: int) -> tuple[int, int]:
        """Return [start, stop): the steps that this chunk adds, its cross-fade included."""
        start = 0 if chunk == 0 else chunk * self.stride + self.margin
        stop = self.length if chunk == self.count - 1 else (chunk + 1) * self.stride + self.margin
        return start, stop

    def blend_weights(self, steps: IntArray) -> tuple[IntArray, FloatArray]:
        """Return for each step its last chunk and that chunk's weight; the chunk before has the rest."""
        chunk = np.clip((steps - self.margin) // self.stride, 0, self.count - 1)
        offset = steps - chunk * self.stride - self.margin + 0.5
        weight = np.ones(len(steps))
        is_fading = (chunk > 0) & (offset < self.blend)
        weight[is_fading] = 0.5 - 0.5 * np.cos(np.pi * offset[is_fading] / self.blend)
        return chunk, weight.astype(np.float32)


@dataclass(frozen=True, slots=True)
class AudioFeatures:
    """Hidden states of a whole file, on disk, and those of silence at the same places in a chunk.

    Attributes:
        path: float32 (length, layers, dim). Next to it `.json` with the other fields, written last, and
            `.silence` with one silent chunk.
        length: L, 50 per second.
        layers, dim: states per step, and their width.
        n_samples: number of audio samples at 16 kHz.
        reference: independent chunks as in LatentSync.
    """

    path: Path
    length: int
    layers: int
    dim: int
    n_samples: int
    reference: bool

    @classmethod
    def open(cls, path: Path) -> AudioFeatures:
        """Open the result of `encode_mel` at `path`, written by this or another process."""
        return cls(path, **json.loads(_header_path(path).read_text()))

    @property
    def duration_s(self) -> float:
        return self.n_samples / SAMPLES_PER_S

    def rows(self, start: int, stop: int) -> FloatArray:
        """Read steps [start, stop), float32 (n, layers, dim); the first and last step repeat outside."""
        return self._gather(self.path, self.length, self._clamp_steps(start, stop))

    def silent_rows(self, start: int, stop: int) -> FloatArray:
        """Read the states of silence at the same steps; they depend on the position in a chunk."""
        steps = self._clamp_steps(start, stop)
        layout = _ChunkLayout(self.length, self.reference)
        chunk, weight = layout.blend_weights(steps)
        offset = steps - chunk * layout.stride
        silence = _silence_path(self.path)
        late = self._gather(silence, CHUNK_STEPS, offset)
        if np.all(weight == 1.0):
            return late
        early = self._gather(silence, CHUNK_STEPS, np.minimum(offset + layout.stride, CHUNK_STEPS - 1))
        return _blend(early, late, weight)

    def _clamp_steps(self, start: int, stop: int) -> IntArray:
        return np.clip(np.arange(start, stop), 0, self.length - 1)

    def _gather(self, path: Path, length: int, steps: IntArray) -> FloatArray:
        # Mapped for this read only: pages of a long file do not add up in the resident memory.
        return np.asarray(np.memmap(path, np.float32, "r", shape=(length, self.layers, self.dim))[steps])


def encode_mel(
    mel: Mel, encoder: AudioEncoder, path: Path, *, reference: bool = False
) -> Generator[tuple[int, int], None, AudioFeatures]:
    """Run Whisper's encoder over a file of any length in bounded memory.

    Args:
        mel: of the file.
        encoder: openai-whisper's, on any device, in any dtype; its norms are converted to float32, in which
            Whisper computes them.
        path: file to write.
        reference: independent chunks, the last padded with 0.0, as in LatentSync.

    Yields:
        (chunks done, total).

    Returns:
        The states, readable from `path` by any process.
    """
    for module in encoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.float()
    layout = _ChunkLayout(mel.frames // 2, reference)
    padding = 0.0 if reference else mel.silence
    overlap: FloatArray | None = None  # states of the chunk before at the start of this one's span
    with path.open("wb") as file:
        for chunk in range(layout.count):
            begin = chunk * layout.stride
            states = _hidden_states(encoder, mel.read(2 * begin, 2 * (begin + CHUNK_STEPS)), padding)
            start, stop = layout.span(chunk)
            span_states = states[start - begin : stop - begin]
            if overlap is not None:
                _, weight = layout.blend_weights(np.arange(start, start + len(overlap)))
                span_states[: len(overlap)] = _blend(overlap, span_states[: len(overlap)], weight)
            overlap = states[stop - begin : stop - begin + layout.blend].copy()
            file.write(span_states.tobytes())
            yield chunk + 1, layout.count
    silent = np.full((mel.n_mels, 2 * CHUNK_STEPS), mel.silence, dtype=np.float32)
    states = _hidden_states(encoder, silent, padding)
    _silence_path(path).write_bytes(states.tobytes())
    _, layers, dim = states.shape
    features = AudioFeatures(path, layout.length, layers, dim, mel.n_samples, reference)
    header = {field.name: getattr(features, field.name) for field in dataclasses.fields(features)[1:]}
    _header_path(path).write_text(json.dumps(header))
    return features


def _header_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _silence_path(path: Path) -> Path:
    return path.with_name(path.name + ".silence")


def _blend(early: FloatArray, late: FloatArray, weight: FloatArray) -> FloatArray:
    late_weight = weight[:, None, None]
    blended: FloatArray = late * late_weight + early * (np.float32(1.0) - late_weight)
    return blended


@torch.inference_mode()
def _hidden_states(encoder: AudioEncoder, mel: FloatArray, padding: float) -> FloatArray:
    """Encode one chunk: (n_mels, up to 3000), padded to 3000 → float32 (1500, n_layer + 1, n_state)."""
    weight = encoder.conv1.weight
    chunk = np.pad(mel, ((0, 0), (0, 2 * CHUNK_STEPS - mel.shape[1])), constant_values=padding)
    x = torch.from_numpy(chunk)[None].to(weight.device, weight.dtype)
    x = functional.gelu(encoder.conv1(x))
    x = functional.gelu(encoder.conv2(x)).transpose(1, 2)
    x = (x + encoder.positional_embedding).to(x.dtype)
    states = [x]
    for block in encoder.blocks:
        states.append(block(states[-1]))
    stacked: FloatArray = torch.cat(states).transpose(0, 1).float().cpu().contiguous().numpy()
    return stacked


# --- audio tokens of a frame ---


def frame_windows(
    features: AudioFeatures, times_s: npt.ArrayLike, context: tuple[int, int] = (2, 2)
) -> Tensor:
    """Gather the audio tokens around each frame.

    A frame at time t lies at step round(50 t) and receives the steps from -2 left to 2 (right + 1) - 1 around
    it; outside the file its first or last step repeats. Tokens are time-major: layers x step + layer (parity
    pack, section 5).

    Args:
        features: of the whole file.
        times_s: (F,) display times of the frames.
        context: (left, right), in frames of 40 ms.

    Returns:
        float32 (F, 2 (left + right + 1) layers, dim): (F, 50, 384) for LatentSync.
    """
    windows = [features.rows(*span) for span in _step_spans(times_s, context)]
    return torch.from_numpy(np.stack(windows)).flatten(1, 2)


def gated_windows(
    features: AudioFeatures,
    times_s: npt.ArrayLike,
    gate: FloatArray | None,
    context: tuple[int, int] = (2, 2),
) -> Tensor:
    """Gather `frame_windows`, replaced by the tokens of silence where nobody speaks.

    Each frame is gate x tokens + (1 - gate) x silent tokens, where the latter are the encoder's output for
    silence at the same places of the same chunks. The gate's smooth ramps close and open the mouth without a
    jump.

    Args:
        gate: (F,) from `vad.VoiceActivity`; None leaves the tokens unchanged.

    Returns:
        As `frame_windows`.
    """
    tokens = frame_windows(features, times_s, context)
    if gate is None or np.all(gate == 1.0):
        return tokens
    spans = _step_spans(times_s, context)
    silent = torch.from_numpy(np.stack([features.silent_rows(*span) for span in spans])).flatten(1, 2)
    weight = torch.from_numpy(np.asarray(gate, dtype=np.float32))[:, None, None]
    return tokens * weight + silent * (1.0 - weight)


def _step_spans(times_s: npt.ArrayLike, context: tuple[int, int]) -> Iterator[tuple[int, int]]:
    left, right = context
    for centre in np.rint(np.asarray(times_s, dtype=np.float64) * STEPS_PER_S).astype(int).tolist():
        yield centre - 2 * left, centre + 2 * (right + 1)
