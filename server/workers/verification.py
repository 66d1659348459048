"""Verification of a file's content credentials in a child process, because the file may be hostile.

The child is `lipsync verify --json`, with limits on memory and time, so that this process stays small
whatever the file contains. The module knows no HTTP and no jobs.
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

VERDICT_STATUSES = frozenset({0, 1, 4, 5})
"""Exit statuses with which the command has printed a verdict."""

MAX_CONCURRENT = 2
MEMORY_BYTES = 4 << 30
CPU_S = 600
TIMEOUT_S = 600.0


class NotVerifiedError(Exception):
    """The file could not be read."""


class Verifier:
    """Verifies files, a few at once.

    Args:
        environment: settings of the child: which signers are trusted.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)

    async def verify(self, file: Path) -> dict[str, Any]:
        """Return the object that `lipsync verify --json FILE` prints.

        Raises:
            NotVerifiedError.
        """
        async with self._slots:
            child = await asyncio.create_subprocess_exec(
                *_limited_command("-m", "lipsync_engine.cli", "verify", "--json", str(file)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    output, _ = await child.communicate()
            except TimeoutError:
                raise NotVerifiedError from None
            finally:
                if child.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child.pid, signal.SIGKILL)
                    await child.wait()
        if child.returncode not in VERDICT_STATUSES:
            raise NotVerifiedError
        verdict: dict[str, Any] = json.loads(output)
        return verdict


def _limited_command(*arguments: str) -> list[str]:
    """Build a command of this Python under limits, with the program that also starts every FFmpeg."""
    engine = importlib.util.find_spec("lipsync_engine")
    if engine is None or engine.origin is None:
        raise NotVerifiedError
    launcher = str(Path(engine.origin).parent / "media" / "sandbox_exec.py")
    limits = [str(number) for number in (os.getpid(), MEMORY_BYTES, CPU_S, 0)]  # 0: no file restrictions
    return [sys.executable, "-I", "-S", launcher, *limits, sys.executable, *arguments]
