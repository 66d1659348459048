"""Workers of a batch on the machines of a Ray cluster: one actor per device, each with a worker process.

The only module of the engine that uses Ray's actors. Ray assigns free devices and reports lost machines.
Files
are not transferred: all machines must see inputs and results under the same paths. The module knows neither
rows nor results.
"""

from __future__ import annotations

import os
import platform
import queue
import tempfile
import threading
import time
from collections.abc import Collection, Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import ray
from ray.exceptions import RayError

from lipsync_engine.batch.messages import FromWorker, RunJob, Shutdown, ToWorker, WorkerUnusable
from lipsync_engine.batch.worker_process import LocalWorker, ModelOptions, OnMessage, WorkerHandle
from lipsync_engine.errors import ErrorCode, ResourceError
from lipsync_engine.ray_connection import connect_to_cluster

REPLY_MARGIN_S = 5.0
"""Time that an actor may take to reply beyond the deadline of its worker's exit."""

FORWARDED_VARIABLES = ("LIPSYNC_", "HF_", "OMP_NUM_THREADS")
"""Prefixes of environment variables that are passed on to remote workers."""

READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class SharedPaths:
    """Folders that every machine must see under the same paths.

    Attributes:
        results: of this batch.
        marker_name: a file in `results` that exists as long as the batch runs.
        inputs: folders with input files.
    """

    results: Path
    marker_name: str
    inputs: Collection[Path]

    def find_problem(self) -> tuple[ErrorCode, str] | None:
        """Return code and message if a folder is not usable on this machine."""
        node = platform.node()
        advice = "mount inputs and results under the same path on all machines."
        if not (self.results / self.marker_name).exists():
            message = f"{str(self.results)!r} is not the batch's output folder on {node}: {advice}"
            return ErrorCode.OUTPUT_NOT_WRITABLE, message
        try:
            tempfile.TemporaryFile(dir=self.results).close()
        except OSError as error:
            message = f"{str(self.results)!r} is not writable on {node} ({error.strerror}): {advice}"
            return ErrorCode.OUTPUT_NOT_WRITABLE, message
        for folder in self.inputs:
            if not folder.is_dir():
                return ErrorCode.INPUT_NOT_FOUND, f"{str(folder)!r} does not exist on {node}: {advice}"
        return None


@dataclass(frozen=True, slots=True)
class WorkerExit:
    """The last event of a remote worker."""

    description: str


class WorkerActor:
    """Ray actor that runs a worker process on one device of one machine; its calls return while it works.

    Args:
        device: Ray's name of the resource, GPU or CPU.
        environment: variables for the process.
    """

    def __init__(
        self,
        options: ModelOptions,
        index: int,
        device: str,
        paths: SharedPaths,
        environment: dict[str, str],
    ) -> None:
        os.environ["OMP_NUM_THREADS"] = str(_threads_per_worker(device))  # Ray's own default is 1
        os.environ |= environment
        self._events: queue.SimpleQueue[FromWorker | bytes | None] = queue.SimpleQueue()
        self._process: LocalWorker | None = None
        problem = paths.find_problem()
        if problem is not None:
            self._events.put(WorkerUnusable(*problem))
            self._events.put(None)
            return
        stderr_read, stderr_write = os.pipe()
        self._reader = threading.Thread(target=self._read_stderr, args=(stderr_read,), daemon=True)
        self._reader.start()
        with os.fdopen(stderr_write, "wb") as log:
            self._process = LocalWorker(options, index, None, lambda _, event: self._events.put(event), log)

    def stream_events(self) -> Generator[FromWorker | bytes | WorkerExit, None, None]:
        """Yield the worker's events; bytes are its standard error."""
        while (event := self._events.get()) is not None:
            yield event
        description = "not started"
        if self._process is not None:
            description = self._process.exit_description
            self._reader.join(REPLY_MARGIN_S)
        with suppress(queue.Empty):
            while (event := self._events.get_nowait()) is not None:
                yield event
        yield WorkerExit(f"{description} on {platform.node()}")

    def send(self, message: ToWorker) -> None:
        """Send a command to the worker process."""
        if self._process is None:
            return
        if isinstance(message, RunJob):
            self._process.run_job(message)
        else:
            self._process.request_shutdown()

    def wait_until_gone(self, timeout_s: float) -> None:
        """Return when the process has exited; it is killed after that time."""
        if self._process is not None:
            self._process.wait_until_gone(time.monotonic() + timeout_s)

    def _read_stderr(self, descriptor: int) -> None:
        with os.fdopen(descriptor, "rb", buffering=0) as pipe:
            while chunk := pipe.read(READ_BYTES):
                self._events.put(chunk)


