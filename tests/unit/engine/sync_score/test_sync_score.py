"""The sync score: what SyncNet hears and sees, the published file's form, right told from wrong."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from lipsync_engine.errors import ErrorCode, FaceError, WeightsError
from lipsync_engine.faces import align
from lipsync_engine.faces.registry import load_detector
from lipsync_engine.sync_score import SyncScorer, installed_scorer, load_scorer, score_film
from lipsync_engine.sync_score.cepstrum import cepstrum
from lipsync_engine.sync_score.crop import BEYOND, cut, squares
from lipsync_engine.sync_score.measure import Stretch, judge
from lipsync_engine.sync_score.network import SyncConfig, SyncNet, config_json, load_sync_net
from lipsync_engine.sync_score.video import find_faces
from lipsync_engine.sync_score.windows import at_25_fps, longest_run, with_sound
from lipsync_engine.weights import WeightsStore
from tests.support import presenter, speech
from tests.support.mouth_score import Truth
from tests.support.paths import DEMO

CPU = torch.device("cpu")
SMALL = SyncConfig(96, (2, 3, 4, 4, 4, 6), (2, 3, 4, 4, 4, 6), 8, 5)


# --- the network and its files ---


def test_a_file_of_the_published_form_loads(tmp_path: Path) -> None:
    """`syncnet_v2.model`: a state dict in torch's old format, without batch counters. The published file has
    54,573,114 bytes, all but 12 KB of them these 88 tensors.
    """
    torch.manual_seed(3)
    net = SyncNet(SyncConfig()).eval()
    state = {key: value for key, value in net.state_dict().items() if "num_batches" not in key}
    path = tmp_path / "syncnet_v2.model"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert len(state) == 88
    assert abs(path.stat().st_size - 54_573_114) < 1000
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert shapes["netcnnaud.18.weight"] == (512, 256, 5, 4)
    assert shapes["netcnnlip.0.weight"] == (96, 3, 5, 7, 7)
    assert shapes["netcnnlip.18.weight"] == (512, 256, 1, 6, 6)
    assert shapes["netfclip.3.weight"] == shapes["netfcaud.3.weight"] == (1024, 512)
    loaded = load_sync_net({"sync": path})
    sound = torch.randn(2, 1, 13, 20)
    with torch.inference_mode():
        assert torch.equal(loaded.hear(sound), net.hear(sound))
        assert loaded.see(torch.zeros(1, 3, 6, 224, 224)).shape == (1, 2, 1024)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    config, path = tmp_path / "sync_config.json", tmp_path / "sync.model"
    config.write_text(config_json(SMALL))
    state = SyncNet(SMALL).state_dict()
    torch.save({**state, "netfclip.9.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"unexpected \(netfclip\.9\.weight\)"):
        load_sync_net({"sync": path, "sync_config": config})
    del state["netfcaud.3.bias"]
    torch.save(state, path)
    with pytest.raises(WeightsError, match=r"missing \(netfcaud\.3\.bias\)"):
        load_sync_net({"sync": path, "sync_config": config})
    config.write_text('{"side": "wide"}')
    with pytest.raises(WeightsError, match=r"sync_config\.json does not describe a SyncNet"):
        load_sync_net({"sync": path, "sync_config": config})
    with pytest.raises(WeightsError, match="gives no sync score: use one of syncnet-v2, sync-tiny"):
        load_scorer("yunet", WeightsStore(), CPU)


def test_scores_are_for_the_faces_that_a_detector_finds(tmp_path: Path) -> None:
    store = WeightsStore(tmp_path)
    drawn = installed_scorer("drawn", store, CPU)
    assert drawn is not None
    assert drawn.name == "sync-tiny"
    assert installed_scorer("yunet", store, CPU) is None
    assert installed_scorer("landmarks106:x.onnx", store, CPU) is None


# --- what it hears and sees ---


def test_it_hears_what_python_speech_features_gives() -> None:
    """Rows 0 and 7 of version 0.6's mfcc() of this sound."""
    t = np.arange(3200)
    samples = np.round(8000 * np.sin(0.02 * t + 1e-5 * t * t)).astype(np.int16)
    first = [16.0883, 22.7133, 16.5502, 15.4213, 15.3433, 14.7216, 14.1287, 12.4951, 10.7437, 8.8758]
    eighth = [16.758, 22.9995, 16.4004, 14.4882, 13.2897, 11.059, 9.3727, 6.0329, 3.2391, -0.0885]
    whole = cepstrum(samples, 0, 18)
    np.testing.assert_allclose(whole[:10, 0], first, atol=1e-4)
    np.testing.assert_allclose(whole[:10, 7], eighth, atol=1e-4)
    np.testing.assert_allclose(cepstrum(samples, 7, 5), whole[:, 7:12], atol=1e-5)


