"""A batch on a Ray cluster of several nodes here: the same results, whatever machines come and go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from lipsync_engine import SyncParams, batch
from lipsync_engine.batch import BatchResult, ModelOptions, RowStatus, run_batch
from lipsync_engine.batch.manifest import read_manifest
from lipsync_engine.batch.results import ResultLog
from lipsync_engine.batch.runner import BatchRunner
from lipsync_engine.batch.worker_process import LocalBackend, LocalWorker, OnMessage, WorkerHandle
from lipsync_engine.errors import ErrorCode, ResourceError
from lipsync_engine.params import BatchEngine
from lipsync_engine.provenance import ManifestSigner
from lipsync_engine.utils import drain
from tests.support.ray_nodes import add_node, open_cluster

Ffmpeg = Callable[..., None]

QUICK = SyncParams(num_inference_steps=1, guidance_scale=1)
ROWS = 4
DEADLINE_S = 240


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, ffmpeg: Ffmpeg, clip: Path, voice: Path) -> Path:
    """Clips of a presenter that differ in their seeds."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "talk.mp4").hardlink_to(clip)
    ffmpeg("-i", voice, "-t", 0.8, folder / "talk.wav")
    rows = [{"video": "talk.mp4", "audio": "talk.wav", "seed": n, "output": f"{n}.mp4"} for n in range(ROWS)]
    path = folder / "list.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without a place for workers; this program, and those that it starts, find it by RAY_ADDRESS."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'lipsync-engine[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        opened = open_cluster()
        patch.setenv("RAY_ADDRESS", opened.address)
        yield opened
        opened.shutdown()


@pytest.fixture
def nodes(cluster: Any) -> Iterator[list[Any]]:
    """Two machines with a place each."""
    opened = [add_node(cluster, num_cpus=1) for _ in range(2)]
    yield opened
    for node in opened:
        if node in cluster.worker_nodes:
            cluster.remove_node(node)


def lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "results.jsonl"
    whole = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in whole]


def told(result: BatchResult) -> list[tuple[object, ...]]:
    """What does not depend on who made it, and when."""
    return [
        (one.row, one.status, one.output, one.inputs, one.options_sha256, one.stats and one.stats.frames)
        for one in result.results
    ]


Look = Callable[[batch.BatchProgress], None]


def made(source: Path, output: Path, look: Look, **options: Any) -> BatchResult:
    return drain(run_batch(source, output, QUICK, **options), look)


@pytest.mark.slow
def test_two_nodes_give_the_results_of_one_process(
    manifest: Path,
    tmp_path: Path,
    cache_dir: Path,
    nodes: list[Any],
    likeness_db: Callable[[Path, Path], float],
) -> None:
    at_once: list[int] = []
    here = made(
        manifest, tmp_path / "here", lambda _: None, model_options=ModelOptions(cache_dir=cache_dir / "here")
    )
    there = made(
        manifest,
        tmp_path / "there",
        lambda seen: at_once.append(len(seen.running)),
        model_options=ModelOptions(cache_dir=cache_dir / "there"),
        engine=BatchEngine.RAY,
    )
    assert told(there) == told(here)
    assert [one.status for one in there.results] == [RowStatus.DONE] * ROWS
    assert max(at_once) == 2, "a machine without work"
    for number in range(ROWS):
        assert likeness_db(tmp_path / "here" / f"{number}.mp4", tmp_path / "there" / f"{number}.mp4") > 55
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == sorted(
        path.name for path in (tmp_path / "here").iterdir()
    )
    assert (tmp_path / "there" / "report.html").read_text().count("<tr class=done>") == ROWS


@pytest.mark.slow
def test_clip_of_a_lost_node_is_rendered_by_another(
    manifest: Path, tmp_path: Path, cache_dir: Path, cluster: Any, nodes: list[Any]
) -> None:
    def look(seen: batch.BatchProgress) -> None:
        both_work = sum(one.stage is not None for one in seen.running) == 2
        if both_work and nodes[1] in cluster.worker_nodes:
            cluster.remove_node(nodes[1], allow_graceful=False)

    result = made(
        manifest,
        tmp_path / "out",
        look,
        model_options=ModelOptions(cache_dir=cache_dir),
        engine=BatchEngine.RAY,
        workers=2,
    )
    assert nodes[1] not in cluster.worker_nodes
    assert [one.status for one in result.results] == [RowStatus.DONE] * ROWS
    assert sorted(one.attempts for one in result.results) == [1] * (ROWS - 1) + [2]


