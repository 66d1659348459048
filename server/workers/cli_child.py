"""A `lipsync` command in a child process with limits, for files that may be hostile.

The child has limits on memory and time, opens no sockets, inherits no secrets and can be kept from all other
files, so that this process stays small and closed whatever the file contains. The module knows no HTTP and no
jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_CONCURRENT = 2
ENVIRONMENT = (
    "PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "OMP_NUM_THREADS",
    "LIPSYNC_FFMPEG", "LIPSYNC_WEIGHTS_DIR", "LIPSYNC_CACHE_DIR",
)  # fmt: skip
"""Variables of this process that a command gets; others may be secrets."""


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """What one command may take; the defaults are for whole videos."""

    memory_bytes: int = 4 << 30
    cpu_s: int = 600
    timeout_s: float = 600.0


VERIFICATION_LIMITS = ChildLimits(cpu_s=30, timeout_s=60.0)
"""Credentials are read in a second; a file that takes longer is made to."""


class ChildFailedError(Exception):
    """The command ended with an unexpected status, or took too long.

    Attributes:
        stderr: its last line on standard error; "" after a time-out.
    """

    def __init__(self, stderr: str = "") -> None:
        super().__init__(stderr or "timed out")
        self.stderr = stderr


class CliChild:
    """Runs commands, a few at once, one of each tenant.

    Args:
        environment: added to the variables of `ENVIRONMENT`.
        limits: of each command.
        readable: files that every command may read beside its own and the program's; None: all files.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        limits: ChildLimits = ChildLimits(),
        readable: Sequence[Path] | None = None,
    ) -> None:
        inherited = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        self._environment = inherited | {**environment}
        self._limits, self._readable = limits, readable
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by tenant

    async def run(self, *arguments: str, tenant: str, file: Path, statuses: Collection[int] = (0,)) -> bytes:
        """Run `lipsync ARGUMENTS` and return its standard output.

        Args:
            tenant: for whom; its commands run one after the other.
            file: the input.
            statuses: exit statuses of success.

        Raises:
            ChildFailedError: another status, or a time-out.
        """
        rules = [] if self._readable is None else file_rules([file, *self._readable])
        async with self._turns[tenant], self._slots:
            child = await asyncio.create_subprocess_exec(
                *_limited_command("-m", "lipsync_engine.cli", *arguments, limits=self._limits, rules=rules),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=self._environment,
                start_new_session=True,
            )
            try:
                async with asyncio.timeout(self._limits.timeout_s):
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


def file_rules(files: Sequence[Path]) -> list[str]:
    """List what a command of this Python may read: its program, its libraries and these files."""
    program = {sys.prefix, sys.base_prefix, *(str(Path(entry).absolute()) for entry in sys.path)}
    return ["s", *(f"r{path}" for path in (*sorted(program), *(file.absolute() for file in files)))]


def _limited_command(
    *arguments: str, limits: ChildLimits = ChildLimits(), rules: Sequence[str] = ()
) -> list[str]:
    """Build a command of this Python under limits, with the program that also starts every FFmpeg."""
    engine = importlib.util.find_spec("lipsync_engine")
    if engine is None or engine.origin is None:
        raise ChildFailedError("lipsync_engine is not installed")
    launcher = str(Path(engine.origin).parent / "media" / "sandbox_exec.py")
    numbers = [str(number) for number in (os.getpid(), limits.memory_bytes, limits.cpu_s, len(rules))]
    return [sys.executable, "-I", "-S", launcher, *numbers, *rules, sys.executable, *arguments]
