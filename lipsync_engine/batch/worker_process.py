"""Workers as the batch uses them: started, given jobs, replaced, shut down; and their processes here.

The module knows processes and messages, neither the meaning of rows nor results. `ray_backend` has the
workers of other machines.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, Self

from lipsync_engine.batch.messages import (
    FromWorker,
    RunJob,
    Shutdown,
    ToWorker,
    line_to_worker,
    read_from_worker,
)

SHUTDOWN_TIMEOUT_S = 15.0
"""A worker exits between two frames after `Shutdown`; it is killed after this time."""


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """What every worker loads, and how.

    Attributes:
        model: name in the weights' manifest.
        detector, device, dtype: as for `LipSyncPipeline.from_pretrained`; without a device, workers are
            spread over the CUDA devices of the machine.
        cache_dir: None: LIPSYNC_CACHE_DIR, else the user's cache folder.
        marking: as for `from_pretrained`.
        jobs: clips that a worker renders at once.
    """

    model: str = "tiny"
    detector: str | None = None
    device: str | None = None
    dtype: str | None = None
    cache_dir: Path | None = None
    marking: str | None = None
    jobs: int = 1

    def to_arguments(self) -> list[str]:
        """Return the worker's command-line arguments."""
        options = {
            "--model": self.model,
            "--detector": self.detector,
            "--device": self.device,
            "--dtype": self.dtype,
            "--cache-dir": self.cache_dir,
            "--marking": self.marking,
            "--jobs": self.jobs,
        }
        return [f"{name}={value}" for name, value in options.items() if value is not None]


class WorkerHandle(Protocol):
    """The batch's handle of one worker.

    Attributes:
        index: its position in the pool.
        is_ready: it has sent `WorkerReady`.
    """

    index: int
    is_ready: bool

    def run_job(self, job: RunJob) -> None:
        """Send a job."""

    def request_shutdown(self) -> None:
        """Send `Shutdown`; `wait_until_gone` waits for the exit."""

    def wait_until_gone(self, deadline: float) -> None:
        """Return when the worker and all its children have exited.

        Args:
            deadline: `time.monotonic()` at which it is killed.
        """

    @property
    def exit_description(self) -> str:
        """How it exited, for messages."""


OnMessage = Callable[[WorkerHandle, FromWorker | None], None]
"""Takes an event of a worker, and None when the worker has exited; called from any thread."""


class WorkerBackend(Protocol):
    """Where workers run; a context manager for as long as there are any."""

    def default_size(self) -> int:
        """Return the number of workers if the caller does not set it."""

    def start_worker(self, index: int, size: int, on_message: OnMessage, log: IO[bytes]) -> WorkerHandle:
        """Start a worker that loads the model; return at once.

        Args:
            size: number of workers of the batch.
            log: takes the worker's standard error.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class LocalWorker:
    """A worker process on this machine.

    Args:
        threads: for arithmetic; None: the libraries' choice.
        log: takes its standard error.
    """

    def __init__(
        self,
        options: ModelOptions,
        index: int,
        threads: int | None,
        on_message: OnMessage,
        log: IO[bytes],
    ) -> None:
        self.index = index
        self.is_ready = False
        environment = dict(os.environ)
        if threads is not None:
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker", *options.to_arguments(), f"--index={index}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            start_new_session=True,  # a Ctrl-C in the terminal is for the parent
        )
        self._on_message = on_message
        self._reader = threading.Thread(target=self._read_events, name=f"worker-{index}", daemon=True)
        self._reader.start()

    def _read_events(self) -> None:
        for line in _require_pipe(self._process.stdout):
            if line.endswith(b"\n"):
                self._on_message(self, read_from_worker(line))
        self._process.wait()
        self._on_message(self, None)

    def run_job(self, job: RunJob) -> None:
        """Send a job."""
        self._send(job)

    def request_shutdown(self) -> None:
        """Send `Shutdown`."""
        self._send(Shutdown())

    def wait_until_gone(self, deadline: float) -> None:
        """Wait for the exit, kill the process group at the deadline, close the pipes."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, deadline - time.monotonic()))
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with suppress(BrokenPipeError):
            _require_pipe(self._process.stdin).close()
        self._reader.join(timeout=5)
        _require_pipe(self._process.stdout).close()

    @property
    def exit_description(self) -> str:
        """Exit status or signal name."""
        status = self._process.wait()
        if status >= 0:
            return f"exit status {status}"
        try:
            return signal.Signals(-status).name
        except ValueError:
            return f"signal {-status}"

    def _send(self, message: ToWorker) -> None:
        with suppress(BrokenPipeError):  # the reader thread reports the exit
            pipe = _require_pipe(self._process.stdin)
            pipe.write(line_to_worker(message))
            pipe.flush()


class LocalBackend:
    """Runs workers as processes on this machine."""

    def __init__(self, options: ModelOptions) -> None:
        self._options = options

    def default_size(self) -> int:
        """Return 1."""
        return 1

    def start_worker(self, index: int, size: int, on_message: OnMessage, log: IO[bytes]) -> WorkerHandle:
        """Start a process with an equal share of the processor's cores."""
        threads = max(1, (os.cpu_count() or 1) // size) if size > 1 else None
        return LocalWorker(self._options, index, threads, on_message, log)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class WorkerPool:
    """A fixed number of workers and their events; a context manager that ends them all.

    Args:
        log: file that takes the workers' standard error.
    """

    def __init__(self, backend: WorkerBackend, size: int, log: IO[bytes]) -> None:
        self._backend, self._size, self._log = backend, size, log
        self._events: queue.SimpleQueue[tuple[WorkerHandle, FromWorker | None]] = queue.SimpleQueue()
        self._workers: set[WorkerHandle] = set()

    def receive(self) -> tuple[WorkerHandle, FromWorker | None]:
        """Wait for the next event of a worker; None: it has exited."""
        while True:
            worker, message = self._events.get()
            if worker in self._workers:
                return worker, message

    def ready_workers(self) -> list[WorkerHandle]:
        """Return the workers that have loaded the model, in order of their index."""
        return sorted((w for w in self._workers if w.is_ready), key=lambda worker: worker.index)

    @property
    def is_empty(self) -> bool:
        """Whether no worker is left."""
        return not self._workers

    def start_worker(self, index: int) -> None:
        """Start a worker; it sends `WorkerReady` later."""
        worker = self._backend.start_worker(
            index, self._size, lambda *event: self._events.put(event), self._log
        )
        self._workers.add(worker)

    def retire_worker(self, worker: WorkerHandle) -> None:
        """Shut a worker down, which may have exited already; its later events are ignored."""
        self._workers.discard(worker)
        worker.request_shutdown()
        worker.wait_until_gone(time.monotonic() + SHUTDOWN_TIMEOUT_S)

    def __enter__(self) -> Self:
        try:
            for index in range(self._size):
                self.start_worker(index)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.request_shutdown()
        deadline = time.monotonic() + SHUTDOWN_TIMEOUT_S
        for worker in self._workers:
            # A worker that still loads has nothing to clean up, so it is killed at once.
            worker.wait_until_gone(deadline if worker.is_ready else 0.0)


def _require_pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise AssertionError("every worker is started with pipes")
    return pipe
