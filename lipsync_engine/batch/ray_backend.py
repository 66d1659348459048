"""Workers of a batch on the machines of a Ray cluster: an actor per device, with the same process as here.

The only module of the engine that knows Ray, which finds free devices and says when a machine is lost. Files
go by no other way than the file system: inputs and results lie where all machines see them. It knows neither
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

from lipsync_engine.batch.messages import FromWorker, Start, Stop, ToWorker, Unable
from lipsync_engine.batch.worker_process import Loading, Process, Told, Worker
from lipsync_engine.errors import ErrorCode, ResourceError
from lipsync_engine.ray_connection import connect

ANSWER_WITHIN_S = 5.0
"""So much longer than a worker may take to end is its actor waited for."""

CARRIED = ("LIPSYNC_", "HF_", "OMP_NUM_THREADS")
"""Environment variables that workers elsewhere get from here."""

READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Folders:
    """What every machine must see, under the same paths.

    Attributes:
        results: of this batch; `mark` is the name of a file that lies in it as long as the batch runs.
        inputs: where files of rows lie.
    """

    results: Path
    mark: str
    inputs: Collection[Path]

    def unseen(self) -> tuple[ErrorCode, str] | None:
        """What is wrong with them on this machine."""
        shared = "inputs and results of a batch must lie where all machines see them under the same path."
        if not (self.results / self.mark).exists():
            sentence = f"{platform.node()} does not see {str(self.results)!r}: {shared}"
            return ErrorCode.OUTPUT_NOT_WRITABLE, sentence
        try:
            tempfile.TemporaryFile(dir=self.results).close()
        except OSError as error:
            sentence = f"{platform.node()} cannot write to {str(self.results)!r} ({error.strerror})."
            return ErrorCode.OUTPUT_NOT_WRITABLE, sentence
        for folder in self.inputs:
            if not folder.is_dir():
                return ErrorCode.INPUT_NOT_FOUND, f"{platform.node()} does not see {str(folder)!r}: {shared}"
        return None


@dataclass(frozen=True, slots=True)
class Ended:
    """The last thing that is heard of a worker's process."""

    how: str


class Host:
    """A worker's process on one device of one machine; an actor whose calls are answered while it works.

    Args:
        device: what Ray calls it, GPU or CPU.
        environment: variables for the process.
    """

    def __init__(
        self, loading: Loading, index: int, device: str, folders: Folders, environment: dict[str, str]
    ) -> None:
        os.environ["OMP_NUM_THREADS"] = str(_threads(device))  # Ray's own choice is one
        os.environ |= environment
        self._said: queue.SimpleQueue[FromWorker | bytes | None] = queue.SimpleQueue()
        self._process: Process | None = None
        unseen = folders.unseen()
        if unseen is not None:
            self._said.put(Unable(*unseen))
            self._said.put(None)
            return
        complaints, log = os.pipe()
        self._reader = threading.Thread(target=self._read, args=(complaints,), daemon=True)
        self._reader.start()
        with os.fdopen(log, "wb") as write_end:
            self._process = Process(loading, index, None, lambda _, said: self._said.put(said), write_end)

    def hear(self) -> Generator[FromWorker | bytes | Ended, None, None]:
        """All that the process says; bytes are its standard error."""
        while (said := self._said.get()) is not None:
            yield said
        how = "it was not started"
        if self._process is not None:
            how = self._process.how_it_ended
            self._reader.join(ANSWER_WITHIN_S)
        with suppress(queue.Empty):
            while (said := self._said.get_nowait()) is not None:
                yield said
        yield Ended(f"{how}, on {platform.node()}")

    def tell(self, order: ToWorker) -> None:
        if self._process is None:
            return
        if isinstance(order, Start):
            self._process.start(order)
        else:
            self._process.stop()

    def leave(self, within_s: float) -> None:
        """Returns when the process is gone; it is killed after that time."""
        if self._process is not None:
            self._process.leave(time.monotonic() + within_s)

    def _read(self, complaints: int) -> None:
        with os.fdopen(complaints, "rb", buffering=0) as pipe:
            while chunk := pipe.read(READ_BYTES):
                self._said.put(chunk)


