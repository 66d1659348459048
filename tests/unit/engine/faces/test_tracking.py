"""Tests of tracking, selection and smoothing: scripted detections in, one path out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from lipsync_engine import faces
from lipsync_engine.errors import ErrorCode, FaceError, ParameterError
from lipsync_engine.faces import Detection, FaceTracker, FaceTracks, choose_speaker
from lipsync_engine.params import FaceChoice, FaceRule

FPS = 25.0
WIDTH, HEIGHT = 640, 360


def face(x: float, y: float, size: float = 80.0, score: float = 0.9, yaw_deg: float = 0.0) -> Detection:
    box = np.array([x - size / 2, y - size / 2, x + size / 2, y + size / 2], dtype=np.float32)
    points = np.array(
        [[x - 0.2 * size, y - 0.2 * size], [x + 0.2 * size, y - 0.2 * size], [x, y]], np.float32
    )
    return Detection(box, score, points, yaw_deg)


class Scripted:
    """Answers with what the script says for each picture in turn."""

    name = "scripted"
    smooth_s = 0.12

    def __init__(self, script: list[list[Detection]]) -> None:
        self._script = iter(script)

    def detect(
        self, image: np.ndarray, previous: Sequence[Detection] = (), *, search: bool = True
    ) -> list[Detection]:
        return next(self._script)


def picture(shade: int = 100) -> np.ndarray:
    ramp = np.linspace(0, 60, WIDTH, dtype=np.float32)[None, :, None] * np.ones((HEIGHT, 1, 3), np.float32)
    return (ramp + shade).astype(np.uint8)


def track(
    script: list[list[Detection]], pictures: list[np.ndarray] | None = None, fps: float = FPS
) -> FaceTracks:
    tracker = FaceTracker(Scripted(script), WIDTH, HEIGHT)
    for i in range(len(script)):
        tracker.add(i / fps, pictures[i] if pictures else picture())
    return tracker.snapshot(is_complete=True)


LARGEST = FaceChoice()


def test_people_who_cross_keep_their_identity() -> None:
    script = []
    for i in range(100):
        a, b = face(120 + 4 * i, 150), face(520 - 4 * i, 190, size=76)
        found = [a, b] if i % 2 else [b, a]
        script.append(found if abs(a.box[0] - b.box[0]) > 20 else [a])  # one hides the other for a moment
    tracks = track(script)
    long = [t for t in tracks.tracks if len(t.frames) > 80]
    assert len(long) == 2
    for t in long:
        steps = np.diff(t.boxes[:, 0]) / np.diff(t.frames)
        assert np.all(np.sign(steps) == np.sign(steps[0]))


def test_a_face_lost_for_a_moment_is_the_same_person() -> None:
    tracks = track([[face(300 + i, 150)] if not 40 <= i < 58 else [] for i in range(100)])
    assert len(tracks.tracks) == 1


def test_a_cut_ends_tracks_and_a_flicker_does_not() -> None:
    shades = [60] * 30 + [150] * 30
    tracks = track([[face(300, 150)]] * 60, [picture(s) for s in shades])
    assert tracks.shots.tolist() == [0] * 30 + [1] * 30
    assert [t.frames.tolist() for t in tracks.tracks] == [list(range(30)), list(range(30, 60))]
    rng = np.random.default_rng(0)
    noisy = [
        np.clip(picture(100) + rng.normal(0, 6, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)
        for _ in range(20)
    ]
    assert set(track([[]] * 20, noisy).shots.tolist()) == {0}


def test_smoothing_takes_noise_away_without_lag_or_flattening() -> None:
    rng = np.random.default_rng(1)
    t = np.arange(200) / FPS
    nod = 10 * np.sin(2 * np.pi * t)
    noise = rng.normal(0, 1.0, (200, 2))
    script = [
        [face(300 + float(nx), 150 + float(n) + float(ny))] for n, (nx, ny) in zip(nod, noise, strict=True)
    ]
    path = choose_speaker(track(script), LARGEST, 60.0)
    nose = path.points[:, 2]
    jitter = np.abs(np.diff(nose[:, 0], 2)).mean() / np.abs(np.diff(noise[:, 0], 2)).mean()
    assert jitter < 1 / 3
    inside = slice(15, -15)
    size = np.dot(nose[inside, 1] - 150, nod[inside]) / np.dot(nod[inside], nod[inside])
    assert 0.95 < size < 1.05

    fast = choose_speaker(track([[face(60 + 2.5 * i, 150)] for i in range(200)]), LARGEST, 60.0)
    assert np.abs(fast.points[:, 2, 0] - (60 + 2.5 * np.arange(200))).max() < 0.1


def test_a_jump_of_one_frame_is_not_followed() -> None:
    script = [[face(300, 150)] for _ in range(60)]
    script[30] = [face(340, 150)]
    path = choose_speaker(track(script), LARGEST, 60.0)
    assert np.abs(path.points[:, 2, 0] - 300).max() < 1.0
    assert path.weight.min() == 1.0


def test_short_gaps_are_filled_long_ones_fade_and_stay_untouched() -> None:
    short = choose_speaker(
        track([[face(300, 150)] if not 40 <= i < 48 else [] for i in range(100)]), LARGEST, 60.0
    )
    assert short.weight.min() == 1.0
    long = choose_speaker(
        track([[face(300, 150)] if not 40 <= i < 70 else [] for i in range(100)]), LARGEST, 60.0
    )
    assert np.all(long.weight[40:70] == 0)
    assert np.all(np.diff(long.weight[30:41]) <= 0)
    assert 0 < long.weight[39] < 0.5
    assert long.weight[0] == long.weight[-1] == 1.0  # the clip's own ends do not fade


def test_a_head_that_turns_away_fades_out() -> None:
    script = [[face(300, 150, yaw_deg=min(80.0, max(0.0, 2.0 * (i - 20))))] for i in range(100)]
    path = choose_speaker(track(script), LARGEST, 60.0)
    assert path.weight[40] == 1.0
    assert path.weight[60] == 0.0
    assert np.abs(np.diff(path.weight)).max() < 0.45


def two_people() -> FaceTracks:
    return track([[face(150, 150, size=70), face(450, 150, size=110)] for _ in range(50)])


def test_who_speaks(subtests: pytest.Subtests) -> None:
    for text, x in [
        ("largest", 450),
        ("left", 150),
        ("right", 450),
        ("0", 150),
        ("1", 450),
        ("160,140@0.5", 150),
    ]:
        with subtests.test(text=text, x=x):
            path = choose_speaker(two_people(), FaceChoice.parse(text), 60.0)
            assert np.allclose(path.points[:, 2, 0], x, atol=0.5)


def test_a_mask_selects_the_face_under_it() -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, :300] = 255
    path = choose_speaker(two_people(), LARGEST, 60.0, mask=mask)
    assert np.allclose(path.points[:, 2, 0], 150, atol=0.5)


def a_minute_of_people(seed: int) -> list[list[Detection]]:
    """Three people who come, go, are lost for moments, walk and turn; nobody in some seconds."""
    rng = np.random.default_rng(seed)
    script: list[list[Detection]] = [[] for _ in range(60 * 25)]
    for person in range(3):
        x, y, size = 100 + 200 * person + rng.uniform(-40, 40), 150.0, rng.uniform(60, 110)
        at = int(rng.integers(0, 400)) if seed % 2 else 0
        while at < len(script):
            stays = int(rng.integers(5, 500))
            for i in range(at, min(len(script), at + stays)):
                x = float(np.clip(x + rng.normal(0, 1.5), 60, WIDTH - 60))
                script[i].append(face(x, y, size, yaw_deg=abs(float(rng.normal(0, 25)))))
            at += stays + int(rng.choice([3, 8, 15, 22, 60, 300]))
    return script


@pytest.mark.parametrize("seed", range(2))
def test_what_is_settled_stays_whatever_follows(seed: int) -> None:
    script = a_minute_of_people(seed)
    tracker = FaceTracker(Scripted(script), WIDTH // 10, HEIGHT // 10)  # small pictures: only cuts are seen
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, 200:420] = 255
    wishes = [(FaceChoice.parse(text), None) for text in ("largest", "left", "right", "1")]
    seen = next(i for i in range(500, len(script)) if script[i])
    x, y = script[seen][0].points[2]
    wishes.append((FaceChoice(FaceRule.POINT, x=float(x), y=float(y), time_s=seen / FPS), None))
    wishes.append((LARGEST, mask))
    drafts = []
    for i in range(len(script)):
        # Cuts after 9 and 33 seconds: bright from there to there.
        tracker.add(i / FPS, picture(180 if 225 <= i < 825 else 60)[::10, ::10])
        if i % 83 == 82:
            tracks = tracker.snapshot(is_complete=False)
            drafts += [
                (n, choose_speaker(tracks, wish[0], 60.0, mask=wish[1])) for n, wish in enumerate(wishes)
            ]
    whole = tracker.snapshot(is_complete=True)
    assert set(whole.shots.tolist()) == {0, 1, 2}
    final = [choose_speaker(whole, wish[0], 60.0, mask=wish[1]) for wish in wishes]
    for n, draft in drafts:
        rows = slice(0, draft.n_settled)
        np.testing.assert_array_equal(draft.points[rows], final[n].points[rows])
        np.testing.assert_array_equal(draft.weight[rows], final[n].weight[rows])
    last = {n: draft.n_settled for n, draft in drafts}
    assert min(last.values()) > len(script) - 25 * 13  # only the last seconds wait
    assert all(path.weight.any() for path in final)


def test_nobody_and_not_that_one() -> None:
    with pytest.raises(FaceError) as nobody:
        choose_speaker(track([[]] * 10), LARGEST, 60.0)
    assert nobody.value.code is ErrorCode.FACE_NOT_FOUND
    with pytest.raises(FaceError) as other:
        choose_speaker(two_people(), FaceChoice(FaceRule.INDEX, index=5), 60.0)
    assert other.value.code is ErrorCode.FACE_CHOICE_UNMATCHED
    assert "2 face" in other.value.message


def test_faces_given_by_the_user(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for entry in [
        {"frame": 3, "box": [100, 100, 200, 220]},
        {"frame": 3, "points": [[120, 130], [180, 130], [150, 160]]},
        {"frame": 3, "landmarks106": [[150 + i % 10, 150 + i // 10] for i in range(106)]},
    ]:
        with subtests.test(entry=entry):
            tracker = FaceTracker(None, WIDTH, HEIGHT)
            for i in range(10):
                tracker.add(i / FPS, picture())
            path = tmp_path / "faces.json"
            path.write_text(json.dumps({"frames": [entry, {**entry, "frame": 7}]}))
            given = choose_speaker(
                faces.load_faces_file(path, tracker.snapshot(is_complete=True)), LARGEST, 60.0
            )
            assert given.weight.min() == 1.0  # the frames between and around follow the rule for gaps
            assert np.ptp(given.points[:, 2, 0]) < 1e-3
            assert 100 < given.points[0, 2, 0] < 200


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"frames": []}',
        '{"frames": [{"frame": 99, "box": [0, 0, 9, 9]}]}',
        '{"frames": [{"frame": 1, "box": [9, 9, 0, 0]}]}',
        '{"frames": [{"frame": 1, "box": [0, 0, NaN, 9]}]}',
        '{"frames": [{"frame": 1, "points": [[0, 0]]}]}',
        '{"frames": [{"frame": 1}]}',
        '{"frames": [{"frame": 1, "box": [0, 0, 9, 9]}, {"frame": 1, "box": [0, 0, 9, 9]}]}',
        '{"frames": ' + "[" * 5000 + "]" * 5000 + "}",
    ],
)
def test_a_bad_faces_file_says_what_is_wrong(text: str, tmp_path: Path) -> None:
    tracker = FaceTracker(None, WIDTH, HEIGHT)
    for i in range(10):
        tracker.add(i / FPS, picture())
    path = tmp_path / "faces.json"
    path.write_text(text)
    with pytest.raises(ParameterError, match=r"faces\.json"):
        faces.load_faces_file(path, tracker.snapshot(is_complete=True))


def test_the_cache_returns_what_was_put_and_survives_damage(tmp_path: Path) -> None:
    cache, tracks = faces.AnalysisCache(tmp_path), two_people()
    key = faces.analysis_key("a" * 64, "scripted")
    assert cache.get(key) is None
    cache.put(key, tracks)
    again = cache.get(key)
    assert again is not None
    assert [t.points.tolist() for t in again.tracks] == [t.points.tolist() for t in tracks.tracks]
    assert again.pts_s.tolist() == tracks.pts_s.tolist()
    (stored,) = tmp_path.iterdir()
    stored.write_bytes(stored.read_bytes()[:200])
    assert cache.get(key) is None
    assert not stored.exists()
    assert key != faces.analysis_key("a" * 64, "other")


def test_tracks_of_nothing_are_stored_too(tmp_path: Path) -> None:
    track([[]] * 5).save(tmp_path / "t.npz")
    assert FaceTracks.load(tmp_path / "t.npz").tracks == ()


def test_landmark_route_takes_the_mean_of_its_points(tmp_path: Path) -> None:
    """A tiny ONNX of the same input and output, which always answers with the same 106 points."""
    onnx = pytest.importorskip("onnx")
    marks = np.linspace(-0.5, 0.5, 212, dtype=np.float32).reshape(1, 212)
    helper = onnx.helper
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["data"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
            helper.make_node("Add", ["marks", "nothing"], ["fc1"]),
        ],
        "landmarks",
        [helper.make_tensor_value_info("data", onnx.TensorProto.FLOAT, [1, 3, 192, 192])],
        [helper.make_tensor_value_info("fc1", onnx.TensorProto.FLOAT, [1, 212])],
        [onnx.numpy_helper.from_array(marks, "marks"), onnx.numpy_helper.from_array(np.float32(0), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = tmp_path / "2d106det.onnx"
    path.write_bytes(model.SerializeToString())
    found = face(300, 150, size=96)
    detector = faces.Landmark106Detector(Scripted([[found]]), path)
    (refined,) = detector.detect(picture())
    unit = (marks.reshape(106, 2) + 1) * 96  # in the 192-pixel crop, 1.5 face sizes wide
    expected = (unit[[74, 77, 83, 86]].mean(axis=0) - 96) * (96 * 1.5 / 192) + (300, 150)
    assert np.allclose(refined.points[2], expected, atol=1e-3)
    assert "landmarks106" in detector.name
