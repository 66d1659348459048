"""Log-mel equals openai-whisper's, from chunks and in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from whisper.audio import HOP_LENGTH, N_FFT, log_mel_spectrogram, mel_filters

from lipsync_engine.audio.features import BLOCK_MEL, Mel, MelWriter

torch.set_num_threads(1)

BLOCK = BLOCK_MEL * 160
LENGTHS = [320, 401, 1599, 16000, BLOCK - 1, BLOCK, BLOCK + 41, BLOCK + 200, BLOCK + 319, 2 * BLOCK + 12345]


def voice(n_samples: int, seed: int = 0) -> np.ndarray:
    """Harmonics that come and go over a little noise, int16."""
    rng = np.random.default_rng(seed)
    t = np.arange(n_samples) / 16000
    tone = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 12))
    sound = 5000 * tone * np.clip(np.sin(2 * np.pi * 1.7 * t), 0, 1) ** 2 + 30 * rng.standard_normal(
        n_samples
    )
    return np.clip(sound, -32768, 32767).astype(np.int16)


def write(path: Path, chunks: Iterable[np.ndarray]) -> Mel:
    writer = MelWriter(path)
    for chunk in chunks:
        writer.add(chunk)
    return writer.finish()


def whole(samples: np.ndarray) -> np.ndarray:
    """Whisper's definition on the whole file at once, in float64."""
    window = torch.hann_window(N_FFT).double()
    spectrum = torch.stft(
        torch.from_numpy(samples / 32768.0), N_FFT, HOP_LENGTH, window=window, return_complex=True
    )
    mel = mel_filters("cpu", 80).double() @ spectrum[:, :-1].abs() ** 2
    power = mel.clamp(min=1e-10).log10()
    return ((power.maximum(power.max() - 8) + 4) / 4).numpy()


def whispers(samples: np.ndarray) -> np.ndarray:
    return log_mel_spectrogram(torch.from_numpy(samples.astype(np.float32) / 32768)).numpy()


def test_equals_whisper_over_the_whole_file(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for n_samples in LENGTHS:
        with subtests.test(n_samples=n_samples):
            samples = voice(n_samples)
            mel = write(tmp_path / "mel", np.array_split(samples, 7))
            expected = whole(samples)
            assert mel.frames == n_samples // 160 == expected.shape[1]
            assert np.abs(mel.read(0, mel.frames) - expected).max() <= 1e-6
            rounding = np.abs(mel.read(0, mel.frames) - whispers(samples))  # whisper's own, in float32
            assert rounding.max() <= 2e-4
            assert rounding.mean() <= 1e-6


def test_peak_at_the_end_scales_the_start(tmp_path: Path) -> None:
    samples = voice(2 * BLOCK) // 50
    samples[-400:] = voice(400, seed=1) * 6
    mel = write(tmp_path / "mel", [samples])
    start = mel.read(0, 100)
    assert np.abs(start - whole(samples)[:, :100]).max() <= 1e-6
    assert np.abs(start - whole(samples[:-500])[:, :100]).max() > 0.1  # without that end it would differ


def test_chunks_do_not_change_a_bit(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for seed in range(4):
        with subtests.test(seed=seed):
            rng = np.random.default_rng(seed)
            samples = voice(2 * BLOCK + int(rng.integers(0, 5000)))
            largest = (300, 5000, 70000, 600000)[seed]
            cuts = np.cumsum(rng.integers(0, largest, size=4 * len(samples) // largest + 4))
            edges = [0, *cuts[cuts < len(samples)], len(samples)]
            at_once = write(tmp_path / "a", [samples])
            in_parts = write(tmp_path / "b", (samples[a:b] for a, b in pairwise(edges)))
            assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
            assert (at_once.frames, at_once.n_samples, at_once.peak) == (
                in_parts.frames,
                in_parts.n_samples,
                in_parts.peak,
            )


def test_single_samples_are_accepted(tmp_path: Path) -> None:
    samples = voice(1000)
    write(tmp_path / "a", [samples])
    write(tmp_path / "b", samples.reshape(-1, 1))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_reading_in_parts_equals_reading_at_once(tmp_path: Path) -> None:
    mel = write(tmp_path / "mel", [voice(50000)])
    parts = [mel.read(start, start + 97) for start in range(0, mel.frames, 97)]
    assert np.array_equal(np.concatenate(parts, axis=1), mel.read(0, mel.frames))
    assert mel.read(mel.frames, mel.frames + 10).shape == (80, 0)


def test_too_short_is_filled_with_silence_and_keeps_its_duration(
    subtests: pytest.Subtests, tmp_path: Path
) -> None:
    for n_samples in [0, 1, 199, 201, 319]:
        with subtests.test(n_samples=n_samples):
            samples = voice(n_samples, seed=3)
            mel = write(tmp_path / "mel", [samples])
            assert (mel.frames, mel.n_samples) == (2, n_samples)
            assert mel.duration_s == n_samples / 16000
            filled = np.concatenate([samples, np.zeros(320 - n_samples, dtype=np.int16)])
            assert np.abs(mel.read(0, 2) - whole(filled)).max() <= 1e-6


def test_silence_equals_whispers_silence(tmp_path: Path) -> None:
    """The value that fills the last piece is the value that a silent stretch of the same file has."""
    mel = write(tmp_path / "mel", [voice(16000), np.zeros(16000, dtype=np.int16)])
    assert np.all(mel.read(150, 190) == np.float32(mel.silence))
    quiet = write(tmp_path / "quiet", [np.zeros(16000, dtype=np.int16)])
    assert np.all(quiet.read(0, 100) == np.float32(quiet.silence))
    assert quiet.silence == -1.5


def test_only_int16_mono() -> None:
    writer = MelWriter(Path("/dev/null"))
    for wrong in (np.zeros(10, dtype=np.float32), np.zeros((10, 2), dtype=np.int16)):
        with pytest.raises(TypeError, match="int16"):
            writer.add(wrong)


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from whisper.model import AudioEncoder
from lipsync_engine.audio import features as audio, silero, vad
torch.set_num_threads(1)
torch.manual_seed(0)
folder, seconds = Path(sys.argv[1]), int(sys.argv[2])
encoder = AudioEncoder(80, 1500, 128, 4, 1).eval()
noise = (np.random.default_rng(0).standard_normal(16000) * 2000).astype(np.int16)
writer = audio.MelWriter(folder / "mel")
detector = vad.VoiceDetector(silero.load_silero())
for second in range(seconds):
    chunk = noise if second % 3 else noise // 50
    writer.add(chunk)
    detector.add(chunk)
mel = writer.finish()
for _ in audio.encode_mel(mel, encoder, folder / "features"):
    pass
features = audio.AudioFeatures.open(folder / "features")
assert features.duration_s == seconds
gate = detector.finish().gate(np.arange(25 * seconds) / 25)
for frame in range(0, 25 * seconds, 400):
    audio.gated_windows(features, np.arange(frame, frame + 16) / 25, np.full(16, 0.5, np.float32))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    """Log-mel, states, gate and windows: 12 minutes more would be 23 MB of log-mel and 37 MB of states."""
    peaks_mb = []
    for seconds in (60, 780):
        folder = tmp_path / str(seconds)
        folder.mkdir()
        command = [sys.executable, "-c", MEMORY, str(folder), str(seconds)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True, cwd=Path.cwd())
        peaks_mb.append(float(run.stdout))
    assert peaks_mb[1] - peaks_mb[0] < 25, peaks_mb
