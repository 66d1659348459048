"""Workers as the batch sees them: started, told what to make, heard, replaced, stopped; here, processes.

It knows processes and messages, neither rows' meaning nor results. `ray_pool` has those of other machines.
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
    Start,
    Stop,
    ToWorker,
    line_to_worker,
    read_from_worker,
)

STOP_WITHIN_S = 15.0
"""A worker that is told to stop ends between two frames; one that does not within this time is killed."""


@dataclass(frozen=True, slots=True)
class Loading:
    """What every worker loads.

    Attributes:
        model: name in the weights' manifest.
        detector, device, dtype: as `LipSyncPipeline.from_pretrained` takes them; without a device, workers
            are dealt out over the CUDA devices there are.
        cache_dir: None: LIPSYNC_CACHE_DIR, else the user's cache folder.
        marking: as `from_pretrained` takes it.
        jobs: clips that a worker makes at once.
    """

    model: str = "tiny"
    detector: str | None = None
    device: str | None = None
    dtype: str | None = None
    cache_dir: Path | None = None
    marking: str | None = None
    jobs: int = 1

    def arguments(self) -> list[str]:
        given = {
            "--model": self.model,
            "--detector": self.detector,
            "--device": self.device,
            "--dtype": self.dtype,
            "--cache-dir": self.cache_dir,
            "--marking": self.marking,
            "--jobs": self.jobs,
        }
        return [f"{name}={value}" for name, value in given.items() if value is not None]


class Worker(Protocol):
    """One who makes clips.

    Attributes:
        index: its place in the pool.
        is_ready: it can be given work, as it has said.
    """

    index: int
    is_ready: bool

    def start(self, order: Start) -> None: ...

    def stop(self) -> None:
        """Ask it to end; `leave` waits for that."""

    def leave(self, until: float) -> None:
        """Returns when it is gone, with all its children.

        Args:
            until: `time.monotonic()` at which it is killed.
        """

    @property
    def how_it_ended(self) -> str: ...


Told = Callable[[Worker, FromWorker | None], None]
"""Takes what a worker says, and None when it has ended; called from any thread."""


class Machines(Protocol):
    """Where workers run; a context manager for as long as there are any."""

    def usual_size(self) -> int:
        """How many workers there are where nobody says it."""

    def start(self, index: int, size: int, told: Told, log: IO[bytes]) -> Worker:
        """A worker that loads the model; returns at once.

        Args:
            size: how many there are to be.
            log: takes its standard error.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class Process:
    """A worker on this machine.

    Args:
        threads: for arithmetic; None: the libraries' choice.
        log: takes its standard error.
    """

    def __init__(
        self,
        loading: Loading,
        index: int,
        threads: int | None,
        told: Told,
        log: IO[bytes],
    ) -> None:
        self.index = index
        self.is_ready = False
        environment = dict(os.environ)
        if threads is not None:
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker", *loading.arguments(), f"--index={index}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            start_new_session=True,  # a Ctrl-C in the terminal is for the parent
        )
        self._told = told
        self._ear = threading.Thread(target=self._listen, name=f"worker-{index}", daemon=True)
        self._ear.start()

    def _listen(self) -> None:
        for line in _pipe(self._process.stdout):
            if line.endswith(b"\n"):
                self._told(self, read_from_worker(line))
        self._process.wait()
        self._told(self, None)

    def start(self, order: Start) -> None:
        self._say(order)

    def stop(self) -> None:
        self._say(Stop())

    def leave(self, until: float) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, until - time.monotonic()))
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with suppress(BrokenPipeError):
            _pipe(self._process.stdin).close()
        self._ear.join(timeout=5)
        _pipe(self._process.stdout).close()

    @property
    def how_it_ended(self) -> str:
        status = self._process.wait()
        if status >= 0:
            return f"exit status {status}"
        try:
            return signal.Signals(-status).name
        except ValueError:
            return f"signal {-status}"

    def _say(self, message: ToWorker) -> None:
        with suppress(BrokenPipeError):  # that it is gone will be heard
            pipe = _pipe(self._process.stdin)
            pipe.write(line_to_worker(message))
            pipe.flush()


class ThisMachine:
    """Workers are processes here."""

    def __init__(self, loading: Loading) -> None:
        self._loading = loading

    def usual_size(self) -> int:
        return 1

    def start(self, index: int, size: int, told: Told, log: IO[bytes]) -> Worker:
        threads = max(1, (os.cpu_count() or 1) // size) if size > 1 else None
        return Process(self._loading, index, threads, told, log)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Pool:
    """A few workers; a context manager that leaves none behind.

    Args:
        log: file that takes what workers write to standard error.
    """

    def __init__(self, machines: Machines, size: int, log: IO[bytes]) -> None:
        self._machines, self._size, self._log = machines, size, log
        self._said: queue.SimpleQueue[tuple[Worker, FromWorker | None]] = queue.SimpleQueue()
        self._workers: set[Worker] = set()

    def hear(self) -> tuple[Worker, FromWorker | None]:
        """The next thing that a worker says; None: it has ended."""
        while True:
            worker, message = self._said.get()
            if worker in self._workers:
                return worker, message

    def ready(self) -> list[Worker]:
        """Those that can be given work, or have some; in a fixed order."""
        return sorted((w for w in self._workers if w.is_ready), key=lambda worker: worker.index)

    @property
    def is_empty(self) -> bool:
        return not self._workers

    def add(self, index: int) -> None:
        """Start a worker; it says when it is ready."""
        worker = self._machines.start(index, self._size, lambda *said: self._said.put(said), self._log)
        self._workers.add(worker)

    def drop(self, worker: Worker) -> None:
        """Let one go: it ends of itself, or has ended, or is told to; what it still says is not heard."""
        self._workers.discard(worker)
        worker.stop()
        worker.leave(time.monotonic() + STOP_WITHIN_S)

    def __enter__(self) -> Self:
        try:
            for index in range(self._size):
                self.add(index)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()
        until = time.monotonic() + STOP_WITHIN_S
        for worker in self._workers:
            worker.leave(until if worker.is_ready else 0.0)  # what only loads has nothing to clean up


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise AssertionError("every worker is started with pipes")
    return pipe
