"""From samples to what the model hears: log-mel, Whisper hidden states, the tokens of each frame.

Everything streams: samples come in chunks, log-mel and hidden states lie on disk, so memory does not grow
with the length. It does not know containers, codecs or pictures.

Hidden states come at 50 Hz, n_layer + 1 of them per step: the input of the first block, then each block's
output, no final norm (parity pack, section 5). Whisper reads pieces of 30 s and knows the position of a step
in its piece, so the same sound gives different states in different pieces; with the pack's random weights
their cosine is about 0.6. LatentSync cuts the sound into independent pieces, which puts that jump into the
mouth every 30 s, and fills the last piece with a value that is not silence.

Our default reads overlapping pieces and fades from one to the next over 2 s, where both have 4 s more of true
sound on either side. A step then moves at most a 64th of the way between the pieces: its cosine with the
same step had the fade stood still is above 0.999. The last piece ends in silence. A sound of up to 30 s is
one piece, which differs from the reference in that silence only.
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

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

SAMPLES_PER_S: int = SAMPLE_RATE
MEL_PER_S = SAMPLES_PER_S // HOP_LENGTH
STEPS_PER_S = MEL_PER_S // 2
"""Hidden states per second: the encoder's second convolution halves the rate."""

PIECE_STEPS = 1500
"""What Whisper reads at once: 30 s."""

STRIDE_STEPS = 1000
"""Our pieces begin every 20 s, so neighbours share 10 s."""

BLEND_STEPS = 100
"""In the middle of what two pieces share, one fades into the other."""

BLOCK_MEL = 3000
"""Mel frames computed or read at a time. Blocks lie at fixed places: any chunks give the same bits."""

MIN_SAMPLES = 2 * HOP_LENGTH
"""One hidden state; a shorter sound is filled with silence up to this."""

REST_LOG_MEL = -10.0
"""log10 of the smallest power that Whisper's mel can show."""

RANGE_LOG_MEL = 8.0
"""Whisper shows nothing further than this below the peak of the whole file."""


# --- log-mel ---


@dataclass(frozen=True, slots=True)
class Mel:
    """Log-mel of a whole file, on disk.

    Attributes:
        path: float32 (frames, n_mels), log10 power, not yet limited and scaled.
        frames: T, 100 per second.
        n_mels: bands.
        n_samples: of the sound at 16 kHz, as given.
        peak: largest value of the whole file; Whisper's scale hangs on it.
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
        """The value of every band where this file is silent, on Whisper's scale."""
        return float(self._scaled(np.full(1, REST_LOG_MEL, dtype=np.float32))[0])

    def power(self, start: int, stop: int) -> FloatArray:
        """(n, n_mels) log10 power of frames [start, stop), clipped to what there is."""
        start, stop = max(0, start), min(self.frames, stop)
        count = max(0, stop - start) * self.n_mels
        rows = np.fromfile(self.path, np.float32, count=count, offset=4 * start * self.n_mels)
        return rows.reshape(-1, self.n_mels)

    def read(self, start: int, stop: int) -> FloatArray:
        """(n_mels, n) of frames [start, stop) on Whisper's scale, clipped to what there is.

        Equal to openai-whisper's `log_mel_spectrogram` of the whole file up to the rounding of the latter.
        """
        return self._scaled(self.power(start, stop).T)

    def _scaled(self, power: FloatArray) -> FloatArray:
        limited = np.maximum(power, np.float32(self.peak - RANGE_LOG_MEL))
        return (limited + np.float32(4.0)) / np.float32(4.0)