def test_the_square_follows_the_face_and_ignores_a_jump() -> None:
    face = np.array([[80.0, 60.0], [120.0, 60.0], [100.0, 80.0]], np.float32)
    points = np.repeat(face[None], 30, axis=0)
    points[10] += 25
    places = squares(points)
    assert np.ptp(places, axis=0).max() == 0
    x, _, side = places[0]
    assert x + side / 2 == pytest.approx(100)
    assert 85 < side < 150
    assert squares(2 * points)[0] == pytest.approx(2 * places[0], rel=1e-5)
    picture = np.zeros((100, 100, 3), np.uint8)
    picture[20:40, 20:40] = 200
    assert (cut(picture, np.array([20, 20, 20], np.float32), 8) == 200).all()
    beyond = cut(picture, np.array([-50, -50, 60], np.float32), 30)
    assert (beyond[:24, :24] == BEYOND).all()
    assert (cut(picture, np.array([500, 500, 60], np.float32), 30) == BEYOND).all()


def test_a_plan_and_a_detector_cut_alike() -> None:
    """A plan keeps matrices; what they say of the points gives the same squares, whatever face it was."""
    face = np.array([[80.0, 60.0], [122.0, 66.0], [97.0, 98.0]], np.float32)
    matrix = align.solve_matrix(face, 64)
    template = np.column_stack([align.template_points(64), np.ones(3)])
    back = template @ cv2.invertAffineTransform(matrix).T
    assert np.abs(back - face).max() > 3
    np.testing.assert_allclose(squares(back[None].astype(np.float32)), squares(face[None]), atol=0.05)


def test_frames_are_taken_25_times_a_second() -> None:
    def shown(rate: Fraction, start_s: float) -> list[int]:
        return list(at_25_fps(((n / float(rate), n) for n in range(20)), rate, start_s))

    assert shown(Fraction(25), 0.2) == list(range(5, 20))
    assert shown(Fraction(50), 0.0) == list(range(0, 20, 2))
    assert shown(Fraction(10), 0.0)[:8] == [0, 0, 1, 1, 2, 2, 2, 3]
    usable = np.array([0, 1, 1, 1, 1, 0, 1, 1, 1, 0], bool)
    assert longest_run(usable, np.zeros(10, np.int64)) == (1, 5)
    assert longest_run(usable, np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 1])) == (6, 9)
    assert longest_run(np.zeros(4, bool), np.zeros(4, np.int64)) == (0, 0)


# --- the measure ---


def test_the_offset_is_where_distances_are_least() -> None:
    distances = np.full((50, 31), 8.0, np.float32)
    distances[:, 15 + 4] = 3.0
    distances[:5, 0] = np.nan
    found = judge(distances, "x")
    assert (found.offset_frames, found.confidence, found.distance, found.frames) == (4, 5.0, 3.0, 50)


