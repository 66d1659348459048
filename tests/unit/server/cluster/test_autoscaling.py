"""How many workers a cluster has, and a command line that says what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from server.cluster.autoscaling import (
    DEFAULT_RUN_S,
    ScalingLimits,
    WorkerActivity,
    WorkerState,
    backlog_s,
    decide,
)

LIMITS = ScalingLimits(min=1, max=8, backlog_s=60, idle_s=300)


def workers(*conditions: WorkerState, idle_s: float = 0) -> list[WorkerActivity]:
    return [WorkerActivity(f"w{number}", condition, idle_s) for number, condition in enumerate(conditions)]


def test_backlog_counts_unclaimed_work() -> None:
    assert backlog_s(3, 0, 20, 10) == 60
    assert backlog_s(2, 4, None, 10) == 2 * DEFAULT_RUN_S + 40
    assert backlog_s(3, 4, 20, 10, jobs_per_worker=2) == 30 + 40


def test_workers_are_started_for_the_backlog(subtests: pytest.Subtests) -> None:
    for have, backlog, start in [
        ((), 0, 1),  # the least
        ((WorkerState.IDLE,), 0, 0),
        ((WorkerState.BUSY,), 1, 1),
        ((WorkerState.BUSY,), 180, 3),
        ((WorkerState.BUSY, WorkerState.IDLE, WorkerState.IDLE), 180, 1),  # who is idle counts
        ((WorkerState.BUSY, WorkerState.STARTING, WorkerState.STARTING), 120, 0),  # and who comes
        ((WorkerState.BUSY,) * 7, 6000, 1),  # the most
        ((WorkerState.QUARANTINED, WorkerState.DRAINING), 0, 1),  # who cannot work has a substitute
    ]:
        with subtests.test(have=have, backlog=backlog, start=start):
            assert decide(workers(*have), backlog, LIMITS) == (start, [])


def test_only_long_idle_workers_are_stopped() -> None:
    have = [
        WorkerActivity("busy", WorkerState.BUSY),
        WorkerActivity("coming", WorkerState.STARTING, 900),
        WorkerActivity("fresh", WorkerState.IDLE, 299),
        WorkerActivity("tired", WorkerState.IDLE, 300),
        WorkerActivity("most tired", WorkerState.IDLE, 400),
    ]
    assert decide(have, 0, LIMITS) == (0, ["most tired", "tired"])
    assert decide(have, 150, LIMITS) == (0, ["most tired"])
    assert decide(workers(WorkerState.IDLE, idle_s=999), 0, LIMITS) == (0, [])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [("up", "set LIPSYNC_DATABASE_URL"), ("status --address 127.0.0.1:9", "127.0.0.1:9")],
)
def test_cluster_command_reports_missing_settings(
    arguments: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before anything of Ray is started."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'lipsync-engine[ray]'")
    monkeypatch.setenv("LIPSYNC_DATA_DIR", str(tmp_path))
    command = [sys.executable, "-m", "server.cli.cluster", *arguments.split()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert says in line