class MelWriter:
    """Takes samples in chunks of any length; leaves the log-mel of the whole.

    Frame t is centred on sample 160 t; the sound is mirrored at both of its ends, as `torch.stft` does it.
    Whisper's window and filters, but summed in float64: under loud partials, float32 loses up to 5e-5 of a
    soft band, and two float32 transforms differ by more than one differs from the truth.

    Args:
        path: file to write.
        n_mels: bands that the encoder wants, 80 or 128.
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
        """The samples that follow the last ones: int16 (n,), mono, 16 kHz."""
        if samples.dtype != np.int16 or samples.ndim != 1:
            raise TypeError(f"samples must be int16 (n,), not {samples.dtype} {samples.shape}")
        self._n_samples += len(samples)
        self._fill(samples)

    def finish(self) -> Mel:
        """No more samples."""
        n_samples = self._n_samples
        if n_samples < MIN_SAMPLES:
            self._fill(np.zeros(MIN_SAMPLES - n_samples, dtype=np.int16))
        # Whisper drops the frame that is centred on the end.
        if left := max(n_samples, MIN_SAMPLES) // HOP_LENGTH - self._frames:
            sound = self._buffer[: self._filled]
            mirrored = np.concatenate([sound, sound[-2 : -2 - N_FFT // 2 : -1]])
            self._write(mirrored[: (left - 1) * HOP_LENGTH + N_FFT])
        return Mel(self._path, self._frames, self._n_mels, n_samples, self._peak)

    def _fill(self, samples: npt.NDArray[np.int16]) -> None:
        at = 0
        while at < len(samples):
            taken = samples[at : at + len(self._buffer) - self._filled]
            self._buffer[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            at += len(taken)
            if self._filled == len(self._buffer):
                self._write(self._buffer)
                rest = self._buffer[BLOCK_MEL * HOP_LENGTH :]
                self._buffer[: len(rest)] = rest
                self._filled = len(rest)

    def _write(self, sound: npt.NDArray[np.int16]) -> None:
        if self._frames == 0:
            half = N_FFT // 2
            sound[:half] = sound[2 * half : half : -1]
        waveform = torch.from_numpy(sound / 32768.0)
        spectrum = torch.stft(
            waveform, N_FFT, HOP_LENGTH, window=self._window, center=False, return_complex=True
        )
        mel = torch.clamp(self._filters @ spectrum.abs().square(), min=10.0**REST_LOG_MEL).log10().float()
        with self._path.open("ab") as file:
            file.write(mel.T.contiguous().numpy().tobytes())
        self._peak = max(self._peak, float(mel.max()))
        self._frames += mel.shape[1]


# --- hidden states ---


@dataclass(frozen=True, slots=True)
class _Pieces:
    """How a file's steps are covered by pieces, and what each step is blended from."""

    length: int
    reference: bool

    @property
    def stride(self) -> int:
        return PIECE_STEPS if self.reference else STRIDE_STEPS

    @property
    def blend(self) -> int:
        return 0 if self.reference else BLEND_STEPS

    @property
    def lead(self) -> int:
        """Steps at the start of a piece that the piece before says."""
        return (PIECE_STEPS - self.stride - self.blend) // 2

    @property
    def count(self) -> int:
        return 1 + max(0, -(-(self.length - PIECE_STEPS) // self.stride))

    def span(self, piece: int) -> tuple[int, int]:
        """[start, stop): the steps that are new with this piece, its fade from the one before included."""
        start = 0 if piece == 0 else piece * self.stride + self.lead
        stop = self.length if piece == self.count - 1 else (piece + 1) * self.stride + self.lead
        return start, stop

    def newest(self, steps: IntArray) -> tuple[IntArray, FloatArray]:
        """For each step the last piece that says it, and that piece's weight; the one before has the rest."""
        piece = np.clip((steps - self.lead) // self.stride, 0, self.count - 1)
        into = steps - piece * self.stride - self.lead + 0.5
        rise = np.ones(len(steps))
        fading = (piece > 0) & (into < self.blend)
        rise[fading] = 0.5 - 0.5 * np.cos(np.pi * into[fading] / self.blend)
        return piece, rise.astype(np.float32)


@dataclass(frozen=True, slots=True)
class AudioFeatures:
    """Hidden states of a whole file, on disk, and those of silence at the same places in a piece.

    Attributes:
        path: float32 (length, layers, dim). Next to it `.json` with the other fields, written last, and
            `.silence` with one silent piece.
        length: L, 50 per second.
        layers, dim: states per step, and their width.
        n_samples: of the sound at 16 kHz.
        reference: cut into independent pieces as LatentSync does it.
    """

    path: Path
    length: int
    layers: int
    dim: int
    n_samples: int
    reference: bool

    @classmethod
    def open(cls, path: Path) -> AudioFeatures:
        """What `encode` left at `path`, in this or another process."""
        return cls(path, **json.loads(_header_path(path).read_text()))

    @property
    def duration_s(self) -> float:
        return self.n_samples / SAMPLES_PER_S

    def rows(self, start: int, stop: int) -> FloatArray:
        """float32 (stop - start, layers, dim); steps outside the file repeat its first or last."""
        return self._gather(self.path, self.length, self._inside(start, stop))

    def silent_rows(self, start: int, stop: int) -> FloatArray:
        """The same steps had nothing sounded: the encoder knows positions, so silence differs by position."""
        steps = self._inside(start, stop)
        pieces = _Pieces(self.length, self.reference)
        piece, weight = pieces.newest(steps)
        at = steps - piece * pieces.stride
        silence = _silence_path(self.path)
        late = self._gather(silence, PIECE_STEPS, at)
        if np.all(weight == 1.0):
            return late
        early = self._gather(silence, PIECE_STEPS, np.minimum(at + pieces.stride, PIECE_STEPS - 1))
        return _blended(early, late, weight)

    def _inside(self, start: int, stop: int) -> IntArray:
        return np.clip(np.arange(start, stop), 0, self.length - 1)

    def _gather(self, path: Path, length: int, steps: IntArray) -> FloatArray:
        # Mapped for this one look only: pages of a long file do not pile up in the resident memory.
        return np.asarray(np.memmap(path, np.float32, "r", shape=(length, self.layers, self.dim))[steps])


def encode(
    mel: Mel, encoder: AudioEncoder, path: Path, *, reference: bool = False
) -> Generator[tuple[int, int], None, AudioFeatures]:
    """Run Whisper's encoder over a file of any length in bounded memory.

    Args:
        mel: of the file.
        encoder: openai-whisper's, on any device, in any dtype; its norms are put into float32, in which
            Whisper computes them.
        path: where the states go.
        reference: independent pieces, the last filled with 0.0, as LatentSync does it.

    Yields:
        (pieces done, pieces in all).

    Returns:
        The states, readable from `path` by any process.
    """
    for module in encoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.float()
    pieces = _Pieces(mel.frames // 2, reference)
    fill = 0.0 if reference else mel.silence
    fading: FloatArray | None = None  # what the piece before says about the start of this one's span
    with path.open("wb") as file:
        for piece in range(pieces.count):
            begin = piece * pieces.stride
            states = _hidden_states(encoder, mel.read(2 * begin, 2 * (begin + PIECE_STEPS)), fill)
            start, stop = pieces.span(piece)
            said = states[start - begin : stop - begin]
            if fading is not None:
                _, weight = pieces.newest(np.arange(start, start + len(fading)))
                said[: len(fading)] = _blended(fading, said[: len(fading)], weight)
            fading = states[stop - begin : stop - begin + pieces.blend].copy()
            file.write(said.tobytes())
            yield piece + 1, pieces.count
    silent = np.full((mel.n_mels, 2 * PIECE_STEPS), mel.silence, dtype=np.float32)
    states = _hidden_states(encoder, silent, fill)
    _silence_path(path).write_bytes(states.tobytes())
    _, layers, dim = states.shape
    features = AudioFeatures(path, pieces.length, layers, dim, mel.n_samples, reference)
    header = {field.name: getattr(features, field.name) for field in dataclasses.fields(features)[1:]}
    _header_path(path).write_text(json.dumps(header))
    return features


def _header_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _silence_path(path: Path) -> Path:
    return path.with_name(path.name + ".silence")


def _blended(early: FloatArray, late: FloatArray, weight: FloatArray) -> FloatArray:
    share = weight[:, None, None]
    mixed: FloatArray = late * share + early * (np.float32(1.0) - share)
    return mixed


@torch.inference_mode()
def _hidden_states(encoder: AudioEncoder, mel: FloatArray, fill: float) -> FloatArray:
    """(n_mels, up to 3000) → float32 (1500, n_layer + 1, n_state); what is missing on the right is `fill`."""
    weight = encoder.conv1.weight
    piece = np.pad(mel, ((0, 0), (0, 2 * PIECE_STEPS - mel.shape[1])), constant_values=fill)
    x = torch.from_numpy(piece)[None].to(weight.device, weight.dtype)
    x = functional.gelu(encoder.conv1(x))
    x = functional.gelu(encoder.conv2(x)).transpose(1, 2)
    x = (x + encoder.positional_embedding).to(x.dtype)
    states = [x]
    for block in encoder.blocks:
        states.append(block(states[-1]))
    stacked: FloatArray = torch.cat(states).transpose(0, 1).float().cpu().contiguous().numpy()
    return stacked


# --- what a frame hears ---


def frame_windows(
    features: AudioFeatures, times_s: npt.ArrayLike, context: tuple[int, int] = (2, 2)
) -> Tensor:
    """Audio tokens around each frame.

    A frame at time t stands on step round(50 t) and hears steps -2 left … 2 (right + 1) - 1 around it; steps
    outside the file repeat its first or last. Tokens are time-major: layers x step + layer (parity pack,
    section 5).

    Args:
        features: of the whole file.
        times_s: (F,) when the frames are shown.
        context: (left, right), in frames of 40 ms.

    Returns:
        float32 (F, 2 (left + right + 1) layers, dim): (F, 50, 384) for LatentSync.
    """
    windows = [features.rows(*span) for span in _spans(times_s, context)]
    return torch.from_numpy(np.stack(windows)).flatten(1, 2)


def conditioned_windows(
    features: AudioFeatures,
    times_s: npt.ArrayLike,
    gate: FloatArray | None,
    context: tuple[int, int] = (2, 2),
) -> Tensor:
    """`frame_windows` that turn into the tokens of silence where nobody speaks.

    Frame by frame gate x heard + (1 - gate) x silent, where "silent" is what the encoder says about silence
    at the same places in the same pieces. The gate's smooth ramps close and open the mouth without a jump.

    Args:
        gate: (F,) from `speech.activity`; None leaves the tokens as they are.

    Returns:
        As `frame_windows`.
    """
    heard = frame_windows(features, times_s, context)
    if gate is None or np.all(gate == 1.0):
        return heard
    silent = torch.from_numpy(np.stack([features.silent_rows(*span) for span in _spans(times_s, context)]))
    share = torch.from_numpy(np.asarray(gate, dtype=np.float32))[:, None, None]
    return heard * share + silent.flatten(1, 2) * (1.0 - share)


def _spans(times_s: npt.ArrayLike, context: tuple[int, int]) -> Iterator[tuple[int, int]]:
    left, right = context
    for centre in np.rint(np.asarray(times_s, dtype=np.float64) * STEPS_PER_S).astype(int).tolist():
        yield centre - 2 * left, centre + 2 * (right + 1)