def test_each_face_meets_each_sound_around_it() -> None:
    """Distances of a stretch equal those of every clip alone; where there is no sound there is none."""
    torch.manual_seed(1)
    scorer = SyncScorer(SyncNet(SMALL).eval(), "x", CPU)
    rng = np.random.default_rng(0)
    faces = rng.integers(0, 255, (40, 96, 96, 3), np.uint8)
    samples = rng.integers(-9000, 9000, 640 * 60, np.int16)
    table = scorer.distances(Stretch(faces, samples, lead=640 * 10))
    assert table.shape == (36, 31)
    net = scorer._net
    for clip, late in ((0, 3), (20, -9), (35, 15), (33, 0)):
        one = torch.from_numpy(faces[clip : clip + 5, :, :, ::-1].copy()).permute(3, 0, 1, 2)[None].float()
        at = 4 * (10 + clip - late)
        with torch.inference_mode():
            voice = net.hear(torch.from_numpy(cepstrum(samples, at, 20))[None, None])
            alone = torch.nn.functional.pairwise_distance(net.see(one)[0], voice).item()
        assert table[clip, late + 15] == pytest.approx(alone, rel=1e-3)
    assert np.isnan(table[0, 15 + 11 :]).all()  # before the sound begins
    assert np.isfinite(table[0, : 15 + 11]).all()
    assert np.isnan(table[35, :5]).any()  # after it has ended


@pytest.fixture(scope="module")
def tiny() -> SyncScorer:
    return load_scorer("sync-tiny", WeightsStore(), CPU)


@pytest.fixture(scope="module")
def voice() -> tuple[np.ndarray, int]:
    with wave.open(str(DEMO / "voice.wav")) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16), file.getframerate()


def film(seed: int, path: Path) -> Path:
    """A presenter never trained on who says the demo's sentence, silently."""
    mouth = speech.articulation(Truth.load(DEMO / "truth.json").events, 90)
    who = presenter.Identity.from_seed(5_000_000 + seed)
    pictures = [presenter.draw(who, pose, 200) for pose in presenter.poses(mouth, seed)]
    presenter.encode(pictures, None, path)
    return path


def test_right_moved_and_wrong_sound_are_told_apart(
    tiny: SyncScorer, voice: tuple[np.ndarray, int], tmp_path: Path
) -> None:
    """A few of the 200 trials of `scripts/eval/score.py`; their table is in docs/trust.md."""
    samples, rate = voice
    detector = load_detector("drawn", WeightsStore())
    for seed, late in enumerate((7, -5)):
        faces = find_faces(film(seed, tmp_path / "film.mp4"), tiny.side, detector)
        move = round(abs(late) * rate / 25)
        sounds = {
            "right": samples,
            "moved": samples[move:] if late > 0 else np.pad(samples, (move, 0)),
            "wrong": samples[::-1],
        }
        found = {}
        for name, sound in sounds.items():
            speech.write_wav(sound, rate, tmp_path / "sound.wav")
            found[name] = tiny.measure(with_sound(faces, tmp_path / "sound.wav"))
        print(found)
        curve = dict(found["right"].curve)
        assert [round(at_s % 0.2, 3) for at_s in curve] == [0.1] * len(curve)
        assert np.mean(list(curve.values())) == pytest.approx(found["right"].confidence, abs=0.8)
        assert abs(found["right"].offset_frames) <= 1
        assert abs(found["moved"].offset_frames - late) <= 1
        assert min(found["right"].confidence, found["moved"].confidence) > found["wrong"].confidence
    assert score_film(tmp_path / "film.mp4", DEMO / "voice.wav", tiny, detector) == found["right"]


def test_a_film_of_nobody_has_no_score(tiny: SyncScorer, tmp_path: Path) -> None:
    presenter.encode([np.full((120, 120, 3), 90, np.uint8)] * 30, None, tmp_path / "empty.mp4")
    with pytest.raises(FaceError, match="No face is seen") as failed:
        score_film(tmp_path / "empty.mp4", DEMO / "voice.wav", tiny, load_detector("drawn", WeightsStore()))
    assert failed.value.code is ErrorCode.FACE_NOT_FOUND
