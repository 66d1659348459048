"""Hidden states equal Whisper's, also across chunk borders; the tokens of each frame."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from whisper.model import AudioEncoder

from lipsync_engine.audio import features as audio_features
from lipsync_engine.audio.features import BLEND_STEPS, CHUNK_STEPS, STRIDE_STEPS, AudioFeatures, Mel

torch.set_num_threads(1)

SECONDS = 75
SEAMS = (1250, 2250)
"""Middles of the fades, in steps: half of the shared 10 s after the starts of the second and third piece."""


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """Syllables of changing pitch and colour, int16."""
    rng = np.random.default_rng(seed)
    parts = []
    while sum(map(len, parts)) < seconds * 16000:
        t = np.arange(int(rng.integers(1500, 5000))) / 16000
        tone = sum(np.sin(2 * np.pi * rng.uniform(90, 250) * k * t) * rng.uniform(0, 1) for k in range(1, 15))
        parts += [tone * np.hanning(len(t)) * rng.uniform(300, 3000), np.zeros(int(rng.integers(200, 3000)))]
    noise = rng.standard_normal(int(seconds * 16000)) * 5
    return (np.concatenate(parts)[: len(noise)] + noise).astype(np.int16)


def mel_of(samples: np.ndarray, path: Path) -> Mel:
    writer = audio_features.MelWriter(path)
    writer.add(samples)
    return writer.finish()


def run(mel: Mel, encoder: AudioEncoder, path: Path, *, reference: bool = False) -> AudioFeatures:
    progress = list(audio_features.encode_mel(mel, encoder, path, reference=reference))
    assert progress == [(k + 1, len(progress)) for k in range(len(progress))]
    return AudioFeatures.open(path)


def states_of(encoder: AudioEncoder, piece: np.ndarray) -> np.ndarray:
    """(1500, layers, dim), watched from outside while whisper's own forward runs."""
    seen: list[torch.Tensor] = []
    hooks = [encoder.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))]
    hooks += [block.register_forward_hook(lambda _, __, made: seen.append(made)) for block in encoder.blocks]
    with torch.no_grad():
        encoder(torch.from_numpy(piece)[None])
    for hook in hooks:
        hook.remove()
    return torch.cat(seen).transpose(0, 1).numpy()


def filled(mel: Mel, first_step: int, value: float) -> np.ndarray:
    piece = mel.read(2 * first_step, 2 * (first_step + CHUNK_STEPS))
    return np.pad(piece, ((0, 0), (0, 2 * CHUNK_STEPS - piece.shape[1])), constant_values=value)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


@pytest.fixture(scope="module")
def encoder() -> AudioEncoder:
    torch.manual_seed(0)
    return AudioEncoder(80, CHUNK_STEPS, 32, 4, 3).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audio")


@pytest.fixture(scope="module")
def long_mel(folder: Path) -> Mel:
    return mel_of(sound(SECONDS), folder / "mel")


@pytest.fixture(scope="module")
def ours(long_mel: Mel, encoder: AudioEncoder, folder: Path) -> AudioFeatures:
    return run(long_mel, encoder, folder / "ours")


@pytest.fixture(scope="module")
def theirs(long_mel: Mel, encoder: AudioEncoder, folder: Path) -> AudioFeatures:
    return run(long_mel, encoder, folder / "theirs", reference=True)


# --- chunks ---


def test_reference_chunks_are_independent(
    theirs: AudioFeatures, long_mel: Mel, encoder: AudioEncoder
) -> None:
    expected = [states_of(encoder, filled(long_mel, start, 0.0)) for start in (0, 1500, 3000)]
    assert theirs.length == SECONDS * 50
    assert np.abs(theirs.rows(0, theirs.length) - np.concatenate(expected)[: theirs.length]).max() < 1e-5


def test_no_final_norm_and_n_layer_plus_one_states(
    encoder: AudioEncoder, theirs: AudioFeatures, long_mel: Mel
) -> None:
    with torch.no_grad():
        out = encoder(torch.from_numpy(filled(long_mel, 0, 0.0))[None])[0]
        last = torch.from_numpy(theirs.rows(0, 1500)[:, -1])
        assert (encoder.ln_post(last) - out).abs().max() < 1e-4
    assert (theirs.layers, theirs.dim) == (4, 32)


