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
    """Its segment is kept and the rest is planned again; its files are adopted as on a server."""
    inputs = older / "inputs"
    files = {path.name: path for path in (older / "job").iterdir()}
    assert set(files) == {"plan.json", "plan.npz", "segment-00000.mp4"}
    pipeline = LipSyncPipeline.from_pretrained("tiny", device="cpu", cache_dir=tmp_path / "cache")
    steps = pipeline.run(
        inputs / "clip.mp4",
        inputs / "voice.mp3",
        tmp_path / "out.mp4",
        PARAMS,
        remote=PreviousAttempt(files),
    )
    result = drain(steps)
    assert (result.segments, result.segments_resumed, result.frames) == (2, 1, 100)
    assert result.output.stat().st_size > 0


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
        assert adapter.dump_json(params, exclude=params.new_options_at_default()).decode() == case["stored"]
        assert adapter.validate_json(case["stored"]) == params
