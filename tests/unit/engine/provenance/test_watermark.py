"""Tests of the invisible watermark: detected where it is and nowhere else, and too weak to be visible."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from lipsync_engine.faces import compositor
from lipsync_engine.models.latentsync.mask import load_fixed_mask
from lipsync_engine.provenance.watermark import WatermarkDetector, embed_watermark
from lipsync_engine.provenance.watermark.pattern import PATTERN_SIDE, THRESHOLD

FloatArray = npt.NDArray[np.float32]


def draw_faces(seed: int, side: int = 256, frames: int = 6) -> list[FloatArray]:
    """Draw faces with skin-like texture and a moving dark mouth."""
    rng = np.random.default_rng(seed)
    skin = cv2.GaussianBlur(rng.normal(0, 1, (side, side, 3)).astype(np.float32), (0, 0), side / 100)
    skin = 150 + 4 * skin / skin.std()
    result = []
    for number in range(frames):
        face = skin.copy()
        size = (side // 6, side // 40 + number * side // 80)
        cv2.ellipse(face, (side // 2, side * 5 // 8), size, 0, 0, 360, (70, 30, 30), -1)
        result.append(face)
    return result


def detect(frames: list[FloatArray], move: FloatArray | None = None) -> WatermarkDetector:
    detector = WatermarkDetector()
    for face in frames:
        small = cv2.resize(face, (PATTERN_SIDE, PATTERN_SIDE), interpolation=cv2.INTER_AREA)
        if move is not None:
            small = cv2.warpAffine(small, move, (PATTERN_SIDE, PATTERN_SIDE), borderMode=cv2.BORDER_REPLICATE)
        detector.add_face(np.asarray(small, np.float32))
    return detector


@pytest.mark.parametrize("side", [256, 512])
def test_watermarked_faces_are_detected_and_others_not(side: int) -> None:
    for seed in range(3):
        frames = draw_faces(seed, side)
        assert not detect(frames).result().is_detected
        result = detect([embed_watermark(face) for face in frames]).result()
        assert (result.is_detected, result.frames) == (True, len(frames))
        assert result.score > THRESHOLD + 2


def test_null_patterns_are_not_detected_in_watermarked_faces() -> None:
    scores = detect([embed_watermark(face) for face in draw_faces(5)]).scores()
    assert scores.argmax() == 0
    assert scores[1:].max() < THRESHOLD


def test_nothing_is_detected_without_faces() -> None:
    result = WatermarkDetector().result()
    assert (result.is_detected, result.score, result.frames) == (False, 0.0, 0)


def test_watermark_is_weak_and_inside_the_generated_area() -> None:
    outside = compositor.soft_mask(load_fixed_mask(256).astype(np.float32)) == 0
    generated = load_fixed_mask(256) < 0.5
    for seed in range(3):
        face = draw_faces(seed)[2]
        added = embed_watermark(face) - face
        assert np.abs(added[outside]).max() < 0.1
        noise = np.square(added[generated]).mean()
        assert 42 < 10 * np.log10(255**2 / noise) < 60
        assert abs(added[generated].mean()) < 0.1
        assert np.allclose(added[..., 0], added[..., 2], atol=1e-3)  # luma alone


def test_watermark_is_detected_with_another_alignment(subtests: pytest.Subtests) -> None:
    for scale, x, y in [(1.0, 2.0, -3.0), (1.02, 0.0, 1.5), (0.98, -2.5, 0.0)]:
        with subtests.test(scale=scale, x=x, y=y):
            rest = (PATTERN_SIDE - 1) / 2 * (1 - scale)
            move = np.array([[scale, 0, rest + x], [0, scale, rest + y]], np.float32)
            assert detect([embed_watermark(face) for face in draw_faces(1)], move).result().is_detected
            assert not detect(draw_faces(1), move).result().is_detected


def test_watermark_is_detected_under_stronger_noise() -> None:
    rng = np.random.default_rng(8)
    noisy = [
        embed_watermark(face) + rng.normal(0, 6, face.shape).astype(np.float32)
        for face in draw_faces(2, frames=12)
    ]
    assert detect(noisy).result().is_detected
