"""lipsync.studio's API: three endpoints and a job, without envelopes. Mounted under /api/v1.

Translates only. A job of this dialect is the same job in the other one: its id without dashes is the
prediction's.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from server.auth import Scope
from server.dialects.common import (
    OPTIONS,
    Inputs,
    Refusal,
    error_text,
    is_url,
    known_job,
    read_object,
    read_options,
    shortened,
    submit,
)
from server.jobs import Failure, State
from server.messages import MediaLimits, Options, Role
from server.site import Site
from server.store import Record

NAME: Final = "lipsync.studio"
PREFIX: Final = "/api/v1"

UNREADABLE: Final = {"url_wrong_type", "media_unreadable", "media_no_audio"}
"""Failures for which the vendor's pages show a text of their own."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Attributes: required and optional inputs by their names in `formState`."""

    name: str
    required: tuple[tuple[str, Role], ...]
    optional: tuple[tuple[str, Role], ...] = (("mask_image", Role.MASK),)


ENDPOINTS: Final = (
    Endpoint("lipsync-video", (("video", Role.VIDEO), ("audio", Role.AUDIO))),
    Endpoint("lipsync-image", (("image", Role.IMAGE), ("audio", Role.AUDIO))),
    Endpoint(
        "lipsync-image-multi",
        (("image", Role.IMAGE), ("left_audio", Role.LEFT_AUDIO), ("right_audio", Role.RIGHT_AUDIO)),
        optional=(),
    ),
)
ORDERS: Final = {"meanwhile": "together", "left_right": "left_right", "right_left": "right_left"}
FORM_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "webhook": {"type": "string", "description": "Called when the job has ended."},
                        "formState": {"type": "object", "properties": OPTIONS},
                    },
                    "required": ["formState"],
                }
            }
        },
    }
}


def error_answer(refusal: Refusal) -> JSONResponse:
    """A refused request, as this dialect says it."""
    return JSONResponse(
        {"error": refusal.message, "message": refusal.message}, refusal.status, refusal.headers
    )


@dataclass(frozen=True, slots=True)
class Submission:
    """A checked body."""

    inputs: Inputs
    options: Options
    said_input: dict[str, Any]
    webhook_url: str | None


def read_submission(
    endpoint: Endpoint, given: dict[str, Any], *, http_hosts: tuple[str, ...] = ()
) -> Submission:
    """Check what can be checked without touching media.

    Args:
        http_hosts: which webhooks may use http; others need https.

    Raises:
        Refusal: 400 with the name of what is wrong.
    """
    form = given.get("formState")
    if not isinstance(form, dict):
        raise Refusal(400, "The body must have an object formState with the inputs.")
    inputs = Inputs()
    for name, role in endpoint.required:
        inputs.add(name, role, form.get(name), MediaLimits())
    for name, role in endpoint.optional:
        if form.get(name):
            inputs.add(name, role, form[name], MediaLimits())
    webhook = given.get("webhook") or None
    if webhook is not None and not _may_be_called(webhook, http_hosts):
        raise Refusal(400, "webhook must be an https URL.")
    order = form.get("order") or "meanwhile"
    if not isinstance(order, str) or order not in ORDERS:
        raise Refusal(400, f"order must be one of {', '.join(ORDERS)}.")
    options = dataclasses.replace(read_options(form), order=ORDERS[order])
    return Submission(inputs, options, {name: shortened(value) for name, value in form.items()}, webhook)


def _may_be_called(webhook: object, http_hosts: tuple[str, ...]) -> bool:
    if not isinstance(webhook, str) or not is_url(webhook):
        return False
    parts = urlsplit(webhook)
    return parts.scheme == "https" or any(entry.partition(":")[0] == parts.hostname for entry in http_hosts)


def job_object(site: Site, record: Record) -> dict[str, Any]:
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
        shown["output"] = site.file_url(said["base"], job.output.blob, job.created_at)
        shown["executionTime"] = round(((job.finished_at or 0.0) - (job.started_at or 0.0)) * 1000)
    elif job.state is State.CANCELLED:
        shown["error"] = "The task was cancelled."
    elif job.failure is not None:
        shown["error"] = _text(job.failure)
    return shown


def _text(failure: Failure) -> str:
    is_audio = failure.code in UNREADABLE and "audio" in failure.message
    return "Invalid audio format" if is_audio else error_text(failure)


def webhook_body(site: Site, record: Record) -> bytes:
    return json.dumps(job_object(site, record), separators=(",", ":")).encode()


def router(site: Site) -> APIRouter:
    """All endpoints, to be mounted under `PREFIX`."""
    routes = APIRouter()

    def add(endpoint: Endpoint) -> None:
        @routes.post(f"/{endpoint.name}", openapi_extra=FORM_BODY, name=endpoint.name)
        async def run(http: HttpRequest) -> Response:
            caller = site.caller(http, Scope.RUN)
            site.require_room()
            given = await read_object(http, site.settings.max_body_bytes)
            submission = read_submission(endpoint, given, http_hosts=site.settings.allow_hosts)
            record = await submit(
                site,
                caller,
                http,
                dialect=NAME,
                label=endpoint.name,
                said={"model": endpoint.name, "input": submission.said_input, "base64": False},
                inputs=submission.inputs,
                options=submission.options,
                webhook_url=submission.webhook_url,
            )
            name = str(uuid.UUID(record.job.id))
            return JSONResponse({"id": name, "requestId": name, "status": "processing"})

    for endpoint in ENDPOINTS:
        add(endpoint)

    @routes.get("/jobs/{job_id}")
    async def look(http: HttpRequest, job_id: str) -> Response:
        caller = site.caller(http, Scope.READ)
        return JSONResponse(job_object(site, known_job(site, caller, job_id.replace("-", ""))))

    return routes