def test_up_to_30_s_is_one_chunk_padded_with_silence(encoder: AudioEncoder, tmp_path: Path) -> None:
    mel = mel_of(sound(12, seed=1), tmp_path / "mel")
    features = run(mel, encoder, tmp_path / "f")
    expected = states_of(encoder, filled(mel, 0, mel.silence))[: features.length]
    assert np.abs(features.rows(0, features.length) - expected).max() < 1e-5
    # As if the file itself went on in silence; the reference's filling is something else.
    longer = mel_of(
        np.concatenate([sound(12, seed=1), np.zeros(10 * 16000, dtype=np.int16)]), tmp_path / "mel2"
    )
    same = run(longer, encoder, tmp_path / "f2").rows(0, features.length - 2)
    reference = run(mel, encoder, tmp_path / "f3", reference=True).rows(0, features.length - 2)
    ours = features.rows(0, features.length - 2)
    assert cosine(ours, same).min() > 0.9999
    assert np.abs(ours - same).max() < 0.2 * np.abs(ours - reference).max()


def test_exactly_30_s_is_one_chunk(encoder: AudioEncoder, tmp_path: Path) -> None:
    mel = mel_of(sound(30, seed=2), tmp_path / "mel")
    assert list(audio_features.encode_mel(mel, encoder, tmp_path / "f")) == [(1, 1)]
    longer = mel_of(sound(30.02, seed=2), tmp_path / "mel")
    assert list(audio_features.encode_mel(longer, encoder, tmp_path / "f")) == [(1, 2), (2, 2)]


def frozen_fade(encoder: AudioEncoder, mel: Mel, piece: int) -> tuple[np.ndarray, np.ndarray]:
    """States of the pieces before and after fade number `piece`, at the same BLEND_STEPS + 2 moments."""
    begin = piece * STRIDE_STEPS
    at = SEAMS[piece - 1] - BLEND_STEPS // 2 - 1
    early = states_of(encoder, filled(mel, begin - STRIDE_STEPS, mel.silence))
    late = states_of(encoder, filled(mel, begin, mel.silence))
    count = BLEND_STEPS + 2
    before = at - begin + STRIDE_STEPS
    return early[before : before + count], late[at - begin : at - begin + count]


@pytest.mark.parametrize("piece", [1, 2])
def test_no_jump_across_a_cross_fade(
    piece: int, ours: AudioFeatures, theirs: AudioFeatures, long_mel: Mel, encoder: AudioEncoder
) -> None:
    """Across our seams no step turns by more than it would inside a piece; the reference's hard cut does."""
    early, late = frozen_fade(encoder, long_mel, piece)
    start = SEAMS[piece - 1] - BLEND_STEPS // 2 - 1
    rows = ours.rows(start, start + len(early))
    assert np.abs(rows[0] - early[0]).max() < 1e-5
    assert np.abs(rows[-1] - late[-1]).max() < 1e-5

    share = ((rows - early) * (late - early)).sum((1, 2)) / ((late - early) ** 2).sum((1, 2))
    assert np.all(np.diff(share) > 0)
    # Each step against itself, had the fade stood still one step before.
    still = early[1:] + share[:-1, None, None] * (late - early)[1:]
    assert cosine(rows[1:], still).min() > 0.999
    # Neighbours are as alike as they are inside either piece.
    inside = np.minimum(cosine(early[1:], early[:-1]), cosine(late[1:], late[:-1]))
    assert np.all(cosine(rows[1:], rows[:-1]) > inside - 0.01)

    cut = piece * CHUNK_STEPS
    if cut < theirs.length:  # the reference, for comparison, at its own cut
        hard = cosine(theirs.rows(cut, cut + 1), theirs.rows(cut - 1, cut))[0]
        around = cosine(ours.rows(cut, cut + 1), ours.rows(cut - 1, cut))[0]
        assert hard < around - 0.03


def test_30_s_mark_lies_inside_one_chunk(ours: AudioFeatures, long_mel: Mel, encoder: AudioEncoder) -> None:
    expected = states_of(encoder, filled(long_mel, STRIDE_STEPS, long_mel.silence))
    rows = ours.rows(1500 - 100, 1500 + 100)
    assert cosine(rows, expected[400:600]).min() > 0.9999


def test_every_step_has_4_s_of_true_audio_around_it() -> None:
    """Unless the file ends there."""
    for length in (1501, 1999, 2500, 2501, 3750, 10000):
        layout = audio_features._ChunkLayout(length, reference=False)
        steps = np.arange(length)
        chunk, weight = layout.blend_weights(steps)
        for used, source in ((weight > 0, chunk), (weight < 1, chunk - 1)):
            first = source[used] * STRIDE_STEPS
            assert np.all((steps[used] - first >= 200) | (first == 0))
            assert np.all((first + CHUNK_STEPS - 1 - steps[used] >= 200) | (first + CHUNK_STEPS >= length))
            assert np.all((source[used] >= 0) & (steps[used] < first + CHUNK_STEPS))


