"""The bundled detector on presenters that it never saw in training."""

from __future__ import annotations

import numpy as np
import pytest

from lipsync_engine.faces.drawn import DrawnFaceDetector
from lipsync_engine.weights import WeightsStore
from tests.support import presenter

UNSEEN = 2_000_000
"""Identities are numbered; training draws from the first million."""


@pytest.fixture(scope="module")
def detector() -> DrawnFaceDetector:
    return DrawnFaceDetector(WeightsStore().verified_files("tiny")["detector"])


def test_unseen_presenters_are_located(detector: DrawnFaceDetector) -> None:
    rng = np.random.default_rng(5)
    errors, found_once = [], 0
    for i in range(60):
        pose = presenter.Pose(
            x=0.5 + rng.uniform(-0.2, 0.2),
            y=0.45 + rng.uniform(-0.15, 0.15),
            scale=float(np.exp(rng.uniform(np.log(0.2), np.log(0.7)))),
            roll_deg=float(rng.normal(0, 4)),
            turn=float(rng.uniform(-0.5, 0.5)),
            openness=float(rng.random()),
        )
        result = detector.detect(presenter.draw(presenter.Identity.from_seed(UNSEEN + i), pose, 400))
        found_once += len(result) == 1
        if result:
            away = np.abs(result[0].points - presenter.alignment(pose, 400)).mean()
            errors.append(float(away) / (pose.scale * 400))
    print(f"points off by {np.mean(errors):.4f} of the face's width, at most {np.max(errors):.4f}")
    assert found_once >= 57
    assert np.mean(errors) < 0.03


def test_images_without_a_face_have_no_detections(detector: DrawnFaceDetector) -> None:
    rng = np.random.default_rng(6)
    seen = 0
    for i in range(30):
        who = presenter.Identity.from_seed(UNSEEN + i)
        canvas = presenter.Canvas(200, presenter.Pose())
        presenter._background(canvas, who)
        wall = np.clip(canvas.image, 0, 255).astype(np.uint8)
        seen += bool(detector.detect(wall))
        seen += bool(detector.detect(rng.integers(0, 255, (120, 200, 3), dtype=np.uint8)))
    assert seen <= 1


def test_two_people_are_two_detections(detector: DrawnFaceDetector) -> None:
    pair = [
        presenter.draw(presenter.Identity.from_seed(UNSEEN + i), presenter.Pose(scale=0.5), 240)
        for i in (1, 2)
    ]
    result = detector.detect(np.hstack(pair))
    assert len(result) == 2
    assert {bool(d.points[2, 0] > 240) for d in result} == {False, True}
