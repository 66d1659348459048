"""Still portraits that speak: pictures of any kind in, a head that moves without tearing anything out."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lipsync_engine import LipSyncPipeline, Motion, Stage, SyncParams, media
from lipsync_engine.errors import ErrorCode, LipSyncError
from tests.support import mouth_score
from tests.support.mouth_score import Truth
from tests.support.paths import DEMO

Ffmpeg = Callable[..., None]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory, ffmpeg: Ffmpeg) -> Path:
    """The demo's presenter, 384 x 384."""
    path = tmp_path_factory.mktemp("face") / "face.png"
    ffmpeg("-i", DEMO / "presenter.mp4", "-frames:v", 1, path)
    return path


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth.load(DEMO / "truth.json")


def test_command_lip_syncs_an_image(
    face: Path, truth: Truth, tmp_path: Path, ffmpeg: Ffmpeg, lipsync: Run, cache_dir: Path
) -> None:
    voice = tmp_path / "voice.wav"
    ffmpeg("-i", DEMO / "voice.wav", "-t", 3, voice)
    output = tmp_path / "made.mp4"
    result = lipsync("portrait", face, voice, "-o", output, "--motion", "still")
    assert result.returncode == 0, result.stderr[-2000:]
    info = media.probe_video(output)
    assert (info.format.width, info.format.height, info.frame_rate) == (384, 384, 25)
    still = Truth(truth.identity, truth.poses[:1] * 75, truth.openness, truth.events)
    read = mouth_score.read_video(output, still)
    assert len(read) == 75
    assert mouth_score.correlation(read, truth.openness[:75]) > 0.7
    assert list((cache_dir / "jobs").iterdir()) == []


def test_portrait_moves_without_tearing(face: Path, voice: Path, tmp_path: Path) -> None:
    pipeline = LipSyncPipeline.from_pretrained("tiny", device="cpu", cache_dir=tmp_path / "cache")
    params = SyncParams(num_inference_steps=1, guidance_scale=1.0, max_short_side=256)
    reports = list(pipeline.run_portrait(face, voice, tmp_path / "made.mp4", params))
    assert [stage for stage, _ in itertools.groupby(report.stage for report in reports)] == [
        Stage.MOTION, Stage.AUDIO, Stage.FACES, Stage.RENDER, Stage.ASSEMBLE,
    ]  # fmt: skip
    pictures = [p.astype(int) for _, p in media.scan_frames(media.probe_video(tmp_path / "made.mp4"), 256)]
    assert len(pictures) == 38
    assert pictures[0].shape == (256, 256, 3)
    first = pictures[0]
    for picture in pictures[1:]:
        for corner in (np.s_[:24, :24], np.s_[:24, -24:]):  # the background behind the head
            assert np.abs(picture[corner] - first[corner]).max() < 12
    eyes = np.s_[80:110, 80:170]
    assert max(np.abs(picture[eyes] - first[eyes]).mean() for picture in pictures) > 2


# --- pictures ---


def test_image_without_a_face_is_rejected(voice: Path, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    grey = tmp_path / "grey.png"
    ffmpeg("-f", "lavfi", "-i", "color=gray:s=128x128", "-frames:v", 1, grey)
    pipeline = LipSyncPipeline.from_pretrained("tiny", device="cpu", cache_dir=tmp_path / "cache")
    for how in (Motion.STILL, Motion.NATURAL):
        with pytest.raises(LipSyncError) as error:
            list(pipeline.run_portrait(grey, voice, tmp_path / "made.mp4", motion=how))
        assert error.value.code is ErrorCode.FACE_NOT_FOUND
    assert list((tmp_path / "cache" / "jobs").iterdir()) == []
    assert not (tmp_path / "made.mp4").exists()
