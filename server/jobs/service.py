"""The jobs as the running server sees them: changes are committed here, and whoever waits for one is told.

Between the event loop and the database: writes run in a thread, one after the other, so that a commit's wait
for the disk does not hold up requests; reads are short and run at once. What other processes commit to a
shared database is heard here. It knows no dialect, no HTTP and no worker process; those subscribe.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from server.jobs import state as job_state
from server.jobs.request import Request
from server.jobs.state import Batch, Effect, Job, JobPolicy, QueuePosition, State
from server.store import DatabaseUnavailableError, JobChange, Notification, Record, SegmentClaim, Store

log = logging.getLogger("lipsync.jobs")

T = TypeVar("T")

TURNS_AGE_S = 1.0

LOOK_EVERY_S = 5.0
"""Notifications of other processes can be lost with a connection, so waiters also poll."""

LISTEN_AGAIN_S = 0.5

LEASES_REST_S = 20.0
"""So long after the database came back no lease counts as over: those who hold them must beat first."""


class JobService:
    """See the module.

    Args:
        store: open database; stays the caller's.
        policy: limits of jobs.
        max_waiting: size of the queue.
        workers: how many jobs run at once in this process.
    """

    def __init__(self, store: Store, policy: JobPolicy, max_waiting: int, workers: int) -> None:
        self.store = store
        self._workers = self._least_workers = max(1, workers)
        self.policy = policy
        self._max_waiting = max_waiting
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="database")
        self._waiters: dict[str, set[asyncio.Event]] = defaultdict(set)
        self.job_available = asyncio.Event()
        """Set once, and replaced: who looks for work takes it before, and waits for it after."""
        self.webhook_due = asyncio.Event()
        self.on_stop: Callable[[str], None] = lambda job_id: None
        """Told when a running job has to stop."""
        self.on_end: Callable[[Job], None] = lambda job: None
        """Told when a job has ended by a change of this process."""
        self.is_leaving = False
        """The server stops: whoever streams to a client ends that now."""
        self._usual_run_s: float | None = None
        self._turns: dict[str, QueuePosition] = {}
        self._turns_at = 0.0
        self._heard_since = float("-inf")

    @staticmethod
    def now() -> float:
        """Seconds since 1970 by this machine; changes take the database's clock instead."""
        return time.time()

    async def write(self, change: Callable[[], T]) -> T:
        """Run a change of the database in its thread; a caller that goes away does not undo it."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._writer, change))

    def write_later(self, change: Callable[[], object]) -> None:
        """Run a change that nobody waits for and whose loss harms nobody."""
        self._writer.submit(change)

    def wake_workers(self) -> None:
        """There may be work."""
        came, self.job_available = self.job_available, asyncio.Event()
        came.set()

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
            self.wake_workers()
        return record, is_new

    async def submit_batch(
        self, batch: Batch, entries: Sequence[tuple[Job, Request]], idempotency_key: str | None
    ) -> tuple[Batch, bool]:
        """As `Store.submit_batch`; on disk when it returns."""
        stored, is_new = await self.write(
            partial(
                self.store.submit_batch,
                batch,
                entries,
                idempotency_key=idempotency_key,
                max_waiting=self._max_waiting,
            )
        )
        if is_new:
            self.wake_workers()
        return stored, is_new

    def is_full(self, count: int = 1) -> bool:
        """Whether so many jobs would be refused now."""
        return self.store.count_in_state(State.WAITING) + count > self._max_waiting

    async def claim(self, wanted: Callable[[Job], bool] = lambda job: True) -> Record | None:
        """As `Store.claim`."""
        return await self.write(lambda: self.store.claim(self.store.now(), self.policy, wanted))

    async def change(self, job_id: str, transition: Callable[[Job, float], Job]) -> Record:
        """Apply a transition (job, now) → job and what follows from it.

        Raises:
            KeyError, NotAllowedError: as `Store.change`.
        """

        def changed() -> JobChange:
            now = self.store.now()
            return self.store.change(job_id, now, lambda job: transition(job, now))

        change = await self.write(changed)
        self._follow(change)
        return change.record

    async def change_segments(
        self, job_id: str, change: Callable[[float], T], *, help_wanted: bool = False
    ) -> T:
        """Apply a change (now) of a job's segments, and tell those who wait for one here.

        Args:
            help_wanted: there are segments for others.
        """
        result = await self.write(lambda: change(self.store.now()))
        for event in self._waiters.get(job_id, ()):
            event.set()
        if help_wanted:
            self.wake_workers()
        return result

    async def help(self, fits: str) -> SegmentClaim | None:
        """A segment of a running job for a worker that has nothing else to do."""
        return await self.write(lambda: self.store.claim_shared_segment(fits, self.store.now()))

    async def cancel(self, job_id: str) -> Record:
        return await self.change(job_id, job_state.cancel)

    async def cancel_batch(self, batch_id: str) -> None:
        """Cancel every job of a batch that has not ended, each in a commit of its own."""
        for job_id in self.store.unfinished_job_ids(batch_id):
            with contextlib.suppress(KeyError):  # it ended meanwhile and was deleted
                await self.cancel(job_id)

    async def expire(self) -> None:
        """Apply the limits that have passed; to be called every few seconds."""
        if time.monotonic() - self._heard_since < LEASES_REST_S:
            return
        for change in await self.write(lambda: self.store.expire(self.store.now(), self.policy)):
            self._follow(change)

    async def listen(self) -> None:
        """Follow what other processes commit, for ever; where there can be none, return."""
        is_connected = True
        while self.store.is_shared:
            try:
                async with contextlib.aclosing(self.store.notifications()) as heard:
                    self._heard_since = time.monotonic()
                    async for news in heard:
                        if news is not None:
                            self._hear(news)
                        elif not is_connected:
                            is_connected = True
                            log.info("the database is back")
                            self._look_all()
            except DatabaseUnavailableError as error:
                if is_connected:
                    log.warning("the database is away: %s", error)
                is_connected = False
            await asyncio.sleep(LISTEN_AGAIN_S)

    def _hear(self, news: Notification) -> None:
        """What a change made here or elsewhere means for those who wait here."""
        for event in self._waiters.get(news.job_id, ()):
            event.set()
        if news.state is State.WAITING or news.segments_available:
            self.wake_workers()
        elif news.state.is_final or news.cancel_requested:
            self.on_stop(news.job_id)
        if news.state.is_final:
            self.webhook_due.set()
        if news.run_s is not None:
            self._note_run(news.run_s)

    def _look_all(self) -> None:
        """Notification may have been missed."""
        self.wake_workers()
        self.webhook_due.set()
        for events in self._waiters.values():
            for event in events:
                event.set()

    async def recover(self) -> None:
        """After a start: where the database is ours alone, nobody runs what is said to be running.

        Elsewhere another server may; what nobody runs any more comes back when its lease is over.
        """
        if not self.store.is_exclusive:
            return
        await self.write(self.store.release_all_segments)
        for record in self.store.jobs_in_state(State.RUNNING):
            await self.change(record.job.id, partial(self._lost, record.job.fence))

    def _lost(self, fence: int, job: Job, now: float) -> Job:
        return job_state.fail(job, fence, now, job_state.WORKER_LOST, self.policy)

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
                    while True:
                        with contextlib.suppress(DatabaseUnavailableError):
                            record = self.store.get(job_id)
                            if record is None or record.job.state.is_final:
                                return record
                        await self.change_or_pause(changed, LOOK_EVERY_S)
            except TimeoutError:
                return self.store.get(job_id)

    @staticmethod
    async def change_or_pause(changed: asyncio.Event, seconds: float) -> bool:
        """Wait for a `watched` job to change, or so long; whether it changed."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(changed.wait(), seconds)
        is_news = changed.is_set()
        changed.clear()
        return is_news

    def turn(self, job_id: str) -> QueuePosition | None:
        """When a waiting job will run, as it was a moment ago: hundreds of clients ask every second."""
        if self.now() - self._turns_at > TURNS_AGE_S or job_id not in self._turns:
            self._turns, self._turns_at = job_state.queue_positions(self.store.waiting_jobs()), self.now()
            if self.store.is_shared:  # while jobs wait, as many run as there are workers anywhere
                self._workers = max(self._least_workers, self.store.count_in_state(State.RUNNING))
        return self._turns.get(job_id)

    @property
    def usual_run_s(self) -> float | None:
        """How long a job takes from start to end, the latest counting most; None: nobody knows yet."""
        return self._usual_run_s

    def starts_in_s(self, turn: QueuePosition) -> float | None:
        """About how long a job will still wait; None until a job has shown how long one takes."""
        if self._usual_run_s is None:
            return None
        return self._usual_run_s * (turn.ahead + 0.5) / self._workers

    def close(self) -> None:
        self._writer.shutdown()

    def _follow(self, change: JobChange) -> None:
        job = change.record.job
        for event in self._waiters.get(job.id, ()):
            event.set()
        if Effect.STOP_WORK in change.effects:
            self.on_stop(job.id)
        if Effect.NOTIFY in change.effects:
            self.webhook_due.set()
            self.on_end(job)
        if job.run_s is not None and not self.store.is_shared:  # else it is heard, as others' are
            self._note_run(job.run_s)
        if job.state is State.WAITING:
            self.wake_workers()

    def _note_run(self, run_s: float) -> None:
        usual_s = run_s if self._usual_run_s is None else self._usual_run_s
        self._usual_run_s = 0.8 * usual_s + 0.2 * run_s
