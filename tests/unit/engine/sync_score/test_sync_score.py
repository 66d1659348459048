"""Tests of the sync score: SyncNet's files and inputs, and separation of right and wrong audio."""

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
from lipsync_engine.sync_score import SyncScorer, find_installed_scorer, load_scorer, score_video
from lipsync_engine.sync_score.cepstrum import compute_mfcc
from lipsync_engine.sync_score.crop import PADDING_GREY, compute_squares, crop_square
from lipsync_engine.sync_score.measure import ScoreWindow, compute_score
from lipsync_engine.sync_score.network import SyncConfig, SyncNet, dump_config, load_sync_net
from lipsync_engine.sync_score.video import extract_face_windows
from lipsync_engine.sync_score.windows import attach_audio, longest_run, resample_to_25_fps
from lipsync_engine.weights import WeightsStore
from tests.support import presenter, speech
from tests.support.mouth_score import Truth
from tests.support.paths import DEMO

CPU = torch.device("cpu")
SMALL = SyncConfig(96, (2, 3, 4, 4, 4, 6), (2, 3, 4, 4, 4, 6), 8, 5)


# --- the network and its files ---


def test_file_in_the_published_format_loads(tmp_path: Path) -> None:
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
    mfcc = torch.randn(2, 1, 13, 20)
    with torch.inference_mode():
        assert torch.equal(loaded.embed_audio(mfcc), net.embed_audio(mfcc))
        assert loaded.embed_faces(torch.zeros(1, 3, 6, 224, 224)).shape == (1, 2, 1024)


def test_wrong_file_is_named_in_error(tmp_path: Path) -> None:
    config, path = tmp_path / "sync_config.json", tmp_path / "sync.model"
    config.write_text(dump_config(SMALL))
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
    with pytest.raises(WeightsError, match="is not a sync score model: use one of syncnet-v2, sync-tiny"):
        load_scorer("yunet", WeightsStore(), CPU)


def test_scorer_matches_the_detector(tmp_path: Path) -> None:
    store = WeightsStore(tmp_path)
    drawn = find_installed_scorer("drawn", store, CPU)
    assert drawn is not None
    assert drawn.name == "sync-tiny"
    assert find_installed_scorer("yunet", store, CPU) is None
    assert find_installed_scorer("landmarks106:x.onnx", store, CPU) is None


# --- inputs ---


def test_mfcc_matches_python_speech_features() -> None:
    """Rows 0 and 7 of version 0.6's mfcc() of this sound."""
    t = np.arange(3200)
    samples = np.round(8000 * np.sin(0.02 * t + 1e-5 * t * t)).astype(np.int16)
    first = [16.0883, 22.7133, 16.5502, 15.4213, 15.3433, 14.7216, 14.1287, 12.4951, 10.7437, 8.8758]
    eighth = [16.758, 22.9995, 16.4004, 14.4882, 13.2897, 11.059, 9.3727, 6.0329, 3.2391, -0.0885]
    whole = compute_mfcc(samples, 0, 18)
    np.testing.assert_allclose(whole[:10, 0], first, atol=1e-4)
    np.testing.assert_allclose(whole[:10, 7], eighth, atol=1e-4)
    np.testing.assert_allclose(compute_mfcc(samples, 7, 5), whole[:, 7:12], atol=1e-5)


def test_square_follows_the_face_and_ignores_outliers() -> None:
    face = np.array([[80.0, 60.0], [120.0, 60.0], [100.0, 80.0]], np.float32)
    points = np.repeat(face[None], 30, axis=0)
    points[10] += 25
    places = compute_squares(points)
    assert np.ptp(places, axis=0).max() == 0
    x, _, side = places[0]
    assert x + side / 2 == pytest.approx(100)
    assert 85 < side < 150
    assert compute_squares(2 * points)[0] == pytest.approx(2 * places[0], rel=1e-5)
    picture = np.zeros((100, 100, 3), np.uint8)
    picture[20:40, 20:40] = 200
    assert (crop_square(picture, np.array([20, 20, 20], np.float32), 8) == 200).all()
    beyond = crop_square(picture, np.array([-50, -50, 60], np.float32), 30)
    assert (beyond[:24, :24] == PADDING_GREY).all()
    assert (crop_square(picture, np.array([500, 500, 60], np.float32), 30) == PADDING_GREY).all()


def test_plan_and_detector_give_the_same_square() -> None:
    """A plan stores matrices; the points that follow from them give the same squares for any face."""
    face = np.array([[80.0, 60.0], [122.0, 66.0], [97.0, 98.0]], np.float32)
    matrix = align.solve_matrix(face, 64)
    template = np.column_stack([align.template_points(64), np.ones(3)])
    back = template @ cv2.invertAffineTransform(matrix).T
    assert np.abs(back - face).max() > 3
    np.testing.assert_allclose(
        compute_squares(back[None].astype(np.float32)), compute_squares(face[None]), atol=0.05
    )


