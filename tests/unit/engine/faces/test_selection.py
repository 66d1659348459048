"""Tests of selection: which of several faces speaks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lipsync_engine import faces
from lipsync_engine.errors import ErrorCode, FaceError, ParameterError
from lipsync_engine.faces import Detection, FaceTracker, FaceTracks, choose_speaker
from lipsync_engine.faces.tracking import MIN_FACE_PX
from lipsync_engine.params import FaceChoice, FaceRule
from tests.support.scripted_faces import FPS, HEIGHT, LARGEST, WIDTH, ScriptedDetector, face, image, track


def two_people() -> FaceTracks:
    return track([[face(150, 150, size=70), face(450, 150, size=110)] for _ in range(50)])


def test_rule_selects_speaker(subtests: pytest.Subtests) -> None:
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


def test_mask_selects_face_under_it() -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, :300] = 255
    path = choose_speaker(two_people(), LARGEST, 60.0, mask=mask)
    assert np.allclose(path.points[:, 2, 0], 150, atol=0.5)


def test_usable_face_is_selected_before_a_larger_one_that_is_not() -> None:
    for other in (face(450, 150, size=160, presence=0.2), face(450, 150, size=MIN_FACE_PX - 2)):
        tracks = track([[face(150, 150, size=70), other] for _ in range(50)])
        for text in ("largest", "right", "0"):
            path = choose_speaker(tracks, FaceChoice.parse(text), 60.0)
            assert np.allclose(path.points[:, 2, 0], 150, atol=0.5)
        with pytest.raises(FaceError, match=r"at most 1 at once\. Choose one of face 0 at 150,150 "):
            choose_speaker(tracks, FaceChoice.parse("1"), 60.0)


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


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_settled_rows_stay_whatever_follows(seed: int) -> None:
    script = a_minute_of_people(seed)
    tracker = FaceTracker(
        ScriptedDetector(script), WIDTH // 10, HEIGHT // 10
    )  # small pictures: only cuts are seen
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
        tracker.add(i / FPS, image(180 if 225 <= i < 825 else 60)[::10, ::10])
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


def test_missing_face_and_unmatched_choice_are_errors() -> None:
    with pytest.raises(FaceError) as nobody:
        choose_speaker(track([[]] * 10), LARGEST, 60.0)
    assert nobody.value.code is ErrorCode.FACE_NOT_FOUND
    with pytest.raises(FaceError) as other:
        choose_speaker(two_people(), FaceChoice(FaceRule.INDEX, index=5), 60.0)
    assert other.value.code is ErrorCode.FACE_CHOICE_UNMATCHED
    assert "at most 2 at once" in other.value.message


def test_faces_file_replaces_the_detector(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for entry in [
        {"frame": 3, "box": [100, 100, 200, 220]},
        {"frame": 3, "points": [[120, 130], [180, 130], [150, 160]]},
        {"frame": 3, "landmarks106": [[150 + i % 10, 150 + i // 10] for i in range(106)]},
    ]:
        with subtests.test(entry=entry):
            tracker = FaceTracker(None, WIDTH, HEIGHT)
            for i in range(10):
                tracker.add(i / FPS, image())
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
def test_bad_faces_file_is_named_in_the_error(text: str, tmp_path: Path) -> None:
    tracker = FaceTracker(None, WIDTH, HEIGHT)
    for i in range(10):
        tracker.add(i / FPS, image())
    path = tmp_path / "faces.json"
    path.write_text(text)
    with pytest.raises(ParameterError, match=r"faces\.json"):
        faces.load_faces_file(path, tracker.snapshot(is_complete=True))


def test_message_lists_at_most_six_faces_of_all_shots() -> None:
    script = [[face(150, 150, size=70), face(450, 150, size=110)]] * 50
    assert faces.count_people(track(script)) == 2
    assert faces.describe_people(track(script)) == (
        "face 0 at 150,150 from 0.0 to 2.0 s, face 1 at 450,150 from 0.0 to 2.0 s"
    )
    crowd = track([[face(60 + 70 * i, 150, size=60) for i in range(8)]] * 50)
    assert faces.describe_people(crowd).endswith("face 5 at 410,150 from 0.0 to 2.0 s, 2 more")
