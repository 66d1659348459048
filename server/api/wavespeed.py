"""WaveSpeed's API, translated field by field; mounted under /api/v3 and /api/v2.

A submission becomes a `Request`, a job becomes a prediction object. docs/http.md lists the rules that real
clients depend on. Uploads are in `uploads`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qs, unquote

from fastapi import APIRouter, Query
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse

from server.api.auth import Caller, Scope
from server.api.context import ApiContext
from server.api.errors import ApiError
from server.api.schemas import (
    JobInput,
    echo_input,
    is_url,
    parse_json_object,
    read_body,
    read_json_object,
    release_body,
    validate_job_input,
)
from server.api.submission import (
    failure_message,
    format_time,
    read_dialect_state,
    request_digest,
    require_job,
    require_queue_capacity,
    submit_job,
)
from server.api.usage import usage_by_day, usage_by_model
from server.api.wavespeed_models import MODELS, Model, catalogue_entry, require_model
from server.jobs.state import Failure, Job, State
from server.store import Record

NAME: Final = "wavespeed"
PREFIXES: Final = ("/api/v3", "/api/v2")

CANCEL_WAIT_S: Final = 8.0
"""How long a cancel request waits for the job to stop, so that its answer shows the end."""

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
BASE64_PIECE_BYTES: Final = 3 << 18
"""Of a file in base64; a multiple of three, so that only the last piece is padded."""

ALIASES: Final = {"video_url": "video", "audio_url": "audio", "image_url": "image"}
FLAGS: Final = ("enable_sync_mode", "enable_base64_output", "webhook_url", "webhook")


# --- answers ---


def error_response(error: ApiError) -> JSONResponse:
    """Render an error in this dialect."""
    body = {"code": error.status, "message": error.message, "error": error.message}
    if error.code is not None:
        body["error_code"] = error.code
    return JSONResponse(body, error.status, error.headers)


def success_response(data: Any) -> JSONResponse:
    """Wrap an answer in the envelope of this dialect."""
    return JSONResponse({"code": 200, "message": "success", "data": data})


# --- a submission ---


@dataclass(frozen=True, slots=True)
class Submission:
    """A validated body."""

    job_input: JobInput
    echoed_input: dict[str, Any]
    webhook_url: str | None
    sync: bool
    base64: bool


def read_submission(
    model: Model, body: bytes | bytearray, raw_query: str, *, vendor_limits: bool
) -> Submission:
    """Validate a body without opening media.

    Raises:
        ApiError: 400 with the name of the wrong field.
    """
    fields = resolve_aliases(parse_json_object(body))
    webhook_url = _read_webhook(raw_query) or fields.get("webhook_url") or None
    flags = {name: _read_flag(fields, name) for name in ("enable_sync_mode", "enable_base64_output")}
    if webhook_url is not None:
        if flags["enable_base64_output"]:
            raise ApiError(400, BASE64_AND_WEBHOOK, "invalid_parameter")
        if not isinstance(webhook_url, str) or not is_url(webhook_url):
            raise ApiError(400, "webhook must be an http or https URL.", "invalid_parameter")
    return Submission(
        job_input=validate_job_input(model.schema, fields, vendor_limits=vendor_limits),
        echoed_input=echo_input(model.schema, fields),
        webhook_url=webhook_url,
        sync=flags["enable_sync_mode"],
        base64=flags["enable_base64_output"],
    )


def resolve_aliases(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a body in which each input has its first name."""
    return {ALIASES.get(name, name): value for name, value in fields.items()}


def _read_webhook(raw_query: str) -> str | None:
    """Read the query's webhook; some clients do not encode it, and then it is the rest of the query."""
    before, separator, value = raw_query.partition("webhook=")
    if not separator or (before and not before.endswith("&")):
        return None
    if "://" in value:
        return unquote(value)
    return parse_qs(raw_query).get("webhook", [None])[0]


def _read_flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise ApiError(400, f"{name} must be true or false.", "invalid_parameter")


# --- a prediction ---


