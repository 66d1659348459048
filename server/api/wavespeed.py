"""WaveSpeed's API: what its clients send and must be answered, field by field.

Translates only: a submission becomes a `Request`, a job becomes a prediction object. Facts and the rules that
real clients depend on: docs/http.md. Mounted under /api/v3 and /api/v2.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qs, unquote

from fastapi import APIRouter, Query, UploadFile
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from server.api.auth import Caller, Scope
from server.api.context import ApiContext, BodyTooLargeError, Upload, read_body
from server.api.errors import ApiError
from server.api.schemas import JobInput, is_url, json_object, read_object, shortened, validate_job_input
from server.api.submission import error_text, moment, require_job
from server.api.submission import submit as submit_job
from server.api.wavespeed_models import MODELS, Model, listed, require_model
from server.jobs.state import Failure, State
from server.store import Record

NAME: Final = "wavespeed"
PREFIXES: Final = ("/api/v3", "/api/v2")

STATUS: Final = {
    State.WAITING: "created",
    State.RUNNING: "processing",
    State.SUCCEEDED: "completed",
    State.FAILED: "failed",
    State.CANCELLED: "cancelled",
}

INVALID, UNREACHABLE, IMPOSSIBLE, FAILED, CRASHED, TIMED_OUT = 1401, 1402, 1403, 1405, 5000, 5004
CODES: Final = {
    "url_wrong_type": INVALID, "url_too_large": INVALID, "parameter_invalid": INVALID,
    "content_refused": INVALID,
    "media_no_audio": IMPOSSIBLE, "face_not_found": IMPOSSIBLE, "face_choice_unmatched": IMPOSSIBLE,
    "worker_lost": CRASHED, "internal_error": CRASHED, "queue_timeout": TIMED_OUT, "run_timeout": TIMED_OUT,
}  # fmt: skip

BASE64_AND_WEBHOOK: Final = (
    "webhook callback does not support base64 output, please use the normal API to use base64 output"
)


JSON_BODY: Final = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
}
ALIASES: Final = {"video_url": "video", "audio_url": "audio", "image_url": "image"}
FLAGS: Final = ("enable_sync_mode", "enable_base64_output", "webhook_url", "webhook")


# --- errors ---


def error_response(refusal: ApiError) -> JSONResponse:
    """A refused request, as this dialect says it."""
    body = {"code": refusal.status, "message": refusal.message, "error": refusal.message}
    if refusal.slug is not None:
        body["error_code"] = refusal.slug
    return JSONResponse(body, refusal.status, refusal.headers)


# --- a submission ---


@dataclass(frozen=True, slots=True)
class Submission:
    """A checked body."""

    asked: JobInput
    said_input: dict[str, Any]
    webhook_url: str | None
    sync: bool
    base64: bool


def read_submission(model: Model, body: bytes, raw_query: str, *, vendor_limits: bool) -> Submission:
    """Check what can be checked without touching media.

    Raises:
        ApiError: 400 with the name of what is wrong.
    """
    given = normalize_names(json_object(body))
    webhook_url = _webhook(raw_query) or given.get("webhook_url") or None
    flags = {name: _flag(given, name) for name in ("enable_sync_mode", "enable_base64_output")}
    if webhook_url is not None:
        if flags["enable_base64_output"]:
            raise ApiError(400, BASE64_AND_WEBHOOK, "invalid_parameter")
        if not isinstance(webhook_url, str) or not is_url(webhook_url):
            raise ApiError(400, "webhook must be an http or https URL.", "invalid_parameter")
    return Submission(
        asked=validate_job_input(model.form, given, vendor_limits=vendor_limits),
        said_input={name: shortened(value) for name, value in given.items() if name not in FLAGS},
        webhook_url=webhook_url,
        sync=flags["enable_sync_mode"],
        base64=flags["enable_base64_output"],
    )


def normalize_names(given: dict[str, Any]) -> dict[str, Any]:
    """A body with each input under one name."""
    return {ALIASES.get(name, name): value for name, value in given.items()}


def _webhook(raw_query: str) -> str | None:
    """The query's webhook; some clients do not encode it, and then it is all that follows."""
    before, found, value = raw_query.partition("webhook=")
    if not found or (before and not before.endswith("&")):
        return None
    if "://" in value:
        return unquote(value)
    return parse_qs(raw_query).get("webhook", [None])[0]


