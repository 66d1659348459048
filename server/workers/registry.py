"""Workers of all processes that share the database.

Each process reports its own workers now and then; a process alone with its database has none to report to.
The module knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.cluster.autoscaling import WorkerState
from server.jobs.service import JobService
from server.store import DatabaseUnavailableError, WorkerRecord

HEARTBEAT_INTERVAL_S = 10.0


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """State of the worker of one device of this process.

    Attributes:
        device: name of the device, such as `cuda:0`.
        state: what the worker does.
        ready: whether the model is loaded.
        starts: worker processes started for the device since the server started.
        busy: jobs and shared segments that run on it now.
        problem: why it does not start; None: it does.
    """

    device: str
    state: WorkerState
    ready: bool
    starts: int
    busy: int
    problem: str | None = None


class WorkerRegistry:
    """Reports this process' workers, and lists those of all processes.

    Args:
        own_workers: returns the workers of this process.
        model: that they have loaded.
    """

    def __init__(
        self, jobs: JobService, own_workers: Callable[[], Sequence[WorkerStatus]], model: str
    ) -> None:
        self._jobs, self._own_workers, self._model = jobs, own_workers, model
        self._process, self._machine = uuid.uuid4().hex, platform.node()

    async def run(self) -> None:
        """Report the workers for ever; return at once where there is nothing to report, or to nobody."""
        while self._jobs.store.is_shared and self._own_workers():
            await self._jobs.write(lambda: self._jobs.store.upsert_workers(self._own_records()))
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)

    async def deregister(self) -> None:
        """Delete this process' workers when they have ended, before their last reports expire."""
        if self._jobs.store.is_shared:
            store = self._jobs.store
            with contextlib.suppress(DatabaseUnavailableError):
                await self._jobs.write(lambda: store.delete_workers(self._process, store.now()))

    def list_workers(self) -> list[WorkerRecord]:
        """List this process' workers as they are, then all others as last reported."""
        store, own = self._jobs.store, self._own_records()
        if not store.is_shared:
            return own
        return own + [one for one in store.live_workers(store.now()) if one.process != self._process]

    def counts(self) -> dict[WorkerState, int]:
        """Count the workers of all processes by state."""
        counts = Counter(worker.state for worker in self.list_workers())
        return {state: counts[state] for state in WorkerState}

    def _own_records(self) -> list[WorkerRecord]:
        now = self._jobs.store.now()
        return [
            WorkerRecord(
                self._process,
                number,
                machine=self._machine,
                device=worker.device,
                model=self._model,
                state=worker.state,
                starts=worker.starts,
                reported_at=now,
                problem=worker.problem,
            )
            for number, worker in enumerate(self._own_workers())
        ]