class Guest:
    """A worker elsewhere, as the batch sees it.

    Args:
        host: handle of its actor, which may still wait for a free device.
        log: takes its standard error.
    """

    def __init__(self, host: Any, index: int, told: Told, log: IO[bytes]) -> None:
        self.index = index
        self.is_ready = False
        self._host, self._told, self._log = host, told, log
        self._how: str | None = None
        self._ear = threading.Thread(target=self._listen, name=f"worker-{index}", daemon=True)
        self._ear.start()

    def _listen(self) -> None:
        how = "it said nothing more"
        try:
            for reference in self._host.hear.options(num_returns="streaming").remote():
                match ray.get(reference):
                    case bytes() as complaint:
                        self._log.write(complaint)
                        self._log.flush()
                    case Ended(how=how):
                        pass
                    case message:
                        self._told(self, message)
        except RayError as error:
            how = f"its machine or its place there was lost: {str(error).splitlines()[0]}"
        self._how = how
        self._told(self, None)

    def start(self, order: Start) -> None:
        self._host.tell.remote(order)

    def stop(self) -> None:
        self._host.tell.remote(Stop())

    def leave(self, until: float) -> None:
        within_s = until - time.monotonic()
        if self._how is None and within_s > 0:
            with suppress(RayError):
                ray.get(self._host.leave.remote(within_s), timeout=within_s + ANSWER_WITHIN_S)
        ray.kill(self._host)
        self._ear.join(ANSWER_WITHIN_S)

    @property
    def how_it_ended(self) -> str:
        return self._how or "it did not end"


class Cluster:
    """The cluster that RAY_ADDRESS names, or else this machine belongs to; a context manager.

    Raises:
        ResourceError: CLUSTER_AWAY, there is none; DEVICE_UNAVAILABLE, it has no place for workers.
    """

    def __init__(self, loading: Loading, folders: Folders) -> None:
        self._loading, self._folders = loading, folders
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            _connect()
        try:
            self._device = self._wanted()
        except BaseException:
            self.__exit__()
            raise

    def _wanted(self) -> str:
        """A GPU each; where the cluster has none, or the CPU is asked for, one of its slots for CPUs."""
        devices = ray.cluster_resources()  # type: ignore[no-untyped-call]
        asked = self._loading.device or os.environ.get("LIPSYNC_DEVICE")
        device = "GPU" if devices.get("GPU") and asked != "cpu" else "CPU"
        if devices.get(device, 0) < 1:
            raise ResourceError(
                ErrorCode.DEVICE_UNAVAILABLE,
                "The Ray cluster has no place for a worker: `lipsync cluster join` gives it a machine.",
            )
        return device

    def usual_size(self) -> int:
        """As many as have a free device now; where none is free, one that waits for it."""
        free = ray.available_resources()  # type: ignore[no-untyped-call]
        return max(1, int(free.get(self._device, 0)))

    def start(self, index: int, size: int, told: Told, log: IO[bytes]) -> Worker:
        resources = {"num_gpus": float(self._device == "GPU"), "num_cpus": float(self._device == "CPU")}
        # Calls in threads: one hears, one is told, one is waited for.
        options = {"max_restarts": 0, "max_concurrency": 3, "scheduling_strategy": "SPREAD", **resources}
        actor: Any = ray.remote(Host)
        carried = {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}
        host = actor.options(**options).remote(self._loading, index, self._device, self._folders, carried)
        return Guest(host, index, told, log)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_ours:
            ray.shutdown()


def _connect() -> None:
    try:
        connect()
    except ConnectionError as error:
        raise ResourceError(
            ErrorCode.CLUSTER_AWAY,
            f"No Ray cluster can be used: {str(error).splitlines()[0]}. `lipsync cluster up` starts one, and "
            "`lipsync cluster join` takes this machine into one; RAY_ADDRESS names another.",
        ) from error


def _threads(device: str) -> int:
    """A worker's share of this machine's cores."""
    here = ray.get_runtime_context().get_node_id()
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    devices = next(node["Resources"] for node in nodes if node["NodeID"] == here)
    return max(1, (os.cpu_count() or 1) // int(devices[device]))
