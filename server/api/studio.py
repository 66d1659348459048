"""lipsync.studio's API: three endpoints and a job, without envelopes. Mounted under /api/v1.

Translates only. A job of this dialect is the same job in the other one: its id without dashes is the
prediction's.
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
from server.api.context import ApiContext, read_body
from server.api.errors import ApiError
from server.api.schemas import (
    PORTRAIT_OPTIONS,
    TWO_VOICES,
    TWO_VOICES_OPTIONS,
    EndpointSchema,
    JobInput,
    is_url,
    json_object,
    properties,
    shortened,
    validate_job_input,
)
from server.api.submission import error_text, require_job, submit
from server.jobs.request import Role
from server.jobs.state import Failure, State
from server.store import Record

NAME: Final = "lipsync.studio"
PREFIX: Final = "/api/v1"

UNREADABLE: Final = {"url_wrong_type", "media_unreadable", "media_no_audio"}
"""Failures for which the vendor's pages show a text of their own."""


ENDPOINTS: Final = {
    "lipsync-video": EndpointSchema(resolution="480p"),
    "lipsync-image": EndpointSchema(
        required=(Role.IMAGE, Role.AUDIO), options=PORTRAIT_OPTIONS, resolution="480p"
    ),
    "lipsync-image-multi": EndpointSchema(
        required=TWO_VOICES, optional=(), options=TWO_VOICES_OPTIONS, resolution="480p"
    ),
}
"""Each one's `formState`."""


def body_schema(form: EndpointSchema) -> dict[str, Any]:
    """OpenAPI of a submission."""
    required = [role.value for role in form.required if role is not Role.AUDIO]  # or segments
    state = {"type": "object", "properties": properties(form), "required": required}
    webhook = {"type": "string", "description": "Called when the job has ended."}
    schema = {
        "type": "object",
        "properties": {"webhook": webhook, "formState": state},
        "required": ["formState"],
    }
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def error_response(refusal: ApiError) -> JSONResponse:
    """A refused request, as this dialect says it."""
    return JSONResponse(
        {"error": refusal.message, "message": refusal.message}, refusal.status, refusal.headers
    )


@dataclass(frozen=True, slots=True)
class Submission:
    """A checked body."""

    asked: JobInput
    said_input: dict[str, Any]
    webhook_url: str | None


def read_submission(
    form: EndpointSchema,
    given: dict[str, Any],
    *,
    vendor_limits: bool = True,
    http_hosts: tuple[str, ...] = (),
) -> Submission:
    """Check what can be checked without touching media.

    Args:
        vendor_limits: as in `validate_job_input`.
        http_hosts: which webhooks may use http; others need https.

    Raises:
        ApiError: 400 with the name of what is wrong.
    """
    state = given.get("formState")
    if not isinstance(state, dict):
        raise ApiError(400, "The body must have an object formState with the inputs.")
    webhook = given.get("webhook") or None
    if webhook is not None and not _may_be_called(webhook, http_hosts):
        raise ApiError(400, "webhook must be an https URL.")
    asked = validate_job_input(form, state, vendor_limits=vendor_limits)
    return Submission(asked, {name: shortened(value) for name, value in state.items()}, webhook)


def _may_be_called(webhook: object, http_hosts: tuple[str, ...]) -> bool:
    if not isinstance(webhook, str) or not is_url(webhook):
        return False
    parts = urlsplit(webhook)
    return parts.scheme == "https" or any(entry.partition(":")[0] == parts.hostname for entry in http_hosts)


def job_object(context: ApiContext, record: Record) -> dict[str, Any]:
    """What is said of a job, to those who ask and to webhooks; nulls are literal here."""
    job, said = record.job, json.loads(record.request.said)
    done = job.state is State.SUCCEEDED and job.output is not None
    shown: dict[str, Any] = {
        "id": str(uuid.UUID(job.id)),
        "model": said["model"],
        "status": "completed" if done else "failed" if job.state.is_final else "processing",
        "output": None,
        "error": "",
        "executionTime": None,
        "timings": None,
    }
    if done and job.output is not None:
        shown["output"] = context.file_url(said["base"], job.output.blob, job.created_at)
        shown["executionTime"] = round(((job.finished_at or 0.0) - (job.started_at or 0.0)) * 1000)
        if job.output.warnings:
            shown["warnings"] = list(job.output.warnings)
    elif job.state is State.CANCELLED:
        shown["error"] = "The task was cancelled."
    elif job.failure is not None:
        shown["error"] = _text(job.failure)
    return shown


def _text(failure: Failure) -> str:
    is_audio = failure.code in UNREADABLE and "audio" in failure.message
    return "Invalid audio format" if is_audio else error_text(failure)


def webhook_body(context: ApiContext, record: Record) -> bytes:
    return json.dumps(job_object(context, record), separators=(",", ":")).encode()


def router(context: ApiContext) -> APIRouter:
    """All endpoints, to be mounted under `PREFIX`."""
    routes = APIRouter()

    def add(name: str, form: EndpointSchema) -> None:
        @routes.post(f"/{name}", openapi_extra=body_schema(form), name=name)
        async def run(http: HttpRequest) -> Response:
            caller = context.authenticate(http, Scope.RUN)
            context.require_queue_capacity()
            body = await read_body(http, context.settings.max_body_bytes)
            # In a thread: decoding a hundred megabytes of base64 would hold up everybody else's polls.
            given = await asyncio.to_thread(json_object, body or b"{}")
            submission = await asyncio.to_thread(
                read_submission,
                form,
                given,
                vendor_limits=context.settings.enforce_vendor_limits,
                http_hosts=context.settings.allow_hosts,
            )
            record = await submit(
                context,
                caller,
                http,
                dialect=NAME,
                label=name,
                said={"model": name, "input": submission.said_input, "base64": False},
                asked=submission.asked,
                webhook_url=submission.webhook_url,
            )
            job = str(uuid.UUID(record.job.id))
            return JSONResponse({"id": job, "requestId": job, "status": "processing"})

    for name, form in ENDPOINTS.items():
        add(name, form)

    @routes.get("/jobs/{job_id}")
    async def look(http: HttpRequest, job_id: str) -> Response:
        caller = context.authenticate(http, Scope.READ)
        return JSONResponse(job_object(context, require_job(context, caller, job_id.replace("-", ""))))

    return routes
