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

from server.workers.messages import FromWorker, ToWorker, WorkerReady, line_to_worker, read_from_worker

log = logging.getLogger("lipsync.supervisor")

READY_WITHIN_S = 900.0
LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Attributes: as in `Settings`; `folder` holds inputs, outputs and the engine's resumable work.
    `quarantines`: there are other devices, so one whose workers are lost again and again rests.
    """

    model: str
    jobs_per_worker: int
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


class WorkerDiedError(Exception):
    """The worker process ended, went silent, spoke nonsense, or was given up.

    Attributes:
        job_id: of the job whose fault it is; None: perhaps of any that it had.
    """

    def __init__(self, why: str, job_id: str | None = None) -> None:
        super().__init__(why)
        self.job_id = job_id


class WorkerProcess:
    """A running worker process, which may have several orders at once, each of another job.

    Attributes:
        fits: see `messages.WorkerReady`.
        gone: set when it has ended or was given up.
    """

    fits = ""

    def __init__(self, pid: int, answers: asyncio.StreamReader, orders: asyncio.StreamWriter) -> None:
        self._pid, self._answers, self._orders = pid, answers, orders
        self._heard: dict[str, asyncio.Queue[FromWorker | WorkerDiedError]] = {}  # by the order's job
        self._order_ended = asyncio.Event()
        self._why: WorkerDiedError | None = None
        self.gone = asyncio.Event()

    def resident_bytes(self) -> int:
        """Memory that it holds; 0 where it is gone."""
        try:
            return int(psutil.Process(self._pid).memory_info().rss)
        except psutil.Error:
            return 0

    async def begin(self, within_s: float) -> WorkerReady:
        """Its first message.

        Raises:
            WorkerDiedError: it was another one, or did not come.
        """
        try:
            first = await asyncio.wait_for(self._next(), within_s)
        except TimeoutError:
            raise WorkerDiedError(f"it was silent for {within_s:g} s") from None
        if not isinstance(first, WorkerReady):
            raise WorkerDiedError("it did not say that it is ready")
        return first

    async def listen(self) -> None:
        """Hand each message to the order that it is about, until the worker is gone."""
        try:
            while not isinstance(message := await self._next(), WorkerReady):
                if (heard := self._heard.get(message.job_id)) is not None:
                    heard.put_nowait(message)
            self.give_up(WorkerDiedError("it started anew by itself"))
        except WorkerDiedError as error:
            self.give_up(error)

    def give_up(self, why: WorkerDiedError) -> None:
        """Whoever has an order with it hears that it is gone; of several reasons the first counts."""
        if self._why is None:
            self._why = why
            self.gone.set()
            for heard in self._heard.values():
                heard.put_nowait(why)

    def require(self) -> None:
        """Raises: WorkerDiedError: it is gone."""
        if self._why is not None:
            raise WorkerDiedError(str(self._why), self._why.job_id)

    @contextlib.asynccontextmanager
    async def order(self, job_id: str) -> AsyncIterator[JobChannel]:
        """Talk about one job, after whoever talks about the same one now.

        A worker that is left before its last word is given up: nobody knows what it goes on with.
        """
        while job_id in self._heard:
            self._order_ended.clear()
            await self._order_ended.wait()
        self._heard[job_id] = asyncio.Queue()
        try:
            yield JobChannel(self, job_id, self._heard[job_id])
        except WorkerDiedError as error:
            self.give_up(error)
            raise
        except BaseException:
            self.give_up(WorkerDiedError("it was left in the middle of a job", job_id))
            raise
        finally:
            del self._heard[job_id]
            self._order_ended.set()

    async def say(self, message: ToWorker) -> None:
        self.require()
        if self._orders.is_closing():
            raise WorkerDiedError("it has closed its ear")
        self._orders.write(line_to_worker(message))
        with contextlib.suppress(ConnectionError):  # `hear` will say so
            await self._orders.drain()

    async def _next(self) -> FromWorker:
        try:
            line = await self._answers.readline()
            if line.endswith(b"\n"):
                return read_from_worker(line)
        except ValueError:  # no message, or a line without end
            raise WorkerDiedError("it spoke nonsense") from None
        except OSError as error:
            raise WorkerDiedError(f"it cannot be heard: {error}") from error
        raise WorkerDiedError("it ended")


class JobChannel:
    """What is said to and by a worker about one job; see `WorkerProcess.order`."""

    def __init__(
        self, worker: WorkerProcess, job_id: str, heard: asyncio.Queue[FromWorker | WorkerDiedError]
    ) -> None:
        self._worker, self.job_id, self._heard = worker, job_id, heard

    async def say(self, message: ToWorker) -> None:
        await self._worker.say(message)

    async def hear(self, within_s: float) -> FromWorker:
        """The next message about the job.

        Raises:
            WorkerDiedError: the worker is gone, or said nothing about it for that long.
        """
        try:
            said = await asyncio.wait_for(self._heard.get(), within_s)
        except TimeoutError:
            raise WorkerDiedError(f"it was silent for {within_s:g} s") from None
        if isinstance(said, WorkerDiedError):
            raise WorkerDiedError(str(said), said.job_id) from said
        return said


@contextlib.asynccontextmanager
async def worker_process(device: str, settings: WorkerSettings, threads: int) -> AsyncIterator[WorkerProcess]:
    """A worker that is ready; killed with all its children at the end."""
    command = [sys.executable, "-m", "server.workers.main", "--model", settings.model, "--device", device]
    command += ["--work-dir", str(settings.folder / "engine"), "--log-format", settings.log_format]
    command += [] if settings.sync_score else ["--no-sync-score"]
    command += ["--jobs", str(settings.jobs_per_worker)]
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
    answers, orders, listening = asyncio.StreamReader(limit=LINE_BYTES), None, None
    try:
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(answers), process.stdout)
        idle = asyncio.StreamReaderProtocol(asyncio.StreamReader())
        transport, _ = await loop.connect_write_pipe(lambda: idle, process.stdin)
        orders = asyncio.StreamWriter(transport, idle, None, loop)
        worker = WorkerProcess(process.pid, answers, orders)
        ready = await worker.begin(READY_WITHIN_S)
        worker.fits = ready.fits
        log.info("worker %s: ready with %s", ready.device, ready.model)
        listening = asyncio.create_task(worker.listen())
        yield worker
    finally:
        if listening is not None:
            listening.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if orders is not None:
            orders.close()
        await asyncio.to_thread(process.wait)
