"""Procedural head motion, blinks and ping-pong playback."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lipsync_engine import media
from lipsync_engine.faces.registry import load_detector
from lipsync_engine.portrait import animation
from lipsync_engine.weights import WeightsStore
from tests.support.paths import DEMO_VIDEO


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory, ffmpeg: Callable[..., None]) -> Path:
    """The demo's presenter, 384 x 384."""
    path = tmp_path_factory.mktemp("face") / "face.png"
    ffmpeg("-i", DEMO_VIDEO, "-frames:v", 1, path)
    return path


def test_head_motion_is_smooth_and_follows_the_voice() -> None:
    activity = np.concatenate([np.zeros(75), np.tile([1, 1, 1, 0.2, 0.2, 0.8], 25), np.zeros(75)])
    moves = animation.generate_head_motion(activity.astype(np.float32), seed=3)
    assert np.abs(np.diff(moves.shift, axis=0)).max() < 0.012
    assert np.abs(np.diff(moves.roll_deg)).max() < 0.25
    assert np.abs(moves.shift[80:225]).mean() > np.abs(moves.shift[:70]).mean()
    blinks = np.flatnonzero(np.diff((moves.lids > 0.9).astype(int)) == 1)
    assert 2 <= len(blinks) <= 6
    again, other = (
        animation.generate_head_motion(activity.astype(np.float32), seed=3),
        animation.generate_head_motion(activity.astype(np.float32), 4),
    )
    assert np.array_equal(moves.shift, again.shift)
    assert not np.array_equal(moves.shift, other.shift)


def test_closed_lid_covers_the_drawn_eye(face: Path) -> None:
    picture = media.read_image(face)
    points = np.array([[165.4, 144.0], [231.4, 141.7], [203.2, 202.5]], dtype=np.float32)
    still = animation.HeadMotion(
        *(np.zeros(shape, np.float32) for shape in ((2, 2), 2, 2)), np.array([0, 1], np.float32)
    )
    open_frame, closed_frame = animation.animate_image(
        picture, [points], [still], [animation.drawn_eyes(points)]
    )
    assert np.abs(open_frame.astype(int) - picture).max() <= 1
    eye = np.s_[158:172, 160:176]
    skin = picture[190:200, 150:165].mean(axis=(0, 1))
    off = (
        np.abs(closed_frame[eye].astype(float) - skin).mean(),
        np.abs(open_frame[eye].astype(float) - skin).mean(),
    )
    assert off[0] < 0.5 * off[1]
    changed = np.abs(closed_frame.astype(int) - open_frame).max(axis=2) > 8
    rows = np.flatnonzero(changed.any(axis=1))
    assert rows.min() > 146  # the brows stay
    assert rows.max() < 182


def test_photographed_eyes_blink(real_media: Path) -> None:
    """The eyes of a tilted head are located and closed, and nothing else moves."""
    clip = next(real_media.glob("talking_person*.mp4"))
    photo = next(itertools.islice((p for _, p in media.scan_frames(media.probe_video(clip), 1920)), 60, None))
    (detection,) = load_detector("yunet", WeightsStore()).detect(photo)
    eyes = animation.photographed_eyes(photo, detection.points)
    # As read off the picture by hand, in pixels.
    for eye, place in zip(eyes, ((531, 703), (627, 721)), strict=True):
        assert np.abs(eye.centre - place).max() < 8
        assert 18 < eye.half_width < 28
        assert 5 < eye.half_height < 11
    zeros = np.zeros(2, np.float32)
    still = animation.HeadMotion(np.zeros((2, 2), np.float32), zeros, zeros, np.array([0, 1], np.float32))
    open_frame, closed_frame = animation.animate_image(photo, [detection.points], [still], [eyes])
    for eye in eyes:
        x, y = np.rint(eye.centre).astype(int)
        iris = np.s_[y - 3 : y + 4, x - 3 : x + 4]
        assert closed_frame[iris].mean() > open_frame[iris].mean() + 25
    changed = np.argwhere(np.abs(closed_frame.astype(int) - open_frame).max(axis=2) > 3)
    away = np.min([np.abs(changed[:, ::-1] - eye.centre).max(axis=1) for eye in eyes], axis=0)
    assert away.max() < 40


def test_unclear_eyes_do_not_blink() -> None:
    points = np.array([[130, 120], [250, 120], [190, 190]], np.float32)
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    for picture in (noise, np.full((400, 400, 3), 128, np.uint8), noise[:150, :150].copy()):
        assert animation.photographed_eyes(picture, points) == ()


def test_pingpong_positions_never_jump(subtests: pytest.Subtests) -> None:
    for length in [1, 2, 3, 8, 9, 121]:
        with subtests.test(length=length):
            positions = animation.pingpong_positions(length, 1000)
            assert positions[0] == 0
            assert (positions.min(), positions.max()) == (0, length - 1)
            assert np.abs(np.diff(positions)).max() <= 1
            assert np.abs(np.diff(positions, 2)).max() <= (2 if length < 3 else 0.5)
            for end in (0, length - 1) if length > 1 else ():
                shown = np.flatnonzero(positions == end)
                assert np.diff(shown).min() > 1  # an end is shown once, not twice
            if length == 121:
                fast = np.abs(np.diff(positions)) == 1
                assert fast.mean() > 0.75
                assert set(positions[1:][fast] % 1) == {0}
                assert set(np.unique(positions[positions % 1 == 0])) >= set(range(6, 115))


def test_pingpong_frames_change_least_at_the_turns() -> None:
    rng = np.random.default_rng(1)
    walk = np.cumsum(rng.normal(0, 4, (30, 16, 16, 3)), axis=0) + 128
    clip = list(np.clip(walk, 0, 255).astype(np.uint8))
    shown = np.stack(list(animation.pingpong_frames(clip, 200))).astype(float)
    inside = np.abs(np.diff(np.stack(clip).astype(float), axis=0)).mean(axis=(1, 2, 3))
    steps = np.abs(np.diff(shown, axis=0)).mean(axis=(1, 2, 3))
    assert steps.max() <= inside.max() + 0.5  # rounding of mixed pictures
    positions = animation.pingpong_positions(30, 200)
    turns = np.flatnonzero((positions == 0) | (positions == 29))[1:-1]
    assert len(turns) >= 3
    for turn in turns:
        assert steps[turn - 1 : turn + 1].max() < 0.3 * inside.max()
    assert np.array_equal(shown[0], clip[0])
