"""Workers on a Ray cluster: one actor per device, each with a supervisor and a worker process.

The only owner of Ray in the server. Ray places actors on machines and reports when one is lost. Jobs, leases
and files are in the database and the blobs, as without Ray: an actor is a server process without an HTTP
port. The module knows no command line.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import platform
import statistics
import threading
import time
import uuid
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lipsync_engine import ray_connection
from server import logs
from server.app import Server
from server.cluster import autoscaling
from server.cluster.autoscaling import ScalingLimits, WorkerActivity, WorkerState
from server.jobs.state import State
from server.settings import PREFIX, Settings
from server.storage.private_files import create_private_files
from server.store import DatabaseUnavailableError, Store

log = logging.getLogger("lipsync.cluster")

NAMESPACE = "lipsync"
POOL = "pool"
TICK_S = 2.0
REPORT_TIMEOUT_S = 10.0
"""A worker that does not report within this time is polled again at the next tick."""

TYPICAL_SEGMENT_S = 10.0
TYPICAL_RUN_JOBS = 20
"""Number of recent jobs whose median duration counts as typical."""

FORWARDED_PREFIXES = (PREFIX, "AWS_", "HF_")
"""Environment variables that workers on other machines need; Ray forwards its own."""


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerReport:
    """State of one worker; `has_stopped`: it has drained on request."""

    name: str
    machine: str
    device: str
    state: WorkerState
    idle_s: float
    has_stopped: bool = False


class ServerActor:
    """Actor with one device of one machine; its calls are answered while it works.

    Args:
        settings: fields of `Settings`.
        device: as `Settings.devices` names it.
    """

    def __init__(self, name: str, settings: dict[str, Any], device: str) -> None:
        self._name, self._device = name, device
        parsed = Settings(**settings)
        logs.configure_logging(parsed.log_format)
        create_private_files()
        self._server = Server(parsed, (device,), quarantines=True)
        self._draining = asyncio.Event()
        self._idle_since = time.monotonic()
        self._has_stopped = False
        self._failure: Exception | None = None

    async def run(self) -> None:
        """Run jobs until drained; then running jobs end, or are requeued."""
        try:
            async with self._server.run():
                await self._draining.wait()
        except Exception as error:
            log.exception("%s: failed", self._name)
            self._failure = error
        self._has_stopped = True

    def drain(self) -> None:
        self._draining.set()

    def report(self) -> WorkerReport:
        """Return the worker's state.

        Raises:
            Exception: the error that ended it.
        """
        if self._failure is not None:
            raise self._failure
        if self._server.supervisor.is_busy:
            self._idle_since = time.monotonic()
        idle_s = round(time.monotonic() - self._idle_since, 1)
        (worker,) = self._server.supervisor.workers
        state = WorkerState.DRAINING if self._draining.is_set() else worker.state
        return WorkerReport(self._name, platform.node(), self._device, state, idle_s, self._has_stopped)


class WorkerPool:
    """Actor that keeps as many workers as the backlog needs; there is one, and it outlives its creator.

    A thread of its own does that, so that it also works after Ray has restarted the actor.

    Args:
        settings: fields of `Settings`.
        resources: of each worker, as options of a Ray actor.
    """

    def __init__(self, settings: dict[str, Any], resources: dict[str, float]) -> None:
        parsed = Settings(**settings)
        logs.configure_logging(parsed.log_format)
        self._settings, self._resources = settings, resources
        self._device = "cuda:0" if resources.get("num_gpus") else "cpu"
        self._limits = ScalingLimits(
            parsed.cluster_min, parsed.cluster_max, parsed.cluster_backlog_s, parsed.cluster_idle_s
        )
        self._jobs_per_worker = parsed.jobs_per_worker
        self._store = Store(parsed.effective_database_url)
        self._actors = _find_workers()  # those of a pool that was lost
        self._reports: dict[str, WorkerReport] = {}
        self._lost = 0
        self._is_draining = False
        threading.Thread(target=self._run, name="pool", daemon=True).start()

    def status(self) -> tuple[list[WorkerReport], int]:
        """Return the last report of each worker, and how many workers were lost and replaced."""
        starting = [WorkerReport(name, "", "", WorkerState.STARTING, 0.0) for name in list(self._actors)]
        return [self._reports.get(report.name, report) for report in starting], self._lost

    def drain(self) -> None:
        """Stop all workers after their running jobs, and start no more."""
        self._is_draining = True

    def _run(self) -> None:
        while self._actors or not self._is_draining:
            try:
                self._collect_reports()
                self._scale()
            except (RayError, DatabaseUnavailableError) as error:
                log.warning("pool: tick failed: %s", error)
            time.sleep(TICK_S)

    def _collect_reports(self) -> None:
        """Poll the workers; those that have stopped, or were lost, are removed."""
        requests = {actor.report.remote(): name for name, actor in self._actors.items()}
        if not requests:
            return
        finished, _ = ray.wait(list(requests), num_returns=len(requests), timeout=REPORT_TIMEOUT_S)
        for reference in finished:
            name = requests[reference]
            try:
                report: WorkerReport = ray.get(reference)
            except ActorUnavailableError:  # it may come back; if not, the next tick gets another error
                continue
            except RayError as error:
                log.warning("%s: lost: %s", name, str(error).splitlines()[0])
                self._lost += 1
                self._remove(name)
                continue
            self._reports[name] = report
            if report.has_stopped:
                log.info("%s: stopped", name)
                self._remove(name)

    def _scale(self) -> None:
        reports, _ = self.status()
        if self._is_draining:
            start, stop = 0, [r.name for r in reports if r.state is not WorkerState.DRAINING]
        else:
            workers = [WorkerActivity(report.name, report.state, report.idle_s) for report in reports]
            start, stop = autoscaling.decide(workers, self._backlog_s(), self._limits)
        for name in stop:
            if name in self._reports:
                self._actors[name].drain.remote()
            else:  # it has not started yet
                self._remove(name)
        for _ in range(start):
            self._start_worker()

    def _backlog_s(self) -> float:
        store = self._store
        waiting, free = len(store.waiting_jobs()), store.count_free_segments(store.now())
        recent, _ = store.page(None, offset=0, limit=TYPICAL_RUN_JOBS, states=[State.SUCCEEDED])
        durations_s = [record.job.run_s for record in recent if record.job.run_s is not None]
        typical_s = statistics.median(durations_s) if durations_s else None
        return autoscaling.backlog_s(waiting, free, typical_s, TYPICAL_SEGMENT_S, self._jobs_per_worker)

    def _start_worker(self) -> None:
        name = f"worker-{uuid.uuid4().hex[:8]}"
        options: dict[str, Any] = {"name": name, "namespace": NAMESPACE, "lifetime": "detached"}
        options |= {"max_restarts": 0, "runtime_env": forwarded_environment(), **self._resources}
        actor: Any = ray.remote(ServerActor)
        self._actors[name] = actor.options(**options).remote(name, self._settings, self._device)
        self._actors[name].run.remote()
        log.info("%s: requested", name)

    def _remove(self, name: str) -> None:
        ray.kill(self._actors.pop(name))
        self._reports.pop(name, None)


def start_pool(settings: Settings) -> None:
    """Create the pool on the cluster that `connect` has joined; an existing pool stays as it is."""
    fields = settings.model_dump(mode="json")
    actor: Any = ray.remote(WorkerPool)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "lifetime": "detached"}
    options |= {"name": POOL, "namespace": NAMESPACE, "get_if_exists": True}
    options |= {"runtime_env": forwarded_environment()}
    # `lipsync cluster up` runs on the head's machine, which stays; other machines may leave.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options |= {"scheduling_strategy": here}
    handle = actor.options(**options).remote(fields, _worker_resources(settings))
    ray.get(handle.status.remote())


def get_pool() -> Any:
    """Return the pool's handle.

    Raises:
        ValueError: there is none.
    """
    try:
        return ray.get_actor(POOL, NAMESPACE)
    except ValueError:
        raise ValueError("there is no pool on this cluster: `lipsync cluster up` starts one") from None


def connect(address: str) -> None:
    """Join a cluster as a client.

    Raises:
        ConnectionError: there is no cluster at the address.
    """
    ray_connection.connect_to_cluster(address, NAMESPACE)


def head_address() -> str:
    """Return the address under which other machines join."""
    return str(ray.get_runtime_context().gcs_address)


def status() -> tuple[list[WorkerReport], int]:
    """Return the last report of each worker, and how many workers were lost and replaced."""
    result: tuple[list[WorkerReport], int] = ray.get(get_pool().status.remote())
    return result


def drain(poll_interval_s: float = 1.0) -> None:
    """Stop all workers after their running jobs; returns when they have stopped and the pool has ended."""
    handle = get_pool()
    ray.get(handle.drain.remote())
    while ray.get(handle.status.remote())[0]:
        time.sleep(poll_interval_s)
    ray.kill(handle)


def forwarded_environment() -> dict[str, dict[str, str]]:
    """Return Ray's `runtime_env` with the variables that workers on other machines need."""
    return {
        "env_vars": {name: value for name, value in os.environ.items() if name.startswith(FORWARDED_PREFIXES)}
    }


def _find_workers() -> dict[str, Any]:
    actors = ray.util.list_named_actors(all_namespaces=True)
    names = [one["name"] for one in actors if one["namespace"] == NAMESPACE and one["name"] != POOL]
    return {name: ray.get_actor(name, NAMESPACE) for name in names}


def _worker_resources(settings: Settings) -> dict[str, float]:
    """Return one GPU per worker; one CPU where the cluster has no GPU, or the settings name the CPU."""
    gpus = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
    cpu = {"num_cpus": 1.0}
    return cpu if settings.devices == ("cpu",) or not gpus else cpu | {"num_gpus": 1.0}
