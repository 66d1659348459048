"""From validated input to a stored job, and what every dialect's answers and webhooks share."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import hmac
import json
import re
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from asgi_correlation_id import correlation_id
from fastapi import Request as HttpRequest

from server.api.auth import Caller
from server.api.bodies import stream_pieces
from server.api.context import ApiContext, link_deleted
from server.api.errors import ApiError, BodyTooLargeError, BusyError
from server.api.schemas import JobInput
from server.jobs.request import Request
from server.jobs.state import Failure
from server.storage.blobs import StorageUnavailableError
from server.storage.disk import DiskFullError
from server.storage.transport import TransportCode, TransportError
from server.store import Record

CONCURRENT_LOOKUPS = 16
REFUSALS = (ApiError, BusyError, BodyTooLargeError, DiskFullError, StorageUnavailableError)
"""Errors after which a submission is certainly not stored."""


async def submit_job(
    context: ApiContext,
    caller: Caller,
    http: HttpRequest,
    *,
    dialect: str,
    endpoint: str,
    dialect_state: dict[str, Any],
    job_input: JobInput,
    webhook_url: str | None,
    digest: str,
) -> Record:
    """Store the inline inputs, then the job.

    Args:
        endpoint, dialect_state: see `build_request`.
        digest: of the HTTP request.

    Raises:
        ApiError: 400, consent is required and missing, or an own link or the webhook cannot be used; 422, the
            idempotency key is that of another request.
    """
    http.state.model = endpoint
    if (repeated := find_repeated(context, caller, http)) is not None:
        require_same_request(repeated.request.body_digest, digest)
        return repeated
    require_consent(context, job_input)
    await require_deliverable(context, webhook_url)
    job_id, base = uuid.uuid4().hex, context.base_url(http)
    async with InlineInputs(context, [job_id]) as inputs:
        request = await build_request(
            context, caller, base, job_id, dialect, endpoint, dialect_state, job_input
        )
        links = own_links(job_input, request)
        missing = await find_missing_blobs(context, links.values())
        if lost := [url for url, blob in links.items() if blob in missing]:
            raise link_deleted(lost[0])
        request = dataclasses.replace(request, webhook_url=webhook_url, body_digest=digest)
        record = await context.submit_job(caller, job_id, request, idempotency_key(http))
        inputs.is_used = record.job.id == job_id
    require_same_request(record.request.body_digest, digest)
    return record


def find_repeated(context: ApiContext, caller: Caller, http: HttpRequest) -> Record | None:
    """Return the job that was submitted with the same idempotency key."""
    key = idempotency_key(http)
    return None if key is None else context.jobs.store.get_by_idempotency_key(caller.tenant, key)


def require_queue_capacity(context: ApiContext, caller: Caller, http: HttpRequest) -> None:
    """Check limits before a submission's body is read; a repeated submission needs no room.

    Raises:
        BusyError, DiskFullError.
    """
    if find_repeated(context, caller, http) is None:
        context.require_queue_capacity(caller)


class InlineInputs:
    """Deletes the inline inputs of jobs at the end of the context if they were not stored.

    Attributes:
        is_used: the jobs were stored; else an earlier submission with the same idempotency key is used.
    """

    def __init__(self, context: ApiContext, job_ids: Sequence[str]) -> None:
        self._context, self._job_ids = context, job_ids
        self.is_used = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After any other error the jobs may have been stored; the retention deletes the files.
        if self.is_used or not (error is None or isinstance(error, REFUSALS)):
            return
        for job_id in self._job_ids:
            with contextlib.suppress(StorageUnavailableError):
                await self._context.blobs.delete_folder(f"inputs/{job_id}")


def own_links(job_input: JobInput, request: Request) -> dict[str, str]:
    """Return the blobs of a request's own links by their URLs."""
    pairs = zip(job_input.files.sources, request.sources, strict=True)
    return {sent.url: source.blob for sent, source in pairs if sent.url and source.blob}


async def find_missing_blobs(context: ApiContext, names: Iterable[str]) -> frozenset[str]:
    """Return the blobs that do not exist; none where the storage does not answer: jobs wait for it."""
    turns, missing, is_away = asyncio.Semaphore(CONCURRENT_LOOKUPS), set[str](), False

    async def look_up(name: str) -> None:
        nonlocal is_away
        async with turns:
            try:
                if not is_away and await context.blobs.info(name) is None:
                    missing.add(name)
            except StorageUnavailableError:
                is_away = True

    await asyncio.gather(*map(look_up, set(names)))
    return frozenset(missing)


async def request_digest(http: HttpRequest, body: bytes | bytearray) -> str:
    """Return the hash of a request's path, query and body."""
    digest = hashlib.sha256(f"{http.url.path}\0{http.url.query}\0".encode())
    await asyncio.to_thread(digest.update, body)
    return digest.hexdigest()


