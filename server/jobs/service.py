"""The job service: commits changes of jobs, and wakes whoever waits for one.

It stands between the event loop and the database. Writes run in a thread, one after the other, so that a
commit's wait for the disk does not block requests; reads are short and run at once. Commits of other
processes arrive as notifications. It knows no dialect, no HTTP and no worker process; those subscribe.
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
from server.store import (
    DatabaseUnavailableError,
    JobChange,
    Notification,
    QueueLimits,
    Record,
    SegmentClaim,
    Store,
)

log = logging.getLogger("lipsync.jobs")

T = TypeVar("T")

POLL_INTERVAL_S = 5.0
"""Notifications of other processes can be lost with a connection, so waiters also poll."""

RECONNECT_INTERVAL_S = 0.5
POSITIONS_MAX_AGE_S = 1.0


class JobService:
    """Changes and reads of jobs for one server process.

    Args:
        store: open database; the caller closes it.
        policy: limits of jobs.
        limits: of the queue.
        slots: how many jobs run at once in this process.
        lease_grace_s: after the database was unavailable no lease expires for so long: their holders must
            have the chance to renew them first.

    Attributes:
        job_available: set once, and replaced: take it before a search for work, and wait for it after.
        webhook_due: set when a webhook may have become due; the one that delivers clears it.
        on_stop: called with the id of a running job that has to stop.
        on_end: called with the record of a job that a change of this process has ended.
        is_draining: the server is about to stop: it takes no new jobs, and goes on answering reads.
        is_stopping: the server stops, and event streams have to end.
    """

    def __init__(
        self,
        store: Store,
        policy: JobPolicy,
        limits: QueueLimits,
        slots: int,
        *,
        lease_grace_s: float = 20.0,
    ) -> None:
        self.store = store
        self.policy = policy
        self._limits = limits
        self._slots = self._own_slots = max(1, slots)
        self._lease_grace_s = lease_grace_s
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="database")
        self._watchers: dict[str, set[asyncio.Event]] = defaultdict(set)
        self.job_available = asyncio.Event()
        self.webhook_due = asyncio.Event()
        self.on_stop: Callable[[str], None] = lambda job_id: None
        self.on_end: Callable[[Record], None] = lambda record: None
        self.is_draining = self.is_stopping = False
        self._typical_run_s: float | None = None
        self._positions: dict[str, QueuePosition] = {}
        self._positions_at = 0.0
        self._free_slots = 0
        self._connected_at = float("-inf")

    @staticmethod
    def now() -> float:
        """Return seconds since 1970 by this machine; changes use the database's clock instead."""
        return time.time()

    async def write(self, change: Callable[[], T]) -> T:
        """Run a change of the database in its thread; it is not undone when the caller is cancelled."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._writer, change))

    def write_in_background(self, change: Callable[[], object]) -> None:
        """Run a change that nobody waits for and that may be lost."""
        self._writer.submit(change)

    def wake_workers(self) -> None:
        """Wake all slots that wait for work."""
        event, self.job_available = self.job_available, asyncio.Event()
        event.set()

    # --- changes ---

    async def submit(self, job: Job, request: Request, idempotency_key: str | None) -> tuple[Record, bool]:
        """Put a job into the queue, as `Store.submit`; it is on disk when this returns."""
        record, is_new = await self.write(
            partial(
                self.store.submit,
                job,
                request,
                idempotency_key=idempotency_key,
                limits=self._limits,
            )
        )
        if is_new:
            self.wake_workers()
        return record, is_new

    async def submit_batch(
        self, batch: Batch, entries: Sequence[tuple[Job, Request]], idempotency_key: str | None
    ) -> tuple[Batch, bool]:
        """Put a batch into the queue, as `Store.submit_batch`; it is on disk when this returns."""
        stored, is_new = await self.write(
            partial(
                self.store.submit_batch,
                batch,
                entries,
                idempotency_key=idempotency_key,
                limits=self._limits,
            )
        )
        if is_new:
            self.wake_workers()
        return stored, is_new

    def require_room(self, key_id: str, tenant: str, count: int = 1) -> None:
        """Check that the queue has room for that many more jobs, as `Store.require_room`."""
        self.store.require_room(key_id, tenant, self.now(), count, self._limits)

    async def claim(self, accept: Callable[[Job], bool] = lambda job: True) -> Record | None:
        """Claim the next job, as `Store.claim`. `accept` is called in the database's thread."""
        return await self.write(lambda: self.store.claim(self.store.now(), self.policy, accept))

    async def change(self, job_id: str, transition: Callable[[Job, float], Job]) -> Record:
        """Apply a transition (job, now) → job and everything that has to follow.

        Raises:
            KeyError, NotAllowedError: as `Store.change`.
        """

        def commit() -> JobChange:
            now = self.store.now()
            return self.store.change(job_id, now, lambda job: transition(job, now))

        change = await self.write(commit)
        self._after_change(change)
        return change.record

    async def cancel(self, job_id: str) -> Record:
        """Cancel a job, as `state.cancel`.

        Raises:
            KeyError: there is no such job.
        """
        return await self.change(job_id, job_state.cancel)

    async def cancel_batch(self, batch_id: str) -> None:
        """Cancel every job of a batch that has not ended, each in a commit of its own."""
        for job_id in self.store.unfinished_job_ids(batch_id):
            with contextlib.suppress(KeyError):  # it ended meanwhile and was deleted
                await self.cancel(job_id)

    async def change_segments(
        self, job_id: str, change: Callable[[float], T], *, segments_available: bool = False
    ) -> T:
        """Apply a change (now) of a job's segments, and wake those who watch the job in this process.

        Args:
            segments_available: other workers can render segments of the job.
        """
        result = await self.write(lambda: change(self.store.now()))
        self._wake_watchers(job_id)
        if segments_available:
            self.wake_workers()
        return result

    async def claim_shared_segment(self, compatibility_key: str) -> SegmentClaim | None:
        """Claim a segment of a running job for a worker that has nothing else to do."""
        return await self.write(lambda: self.store.claim_shared_segment(compatibility_key, self.store.now()))

    async def expire(self) -> None:
        """Apply the limits that have passed; to be called every few seconds."""
        if time.monotonic() - self._connected_at < self._lease_grace_s:
            return
        for change in await self.write(lambda: self.store.expire(self.store.now(), self.policy)):
            self._after_change(change)

    async def recover(self) -> None:
        """Return interrupted jobs to the queue after a start.

        Where no other process can have the database open, no job can be running. Elsewhere another server may
        run it; an interrupted job returns when its lease has expired.
        """
        for change in await self.write(lambda: self.store.end_unreadable(self.store.now())):
            log.error("job %s: failed: its row cannot be read", change.record.job.id)
            self._after_change(change)
        if not self.store.is_exclusive:
            return
        await self.write(self.store.release_all_segments)
        for record in self.store.jobs_in_state(State.RUNNING):
            await self.change(record.job.id, partial(self._lose_worker, record.job.fence))

    def _lose_worker(self, fence: int, job: Job, now: float) -> Job:
        return job_state.fail(job, fence, now, job_state.WORKER_LOST, self.policy)

    # --- notifications ---

    async def listen(self) -> None:
        """Follow the commits of other processes, for ever; return at once where there can be none."""
        is_connected = True
        while self.store.is_shared:
            try:
                async with contextlib.aclosing(self.store.notifications()) as notifications:
                    self._connected_at = time.monotonic()
                    async for notification in notifications:
                        if notification is not None:
                            self._on_notification(notification)
                        elif not is_connected:
                            is_connected = True
                            log.info("database connection restored")
                            self._wake_all()
            except DatabaseUnavailableError as error:
                if is_connected:
                    log.warning("database connection lost: %s", error)
                is_connected = False
            await asyncio.sleep(RECONNECT_INTERVAL_S)

    def _on_notification(self, notification: Notification) -> None:
        """Wake those who wait in this process for a change made here or elsewhere."""
        self._wake_watchers(notification.job_id)
        if notification.state is State.WAITING or notification.segments_available:
            self.wake_workers()
        elif notification.state.is_final or notification.cancel_requested:
            self.on_stop(notification.job_id)
        if notification.state.is_final:
            self.webhook_due.set()
        if notification.run_s is not None:
            self._record_run_time(notification.run_s)

    def _after_change(self, change: JobChange) -> None:
        job = change.record.job
        self._wake_watchers(job.id)
        if Effect.STOP_WORK in change.effects:
            self.on_stop(job.id)
        if Effect.NOTIFY in change.effects:
            self.webhook_due.set()
            self.on_end(change.record)
        if job.run_s is not None and not self.store.is_shared:  # else the notification records it
            self._record_run_time(job.run_s)
        if job.state is State.WAITING:
            self.wake_workers()

    def _wake_watchers(self, job_id: str) -> None:
        for event in self._watchers.get(job_id, ()):
            event.set()

    def end_waits(self) -> None:
        """End event streams and requests that wait for a job: the server stops."""
        self.is_stopping = True
        self._wake_all()

    def _wake_all(self) -> None:
        """Wake everybody, because notifications may have been lost."""
        self.wake_workers()
        self.webhook_due.set()
        for job_id in self._watchers:
            self._wake_watchers(job_id)

    @contextlib.contextmanager
    def watch(self, job_id: str) -> Iterator[asyncio.Event]:
        """Provide an event that is set whenever the job changes."""
        event = asyncio.Event()
        self._watchers[job_id].add(event)
        try:
            yield event
        finally:
            self._watchers[job_id].discard(event)
            if not self._watchers[job_id]:
                del self._watchers[job_id]

    @staticmethod
    async def wait_for_change(changed: asyncio.Event, timeout_s: float) -> bool:
        """Wait until a `watch`ed job changes or the time is up; returns whether it changed."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(changed.wait(), timeout_s)
        has_changed = changed.is_set()
        changed.clear()
        return has_changed

    async def wait_until_final(self, job_id: str, timeout_s: float) -> Record | None:
        """Wait until a job has ended, the time is up or the server stops.

        Returns:
            The record; None where the job was deleted.
        """
        with self.watch(job_id) as changed:
            try:
                async with asyncio.timeout(timeout_s):
                    while True:
                        with contextlib.suppress(DatabaseUnavailableError):
                            record = self.store.get(job_id)
                            if record is None or record.job.state.is_final or self.is_stopping:
                                return record
                        await self.wait_for_change(changed, POLL_INTERVAL_S)
            except TimeoutError:
                return self.store.get(job_id)

    # --- estimates ---

    def queue_position(self, job_id: str) -> QueuePosition | None:
        """Return a waiting job's position, at most `POSITIONS_MAX_AGE_S` old: hundreds of clients poll it."""
        if self.now() - self._positions_at > POSITIONS_MAX_AGE_S or job_id not in self._positions:
            self._positions = job_state.queue_positions(self.store.waiting_jobs())
            self._positions_at = self.now()
            running = self.store.count_in_state(State.RUNNING)
            if self.store.is_shared:  # while jobs wait, as many run as there are slots in all processes
                self._slots = max(self._own_slots, running)
            self._free_slots = max(0, self._slots - running)
        return self._positions.get(job_id)

    @property
    def typical_run_s(self) -> float | None:
        """Moving average of the time from start to end of a job; None: none has succeeded yet."""
        return self._typical_run_s

    def estimate_wait_s(self, position: QueuePosition) -> float | None:
        """Estimate how long a job will still wait; None until a job has succeeded."""
        if self._typical_run_s is None:
            return None
        if position.ahead < self._free_slots:
            return 0.0
        return self._typical_run_s * (position.ahead - self._free_slots + 0.5) / self._slots

    def _record_run_time(self, run_s: float) -> None:
        typical_s = run_s if self._typical_run_s is None else self._typical_run_s
        self._typical_run_s = 0.8 * typical_s + 0.2 * run_s

    def close(self) -> None:
        self._writer.shutdown()
