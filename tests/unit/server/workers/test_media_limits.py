"""Vendors' limits as the vendors read them: of frames, with a tolerance, in MiB."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lipsync_engine.errors import MediaError
from server.api.wavespeed_models import MODELS
from server.jobs.inputs import _check
from server.jobs.request import MIB, MediaLimits, Role
from server.storage.transport import TransportError
from server.workers.main import _require_video
from tests.conftest import Ffmpeg

KLING = MODELS["kwaivgi/kling-lipsync/audio-to-video"].schema
LENGTH = MediaLimits(min_s=2, max_s=10)
SIDES = MediaLimits(min_side_px=720, max_side_px=1920, short_sides_px=(720, 1080))


def film(ffmpeg: Ffmpeg, path: Path, frames: int = 1, size: str = "64x64", sound_s: float = 0) -> Path:
    sound = ["-f", "lavfi", "-i", f"sine=duration={sound_s}"] if sound_s else []
    source = f"color=gray:size={size}:rate=24"
    ffmpeg("-f", "lavfi", "-i", source, *sound, "-frames:v", frames, "-preset", "ultrafast", path)
    return path


def problem(path: Path, limits: MediaLimits) -> str:
    try:
        _require_video(path, limits)
    except MediaError as error:
        return error.message
    return ""


def test_length_is_that_of_the_frames_with_half_a_second_of_tolerance(
    subtests: pytest.Subtests, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    for frames, sound_s, expected in (
        (241, 0.0, ""),  # what cameras and generators call ten seconds
        (240, 12.0, ""),
        (47, 0.0, ""),
        (255, 0.0, "10.62 s"),
        (30, 10.0, "1.25 s"),
    ):
        with subtests.test(frames=frames, sound_s=sound_s):
            path = film(ffmpeg, tmp_path / f"{frames}.mp4", frames, sound_s=sound_s)
            message = problem(path, LENGTH)
            assert (expected in message) if expected else message == ""


def test_only_720p_and_1080p_are_accepted(subtests: pytest.Subtests, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    for size, expected in (
        ("1280x720", ""),
        ("1080x1920", ""),
        ("1920x1088", ""),
        ("720x720", ""),
        ("1600x900", "720p or 1080p"),
        ("640x360", "from 720 to 1920"),
        ("2560x1080", "from 720 to 1920"),
    ):
        with subtests.test(size=size):
            message = problem(film(ffmpeg, tmp_path / f"{size}.mp4", size=size), SIDES)
            assert (expected in message) if expected else message == ""
            assert not message or size in message


def test_sizes_are_counted_in_mib(tmp_path: Path) -> None:
    limits, path = KLING.limits_of(Role.AUDIO), tmp_path / "voice.wav"
    assert limits.max_bytes == 5 * MIB
    with path.open("wb") as file:
        file.write(b"RIFF\0\0\0\0WAVE")
        file.truncate(5 * MIB)
        _check(path, Role.AUDIO, limits)
        file.truncate(5 * MIB + 1)
    with pytest.raises(
        TransportError, match=re.escape("5,242,881 bytes; this model takes at most 5,242,880")
    ):
        _check(path, Role.AUDIO, limits)


def test_limits_of_kling_are_the_vendors() -> None:
    assert KLING.limits_of(Role.VIDEO) == MediaLimits(
        formats=("mp4", "mov"),
        max_bytes=100 * MIB,
        min_s=2,
        max_s=10,
        min_side_px=720,
        max_side_px=1920,
        short_sides_px=(720, 1080),
    )