def prediction_object(context: ApiContext, record: Record) -> dict[str, Any]:
    """Build the prediction object; it is complete in every state and has no nulls."""
    job, dialect_state = record.job, read_dialect_state(record.request)
    base = dialect_state["base"]
    is_done = job.state is State.SUCCEEDED and job.output is not None
    outputs = [context.file_url(base, job.output.blob, job.created_at)] if is_done and job.output else []
    start, end = job.started_at, job.finished_at
    total_s = end - start if start is not None and end is not None else 0.0
    device_s = job.output.device_s if job.output is not None else 0.0
    prediction: dict[str, Any] = {
        "id": job.id,
        "model": dialect_state["model"],
        "input": dialect_state["input"],
        "outputs": outputs,
        "urls": {"get": f"{base}/api/v3/predictions/{job.id}/result"},
        "has_nsfw_contents": [bool(job.output and job.output.is_nsfw)] * len(outputs),
        "status": _status(job),
        "created_at": format_time(job.created_at),
        "error": "",
        "executionTime": round(total_s * 1000),
        "timings": {"inference": round(device_s * 1000)},
    }
    if job.state is State.RUNNING and job.progress is not None:
        progress = job.progress
        prediction["timings"] |= {
            "stage": progress.stage,
            "done": progress.done,
            "total": progress.total,
            "per_second": progress.per_s,
        }
    if job.state is State.WAITING and (turn := context.jobs.queue_position(job.id)) is not None:
        prediction["timings"] |= {"queue_position": turn.position}
        if (wait_s := context.jobs.estimate_wait_s(turn)) is not None:
            prediction["timings"] |= {"estimated_start": format_time(context.jobs.now() + wait_s)}
    if job.state is State.CANCELLED:
        prediction["error"] = "The task was cancelled."
    if job.output is not None and job.output.warnings:
        prediction["warnings"] = list(job.output.warnings)
    if job.failure is not None:
        prediction["error"], prediction["code"] = failure_message(job.failure), _error_code(job.failure)
    return prediction


def _status(job: Job) -> str:
    """Return the status; a job that is started again after its worker died is still being processed."""
    return STATUS[State.RUNNING if job.state is State.WAITING and job.fence else job.state]


def _error_code(failure: Failure) -> int:
    if failure.code in CODES:
        return CODES[failure.code]
    if failure.code.startswith("url_"):
        return UNREACHABLE
    return INVALID if failure.code.startswith(("media_", "input_")) else FAILED


def webhook_body(context: ApiContext, record: Record) -> bytes:
    """Build the body of a webhook: the prediction object without an envelope."""
    return json.dumps(prediction_object(context, record), separators=(",", ":")).encode()


# --- routes ---


