"""What all dialects share: who calls, the jobs, uploads and links to files. It speaks no dialect itself."""

from __future__ import annotations

import contextlib
import mimetypes
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from urllib.parse import quote, unquote, urlsplit

from fastapi import Request as HttpRequest

from server.api.auth import AccessDeniedError, Authenticator, Caller, RateLimiter, Scope
from server.jobs.request import Request
from server.jobs.service import JobService
from server.jobs.state import Batch, Job
from server.settings import Settings
from server.storage.blobs import Blobs, TooLargeError, preview_folder, still_blob
from server.storage.links import Signer
from server.store import QueueFullError, QuotaError, Record

RETRY_AFTER_S = 5

BATCH_PRIORITY = -1
"""Somebody waits for a single job; those of a batch let the tenant's others go first."""

MEDIA_TYPES = {
    "mp4": "video/mp4", "mov": "video/quicktime", "webm": "video/webm", "mkv": "video/x-matroska",
    "avi": "video/x-msvideo", "mp3": "audio/mpeg", "wav": "audio/wav", "ogg": "audio/ogg", "aac": "audio/aac",
    "flac": "audio/flac", "m4a": "audio/mp4", "opus": "audio/ogg", "png": "image/png", "jpg": "image/jpeg",
    "jpeg": "image/jpeg", "webp": "image/webp", "bmp": "image/bmp", "gif": "image/gif", "tiff": "image/tiff",
}  # fmt: skip


class BusyError(Exception):
    """Too much is asked for at present.

    Attributes:
        wait_s: when to come again; 0: that will not help.
    """

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.message = message
        self.wait_s = wait_s


class BodyTooLargeError(Exception):
    """The request's body is larger than the server takes."""


