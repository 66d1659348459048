"""The real clip and the real speech, with the detectors that ship."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lipsync_engine import LipSyncPipeline, media
from lipsync_engine.errors import EXIT_STATUS, ErrorCode
from lipsync_engine.faces.registry import load_detector
from lipsync_engine.weights import WeightsStore
from tests.support.stand_in import StandIn

Ffmpeg = Callable[..., None]
Run = Callable[..., subprocess.CompletedProcess[str]]


def luma_and_times(path: Path) -> tuple[list[np.ndarray], np.ndarray]:
    info = media.probe_video(path)
    pts_s = np.array([pts for pts, _ in media.scan_frames(info, 64)])
    with media.FrameReader(info, pts_s) as reader:
        return [frame.y for frame in reader.read(range(0, len(pts_s), 5))], pts_s


def test_tiny_model_rejects_a_real_face(
    real_media: Path, tmp_path: Path, ffmpeg: Ffmpeg, lipsync: Run
) -> None:
    clip, voice, output = tmp_path / "clip.mp4", tmp_path / "voice.wav", tmp_path / "out.mp4"
    ffmpeg("-i", real_media / "talking_person_1080x1920_25fps.mp4", "-t", 3, "-c", "copy", clip)
    ffmpeg("-i", real_media / "speech_10s.wav", "-t", 3, voice)
    began = time.monotonic()
    rejection = lipsync("sync", clip, voice, "-o", output, "--detector", "yunet")
    assert rejection.returncode == EXIT_STATUS[ErrorCode.PARAMETER_INVALID], rejection.stderr[-2000:]
    assert "weights pull latentsync-1.6" in rejection.stderr
    assert time.monotonic() - began < 20, "refused before the model is loaded"
    result = lipsync("sync", clip, voice, "-o", output, "--detector", "yunet", "--force")
    assert result.returncode == EXIT_STATUS[ErrorCode.OUTPUT_MISCOLOURED], result.stderr[-2000:]
    assert "tiny" in result.stderr
    assert not output.exists()


@pytest.mark.slow
def test_real_clip_is_unchanged_around_the_face(real_media: Path, tmp_path: Path) -> None:
    """Everything but the network is real here: a stand-in of a real model's size takes its place."""
    clip, output = real_media / "talking_person_1080x1920_25fps.mp4", tmp_path / "out.mp4"
    detector = load_detector("yunet", WeightsStore())
    pipeline = LipSyncPipeline(StandIn(), detector, cache_dir=tmp_path / "cache")
    result = pipeline(clip, real_media / "speech_10s.wav", output)
    assert (result.frames, result.frames_without_face) == (240, 0)  # 9.6 s of speech

    source, created = media.probe_video(clip), media.probe_video(output)
    assert (created.format.width, created.format.height) == (1080, 1920)
    assert created.frame_rate == source.frame_rate
    assert (created.color_space, created.color_range) == (source.color_space, source.color_range)
    before, _ = luma_and_times(clip)
    after, pts_s = luma_and_times(output)
    assert len(pts_s) == 240
    assert np.allclose(np.diff(pts_s), 0.04, atol=1e-6)

    # Outside the face crop the pixels are the source's; inside the mouth they are not.
    outside = np.ones((1920, 1080), dtype=bool)
    outside[500:900, 400:800] = False
    errors = [
        np.mean((b[outside].astype(float) - a[outside]) ** 2) for b, a in zip(before, after, strict=False)
    ]
    psnr = 10 * np.log10(255**2 / np.mean(errors))
    mouth = [
        np.abs(b[700:820, 500:680].astype(float) - a[700:820, 500:680]).mean()
        for b, a in zip(before, after, strict=False)
    ]
    print(f"PSNR outside the face {psnr:.1f} dB, mean change in it {np.mean(mouth):.1f} levels")
    assert psnr > 45
    assert np.mean(mouth) > 1.0
