"""What all dialects do with a body: inputs, options, known errors as values, signed webhooks.

Translates only; it decides nothing about jobs and makes no answer itself.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import json
import re
import secrets
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

from asgi_correlation_id import correlation_id
from fastapi import Request as HttpRequest

from server.auth import Caller
from server.jobs import Failure
from server.messages import InputSource, MediaLimits, Options, Request, Role
from server.site import BodyTooLargeError, BusyError, DiskFullError, RefusedError, Site, read_body
from server.store import Record

OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "guidance_scale": {
        "type": "number", "minimum": 1, "maximum": 3, "description": "Weight of the voice."
    },
    "inference_steps": {"type": "integer", "minimum": 1, "maximum": 50, "description": "Denoising steps."},
    "num_inference_steps": {
        "type": "integer", "minimum": 1, "maximum": 50, "description": "Another name of inference_steps.",
        "x-alias-of": "inference_steps",
    },
    "seed": {
        "type": "integer", "minimum": -1, "maximum": 2147483647, "default": -1, "description": "-1: random."
    },
    "loop_mode": {
        "type": "string", "enum": ["pingpong", "loop"], "default": "pingpong",
        "description": "When the audio is longer than the video: back and forth, or from the start again.",
    },
    "face": {"type": "string", "description": "Who speaks: largest, left, right, a number, or X,Y@SECONDS."},
    "fps": {"type": "number", "minimum": 1, "maximum": 120, "description": "Frame rate; absent: as it is."},
    "resolution": {
        "type": "string", "enum": ["480p", "720p"],
        "description": "Largest short side of the result, never an upscale; absent: the source's size.",
    },
}  # fmt: skip


# --- errors ---


class Refusal(Exception):  # noqa: N818  (an answer, not a fault)
    """An error answer: HTTP status, sentence, and a word for programs."""

    def __init__(self, status: int, message: str, slug: str | None = None, retry_after_s: float = 0) -> None:
        super().__init__(message)
        self.status, self.message, self.slug, self.retry_after_s = status, message, slug, retry_after_s

    @property
    def headers(self) -> dict[str, str] | None:
        return {"Retry-After": str(max(1, round(self.retry_after_s)))} if self.retry_after_s else None


def refusal_of(error: Exception) -> Refusal:
    """A known error as an answer."""
    match error:
        case Refusal():
            return error
        case RefusedError():
            slug = "unauthorized" if error.status == 401 else "forbidden"
            return Refusal(error.status, error.message, slug)
        case BusyError():
            return Refusal(429, error.message, "rate_limited", error.wait_s)
        case DiskFullError():
            return Refusal(503, str(error), "storage_full", 60)
        case BodyTooLargeError():
            return Refusal(413, str(error), "payload_too_large")
        case _:
            raise TypeError(f"{error!r} is no known error")


# --- bodies ---


async def read_object(http: HttpRequest, max_bytes: int = 1 << 20) -> dict[str, Any]:
    """The body as a JSON object; an empty one is an empty object."""
    return json_object(await read_body(http, max_bytes) or b"{}")


def json_object(body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, "The body is not JSON.", "invalid_json") from None
    if not isinstance(given, dict):
        raise Refusal(400, "The body must be a JSON object.", "invalid_json")
    return given


@dataclass(slots=True)
class Inputs:
    """Inputs of a submission; of inline data the bytes, until they are stored."""

    sources: list[InputSource] = field(default_factory=list)
    inline: dict[Role, bytes] = field(default_factory=dict)

    def add(self, name: str, role: Role, value: Any, limits: MediaLimits) -> None:
        """An input given as URL, data URI or base64.

        Raises:
            Refusal: 400 that names it.
        """
        if value is None or value == "":
            raise Refusal(400, f"The parameter {name} is missing.", "missing_parameter")
        if not isinstance(value, str):
            raise Refusal(400, f"The parameter {name} must be a string.", "invalid_parameter")
        if is_url(value):
            self.sources.append(InputSource(role, url=value, limits=limits))
        else:
            self.inline[role] = _inline(name, value)
            self.sources.append(InputSource(role, blob="", limits=limits))


def is_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def _inline(name: str, value: str) -> bytes:
    text = value
    if value.startswith("data:"):
        head, comma, text = value.partition(",")
        if not comma or not head.endswith(";base64"):
            raise Refusal(400, f"The data URI of {name} must be base64.", "invalid_parameter")
    try:
        data = binascii.a2b_base64(re.sub(r"\s+", "", text), strict_mode=True)
    except (binascii.Error, ValueError):
        sentence = f"The parameter {name} is neither an http(s) URL, nor a data URI, nor base64."
        raise Refusal(400, sentence, "invalid_parameter") from None
    if not data:
        raise Refusal(400, f"The parameter {name} is empty.", "invalid_parameter")
    return data


def read_options(given: dict[str, Any]) -> Options:
    found: dict[str, Any] = {}
    for name, rule in OPTIONS.items():
        value = given.get(name)
        if value is None:
            continue
        kinds = {"number": (int, float), "integer": (int,), "string": (str,)}[rule["type"]]
        is_wrong = isinstance(value, bool) or not isinstance(value, kinds)
        if is_wrong or not rule.get("minimum", value) <= value <= rule.get("maximum", value):
            raise Refusal(400, f"{name} must be {_wanted(rule)}.", "invalid_parameter")
        if value not in rule.get("enum", (value,)):
            raise Refusal(400, f"{name} must be one of {', '.join(rule['enum'])}.", "invalid_parameter")
        found[name] = value
    fps, resolution = found.get("fps"), found.get("resolution")
    return Options(
        num_inference_steps=found.get("inference_steps", found.get("num_inference_steps")),
        guidance_scale=found.get("guidance_scale"),
        seed=drawn_seed(found.get("seed", -1)),
        fps=None if fps is None else str(fps),
        max_short_side=None if resolution is None else int(resolution.removesuffix("p")),
        loop_mode=found.get("loop_mode"),
        face=found.get("face"),
    )


def _wanted(rule: dict[str, Any]) -> str:
    kind = {"number": "a number", "integer": "an integer", "string": "a string"}[rule["type"]]
    return f"{kind} from {rule['minimum']} to {rule['maximum']}" if "minimum" in rule else kind


def drawn_seed(value: int) -> int:
    """A random one is drawn here and kept, so that a retried job repeats itself."""
    return secrets.randbelow(2**31) if value < 0 else value


def shortened(value: Any) -> Any:
    return value if not isinstance(value, str) or len(value) <= 2048 else f"{value[:64]}…"


def idempotency_key(http: HttpRequest) -> str | None:
    key = http.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= 200:
        raise Refusal(400, "Idempotency-Key must have 1 to 200 characters.", "invalid_parameter")
    return key


# --- jobs ---


async def submit(
    site: Site,
    caller: Caller,
    http: HttpRequest,
    *,
    dialect: str,
    label: str,
    said: dict[str, Any],
    inputs: Inputs,
    options: Options,
    webhook_url: str | None,
) -> Record:
    """Store inline inputs and put the job into the queue.

    Args:
        said: what the dialect's answers need; the base URL is added.
        label: a word to find the job by.
    """
    job_id, base = uuid.uuid4().hex, site.base_url(http)
    sources = []
    for source in inputs.sources:
        own = None if source.url is None else site.own_blob(source.url, base, caller)
        if own is not None:
            source = InputSource(source.role, blob=own, limits=source.limits)
        elif source.role in inputs.inline:
            blob = f"inputs/{job_id}/{source.role}.bin"
            await site.store_upload(blob, _once(inputs.inline[source.role]))
            source = InputSource(source.role, blob=blob, limits=source.limits)
        sources.append(source)
    request = Request(
        dialect=dialect,
        said=json.dumps(said | {"base": base}),
        label=label,
        sources=tuple(sources),
        key_id=caller.key_id,
        options=options,
        webhook_url=webhook_url,
        request_id=correlation_id.get() or "-",
    )
    return await site.submit(caller, job_id, request, idempotency_key(http))


def known_job(site: Site, caller: Caller, job_id: str) -> Record:
    record = site.job(caller, job_id)
    if record is None:
        raise Refusal(404, f"There is no prediction {job_id[:64]!r}.", "not_found")
    return record


def error_text(failure: Failure) -> str:
    """Clients run a task again on the text "HTTP 5…": it must not stand there."""
    return re.sub(r"\bHTTP (\d)", r"status \1", failure.message)


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


# --- webhooks ---


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
