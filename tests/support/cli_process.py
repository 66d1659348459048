"""The real command in a process of its own, looked at while it runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping

import pytest

DEADLINE_S = 120


def start(environment: Mapping[str, str], *arguments: object) -> subprocess.Popen[str]:
    """`lipsync` with these arguments, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "lipsync_engine.cli", *map(str, arguments)],
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Look for a condition that the process brings about, 20 times a second; fail when it ends first."""
    for _ in range(20 * DEADLINE_S):
        if what():
            return
        try:
            process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
        break
    process.kill()
    _, errors = process.communicate(timeout=30)
    pytest.fail(f"the condition never came: {errors[-2000:]}")
