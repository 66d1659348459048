"""A job reports which frames it leaves as they are, and why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lipsync_engine import ErrorCode, FaceChoice, LipSyncError, LipSyncPipeline, SyncParams
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


def test_job_lists_several_people_unless_one_is_chosen(
    clip: Path, voice: Path, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    pair = tmp_path / "pair.mp4"
    ffmpeg("-i", clip, "-t", 0.4, "-filter_complex", "split[a][b];[a][b]hstack", "-crf", 12, pair)
    short = tmp_path / "short.wav"
    ffmpeg("-i", voice, "-t", 0.4, short)
    pipeline = LipSyncPipeline.from_pretrained("tiny", device="cpu", cache_dir=tmp_path / "cache")
    for face, is_listed in ((FaceChoice(), True), (FaceChoice.parse("left"), False)):
        params = SyncParams(num_inference_steps=1, face=face)
        result = pipeline(pair, short, tmp_path / "out.mp4", params)
        warnings = [w for w in result.warnings if w.code is WarningCode.SEVERAL_PEOPLE]
        assert len(warnings) == is_listed
        assert all("face 0 at " in w and "face 1 at " in w for w in warnings)
    with pytest.raises(
        LipSyncError, match=r"No face matches face=4: .* at most 2 at once\. .*face 1 at"
    ) as wrong:
        pipeline(pair, short, tmp_path / "out.mp4", SyncParams(face=FaceChoice.parse("4")))
    assert wrong.value.code is ErrorCode.FACE_CHOICE_UNMATCHED
