"""Conversion of AVI, WMV and FLV."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lipsync_engine import media
from lipsync_engine.errors import MediaError
from lipsync_engine.media.legacy import convert_legacy_video

CODECS = {
    "avi": ("mpeg4", "mp3"),
    "wmv": ("wmv2", "wmav2"),
    "flv": ("flv1", "mp3"),
}


def test_legacy_formats_become_mp4(
    subtests: pytest.Subtests, tmp_path: Path, ffmpeg: Callable[..., None], clip: Path, voice: Path
) -> None:
    for suffix, (video_codec, audio_codec) in CODECS.items():
        source = tmp_path / f"clip.{suffix}"
        audio = ("-i", voice, "-acodec", audio_codec, "-ar", 44100) if suffix != "flv" else ()
        ffmpeg("-i", clip, *audio, "-vcodec", video_codec, "-q:v", 2, "-t", 0.4, source)
        source = source.rename(tmp_path / f"{suffix}.bin")  # as the server stores it
        with subtests.test(suffix=suffix):
            with pytest.raises(MediaError):
                media.probe_video(source)
            info = media.probe_video(convert_legacy_video(source, tmp_path / f"{suffix}.mp4"))
            assert (info.format.width, info.format.height) == (320, 320)
            assert len(list(media.scan_frames(info, 64))) == 10


def test_other_files_are_left_alone(tmp_path: Path, clip: Path) -> None:
    output = tmp_path / "out.mp4"
    assert convert_legacy_video(clip, output) == clip
    assert not output.exists()


def test_codec_outside_of_the_list_is_refused(
    tmp_path: Path, ffmpeg: Callable[..., None], clip: Path
) -> None:
    source = tmp_path / "clip.avi"
    ffmpeg("-i", clip, "-vcodec", "cinepak", "-vf", "scale=64:64", "-frames:v", 2, source)
    with pytest.raises(MediaError, match="convert it to mp4"):
        convert_legacy_video(source, tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()
