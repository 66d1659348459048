"""Runs one claimed job on a worker, or renders one shared segment: one slot of a device worker.

This is the parent's part of the work: it owns network, files and state, and the worker process (`main`) owns
the device. It knows no dialect and no SQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from server.jobs import state as job_state
from server.jobs.admission import AdmissionCheck, sha256_of
from server.jobs.inputs import InputFetcher
from server.jobs.service import JobService
from server.jobs.state import Failure, Job, NotAllowedError, Output, StageProgress
from server.storage.blobs import (
    Blobs,
    StorageUnavailableError,
    download_folder,
    preview_folder,
    result_blob,
    shared_folder,
    still_blob,
)
from server.storage.transport import TransportError
from server.store import DatabaseUnavailableError, Record, SegmentClaim
from server.workers.messages import (
    CancelJob,
    JobCancelled,
    JobDuplicate,
    JobEvent,
    JobFailed,
    JobProgress,
    JobSucceeded,
    NextSegment,
    PreviewReady,
    RenderSegment,
    RunJob,
    SegmentAssigned,
    SegmentRendered,
    SegmentsPublished,
)
from server.workers.process import JobChannel, WorkerDiedError, WorkerProcess, WorkerSettings
from server.workers.segment_sharing import (
    HEARTBEAT_INTERVAL_S,
    REPORT_INTERVAL_S,
    SegmentCoordinator,
    SegmentHelper,
)

log = logging.getLogger("lipsync.supervisor")

CANCEL_TIMEOUT_S = 10.0
"""A worker that does not stop a job within this time is killed."""

RETRY_INTERVAL_S = 2.0
"""Between attempts while the database or the storage is unavailable."""

DUPLICATE_INTERVAL_S = 2.0
"""Between attempts to start a job while an equal one runs."""

END_ATTEMPTS = 30
"""How often the end of a job is written while the database is unavailable."""

STORE_ATTEMPTS = 5
"""How often a result is stored while the storage is unavailable, each with the storage's own retries."""


def _preview_blob(event: PreviewReady) -> str:
    """Name a preview; the name holds its position in milliseconds, so nothing else has to store it."""
    start_ms, stop_ms = round(1000 * event.start_s), round(1000 * event.stop_s)
    return f"{preview_folder(event.job_id)}/{event.index:05d}-{start_ms}-{stop_ms}.mp4"


async def delete_job_files(folder: Path, blobs: Blobs, job_id: str) -> None:
    """Delete what only an unfinished job needs: its folder, downloads, previews and shared segments."""
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    with contextlib.suppress(StorageUnavailableError):  # it is repeated later
        await blobs.delete_folder(preview_folder(job_id))
        await blobs.delete_folder(shared_folder(job_id))
        await blobs.delete_folder(download_folder(job_id))


