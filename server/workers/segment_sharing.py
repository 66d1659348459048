"""Segments of one job rendered by many: the parent's half, of the job's owner and of a helper.

The owner puts the plan and its inputs into the blobs and a row per segment into the database; whoever takes
a row renders that segment, stores its file and marks the row. The owner brings finished files to its worker,
which joins them. So what is lost with a process are the segments that it was rendering. `lending` is the
worker's half.
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

BEAT_EVERY_S = 10.0
TELL_EVERY_S = 2.0
"""So often a helper writes down how far it is, and the owner looks how far helpers are."""


class Owner:
    """Shares one claim of one job.

    Args:
        fits: see `messages.WorkerReady`.
    """

    def __init__(self, record: Record, fits: str, jobs: JobService, blobs: Blobs) -> None:
        self._record, self._job_id, self._fits = record, record.job.id, fits
        self._jobs, self._blobs = jobs, blobs
        self._key = ""
        self._places: list[Path] = []
        self._frames: list[int] = []
        self._have: set[int] = set()
        self._piece: SegmentClaim | None = None
        self._elsewhere, self._looked_at = 0, 0.0

    async def left(self, folder: Path) -> tuple[str, dict[str, Path]]:
        """Plan and segments that an earlier attempt stored, as files in `folder`; empty where there are none.

        They are a help and not needed: where the storage is away, the work is done again.
        """
        key, shares = self._jobs.store.get_segments(self._job_id)
        if not shares:
            return "", {}
        try:
            return key, await _bring(self._blobs, self._job_id, key, folder, with_segments=True)
        except (StorageUnavailableError, OSError) as error:
            log.warning("job %s: what was rendered elsewhere cannot be had: %s", self._job_id, error)
            return "", {}

    async def offer(self, offer: SegmentsPublished) -> None:
        """Let others render; where they cannot be asked now, this worker renders all by itself."""
        self._key = offer.key
        self._places = [Path(file) for file, _ in offer.segments]
        self._frames = [frames for _, frames in offer.segments]
        self._have = {number for number, place in enumerate(self._places) if place.exists()}
        done = {self._places[number].name: self._places[number] for number in self._have}
        try:
            for name, path in {**{name: Path(path) for name, path in offer.files.items()}, **done}.items():
                await self._blobs.copy_in(_blob(self._job_id, self._key, name), path)
            await self._jobs.change_segments(
                self._job_id,
                lambda now: self._jobs.store.publish_segments(
                    self._job_id, self._record.job.fence, self._key, self._fits, self._frames, self._have
                ),
                segments_available=True,
            )
        except (StorageUnavailableError, DatabaseUnavailableError) as error:
            log.warning("job %s: its segments cannot be shared: %s", self._job_id, error)

    async def next(self) -> int | None:
        """The segment to render; None: one has come, or all are there.

        Raises:
            StorageUnavailableError: a finished one cannot be had.
        """
        with self._jobs.watch(self._job_id) as changed:
            while True:
                try:
                    if await self._fetch() or len(self._have) == len(self._places):
                        return None
                    self._piece = await self._jobs.write(self._take)
                    if self._piece is not None:
                        return self._piece.index
                    if not self._jobs.store.get_segments(self._job_id)[1]:
                        return self._missing()[0]  # it could not be offered
                except DatabaseUnavailableError:
                    return self._missing()[0]  # perhaps others render it too; all are equal
                await self._jobs.wait_for_change(changed, POLL_INTERVAL_S)

    async def rendered(self, rendered: SegmentRendered) -> None:
        """A segment of this worker is there; it outlives this process in the storage."""
        self._have.add(rendered.number)
        self._piece, file = None, Path(rendered.file)
        try:
            await self._blobs.copy_in(_blob(self._job_id, self._key, file.name), file)
            await self._jobs.write(
                lambda: self._jobs.store.complete_segment(self._job_id, self._key, rendered.number)
            )
        except (StorageUnavailableError, DatabaseUnavailableError) as error:
            log.warning("job %s: segment %d is here alone: %s", self._job_id, rendered.number, error)

    async def beat(self) -> None:
        """To be called every `BEAT_EVERY_S`."""
        if (piece := self._piece) is not None:
            with contextlib.suppress(DatabaseUnavailableError):
                await self._jobs.write(
                    lambda: self._jobs.store.renew_segment_lease(piece, self._jobs.store.now())
                )

    def progress(self, working: JobProgress) -> StageProgress:
        """What this worker has done and knows of, and what others have."""
        if self._places and time.monotonic() - self._looked_at > TELL_EVERY_S:
            self._looked_at = time.monotonic()
            own = self._have | ({self._piece.index} if self._piece else set())
            with contextlib.suppress(DatabaseUnavailableError):
                _, shares = self._jobs.store.get_segments(self._job_id)
                self._elsewhere = sum(share.frames_done for share in shares if share.index not in own)
        done = min(working.total, working.done + self._elsewhere)
        return StageProgress(working.stage, done, working.total, working.per_s)

    def helper_s(self) -> float:
        """Seconds that helpers' devices have spent on it; 0 where nobody can be asked."""
        with contextlib.suppress(DatabaseUnavailableError):
            return self._jobs.store.helper_s(self._job_id)
        return 0.0

    def _take(self) -> SegmentClaim | None:
        store = self._jobs.store
        return store.claim_own_segment(self._job_id, self._key, store.now(), self._have)

    def _missing(self) -> list[int]:
        return [number for number in range(len(self._places)) if number not in self._have]

    async def _fetch(self) -> bool:
        """Bring what others have finished; whether there was any."""
        key, shares = self._jobs.store.get_segments(self._job_id)
        came = [s.index for s in shares if s.is_done and key == self._key and s.index not in self._have]
        for number in came:
            place = self._places[number]
            try:
                await self._blobs.copy_out(_blob(self._job_id, key, place.name), place)
            except FileNotFoundError:
                log.warning("job %s: segment %d is not where it was stored", self._job_id, number)
                lost = number
                await self._jobs.write(lambda: self._jobs.store.reset_segment(self._job_id, key, lost))  # noqa: B023
            else:
                self._have.add(number)
        return bool(came)


