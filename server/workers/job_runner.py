"""One place at a device (`seat`): the job that it has, or the segment that it helps with, to whatever end.

The parent's half of the work; it owns network, files and state, the worker (`worker`, another process) owns
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
    preview_folder,
    result_blob,
    shared_folder,
    still_blob,
)
from server.storage.transport import TransportError
from server.store import DatabaseUnavailableError, Record, SegmentClaim
from server.workers.messages import (
    CancelJob,
    FromWorker,
    JobCancelled,
    JobDuplicate,
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
from server.workers.segment_sharing import BEAT_EVERY_S, TELL_EVERY_S, Helper, Owner

log = logging.getLogger("lipsync.supervisor")

STOP_WITHIN_S = 10.0
"""A worker that does not stop a job within this time is killed."""

TRY_AGAIN_S = 2.0
"""After a database or a storage was away."""

EQUAL_JOB_PAUSE_S = 2.0
"""So often a job asks whether an equal one has ended."""

END_TRIES = 30
"""So often, with that pause, the end of a job is written down anew while the database cannot take it."""

KEEP_TRIES = 5
"""So often, with that pause and each with the storage's own retries, a result is tried to be stored."""


def _preview_blob(shown: PreviewReady) -> str:
    """The name tells the stretch's place, in milliseconds, so that nothing else need remember it."""
    start_ms, stop_ms = round(1000 * shown.start_s), round(1000 * shown.stop_s)
    return f"{preview_folder(shown.job_id)}/{shown.index:05d}-{start_ms}-{stop_ms}.mp4"


async def remove_left(folder: Path, blobs: Blobs, job_id: str) -> None:
    """What only a running job needs: its folder, and what could be seen of its result."""
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    with contextlib.suppress(StorageUnavailableError):  # it is done again later
        await blobs.delete_folder(preview_folder(job_id))
        await blobs.delete_folder(shared_folder(job_id))


