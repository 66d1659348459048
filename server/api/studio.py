"""lipsync.studio's API: three endpoints and a job, without envelopes; mounted under /api/v1.

Translates only. Jobs are the same in every dialect: without its dashes, the id is that of the prediction.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from server.api.auth import Scope
from server.api.context import ApiContext
from server.api.errors import ApiError
from server.api.schemas import (
    PORTRAIT_OPTIONS,
    TWO_VOICES,
    TWO_VOICES_OPTIONS,
    EndpointSchema,
    JobInput,
    echo_input,
    is_url,
    json_schema_properties,
    parse_json_object,
    read_body,
    validate_job_input,
)
from server.api.submission import (
    failure_message,
    read_dialect_state,
    request_digest,
    require_job,
    require_queue_capacity,
    submit_job,
)
from server.hosts import HostPattern
from server.jobs.request import Role
from server.jobs.state import Failure, State
from server.store import Record

NAME: Final = "lipsync.studio"
PREFIX: Final = "/api/v1"

UNREADABLE: Final = {"url_wrong_type", "media_unreadable", "media_no_audio"}
"""Failures for which the vendor's pages show a text of their own."""


MAX_SEED: Final = 2**32 - 1
"""The vendor's page says integer; clients draw 32 bits."""

ENDPOINTS: Final = {
    "lipsync-video": EndpointSchema(resolution="480p", max_seed=MAX_SEED),
    "lipsync-image": EndpointSchema(
        required=(Role.IMAGE, Role.AUDIO), options=PORTRAIT_OPTIONS, resolution="480p", max_seed=MAX_SEED
    ),
    "lipsync-image-multi": EndpointSchema(
        required=TWO_VOICES,
        optional=(),
        options=TWO_VOICES_OPTIONS,
        resolution="480p",
        max_seed=MAX_SEED,
    ),
}
"""The schema of each endpoint's `formState`."""


def openapi_body(schema: EndpointSchema) -> dict[str, Any]:
    """Return the OpenAPI description of a submission."""
    required = [role.value for role in schema.required if role is not Role.AUDIO]  # or segments
    state = {"type": "object", "properties": json_schema_properties(schema), "required": required}
    webhook = {"type": "string", "description": "Called when the job has ended."}
    body = {
        "type": "object",
        "properties": {"webhook": webhook, "formState": state},
        "required": ["formState"],
    }
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}}


def error_response(error: ApiError) -> JSONResponse:
    """Render an error in this dialect."""
    return JSONResponse({"error": error.message, "message": error.message}, error.status, error.headers)


@dataclass(frozen=True, slots=True)
class Submission:
    """A validated body."""

    job_input: JobInput
    echoed_input: dict[str, Any]
    webhook_url: str | None


def read_submission(
    schema: EndpointSchema,
    body: dict[str, Any],
    *,
    vendor_limits: bool = True,
    http_hosts: tuple[str, ...] = (),
) -> Submission:
    """Validate a body without opening media.

    Args:
        vendor_limits: as in `validate_job_input`.
        http_hosts: entries of `server.hosts` that webhooks may call over http; all others need https.

    Raises:
        ApiError: 400 with the name of the wrong field.
    """
    state = body.get("formState")
    if not isinstance(state, dict):
        raise ApiError(400, "The body must have an object formState with the inputs.")
    webhook = body.get("webhook") or None
    if webhook is not None and not _is_webhook_allowed(webhook, http_hosts):
        raise ApiError(400, "webhook must be an https URL.")
    job_input = validate_job_input(schema, state, vendor_limits=vendor_limits)
    return Submission(job_input, echo_input(schema, state), webhook)


def _is_webhook_allowed(webhook: object, http_hosts: tuple[str, ...]) -> bool:
    if not isinstance(webhook, str) or not is_url(webhook):
        return False
    parts = urlsplit(webhook)
    if parts.scheme == "https":
        return True
    try:
        host, port = parts.hostname or "", parts.port or 80
    except ValueError:
        return False
    return any(HostPattern.parse(entry).covers(host, port) for entry in http_hosts)


def job_object(context: ApiContext, record: Record) -> dict[str, Any]:
    """Build the job object of answers and webhooks; fields without a value are null in this dialect."""
    job, dialect_state = record.job, read_dialect_state(record.request)
    is_done = job.state is State.SUCCEEDED and job.output is not None
    fields: dict[str, Any] = {
        "id": str(uuid.UUID(job.id)),
        "model": dialect_state["model"],
        "status": "completed" if is_done else "failed" if job.state.is_final else "processing",
        "output": None,
        "error": "",
        "executionTime": None,
        "timings": None,
    }
    if is_done and job.output is not None:
        fields["output"] = context.file_url(dialect_state["base"], job.output.blob, job.created_at)
        fields["executionTime"] = round(((job.finished_at or 0.0) - (job.started_at or 0.0)) * 1000)
        if job.output.warnings:
            fields["warnings"] = list(job.output.warnings)
    elif job.state is State.CANCELLED:
        fields["error"] = "The task was cancelled."
    elif job.failure is not None:
        fields["error"] = _error_text(job.failure)
    return fields


def _error_text(failure: Failure) -> str:
    is_audio = failure.code in UNREADABLE and "audio" in failure.message
    return "Invalid audio format" if is_audio else failure_message(failure)


def webhook_body(context: ApiContext, record: Record) -> bytes:
    """Build the body of a webhook: the job object."""
    return json.dumps(job_object(context, record), separators=(",", ":")).encode()


def create_router(context: ApiContext) -> APIRouter:
    """Create all endpoints, to be mounted under `PREFIX`."""
    router = APIRouter()

    def add_endpoint(name: str, schema: EndpointSchema) -> None:
        @router.post(f"/{name}", openapi_extra=openapi_body(schema), name=name)
        async def run(http: HttpRequest) -> Response:
            caller = context.authenticate(http, Scope.RUN)
            require_queue_capacity(context, caller, http)
            body = await read_body(http, context.settings.max_body_bytes)
            # In a thread: decoding 100 MB of base64 would block all other requests.
            fields = await asyncio.to_thread(parse_json_object, body or b"{}")
            submission = await asyncio.to_thread(
                read_submission,
                schema,
                fields,
                vendor_limits=context.settings.enforce_vendor_limits,
                http_hosts=context.settings.allow_hosts,
            )
            record = await submit_job(
                context,
                caller,
                http,
                dialect=NAME,
                endpoint=name,
                dialect_state={"model": name, "input": submission.echoed_input, "base64": False},
                job_input=submission.job_input,
                webhook_url=submission.webhook_url,
                digest=await request_digest(http, body),
            )
            job_id = str(uuid.UUID(record.job.id))
            return JSONResponse({"id": job_id, "requestId": job_id, "status": "processing"})

    for name, schema in ENDPOINTS.items():
        add_endpoint(name, schema)

    @router.get("/jobs/{job_id}")
    async def get_job(http: HttpRequest, job_id: str) -> Response:
        caller = context.authenticate(http, Scope.READ)
        return JSONResponse(job_object(context, require_job(context, caller, job_id.replace("-", ""))))

    return router
