"""Workers on a Ray cluster: an actor per device, each with the supervisor and worker process as everywhere.

The only owner of Ray, which places actors on machines and says when one is lost. Jobs, leases and files are
the database's and the blobs', as without Ray: an actor is a server that answers nobody. It knows no command
line.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import platform
import statistics
import time
import uuid
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError

from server import logs, scaling
from server.app import Server
from server.jobs import State
from server.scaling import Condition, Limits, Worker
from server.settings import PREFIX, Settings
from server.store import DatabaseAwayError, Store

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
    """One worker, as `lipsync cluster status` shows it."""

    name: str
    machine: str
    device: str
    condition: Condition
    idle_s: float
    starts: int


class Host:
    """One device of one machine.

    Args:
        given: settings.
        device: as `Settings.devices` names it.
    """

    def __init__(self, name: str, given: dict[str, Any], device: str) -> None:
        self._name, self._device = name, device
        settings = Settings(**given)
        logs.configure(settings.log_format)
        self._server = Server(settings, (device,), quarantines=True)
        self._leaving = asyncio.Event()
        self._idle_since = time.monotonic()

    async def run(self) -> None:
        """Work until told to drain; what runs then ends, or is handed back."""
        async with self._server.running():
            await self._leaving.wait()

    def drain(self) -> None:
        self._leaving.set()

    async def report(self) -> Report:
        supervisor = self._server.supervisor
        if supervisor.is_busy:
            self._idle_since = time.monotonic()
        condition = (
            Condition.DRAINING
            if self._leaving.is_set()
            else Condition.QUARANTINED
            if supervisor.is_quarantined
            else Condition.BUSY
            if supervisor.is_busy
            else Condition.IDLE
            if supervisor.is_ready
            else Condition.STARTING
        )
        ((_, _, starts),) = supervisor.workers
        idle_s = time.monotonic() - self._idle_since
        return Report(self._name, platform.node(), self._device, condition, round(idle_s, 1), starts)


class Pool:
    """Keeps as many workers as there is work for; there is one, and it outlives whoever started it.

    Args:
        given: settings.
        resources: of each worker, in Ray's words.
    """

    def __init__(self, given: dict[str, Any], resources: dict[str, float]) -> None:
        settings = Settings(**given)
        logs.configure(settings.log_format)
        self._given, self._resources = given, resources
        self._device = "cuda:0" if resources.get("num_gpus") else "cpu"
        self._limits = Limits(
            settings.cluster_min, settings.cluster_max, settings.cluster_backlog_s, settings.cluster_idle_s
        )
        self._store = Store(settings.database)
        self._hosts = _hosts()  # those of a pool that was lost
        self._running: dict[str, Any] = {}
        self._reports: dict[str, Report] = {}
        self._is_leaving = False
        self._lost = 0

    async def run(self) -> None:
        """Tick for ever, or until told to drain and nobody is left."""
        while self._hosts or not self._is_leaving:
            try:
                await self._tick()
            except (RayError, DatabaseAwayError) as error:
                log.warning("the pool stumbled: %s", error)
            await asyncio.sleep(TICK_S)

    async def status(self) -> tuple[list[Report], int]:
        """Of each worker; and how many were lost and replaced."""
        unknown = [Report(name, "", "", Condition.STARTING, 0.0, 0) for name in self._hosts]
        return [self._reports.get(report.name, report) for report in unknown], self._lost

    async def drain(self) -> None:
        """Let all workers end what they do, and start no more."""
        self._is_leaving = True

    async def _tick(self) -> None:
        await asyncio.gather(*(self._look(name) for name in list(self._hosts)))
        reports, _ = await self.status()
        if self._is_leaving:
            start, stop = 0, [r.name for r in reports if r.condition is not Condition.DRAINING]
        else:
            workers = [Worker(report.name, report.condition, report.idle_s) for report in reports]
            start, stop = scaling.decide(workers, self._backlog_s(), self._limits)
        for name in stop:
            self._drain(name)
        for _ in range(start):
            self._start()

    def _backlog_s(self) -> float:
        store = self._store
        waiting, free = len(store.waiting()), store.count_free_segments(store.now())
        latest, _ = store.page(None, offset=0, limit=USUAL_JOBS, states=[State.SUCCEEDED])
        ran_s = [record.job.ran_s for record in latest if record.job.ran_s is not None]
        return scaling.backlog_s(waiting, free, statistics.median(ran_s) if ran_s else None, USUAL_SEGMENT_S)

    def _start(self) -> None:
        name = f"worker-{uuid.uuid4().hex[:8]}"
        options: dict[str, Any] = {
            "max_restarts": 0,
            "name": name,
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "runtime_env": environment(),
            **self._resources,
        }
        self._hosts[name] = ray.remote(Host).options(**options).remote(name, self._given, self._device)
        self._running[name] = self._hosts[name].run.remote()
        log.info("%s: asked for", name)

    def _drain(self, name: str) -> None:
        """Tell it; one that has not started yet is given up."""
        if name in self._reports:
            self._hosts[name].drain.remote()
        else:
            self._forget(name)

    def _forget(self, name: str) -> None:
        ray.kill(self._hosts.pop(name))
        self._running.pop(name, None)
        self._reports.pop(name, None)

    async def _look(self, name: str) -> None:
        """Hear how a worker is; one that has ended, or was lost, is forgotten."""
        running = self._running.get(name)
        try:
            if running is not None and ray.wait([running], timeout=0)[0]:
                await running  # raises what ended it
                log.info("%s: has left", name)
                self._forget(name)
                return
            asked = self._hosts[name].report.remote()
            with contextlib.suppress(TimeoutError):
                self._reports[name] = await asyncio.wait_for(
                    asyncio.wrap_future(asked.future()), ANSWER_WITHIN_S
                )
        except ActorUnavailableError:  # it may come back; if not, the next look says that it died
            return
        except RayError as error:
            log.warning("%s: was lost: %s", name, str(error).splitlines()[0])
            self._lost += 1
            self._forget(name)


def start_pool(settings: Settings) -> None:
    """Make the pool on the cluster that `connect` found; one that is there stays as it is."""
    given = settings.model_dump(mode="json")
    actor: Any = ray.remote(Pool)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "lifetime": "detached"}
    options |= {"name": POOL, "namespace": NAMESPACE, "get_if_exists": True, "runtime_env": environment()}
    handle = actor.options(**options).remote(given, _resources(settings))
    ray.get(handle.status.remote())
    handle.run.remote()


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
    """Join a cluster as a program that asks. Without an address Ray would join any that it finds.

    Raises:
        ConnectionError: nobody answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)


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
