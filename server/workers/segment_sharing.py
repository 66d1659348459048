"""One job rendered by many workers: the parent's side, as the job's coordinator and as a helper of others.

The coordinator stores the plan and its inputs as blobs and publishes a row per segment in the database. Who
claims a row renders that segment, stores its file and completes the row. The coordinator copies finished
files to its worker, which joins them. A process that dies loses only the segments that it was rendering.
The worker's side is `segment_client`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from server.jobs.service import POLL_INTERVAL_S, JobService
from server.jobs.state import StageProgress
from server.storage.blobs import Blobs, StorageUnavailableError, shared_folder
from server.store import DatabaseUnavailableError, Record, SegmentClaim
from server.workers.messages import JobProgress, SegmentRendered, SegmentsPublished

log = logging.getLogger("lipsync.supervisor")

HEARTBEAT_INTERVAL_S = 10.0
REPORT_INTERVAL_S = 2.0
"""How often a helper writes its progress, and the coordinator reads the helpers'."""


class SegmentCoordinator:
    """Shares the segments of one claim of one job.

    Args:
        compatibility_key: of the job's own worker, see `messages.WorkerReady`.
    """

    def __init__(self, record: Record, compatibility_key: str, jobs: JobService, blobs: Blobs) -> None:
        self._record, self._job_id, self._compatibility_key = record, record.job.id, compatibility_key
        self._jobs, self._blobs = jobs, blobs
        self._plan_key = ""
        self._paths: list[Path] = []
        self._local: set[int] = set()  # segments whose files the worker has
        self._claim: SegmentClaim | None = None
        self._remote_frames, self._remote_frames_at = 0, 0.0

    async def fetch_previous(self, folder: Path) -> tuple[str, dict[str, Path]]:
        """Copy plan and segments that an earlier attempt has stored; returns the plan's key and the files.

        Without them the work is done again, so nothing is raised where the storage is unavailable.
        """
        plan_key, segments = self._jobs.store.get_segments(self._job_id)
        if not segments:
            return "", {}
        try:
            return plan_key, await _copy_out(self._blobs, self._job_id, plan_key, folder, with_segments=True)
        except (StorageUnavailableError, OSError) as error:
            log.warning("job %s: files of an earlier attempt unavailable: %s", self._job_id, error)
            return "", {}

    async def publish(self, event: SegmentsPublished) -> None:
        """Let other workers render; where that fails, this worker renders all segments itself."""
        self._plan_key = event.plan_key
        self._paths = [Path(file) for file, _ in event.segments]
        self._local = {index for index, path in enumerate(self._paths) if path.exists()}
        frames = [count for _, count in event.segments]
        files = {name: Path(path) for name, path in event.files.items()}
        files |= {self._paths[index].name: self._paths[index] for index in self._local}
        try:
            for name, path in files.items():
                await self._blobs.copy_in(_blob_name(self._job_id, self._plan_key, name), path)
            await self._jobs.change_segments(
                self._job_id,
                lambda now: self._jobs.store.publish_segments(
                    self._job_id,
                    self._record.job.fence,
                    self._plan_key,
                    self._compatibility_key,
                    frames,
                    self._local,
                ),
                segments_available=True,
            )
        except (StorageUnavailableError, DatabaseUnavailableError) as error:
            log.warning("job %s: segments not shared: %s", self._job_id, error)

    async def next_segment(self) -> int | None:
        """Claim the segment that the worker renders next; None: a file has arrived, or all are finished.

        Raises:
            StorageUnavailableError: a finished segment cannot be copied.
        """
        with self._jobs.watch(self._job_id) as changed:
            while True:
                try:
                    if await self._fetch_finished() or len(self._local) == len(self._paths):
                        return None
                    self._claim = await self._jobs.write(self._claim_segment)
                    if self._claim is not None:
                        return self._claim.index
                    if not self._jobs.store.get_segments(self._job_id)[1]:
                        return self._missing()[0]  # they are not published
                except DatabaseUnavailableError:
                    return self._missing()[0]  # a helper may render it too: the files are equal
                await self._jobs.wait_for_change(changed, POLL_INTERVAL_S)

    async def segment_rendered(self, event: SegmentRendered) -> None:
        """Store a segment of the own worker, so that it survives this process."""
        self._local.add(event.index)
        self._claim, file = None, Path(event.file)
        try:
            await self._blobs.copy_in(_blob_name(self._job_id, self._plan_key, file.name), file)
            await self._jobs.write(
                lambda: self._jobs.store.complete_segment(self._job_id, self._plan_key, event.index)
            )
        except (StorageUnavailableError, DatabaseUnavailableError) as error:
            log.warning("job %s: segment %d kept locally only: %s", self._job_id, event.index, error)

    async def renew_lease(self) -> None:
        """Extend the lease of the segment in work; to be called every `HEARTBEAT_INTERVAL_S`."""
        if (claim := self._claim) is not None:
            store = self._jobs.store
            with contextlib.suppress(DatabaseUnavailableError):
                await self._jobs.write(lambda: store.renew_segment_lease(claim, store.now()))

    def total_progress(self, event: JobProgress) -> StageProgress:
        """Add the helpers' frames to the worker's progress."""
        if self._paths and time.monotonic() - self._remote_frames_at > REPORT_INTERVAL_S:
            self._remote_frames_at = time.monotonic()
            own = self._local | ({self._claim.index} if self._claim else set())
            with contextlib.suppress(DatabaseUnavailableError):
                _, segments = self._jobs.store.get_segments(self._job_id)
                self._remote_frames = sum(one.frames_done for one in segments if one.index not in own)
        done = min(event.total, event.done + self._remote_frames)
        return StageProgress(event.stage, done, event.total, event.per_s)

    def helper_s(self) -> float:
        """Sum the seconds that helpers' devices spent; 0 where the database is unavailable."""
        with contextlib.suppress(DatabaseUnavailableError):
            return self._jobs.store.helper_s(self._job_id)
        return 0.0

    def _claim_segment(self) -> SegmentClaim | None:
        store = self._jobs.store
        return store.claim_own_segment(self._job_id, self._plan_key, store.now(), self._local)

    def _missing(self) -> list[int]:
        return [index for index in range(len(self._paths)) if index not in self._local]

    async def _fetch_finished(self) -> bool:
        """Copy segments that helpers have finished; returns whether there were any."""
        plan_key, segments = self._jobs.store.get_segments(self._job_id)
        if plan_key != self._plan_key:
            return False
        finished = [one.index for one in segments if one.is_done and one.index not in self._local]
        for index in finished:
            path = self._paths[index]
            try:
                await self._blobs.copy_out(_blob_name(self._job_id, plan_key, path.name), path)
            except FileNotFoundError:
                log.warning("job %s: segment %d is missing in the storage", self._job_id, index)
                await self._reset_segment(index)
            else:
                self._local.add(index)
        return bool(finished)

    async def _reset_segment(self, index: int) -> None:
        store = self._jobs.store
        await self._jobs.write(lambda: store.reset_segment(self._job_id, self._plan_key, index))