@pytest.mark.parametrize("reference", [False, True])
def test_silent_rows_are_the_states_of_a_silent_file(
    encoder: AudioEncoder, tmp_path: Path, reference: bool
) -> None:
    mel = mel_of(np.zeros(65 * 16000, dtype=np.int16), tmp_path / "mel")
    features = run(mel, encoder, tmp_path / "f", reference=reference)
    last = (
        3000 if reference else features.length
    )  # the reference's last piece ends in something else than silence
    assert np.abs(features.rows(0, last) - features.silent_rows(0, last)).max() < 1e-5


def test_half_precision(encoder: AudioEncoder, tmp_path: Path) -> None:
    mel = mel_of(sound(5, seed=4), tmp_path / "mel")
    full = run(mel, encoder, tmp_path / "f").rows(0, 250)
    half = pickle.loads(pickle.dumps(encoder)).half()
    rows = run(mel, half, tmp_path / "h").rows(0, 250)
    assert rows.dtype == np.float32
    assert 0 < np.abs(rows - full).max() < 0.05


def test_short_audio(encoder: AudioEncoder, tmp_path: Path) -> None:
    for n_samples in (1, 300, 320, 700):
        mel = mel_of(sound(1)[:n_samples], tmp_path / "mel")
        features = run(mel, encoder, tmp_path / "f")
        assert (features.length, features.n_samples) == (max(1, n_samples // 320), n_samples)
        assert torch.isfinite(audio_features.frame_windows(features, [0.0, 0.04])).all()


def test_another_process_reads_the_same_states(ours: AudioFeatures) -> None:
    code = (
        "import sys; from pathlib import Path; from lipsync_engine.audio.features import AudioFeatures\n"
        "f = AudioFeatures.open(Path(sys.argv[1]))\n"
        "sys.stdout.buffer.write(f.rows(1240, 1260).tobytes() + f.silent_rows(1240, 1260).tobytes())"
    )
    command = [sys.executable, "-c", code, str(ours.path)]
    out = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    assert out == ours.rows(1240, 1260).tobytes() + ours.silent_rows(1240, 1260).tobytes()
    assert ours.duration_s == SECONDS


# --- tokens of a frame ---


def test_windows_at_25_fps(ours: AudioFeatures) -> None:
    times = np.arange(ours.length // 2 + 2) / 25
    windows = audio_features.frame_windows(ours, times)
    assert windows.shape == (len(times), 10 * 4, 32)
    assert windows.dtype == torch.float32
    every = ours.rows(0, ours.length)
    for i in (0, 1, 2, 625, len(times) - 3, len(times) - 1):
        steps = np.clip(np.arange(2 * i - 4, 2 * i + 6), 0, ours.length - 1)
        assert np.array_equal(windows[i].numpy(), every[steps].reshape(40, 32)), i


def test_windows_at_other_rates_and_contexts(ours: AudioFeatures) -> None:
    for fps in (24, 30000 / 1001, 50):
        times = np.arange(40) / fps
        windows = audio_features.frame_windows(ours, times, (1, 3)).reshape(40, 10, 4, 32)
        for i, t in enumerate(times):
            steps = np.clip(np.arange(-2, 8) + round(50 * t), 0, None)
            assert np.array_equal(windows[i].numpy(), ours.rows(0, 200)[steps]), (fps, i)


def test_gate_fades_to_silence(ours: AudioFeatures) -> None:
    times = np.arange(610, 640) / 25  # across a seam
    heard = audio_features.frame_windows(ours, times)
    silent = torch.from_numpy(np.stack([ours.silent_rows(2 * i - 4, 2 * i + 6) for i in range(610, 640)]))
    silent = silent.flatten(1, 2)
    assert torch.equal(audio_features.gated_windows(ours, times, None), heard)
    assert torch.equal(audio_features.gated_windows(ours, times, np.ones(30, np.float32)), heard)
    gate = np.linspace(0, 1, 30, dtype=np.float32)
    mixed = audio_features.gated_windows(ours, times, gate)
    assert torch.equal(mixed[0], silent[0])
    share = torch.from_numpy(gate)[:, None, None]
    assert (mixed - (silent + share * (heard - silent))).abs().max() < 1e-5
    assert (heard - silent).abs().max() > 0.1


def test_header_is_written_last(encoder: AudioEncoder, long_mel: Mel, tmp_path: Path) -> None:
    steps = audio_features.encode_mel(long_mel, encoder, tmp_path / "f")
    next(steps)
    steps.close()
    with pytest.raises(FileNotFoundError):
        AudioFeatures.open(tmp_path / "f")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
