"""The unseen mark: found where it is and nowhere else, and too weak to be seen."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from lipsync_engine.faces import compositor
from lipsync_engine.models.latentsync.mask import load_fixed_mask
from lipsync_engine.provenance.watermark import WatermarkReader, marked
from lipsync_engine.provenance.watermark.pattern import SIDE, THRESHOLD

FloatArray = npt.NDArray[np.float32]


def faces(seed: int, side: int = 256, frames: int = 6) -> list[FloatArray]:
    """Blotches like skin, a dark mouth that moves."""
    rng = np.random.default_rng(seed)
    skin = cv2.GaussianBlur(rng.normal(0, 1, (side, side, 3)).astype(np.float32), (0, 0), side / 100)
    skin = 150 + 4 * skin / skin.std()
    made = []
    for number in range(frames):
        face = skin.copy()
        size = (side // 6, side // 40 + number * side // 80)
        cv2.ellipse(face, (side // 2, side * 5 // 8), size, 0, 0, 360, (70, 30, 30), -1)
        made.append(face)
    return made


def read(shown: list[FloatArray], move: FloatArray | None = None) -> WatermarkReader:
    reader = WatermarkReader()
    for face in shown:
        small = cv2.resize(face, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        if move is not None:
            small = cv2.warpAffine(small, move, (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE)
        reader.add(np.asarray(small, np.float32))
    return reader


@pytest.mark.parametrize("side", [256, 512])
def test_marked_faces_are_told_from_others(side: int) -> None:
    for seed in range(3):
        shown = faces(seed, side)
        assert not read(shown).result().found
        found = read([marked(face) for face in shown]).result()
        assert (found.found, found.frames) == (True, len(shown))
        assert found.score > THRESHOLD + 2


def test_what_is_in_no_mark_is_not_found_in_a_marked_face() -> None:
    scores = read([marked(face) for face in faces(5)]).scores()
    assert scores.argmax() == 0
    assert scores[1:].max() < THRESHOLD


def test_without_faces_nothing_is_found() -> None:
    found = WatermarkReader().result()
    assert (found.found, found.score, found.frames) == (False, 0.0, 0)


def test_it_lies_in_what_is_generated_and_is_weak() -> None:
    kept = compositor.soft_mask(load_fixed_mask(256).astype(np.float32)) == 0
    generated = load_fixed_mask(256) < 0.5
    for seed in range(3):
        face = faces(seed)[2]
        added = marked(face) - face
        assert np.abs(added[kept]).max() < 0.1
        noise = np.square(added[generated]).mean()
        assert 42 < 10 * np.log10(255**2 / noise) < 60
        assert abs(added[generated].mean()) < 0.1
        assert np.allclose(added[..., 0], added[..., 2], atol=1e-3)  # luma alone


def test_another_alignment_finds_it(subtests: pytest.Subtests) -> None:
    for scale, x, y in [(1.0, 2.0, -3.0), (1.02, 0.0, 1.5), (0.98, -2.5, 0.0)]:
        with subtests.test(scale=scale, x=x, y=y):
            rest = (SIDE - 1) / 2 * (1 - scale)
            move = np.array([[scale, 0, rest + x], [0, scale, rest + y]], np.float32)
            assert read([marked(face) for face in faces(1)], move).result().found
            assert not read(faces(1), move).result().found


def test_noise_that_is_stronger_than_the_mark_averages_out() -> None:
    rng = np.random.default_rng(8)
    noisy = [marked(face) + rng.normal(0, 6, face.shape).astype(np.float32) for face in faces(2, frames=12)]
    assert read(noisy).result().found