class DiskFullError(Exception):
    """There is no room for more; the message says so."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A place for an upload. `name` is the blob's."""

    name: str
    put_url: str
    download_url: str
    kind: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class ApiContext:
    """The running server, as dialects see it."""

    settings: Settings
    jobs: JobService
    blobs: Blobs
    signer: Signer
    keys: Authenticator
    rates: RateLimiter

    def authenticate(self, http: HttpRequest, scope: Scope) -> Caller:
        """Who calls, allowed to.

        Raises:
            AccessDeniedError: 401 or 403. BusyError: the key asks too often.
        """
        now = self.jobs.now()
        caller = self.keys.caller(http.headers.get("authorization"), now)
        if self.keys.should_note(caller, now):
            self.jobs.write_later(partial(self.jobs.store.key_used, caller.key_id, now))
        if (wait_s := self.rates.wait_s(caller.key_id, now, caller.requests_per_minute)) > 0:
            raise BusyError("This key sends too many requests: slow down.", wait_s)
        caller.require(scope)
        return caller

    def base_url(self, http: HttpRequest) -> str:
        """How the client reaches us, without a slash at the end."""
        if self.settings.public_url is not None:
            return str(self.settings.public_url).rstrip("/")
        return f"{http.url.scheme}://{http.url.netloc}"

    def require_disk_space(self) -> None:
        """Refuse what would fill the disk, while what is accepted can still be finished.

        Raises:
            DiskFullError.
        """
        if shutil.disk_usage(self.settings.data_dir).free < self.settings.min_free_bytes:
            raise DiskFullError("The disk of this server is full: try again later, or tell its operator.")

    def require_queue_capacity(self, count: int = 1) -> None:
        """Before a submission's body is read, and for so many jobs before their inputs are stored.

        Raises:
            BusyError: the queue is full. DiskFullError: the disk is.
        """
        if self.jobs.is_full(count):
            raise _queue_full()
        self.require_disk_space()

    # --- jobs ---

    async def submit(
        self, caller: Caller, job_id: str, request: Request, idempotency_key: str | None
    ) -> Record:
        """A job, on disk when this returns.

        Raises:
            BusyError: the queue is full, or the key's quota is used up.
        """
        job = Job(id=job_id, tenant=caller.tenant, created_at=self.jobs.now())
        with _busy_when_refused():
            record, _ = await self.jobs.submit(job, request, idempotency_key)
        return record

    async def submit_batch(
        self, batch: Batch, requests: Sequence[tuple[str, Request]], idempotency_key: str | None
    ) -> Batch:
        """A batch with all its jobs, on disk when this returns; an earlier one where the key is known.

        Args:
            requests: (job id, request) of each row.

        Raises:
            BusyError: there is no room for all in the queue, or in the key's quota; none was taken.
        """
        entries = [
            (
                Job(
                    id=job_id,
                    tenant=batch.tenant,
                    created_at=batch.created_at,
                    priority=BATCH_PRIORITY,
                    batch_id=batch.id,
                    batch_row=row,
                ),
                request,
            )
            for row, (job_id, request) in enumerate(requests)
        ]
        with _busy_when_refused():
            stored, _ = await self.jobs.submit_batch(batch, entries, idempotency_key)
        return stored

    def job(self, caller: Caller, job_id: str) -> Record | None:
        """A job of the caller's; None for unknown and other tenants' alike."""
        return self.jobs.store.get(job_id, caller.tenant)

    async def delete(self, caller: Caller, ids: list[str]) -> int:
        """Cancel what runs, then forget the caller's jobs and their files; how many there were."""
        for job_id in ids:
            if (record := self.job(caller, job_id)) is not None and not record.job.state.is_final:
                await self.jobs.cancel(job_id)
                await self.jobs.until_final(job_id, 20.0)
        gone = await self.jobs.write(lambda: self.jobs.store.delete(ids, caller.tenant))
        for record in gone:
            await self.forget_files(record)
        return len(gone)

    async def forget_files(self, record: Record) -> None:
        """Delete the result, what could be seen of it before, and the inputs that belong to this job alone.

        Raises:
            StorageAwayError: what is left goes when it is older than the retention.
        """
        names = [source.blob for source in record.request.sources if source.blob is not None]
        names.append(still_blob(record.job.id))
        if record.job.output is not None:
            names.append(record.job.output.blob)
        for name in names:
            if not name.startswith("uploads/"):  # other jobs may use an upload
                await self.blobs.delete(name)
        await self.blobs.delete_under(preview_folder(record.job.id))

    # --- files ---

    def file_url(self, base: str, name: str, since: float) -> str:
        """A link to a blob that needs no key and lasts as long as the blob does."""
        token = self.signer.sign("read", name, since + self.settings.retention_s)
        return f"{base}/files/{token}/{quote(name)}"

    def own_blob(self, url: str, base: str, caller: Caller) -> str | None:
        """The blob behind one of our own links, where the caller may use it; None for any other URL."""
        parts, ours = urlsplit(url), urlsplit(base)
        if (parts.scheme, parts.netloc) != (ours.scheme, ours.netloc) or not parts.path.startswith("/files/"):
            return None
        token, _, name = parts.path.removeprefix("/files/").partition("/")
        name = unquote(name)
        if not self.signer.holds("read", name, token, self.jobs.now()):
            return None
        folder, _, rest = name.partition("/")
        owner = name.startswith(f"uploads/{caller.tenant}/")
        of_job = folder in ("results", "inputs") and self.job(caller, rest[:32]) is not None
        return name if owner or of_job else None

    def upload_place(self, caller: Caller, base: str, filename: str, content_type: str | None) -> Upload:
        """Where a file may be put once, by whoever has the link.

        Raises:
            DiskFullError.
        """
        self.require_disk_space()
        suffix = filename.rpartition(".")[2].lower()
        if suffix not in MEDIA_TYPES:
            guessed = mimetypes.guess_extension(content_type or "") or ".bin"
            suffix = guessed[1:] if guessed[1:] in MEDIA_TYPES else "bin"
        name = f"uploads/{caller.tenant}/{secrets.token_hex(16)}.{suffix}"
        now = self.jobs.now()
        expires_at = now + 3600
        token = self.signer.sign("write", name, expires_at)
        kind = MEDIA_TYPES.get(suffix, "file/").partition("/")[0]
        return Upload(
            name, f"{base}/uploads/{token}/{quote(name)}", self.file_url(base, name, now), kind, expires_at
        )

    async def store_upload(self, name: str, chunks: AsyncIterator[bytes]) -> int:
        """Bytes of an upload into its place; returns how many.

        Raises:
            BodyTooLargeError, DiskFullError: nothing was kept.
        """
        self.require_disk_space()
        try:
            return await self.blobs.write(name, chunks, self.settings.max_upload_bytes)
        except TooLargeError:
            raise BodyTooLargeError(
                f"A file may have at most {self.settings.max_upload_bytes / 1e6:.0f} MB here."
            ) from None


@contextlib.contextmanager
def _busy_when_refused() -> Iterator[None]:
    try:
        yield
    except QueueFullError:
        raise _queue_full() from None
    except QuotaError as error:
        raise BusyError(error.message, error.wait_s) from None


def _queue_full() -> BusyError:
    return BusyError("The queue of this server is full: submit again later.", RETRY_AFTER_S)


async def read_body(http: HttpRequest, max_bytes: int) -> bytes:
    """The whole body.

    Raises:
        BodyTooLargeError: as soon as that is known.
    """
    sentence = f"The request may have at most {max_bytes / 1e6:.0f} MB: upload large files first."
    announced = http.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced) > max_bytes:
        raise BodyTooLargeError(sentence)
    parts, size = [], 0
    async for chunk in http.stream():
        size += len(chunk)
        if size > max_bytes:
            raise BodyTooLargeError(sentence)
        parts.append(chunk)
    return b"".join(parts)


__all__ = [
    "AccessDeniedError",
    "ApiContext",
    "BodyTooLargeError",
    "BusyError",
    "DiskFullError",
    "Upload",
    "read_body",
]
