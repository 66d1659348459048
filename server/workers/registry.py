"""Who works: this process' workers as they are, and those of all others that share the database.

Each process writes its own down now and then; a process alone with its database has nobody to tell. It knows
no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from server.cluster.autoscaling import Condition
from server.jobs.service import JobService
from server.store import DatabaseUnavailableError, WorkerRecord

BEAT_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """State of the worker of one device of this process.

    Attributes:
        device: name of the device, such as `cuda:0`.
        ready: whether the model is loaded.
        starts: worker processes started for the device since the server started.
        busy: jobs and shared segments that run on it now.
    """

    device: str
    ready: bool
    starts: int
    busy: int


class Roster:
    """See the module.

    Args:
        own: of each worker of this process its device, what it does, and how many processes were started.
        model: that they have loaded.
    """

    def __init__(
        self, jobs: JobService, own: Callable[[], Sequence[tuple[str, Condition, int]]], model: str
    ) -> None:
        self._jobs, self._own, self._model = jobs, own, model
        self._process, self._machine = uuid.uuid4().hex, platform.node()

    async def run(self) -> None:
        """Tell the others, for ever; where there can be none, return."""
        while self._jobs.store.is_shared and self._own():
            await self._jobs.write(lambda: self._jobs.store.upsert_workers(self._mine()))
            await asyncio.sleep(BEAT_EVERY_S)

    async def leave(self) -> None:
        """This process' workers have ended; nobody has to wait until they were silent for long."""
        if self._jobs.store.is_shared:
            store = self._jobs.store
            with contextlib.suppress(DatabaseUnavailableError):
                await self._jobs.write(lambda: store.delete_workers(self._process, store.now()))

    def everywhere(self) -> list[WorkerRecord]:
        """This process' workers as they are, then all others as they were heard of last."""
        store, mine = self._jobs.store, self._mine()
        if not store.is_shared:
            return mine
        return mine + [one for one in store.live_workers(store.now()) if one.process != self._process]

    def counts(self) -> dict[Condition, int]:
        """How many there are, by what they do."""
        found = Counter(one.state for one in self.everywhere())
        return {condition: found[condition] for condition in Condition}

    def _mine(self) -> list[WorkerRecord]:
        now = self._jobs.store.now()
        seen = partial(WorkerRecord, self._process, machine=self._machine, model=self._model, reported_at=now)
        return [
            seen(number, device=device, state=condition, starts=starts)
            for number, (device, condition, starts) in enumerate(self._own())
        ]
