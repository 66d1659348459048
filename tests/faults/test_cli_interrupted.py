"""Killed and interrupted runs: real processes, real signals; what is finished is never rendered again."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lipsync_engine.errors import EXIT_STATUS, ErrorCode
from tests.support.cli_process import start_cli, wait_while_running
from tests.support.polling import wait_until
from tests.support.processes import pids_naming

Ffmpeg = Callable[..., None]
Run = Callable[..., subprocess.CompletedProcess[str]]
Likeness = Callable[[Path, Path], float]


@pytest.fixture(scope="module")
def long_job(clip: Path, make_voice: Callable[[float], Path]) -> list[str]:
    """Arguments of a job with two segments of 2.4 s."""
    return [str(clip), str(make_voice(4.8)), "--steps", "1", "--guidance-scale", "1"]


def finished_segments(cache_dir: Path) -> dict[str, tuple[int, int]]:
    result = cache_dir.glob("jobs/*/segment-?????.mp4")
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in result}


def test_killed_job_resumes_with_the_unfinished_segments(
    long_job: list[str],
    tmp_path: Path,
    cache_dir: Path,
    environment: dict[str, str],
    lipsync: Run,
    likeness_db: Likeness,
) -> None:
    straight, resumed = tmp_path / "straight.mp4", tmp_path / "resumed.mp4"
    process = start_cli(environment, "sync", *long_job, "-o", resumed)
    wait_while_running(lambda: len(finished_segments(cache_dir)) >= 1, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    previous = finished_segments(cache_dir)
    assert len(previous) == 1
    assert not resumed.exists()

    again = lipsync("sync", *long_job, "-o", resumed)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "1 of 2 segments came from the interrupted run" in again.stdout
    assert list((cache_dir / "jobs").iterdir()) == []

    whole = lipsync("sync", *long_job, "-o", straight)
    assert whole.returncode == 0, whole.stderr[-2000:]
    assert "interrupted run" not in whole.stdout
    assert likeness_db(resumed, straight) > 55
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "resumed.mp4", "straight.mp4"]


@pytest.mark.parametrize(
    "signal_number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_interrupted_job_leaves_no_partial_files(
    signal_number: signal.Signals,
    long_job: list[str],
    tmp_path: Path,
    cache_dir: Path,
    environment: dict[str, str],
) -> None:
    output = tmp_path / "stopped.mp4"
    process = start_cli(environment, "sync", *long_job, "-o", output)
    wait_while_running(lambda: any(cache_dir.glob("jobs/*/segment-*.part*")), process)
    process.send_signal(signal_number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == EXIT_STATUS[ErrorCode.CANCELLED]
    assert "error [cancelled]" in errors
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert not list(cache_dir.rglob("*.part*"))
    assert pids_naming(str(tmp_path)) == []


def test_killed_parent_leaves_no_child_process(
    long_job: list[str], tmp_path: Path, cache_dir: Path, environment: dict[str, str]
) -> None:
    process = start_cli(environment, "sync", *long_job, "-o", tmp_path / "out.mp4")
    wait_while_running(lambda: any(cache_dir.glob("jobs/*/segment-*.part*")), process)
    process.kill()
    process.communicate(timeout=20)
    wait_until(lambda: not pids_naming(str(cache_dir)), "a child process is still running", 10)


@pytest.mark.slow
def test_running_job_rejects_an_equal_one(
    long_job: list[str], tmp_path: Path, cache_dir: Path, environment: dict[str, str], lipsync: Run
) -> None:
    process = start_cli(environment, "sync", *long_job, "-o", tmp_path / "first.mp4")
    wait_while_running(lambda: any(cache_dir.glob("jobs/*/segment-*.part*")), process)
    process.send_signal(signal.SIGSTOP)  # it has the job for as long as that takes
    second = lipsync("sync", *long_job, "-o", tmp_path / "second.mp4")
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert second.returncode == EXIT_STATUS[ErrorCode.JOB_BUSY]
    assert "error [job_busy]" in second.stderr
    assert not (tmp_path / "second.mp4").exists()
