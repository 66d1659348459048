"""The asyncio handle of a worker process (`main`): start, messages over pipes, kill at the end.

It knows nothing of the database or of files.
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

from server.workers.messages import (
    Command,
    Event,
    JobEvent,
    WorkerFailed,
    WorkerReady,
    decode_event,
    encode_command,
)

log = logging.getLogger("lipsync.supervisor")

START_TIMEOUT_S = 900.0
MAX_LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Settings of all workers, as in `Settings`.

    Attributes:
        folder: holds inputs, outputs and the engine's resumable work.
        quarantines: there are other devices, so one whose workers die repeatedly is quarantined.
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
    """The worker process has ended, stopped responding, sent an invalid message, or was abandoned.

    Attributes:
        job_id: of the job that caused it; None: possibly any of its jobs.
    """

    def __init__(self, reason: str, job_id: str | None = None) -> None:
        super().__init__(reason)
        self.job_id = job_id


class WorkerProcess:
    """A running worker process, with one channel per job.

    Attributes:
        compatibility_key: see `messages.WorkerReady`.
        died: set when it has ended or was abandoned.
    """

    compatibility_key = ""

    def __init__(self, pid: int, events: asyncio.StreamReader, commands: asyncio.StreamWriter) -> None:
        self._pid, self._events, self._commands = pid, events, commands
        self._channels: dict[str, asyncio.Queue[JobEvent | WorkerDiedError]] = {}  # by job id
        self._channel_closed = asyncio.Event()
        self._cause: WorkerDiedError | None = None
        self.died = asyncio.Event()

    def resident_bytes(self) -> int:
        """Return the memory that it uses; 0 where it has ended."""
        try:
            return int(psutil.Process(self._pid).memory_info().rss)
        except psutil.Error:
            return 0

    async def wait_ready(self, timeout_s: float) -> WorkerReady:
        """Wait for its first event.

        Raises:
            WorkerDiedError: there was none in time, or it was another one.
        """
        try:
            first = await asyncio.wait_for(self._read_event(), timeout_s)
        except TimeoutError:
            raise WorkerDiedError(f"no message for {timeout_s:g} s") from None
        if isinstance(first, WorkerFailed):
            raise WorkerDiedError(first.message)
        if not isinstance(first, WorkerReady):
            raise WorkerDiedError("the first message was not WorkerReady")
        return first

    async def dispatch_events(self) -> None:
        """Put each event into the channel of its job, until the worker dies."""
        try:
            while not isinstance(event := await self._read_event(), WorkerReady | WorkerFailed):
                if (channel := self._channels.get(event.job_id)) is not None:
                    channel.put_nowait(event)
            self.abandon(WorkerDiedError("sent an event of the start again"))
        except WorkerDiedError as error:
            self.abandon(error)

    def abandon(self, cause: WorkerDiedError) -> None:
        """Mark the worker as dead and raise in all open channels; the first cause counts."""
        if self._cause is None:
            self._cause = cause
            self.died.set()
            for channel in self._channels.values():
                channel.put_nowait(cause)

    def require_alive(self) -> None:
        """Raise if the worker is dead.

        Raises:
            WorkerDiedError.
        """
        if self._cause is not None:
            raise WorkerDiedError(str(self._cause), self._cause.job_id)

    @contextlib.asynccontextmanager
    async def open_channel(self, job_id: str) -> AsyncIterator[JobChannel]:
        """Open the channel of a job, after an earlier one of the same job is closed.

        A worker whose channel is closed by an exception is abandoned: it may still be running the job.
        """
        while job_id in self._channels:
            self._channel_closed.clear()
            await self._channel_closed.wait()
        self._channels[job_id] = asyncio.Queue()
        try:
            yield JobChannel(self, job_id, self._channels[job_id])
        except WorkerDiedError as error:
            self.abandon(error)
            raise
        except BaseException:
            self.abandon(WorkerDiedError("abandoned in the middle of a job", job_id))
            raise
        finally:
            del self._channels[job_id]
            self._channel_closed.set()

    async def send(self, command: Command) -> None:
        """Send a command.

        Raises:
            WorkerDiedError.
        """
        self.require_alive()
        if self._commands.is_closing():
            raise WorkerDiedError("stdin pipe closed")
        self._commands.write(encode_command(command))
        with contextlib.suppress(ConnectionError):  # `receive` reports it
            await self._commands.drain()

    async def _read_event(self) -> Event:
        try:
            line = await self._events.readline()
            if line.endswith(b"\n"):
                return decode_event(line)
        except ValueError:  # no message, or a line without end
            raise WorkerDiedError("sent an invalid message") from None
        except OSError as error:
            raise WorkerDiedError(f"stdout pipe failed: {error}") from error
        raise WorkerDiedError("process ended")


class JobChannel:
    """Commands and events of one job; see `WorkerProcess.open_channel`."""

    def __init__(
        self, worker: WorkerProcess, job_id: str, events: asyncio.Queue[JobEvent | WorkerDiedError]
    ) -> None:
        self._worker, self.job_id, self._events = worker, job_id, events

    async def send(self, command: Command) -> None:
        """Send a command.

        Raises:
            WorkerDiedError.
        """
        await self._worker.send(command)

    async def receive(self, timeout_s: float) -> JobEvent:
        """Wait for the next event of the job.

        Raises:
            WorkerDiedError: the worker died, or sent no event of the job in time.
        """
        try:
            event = await asyncio.wait_for(self._events.get(), timeout_s)
        except TimeoutError:
            raise WorkerDiedError(f"no message for {timeout_s:g} s", self.job_id) from None
        if isinstance(event, WorkerDiedError):
            raise WorkerDiedError(str(event), event.job_id) from event
        return event


@contextlib.asynccontextmanager
async def start_worker(device: str, settings: WorkerSettings, threads: int) -> AsyncIterator[WorkerProcess]:
    """Start a worker and wait until it is ready; it is killed with all its children at the end.

    Raises:
        WorkerDiedError: it did not become ready.
    """
    command = [sys.executable, "-m", "server.workers.main", "--model", settings.model, "--device", device]
    command += ["--work-dir", str(settings.folder / "engine"), "--log-format", settings.log_format]
    command += [] if settings.sync_score else ["--no-sync-score"]
    command += ["--jobs", str(settings.jobs_per_worker)]
    command += ["--label"] if settings.label else []
    command += ["--watermark"] if settings.watermark else []
    process = subprocess.Popen(  # by the main thread: the kernel kills a worker whose starting thread ends
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env={"OMP_NUM_THREADS": str(threads), **os.environ, **settings.environment},
        start_new_session=True,  # a Ctrl-C in the terminal is for the parent
    )
    loop = asyncio.get_running_loop()
    events, commands, dispatcher = asyncio.StreamReader(limit=MAX_LINE_BYTES), None, None
    try:
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(events), process.stdout)
        idle = asyncio.StreamReaderProtocol(asyncio.StreamReader())
        transport, _ = await loop.connect_write_pipe(lambda: idle, process.stdin)
        commands = asyncio.StreamWriter(transport, idle, None, loop)
        worker = WorkerProcess(process.pid, events, commands)
        ready = await worker.wait_ready(START_TIMEOUT_S)
        worker.compatibility_key = ready.compatibility_key
        log.info("worker %s: ready with %s", ready.device, ready.model)
        dispatcher = asyncio.create_task(worker.dispatch_events())
        yield worker
    finally:
        if dispatcher is not None:
            dispatcher.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if commands is not None:
            commands.close()
        await asyncio.to_thread(process.wait)
