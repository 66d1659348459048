"""What the handlers of every API share: the job service, blobs, authentication, limits, links.

It names no dialect.
"""

from __future__ import annotations

import asyncio
import contextlib
import mimetypes
import re
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from urllib.parse import quote, unquote, urlsplit

from fastapi import Request as HttpRequest

from server.api.auth import AccessDeniedError, Authenticator, Caller, RateLimiter, Scope
from server.api.errors import RETRY_AFTER_S, ApiError, BodyTooLargeError, BusyError
from server.jobs.request import Request
from server.jobs.service import JobService
from server.jobs.state import Batch, Job
from server.settings import Settings
from server.storage.blobs import Blobs, TooLargeError, preview_folder, still_blob
from server.storage.disk import DiskSpace
from server.storage.links import LinkSigner, LinkState
from server.storage.transport import Transport
from server.store import QueueFullError, QuotaError, Record, audit
from server.workers.caches import delete_face_tracks, tenant_cache_dir

BATCH_PRIORITY = -1
"""Below single jobs, whose clients wait for them: a tenant's batch must not delay his other jobs."""

CANCEL_WAIT_S = 20.0
"""How long a delete request waits for a running job to stop."""

MAX_AUDIT_PATH = 200

OWN_LINK = re.compile(r"/files/([0-9a-f]{1,12}-[A-Za-z0-9_-]{1,64})/([^/]+/.+)$")
"""Path of a signed link, behind whatever prefix; its signature shows whether it is ours."""

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")

UPLOAD_LINK_S = 3600.0
"""How long a file can be sent to an upload link."""