def require_same_request(stored_digest: str | None, digest: str) -> None:
    """Check that a repeated idempotency key repeats its first request.

    Args:
        stored_digest: of the first request; None: unknown.

    Raises:
        ApiError: 422.
    """
    if stored_digest not in (None, digest):
        sentence = "This Idempotency-Key belongs to another request: use a new key for a new request."
        raise ApiError(422, sentence, "idempotency_key_reused")


async def require_deliverable(context: ApiContext, webhook_url: str | None) -> None:
    """Check that the server may call a webhook; whether it answers is not checked.

    Raises:
        ApiError: 400.
    """
    try:
        if webhook_url is not None:
            await context.transport.check_allowed(webhook_url)
    except TransportError as error:
        reason = error.message
        if error.code is TransportCode.URL_NOT_ALLOWED:
            reason = "Its address is not public: ask the operator of this server to allow its host."
        raise ApiError(400, f"The webhook can never be delivered. {reason}", "webhook_not_allowed") from None


def require_consent(context: ApiContext, job_input: JobInput) -> None:
    """Check that consent is given where the server requires it.

    Raises:
        ApiError: 400.
    """
    if job_input.consent is None and context.settings.require_consent:
        sentence = "This server requires consent, a reference to the consent of the person shown."
        raise ApiError(400, sentence, "consent_required")


async def build_request(
    context: ApiContext,
    caller: Caller,
    base: str,
    job_id: str,
    dialect: str,
    endpoint: str,
    dialect_state: dict[str, Any],
    job_input: JobInput,
) -> Request:
    """Build the request of a job and store its inline inputs.

    Args:
        base: URL by which the client reaches the server.
        endpoint: model id or endpoint name; lists can be filtered by it.
        dialect_state: what the dialect's answers need; the base URL is added.

    Raises:
        ApiError: 400, as `ApiContext.resolve_own_link`.
    """
    sources = []
    for source in job_input.files.sources:
        own_blob = None if source.url is None else context.resolve_own_link(source.url, base, caller)
        if own_blob is not None:
            source = dataclasses.replace(source, url=None, blob=own_blob)
        elif source.name in job_input.files.inline:
            blob = f"inputs/{job_id}/{source.name}.bin"
            await context.store_upload(blob, stream_pieces(job_input.files.inline[source.name]))
            source = dataclasses.replace(source, blob=blob)
        sources.append(source)
    options, settings = job_input.options, context.settings
    options = dataclasses.replace(
        options,
        motion=options.motion or settings.portrait_motion,
        preset=options.preset or settings.preset,
        hdr=options.hdr or settings.hdr,
    )
    return Request(
        dialect=dialect,
        dialect_state=json.dumps(dialect_state | {"base": base}),
        endpoint=endpoint,
        sources=tuple(sources),
        key_id=caller.key_id,
        segments=job_input.segments,
        options=options,
        request_id=correlation_id.get() or "-",
        consent=job_input.consent,
    )


def require_job(context: ApiContext, caller: Caller, job_id: str) -> Record:
    """Return a job of the caller's tenant.

    Raises:
        ApiError: 404.
    """
    record = context.find_job(caller, job_id)
    if record is None:
        raise ApiError(404, f"There is no prediction {job_id[:64]!r}.", "not_found")
    return record


def read_dialect_state(request: Request) -> dict[str, Any]:
    """Return what the dialect stored for its answers; what an unreadable row lacks has a default."""
    defaults = {"model": request.endpoint, "input": {}, "base64": False, "base": ""}
    return {**defaults, **json.loads(request.dialect_state)}


def failure_message(failure: Failure) -> str:
    """Return the message of a failure without "HTTP 5…": the vendors' clients retry on that text."""
    return re.sub(r"\bHTTP (\d)", r"status \1", failure.message)


def format_time(seconds: float) -> str:
    """Format seconds since 1970 as ISO 8601 in UTC, to milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def idempotency_key(http: HttpRequest) -> str | None:
    """Return the Idempotency-Key header.

    Raises:
        ApiError: 400, it is empty or too long.
    """
    key = http.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= 200:
        raise ApiError(400, "Idempotency-Key must have 1 to 200 characters.", "invalid_parameter")
    return key


def webhook_headers(secret: str, webhook_id: str, body: bytes, now: float) -> dict[str, str]:
    """Sign one delivery attempt; receivers reject signatures older than five minutes."""
    timestamp = str(int(now))
    message = f"{webhook_id}.{timestamp}.".encode() + body
    mac = hmac.new(secret.removeprefix("whsec_").encode(), message, hashlib.sha256).hexdigest()
    return {
        "Content-Type": "application/json",
        "webhook-id": webhook_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v3,{mac}",
    }
