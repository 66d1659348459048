"""Folders that commit e5b2546 wrote: its job and its batch are resumed, stored options do not change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from lipsync_engine import FaceChoice, LipSyncPipeline, LoopMode, SyncParams, Tail
from lipsync_engine.batch import BatchProgress, ModelOptions, RowStatus, run_batch
from lipsync_engine.params import FastSampling, Solver
from lipsync_engine.planning.plan import Plan
from lipsync_engine.rendering.segment_renderer import SharedPlan
from lipsync_engine.utils import drain

FOLDER = Path(__file__).parents[1] / "support" / "engine_dirs_e5b2546"
PARAMS = SyncParams(
    num_inference_steps=1, guidance_scale=1.0, seed=7, fast_sampling=FastSampling(Solver.UNIPC)
)
"""Options of the interrupted job."""


@pytest.fixture
def older(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "older"))


class PreviousAttempt:
    """`RemoteRenderers` with the remains of an earlier attempt and no other process."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files = files

    def previous_segments(self, key: str) -> Mapping[str, Path]:
        return self.files

    def publish(self, plan: SharedPlan) -> None:
        raise AssertionError("one segment is left, so nothing is shared")

    def next_segment(self) -> int | None:
        raise AssertionError("one segment is left, so nothing is shared")

    def segment_rendered(self, index: int) -> None:
        raise AssertionError("one segment is left, so nothing is shared")


def test_interrupted_job_of_older_version_is_resumed(older: Path, tmp_path: Path) -> None:
    """Its key contains the version, so the files are handed over as a server does it."""
    inputs, segment = older / "inputs", older / "job" / "segment-00000.mp4"
    pipeline = LipSyncPipeline.from_pretrained("tiny", device="cpu", cache_dir=tmp_path / "cache")
    steps = pipeline.run(
        inputs / "clip.mp4",
        inputs / "voice.mp3",
        tmp_path / "out.mp4",
        PARAMS,
        remote=PreviousAttempt({segment.name: segment}),
    )
    result = drain(steps)
    assert (result.segments, result.segments_resumed, result.frames) == (2, 1, 100)
    assert result.output.stat().st_size > 0


def test_plan_of_older_version_is_readable(older: Path) -> None:
    for name in ("clip.mp4", "voice.mp3"):
        shutil.copy(older / "inputs" / name, older / "job" / name)
    (older / "job" / "clip.mp4").rename(older / "job" / "video")
    plan = Plan.load_portable(older / "job")
    assert plan.header.params == PARAMS
    assert (plan.is_complete, plan.n_frames, plan.header.n_audio) == (True, 100, 100)
    assert [(segment.start, segment.stop) for segment in plan.segments] == [(0, 60), (60, 100)]
    before = (older / "job" / "plan.json").read_text()
    plan.save()
    after = json.loads((older / "job" / "plan.json").read_text())
    assert after.pop("video") | {"path": None} == json.loads(before)["video"] | {"path": None}
    assert after == {key: value for key, value in json.loads(before).items() if key != "video"}


def test_batch_of_older_version_is_resumed(older: Path, tmp_path: Path) -> None:
    out = older / "batch"
    reports: list[BatchProgress] = []
    steps = run_batch(
        older / "inputs" / "list.jsonl",
        out,
        SyncParams.preset("fastest", num_inference_steps=1),
        model_options=ModelOptions(cache_dir=tmp_path / "cache"),
    )
    result = drain(steps, reports.append)
    assert [row.status for row in result.results] == [RowStatus.DONE, RowStatus.FAILED]
    assert (result.resumed, reports[-1].resumed) == (1, 1)
    stats = result.results[0].stats
    assert stats is not None
    assert (stats.frames, stats.has_thumbnail, stats.is_signed) == (10, True, True)
    assert (out / "talk.mp4").read_bytes() == b"a result"
    lines = (out / "results.jsonl").read_text().splitlines()
    assert len(lines) == 4, "the second row is tried again after the line that was cut"
    first, again = json.loads(lines[0]), json.loads(lines[3])
    assert again.keys() == first.keys()
    assert again["row"] == 2


def test_stored_form_of_options_does_not_change() -> None:
    """Job keys, plans and batch rows contain it."""
    parsers: dict[str, Any] = {
        "fps": Fraction,
        "face": FaceChoice.parse,
        "loop_mode": LoopMode,
        "tail": Tail,
    }
    adapter = TypeAdapter(SyncParams)
    lines = (FOLDER / "params.jsonl").read_text().splitlines()
    assert len(lines) == 6
    for case in map(json.loads, lines):
        options = {name: parsers.get(name, lambda v: v)(value) for name, value in case["options"].items()}
        params = SyncParams.preset(case["preset"], **options)
        assert adapter.dump_json(params).decode() == case["stored"]
        assert adapter.validate_json(case["stored"]) == params