class JobRunner:
    """One slot of a device worker; it runs one piece of work at a time.

    Args:
        helper: of the device.
        pause: waits a moment, or until the device worker stops.
        shareable: there can be other workers to share a job's segments with.

    Attributes:
        work: a claimed job, or a segment of another worker's job.
    """

    def __init__(
        self,
        jobs: JobService,
        blobs: Blobs,
        inputs: InputFetcher,
        admission: AdmissionCheck,
        settings: WorkerSettings,
        helper: SegmentHelper,
        pause: Callable[[], Awaitable[None]],
        shareable: bool,
    ) -> None:
        self.work: Record | SegmentClaim | None = None
        self._jobs, self._blobs, self._inputs, self._admission = jobs, blobs, inputs, admission
        self._settings, self._helper, self._pause, self._shareable = settings, helper, pause, shareable
        self._cancelled = asyncio.Event()

    @property
    def job_id(self) -> str:
        """Id of the job that it runs or helps with; empty where it is idle."""
        match self.work:
            case None:
                return ""
            case SegmentClaim() as claim:
                return claim.job_id
            case record:
                return record.job.id

    @property
    def needs_whole_device(self) -> bool:
        """Its job was attempted before and runs alone: whatever ended that worker must harm no other job."""
        return isinstance(self.work, Record) and self.work.job.attempts > 1

    def runs(self, job_id: str) -> bool:
        """Check whether it runs that job, not only a segment of it."""
        return isinstance(self.work, Record) and self.work.job.id == job_id

    def cancel(self, job_id: str) -> None:
        """Stop the work if it belongs to that job."""
        if job_id == self.job_id:
            self._cancelled.set()

    def assign(self, work: Record | SegmentClaim) -> None:
        """Set the work that `run` will do."""
        self.work = work
        self._cancelled.clear()

    async def run(self, worker: WorkerProcess) -> None:
        """Do the assigned work.

        Raises:
            WorkerDiedError: the worker has ended, or has to be killed.
        """
        try:
            match self.work:
                case SegmentClaim() as claim:
                    await self._render_shared_segment(claim, worker)
                case Record() as record:
                    await self._run_job(record, worker)
        finally:
            self.work = None

    # --- a job ---

    async def _run_job(self, record: Record, worker: WorkerProcess) -> None:
        """Run one attempt of a job; its outcome is written to the job's row."""
        job_id, fence = record.job.id, record.job.fence
        folder = self._settings.folder / "jobs" / job_id
        end = partial(self._write_end, job_id)
        coordinator = SegmentCoordinator(record, worker.compatibility_key, self._jobs, self._blobs)
        heartbeat = asyncio.create_task(self._keep_lease(record, coordinator))
        try:
            if await self._blobs.info(result_blob(job_id)) is not None:  # stored, but its row was not written
                stored = Output(result_blob(job_id), 0.0)
                await end(lambda job, now: job_state.succeed(job, fence, now, stored))
                return
            folder.mkdir(parents=True, exist_ok=True)
            outcome = await self._run_attempt(record, folder, worker, coordinator)
            match outcome:
                case JobSucceeded() as result:
                    sha256 = await asyncio.to_thread(sha256_of, folder / "out.mp4")
                    await self._store_blob(result_blob(job_id), folder / "out.mp4")
                    output = Output(
                        result_blob(job_id),
                        result.device_s + coordinator.helper_s(),
                        result.media_s,
                        result.warnings,
                        result.is_signed,
                        sha256,
                        result.sync,
                        result.is_nsfw,
                        result.warning_codes,
                        result.pauses_s,
                    )
                    await end(lambda job, now: job_state.succeed(job, fence, now, output))
                case JobFailed(code=code, message=message, retryable=retryable):
                    await end(self._fail(fence, Failure(code, message, retryable)))
                case _:
                    await end(lambda job, now: job_state.confirm_cancel(job, fence, now))
        except TransportError as error:
            await end(self._fail(fence, Failure(error.code, error.message)))
        except StorageUnavailableError as error:
            log.warning("job %s: storage unavailable: %s", job_id, error)
            await end(self._fail(fence, job_state.STORAGE_UNAVAILABLE))
            await self._pause()
        except DatabaseUnavailableError as error:  # before the work has begun: no fault of the job
            log.warning("job %s: database unavailable: %s", job_id, error)
            await end(lambda job, now: job_state.requeue(job, fence, now))
        except Exception as error:  # the worker died, the disk is full: another attempt may succeed
            if isinstance(error, WorkerDiedError) and error.job_id not in (None, job_id):
                await end(lambda job, now: job_state.requeue(job, fence, now))  # another job caused it
            else:
                await end(self._fail(fence, job_state.WORKER_LOST))
            raise
        except asyncio.CancelledError:
            await end(lambda job, now: job_state.requeue(job, fence, now))
            raise
        finally:
            heartbeat.cancel()
            # On an error the files are deleted later.
            with contextlib.suppress(DatabaseUnavailableError, StorageUnavailableError):
                after = self._jobs.store.get(job_id)
                if after is None or after.job.state.is_final:
                    await delete_job_files(folder, self._blobs, job_id)
                if after is None:
                    await self._blobs.delete(still_blob(job_id))

    def _fail(self, fence: int, failure: Failure) -> Callable[[Job, float], Job]:
        return lambda job, now: job_state.fail(job, fence, now, failure, self._jobs.policy)

    async def _run_attempt(
        self, record: Record, folder: Path, worker: WorkerProcess, coordinator: SegmentCoordinator
    ) -> JobEvent:
        """Fetch the inputs, run the admission check and the worker; returns the last event of the job."""
        job_id = record.job.id
        fetch = asyncio.create_task(self._inputs.fetch(record, folder))
        if not await self._finishes_first(fetch, worker.died):
            worker.require_alive()
            return JobCancelled(job_id)
        files = fetch.result()
        check = asyncio.create_task(self._admission.check(record, files))
        if not await self._finishes_first(check, worker.died):
            worker.require_alive()
            return JobCancelled(job_id)
        if (rejection := check.result()) is not None:
            return JobFailed(job_id, rejection.code, rejection.message, retryable=False)
        previous = await coordinator.fetch_previous(folder / "previous") if self._shareable else ("", {})
        plan_key, previous_files = previous
        command = RunJob(
            job_id=job_id,
            inputs={name: str(path) for name, path in files.items()},
            limits={source.name: source.limits for source in record.request.sources},
            segments=record.request.segments,
            output=str(folder / "out.mp4"),
            options=record.request.options,
            tenant=record.job.tenant,
            consent=record.request.consent,
            shareable=self._shareable,
            plan_key=plan_key,
            previous_files={name: str(path) for name, path in previous_files.items()},
        )

        async def on_event(event: JobEvent) -> bool:
            match event:
                case JobProgress():
                    return await self._renew_lease(record, coordinator.total_progress(event))
                case PreviewReady():
                    await self._store_preview(event)
                    return await self._renew_lease(record, None)
                case SegmentsPublished():
                    await coordinator.publish(event)
                case SegmentRendered():
                    await coordinator.segment_rendered(event)
                case NextSegment():
                    claim = asyncio.create_task(coordinator.next_segment())
                    is_claimed = await self._finishes_first(claim, worker.died)
                    await worker.send(SegmentAssigned(job_id, claim.result() if is_claimed else None))
            return True

        async with worker.open_channel(job_id) as channel:
            while True:
                await channel.send(command)
                outcome = await self._follow(channel, on_event)
                if not isinstance(outcome, JobDuplicate):
                    return outcome
                pause = asyncio.create_task(asyncio.sleep(DUPLICATE_INTERVAL_S))
                if not await self._finishes_first(pause, worker.died):
                    worker.require_alive()
                    return JobCancelled(job_id)

    # --- a segment of another worker's job ---

    async def _render_shared_segment(self, claim: SegmentClaim, worker: WorkerProcess) -> None:
        heartbeat = asyncio.create_task(self._helper.keep_lease(claim, self._cancelled.set))
        reported_at = time.monotonic()

        async def on_event(event: JobEvent) -> bool:
            nonlocal reported_at
            if not isinstance(event, JobProgress) or time.monotonic() - reported_at < REPORT_INTERVAL_S:
                return True
            reported_at = time.monotonic()
            return await self._helper.report(claim, event.done)

        is_stored = False
        try:
            folder = await self._helper.fetch_plan(claim)
            began = time.monotonic()
            async with worker.open_channel(claim.job_id) as channel:
                await channel.send(RenderSegment(claim.job_id, claim.index, str(folder)))
                outcome = await self._follow(channel, on_event, success=SegmentRendered)
            if isinstance(outcome, SegmentRendered):
                await self._helper.store_segment(claim, Path(outcome.file), time.monotonic() - began)
                is_stored = True
                log.info("job %s: segment %d rendered for another worker", claim.job_id, claim.index)
            elif isinstance(outcome, JobFailed):
                log.warning("job %s: segment %d failed: %s", claim.job_id, claim.index, outcome.message)
        except (StorageUnavailableError, DatabaseUnavailableError, OSError) as error:
            log.warning("job %s: segment %d not rendered: %s", claim.job_id, claim.index, error)
            await self._pause()
        finally:
            heartbeat.cancel()
            if not is_stored:
                await asyncio.shield(self._helper.release(claim))

    # --- both ---

    async def _follow(
        self,
        channel: JobChannel,
        on_event: Callable[[JobEvent], Awaitable[bool]],
        success: type[JobEvent] = JobSucceeded,
    ) -> JobEvent:
        """Receive a job's events up to the last one, and send `CancelJob` on request.

        Args:
            on_event: called with each event before the last; returns whether to go on.
            success: the last event of successful work.

        Returns:
            The last event.

        Raises:
            WorkerDiedError: among others, the worker did not cancel in time.
        """
        loop, kill_at = asyncio.get_running_loop(), None
        while True:
            receive = asyncio.create_task(channel.receive(self._settings.stall_s))
            if kill_at is None and not await self._finishes_first(receive, cancel=False):
                kill_at = loop.time() + CANCEL_TIMEOUT_S
                await channel.send(CancelJob(channel.job_id))
            try:
                async with asyncio.timeout_at(kill_at):
                    event = await receive
            except TimeoutError:
                reason = f"did not cancel a job within {CANCEL_TIMEOUT_S:g} s"
                raise WorkerDiedError(reason, channel.job_id) from None
            if isinstance(event, JobFailed | JobCancelled | JobDuplicate | success):
                return event
            if not await on_event(event):
                self._cancelled.set()

    async def _finishes_first(
        self, task: asyncio.Task[Any], *others: asyncio.Event, cancel: bool = True
    ) -> bool:
        """Wait for a task, a cancellation or other events; returns whether the task was first.

        Args:
            cancel: whether to cancel the task otherwise.
        """
        waits = [asyncio.create_task(event.wait()) for event in (self._cancelled, *others)]
        try:
            await asyncio.wait([task, *waits], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()  # else nobody would retrieve its exception
            raise
        finally:
            for wait in waits:
                wait.cancel()
        if task.done():
            return True
        if cancel:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return False

    async def _store_blob(self, name: str, file: Path) -> None:
        """Store a result, which took long to render; repeat it while the storage is unavailable."""
        for remaining in reversed(range(STORE_ATTEMPTS)):
            try:
                await self._blobs.move_in(name, file)
                return
            except StorageUnavailableError as error:
                if not remaining:
                    raise
                log.error("blob %s: not stored, %d attempts left: %s", name, remaining, error)
                await asyncio.sleep(RETRY_INTERVAL_S)

    async def _store_preview(self, event: PreviewReady) -> None:
        """Store a preview; the job goes on without it."""
        try:
            await self._blobs.move_in(_preview_blob(event), Path(event.file))
            if event.still is not None:
                await self._blobs.move_in(still_blob(event.job_id), Path(event.still))
        except (OSError, StorageUnavailableError) as error:
            log.warning("job %s: preview %d not stored: %s", event.job_id, event.index, error)

    async def _renew_lease(self, record: Record, progress: StageProgress | None) -> bool:
        """Renew the job's lease and write its progress; returns False where it was cancelled or lost."""
        fence = record.job.fence
        try:
            after = await self._jobs.change(
                record.job.id,
                lambda job, now: job_state.renew_lease(job, fence, now, self._jobs.policy, progress),
            )
            return not after.job.cancel_requested
        except (NotAllowedError, KeyError):
            return False
        except Exception as error:  # noqa: BLE001  (a full disk, a database that is unavailable: work goes on)
            log.warning("job %s: progress not saved: %s", record.job.id, error)
        return True

    async def _keep_lease(self, record: Record, coordinator: SegmentCoordinator) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)
            await coordinator.renew_lease()
            if not await self._renew_lease(record, None):
                self._cancelled.set()
                return

    async def _write_end(self, job_id: str, transition: Callable[[Job, float], Job]) -> None:
        """Write the end of a claim; where the database stays unavailable, its lease expires instead."""
        for _ in range(END_ATTEMPTS):
            try:
                record = await self._jobs.change(job_id, transition)
            except (NotAllowedError, KeyError) as error:
                log.info("job %s: end not saved: %s", job_id, error)  # it ended or was claimed anew meanwhile
                return
            except Exception as error:  # noqa: BLE001  (a full disk, a database that is unavailable)
                log.error("job %s: end not saved, retry in %g s: %s", job_id, RETRY_INTERVAL_S, error)
                await asyncio.sleep(RETRY_INTERVAL_S)
            else:
                failure = record.job.failure
                reason = f": {failure.code}: {failure.message}" if failure is not None else ""
                log.info("job %s: %s%s", job_id, record.job.state, reason, extra=record.tags)
                return
