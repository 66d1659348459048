"""Workers on a Ray cluster: an actor per device, each with the supervisor and worker process as everywhere.

The only owner of Ray, which places actors on machines and says when one is lost. Jobs, leases and files are
the database's and the blobs', as without Ray: an actor is a server that answers nobody. It knows no command
line.
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
from server.cluster.autoscaling import Condition, Limits, Worker
from server.jobs.state import State
from server.settings import PREFIX, Settings
from server.store import DatabaseUnavailableError, Store

log = logging.getLogger("lipsync.cluster")

NAMESPACE = "lipsync"
POOL = "pool"
TICK_S = 2.0
ANSWER_WITHIN_S = 10.0
"""A worker that does not say how it is within this time is looked at again at the next tick."""

USUAL_SEGMENT_S = 10.0
USUAL_JOBS = 20
"""The latest so many tell how long a job takes."""

CARRIED = (PREFIX, "AWS_", "HF_")
"""Environment variables that workers elsewhere need; RAY_ ones are Ray's to carry."""


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """One worker, as `lipsync cluster status` shows it; `has_left`: it has ended as it was told to."""

    name: str
    machine: str
    device: str
    condition: Condition
    idle_s: float
    has_left: bool = False


class Host:
    """One device of one machine; an actor whose calls are answered while it works.

    Args:
        given: settings.
        device: as `Settings.devices` names it.
    """

    def __init__(self, name: str, given: dict[str, Any], device: str) -> None:
        self._name, self._device = name, device
        settings = Settings(**given)
        logs.configure_logging(settings.log_format)
        self._server = Server(settings, (device,), quarantines=True)
        self._leaving = asyncio.Event()
        self._idle_since = time.monotonic()
        self._has_left = False
        self._failure: Exception | None = None

    async def run(self) -> None:
        """Work until told to drain; what runs then ends, or is handed back."""
        try:
            async with self._server.run():
                await self._leaving.wait()
        except Exception as error:
            log.exception("%s: cannot go on", self._name)
            self._failure = error
        self._has_left = True

    def drain(self) -> None:
        self._leaving.set()

    def report(self) -> Report:
        """How it is.

        Raises:
            Exception: what ended it.
        """
        if self._failure is not None:
            raise self._failure
        if self._server.supervisor.is_busy:
            self._idle_since = time.monotonic()
        idle_s = round(time.monotonic() - self._idle_since, 1)
        _, condition, _ = self._server.supervisor.conditions[0]
        if self._leaving.is_set():
            condition = Condition.DRAINING
        return Report(self._name, platform.node(), self._device, condition, idle_s, self._has_left)


