"""Voice gate: closed in pauses, open in words without a dip, in silence, music and noise."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from lipsync_engine.audio import vad
from lipsync_engine.audio.silero import SileroVad, load_silero
from lipsync_engine.audio.vad import VoiceActivity, VoiceDetector, find_pauses
from tests.support.paths import DEMO_VOICE, SHARED

torch.set_num_threads(1)

RATE = 16000

Spans = list[tuple[float, float]]


@pytest.fixture(scope="module")
def network() -> SileroVad:
    return load_silero()


def read_wav(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768


def to_int16(samples: np.ndarray) -> np.ndarray:
    return np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16)


def detect(network: SileroVad, samples: np.ndarray) -> VoiceActivity:
    detector = VoiceDetector(network)
    detector.add(to_int16(samples))
    return detector.finish()


def times_in(spans: Spans, margin_s: float = 0.0) -> np.ndarray:
    """Times every 10 ms inside the spans, `margin_s` away from their ends."""
    return np.concatenate([np.arange(a + margin_s, b - margin_s, 0.01) for a, b in spans])


def envelope_db(samples: np.ndarray) -> np.ndarray:
    """(T,) level of 25 ms around every 10 ms."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(samples, 200), 400)[::160]
    return 10 * np.log10(np.square(frames).mean(axis=1) + 1e-12)