class JobRunner:
    """One of the places at a device, each of which has one piece of work at a time.

    Args:
        helper: of the device.
        pause: waits a moment, or until the device is to be left.
        may_share: there can be others to share a job's segments with.

    Attributes:
        work: a claimed job, or a segment of somebody else's.
    """

    def __init__(
        self,
        jobs: JobService,
        blobs: Blobs,
        inputs: InputFetcher,
        gate: AdmissionCheck,
        settings: WorkerSettings,
        helper: Helper,
        pause: Callable[[], Awaitable[None]],
        may_share: bool,
    ) -> None:
        self.work: Record | SegmentClaim | None = None
        self._jobs, self._blobs, self._inputs, self._gate = jobs, blobs, inputs, gate
        self._settings, self._helper, self._pause, self._may_share = settings, helper, pause, may_share
        self._stop_asked = asyncio.Event()

    @property
    def job_id(self) -> str:
        """Of the job that it has or helps with; empty where there is none."""
        match self.work:
            case None:
                return ""
            case SegmentClaim() as piece:
                return piece.job_id
            case record:
                return record.job.id

    @property
    def wants_all(self) -> bool:
        """Its job was tried before, and is made alone: what ended that worker is to harm no other job."""
        return isinstance(self.work, Record) and self.work.job.attempts > 1

    def has(self, job_id: str) -> bool:
        return isinstance(self.work, Record) and self.work.job.id == job_id

    def stop(self, job_id: str) -> None:
        if job_id == self.job_id:
            self._stop_asked.set()

    def take(self, work: Record | SegmentClaim) -> None:
        self.work = work
        self._stop_asked.clear()

    async def carry_out(self, worker: WorkerProcess) -> None:
        """Do what was taken.

        Raises:
            WorkerDiedError: the worker has ended, or is to be ended.
        """
        try:
            match self.work:
                case SegmentClaim() as piece:
                    await self._help(piece, worker)
                case Record() as record:
                    await self._do(record, worker)
        finally:
            self.work = None

    async def _do(self, record: Record, worker: WorkerProcess) -> None:
        """One claim of one job, to whatever end; the job's row says which."""
        job_id, fence = record.job.id, record.job.fence
        folder = self._settings.folder / "jobs" / job_id
        end = partial(self._end, job_id)
        owner = Owner(record, worker.fits, self._jobs, self._blobs)
        beats = asyncio.create_task(self._beat(record, owner))
        try:
            if await self._blobs.info(result_blob(job_id)) is not None:  # stored, but its row was not written
                await end(
                    lambda job, now: job_state.succeed(job, fence, now, Output(result_blob(job_id), 0.0))
                )
                return
            folder.mkdir(parents=True, exist_ok=True)
            last = await self._work(record, folder, worker, owner)
            match last:
                case JobSucceeded() as done:
                    sha256 = await asyncio.to_thread(sha256_of, folder / "out.mp4")
                    await self._keep(result_blob(job_id), folder / "out.mp4")
                    output = Output(
                        result_blob(job_id),
                        done.device_s + owner.helper_s(),
                        done.media_s,
                        done.warnings,
                        done.is_marked,
                        sha256,
                        done.sync,
                        done.is_nsfw,
                    )
                    await end(lambda job, now: job_state.succeed(job, fence, now, output))
                case JobFailed(code=code, message=message, again=again):
                    failure = Failure(code, message, again)
                    await end(lambda job, now: job_state.fail(job, fence, now, failure, self._jobs.policy))
                case _:
                    await end(lambda job, now: job_state.confirm_cancel(job, fence, now))
        except TransportError as error:
            failure = Failure(error.code, error.message)
            await end(lambda job, now: job_state.fail(job, fence, now, failure, self._jobs.policy))
        except StorageUnavailableError as error:
            log.warning("job %s: the storage is away: %s", job_id, error)
            await end(
                lambda job, now: job_state.fail(
                    job, fence, now, job_state.STORAGE_UNAVAILABLE, self._jobs.policy
                )
            )
            await self._pause()
        except DatabaseUnavailableError as error:  # before the work has begun; it is nobody's fault
            log.warning("job %s: the database is away: %s", job_id, error)
            await end(lambda job, now: job_state.requeue(job, fence, now))
        except Exception as error:  # the worker is gone, the disk is full: another attempt may do better
            if isinstance(error, WorkerDiedError) and error.job_id not in (None, job_id):
                await end(lambda job, now: job_state.requeue(job, fence, now))  # it was another job's fault
            else:
                await end(
                    lambda job, now: job_state.fail(job, fence, now, job_state.WORKER_LOST, self._jobs.policy)
                )
            raise
        except asyncio.CancelledError:
            await end(lambda job, now: job_state.requeue(job, fence, now))
            raise
        finally:
            beats.cancel()
            with contextlib.suppress(
                DatabaseUnavailableError, StorageUnavailableError
            ):  # then it is removed later
                ended = self._jobs.store.get(job_id)
                if ended is None or ended.job.state.is_final:
                    await remove_left(folder, self._blobs, job_id)
                if ended is None:
                    await self._blobs.delete(still_blob(job_id))

    async def _work(self, record: Record, folder: Path, worker: WorkerProcess, owner: Owner) -> FromWorker:
        """Bring the inputs, ask whether the job may run, and follow the worker; its last word on this job."""
        fetching = asyncio.create_task(self._inputs.fetch(record, folder))
        if not await self._unless_stopped(fetching, worker.gone):
            worker.require()
            return JobCancelled(record.job.id)
        local = fetching.result()
        asking = asyncio.create_task(self._gate.check(record, local))
        if not await self._unless_stopped(asking, worker.gone):
            worker.require()
            return JobCancelled(record.job.id)
        if (refusal := asking.result()) is not None:
            return JobFailed(record.job.id, refusal.code, refusal.message, again=False)
        left_key, left = await owner.left(folder / "left") if self._may_share else ("", {})
        start = RunJob(
            job_id=record.job.id,
            inputs={name: str(path) for name, path in local.items()},
            limits={source.name: source.limits for source in record.request.sources},
            segments=record.request.segments,
            output=str(folder / "out.mp4"),
            options=record.request.options,
            consent=record.request.consent,
            may_share=self._may_share,
            left={name: str(path) for name, path in left.items()},
            left_key=left_key,
        )

        async def follow(message: FromWorker) -> bool:
            match message:
                case JobProgress() as working:
                    return await self._report(record, owner.progress(working))
                case PreviewReady() as shown:
                    await self._show(shown)
                    return await self._report(record, None)
                case SegmentsPublished() as offer:
                    await owner.offer(offer)
                case SegmentRendered() as rendered:
                    await owner.rendered(rendered)
                case NextSegment():
                    asking = asyncio.create_task(owner.next())
                    found = await self._unless_stopped(asking, worker.gone)
                    await worker.say(SegmentAssigned(record.job.id, asking.result() if found else None))
            return True

        async with worker.order(record.job.id) as order:
            while True:
                await order.say(start)
                last = await self._follow(order, follow)
                if not isinstance(last, JobDuplicate):
                    return last
                pause = asyncio.create_task(asyncio.sleep(EQUAL_JOB_PAUSE_S))
                if not await self._unless_stopped(pause, worker.gone):
                    worker.require()
                    return JobCancelled(record.job.id)

    async def _help(self, piece: SegmentClaim, worker: WorkerProcess) -> None:
        """Render a segment of a job that another seat has, here or elsewhere."""
        beats = asyncio.create_task(self._helper.beat(piece, self._stop_asked.set))
        told_at = time.monotonic()

        async def follow(message: FromWorker) -> bool:
            nonlocal told_at
            if not isinstance(message, JobProgress) or time.monotonic() - told_at < TELL_EVERY_S:
                return True
            told_at = time.monotonic()
            return await self._helper.tell(piece, message.done)

        kept = False
        try:
            folder = await self._helper.bring(piece)
            began = time.monotonic()
            async with worker.order(piece.job_id) as order:
                await order.say(RenderSegment(piece.job_id, piece.index, str(folder)))
                last = await self._follow(order, follow, until=SegmentRendered)
            if isinstance(last, SegmentRendered):
                await self._helper.keep(piece, Path(last.file), time.monotonic() - began)
                kept = True
                log.info("job %s: segment %d was rendered here for it", piece.job_id, piece.index)
            elif isinstance(last, JobFailed):
                log.warning("job %s: segment %d failed here: %s", piece.job_id, piece.index, last.message)
        except (StorageUnavailableError, DatabaseUnavailableError, OSError) as error:
            log.warning("job %s: segment %d could not be rendered here: %s", piece.job_id, piece.index, error)
            await self._pause()
        finally:
            beats.cancel()
            if not kept:
                await asyncio.shield(self._helper.free(piece))

    async def _follow(
        self,
        order: JobChannel,
        heard: Callable[[FromWorker], Awaitable[bool]],
        until: type[FromWorker] = JobSucceeded,
    ) -> FromWorker:
        """Hear a worker to its last word on an order, and tell it to stop where that is asked.

        Args:
            heard: takes each word before; whether it is to go on.
            until: the last word of an order that was carried out.
        """
        loop, kill_at = asyncio.get_running_loop(), None
        while True:
            hearing = asyncio.create_task(order.hear(self._settings.stall_s))
            if kill_at is None and not await self._unless_stopped(hearing, cancel=False):
                kill_at = loop.time() + STOP_WITHIN_S
                await order.say(CancelJob(order.job_id))
            try:
                async with asyncio.timeout_at(kill_at):
                    message = await hearing
            except TimeoutError:
                raise WorkerDiedError("it did not stop the job when told", order.job_id) from None
            if isinstance(message, JobFailed | JobCancelled | JobDuplicate | until):
                return message
            if not await heard(message):
                self._stop_asked.set()

    async def _keep(self, name: str, file: Path) -> None:
        """Store a result, which took long to make: while the storage is away, try for a good while."""
        for left in reversed(range(KEEP_TRIES)):
            try:
                await self._blobs.move_in(name, file)
                return
            except StorageUnavailableError as error:
                if not left:
                    raise
                log.error("%s could not be stored: %s", name, error)
                await asyncio.sleep(TRY_AGAIN_S)

    async def _show(self, shown: PreviewReady) -> None:
        """Put a stretch where it can be watched; without it the job is as good."""
        try:
            await self._blobs.move_in(_preview_blob(shown), Path(shown.file))
            if shown.still is not None:
                await self._blobs.move_in(still_blob(shown.job_id), Path(shown.still))
        except (OSError, StorageUnavailableError) as error:
            log.warning("job %s: a preview could not be stored: %s", shown.job_id, error)

    async def _unless_stopped(
        self, task: asyncio.Task[Any], *others: asyncio.Event, cancel: bool = True
    ) -> bool:
        """Wait for a task, or for the order to stop, or for other events; whether the task came first."""
        waits = [asyncio.create_task(event.wait()) for event in (self._stop_asked, *others)]
        await asyncio.wait([task, *waits], return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if task.done():
            return True
        if cancel:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return False

    async def _report(self, record: Record, progress: StageProgress | None) -> bool:
        """Write down that it goes on, and how far it is; False where it is to stop, or no longer ours."""
        fence = record.job.fence
        try:
            now = await self._jobs.change(
                record.job.id,
                lambda job, now: job_state.renew_lease(job, fence, now, self._jobs.policy, progress),
            )
            return not now.job.cancel_requested
        except (NotAllowedError, KeyError):
            return False
        except Exception as error:  # noqa: BLE001  (a full disk, a database that is away: work goes on)
            log.warning("job %s: its progress could not be written down: %s", record.job.id, error)
        return True

    async def _beat(self, record: Record, owner: Owner) -> None:
        while True:
            await asyncio.sleep(BEAT_EVERY_S)
            await owner.beat()
            if not await self._report(record, None):
                self._stop_asked.set()
                return

    async def _end(self, job_id: str, transition: Callable[[Job, float], Job]) -> None:
        """Write down how a claim ended; where the database stays away, its lease runs out instead."""
        for _ in range(END_TRIES):
            try:
                record = await self._jobs.change(job_id, transition)
            except (NotAllowedError, KeyError) as error:
                log.info("job %s: %s", job_id, error)  # it ended or was taken over meanwhile
                return
            except Exception as error:  # noqa: BLE001  (a full disk, a database that is away)
                log.error("job %s: its end could not be written down: %s", job_id, error)
                await asyncio.sleep(TRY_AGAIN_S)
            else:
                failure = record.job.failure
                why = f": {failure.code}: {failure.message}" if failure is not None else ""
                log.info("job %s: %s%s", job_id, record.job.state, why, extra=record.tags)
                return
