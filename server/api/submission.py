"""From validated input to a stored job, and what every dialect's answers and webhooks share."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import re
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from asgi_correlation_id import correlation_id
from fastapi import Request as HttpRequest

from server.api.auth import Caller
from server.api.context import ApiContext
from server.api.errors import ApiError
from server.api.schemas import JobInput
from server.jobs.request import Request
from server.jobs.state import Failure
from server.store import Record


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
) -> Record:
    """Store the inline inputs, then the job.

    Args:
        endpoint, dialect_state: see `build_request`.

    Raises:
        ApiError: 400, consent is required and missing.
    """
    require_consent(context, job_input)
    job_id, base = uuid.uuid4().hex, context.base_url(http)
    request = await build_request(context, caller, base, job_id, dialect, endpoint, dialect_state, job_input)
    request = dataclasses.replace(request, webhook_url=webhook_url)
    return await context.submit_job(caller, job_id, request, idempotency_key(http))


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
    """
    sources = []
    for source in job_input.files.sources:
        own_blob = None if source.url is None else context.resolve_own_link(source.url, base, caller)
        if own_blob is not None:
            source = dataclasses.replace(source, url=None, blob=own_blob)
        elif source.name in job_input.files.inline:
            blob = f"inputs/{job_id}/{source.name}.bin"
            await context.store_upload(blob, _as_stream(job_input.files.inline[source.name]))
            source = dataclasses.replace(source, blob=blob)
        sources.append(source)
    options, settings = job_input.options, context.settings
    options = dataclasses.replace(
        options, motion=options.motion or settings.portrait_motion, preset=options.preset or settings.preset
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


def failure_message(failure: Failure) -> str:
    """Return the message of a failure without "HTTP 5…": the vendors' clients retry on that text."""
    return re.sub(r"\bHTTP (\d)", r"status \1", failure.message)


def format_time(seconds: float) -> str:
    """Format seconds since 1970 as ISO 8601 in UTC, to milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def _as_stream(data: bytes) -> AsyncIterator[bytes]:
    yield data


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
