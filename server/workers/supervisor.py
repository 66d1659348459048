"""Keeps a worker per device busy: its seats (`seat`), and what jobs leave behind.

It knows no dialect and no SQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time

from server.cluster.autoscaling import Condition
from server.jobs.admission import AdmissionCheck
from server.jobs.inputs import InputFetcher
from server.jobs.service import JobService
from server.storage.blobs import Blobs, StorageUnavailableError
from server.store import DatabaseUnavailableError
from server.workers.device_worker import DeviceWorker
from server.workers.job_runner import remove_left
from server.workers.process import WorkerSettings
from server.workers.registry import WorkerStatus

HELP_FORGOTTEN_S = 86400.0
"""What a helper needed and nobody has touched for so long is nobody's."""


def threads_per_worker(workers: int) -> int:
    """So many threads each: one core is left to this process, or hundreds of polls would slow rendering by a
    tenth (a worker's threads wait for each other). OMP_NUM_THREADS overrules it.
    """
    return max(1, ((os.cpu_count() or 1) - 1) // max(1, workers))


class Supervisor:
    """All workers of this server.

    Args:
        devices: one worker for each.
    """

    def __init__(
        self,
        jobs: JobService,
        blobs: Blobs,
        inputs: InputFetcher,
        gate: AdmissionCheck,
        devices: tuple[str, ...],
        settings: WorkerSettings,
    ) -> None:
        threads, may_share = threads_per_worker(len(devices)), jobs.store.is_shared or len(devices) > 1
        self._seats: list[DeviceWorker] = []
        self._seats += [
            DeviceWorker(number, device, self._seats, jobs, blobs, inputs, gate, settings, threads, may_share)
            for number, device in enumerate(devices)
        ]
        self._is_draining = False
        self._jobs, self._blobs = jobs, blobs
        self._folder, self._drain_s = settings.folder / "jobs", settings.drain_s
        self._helps = settings.folder / "help"
        self._tasks: list[asyncio.Task[None]] = []
        self._forgetting: set[asyncio.Task[None]] = set()
        jobs.on_stop = self._stop

    @property
    def is_ready(self) -> bool:
        """A worker has its model loaded, where there is to be one."""
        return not self._seats or any(seat.is_ready for seat in self._seats)

    @property
    def is_busy(self) -> bool:
        """A worker has a job, or helps with one."""
        return any(seat.busy for seat in self._seats)

    @property
    def workers(self) -> list[WorkerStatus]:
        """Status of the worker of each device, in the order of the devices."""
        return [WorkerStatus(seat.device, seat.is_ready, seat.starts, seat.busy) for seat in self._seats]

    @property
    def conditions(self) -> list[tuple[str, Condition, int]]:
        """Of each device: its name, what its worker does, how many processes were started for it."""
        return [(seat.device, self._condition(seat), seat.starts) for seat in self._seats]

    def forget(self, job_id: str) -> None:
        """Remove what an earlier attempt at an ended job left; a seat that still has it does so itself."""
        if not any(seat.has(job_id) for seat in self._seats):
            task = asyncio.create_task(remove_left(self._folder / job_id, self._blobs, job_id))
            self._forgetting.add(task)
            task.add_done_callback(self._forgetting.discard)

    async def start(self) -> None:
        with contextlib.suppress(DatabaseUnavailableError, StorageUnavailableError):  # it is done again later
            await self.remove_left()
        self._tasks = [asyncio.create_task(seat.run(), name=f"worker {seat.device}") for seat in self._seats]

    async def remove_left(self) -> None:
        """Remove what is left of jobs that ended elsewhere, between two attempts, or just before a crash."""
        left = {folder.name for folder in self._folder.glob("*")}
        for place in ("previews", "shared"):
            left |= {blob.name.split("/")[1] for blob in await self._blobs.list_folder(place)}
        for folder in self._helps.glob("*"):  # of processes that were killed, here or on another machine
            if folder.stat().st_mtime < time.time() - HELP_FORGOTTEN_S:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        for job_id in left:
            if any(seat.has(job_id) for seat in self._seats):
                continue
            record = self._jobs.store.get(job_id)
            if record is None or record.job.state.is_final:
                await remove_left(self._folder / job_id, self._blobs, job_id)

    async def drain(self) -> None:
        """Take no more jobs; let running ones finish for a while, hand the rest back, end the workers."""
        self._is_draining = True
        for seat in self._seats:
            seat.leave()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._drain_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _condition(self, seat: DeviceWorker) -> Condition:
        if self._is_draining:
            return Condition.DRAINING
        if seat.is_quarantined:
            return Condition.QUARANTINED
        if seat.busy:
            return Condition.BUSY
        return Condition.IDLE if seat.is_ready else Condition.STARTING

    def _stop(self, job_id: str) -> None:
        for seat in self._seats:
            seat.stop(job_id)
