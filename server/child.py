"""A worker process (`worker`) as its parent sees it: started, spoken to over pipes, killed at the end.

It knows nothing of jobs, the database or files.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from server.messages import FromWorker, Ready, ToWorker, line_to_worker, read_from_worker

log = logging.getLogger("lipsync.supervisor")

READY_WITHIN_S = 900.0
LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Attributes: as in `Settings`; `folder` holds inputs, outputs and the engine's resumable work.
    `quarantines`: there are other devices, so one whose workers are lost again and again rests.
    """

    model: str
    folder: Path
    stall_s: float
    recycle_after_jobs: int
    recycle_growth_bytes: int
    log_format: str
    drain_s: float
    environment: dict[str, str]
    sync_score: bool
    label: bool
    watermark: bool
    quarantines: bool = False


class WorkerGoneError(Exception):
    """The worker process ended, went silent, or spoke nonsense."""


class WorkerProcess:
    """A running worker process.

    Attributes:
        fits: see `messages.Ready`.
    """

    fits = ""

    def __init__(self, pid: int, answers: asyncio.StreamReader, orders: asyncio.StreamWriter) -> None:
        self._pid, self._answers, self._orders = pid, answers, orders

    def resident_bytes(self) -> int:
        """Memory that it holds; 0 where it is gone."""
        try:
            return int(psutil.Process(self._pid).memory_info().rss)
        except psutil.Error:
            return 0

    async def say(self, message: ToWorker) -> None:
        if self._orders.is_closing():
            raise WorkerGoneError("it has closed its ear")
        self._orders.write(line_to_worker(message))
        with contextlib.suppress(ConnectionError):  # `hear` will say so
            await self._orders.drain()

    async def hear(self, within_s: float) -> FromWorker:
        """Its next message.

        Raises:
            WorkerGoneError: it ended, spoke nonsense, or said nothing for that long.
        """
        try:
            line = await asyncio.wait_for(self._answers.readline(), within_s)
            if line.endswith(b"\n"):
                return read_from_worker(line)
        except TimeoutError:
            raise WorkerGoneError(f"it was silent for {within_s:g} s") from None
        except ValueError:  # no message, or a line without end
            raise WorkerGoneError("it spoke nonsense") from None
        raise WorkerGoneError("it ended")


@contextlib.asynccontextmanager
async def worker_process(device: str, settings: WorkerSettings, threads: int) -> AsyncIterator[WorkerProcess]:
    """A worker that is ready; killed with all its children at the end."""
    command = [sys.executable, "-m", "server.worker", "--model", settings.model, "--device", device]
    command += ["--work-dir", str(settings.folder / "engine"), "--log-format", settings.log_format]
    command += [] if settings.sync_score else ["--no-sync-score"]
    command += ["--label"] if settings.label else []
    command += ["--watermark"] if settings.watermark else []
    process = subprocess.Popen(  # by the main thread: the kernel kills a worker whose starter is gone
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env={"OMP_NUM_THREADS": str(threads), **os.environ, **settings.environment},
        start_new_session=True,  # a Ctrl-C in the terminal is for the parent
    )
    loop = asyncio.get_running_loop()
    answers, orders = asyncio.StreamReader(limit=LINE_BYTES), None
    try:
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(answers), process.stdout)
        idle = asyncio.StreamReaderProtocol(asyncio.StreamReader())
        transport, _ = await loop.connect_write_pipe(lambda: idle, process.stdin)
        orders = asyncio.StreamWriter(transport, idle, None, loop)
        worker = WorkerProcess(process.pid, answers, orders)
        ready = await worker.hear(READY_WITHIN_S)
        if not isinstance(ready, Ready):
            raise WorkerGoneError("it did not say that it is ready")
        worker.fits = ready.fits
        log.info("worker %s: ready with %s", ready.device, ready.model)
        yield worker
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if orders is not None:
            orders.close()
        await asyncio.to_thread(process.wait)