MEDIA_TYPES = {
    "mp4": "video/mp4", "mov": "video/quicktime", "webm": "video/webm", "mkv": "video/x-matroska",
    "avi": "video/x-msvideo", "wmv": "video/x-ms-wmv", "flv": "video/x-flv", "aiff": "audio/aiff",
    "mp3": "audio/mpeg", "wav": "audio/wav", "ogg": "audio/ogg", "aac": "audio/aac",
    "flac": "audio/flac", "m4a": "audio/mp4", "opus": "audio/ogg", "png": "image/png", "jpg": "image/jpeg",
    "jpeg": "image/jpeg", "webp": "image/webp", "bmp": "image/bmp", "gif": "image/gif", "tiff": "image/tiff",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Upload:
    """Links for one upload.

    Attributes:
        blob: name of the blob that the upload becomes.
        put_url: accepts the file by PUT until `expires_at`, without a key.
        download_url: of the uploaded file.
        kind: video, audio, image or file.
    """

    blob: str
    put_url: str
    download_url: str
    kind: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class ApiContext:
    """The running server, as handlers use it.

    Attributes:
        rate_limiter: of requests that change something.
        read_limiter: of GET, because a client that waits for its jobs must not use up its submissions.
    """

    settings: Settings
    jobs: JobService
    blobs: Blobs
    signer: LinkSigner
    authenticator: Authenticator
    rate_limiter: RateLimiter
    read_limiter: RateLimiter
    transport: Transport
    disk: DiskSpace

    def authenticate(self, http: HttpRequest, scope: Scope) -> Caller:
        """Return who sends the request, if the key has the scope.

        Raises:
            AccessDeniedError: 401 or 403.
            BusyError: the key's rate limit is reached, or too many wrong keys came from the client's address.
        """
        now = self.jobs.now()
        address, wrong_keys = http.client.host if http.client else "", self.authenticator.wrong_keys
        if (wait_s := wrong_keys.wait_s(address, now)) > 0:
            raise BusyError("Too many wrong keys came from this address: retry later.", wait_s)
        header = http.headers.get("authorization")
        try:
            caller = self.authenticator.authenticate(header, now)
        except AccessDeniedError:
            if header is not None:
                wrong_keys.record(address, now, is_wrong=True)
            raise
        wrong_keys.record(address, now, is_wrong=False)
        http.state.caller = caller
        if self.authenticator.should_record_use(caller, now):
            self.jobs.write_in_background(partial(self.jobs.store.record_key_use, caller.key_id, now))
        if http.method == "GET":
            rate_limit = self.read_limiter.acquire(caller.key_id, now)
        else:
            rate_limit = self.rate_limiter.acquire(caller.key_id, now, caller.requests_per_minute)
        http.state.rate_limit = rate_limit
        if (account := getattr(http.state, "body", None)) is not None:
            account.tenant = caller.tenant
        if rate_limit.wait_s > 0:
            sentence = f"This key sends more than {rate_limit.limit} requests per minute: retry later."
            raise BusyError(sentence, rate_limit.wait_s)
        caller.require(scope)
        if scope is Scope.ADMIN:
            self.record_admin_request(http, caller)
        return caller

    def record_admin_request(self, http: HttpRequest, caller: Caller, job: Job | None = None) -> None:
        """Write an administrator's request to the audit log; repeated reads once in `ADMIN_READ_INTERVAL_S`.

        Args:
            job: of another tenant, which the request is about.
        """
        now = self.jobs.now()
        facts = {"method": http.method, "path": http.url.path[:MAX_AUDIT_PATH]}
        if http.method in ("GET", "HEAD") and not self.authenticator.should_record_read(
            caller, repr(facts), now
        ):
            return
        tenant, job_id = (caller.tenant, None) if job is None else (job.tenant, job.id)
        entry = audit.AuditEntry(now, audit.ADMIN_REQUEST, facts, tenant, caller.key_id, job_id)
        self.jobs.write_in_background(partial(self.jobs.store.audit.add, entry))

    def base_url(self, http: HttpRequest) -> str:
        """Return the URL by which the client reaches the server, without a slash at the end."""
        if self.settings.public_url is not None:
            return str(self.settings.public_url).rstrip("/")
        return f"{http.url.scheme}://{http.url.netloc}{http.state.prefix}"

    def require_accepting(self) -> None:
        """Check that the server takes new work: it does not stop, and the disk has room.

        Raises:
            ApiError: 503, the server stops.
            DiskFullError: less is free than `min_free_bytes`, which the accepted jobs may need.
        """
        if self.jobs.is_draining:
            sentence = "This server is about to stop or restart: try again shortly."
            raise ApiError(503, sentence, "server_stopping", RETRY_AFTER_S)
        self.disk.require()

    def require_queue_capacity(self, caller: Caller, count: int = 1) -> None:
        """Check limits before a submission's body is read, and before the inputs of its jobs are stored.

        Args:
            count: number of jobs to submit.

        Raises:
            ApiError, DiskFullError: as `require_accepting`.
            BusyError: the queue, the tenant's share of it or the key's quota has no room.
        """
        with _store_limits_as_busy():
            self.jobs.require_room(caller.key_id, caller.tenant, count)
        self.require_accepting()

    # --- jobs ---

    async def submit_job(
        self, caller: Caller, job_id: str, request: Request, idempotency_key: str | None
    ) -> Record:
        """Store a job; it is on disk when this returns.

        Raises:
            BusyError: the queue is full, or the key's quota is used up.
        """
        job = Job(
            id=job_id,
            tenant=caller.tenant,
            created_at=self.jobs.now(),
            inputs_ready=not request.has_downloads,
        )
        with _store_limits_as_busy():
            record, _ = await self.jobs.submit(job, request, idempotency_key)
        return record

    async def submit_batch(
        self, batch: Batch, requests: Sequence[tuple[str, Request]], idempotency_key: str | None
    ) -> Batch:
        """Store a batch with all its jobs; they are on disk when this returns.

        Args:
            requests: (job id, request) of each row.

        Returns:
            The batch, or the earlier one with the same idempotency key.

        Raises:
            BusyError: not all jobs fit into the queue or the key's quota; none was stored.
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
                    inputs_ready=not request.has_downloads,
                ),
                request,
            )
            for row, (job_id, request) in enumerate(requests)
        ]
        with _store_limits_as_busy():
            stored, _ = await self.jobs.submit_batch(batch, entries, idempotency_key)
        return stored

    def find_job(self, caller: Caller, job_id: str) -> Record | None:
        """Return a job of the caller's tenant; None for unknown jobs and for those of other tenants."""
        return self.jobs.store.get(job_id, caller.tenant)

    async def delete_jobs(self, caller: Caller, ids: list[str]) -> int:
        """Cancel running jobs of the caller's tenant, then delete all with their files; return how many."""
        for job_id in ids:
            record = self.find_job(caller, job_id)
            if record is not None and not record.job.state.is_final:
                await self.jobs.cancel(job_id)
                await self.jobs.wait_until_final(job_id, CANCEL_WAIT_S)
        delete = partial(self.jobs.store.delete, ids, caller.tenant, caller.key_id, self.jobs.now())
        deleted = await self.jobs.write(delete)
        for record in deleted:
            await self.delete_files(record)
        if deleted:
            caches = tenant_cache_dir(self.settings.engine_dir, caller.tenant)
            await asyncio.to_thread(delete_face_tracks, caches)
        return len(deleted)

    async def delete_files(self, record: Record) -> None:
        """Delete the result, the previews, and the inputs that belong to this job alone.

        Raises:
            StorageUnavailableError: the remaining files are deleted when they are older than the retention.
        """
        names = [source.blob for source in record.request.sources if source.blob is not None]
        names.append(still_blob(record.job.id))
        if record.job.output is not None:
            names.append(record.job.output.blob)
        for name in names:
            if not name.startswith("uploads/"):  # other jobs may use the upload
                await self.blobs.delete(name)
        await self.blobs.delete_folder(preview_folder(record.job.id))

    # --- files ---

    def file_url(self, base: str, name: str, since: float) -> str:
        """Return a link to a blob that needs no key and is valid as long as the blob exists.

        Args:
            since: when the blob's retention began.
        """
        token = self.signer.sign("read", name, since + self.settings.retention_s)
        return f"{base}/files/{token}/{quote(name)}"

    def resolve_own_link(self, url: str, base: str, caller: Caller) -> str | None:
        """Return the blob of one of our own links, under whatever host name; None for any other URL.

        Raises:
            ApiError: 400, the link has expired or is damaged, or its job was deleted.
        """
        if (match := OWN_LINK.search(urlsplit(url).path)) is None:
            return None
        token, name = match[1], unquote(match[2])
        state = self.signer.check("read", name, token, self.jobs.now())
        if state is LinkState.FORGED:
            if not self._is_own_host(url, base):
                return None
            raise ApiError(400, f"The link {url[:300]!r} is damaged: copy it again.", "link_damaged")
        folder, _, rest = name.partition("/")
        if folder in ("results", "inputs"):
            owner = record.job.tenant if (record := self.jobs.store.get(rest[:32])) is not None else None
        else:
            owner = rest.partition("/")[0] if folder == "uploads" else ""
        if owner not in (None, caller.tenant):
            return None
        if state is LinkState.EXPIRED:
            raise ApiError(400, f"The link {url[:300]!r} has expired: upload the file again.", "link_expired")
        if owner is None:
            raise link_deleted(url)
        return name

    def _is_own_host(self, url: str, base: str) -> bool:
        return urlsplit(url).hostname in (urlsplit(base).hostname, *LOOPBACK_HOSTS)

    def create_upload(
        self, caller: Caller, base: str, filename: str, content_type: str | None, size: int = 0
    ) -> Upload:
        """Create the links for one upload; its blob keeps the suffix of the file name.

        Args:
            size: bytes that the upload link accepts.

        Raises:
            DiskFullError: there is no room for it.
        """
        self.require_accepting()
        suffix = filename.rpartition(".")[2].lower()
        if suffix not in MEDIA_TYPES:
            guessed = mimetypes.guess_extension(content_type or "") or ".bin"
            suffix = guessed[1:] if guessed[1:] in MEDIA_TYPES else "bin"
        name = f"uploads/{caller.tenant}/{secrets.token_hex(16)}.{suffix}"
        now = self.jobs.now()
        expires_at = now + UPLOAD_LINK_S
        token = self.signer.sign(f"write {size}", name, expires_at)
        return Upload(
            blob=name,
            put_url=f"{base}/uploads/{token}/{quote(name)}?size={size}",
            download_url=self.file_url(base, name, now),
            kind=MEDIA_TYPES.get(suffix, "file/").partition("/")[0],
            expires_at=expires_at,
        )

    async def store_upload(self, name: str, chunks: AsyncIterator[bytes], size: int | None = None) -> int:
        """Write an upload to its blob; return the number of bytes.

        Args:
            size: number of bytes that were announced; None: any but 0.

        Raises:
            ApiError: 400 or 413, the upload has another size, or is empty.
            BodyTooLargeError, DiskFullError: nothing was stored.
        """
        self.require_accepting()
        try:
            checked = self.disk.guard(_check_size(chunks, size))
            return await self.blobs.write(name, checked, self.settings.max_upload_bytes)
        except TooLargeError:
            raise file_too_large(self.settings.max_upload_bytes) from None

    async def receive_upload(self, name: str, chunks: AsyncIterator[bytes], size: int) -> None:
        """Write the file of an upload link, once: a link whose upload was interrupted can be used again.

        Raises:
            ApiError: 409, the link was used; 400 or 413, the upload has another size than `size`.
            DiskFullError: nothing was stored.
        """
        store = self.jobs.store
        if not await self.jobs.write(partial(store.claim_upload, name, self.jobs.now())):
            sentence = "This upload link was used already: request a new one."
            raise ApiError(409, sentence, "upload_link_used")
        try:
            await self.store_upload(name, chunks, size)
        except BaseException:
            await self.jobs.write(partial(store.release_upload, name))
            raise


def link_deleted(url: str) -> ApiError:
    """Return the error for an own link without a file."""
    sentence = f"The file of the link {url[:300]!r} was deleted, or never uploaded: upload it."
    return ApiError(400, sentence, "link_deleted")


def size_mismatch(received: int, size: int) -> ApiError:
    """Return the error for an upload of another size than its ticket's; it may have more bytes than that."""
    count, status = ("more", 413) if received > size else (str(received), 400)
    sentence = f"The ticket is for {size} bytes, and {count} were sent: request one for the right size."
    return ApiError(status, sentence, "upload_size_mismatch")


async def _check_size(chunks: AsyncIterator[bytes], size: int | None) -> AsyncIterator[bytes]:
    """Pass the chunks of an upload on; see `store_upload`."""
    received = 0
    async for chunk in chunks:
        received += len(chunk)
        if size is not None and received > size:
            break
        yield chunk
    if size is not None and received != size:
        raise size_mismatch(received, size)
    if received == 0:
        raise ApiError(400, "The file is empty: send one with content.", "upload_empty")


@contextlib.contextmanager
def _store_limits_as_busy() -> Iterator[None]:
    try:
        yield
    except QueueFullError:
        raise _queue_full() from None
    except QuotaError as error:
        raise BusyError(error.message, error.wait_s) from None


def _queue_full() -> BusyError:
    return BusyError("The queue of this server is full: retry later.", RETRY_AFTER_S)


def file_too_large(max_bytes: int) -> BodyTooLargeError:
    """Return the error for a file of more than so many bytes."""
    return BodyTooLargeError(f"A file may have at most {max_bytes / 1e6:.0f} MB here.")