def with_pauses(recording: np.ndarray) -> tuple[np.ndarray, np.ndarray, Spans]:
    """Put silences of 1-2 s at soft places of a recording.

    Returns:
        Samples; times in words, by the envelope; pauses.
    """
    parts, pauses, at = [np.zeros(RATE)], [(0.0, 1.0)], 0
    level = envelope_db(recording)
    for k, goal_s in enumerate(np.arange(2.2, len(recording) / RATE - 1, 2.2)):
        low = round(goal_s * 100) - 60
        cut = (low + int(np.argmin(np.convolve(level, np.ones(7) / 7, "same")[low : low + 120]))) * 160
        parts += [recording[at:cut], np.zeros((2 + k % 3) * RATE // 2)]
        stop = sum(map(len, parts))
        pauses.append(((stop - len(parts[-1])) / RATE, stop / RATE))
        at = cut
    samples = np.concatenate([*parts, recording[at:]])
    level = envelope_db(samples)
    return samples, np.flatnonzero(level > np.percentile(level, 98) - 30) / 100, pauses


def drums(n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Kick, snare and hi-hat at 110 beats per minute."""
    samples = np.zeros(n_samples)
    for k, at in enumerate(range(0, n_samples, round(RATE * 30 / 110))):
        t = np.arange(min(n_samples - at, RATE // 3)) / RATE
        hit = 0.3 * rng.standard_normal(len(t)) * np.exp(-60 * t)
        if k % 4 == 0:
            hit += 1.5 * np.sin(2 * np.pi * (50 + 60 * np.exp(-30 * t)) * t) * np.exp(-12 * t)
        if k % 4 == 2:
            hit += 0.9 * rng.standard_normal(len(t)) * np.exp(-18 * t)
        samples[at : at + len(t)] += hit
    return samples


def background(kind: str, n_samples: int) -> np.ndarray:
    rng, t = np.random.default_rng(0), np.arange(n_samples) / RATE
    match kind:
        case "white":
            return rng.standard_normal(n_samples)
        case "pink":
            spectrum = np.fft.rfft(rng.standard_normal(n_samples))
            return np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)).clip(1)), n_samples)
        case "hum":
            return sum(np.sin(2 * np.pi * 50 * k * t + k) / k for k in range(1, 8))
        case "chord":
            return sum(np.sin(2 * np.pi * f * t + f) for f in (220.0, 277.2, 329.6, 440.0))
        case "drums":
            return drums(n_samples, rng)
    raise ValueError(kind)


def mix(voice: np.ndarray, kind: str, snr_db: float) -> np.ndarray:
    """Add a background `snr_db` below the voice."""
    noise = background(kind, len(voice))
    power = np.mean(np.square(voice[voice != 0]))
    return voice + noise * np.sqrt(power / np.mean(np.square(noise))) * 10 ** (-snr_db / 20)


RECORDINGS = {
    "demo": DEMO_VOICE,
    "speech_10s": SHARED / "media/speech_10s.wav",
    "short": SHARED / "parity/whisper_small_short.wav",
    "long": SHARED / "parity/whisper_small_long.wav",
}


@pytest.fixture(scope="module", params=RECORDINGS)
def recording(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray, Spans]:
    path = RECORDINGS[request.param]
    if not path.exists():
        pytest.skip(f"no {path}")
    return with_pauses(read_wav(path))


@pytest.mark.parametrize(
    ("kind", "snr_db"),
    [("none", 0), ("white", 20), ("pink", 20), ("hum", 20), ("chord", 20), ("drums", 15), ("drums", 0)],
)
def test_gate_is_open_in_words_and_closed_in_pauses(
    kind: str, snr_db: float, recording: tuple[np.ndarray, np.ndarray, Spans], network: SileroVad
) -> None:
    samples, words, pauses = recording
    activity = detect(network, samples if kind == "none" else mix(samples, kind, snr_db))
    # A soft start or end of a word may drown in the background.
    assert np.mean(activity.gate(words) >= 0.99) >= (1.0 if kind == "none" else 0.985)
    assert np.mean(activity.gate(times_in(pauses, 0.4)) == 0.0) >= (0.85 if kind == "drums" else 0.95)
    assert not activity.is_bypassed


@pytest.mark.parametrize("snr_db", [0, -6])
def test_noise_as_loud_as_the_voice_costs_no_more_than_silero_itself(
    snr_db: float, recording: tuple[np.ndarray, np.ndarray, Spans], network: SileroVad
) -> None:
    samples = mix(recording[0], "pink", snr_db)
    windows = to_int16(samples[: len(samples) // 512 * 512]).astype(np.float32) / 32768
    probabilities, _ = network(torch.from_numpy(np.concatenate([np.zeros(64, np.float32), windows])))
    words = recording[1][recording[1] < len(windows) / RATE]
    detected_by_silero = (probabilities.numpy() >= 0.5)[(words / vad.WINDOW_S).astype(int)]
    is_open = detect(network, samples).gate(words) >= 0.5
    assert np.mean(is_open) >= np.mean(detected_by_silero)
    assert np.mean(is_open) > 0.9


def test_quiet_voice_is_detected(recording: tuple[np.ndarray, np.ndarray, Spans], network: SileroVad) -> None:
    samples, words, pauses = recording
    activity = detect(network, samples * 10 ** (-35 / 20))
    assert np.mean(activity.gate(words) >= 0.5) > 0.99
    assert np.mean(activity.gate(times_in(pauses, 0.4)) == 0.0) > 0.95


@pytest.mark.parametrize("kind", ["zeros", "dither", "soft noise"])
def test_gate_stays_closed_in_silence(kind: str, network: SileroVad) -> None:
    rng, n = np.random.default_rng(0), 8 * RATE
    samples = {
        "zeros": np.zeros(n),
        "dither": rng.integers(-1, 2, n) / 32768,
        "soft noise": rng.standard_normal(n) * 0.003,
    }[kind]
    activity = detect(network, samples)
    assert not activity.is_bypassed
    assert not activity.gate(np.arange(0, 8.2, 0.04)).any()


@pytest.mark.parametrize("kind", ["white", "chord", "drums"])
def test_gate_is_bypassed_where_loud_audio_contains_no_speech(kind: str, network: SileroVad) -> None:
    samples = background(kind, 8 * RATE)
    activity = detect(network, 0.1 * samples / samples.std())
    assert activity.is_bypassed
    assert activity.gate(np.arange(0, 8, 0.04)).min() == 1.0


def test_voice_below_the_noise_bypasses_the_gate(network: SileroVad) -> None:
    voice = mix(read_wav(DEMO_VOICE), "pink", -18)
    assert detect(network, voice / np.abs(voice).max()).is_bypassed


def test_few_words_in_a_long_silence(network: SileroVad) -> None:
    word = read_wav(DEMO_VOICE)[:RATE]
    rustle = np.random.default_rng(0).standard_normal(RATE // 2) * 3e-5  # -90 dBFS
    samples = np.concatenate([np.zeros(100 * RATE), word, np.zeros(50 * RATE)])
    for second in range(2, 90, 8):
        samples[second * RATE : second * RATE + len(rustle)] = rustle
    activity = detect(network, samples)
    assert activity.gate(times_in([(100.0, 101.0)])).min() == 1.0
    assert activity.gate(times_in([(0.0, 99.7), (101.5, 150.9)])).max() == 0.0


def test_click_does_not_open_the_gate(network: SileroVad) -> None:
    samples = np.concatenate([read_wav(DEMO_VOICE)[: 3 * RATE], np.zeros(3 * RATE)])
    samples[5 * RATE : 5 * RATE + 8] = 0.9
    assert detect(network, samples).gate(np.arange(4.0, 6.0, 0.01)).max() == 0.0


@pytest.mark.parametrize(("pause_s", "is_closed"), [(0.12, False), (0.4, False), (0.9, True)])
def test_gate_closes_in_pauses_that_leave_time_to_move(
    pause_s: float, is_closed: bool, network: SileroVad
) -> None:
    words = read_wav(DEMO_VOICE)[:RATE]
    samples = np.concatenate([np.zeros(RATE), words, np.zeros(round(pause_s * RATE)), words])
    gate = detect(network, samples).gate(np.arange(1.2, 2.8 + pause_s, 0.01))
    assert gate.min() == (0.0 if is_closed else 1.0)


def test_gate_closes_after_the_end(network: SileroVad) -> None:
    samples = read_wav(DEMO_VOICE)[: 3 * RATE]
    gate = detect(network, samples).gate(np.array([2.9, 3.0, 3.5, 103.0]))
    assert gate.tolist() == [1.0, 1.0, 0.0, 0.0]


def test_pauses_are_where_the_gate_is_closed(network: SileroVad) -> None:
    silence = np.zeros(2 * RATE, np.int16)
    assert find_pauses([silence[:1000], silence[1000:]], network) == [(0.0, 2.0)]
    assert find_pauses([], network) == []


def test_gate_opens_early_closes_late_and_never_jumps() -> None:
    times = np.arange(0, 7, 0.001)
    gate = VoiceActivity(((3.0, 4.0),)).gate(times)
    opened, closed = times[gate == 1.0][[0, -1]]
    assert (opened, closed) == (pytest.approx(2.9, abs=0.002), pytest.approx(4.12, abs=0.002))
    first, last = times[gate > 0.0][[0, -1]]
    assert opened - first == pytest.approx(0.14, abs=0.005)
    assert last - closed == pytest.approx(0.14, abs=0.005)
    assert np.abs(np.diff(gate)).max() < 0.012  # of a ramp of 140 ms, per ms
    assert gate[0] == gate[-1] == 0.0


@pytest.mark.parametrize("chunk", [1, 511, 4096, 131072, 10**7])
def test_any_chunks_give_the_same_intervals(chunk: int, network: SileroVad) -> None:
    samples = to_int16(with_pauses(read_wav(DEMO_VOICE))[0])
    if chunk == 1:
        samples = samples[: RATE // 2]
    detector = VoiceDetector(network)
    for start in range(0, len(samples), chunk):
        detector.add(samples[start : start + chunk])
    whole = VoiceDetector(network)
    whole.add(samples)
    assert detector.finish() == whole.finish()


def test_no_samples_give_no_speech(network: SileroVad) -> None:
    assert VoiceDetector(network).finish() == VoiceActivity(())


def test_loudness_follows_the_tone() -> None:
    tone = (8000 * np.sin(np.arange(16000) * 0.3)).astype(np.int16)
    chunks = [tone[:700], tone[700:], np.zeros(16000, np.int16), tone[:300]]
    loudness = vad.loudness(chunks, 25)
    assert len(loudness) == 51
    assert loudness[:25].min() > 0.95
    assert not loudness[26:49].any()
    assert not vad.loudness([np.zeros(16000, np.int16)], 25).any()