@pytest.mark.slow
def test_killed_batch_frees_the_cluster_and_resumes(
    manifest: Path, tmp_path: Path, cache_dir: Path, nodes: list[Any], environment: Mapping[str, str]
) -> None:
    out = tmp_path / "out"
    options = ("--engine", "ray", "--steps", "1", "--guidance-scale", "1")
    command = [sys.executable, "-m", "lipsync_engine.cli", "batch", str(manifest), "-o", str(out), *options]
    process = subprocess.Popen(command, env=dict(environment), stderr=subprocess.PIPE, text=True)
    with process:
        for _ in range(20 * DEADLINE_S):
            if lines(out):
                break
            try:
                process.wait(timeout=0.05)
            except subprocess.TimeoutExpired:
                continue
            pytest.fail(f"the batch ended: {process.stderr.read()[-2000:]}" if process.stderr else "")
        workers = workers_with(cache_dir)
        process.kill()
    assert len(workers) == 2
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    previous = {line["output"]: (out / line["output"]).stat().st_mtime_ns for line in lines(out)}
    assert 1 <= len(previous) < ROWS, "nothing is left to do: the batch was killed too late"
    again = subprocess.run(
        command, env=dict(environment), capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert again.returncode == 0, again.stderr[-2000:]
    assert f"{ROWS} of {ROWS} clips are done, {len(previous)} of them before" in again.stdout
    assert {name: (out / name).stat().st_mtime_ns for name in previous} == previous
    assert psutil.wait_procs(workers_with(cache_dir), timeout=30)[1] == []


def workers_with(cache_dir: Path) -> list[psutil.Process]:
    """Workers of batches with this cache, whoever started them."""
    matches = []
    for process in psutil.process_iter():
        try:
            if "lipsync_engine.batch.worker" in process.cmdline() and str(cache_dir) == process.environ().get(
                "LIPSYNC_CACHE_DIR"
            ):
                matches.append(process)
        except psutil.Error:  # it has ended
            continue
    return matches


def test_missing_cluster_is_reported(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'lipsync-engine[ray]'")
    out = tmp_path / "out"
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ResourceError, match="lipsync cluster up") as away:
        next(run_batch(manifest, out, QUICK, engine=BatchEngine.RAY))
    assert away.value.code is ErrorCode.CLUSTER_AWAY
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(ResourceError, match="belongs to no cluster"):
        next(run_batch(manifest, out, QUICK, engine=BatchEngine.RAY))
    assert not out.exists()


def test_missing_ray_is_reported(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lipsync_engine.batch.ray_backend", raising=False)
    monkeypatch.delattr(batch, "ray_backend", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    with pytest.raises(ResourceError, match=r"lipsync-engine\[ray\]") as missing:
        next(run_batch(manifest, tmp_path / "out", QUICK, engine=BatchEngine.RAY))
    assert missing.value.code is ErrorCode.CLUSTER_AWAY


def test_node_without_the_shared_folders_is_reported(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'lipsync-engine[ray]'")
    from lipsync_engine.batch.ray_backend import SharedPaths

    out, inputs = tmp_path / "out", tmp_path / "in"
    inputs.mkdir()
    out.mkdir()
    folders = SharedPaths(out, ".mark", [inputs])
    problem = folders.find_problem()
    assert problem is not None, "an empty folder is taken for the batch's"
    assert problem[0] is ErrorCode.OUTPUT_NOT_WRITABLE
    (out / ".mark").touch()
    assert folders.find_problem() is None
    assert os.listdir(out) == [".mark"]  # noqa: PTH208
    problem = SharedPaths(out, ".mark", [inputs, tmp_path / "gone"]).find_problem()
    assert problem is not None
    assert (problem[0], str(tmp_path / "gone") in problem[1]) == (ErrorCode.INPUT_NOT_FOUND, True)


def test_jobs_of_an_unusable_worker_are_reassigned(manifest: Path, tmp_path: Path, cache_dir: Path) -> None:
    """The second of two workers is to use a device that does not exist."""
    options = ModelOptions(cache_dir=cache_dir, device="cpu")

    class UnevenBackend(LocalBackend):
        def start_worker(self, index: int, size: int, on_message: OnMessage, log: IO[bytes]) -> WorkerHandle:
            device = "cuda:99" if index else "cpu"
            return LocalWorker(replace(options, device=device), index, 1, on_message, log)

    out = tmp_path / "out"
    out.mkdir()
    with ResultLog(out) as log:
        rows = read_manifest(manifest, QUICK, out)
        runner = BatchRunner(rows, out, log, options, ManifestSigner.from_environment())
        for _ in runner.check_rows():
            pass
        for _ in runner.run_jobs(UnevenBackend(options), 2):
            pass
    assert [result.status for result in runner.results.values()] == [RowStatus.DONE] * ROWS
    assert {result.attempts for result in runner.results.values()} == {1}
    (warning,) = runner.warnings
    assert "cuda:99" in warning