def create_router(context: ApiContext) -> APIRouter:
    """Create all endpoints, to be mounted under each of `PREFIXES`; the catch-all of model ids is last."""
    router = APIRouter()

    # Predictions.

    @router.get("/predictions/{job_id}/result")
    @router.get("/predictions/{job_id}")
    async def get_prediction(http: HttpRequest, job_id: str) -> Response:
        return await poll_prediction(context, http, job_id)

    @router.post("/predictions/{job_id}/cancel")
    async def cancel_prediction(http: HttpRequest, job_id: str) -> Response:
        record = require_job(context, context.authenticate(http, Scope.RUN), job_id)
        if not record.job.state.is_final:
            await context.jobs.cancel(job_id)
            record = await context.jobs.wait_until_final(job_id, CANCEL_WAIT_S) or record
        return success_response(prediction_object(context, record))

    @router.delete("/predictions/{job_id}")
    async def delete_prediction(http: HttpRequest, job_id: str) -> Response:
        caller = context.authenticate(http, Scope.RUN)
        require_job(context, caller, job_id)
        await context.delete_jobs(caller, [job_id])
        return success_response({"id": job_id, "status": "deleted"})

    @router.post("/predictions/delete", openapi_extra=JSON_BODY)
    async def delete_predictions(http: HttpRequest) -> Response:
        caller = context.authenticate(http, Scope.RUN)
        ids = (await read_json_object(http)).get("ids")
        if not isinstance(ids, list) or len(ids) > 1000 or not all(isinstance(name, str) for name in ids):
            raise ApiError(400, "ids must be a list of at most 1000 prediction ids.", "invalid_parameter")
        return success_response({"deleted_count": await context.delete_jobs(caller, ids)})

    @router.post("/predictions", openapi_extra=JSON_BODY)
    async def list_predictions(http: HttpRequest) -> Response:
        caller = context.authenticate(http, Scope.READ)
        fields = await read_json_object(http)
        page, size = read_int(fields, "page", 1, 10**6), read_int(fields, "page_size", 1, 100)
        status = fields.get("status")
        states = [state for state, name in STATUS.items() if name == status]
        if status and not states:
            raise ApiError(400, f"status must be one of {', '.join(STATUS.values())}.", "invalid_parameter")
        records, total = context.jobs.store.page(
            caller.tenant,
            offset=(page - 1) * size,
            limit=size,
            states=states,
            endpoint=_read_text(fields, "model"),
            created_from=_read_time(fields, "created_after"),
            created_to=_read_time(fields, "created_before"),
        )
        items = [prediction_object(context, record) for record in records]
        return success_response({"page": page, "total": total, "items": items})

    # Catalogue and account: nothing costs anything here.

    @router.get("/models")
    async def list_models(http: HttpRequest) -> Response:
        context.authenticate(http, Scope.READ)
        base = context.base_url(http)
        entries = [catalogue_entry(model, base, number) for number, model in enumerate(MODELS.values())]
        return success_response(entries)

    @router.get("/webhook/secret")
    async def get_webhook_secret(http: HttpRequest) -> Response:
        key = context.jobs.store.get_key(context.authenticate(http, Scope.READ).key_id)
        return success_response({"secret": key.webhook_secret if key is not None else ""})

    @router.get("/balance")
    async def get_balance(http: HttpRequest) -> Response:
        context.authenticate(http, Scope.READ)
        return success_response({"balance": 1000.0})

    @router.get("/account/balance")
    async def get_account_balance(http: HttpRequest) -> Response:
        context.authenticate(http, Scope.READ)
        return success_response({"balance": 1000.0, "currency": "USD"})

    @router.get("/account/usage")
    async def get_account_usage(http: HttpRequest, start_date: str = "", end_date: str = "") -> Response:
        caller = context.authenticate(http, Scope.READ)
        dates = {"start_date": start_date, "end_date": end_date}
        since, until = _read_time(dates, "start_date"), _read_time(dates, "end_date")
        rows = await asyncio.to_thread(context.jobs.store.usage, caller.tenant, since, until)
        return success_response(
            {
                "period": f"{start_date or 'start'} to {end_date or 'today'}",
                "total_requests": sum(row.jobs for row in rows),
                "total_cost": 0.0,
                "by_model": usage_by_model(rows),
            }
        )

    @router.post("/user/usage_stats", openapi_extra=JSON_BODY)
    async def get_usage_stats(http: HttpRequest) -> Response:
        caller = context.authenticate(http, Scope.READ)
        fields = await read_json_object(http)
        since, until = _read_time(fields, "start_time"), _read_time(fields, "end_time")
        rows = await asyncio.to_thread(context.jobs.store.usage, caller.tenant, since, until)
        if (model := _read_text(fields, "model_uuid")) is not None:
            rows = [row for row in rows if row.model == model]
        summary = {
            "total_cost": 0.0,
            "total_requests": sum(row.jobs for row in rows),
            "success_requests": sum(row.succeeded for row in rows),
        }
        usage = {"per_model_usage": usage_by_model(rows), "daily_usage": usage_by_day(rows)}
        return success_response({**usage, "summary": summary})

    @router.post("/billings/search", openapi_extra=JSON_BODY)
    async def search_billings(http: HttpRequest) -> Response:
        context.authenticate(http, Scope.READ)
        page = read_int({"page": 1, **(await read_json_object(http))}, "page", 1, 10**6)
        return success_response({"page": page, "has_more": False, "items": []})

    @router.post("/model/pricing", openapi_extra=JSON_BODY)
    async def get_pricing(http: HttpRequest) -> Response:
        context.authenticate(http, Scope.READ)
        model = require_model(str((await read_json_object(http)).get("model_id")))
        return success_response({"model_id": model.id, "unit_price": 0.0, "currency": "USD"})

    @router.post("/model/price", openapi_extra=JSON_BODY)
    async def get_price(http: HttpRequest) -> Response:
        context.authenticate(http, Scope.READ)
        model = require_model(str((await read_json_object(http)).get("model_id")))
        costs = {"price": 0.0, "discounted_price": 0.0, "discount_rate": 0.0}
        return success_response({"model_id": model.id, **costs, "currency": "USD"})

    # Submissions: any other path of two or more segments is a model id.

    @router.post("/{vendor}/{name:path}", openapi_extra=JSON_BODY)
    async def run_model(
        http: HttpRequest,
        vendor: str,
        name: str,
        webhook: str | None = Query(None, description="URL to call when the job has ended."),
    ) -> Response:
        caller = context.authenticate(http, Scope.RUN)
        model = require_model(f"{vendor}/{name}")
        require_queue_capacity(context, caller, http)
        record, is_sync = await _submit(context, caller, http, model)
        release_body(http)
        if not is_sync:
            return success_response(prediction_object(context, record))
        latest = await context.jobs.wait_until_final(record.job.id, context.settings.sync_timeout_s) or record
        if latest.job.state.is_final:
            return await _content_response(context, latest)
        return success_response(_timed_out_prediction(context, latest))

    return router


