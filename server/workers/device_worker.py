"""Owns one device: starts its worker process, restarts, recycles and quarantines it, and claims its work.

A device has as many slots (`job_runner`) as its worker runs jobs at once. A worker that dies, stops
responding or does not cancel a job in time is killed and replaced; its jobs wait again while attempts are
left. The module knows no dialect and no SQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Sequence

from server.jobs.admission import AdmissionCheck
from server.jobs.inputs import InputFetcher
from server.jobs.service import JobService
from server.jobs.state import Job
from server.storage.blobs import Blobs
from server.store import DatabaseUnavailableError, Record, SegmentClaim
from server.workers.job_runner import JobRunner
from server.workers.process import WorkerDiedError, WorkerProcess, WorkerSettings, start_worker
from server.workers.segment_sharing import HEARTBEAT_INTERVAL_S, SegmentHelper

log = logging.getLogger("lipsync.supervisor")

RESTART_DELAY_S = 2.0
"""Between a worker's death and its successor. It doubles with every start that fails."""

MAX_RESTART_DELAY_S = 120.0

YIELD_S = 0.1
"""A device with a job waits so long before it claims another: an idle device of another process is faster."""

MAX_DEATHS = 3
"""Workers that died in a row, without any finished work between, after which the device is quarantined."""

QUARANTINE_S = 600.0


def restart_delay_s(failed_starts: int) -> float:
    """Compute the pause before the next start of a worker after so many failed ones in a row."""
    return min(MAX_RESTART_DELAY_S, RESTART_DELAY_S * 2.0 ** min(failed_starts, 16))


