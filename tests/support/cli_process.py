"""The real command in a process of its own: run to its end, or observed while it runs.

`run_cli` forks a process that has imported the engine already, which saves four seconds of processor time per
call. `start_cli` starts a new interpreter, for tests of signals and crashes.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.support.polling import wait_until

DEADLINE_S = 120


_fork_server = multiprocessing.get_context("forkserver")
_fork_server.set_forkserver_preload(["tests.support.cli_preload"])


def run_cli(
    environment: Mapping[str, str], folder: Path, *arguments: object, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run `lipsync` with these arguments to its end.

    Args:
        folder: an existing one for the command's output.
        timeout_s: afterwards the process is killed.

    Raises:
        subprocess.TimeoutExpired: with the output so far.
    """
    command = ["lipsync", *map(str, arguments)]
    streams = folder / "stdout.txt", folder / "stderr.txt"
    process = _fork_server.Process(target=_run_command, args=(command, dict(environment), streams))
    process.start()
    process.join(timeout_s)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise subprocess.TimeoutExpired(command, timeout_s, streams[0].read_text(), streams[1].read_text())
    return subprocess.CompletedProcess(
        command, process.exitcode, streams[0].read_text(), streams[1].read_text()
    )


def _run_command(command: list[str], environment: dict[str, str], streams: tuple[Path, Path]) -> None:
    """Become the command: arguments, environment and standard streams are its own."""
    from lipsync_engine.cli import main

    os.environ.clear()
    os.environ.update(environment)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for number, path in enumerate(streams, start=1):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    sys.argv = command
    try:
        main()
    finally:
        atexit._run_exitfuncs()


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
