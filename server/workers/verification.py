"""Says what a file's content credentials are worth: a child process looks, as what it reads may be hostile.

The child is `lipsync verify --json`; it has limits of memory and time, and this process stays small whatever
it is given. It knows no HTTP and no jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VERDICT_STATUS = frozenset({0, 1, 4, 5})
"""Exit statuses with which the command has come to a verdict."""

AT_ONCE = 2
MEMORY_BYTES = 4 << 30
CPU_S = 600
TIMEOUT_S = 600.0


class NotVerifiedError(Exception):
    """The file could not be looked at."""


class Verifier:
    """See the module.

    Args:
        environment: in which the child knows whose signatures count.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._room = asyncio.Semaphore(AT_ONCE)

    async def verify(self, file: Path) -> dict[str, Any]:
        """`lipsync verify --json FILE`.

        Raises:
            NotVerifiedError.
        """
        async with self._room:
            child = await asyncio.create_subprocess_exec(
                *_limited("-m", "lipsync_engine.cli", "verify", "--json", str(file)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    said, _ = await child.communicate()
            except TimeoutError:
                raise NotVerifiedError from None
            finally:
                if child.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child.pid, signal.SIGKILL)
                    await child.wait()
        if child.returncode not in VERDICT_STATUS:
            raise NotVerifiedError
        found: dict[str, Any] = json.loads(said)
        return found


def _limited(*arguments: str) -> list[str]:
    """A command of this Python under limits, set by the program that starts every FFmpeg too."""
    engine = importlib.util.find_spec("lipsync_engine")
    if engine is None or engine.origin is None:
        raise NotVerifiedError
    launcher = str(Path(engine.origin).parent / "media" / "sandbox_exec.py")
    limits = [str(number) for number in (os.getpid(), MEMORY_BYTES, CPU_S, 0)]  # 0: files are not fenced
    return [sys.executable, "-I", "-S", launcher, *limits, sys.executable, *arguments]
