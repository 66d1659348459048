"""One device: its worker process, started, replaced when it is lost or has done enough, and what it does.

A device has as many places (`place`) as its worker makes jobs at once. A worker that dies, goes silent or
does not stop when told is killed and replaced; its jobs wait again while attempts are left. It knows no
dialect and no SQL.
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
from server.workers.process import WorkerDiedError, WorkerProcess, WorkerSettings, worker_process
from server.workers.segment_sharing import BEAT_EVERY_S, Helper

log = logging.getLogger("lipsync.supervisor")

RESTART_PAUSE_S = 2.0
"""Between a worker's death and its successor, so that one that cannot start does not spin."""

GIVE_WAY_S = 0.1
"""A device that has a job looks so much later for another: one of another process may have nothing to do."""

FAILURES_OF_A_DEVICE = 3
"""Workers lost in a row, without any work done between, after which a device of a cluster rests."""

QUARANTINE_S = 600.0


class DeviceWorker:
    """One device: its worker process, and the places that give it work.

    Args:
        number: of the device.
        beside: all seats of this process.
        may_share: there can be others to share a job's segments with.
    """

    def __init__(
        self,
        number: int,
        device: str,
        beside: Sequence[DeviceWorker],
        jobs: JobService,
        blobs: Blobs,
        inputs: InputFetcher,
        gate: AdmissionCheck,
        settings: WorkerSettings,
        threads: int,
        may_share: bool,
    ) -> None:
        self.device = device
        self.is_ready = False
        self.is_quarantined = False
        self.starts = self._failures = 0
        self._beside, self._jobs, self._settings = beside, jobs, settings
        self._threads, self._may_share = threads, may_share
        self._helper = Helper(jobs, blobs, settings.folder / "help" / f"{uuid.uuid4().hex}-{number}")
        self._places = [
            JobRunner(jobs, blobs, inputs, gate, settings, self._helper, self._pause, may_share)
            for _ in range(settings.jobs_per_worker)
        ]
        self._leaving = asyncio.Event()
        self._closing = asyncio.Event()
        """This worker gets nothing more to do: it is gone, or has done enough."""
        self._choosing = asyncio.Lock()
        self._jobs_left = self._fresh_bytes = 0

    @property
    def busy(self) -> int:
        """How many jobs it makes or helps with."""
        return sum(place.work is not None for place in self._places)

    def has(self, job_id: str) -> bool:
        return any(place.has(job_id) for place in self._places)

    def leave(self) -> None:
        self._leaving.set()

    def stop(self, job_id: str) -> None:
        for place in self._places:
            place.stop(job_id)

    async def run(self) -> None:
        """Worker after worker until told to leave."""
        while not self._leaving.is_set():
            self.starts += 1
            try:
                async with worker_process(self.device, self._settings, self._threads) as worker:
                    self.is_ready = True
                    await self._serve(worker)
            except WorkerDiedError as error:
                log.warning("worker %s: %s", self.device, error)
                self._failures += 1
                if self._settings.quarantines and self._failures >= FAILURES_OF_A_DEVICE:
                    await self._rest()
                else:
                    await self._pause()
            except Exception:  # a full disk, a database that is away: the seat must outlast it
                log.exception("worker %s: stumbled", self.device)
                await self._pause()
            finally:
                self.is_ready = False
                self._call_others()

    def _call_others(self) -> None:
        """What they leave to this seat, and what its places leave to each other, may be theirs now."""
        if len(self._places) > 1:
            self._jobs.wake_workers()

    async def _pause(self, seconds: float = RESTART_PAUSE_S) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._leaving.wait(), seconds)

    async def _rest(self) -> None:
        """Others have devices that work: this one takes jobs from them and loses them."""
        log.error(
            "worker %s: lost %d times in a row, is not used for %g s",
            self.device,
            self._failures,
            QUARANTINE_S,
        )
        self.is_quarantined = True
        await self._pause(QUARANTINE_S)
        self.is_quarantined, self._failures = False, 0

    async def _serve(self, worker: WorkerProcess) -> None:
        self._closing.clear()
        self._jobs_left, self._fresh_bytes = self._settings.recycle_after_jobs, worker.resident_bytes()
        working = (self._keep_busy(place, worker) for place in self._places)
        ends = await asyncio.gather(*working, return_exceptions=True)
        if errors := [end for end in ends if isinstance(end, BaseException)]:
            raise min(errors, key=lambda error: isinstance(error, WorkerDiedError))  # its cause first

    async def _keep_busy(self, place: JobRunner, worker: WorkerProcess) -> None:
        """Give a place one piece of work after the other; where one ends, all do."""
        try:
            while await self._find_work(place, worker):
                try:
                    await place.carry_out(worker)
                    self._failures = 0
                except WorkerDiedError:
                    raise
                except Exception:  # a full disk: the worker must outlast it
                    log.exception("worker %s: stumbled", self.device)
                    await self._pause()
                finally:
                    self._call_others()
                grown = worker.resident_bytes() - self._fresh_bytes
                if grown > self._settings.recycle_growth_bytes * (1 + self.busy):
                    log.info("worker %s: has grown by %d MiB and is replaced", self.device, grown >> 20)
                    return
            worker.require()
        finally:
            self._closing.set()

    async def _find_work(self, place: JobRunner, worker: WorkerProcess) -> bool:
        """Wait for a job, or where none waits for a segment of another's; False when there is to be none."""
        ends = (self._closing, self._leaving, worker.gone)
        while not any(end.is_set() for end in ends):
            if self.busy and self._jobs.store.is_shared:
                await asyncio.sleep(GIVE_WAY_S)
            async with self._choosing:
                news = self._jobs.job_available
                if self._takes_more():
                    with contextlib.suppress(DatabaseUnavailableError):
                        if (work := await self._choose(worker.fits)) is not None:
                            place.take(work)
                            self._jobs.wake_workers()  # the others look as well
                            return True
                    if not self.busy:
                        await asyncio.to_thread(self._helper.clear)
            waits = [asyncio.create_task(event.wait()) for event in (news, *ends)]
            await asyncio.wait(waits, timeout=BEAT_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        return False

    @property
    def _is_open(self) -> bool:
        """Its worker may get more to do."""
        is_over = not self.is_ready or self._closing.is_set() or self._leaving.is_set()
        return not is_over and not any(place.wants_all for place in self._places)

    def _takes_more(self) -> bool:
        """Whether it is this seat's turn: those with less to do come first."""
        return self._is_open and not any(seat._is_open and seat.busy < self.busy for seat in self._beside)

    async def _choose(self, fits: str) -> Record | SegmentClaim | None:
        record = await self._jobs.claim(self._is_wanted)
        if record is not None:
            self._jobs_left -= 1
            if not self._jobs_left:
                self._closing.set()
        elif self._may_share and not self.busy:  # who has work gives no help, and one place is enough for it
            return await self._jobs.claim_shared_segment(fits)
        return record

    def _is_wanted(self, job: Job) -> bool:
        """A job that was tried before waits until the worker has nothing else. The database's thread asks."""
        return job.attempts == 0 or not self.busy
