"""A job reports which frames it leaves as they are, and why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lipsync_engine import ErrorCode, LipSyncError, LipSyncPipeline, SyncParams
from lipsync_engine.result import WarningCode

Ffmpeg = Callable[..., None]


def test_job_counts_untouched_frames_by_reason(
    clip: Path, voice: Path, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    gap = tmp_path / "gap.mp4"
    ffmpeg("-i", clip, "-vf", "drawbox=color=gray:t=fill:enable='between(t,0.2,0.9)'", "-crf", 12, gap)
    pipeline = LipSyncPipeline.from_pretrained("tiny", device="cpu", cache_dir=tmp_path / "cache")
    result = pipeline(gap, voice, tmp_path / "out.mp4", SyncParams(num_inference_steps=1))
    assert set(result.untouched) == {"no_face"}
    assert 10 <= result.untouched["no_face"] == result.frames_without_face
    (warning,) = [w for w in result.warnings if w.code is WarningCode.FRAMES_UNTOUCHED]
    assert f"{result.frames_without_face} of {result.frames} frames" in warning
    assert "show no face" in warning


def test_tiny_refuses_a_detector_of_people_unless_forced() -> None:
    with pytest.raises(LipSyncError, match="drawn presenters only") as refused:
        LipSyncPipeline.from_pretrained("tiny", device="cpu", detector="yunet")
    assert refused.value.code is ErrorCode.PARAMETER_INVALID
    assert LipSyncPipeline.from_pretrained("tiny", device="cpu", detector="yunet", force=True)
