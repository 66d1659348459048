"""Downloads the inputs of waiting jobs, so that no device waits for a slow host.

A job with URLs can be claimed by a worker only when its inputs are stored. Tenants take turns, and only the
first jobs of a tenant's queue are downloaded. The module knows no dialect and no worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from server.jobs import state as job_state
from server.jobs.inputs import InputFetcher
from server.jobs.service import JobService
from server.jobs.state import Failure, Job, NotAllowedError
from server.storage.blobs import Blobs, StorageUnavailableError, download_folder
from server.storage.disk import DiskFullError
from server.storage.transport import TransportCode, TransportError
from server.store import DatabaseUnavailableError, Record

log = logging.getLogger("lipsync.downloads")

MAX_CONCURRENT = 32
MAX_PER_TENANT = 4
"""Jobs of one tenant whose inputs are downloaded at once: slow hosts hold up only their own tenant's jobs."""

HOLD_S = 60.0
"""How long a process that has claimed a download keeps it unless it renews that."""

RENEW_INTERVAL_S = 15.0


class InputDownloader:
    """Downloads inputs until cancelled.

    Args:
        inputs: with an open transport.
        folder: for incomplete files.
        total_s: time limit of all downloads of one job.
        ahead: how many of a tenant's waiting jobs are downloaded before they start.
    """

    def __init__(
        self,
        jobs: JobService,
        inputs: InputFetcher,
        blobs: Blobs,
        folder: Path,
        *,
        total_s: float,
        ahead: int,
    ) -> None:
        self._jobs, self._inputs, self._blobs, self._folder = jobs, inputs, blobs, folder
        self._total_s, self._ahead = total_s, ahead
        self._active: Counter[str] = Counter()  # downloads by tenant
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Download the inputs of jobs as they come, for ever."""
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            async with asyncio.TaskGroup() as downloads:
                while True:
                    self._ended.clear()
                    job_available = self._jobs.job_available
                    for record in await self._jobs.write(self._claim):
                        self._active[record.job.tenant] += 1
                        downloads.create_task(self._download_and_release(record))
                    waits = [asyncio.create_task(event.wait()) for event in (job_available, self._ended)]
                    await asyncio.wait(waits, timeout=HOLD_S / 4, return_when=asyncio.FIRST_COMPLETED)
                    for wait in waits:
                        wait.cancel()
        finally:
            self._active.clear()

    def _claim(self) -> list[Record]:
        free = MAX_CONCURRENT - self._active.total()
        if free <= 0:
            return []
        busy = [tenant for tenant, active in self._active.items() if active >= MAX_PER_TENANT]
        store = self._jobs.store
        return store.claim_downloads(store.now(), free, HOLD_S, self._ahead, busy)

    async def _download_and_release(self, record: Record) -> None:
        try:
            await self._download(record)
        except (DatabaseUnavailableError, StorageUnavailableError, DiskFullError, OSError) as error:
            log.warning("job %s: inputs not stored, retry in %g s: %s", record.job.id, HOLD_S, error)
        except Exception:  # one job must not hold up the others
            log.exception("job %s: inputs not stored, retry in %g s", record.job.id, HOLD_S)
        finally:
            self._active[record.job.tenant] -= 1
            self._ended.set()

    async def _download(self, record: Record) -> None:
        job_id = record.job.id
        try:
            async with asyncio.timeout(self._total_s):
                with tempfile.TemporaryDirectory(dir=self._folder, prefix=f"{job_id}-") as folder:
                    if not await self._finish_while_needed(record, Path(folder)):
                        await self._blobs.delete_folder(download_folder(job_id))
                        return
            if not await self._change(job_id, lambda job, now: job_state.inputs_ready(job)):
                await self._blobs.delete_folder(download_folder(job_id))
        except TransportError as error:
            await self._reject(record, Failure(error.code, error.message))
        except TimeoutError:
            sentence = f"The inputs were not downloaded within {self._total_s:g} s: upload them instead."
            await self._reject(record, Failure(TransportCode.URL_TIMEOUT, sentence))

    async def _finish_while_needed(self, record: Record, folder: Path) -> bool:
        """Download; return False as soon as the job was cancelled, deleted or claimed by another process."""
        job_id = record.job.id
        task = asyncio.create_task(self._inputs.download(record, folder))
        try:
            with self._jobs.watch(job_id) as changed:
                while not task.done():
                    change = asyncio.create_task(changed.wait())
                    await asyncio.wait(
                        (task, change), timeout=RENEW_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED
                    )
                    change.cancel()
                    changed.clear()
                    if not task.done() and not await self._renew(job_id):
                        return False
            await task
            return True
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _renew(self, job_id: str) -> bool:
        store = self._jobs.store
        with contextlib.suppress(DatabaseUnavailableError):
            return await self._jobs.write(lambda: store.renew_download(job_id, store.now() + HOLD_S))
        return True

    async def _reject(self, record: Record, failure: Failure) -> None:
        job_id = record.job.id
        log.info("job %s: failed: %s: %s", job_id, failure.code, failure.message, extra=record.tags)
        await self._change(job_id, partial(job_state.reject_inputs, failure=failure))
        await self._blobs.delete_folder(download_folder(job_id))

    async def _change(self, job_id: str, transition: Callable[[Job, float], Job]) -> bool:
        """Change a job; returns False where it has ended or was deleted meanwhile."""
        try:
            await self._jobs.change(job_id, transition)
        except (NotAllowedError, KeyError):
            return False
        return True
