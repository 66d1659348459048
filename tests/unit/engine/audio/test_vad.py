"""Voice gate: closed in silence, open in words without a dip, smooth, early, closed in steady noise."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from lipsync_engine.audio import vad
from lipsync_engine.audio.features import MelWriter
from tests.support.paths import SHARED

torch.set_num_threads(1)

RATE = 16000


Spans = list[tuple[float, float]]


def talk(rng: np.random.Generator) -> tuple[np.ndarray, Spans, Spans]:
    """Words of voiced syllables, soft hisses and closures between pauses of 1-2 s: sound, words, pauses."""
    parts: list[np.ndarray] = [np.zeros(RATE)]
    words, pauses = [], [(0.0, 1.0)]
    for _ in range(9):
        start = sum(map(len, parts)) / RATE
        for _ in range(int(rng.integers(2, 6))):
            t = np.arange(int(rng.uniform(0.08, 0.25) * RATE)) / RATE
            pitch = rng.uniform(90, 220) * (1 + 0.1 * np.sin(2 * np.pi * 3 * t))
            voiced = sum(
                np.sin(2 * np.pi * k * np.cumsum(pitch) / RATE) / (1 + abs(k - rng.integers(1, 9)))
                for k in range(1, 20)
            )
            hiss = np.diff(rng.standard_normal(int(rng.uniform(0.05, 0.12) * RATE) + 1)) * 0.05
            parts += [voiced * np.hanning(len(t)) ** 0.5, hiss, np.zeros(int(rng.uniform(0.02, 0.09) * RATE))]
        parts.pop()
        stop = sum(map(len, parts)) / RATE
        pause = rng.uniform(1.0, 2.0)
        words.append((start, stop))
        pauses.append((stop, stop + pause))
        parts.append(np.zeros(round(pause * RATE)))
    return np.concatenate(parts) * 0.05, words, pauses


def noises(n_samples: int, power: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Steady sounds 20 dB below the speech."""
    t = np.arange(n_samples) / RATE
    white = rng.standard_normal(n_samples)
    tilt = np.fft.rfft(rng.standard_normal(n_samples)) / np.sqrt(np.arange(n_samples // 2 + 1).clip(1))
    kinds = {
        "white": white,
        "pink": np.fft.irfft(tilt, n_samples),
        "hum": sum(np.sin(2 * np.pi * 50 * k * t + k) / k for k in range(1, 8)),
        "chord": sum(np.sin(2 * np.pi * f * t + f) for f in (220.0, 277.2, 329.6, 440.0)),
    }
    return {name: 0.1 * np.sqrt(power) * noise / noise.std() for name, noise in kinds.items()}


def gate_of(sound: np.ndarray, path: Path, times_s: np.ndarray) -> np.ndarray:
    writer = MelWriter(path)
    writer.add(np.clip(np.round(sound * 32768), -32768, 32767).astype(np.int16))
    return vad.voice_activity(writer.finish(), times_s)


def inside(spans: Spans, margin_s: float = 0.0) -> np.ndarray:
    """Moments every 10 ms inside the spans, `margin_s` away from their ends."""
    return np.concatenate([np.arange(a + margin_s, b - margin_s, 0.01) for a, b in spans])


def check(sound: np.ndarray, words: np.ndarray, pauses: Spans, path: Path, open_share: float = 1.0) -> None:
    """`words`: moments in words, of which at least `open_share` find the gate open."""
    assert np.mean(gate_of(sound, path, inside(pauses, 0.4)) == 0.0) >= 0.95
    assert np.mean(gate_of(sound, path, words) >= 0.99) >= open_share


def test_closed_in_pauses_and_open_in_words(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for noise in ["none", "white", "pink", "hum", "chord"]:
        with subtests.test(noise=noise):
            rng = np.random.default_rng(0)
            sound, words, pauses = talk(rng)
            if noise != "none":
                power = np.mean(np.square(sound[sound != 0]))
                sound = sound + noises(len(sound), power, rng)[noise]
            check(sound, inside(words), pauses, tmp_path / "mel")


RECORDINGS = ["media/speech_10s.wav", "parity/whisper_small_short.wav", "parity/whisper_small_long.wav"]


def test_recordings_with_pauses_put_in(subtests: pytest.Subtests, tmp_path: Path) -> None:
    """Silences of 1-2 s at soft places of real recordings; words by the clean sound's own envelope."""
    for noise in ["none", "white", "pink", "hum", "chord"]:
        for name in RECORDINGS:
            with subtests.test(noise=noise, name=name):
                if not (SHARED / name).exists():
                    pytest.skip(f"no {SHARED / name}")
                with wave.open(str(SHARED / name)) as file:
                    recording = np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768
                parts, pauses, at = [], [], 0
                level = envelope_db(recording)
                for k, goal_s in enumerate(np.arange(2.2, len(recording) / RATE - 1, 2.2)):
                    low = round(goal_s * 100) - 60
                    cut = (
                        low + int(np.argmin(np.convolve(level, np.ones(7) / 7, "same")[low : low + 120]))
                    ) * 160
                    parts += [recording[at:cut], np.zeros((2 + k % 3) * RATE // 2)]
                    stop = sum(map(len, parts))
                    pauses.append(((stop - len(parts[-1])) / RATE, stop / RATE))
                    at = cut
                sound = np.concatenate([*parts, recording[at:]])
                level = envelope_db(sound)
                words = np.flatnonzero(level > np.percentile(level, 98) - 38) / 100
                if noise != "none":
                    power = np.mean(np.square(sound[sound != 0]))
                    sound = sound + noises(len(sound), power, np.random.default_rng(0))[noise]
                # A soft end of a word may drown in the noise.
                check(sound, words, pauses, tmp_path / "mel", open_share=1.0 if noise == "none" else 0.995)


def envelope_db(sound: np.ndarray) -> np.ndarray:
    """(T,) level of 25 ms around every 10 ms."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(sound, 200), 400)[::160]
    return 10 * np.log10(np.square(frames).mean(axis=1) + 1e-12)


def test_opens_before_the_sound_closes_after_it_and_never_jumps(tmp_path: Path) -> None:
    tone = 0.2 * np.sin(np.cumsum(2 * np.pi * (200 + 80 * np.sin(np.arange(RATE) / 800)) / RATE))
    sound = np.concatenate([np.zeros(3 * RATE), tone, np.zeros(3 * RATE)])
    times = np.arange(0, 7, 0.001)
    gate = gate_of(sound, tmp_path / "mel", times)
    opened, closed = times[gate == 1.0][[0, -1]]
    assert 2.86 <= opened <= 2.92
    assert 4.08 <= closed <= 4.16
    assert np.abs(np.diff(gate)).max() < 0.012  # of a ramp of 140 ms, per ms
    first, last = times[gate > 0.0][[0, -1]]
    assert opened - first == pytest.approx(0.14, abs=0.005)
    assert last - closed == pytest.approx(0.14, abs=0.005)
    assert gate[0] == gate[-1] == 0.0


def test_a_short_gap_is_no_rest_and_a_longer_one_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for gap_s, rests in ((0.12, False), (0.4, False), (0.7, True)):
        word = rng.standard_normal(RATE // 2) * 0.1 * np.hanning(RATE // 2) ** 0.2
        sound = np.concatenate([np.zeros(RATE), word, np.zeros(round(gap_s * RATE)), word, np.zeros(RATE)])
        gate = gate_of(sound, tmp_path / "mel", np.arange(1.0, 2.0 + gap_s, 0.01))
        assert gate.min() == (0.0 if rests else 1.0), gap_s


def test_nobody_speaks(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for name in ["zeros", "dither", "soft noise", "loud noise", "tone"]:
        with subtests.test(name=name):
            rng = np.random.default_rng(0)
            n = 8 * RATE
            sound = {
                "zeros": np.zeros(n),
                "dither": rng.integers(-1, 2, n) / 32768,
                "soft noise": rng.standard_normal(n) * 0.003,
                "loud noise": rng.standard_normal(n) * 0.1,
                "tone": 0.3 * np.sin(np.arange(n) * 0.3),
            }[name]
            assert not gate_of(sound, tmp_path / "mel", np.arange(0, 8.2, 0.04)).any()


def test_a_few_words_in_a_long_silence(tmp_path: Path) -> None:
    """How loud the voice is, is judged where something is heard."""
    sound, words, _ = talk(np.random.default_rng(1))
    short = sound[: round(words[0][1] * RATE)]
    long = np.concatenate([np.zeros(100 * RATE), short, np.zeros(50 * RATE)])
    rustle = np.random.default_rng(0).standard_normal(RATE // 2) * 3e-5  # -90 dBFS
    for second in range(2, 90, 8):
        long[second * RATE : second * RATE + len(rustle)] = rustle
    said = inside([(100 + words[0][0], 100 + words[0][1])])
    check(long, said, [(0.0, 101.0), (100 + words[0][1], 150.0)], tmp_path / "mel")


def test_soft_speech_is_speech(tmp_path: Path) -> None:
    sound, words, pauses = talk(np.random.default_rng(3))
    check(sound * 0.03, inside(words), pauses, tmp_path / "mel")


def test_a_click_does_not_open_the_mouth(tmp_path: Path) -> None:
    sound, words, _ = talk(np.random.default_rng(4))
    sound = np.concatenate([sound, np.zeros(2 * RATE)])
    at = len(sound) - RATE
    sound[at : at + 8] = 0.9
    end = len(sound) / RATE
    assert not gate_of(sound, tmp_path / "mel", np.arange(end - 1.5, end, 0.01)).any()
    assert gate_of(sound, tmp_path / "mel", inside(words)).min() == 1.0


def test_after_the_end_the_mouth_rests(tmp_path: Path) -> None:
    """Speech up to the last sample: still open there, at rest soon after."""
    sound, words, _ = talk(np.random.default_rng(5))
    end = words[-1][1]
    gate = gate_of(
        sound[: round(end * RATE)], tmp_path / "mel", np.array([end - 0.1, end, end + 0.5, end + 100])
    )
    assert gate.tolist() == [1.0, 1.0, 0.0, 0.0]


def test_loudness_follows_the_tone() -> None:
    tone = (8000 * np.sin(np.arange(16000) * 0.3)).astype(np.int16)
    chunks = [tone[:700], tone[700:], np.zeros(16000, np.int16), tone[:300]]
    loudness = vad.loudness(chunks, 25)
    assert len(loudness) == 51
    assert loudness[:25].min() > 0.95
    assert not loudness[26:49].any()
    assert not vad.loudness([np.zeros(16000, np.int16)], 25).any()
