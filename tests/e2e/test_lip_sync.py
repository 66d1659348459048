"""The tiny model truly speaks: a presenter, a voice and a sentence that it was never trained on.

What the lips do is read back from the finished video and compared with `demo/truth.json`, which knows what
they should do at every frame. Whether the measure would notice a system that does not work is tested too, by
breaking it in three ways.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lipsync_engine import LipSyncPipeline, SyncParams
from lipsync_engine.models.latentsync.model import LatentSync
from tests.support import mouth_score
from tests.support.mouth_score import Score, Truth
from tests.support.paths import DEMO

VIDEO, VOICE, TRUTH = DEMO / "presenter.mp4", DEMO / "voice.wav", DEMO / "truth.json"
SECONDS = 4.0
"""Of the sentence, where the whole of it is not needed."""

Ffmpeg = Callable[..., None]
Run = Callable[..., subprocess.CompletedProcess[str]]


CORRELATION = 0.8
"""One sentence may fall below what holds over the whole evaluation (0.85, benchmarks/tiny_sync.json)."""


def speaks(found: Score) -> bool:
    return (
        found.correlation >= CORRELATION
        and abs(found.offset) <= 1
        and found.closed >= 0.9
        and found.opened >= 0.9
    )


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth.load(TRUTH)


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory, ffmpeg: Ffmpeg) -> Path:
    path = tmp_path_factory.mktemp("voice") / "voice.wav"
    ffmpeg("-i", VOICE, "-t", SECONDS, path)
    return path


@pytest.fixture
def pipeline(tmp_path: Path) -> LipSyncPipeline:
    return LipSyncPipeline.from_pretrained("tiny", device="cpu", cache_dir=tmp_path / "cache")


def scored(pipeline: LipSyncPipeline, voice: Path, truth: Truth, folder: Path) -> Score:
    result = pipeline(VIDEO, voice, folder / "out.mp4", SyncParams(num_inference_steps=2))
    actual = mouth_score.score(mouth_score.read_video(result.output, truth), truth)
    print(actual)
    return actual


def test_lips_follow_the_voice(voice: Path, truth: Truth, tmp_path: Path, lipsync: Run) -> None:
    result = lipsync("sync", VIDEO, voice, "-o", tmp_path / "out.mp4", "--steps", 2)
    assert result.returncode == 0, result.stderr[-2000:]
    actual = mouth_score.score(mouth_score.read_video(tmp_path / "out.mp4", truth), truth)
    print(actual)
    assert speaks(actual)
    scored_again = lipsync(
        "score", tmp_path / "out.mp4", "--detector", "drawn", "--json", "--min-confidence", 0.8
    )
    measured = json.loads(scored_again.stdout)
    assert (scored_again.returncode, measured["network"]) == (0, "sync-tiny")
    assert all(0 <= start_s < stop_s for start_s, stop_s in measured["pauses_s"])
    of_job = re.search(r"lips and voice: confidence (\S+), lips (at the same time|1 frame)", result.stdout)
    print(measured, result.stdout)
    assert of_job is not None  # measured by the plan, over other stretches
    assert float(of_job[1]) == pytest.approx(measured["confidence"], abs=0.6)


# --- the measure bites: each of these must not count as speaking ---


@pytest.mark.slow
def test_score_detects_another_voice(
    voice: Path, truth: Truth, tmp_path: Path, ffmpeg: Ffmpeg, pipeline: LipSyncPipeline
) -> None:
    backwards = tmp_path / "backwards.wav"
    ffmpeg("-i", voice, "-af", "areverse", backwards)
    result = scored(pipeline, backwards, truth, tmp_path)
    assert not speaks(result)
    assert result.correlation < 0.4


@pytest.mark.slow
def test_score_detects_a_model_without_audio(
    voice: Path, truth: Truth, tmp_path: Path, pipeline: LipSyncPipeline
) -> None:
    assert isinstance(pipeline.model, LatentSync)
    with torch.no_grad():
        for name, weight in pipeline.model.unet.named_parameters():
            if "attn2.to_out" in name:
                weight.zero_()
    result = scored(pipeline, voice, truth, tmp_path)
    assert not speaks(result)
    assert result.correlation < 0.5


@pytest.mark.slow
def test_score_detects_late_lips(
    voice: Path, truth: Truth, tmp_path: Path, ffmpeg: Ffmpeg, pipeline: LipSyncPipeline
) -> None:
    late = tmp_path / "late.wav"
    ffmpeg("-i", voice, "-af", "adelay=200:all=1", late)  # 5 frames
    result = scored(pipeline, late, truth, tmp_path)
    assert not speaks(result)
    assert result.offset == pytest.approx(5, abs=1)