class SegmentHelper:
    """Renders segments of other workers' jobs on one device.

    Args:
        folder: for this helper alone.
    """

    def __init__(self, jobs: JobService, blobs: Blobs, folder: Path) -> None:
        self._jobs, self._blobs, self._folder = jobs, blobs, folder

    async def fetch_plan(self, claim: SegmentClaim) -> Path:
        """Return a folder with the plan and the files that it needs; it is kept for the next segment.

        Raises:
            StorageUnavailableError, OSError.
        """
        folder = self._folder / f"{claim.job_id}-{claim.plan_key[:8]}"
        if not folder.exists():
            await asyncio.to_thread(self.clear)
            part = folder.with_suffix(".part")
            await _copy_out(self._blobs, claim.job_id, claim.plan_key, part, with_segments=False)
            part.rename(folder)
        return folder

    async def store_segment(self, claim: SegmentClaim, file: Path, device_s: float) -> None:
        """Store a finished segment, unless it is not needed any more.

        Args:
            device_s: seconds that it took this device.

        Raises:
            StorageUnavailableError, DatabaseUnavailableError.
        """
        name = _blob_name(claim.job_id, claim.plan_key, file.name)
        await self._blobs.move_in(name, file)
        store = self._jobs.store
        is_needed = await self._jobs.change_segments(
            claim.job_id,
            lambda _: store.complete_segment(claim.job_id, claim.plan_key, claim.index, device_s),
        )
        if not is_needed:
            await self._blobs.delete(name)

    async def keep_lease(self, claim: SegmentClaim, on_lost: Callable[[], None]) -> None:
        """Renew the claim's lease until it is lost or its job stops; then call `on_lost`."""
        while True:
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)
            if not await self.report(claim, None):
                on_lost()
                return

    async def report(self, claim: SegmentClaim, frames_done: int | None) -> bool:
        """Renew the lease and write the progress; returns whether to go on."""
        store = self._jobs.store
        try:
            return await self._jobs.write(lambda: store.renew_segment_lease(claim, store.now(), frames_done))
        except DatabaseUnavailableError:
            return True

    async def release(self, claim: SegmentClaim) -> None:
        """Let another worker render the segment."""
        with contextlib.suppress(DatabaseUnavailableError):  # its lease ends
            await self._jobs.change_segments(
                claim.job_id, lambda _: self._jobs.store.release_segment(claim), segments_available=True
            )

    def clear(self) -> None:
        """Delete the files of the last plan."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _blob_name(job_id: str, plan_key: str, file_name: str) -> str:
    """Name the blob of a plan's file; a blob's name needs a suffix."""
    return f"{shared_folder(job_id)}/{plan_key}-{file_name if '.' in file_name else f'{file_name}.bin'}"


async def _copy_out(
    blobs: Blobs, job_id: str, plan_key: str, folder: Path, *, with_segments: bool
) -> dict[str, Path]:
    """Copy the stored files of a plan to `folder`; returns them by name."""
    folder.mkdir(parents=True, exist_ok=True)
    files, prefix = {}, f"{shared_folder(job_id)}/{plan_key}-"
    for blob in await blobs.list_folder(shared_folder(job_id)):
        name = blob.name.removeprefix(prefix).removesuffix(".bin")
        if blob.name.startswith(prefix) and (with_segments or not name.startswith("segment-")):
            files[name] = folder / name
            await blobs.copy_out(blob.name, folder / name)
    return files
