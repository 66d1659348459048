"""The real command in a process of its own, observed while it runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping

import pytest

from tests.support.polling import wait_until

DEADLINE_S = 120


def start_cli(environment: Mapping[str, str], *arguments: object) -> subprocess.Popen[str]:
    """Start `lipsync` with these arguments, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "lipsync_engine.cli", *map(str, arguments)],
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_while_running(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Poll until a condition is true; fail if the process ends first."""
    wait_until(
        lambda: condition() or process.poll() is not None, "the condition was not met", DEADLINE_S, 0.05
    )
    if process.poll() is not None and not condition():
        _, errors = process.communicate(timeout=30)
        pytest.fail(f"the process ended before the condition was met: {errors[-2000:]}")