class Helper:
    """Renders others' segments on one device.

    Args:
        folder: of this helper alone.
    """

    def __init__(self, jobs: JobService, blobs: Blobs, folder: Path) -> None:
        self._jobs, self._blobs, self._folder = jobs, blobs, folder

    async def bring(self, piece: SegmentClaim) -> Path:
        """A folder with the plan and what it needs; that of the last piece where it is the same.

        Raises:
            StorageUnavailableError, OSError.
        """
        folder = self._folder / f"{piece.job_id}-{piece.plan_key[:8]}"
        if not folder.exists():
            await asyncio.to_thread(self.clear)
            part = folder.with_suffix(".part")
            await _bring(self._blobs, piece.job_id, piece.plan_key, part, with_segments=False)
            part.rename(folder)
        return folder

    async def keep(self, piece: SegmentClaim, file: Path, seconds: float) -> None:
        """Store a finished segment, unless nobody wants it any more.

        Args:
            seconds: that it took this device.

        Raises:
            StorageUnavailableError, DatabaseUnavailableError.
        """
        name = _blob(piece.job_id, piece.plan_key, file.name)
        await self._blobs.move_in(name, file)
        store = self._jobs.store
        wanted = await self._jobs.change_segments(
            piece.job_id, lambda _: store.complete_segment(piece.job_id, piece.plan_key, piece.index, seconds)
        )
        if not wanted:
            await self._blobs.delete(name)

    async def beat(self, piece: SegmentClaim, lost: Callable[[], None]) -> None:
        """Hold the claim for ever; `lost` when it is over, or its job is."""
        while True:
            await asyncio.sleep(BEAT_EVERY_S)
            if not await self.tell(piece, None):
                lost()
                return

    async def tell(self, piece: SegmentClaim, frames_done: int | None) -> bool:
        """Write down that it goes on; whether it is to."""
        store = self._jobs.store
        try:
            return await self._jobs.write(lambda: store.renew_segment_lease(piece, store.now(), frames_done))
        except DatabaseUnavailableError:
            return True

    async def free(self, piece: SegmentClaim) -> None:
        """Let somebody else render it."""
        with contextlib.suppress(DatabaseUnavailableError):  # its lease ends
            await self._jobs.change_segments(
                piece.job_id, lambda _: self._jobs.store.release_segment(piece), segments_available=True
            )

    def clear(self) -> None:
        """Remove what the last piece needed."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _blob(job_id: str, key: str, name: str) -> str:
    """A blob's name has an ending."""
    return f"{shared_folder(job_id)}/{key}-{name if '.' in name else f'{name}.bin'}"


async def _bring(
    blobs: Blobs, job_id: str, key: str, folder: Path, *, with_segments: bool
) -> dict[str, Path]:
    """What is stored of a plan, by its name: files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    found, prefix = {}, f"{shared_folder(job_id)}/{key}-"
    for blob in await blobs.list_folder(shared_folder(job_id)):
        name = blob.name.removeprefix(prefix).removesuffix(".bin")
        if blob.name.startswith(prefix) and (with_segments or not name.startswith("segment-")):
            found[name] = folder / name
            await blobs.copy_out(blob.name, folder / name)
    return found