async def _submit(
    context: ApiContext, caller: Caller, http: HttpRequest, model: Model
) -> tuple[Record, bool]:
    """Read and store a submission, whose body is not in memory afterwards; returns also whether to wait."""
    body = await read_body(http, context.settings.max_body_bytes)
    # In a thread: decoding 100 MB of base64 would block all other requests.
    submission = await asyncio.to_thread(
        read_submission,
        model,
        body,
        http.url.query,
        vendor_limits=context.settings.enforce_vendor_limits,
    )
    record = await submit_job(
        context,
        caller,
        http,
        dialect=NAME,
        endpoint=model.id,
        dialect_state={
            "model": model.id,
            "input": submission.echoed_input,
            "base64": submission.base64,
        },
        job_input=submission.job_input,
        webhook_url=submission.webhook_url,
        digest=await request_digest(http, body),
    )
    return record, submission.sync


async def poll_prediction(context: ApiContext, http: HttpRequest, job_id: str) -> Response:
    """Answer a poll; the router and `FastPollMiddleware` both call this."""
    record = require_job(context, context.authenticate(http, Scope.READ), job_id)
    return await _content_response(context, record)


async def _content_response(context: ApiContext, record: Record) -> Response:
    """Answer with the prediction; in base64 output mode the file's content replaces its link.

    The content is read and encoded in pieces as the client takes them: it is never in memory as a whole.
    """
    prediction = prediction_object(context, record)
    output, is_base64 = record.job.output, read_dialect_state(record.request)["base64"]
    if not is_base64 or not prediction["outputs"] or output is None:
        return success_response(prediction)
    info = await context.blobs.info(output.blob)
    size, max_bytes = 0 if info is None else info.size, context.settings.max_base64_output_bytes
    if size > max_bytes:
        sentence = f"The result has {size / 1e6:.0f} MB; base64 is limited to {max_bytes / 1e6:.0f} MB here."
        prediction["warnings"] = [*prediction.get("warnings", []), f"{sentence} Download it from its link."]
        return success_response(prediction)
    placeholder = secrets.token_hex(16)
    body = bytes(success_response(prediction | {"outputs": [placeholder]}).body)
    head, _, tail = body.partition(placeholder.encode())

    async def stream() -> AsyncIterator[bytes]:
        yield head
        for start in range(0, size, BASE64_PIECE_BYTES):
            stop = min(size, start + BASE64_PIECE_BYTES)
            parts = [part async for part in context.blobs.read(output.blob, start, stop)]
            yield base64.b64encode(b"".join(parts))
        yield tail

    length = len(head) + (size + 2) // 3 * 4 + len(tail)
    headers = {"Content-Length": str(length)}
    return StreamingResponse(stream(), headers=headers, media_type="application/json")


def _timed_out_prediction(context: ApiContext, record: Record) -> dict[str, Any]:
    prediction = prediction_object(context, record)
    prediction["status"], prediction["code"] = "processing", TIMED_OUT
    prediction["error"] = (
        f"Sync mode timed out after {context.settings.sync_timeout_s:g} seconds. The prediction is still "
        f"processing asynchronously. Prediction ID: {record.job.id}. "
        f"Query the result later at: {prediction['urls']['get']}"
    )
    return prediction


# --- fields of a body ---


def read_int(fields: dict[str, Any], name: str, low: int, high: int) -> int:
    """Return an integer field.

    Raises:
        ApiError: 400, it is missing or outside of [low, high].
    """
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        limits = f"from {low} to {high}" if high < 2**63 else f"of at least {low}"
        raise ApiError(400, f"{name} must be an integer {limits}.", "invalid_parameter")
    return value


def _read_text(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise ApiError(400, f"{name} must be a string.", "invalid_parameter")
    return value or None


def _read_time(fields: dict[str, Any], name: str) -> float | None:
    value = fields.get(name)
    if value is None or value == "":
        return None
    try:
        time = datetime.fromisoformat(value)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError):
        raise ApiError(
            400, f"{name} must be a time such as 2026-01-02T03:04:05Z.", "invalid_parameter"
        ) from None
