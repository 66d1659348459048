"""One device worker per device, their start and drain, and the files that jobs leave behind.

It knows no dialect and no SQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time

from server.cluster.autoscaling import WorkerState
from server.jobs.admission import AdmissionCheck
from server.jobs.inputs import InputFetcher
from server.jobs.service import JobService
from server.storage.blobs import Blobs, StorageUnavailableError
from server.store import DatabaseUnavailableError
from server.workers.device_worker import DeviceWorker
from server.workers.job_runner import delete_job_files
from server.workers.process import WorkerSettings
from server.workers.registry import WorkerStatus

HELPER_FILES_S = 86400.0
"""Files of a helper that are older belong to a process that was killed."""


def threads_per_worker(workers: int, cores: int) -> int:
    """Compute the threads of each worker process; OMP_NUM_THREADS overrides it.

    One core is left to the server process: hundreds of polls would otherwise slow rendering by a tenth,
    because a worker's threads wait for each other.
    """
    return max(1, (cores - 1) // max(1, workers))


class Supervisor:
    """All workers of this server process.

    Args:
        devices: one worker for each.
    """

    def __init__(
        self,
        jobs: JobService,
        blobs: Blobs,
        inputs: InputFetcher,
        admission: AdmissionCheck,
        devices: tuple[str, ...],
        settings: WorkerSettings,
    ) -> None:
        threads = threads_per_worker(len(devices), os.cpu_count() or 1)
        shareable = jobs.store.is_shared or len(devices) > 1
        self._workers: list[DeviceWorker] = []
        self._workers += [
            DeviceWorker(
                number, device, self._workers, jobs, blobs, inputs, admission, settings, threads, shareable
            )
            for number, device in enumerate(devices)
        ]
        self._is_draining = False
        self._jobs, self._blobs = jobs, blobs
        self._job_folder, self._drain_s = settings.folder / "jobs", settings.drain_s
        self._helper_folder = settings.folder / "help"
        self._tasks: list[asyncio.Task[None]] = []
        self._deletions: set[asyncio.Task[None]] = set()
        jobs.on_stop = self._cancel

    @property
    def is_ready(self) -> bool:
        """Some worker has its model loaded, or there are no workers in this process."""
        return not self._workers or any(worker.is_ready for worker in self._workers)

    @property
    def is_busy(self) -> bool:
        """Some worker runs a job or renders a shared segment."""
        return any(worker.busy for worker in self._workers)

    @property
    def workers(self) -> list[WorkerStatus]:
        """State of the worker of each device."""
        return [
            WorkerStatus(
                worker.device,
                self._state(worker),
                worker.is_ready,
                worker.starts,
                worker.busy,
                worker.problem,
            )
            for worker in self._workers
        ]

    def forget(self, job_id: str) -> None:
        """Delete the files of an ended job in the background; a worker that still runs it does so itself."""
        if not any(worker.runs(job_id) for worker in self._workers):
            task = asyncio.create_task(delete_job_files(self._job_folder / job_id, self._blobs, job_id))
            self._deletions.add(task)
            task.add_done_callback(self._deletions.discard)

    async def start(self) -> None:
        """Start all workers."""
        with contextlib.suppress(DatabaseUnavailableError, StorageUnavailableError):  # it is repeated later
            await self.delete_orphaned_files()
        self._tasks = [
            asyncio.create_task(worker.run(), name=f"worker {worker.device}") for worker in self._workers
        ]

    async def delete_orphaned_files(self) -> None:
        """Delete files of jobs that ended elsewhere, between two attempts, or just before a crash."""
        job_ids = {folder.name for folder in self._job_folder.glob("*")}
        for folder_name in ("downloads", "previews", "shared"):
            job_ids |= {blob.name.split("/")[1] for blob in await self._blobs.list_folder(folder_name)}
        for folder in self._helper_folder.glob("*"):  # of processes that were killed, on any machine
            if folder.stat().st_mtime < time.time() - HELPER_FILES_S:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        for job_id in job_ids:
            if any(worker.runs(job_id) for worker in self._workers):
                continue
            record = self._jobs.store.get(job_id)
            if record is None or record.job.state.is_final:
                await delete_job_files(self._job_folder / job_id, self._blobs, job_id)

    async def drain(self) -> None:
        """Start no more jobs, let running ones end for a while, requeue the rest, and end the workers."""
        self._is_draining = True
        for worker in self._workers:
            worker.drain()
        for worker, task in zip(self._workers, self._tasks, strict=False):  # no tasks: it was not started
            if not worker.is_ready:
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._drain_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _state(self, worker: DeviceWorker) -> WorkerState:
        if self._is_draining:
            return WorkerState.DRAINING
        if worker.is_quarantined:
            return WorkerState.QUARANTINED
        if worker.busy:
            return WorkerState.BUSY
        return WorkerState.IDLE if worker.is_ready else WorkerState.STARTING

    def _cancel(self, job_id: str) -> None:
        for worker in self._workers:
            worker.cancel(job_id)
