"""The jobs as the running server sees them: changes are committed here, and whoever waits for one is told.

Between the event loop and the database: writes run in a thread, one after the other, so that a commit's wait
for the disk does not hold up requests; reads are short and run at once. Time comes from here. It knows no
dialect, no HTTP and no worker process; those subscribe.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from server import jobs
from server.jobs import Effect, Job, Policy, State, Turn
from server.messages import Request
from server.store import Change, Record, Store

T = TypeVar("T")

TURNS_AGE_S = 1.0


class Board:
    """See the module.

    Args:
        store: open database; stays the caller's.
        policy: limits of jobs.
        max_waiting: size of the queue.
        workers: how many jobs run at once.
    """

    def __init__(self, store: Store, policy: Policy, max_waiting: int, workers: int) -> None:
        self.store = store
        self._workers = max(1, workers)
        self.policy = policy
        self._max_waiting = max_waiting
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="database")
        self._waiters: dict[str, set[asyncio.Event]] = defaultdict(set)
        self.job_came = asyncio.Event()
        self.notice_came = asyncio.Event()
        self.on_stop: Callable[[Job], None] = lambda job: None
        """Told when a running job has to stop."""
        self.on_end: Callable[[Job], None] = lambda job: None
        """Told when a job has ended."""
        self.is_leaving = False
        """The server stops: whoever streams to a client ends that now."""
        self._usual_run_s: float | None = None
        self._turns: dict[str, Turn] = {}
        self._turns_at = 0.0

    @staticmethod
    def now() -> float:
        """Seconds since 1970."""
        return time.time()

    async def write(self, change: Callable[[], T]) -> T:
        """Run a change of the database in its thread; a caller that goes away does not undo it."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._writer, change))

    def write_later(self, change: Callable[[], object]) -> None:
        """Run a change that nobody waits for and whose loss harms nobody."""
        self._writer.submit(change)

    async def submit(self, job: Job, request: Request, idempotency_key: str | None) -> tuple[Record, bool]:
        """As `Store.submit`; on disk when it returns."""
        record, is_new = await self.write(
            partial(
                self.store.submit,
                job,
                request,
                idempotency_key=idempotency_key,
                max_waiting=self._max_waiting,
            )
        )
        if is_new:
            self.job_came.set()
        return record, is_new

    def is_full(self) -> bool:
        """Whether a submission would be refused now."""
        return self.store.count_in_state(State.WAITING) >= self._max_waiting

    async def claim(self) -> Record | None:
        return await self.write(lambda: self.store.claim(self.now(), self.policy))

    async def change(self, job_id: str, transition: Callable[[Job, float], Job]) -> Record:
        """Apply a transition (job, now) → job and what follows from it.

        Raises:
            KeyError, NotAllowedError: as `Store.change`.
        """

        def changed() -> Change:
            now = self.now()
            return self.store.change(job_id, now, lambda job: transition(job, now))

        change = await self.write(changed)
        self._follow(change)
        return change.record

    async def cancel(self, job_id: str) -> Record:
        return await self.change(job_id, jobs.cancel)

    async def expire(self) -> None:
        """Apply the limits that have passed; to be called every few seconds."""
        for change in await self.write(lambda: self.store.expire(self.now(), self.policy)):
            self._follow(change)

    async def recover(self) -> None:
        """After a start: where the database is ours alone, nobody runs what is said to be running.

        Elsewhere another server may; what nobody runs any more comes back when its lease is over.
        """
        if not self.store.is_ours_alone:
            return
        for record in self.store.in_state(State.RUNNING):
            await self.change(record.job.id, partial(self._lost, record.job.fence))

    def _lost(self, fence: int, job: Job, now: float) -> Job:
        return jobs.fail(job, fence, now, jobs.WORKER_LOST, self.policy)

    @contextlib.contextmanager
    def watched(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the job changes."""
        event = asyncio.Event()
        self._waiters[job_id].add(event)
        try:
            yield event
        finally:
            self._waiters[job_id].discard(event)
            if not self._waiters[job_id]:
                del self._waiters[job_id]

    async def until_final(self, job_id: str, timeout_s: float) -> Record | None:
        """The job when it has ended, or as it is when the time is up; None where it was deleted."""
        with self.watched(job_id) as changed:
            try:
                async with asyncio.timeout(timeout_s):
                    while (record := self.store.get(job_id)) is not None and not record.job.state.is_final:
                        await changed.wait()
                        changed.clear()
                    return record
            except TimeoutError:
                return self.store.get(job_id)

    def turn(self, job_id: str) -> Turn | None:
        """When a waiting job will run, as it was a moment ago: hundreds of clients ask every second."""
        if self.now() - self._turns_at > TURNS_AGE_S or job_id not in self._turns:
            self._turns, self._turns_at = jobs.turns(self.store.waiting()), self.now()
        return self._turns.get(job_id)

    @property
    def usual_run_s(self) -> float | None:
        """How long a job takes from start to end, the latest counting most; None: nobody knows yet."""
        return self._usual_run_s

    def starts_in_s(self, turn: Turn) -> float | None:
        """About how long a job will still wait; None until a job has shown how long one takes."""
        if self._usual_run_s is None:
            return None
        return self._usual_run_s * (turn.ahead + 0.5) / self._workers

    def close(self) -> None:
        self._writer.shutdown()

    def _follow(self, change: Change) -> None:
        job = change.record.job
        for event in self._waiters.get(job.id, ()):
            event.set()
        if Effect.STOP_WORK in change.effects:
            self.on_stop(job)
        if Effect.NOTIFY in change.effects:
            self.notice_came.set()
            self.on_end(job)
        if job.state is State.SUCCEEDED and job.started_at is not None and job.finished_at is not None:
            run_s = job.finished_at - job.started_at
            usual_s = run_s if self._usual_run_s is None else self._usual_run_s
            self._usual_run_s = 0.8 * usual_s + 0.2 * run_s
        if job.state is State.WAITING:
            self.job_came.set()