def _flag(given: dict[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise ApiError(400, f"{name} must be true or false.", "invalid_parameter")


# --- a prediction ---


def prediction(context: ApiContext, record: Record) -> dict[str, Any]:
    """The prediction object; complete in every state, without nulls."""
    job, said = record.job, json.loads(record.request.said)
    began, ended = job.started_at, job.finished_at
    done = job.state is State.SUCCEEDED and job.output is not None
    outputs = [context.file_url(said["base"], job.output.blob, job.created_at)] if done and job.output else []
    whole_s = ended - began if began is not None and ended is not None else 0.0
    device_s = job.output.device_s if job.output is not None else 0.0
    shown: dict[str, Any] = {
        "id": job.id,
        "model": said["model"],
        "input": said["input"],
        "outputs": outputs,
        "urls": {"get": f"{said['base']}/api/v3/predictions/{job.id}/result"},
        "has_nsfw_contents": [bool(job.output and job.output.is_nsfw)] * len(outputs),
        "status": STATUS[job.state],
        "created_at": moment(job.created_at),
        "error": "",
        "executionTime": round(whole_s * 1000),
        "timings": {"inference": round(device_s * 1000)},
    }
    if job.state is State.RUNNING and job.progress is not None:
        progress = job.progress
        shown["timings"] |= {
            "stage": progress.stage,
            "done": progress.done,
            "total": progress.total,
            "per_second": progress.per_s,
        }
    if job.state is State.WAITING and (turn := context.jobs.turn(job.id)) is not None:
        shown["timings"] |= {"queue_position": turn.position}
        if (wait_s := context.jobs.starts_in_s(turn)) is not None:
            shown["timings"] |= {"estimated_start": moment(context.jobs.now() + wait_s)}
    if job.state is State.CANCELLED:
        shown["error"] = "The task was cancelled."
    if job.output is not None and job.output.warnings:
        shown["warnings"] = list(job.output.warnings)
    if job.failure is not None:
        shown["error"], shown["code"] = error_text(job.failure), _error_code(job.failure)
    return shown


def _error_code(failure: Failure) -> int:
    if failure.code in CODES:
        return CODES[failure.code]
    if failure.code.startswith("url_"):
        return UNREACHABLE
    return INVALID if failure.code.startswith(("media_", "input_")) else FAILED


def answer(data: Any) -> JSONResponse:
    return JSONResponse({"code": 200, "message": "success", "data": data})


# --- webhooks ---


def webhook_body(context: ApiContext, record: Record) -> bytes:
    """The flat prediction object."""
    return json.dumps(prediction(context, record), separators=(",", ":")).encode()


# --- routes ---


def router(context: ApiContext) -> APIRouter:
    """All endpoints, to be mounted under each of `PREFIXES`; the catch-all of model ids comes last."""
    routes = APIRouter()

    # Predictions.

    @routes.get("/predictions/{job_id}/result")
    @routes.get("/predictions/{job_id}")
    async def result(http: HttpRequest, job_id: str) -> Response:
        return await poll(context, http, job_id)

    @routes.post("/predictions/{job_id}/cancel")
    async def cancel(http: HttpRequest, job_id: str) -> Response:
        record = require_job(context, context.authenticate(http, Scope.RUN), job_id)
        if not record.job.state.is_final:
            await context.jobs.cancel(job_id)
            record = await context.jobs.until_final(job_id, 8.0) or record
        return answer(prediction(context, record))

    @routes.delete("/predictions/{job_id}")
    async def delete(http: HttpRequest, job_id: str) -> Response:
        caller = context.authenticate(http, Scope.RUN)
        require_job(context, caller, job_id)
        await context.delete(caller, [job_id])
        return answer({"id": job_id, "status": "deleted"})

    @routes.post("/predictions/delete", openapi_extra=JSON_BODY)
    async def delete_many(http: HttpRequest) -> Response:
        caller = context.authenticate(http, Scope.RUN)
        ids = (await read_object(http)).get("ids")
        if not isinstance(ids, list) or len(ids) > 1000 or not all(isinstance(name, str) for name in ids):
            raise ApiError(400, "ids must be a list of at most 1000 prediction ids.", "invalid_parameter")
        return answer({"deleted_count": await context.delete(caller, ids)})

    @routes.post("/predictions", openapi_extra=JSON_BODY)
    async def history(http: HttpRequest) -> Response:
        caller = context.authenticate(http, Scope.READ)
        given = await read_object(http)
        page, size = _number(given, "page", 1, 10**6), _number(given, "page_size", 1, 100)
        status = given.get("status")
        states = [state for state, name in STATUS.items() if name == status]
        if status and not states:
            raise ApiError(400, f"status must be one of {', '.join(STATUS.values())}.", "invalid_parameter")
        records, total = context.jobs.store.page(
            caller.tenant,
            offset=(page - 1) * size,
            limit=size,
            states=states,
            label=_text(given, "model"),
            created_from=_time(given, "created_after"),
            created_to=_time(given, "created_before"),
        )
        return answer(
            {"page": page, "total": total, "items": [prediction(context, record) for record in records]}
        )

    # Uploads.

    @routes.post("/media/uploads", openapi_extra=JSON_BODY)
    async def ticket(http: HttpRequest) -> Response:
        caller = context.authenticate(http, Scope.RUN)
        given = await read_object(http)
        size = _number(given, "size", 0, 2**63)
        if size > context.settings.max_upload_bytes:
            raise BodyTooLargeError(
                f"A file may have at most {context.settings.max_upload_bytes / 1e6:.0f} MB here."
            )
        kind = given.get("content_type")
        kind = kind if isinstance(kind, str) and re.fullmatch(r"[\w.+-]+/[\w.+-]+", kind) else None
        place = context.upload_place(caller, context.base_url(http), _filename(given.get("filename")), kind)
        return answer(
            _uploaded(place, _filename(given.get("filename")), size)
            | {
                "upload": {
                    "method": "PUT",
                    "url": place.put_url,
                    "headers": {"Content-Type": kind} if kind else {},
                    "expires_at": moment(place.expires_at),
                }
            }
        )

    @routes.post("/media/upload/binary")
    @routes.post("/upload")
    async def upload(http: HttpRequest) -> Response:
        caller = context.authenticate(http, Scope.RUN)
        async with http.form(max_files=1, max_fields=8) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile) and not hasattr(file, "read"):
                raise ApiError(400, "Send the file as the multipart field `file`.", "missing_parameter")
            name = _filename(getattr(file, "filename", None))
            place = context.upload_place(
                caller, context.base_url(http), name, getattr(file, "content_type", None)
            )
            size = await context.store_upload(place.name, _chunks(file))
        return answer(_uploaded(place, name, size) | {"url": place.download_url})

    # Catalogue and account: there is nothing to pay.

    @routes.get("/models")
    async def models(http: HttpRequest) -> Response:
        context.authenticate(http, Scope.READ)
        base = context.base_url(http)
        return answer([listed(model, base, number) for number, model in enumerate(MODELS.values())])

    @routes.get("/webhook/secret")
    async def webhook_secret(http: HttpRequest) -> Response:
        key = context.jobs.store.key(context.authenticate(http, Scope.READ).key_id)
        return answer({"secret": key.webhook_secret if key is not None else ""})

    @routes.get("/balance")
    async def balance(http: HttpRequest) -> Response:
        context.authenticate(http, Scope.READ)
        return answer({"balance": 1000.0})

    @routes.get("/account/balance")
    async def account_balance(http: HttpRequest) -> Response:
        context.authenticate(http, Scope.READ)
        return answer({"balance": 1000.0, "currency": "USD"})

    @routes.get("/account/usage")
    async def account_usage(http: HttpRequest, start_date: str = "", end_date: str = "") -> Response:
        caller = context.authenticate(http, Scope.READ)
        total = _count(context, caller)
        period = f"{start_date or 'start'} to {end_date or 'today'}"
        return answer({"period": period, "total_requests": total, "total_cost": 0.0, "by_model": []})

    @routes.post("/user/usage_stats", openapi_extra=JSON_BODY)
    async def usage_stats(http: HttpRequest) -> Response:
        caller = context.authenticate(http, Scope.READ)
        summary = {
            "total_cost": 0.0,
            "total_requests": _count(context, caller),
            "success_requests": _count(context, caller, State.SUCCEEDED),
        }
        return answer({"per_model_usage": [], "daily_usage": [], "summary": summary})

    @routes.post("/billings/search", openapi_extra=JSON_BODY)
    async def billings(http: HttpRequest) -> Response:
        context.authenticate(http, Scope.READ)
        page = _number({"page": 1, **(await read_object(http))}, "page", 1, 10**6)
        return answer({"page": page, "has_more": False, "items": []})

    @routes.post("/model/pricing", openapi_extra=JSON_BODY)
    async def pricing(http: HttpRequest) -> Response:
        context.authenticate(http, Scope.READ)
        model = require_model(str((await read_object(http)).get("model_id")))
        return answer({"model_id": model.id, "unit_price": 0.0, "currency": "USD"})

    @routes.post("/model/price", openapi_extra=JSON_BODY)
    async def price(http: HttpRequest) -> Response:
        context.authenticate(http, Scope.READ)
        model = require_model(str((await read_object(http)).get("model_id")))
        costs = {"price": 0.0, "discounted_price": 0.0, "discount_rate": 0.0}
        return answer({"model_id": model.id, **costs, "currency": "USD"})

    # Submissions: any other path of two or more segments is a model's id.

    @routes.post("/{vendor}/{name:path}", openapi_extra=JSON_BODY)
    async def submit(
        http: HttpRequest,
        vendor: str,
        name: str,
        webhook: str | None = Query(None, description="URL to call."),
    ) -> Response:
        caller = context.authenticate(http, Scope.RUN)
        model = require_model(f"{vendor}/{name}")
        context.require_queue_capacity()
        body = await read_body(http, context.settings.max_body_bytes)
        enforce = context.settings.enforce_vendor_limits
        # In a thread: decoding a hundred megabytes of base64 would hold up everybody else's polls.
        submission = await asyncio.to_thread(
            read_submission, model, body, http.url.query, vendor_limits=enforce
        )
        record = await submit_job(
            context,
            caller,
            http,
            dialect=NAME,
            label=model.id,
            said={"model": model.id, "input": submission.said_input, "base64": submission.base64},
            asked=submission.asked,
            webhook_url=submission.webhook_url,
        )
        if not submission.sync:
            return answer(prediction(context, record))
        ended = await context.jobs.until_final(record.job.id, context.settings.sync_timeout_s) or record
        if ended.job.state.is_final:
            return answer(await _with_output(context, ended))
        return answer(_still_working(context, ended))

    return routes


async def poll(context: ApiContext, http: HttpRequest, job_id: str) -> Response:
    """How a job is."""
    record = require_job(context, context.authenticate(http, Scope.READ), job_id)
    return answer(await _with_output(context, record))


async def _with_output(context: ApiContext, record: Record) -> dict[str, Any]:
    """The prediction, with the file's content where that was asked for."""
    shown = prediction(context, record)
    if shown["outputs"] and json.loads(record.request.said)["base64"] and record.job.output is not None:
        name = record.job.output.blob
        info = await context.blobs.info(name)
        content = b"".join([part async for part in context.blobs.read(name, 0, info.size if info else 0)])
        shown["outputs"] = [base64.b64encode(content).decode()]
    return shown


def _still_working(context: ApiContext, record: Record) -> dict[str, Any]:
    shown = prediction(context, record)
    shown["status"], shown["code"] = "processing", TIMED_OUT
    shown["error"] = (
        f"Sync mode timed out after {context.settings.sync_timeout_s:g} seconds. The prediction is still "
        f"processing asynchronously. Prediction ID: {record.job.id}. "
        f"Query the result later at: {shown['urls']['get']}"
    )
    return shown


def _uploaded(place: Upload, filename: str, size: int) -> dict[str, Any]:
    return {"type": place.kind, "download_url": place.download_url, "filename": filename, "size": size}


def _filename(value: object) -> str:
    """The last part of a given name; it is shown and its suffix looked at, nothing else."""
    return re.split(r"[/\\]", value)[-1][:255] if isinstance(value, str) and value else "upload"


def _number(given: dict[str, Any], name: str, low: int, high: int) -> int:
    value = given.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ApiError(400, f"{name} must be an integer from {low} to {high}.", "invalid_parameter")
    return value


def _text(given: dict[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise ApiError(400, f"{name} must be a string.", "invalid_parameter")
    return value or None


def _time(given: dict[str, Any], name: str) -> float | None:
    value = given.get(name)
    if value is None or value == "":
        return None
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError):
        raise ApiError(
            400, f"{name} must be a time such as 2026-01-02T03:04:05Z.", "invalid_parameter"
        ) from None


def _count(context: ApiContext, caller: Caller, *states: State) -> int:
    return context.jobs.store.page(caller.tenant, offset=0, limit=1, states=states)[1]


async def _chunks(file: Any) -> AsyncIterator[bytes]:
    while chunk := await file.read(1 << 20):
        yield chunk