def test_frames_are_resampled_to_25_fps() -> None:
    def shown(rate: Fraction, start_s: float) -> list[int]:
        return list(resample_to_25_fps(((n / float(rate), n) for n in range(20)), rate, start_s))

    assert shown(Fraction(25), 0.2) == list(range(5, 20))
    assert shown(Fraction(50), 0.0) == list(range(0, 20, 2))
    assert shown(Fraction(10), 0.0)[:8] == [0, 0, 1, 1, 2, 2, 2, 3]
    usable = np.array([0, 1, 1, 1, 1, 0, 1, 1, 1, 0], bool)
    assert longest_run(usable, np.zeros(10, np.int64)) == (1, 5)
    assert longest_run(usable, np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 1])) == (6, 9)
    assert longest_run(np.zeros(4, bool), np.zeros(4, np.int64)) == (0, 0)


# --- the score ---


def test_offset_is_at_the_smallest_distance() -> None:
    distances = np.full((50, 31), 8.0, np.float32)
    distances[:, 15 + 4] = 3.0
    distances[:5, 0] = np.nan
    score = compute_score(distances, "x")
    assert (score.offset_frames, score.confidence, score.distance, score.frames) == (4, 5.0, 3.0, 50)


def test_window_distances_equal_those_of_single_clips() -> None:
    """Distances are NaN where there is no audio."""
    torch.manual_seed(1)
    scorer = SyncScorer(SyncNet(SMALL).eval(), "x", CPU)
    rng = np.random.default_rng(0)
    faces = rng.integers(0, 255, (40, 96, 96, 3), np.uint8)
    samples = rng.integers(-9000, 9000, 640 * 60, np.int16)
    table = scorer.distances(ScoreWindow(faces, samples, lead=640 * 10))
    assert table.shape == (36, 31)
    net = scorer.net
    for clip, late in ((0, 3), (20, -9), (35, 15), (33, 0)):
        one = torch.from_numpy(faces[clip : clip + 5, :, :, ::-1].copy()).permute(3, 0, 1, 2)[None].float()
        at = 4 * (10 + clip - late)
        with torch.inference_mode():
            voice = net.embed_audio(torch.from_numpy(compute_mfcc(samples, at, 20))[None, None])
            alone = torch.nn.functional.pairwise_distance(net.embed_faces(one)[0], voice).item()
        assert table[clip, late + 15] == pytest.approx(alone, rel=1e-3)
    assert np.isnan(table[0, 15 + 11 :]).all()  # before the audio starts
    assert np.isfinite(table[0, : 15 + 11]).all()
    assert np.isnan(table[35, :5]).any()  # after the audio ends


@pytest.fixture(scope="module")
def tiny() -> SyncScorer:
    return load_scorer("sync-tiny", WeightsStore(), CPU)


@pytest.fixture(scope="module")
def voice() -> tuple[np.ndarray, int]:
    with wave.open(str(DEMO / "voice.wav")) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16), file.getframerate()


def make_video(seed: int, path: Path) -> Path:
    """Encode a silent video of an unseen presenter who speaks the demo's sentence."""
    mouth = speech.articulation(Truth.load(DEMO / "truth.json").events, 90)
    who = presenter.Identity.from_seed(5_000_000 + seed)
    pictures = [presenter.draw(who, pose, 200) for pose in presenter.poses(mouth, seed)]
    presenter.encode(pictures, None, path)
    return path


def test_score_separates_synchronous_shifted_and_wrong_audio(
    tiny: SyncScorer, voice: tuple[np.ndarray, int], tmp_path: Path
) -> None:
    """A few of the 200 trials of `scripts/eval/score.py`; their table is in docs/trust.md."""
    samples, rate = voice
    detector = load_detector("drawn", WeightsStore())
    for seed, late in enumerate((7, -5)):
        faces = extract_face_windows(make_video(seed, tmp_path / "video.mp4"), tiny.side, detector)
        move = round(abs(late) * rate / 25)
        tracks = {
            "right": samples,
            "moved": samples[move:] if late > 0 else np.pad(samples, (move, 0)),
            "wrong": samples[::-1],
        }
        scores = {}
        for name, track in tracks.items():
            speech.write_wav(track, rate, tmp_path / "audio.wav")
            scores[name] = tiny.score(attach_audio(faces, tmp_path / "audio.wav"))
        print(scores)
        curve = dict(scores["right"].curve)
        assert [round(at_s % 0.2, 3) for at_s in curve] == [0.1] * len(curve)
        assert np.mean(list(curve.values())) == pytest.approx(scores["right"].confidence, abs=0.8)
        assert abs(scores["right"].offset_frames) <= 1
        assert abs(scores["moved"].offset_frames - late) <= 1
        assert min(scores["right"].confidence, scores["moved"].confidence) > scores["wrong"].confidence
    assert score_video(tmp_path / "video.mp4", DEMO / "voice.wav", tiny, detector) == scores["right"]


def test_video_without_faces_has_no_score(tiny: SyncScorer, tmp_path: Path) -> None:
    presenter.encode([np.full((120, 120, 3), 90, np.uint8)] * 30, None, tmp_path / "empty.mp4")
    with pytest.raises(FaceError, match="No face is visible") as failed:
        score_video(tmp_path / "empty.mp4", DEMO / "voice.wav", tiny, load_detector("drawn", WeightsStore()))
    assert failed.value.code is ErrorCode.FACE_NOT_FOUND