class RayWorker:
    """The batch's handle of a remote worker.

    Args:
        actor: handle of its `WorkerActor`, which may still wait for a free device.
        log: takes its standard error.
    """

    def __init__(self, actor: Any, index: int, on_message: OnMessage, log: IO[bytes]) -> None:
        self.index = index
        self.is_ready = False
        self._actor, self._on_message, self._log = actor, on_message, log
        self._exit: str | None = None
        self._reader = threading.Thread(target=self._read_events, name=f"worker-{index}", daemon=True)
        self._reader.start()

    def _read_events(self) -> None:
        description = "its events ended without an exit"
        try:
            for reference in self._actor.stream_events.options(num_returns="streaming").remote():
                match ray.get(reference):
                    case bytes() as chunk:
                        self._log.write(chunk)
                        self._log.flush()
                    case WorkerExit(description=description):
                        pass
                    case event:
                        self._on_message(self, event)
        except RayError as error:
            description = f"machine or device lost: {str(error).splitlines()[0]}"
        self._exit = description
        self._on_message(self, None)

    def run_job(self, job: RunJob) -> None:
        """Send a job."""
        self._actor.send.remote(job)

    def request_shutdown(self) -> None:
        """Send `Shutdown`."""
        self._actor.send.remote(Shutdown())

    def wait_until_gone(self, deadline: float) -> None:
        """Wait for the exit until the deadline, then kill the actor and its process."""
        timeout_s = deadline - time.monotonic()
        if self._exit is None and timeout_s > 0:
            with suppress(RayError):
                ray.get(self._actor.wait_until_gone.remote(timeout_s), timeout=timeout_s + REPLY_MARGIN_S)
        ray.kill(self._actor)
        self._reader.join(REPLY_MARGIN_S)

    @property
    def exit_description(self) -> str:
        """How it exited, and on which machine."""
        return self._exit or "still running"


class RayBackend:
    """Runs workers on the cluster that RAY_ADDRESS names, else on this machine's cluster; a context manager.

    Raises:
        ResourceError: CLUSTER_AWAY, there is none; DEVICE_UNAVAILABLE, it has no device for workers.
    """

    def __init__(self, options: ModelOptions, paths: SharedPaths) -> None:
        self._options, self._paths = options, paths
        self._owns_connection = not ray.is_initialized()
        if self._owns_connection:
            _connect_to_ray()
        try:
            self._device = self._choose_resource()
        except BaseException:
            self.__exit__()
            raise

    def _choose_resource(self) -> str:
        """Return GPU, or CPU if the cluster has no GPU or the caller asks for the CPU."""
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        requested_device = self._options.device or os.environ.get("LIPSYNC_DEVICE")
        device = "GPU" if resources.get("GPU") and requested_device != "cpu" else "CPU"
        if resources.get(device, 0) < 1:
            raise ResourceError(
                ErrorCode.DEVICE_UNAVAILABLE,
                f"The Ray cluster has no {device} for a worker: add a machine with `lipsync cluster join`.",
            )
        return device

    def default_size(self) -> int:
        """Return the number of free devices; 1 if none is free, a worker that waits for one."""
        free = ray.available_resources()  # type: ignore[no-untyped-call]
        return max(1, int(free.get(self._device, 0)))

    def start_worker(self, index: int, size: int, on_message: OnMessage, log: IO[bytes]) -> WorkerHandle:
        """Start an actor, which waits for a free device."""
        resources = {"num_gpus": float(self._device == "GPU"), "num_cpus": float(self._device == "CPU")}
        # Concurrent calls: one streams events, one sends, one waits for the exit.
        settings = {"max_restarts": 0, "max_concurrency": 3, "scheduling_strategy": "SPREAD", **resources}
        actor_class: Any = ray.remote(WorkerActor)
        environment = {
            name: value for name, value in os.environ.items() if name.startswith(FORWARDED_VARIABLES)
        }
        actor = actor_class.options(**settings).remote(
            self._options, index, self._device, self._paths, environment
        )
        return RayWorker(actor, index, on_message, log)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._owns_connection:
            ray.shutdown()


def _connect_to_ray() -> None:
    try:
        connect_to_cluster()
    except ConnectionError as error:
        raise ResourceError(
            ErrorCode.CLUSTER_AWAY,
            f"No Ray cluster is usable: {str(error).splitlines()[0]}. Start one with `lipsync cluster up`, "
            "add this machine to one with `lipsync cluster join`, or set RAY_ADDRESS.",
        ) from error


def _threads_per_worker(device: str) -> int:
    """Return a worker's share of this machine's cores."""
    node_id = ray.get_runtime_context().get_node_id()
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    resources = next(node["Resources"] for node in nodes if node["NodeID"] == node_id)
    return max(1, (os.cpu_count() or 1) // int(resources[device]))
