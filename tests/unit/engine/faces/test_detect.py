"""Tests of the detector for people, on our own drawn presenters: their faces are where we drew them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from lipsync_engine import faces
from lipsync_engine.faces import Detection, FaceMeshDetector, FaceTracker, FaceTracks
from lipsync_engine.faces.detect import MIN_PRESENCE
from lipsync_engine.faces.registry import load_detector
from lipsync_engine.weights import WeightsStore
from tests.support import presenter
from tests.support.presenter import Identity, Pose
from tests.support.scripted_faces import ScriptedDetector
from tests.support.scripted_faces import face as scripted_face
from tests.support.scripted_faces import image as scripted_image

Image = npt.NDArray[np.uint8]
SIDE = 400


@pytest.fixture(scope="module")
def detector() -> FaceMeshDetector:
    detector = load_detector("yunet", WeightsStore())
    assert isinstance(detector, FaceMeshDetector)
    return detector


def draw(seed: int = 1, **pose: float) -> Image:
    return presenter.draw(Identity.from_seed(seed), Pose(**{"scale": 0.5, **pose}), SIDE)


def turn(image: Image, degrees: float) -> Image:
    """Rotate clockwise about the middle."""
    matrix = cv2.getRotationMatrix2D(((SIDE - 1) / 2,) * 2, -degrees, 1.0)
    return np.asarray(cv2.warpAffine(image, matrix, (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE), np.uint8)


def present(detections: list[Detection]) -> list[Detection]:
    return [face for face in detections if face.presence >= MIN_PRESENCE]


def difference_deg(one: float, other: float) -> float:
    return abs((one - other + 180) % 360 - 180)


@pytest.mark.parametrize("degrees", range(-150, 181, 30))
def test_roll_is_measured_at_every_angle(detector: FaceMeshDetector, degrees: int) -> None:
    (upright,) = present(detector.detect(draw(y=0.5)))
    (face,) = present(detector.detect(turn(draw(y=0.5), degrees)))
    assert difference_deg(face.roll_deg, upright.roll_deg + degrees) < 2
    centre = (SIDE - 1) / 2
    angle = np.radians(degrees)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    expected = (upright.points - centre) @ rotation + centre
    assert np.abs(face.points - expected).max() < 0.03 * 0.5 * SIDE


def test_measures_follow_the_drawn_face(detector: FaceMeshDetector) -> None:
    for seed in range(4):
        (still,) = detector.detect(draw(seed))
        (speaking,) = detector.detect(draw(seed, openness=1.0))
        (blinking,) = detector.detect(draw(seed, blink=1.0))
        (left,), (right,) = (detector.detect(draw(seed, turn=side)) for side in (-0.8, 0.8))
        assert speaking.mouth_opening > still.mouth_opening + 0.05
        assert blinking.eye_opening < still.eye_opening - 0.02
        assert left.yaw_deg < still.yaw_deg - 5 < still.yaw_deg + 5 < right.yaw_deg


def test_boxes_are_upright_and_around_the_face(detector: FaceMeshDetector) -> None:
    (upright,), (lying,) = detector.detect(draw(y=0.5)), present(detector.detect(turn(draw(y=0.5), 90)))
    width, height = upright.box[2:] - upright.box[:2]
    assert 1.0 < height / width < 1.5
    assert np.abs((lying.box[2:] - lying.box[:2])[::-1] / (width, height) - 1).max() < 0.05
    assert (upright.points > upright.box[:2]).all()
    assert (upright.points < upright.box[2:]).all()


def test_images_without_a_face_have_none(detector: FaceMeshDetector) -> None:
    rng = np.random.default_rng(0)
    for image in (
        np.full((200, 300, 3), 120, np.uint8),
        rng.integers(0, 255, (200, 300, 3), dtype=np.uint8),
        cv2.GaussianBlur(rng.integers(0, 255, (240, 320, 3), dtype=np.uint8), (0, 0), 12),
        *(rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((1, 1), (2, 2000), (2000, 3))),
    ):
        assert not present(detector.detect(image))


def test_previous_faces_are_followed_without_a_search(detector: FaceMeshDetector) -> None:
    both = np.hstack([draw(1), draw(2)])
    (one,) = detector.detect(np.hstack([draw(1), np.full_like(draw(1), 90)]))
    followed = detector.detect(both, [one], search=False)
    assert len(followed) == 1
    assert np.abs(followed[0].points - one.points).max() < 2
    assert len(detector.detect(both, [one], search=True)) == 2


def test_lost_face_is_searched_for_at_once(detector: FaceMeshDetector) -> None:
    (before,) = detector.detect(draw(1, x=0.3, scale=0.4))
    (after,) = detector.detect(draw(1, x=0.7, scale=0.4), [before], search=False)
    assert after.presence >= MIN_PRESENCE
    assert after.points[2, 0] > before.points[2, 0] + 0.3 * SIDE


def track(detector: FaceMeshDetector, images: list[Image]) -> FaceTracks:
    tracker = FaceTracker(detector, images[0].shape[1], images[0].shape[0])
    for number, image in enumerate(images):
        tracker.add(number / 25, image)
    return tracker.snapshot(is_complete=True)


def test_turning_head_is_one_track(detector: FaceMeshDetector) -> None:
    """Five degrees a frame, from upright through lying to upside down."""
    (tracked,) = track(detector, [turn(draw(3, y=0.5), 5 * i) for i in range(37)]).tracks
    assert tracked.frames.tolist() == list(range(37))
    errors = [difference_deg(roll, 5 * i + tracked.roll_deg[0]) for i, roll in enumerate(tracked.roll_deg)]
    assert max(errors) < 3


def test_head_that_is_upside_down_from_the_start_is_measured(detector: FaceMeshDetector) -> None:
    (tracked,) = track(detector, [turn(draw(4), 180)] * 6).tracks
    assert tracked.is_usable.all()
    assert all(difference_deg(roll, 180) < 5 for roll in tracked.roll_deg)


def test_people_who_cross_keep_their_tracks(detector: FaceMeshDetector) -> None:
    """The nearer one hides the other for a moment."""
    near, far, n = draw(5), draw(6, scale=0.35), 36
    images = []
    for i in range(n):
        image = np.full((SIDE, 3 * SIDE, 3), far[5, 5], np.uint8)
        right, left = 2 * SIDE - round(2 * SIDE * i / (n - 1)), round(2 * SIDE * i / (n - 1))
        image[:, right : right + SIDE] = far
        image[:, left + 60 : left + SIDE - 60] = near[:, 60:-60]
        images.append(image)
    tracks = [each for each in track(detector, images).tracks if np.count_nonzero(each.is_usable) > 8]
    for each in tracks:
        steps = np.diff(each.points[:, 2, 0]) / np.diff(each.frames)
        assert (np.sign(steps) == np.sign(steps[0])).all()
    assert sum(len(each.frames) for each in tracks) > 1.5 * n


# --- 106 landmarks ---


def test_landmarks106_points_are_means_of_their_groups(tmp_path: Path) -> None:
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
    result = scripted_face(300, 150, size=96)
    detector = faces.Landmark106Detector(ScriptedDetector([[result]]), path)
    (refined,) = detector.detect(scripted_image())
    unit = (marks.reshape(106, 2) + 1) * 96  # in the 192-pixel crop, 1.5 face sizes wide
    expected = (unit[[74, 77, 83, 86]].mean(axis=0) - 96) * (96 * 1.5 / 192) + (300, 150)
    assert np.allclose(refined.points[2], expected, atol=1e-3)
    assert "landmarks106" in detector.name