class Pool:
    """Keeps as many workers as there is work for; there is one, and it outlives whoever started it.

    A thread of its own does that, so that it goes on by itself where Ray had to start it again.

    Args:
        given: settings.
        resources: of each worker, in Ray's words.
    """

    def __init__(self, given: dict[str, Any], resources: dict[str, float]) -> None:
        settings = Settings(**given)
        logs.configure_logging(settings.log_format)
        self._given, self._resources = given, resources
        self._device = "cuda:0" if resources.get("num_gpus") else "cpu"
        self._limits = Limits(
            settings.cluster_min, settings.cluster_max, settings.cluster_backlog_s, settings.cluster_idle_s
        )
        self._jobs_per_worker = settings.jobs_per_worker
        self._store = Store(settings.effective_database_url)
        self._hosts = _hosts()  # those of a pool that was lost
        self._reports: dict[str, Report] = {}
        self._lost = 0
        self._is_leaving = False
        threading.Thread(target=self._keep, name="pool", daemon=True).start()

    def status(self) -> tuple[list[Report], int]:
        """Of each worker; and how many were lost and replaced."""
        unknown = [Report(name, "", "", Condition.STARTING, 0.0) for name in list(self._hosts)]
        return [self._reports.get(report.name, report) for report in unknown], self._lost

    def drain(self) -> None:
        """Let all workers end what they do, and start no more."""
        self._is_leaving = True

    def _keep(self) -> None:
        while self._hosts or not self._is_leaving:
            try:
                self._look()
                self._decide()
            except (RayError, DatabaseUnavailableError) as error:
                log.warning("the pool stumbled: %s", error)
            time.sleep(TICK_S)

    def _look(self) -> None:
        """Hear how the workers are; those that have ended, or were lost, are forgotten."""
        asked = {host.report.remote(): name for name, host in self._hosts.items()}
        if not asked:
            return
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_WITHIN_S)
        for answer in answered:
            name = asked[answer]
            try:
                report: Report = ray.get(answer)
            except ActorUnavailableError:  # it may come back; if not, the next look says that it died
                continue
            except RayError as error:
                log.warning("%s: was lost: %s", name, str(error).splitlines()[0])
                self._lost += 1
                self._forget(name)
                continue
            self._reports[name] = report
            if report.has_left:
                log.info("%s: has left", name)
                self._forget(name)

    def _decide(self) -> None:
        reports, _ = self.status()
        if self._is_leaving:
            start, stop = 0, [r.name for r in reports if r.condition is not Condition.DRAINING]
        else:
            workers = [Worker(report.name, report.condition, report.idle_s) for report in reports]
            start, stop = autoscaling.decide(workers, self._backlog_s(), self._limits)
        for name in stop:
            if name in self._reports:
                self._hosts[name].drain.remote()
            else:  # it has not started yet
                self._forget(name)
        for _ in range(start):
            self._start()

    def _backlog_s(self) -> float:
        store = self._store
        waiting, free = len(store.waiting_jobs()), store.count_free_segments(store.now())
        latest, _ = store.page(None, offset=0, limit=USUAL_JOBS, states=[State.SUCCEEDED])
        run_s = [record.job.run_s for record in latest if record.job.run_s is not None]
        usual_s = statistics.median(run_s) if run_s else None
        return autoscaling.backlog_s(waiting, free, usual_s, USUAL_SEGMENT_S, self._jobs_per_worker)

    def _start(self) -> None:
        name = f"worker-{uuid.uuid4().hex[:8]}"
        options: dict[str, Any] = {"name": name, "namespace": NAMESPACE, "lifetime": "detached"}
        options |= {"max_restarts": 0, "runtime_env": environment(), **self._resources}
        actor: Any = ray.remote(Host)
        self._hosts[name] = actor.options(**options).remote(name, self._given, self._device)
        self._hosts[name].run.remote()
        log.info("%s: asked for", name)

    def _forget(self, name: str) -> None:
        ray.kill(self._hosts.pop(name))
        self._reports.pop(name, None)


def start_pool(settings: Settings) -> None:
    """Make the pool on the cluster that `connect` found; one that is there stays as it is."""
    given = settings.model_dump(mode="json")
    actor: Any = ray.remote(Pool)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "lifetime": "detached"}
    options |= {"name": POOL, "namespace": NAMESPACE, "get_if_exists": True, "runtime_env": environment()}
    # Where `up` runs, which is the head's machine: the others come and go.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options |= {"scheduling_strategy": here}
    handle = actor.options(**options).remote(given, _resources(settings))
    ray.get(handle.status.remote())


def pool() -> Any:
    """The pool's handle.

    Raises:
        ValueError: there is none.
    """
    try:
        return ray.get_actor(POOL, NAMESPACE)
    except ValueError:
        raise ValueError("there is no pool on this cluster: `lipsync cluster up` starts one") from None


def connect(address: str) -> None:
    """Join a cluster as a program that asks.

    Raises:
        ConnectionError: nobody answers there.
    """
    ray_connection.connect_to_cluster(address, NAMESPACE)


def head_address() -> str:
    """Where other machines join."""
    return str(ray.get_runtime_context().gcs_address)


def status() -> tuple[list[Report], int]:
    """As the pool says it."""
    found: tuple[list[Report], int] = ray.get(pool().status.remote())
    return found


def drain(pause_s: float = 1.0) -> None:
    """Let all workers end what they do; returns when none is left and the pool is gone."""
    handle = pool()
    ray.get(handle.drain.remote())
    while ray.get(handle.status.remote())[0]:
        time.sleep(pause_s)
    ray.kill(handle)


def environment() -> dict[str, dict[str, str]]:
    """What workers on other machines must find in theirs."""
    return {"env_vars": {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}}


def _hosts() -> dict[str, Any]:
    named = ray.util.list_named_actors(all_namespaces=True)
    names = [one["name"] for one in named if one["namespace"] == NAMESPACE and one["name"] != POOL]
    return {name: ray.get_actor(name, NAMESPACE) for name in names}


def _resources(settings: Settings) -> dict[str, float]:
    """A GPU each; where the cluster has none, or the settings say cpu, a CPU each."""
    gpus = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
    cpu = {"num_cpus": 1.0}
    return cpu if settings.devices == ("cpu",) or not gpus else cpu | {"num_gpus": 1.0}