class DeviceWorker:
    """One device: its worker process, and the slots that give it work.

    Args:
        number: of the device.
        peers: all device workers of this server process.
        shareable: there can be other workers to share a job's segments with.

    Attributes:
        is_ready: the worker process has its model loaded.
        starts: worker processes started so far.
        problem: why the last start failed; None: it did not.
    """

    def __init__(
        self,
        number: int,
        device: str,
        peers: Sequence[DeviceWorker],
        jobs: JobService,
        blobs: Blobs,
        inputs: InputFetcher,
        admission: AdmissionCheck,
        settings: WorkerSettings,
        threads: int,
        shareable: bool,
    ) -> None:
        self.device = device
        self.is_ready = False
        self.is_quarantined = False
        self.problem: str | None = None
        self.starts = self._deaths = self._failed_starts = 0
        self._peers, self._jobs, self._settings = peers, jobs, settings
        self._threads, self._shareable = threads, shareable
        self._helper = SegmentHelper(jobs, blobs, settings.folder / "help" / f"{uuid.uuid4().hex}-{number}")
        self._slots = [
            JobRunner(jobs, blobs, inputs, admission, settings, self._helper, self._pause, shareable)
            for _ in range(settings.jobs_per_worker)
        ]
        self._draining = asyncio.Event()
        self._retiring = asyncio.Event()  # the worker process gets no more work: it died, or is recycled
        self._claiming = asyncio.Lock()
        self._jobs_until_recycle = self._initial_bytes = 0

    @property
    def busy(self) -> int:
        """Number of jobs and shared segments that it runs."""
        return sum(slot.work is not None for slot in self._slots)

    def runs(self, job_id: str) -> bool:
        """Check whether it runs that job."""
        return any(slot.runs(job_id) for slot in self._slots)

    def cancel(self, job_id: str) -> None:
        """Stop a job, or the rendering of its segment, where it runs here."""
        for slot in self._slots:
            slot.cancel(job_id)

    def drain(self) -> None:
        """Let the current work end and start no more."""
        self._draining.set()

    async def run(self) -> None:
        """Run worker processes, one after the other, until drained."""
        while not self._draining.is_set():
            self.starts += 1
            try:
                async with start_worker(self.device, self._settings, self._threads) as worker:
                    self.is_ready, self.problem, self._failed_starts = True, None, 0
                    await self._run_slots(worker)
            except WorkerDiedError as error:
                log.warning("worker %s: %s", self.device, error)
                self._deaths += 1
                if not self.is_ready:
                    self.problem, self._failed_starts = str(error), self._failed_starts + 1
                if self._settings.quarantines and self._deaths >= MAX_DEATHS:
                    await self._quarantine()
                else:
                    await self._pause(restart_delay_s(self._failed_starts))
            except Exception:  # a full disk, an unavailable database: the device worker must go on
                log.exception("worker %s: failed, restart in %g s", self.device, RESTART_DELAY_S)
                await self._pause()
            finally:
                self.is_ready = False
                self._wake_others()

    def _wake_others(self) -> None:
        """Wake the other slots: capacity or work may have become available."""
        if len(self._slots) > 1:
            self._jobs.wake_workers()

    async def _pause(self, seconds: float = RESTART_DELAY_S) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._draining.wait(), seconds)

    async def _quarantine(self) -> None:
        """Leave the jobs to devices that work."""
        log.error(
            "worker %s: died %d times in a row, quarantined for %g s",
            self.device,
            self._deaths,
            QUARANTINE_S,
        )
        self.is_quarantined = True
        await self._pause(QUARANTINE_S)
        self.is_quarantined, self._deaths = False, 0

    async def _run_slots(self, worker: WorkerProcess) -> None:
        """Give work to a worker process in all slots, until it dies, is recycled or is drained."""
        self._retiring.clear()
        self._jobs_until_recycle = self._settings.recycle_after_jobs
        self._initial_bytes = worker.resident_bytes()
        slots = (self._run_slot(slot, worker) for slot in self._slots)
        results = await asyncio.gather(*slots, return_exceptions=True)
        if errors := [result for result in results if isinstance(result, BaseException)]:
            raise min(errors, key=lambda error: isinstance(error, WorkerDiedError))  # the cause first

    async def _run_slot(self, slot: JobRunner, worker: WorkerProcess) -> None:
        """Run one piece of work after the other; where one slot ends, all do."""
        try:
            while await self._wait_for_work(slot, worker):
                try:
                    await slot.run(worker)
                    self._deaths = 0
                except WorkerDiedError:
                    raise
                except Exception:  # a full disk: the worker must go on
                    log.exception("worker %s: job failed unexpectedly", self.device)
                    await self._pause()
                finally:
                    self._wake_others()
                growth = worker.resident_bytes() - self._initial_bytes
                if growth > self._settings.recycle_growth_bytes * (1 + self.busy):
                    log.info("worker %s: recycled after growth of %d MiB", self.device, growth >> 20)
                    return
            worker.require_alive()
        finally:
            self._retiring.set()

    async def _wait_for_work(self, slot: JobRunner, worker: WorkerProcess) -> bool:
        """Assign a job, or where none waits another job's segment; returns False where there is no more."""
        ends = (self._retiring, self._draining, worker.died)
        while not any(end.is_set() for end in ends):
            if self.busy and self._jobs.store.is_shared:
                await asyncio.sleep(YIELD_S)
            async with self._claiming:
                job_available = self._jobs.job_available
                if self._is_next():
                    with contextlib.suppress(DatabaseUnavailableError):
                        if (work := await self._claim(worker.compatibility_key)) is not None:
                            slot.assign(work)
                            self._jobs.wake_workers()  # there may be more
                            return True
                    if not self.busy:
                        await asyncio.to_thread(self._helper.clear)
            waits = [asyncio.create_task(event.wait()) for event in (job_available, *ends)]
            await asyncio.wait(waits, timeout=HEARTBEAT_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        return False

    @property
    def _accepts_work(self) -> bool:
        is_ending = not self.is_ready or self._retiring.is_set() or self._draining.is_set()
        return not is_ending and not any(slot.needs_whole_device for slot in self._slots)

    def _is_next(self) -> bool:
        """Check that no peer with less work accepts more."""
        has_idler_peer = any(peer._accepts_work and peer.busy < self.busy for peer in self._peers)
        return self._accepts_work and not has_idler_peer

    async def _claim(self, compatibility_key: str) -> Record | SegmentClaim | None:
        record = await self._jobs.claim(self._accepts)
        if record is not None:
            self._jobs_until_recycle -= 1
            if not self._jobs_until_recycle:
                self._retiring.set()
        elif self._shareable and not self.busy:  # a device with work of its own does not help
            return await self._jobs.claim_shared_segment(compatibility_key)
        return record

    def _accepts(self, job: Job) -> bool:
        """Leave a job that was attempted before until the worker is idle; called in the database's thread."""
        return job.attempts == 0 or not self.busy
