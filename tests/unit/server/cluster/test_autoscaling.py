"""How many workers a cluster has, and a command line that says what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from server.cluster.autoscaling import USUAL_RUN_S, Condition, Limits, Worker, backlog_s, decide

LIMITS = Limits(min=1, max=8, backlog_s=60, idle_s=300)


def workers(*conditions: Condition, idle_s: float = 0) -> list[Worker]:
    return [Worker(f"w{number}", condition, idle_s) for number, condition in enumerate(conditions)]


def test_the_backlog_is_what_nobody_has_begun() -> None:
    assert backlog_s(3, 0, 20, 10) == 60
    assert backlog_s(2, 4, None, 10) == 2 * USUAL_RUN_S + 40
    assert backlog_s(3, 4, 20, 10, jobs_per_worker=2) == 30 + 40


def test_it_grows_with_what_waits(subtests: pytest.Subtests) -> None:
    for have, backlog, start in [
        ((), 0, 1),  # the least
        ((Condition.IDLE,), 0, 0),
        ((Condition.BUSY,), 1, 1),
        ((Condition.BUSY,), 180, 3),
        ((Condition.BUSY, Condition.IDLE, Condition.IDLE), 180, 1),  # who is idle counts
        ((Condition.BUSY, Condition.STARTING, Condition.STARTING), 120, 0),  # and who comes
        ((Condition.BUSY,) * 7, 6000, 1),  # the most
        ((Condition.QUARANTINED, Condition.DRAINING), 0, 1),  # who cannot work has a substitute
    ]:
        with subtests.test(have=have, backlog=backlog, start=start):
            assert decide(workers(*have), backlog, LIMITS) == (start, [])


def test_who_was_idle_long_is_stopped_and_nobody_else() -> None:
    have = [
        Worker("busy", Condition.BUSY),
        Worker("coming", Condition.STARTING, 900),
        Worker("fresh", Condition.IDLE, 299),
        Worker("tired", Condition.IDLE, 300),
        Worker("most tired", Condition.IDLE, 400),
    ]
    assert decide(have, 0, LIMITS) == (0, ["most tired", "tired"])
    assert decide(have, 150, LIMITS) == (0, ["most tired"])
    assert decide(workers(Condition.IDLE, idle_s=999), 0, LIMITS) == (0, [])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [("up", "set LIPSYNC_DATABASE_URL"), ("status --address 127.0.0.1:9", "127.0.0.1:9")],
)
def test_the_command_says_what_is_missing(
    arguments: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before anything of Ray is started."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'lipsync-engine[ray]'")
    monkeypatch.setenv("LIPSYNC_DATA_DIR", str(tmp_path))
    command = [sys.executable, "-m", "server.cli.cluster", *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert says in line
