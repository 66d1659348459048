"""A `lipsync` command in a child process with limits, for files that may be hostile.

The child has limits on memory and time and opens no sockets, so that this process stays small whatever the
file contains. The module knows no HTTP and no jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

MAX_CONCURRENT = 2
MEMORY_BYTES = 4 << 30
CPU_S = 600
TIMEOUT_S = 600.0


class ChildFailedError(Exception):
    """The command ended with an unexpected status, or took too long.

    Attributes:
        stderr: its last line on standard error; "" after a time-out.
    """

    def __init__(self, stderr: str = "") -> None:
        super().__init__(stderr or "timed out")
        self.stderr = stderr


class CliChild:
    """Runs commands, a few at once.

    Args:
        environment: added to this process' own.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)

    async def run(self, *arguments: str, statuses: Collection[int] = (0,)) -> bytes:
        """Run `lipsync ARGUMENTS` and return its standard output.

        Args:
            statuses: exit statuses of success.

        Raises:
            ChildFailedError: another status, or a time-out.
        """
        async with self._slots:
            child = await asyncio.create_subprocess_exec(
                *_limited_command("-m", "lipsync_engine.cli", *arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    output, stderr = await child.communicate()
            except TimeoutError:
                raise ChildFailedError from None
            finally:
                if child.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child.pid, signal.SIGKILL)
                    await child.wait()
        if child.returncode not in statuses:
            lines = stderr.decode(errors="replace").strip().splitlines()
            raise ChildFailedError(lines[-1] if lines else "")
        return output


def _limited_command(*arguments: str) -> list[str]:
    """Build a command of this Python under limits, with the program that also starts every FFmpeg."""
    engine = importlib.util.find_spec("lipsync_engine")
    if engine is None or engine.origin is None:
        raise ChildFailedError("lipsync_engine is not installed")
    launcher = str(Path(engine.origin).parent / "media" / "sandbox_exec.py")
    limits = [str(number) for number in (os.getpid(), MEMORY_BYTES, CPU_S, 0)]  # 0: no file restrictions
    return [sys.executable, "-I", "-S", launcher, *limits, sys.executable, *arguments]
