"""What all dialects do with a job: make it of a checked body, find it, sign its webhooks.

It decides nothing about jobs and makes no answer itself.
"""

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


async def submit(
    context: ApiContext,
    caller: Caller,
    http: HttpRequest,
    *,
    dialect: str,
    label: str,
    said: dict[str, Any],
    asked: JobInput,
    webhook_url: str | None,
) -> Record:
    """Store inline inputs and put the job into the queue.

    Args:
        said, label: as `make_request` takes them.

    Raises:
        ApiError: 400, no consent is given where one is required.
    """
    require_consent(context, asked)
    job_id, base = uuid.uuid4().hex, context.base_url(http)
    request = await make_request(context, caller, base, job_id, dialect, label, said, asked)
    request = dataclasses.replace(request, webhook_url=webhook_url)
    return await context.submit(caller, job_id, request, idempotency_key(http))


def require_consent(context: ApiContext, asked: JobInput) -> None:
    """Refuse a job without consent where one is required."""
    if asked.consent is None and context.settings.require_consent:
        sentence = "This server takes no job without consent, a reference to the consent of the person shown."
        raise ApiError(400, sentence, "consent_required")


async def make_request(
    context: ApiContext,
    caller: Caller,
    base: str,
    job_id: str,
    dialect: str,
    label: str,
    said: dict[str, Any],
    asked: JobInput,
) -> Request:
    """What is asked of the job of that id; its inline inputs are stored.

    Args:
        base: how the client reaches us.
        label: a word to find the job by.
        said: what the dialect's answers need; the base URL is added.
    """
    sources = []
    for source in asked.inputs.sources:
        own = None if source.url is None else context.own_blob(source.url, base, caller)
        if own is not None:
            source = dataclasses.replace(source, url=None, blob=own)
        elif source.name in asked.inputs.inline:
            blob = f"inputs/{job_id}/{source.name}.bin"
            await context.store_upload(blob, _once(asked.inputs.inline[source.name]))
            source = dataclasses.replace(source, blob=blob)
        sources.append(source)
    given, settings = asked.options, context.settings
    options = dataclasses.replace(
        given, motion=given.motion or settings.portrait_motion, preset=given.preset or settings.preset
    )
    return Request(
        dialect=dialect,
        said=json.dumps(said | {"base": base}),
        label=label,
        sources=tuple(sources),
        key_id=caller.key_id,
        segments=asked.segments,
        options=options,
        request_id=correlation_id.get() or "-",
        consent=asked.consent,
    )


def require_job(context: ApiContext, caller: Caller, job_id: str) -> Record:
    record = context.job(caller, job_id)
    if record is None:
        raise ApiError(404, f"There is no prediction {job_id[:64]!r}.", "not_found")
    return record


def error_text(failure: Failure) -> str:
    """Clients run a task again on the text "HTTP 5…": it must not stand there."""
    return re.sub(r"\bHTTP (\d)", r"status \1", failure.message)


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def idempotency_key(http: HttpRequest) -> str | None:
    key = http.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= 200:
        raise ApiError(400, "Idempotency-Key must have 1 to 200 characters.", "invalid_parameter")
    return key


def signed_headers(secret: str, notice_id: str, body: bytes, now: float) -> dict[str, str]:
    """Signed for this try: a receiver refuses signatures older than five minutes."""
    stamp = str(int(now))
    message = f"{notice_id}.{stamp}.".encode() + body
    mac = hmac.new(secret.removeprefix("whsec_").encode(), message, hashlib.sha256).hexdigest()
    return {
        "Content-Type": "application/json",
        "webhook-id": notice_id,
        "webhook-timestamp": stamp,
        "webhook-signature": f"v3,{mac}",
    }
