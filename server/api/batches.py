"""Batches of our own API: many jobs in one request, stored or rejected as a whole, with one webhook.

A row is a submission to a model id as in `wavespeed`, and becomes a job of that dialect. Mounted with
`native`. The endpoints are described in docs/http.md.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import dataclass
from typing import Annotated, Any, Final

from asgi_correlation_id import correlation_id
from fastapi import APIRouter, Query
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from server.api import native, wavespeed
from server.api.auth import Caller, Scope
from server.api.context import ApiContext, link_deleted
from server.api.errors import ApiError
from server.api.schemas import (
    JobInput,
    echo_input,
    is_url,
    parse_json_object,
    read_body,
    validate_job_input,
)
from server.api.submission import (
    InlineInputs,
    build_request,
    failure_message,
    find_missing_blobs,
    format_time,
    idempotency_key,
    own_links,
    request_digest,
    require_consent,
    require_deliverable,
    require_same_request,
)
from server.api.wavespeed_models import require_model
from server.jobs.request import Request
from server.jobs.state import Batch, State
from server.store import BatchCounts, Record

MAX_TITLE_LENGTH: Final = 200

ROW: Final = {
    "type": "object",
    "properties": {
        "model": {"type": "string", "description": "A model id, from GET /api/v3/models."},
        "input": {"type": "object", "description": "The input of that model."},
    },
    "required": ["model", "input"],
}
BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "jobs": {"type": "array", "minItems": 1, "items": ROW},
                        "title": {"type": "string", "maxLength": MAX_TITLE_LENGTH},
                        "webhook_url": {"type": "string", "description": "Called when all jobs have ended."},
                    },
                    "required": ["jobs"],
                }
            }
        },
    }
}


# --- a submission ---


@dataclass(frozen=True, slots=True)
class Row:
    """A validated row."""

    model: str
    job_input: JobInput
    echoed_input: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Submission:
    """A validated body."""

    rows: tuple[Row, ...]
    title: str
    webhook_url: str | None


def read_submission(context: ApiContext, body: bytes | bytearray) -> Submission:
    """Validate all rows without opening media.

    Raises:
        ApiError: 400, with the problems of all wrong rows.
    """
    fields, settings = parse_json_object(body), context.settings
    max_rows = min(settings.max_waiting, settings.max_waiting_per_tenant)
    rows, title, webhook_url = (
        fields.get("jobs"),
        fields.get("title") or "",
        fields.get("webhook_url") or None,
    )
    if not isinstance(rows, list) or not 1 <= len(rows) <= max_rows:
        raise ApiError(400, f"jobs must be a list of 1 to {max_rows} objects.", "invalid_parameter")
    if not isinstance(title, str) or len(title) > MAX_TITLE_LENGTH:
        raise ApiError(400, f"title must have at most {MAX_TITLE_LENGTH} characters.", "invalid_parameter")
    if webhook_url is not None and not (isinstance(webhook_url, str) and is_url(webhook_url)):
        raise ApiError(400, "webhook_url must be an http or https URL.", "invalid_parameter")
    valid_rows, problems = list[Row](), list[dict[str, Any]]()
    for number, row in enumerate(rows):
        try:
            valid_rows.append(_read_row(context, row))
        except ApiError as error:
            problems.append(_row_problem(number, error))
    _require_no_problems(problems, len(rows))
    return Submission(tuple(valid_rows), title, webhook_url)


def _row_problem(number: int, error: ApiError) -> dict[str, Any]:
    return {"row": number, "code": error.code, "message": error.message}


def _require_no_problems(problems: list[dict[str, Any]], count: int) -> None:
    if problems:
        sentence = f"{len(problems)} of {count} jobs are invalid, so none was submitted: see problems."
        raise ApiError(400, sentence, "batch_invalid", problems=problems)


def _read_row(context: ApiContext, row: Any) -> Row:
    if not isinstance(row, dict) or not isinstance(row.get("input"), dict):
        raise ApiError(400, "A job must be an object with model and input.", "invalid_parameter")
    if not isinstance(name := row.get("model"), str):
        raise ApiError(400, "The parameter model is missing.", "missing_parameter")
    model, fields = require_model(name), wavespeed.resolve_aliases(row["input"])
    if flags := [flag for flag in wavespeed.FLAGS if fields.get(flag)]:
        sentence = f"{flags[0]} cannot be used in a job of a batch."
        raise ApiError(400, sentence, "invalid_parameter")
    vendor_limits = context.settings.enforce_vendor_limits
    job_input = validate_job_input(model.schema, fields, vendor_limits=vendor_limits)
    require_consent(context, job_input)
    return Row(model.id, job_input, echo_input(model.schema, fields))


async def submit_batch(
    context: ApiContext, caller: Caller, http: HttpRequest, submission: Submission, digest: str
) -> Batch:
    """Store all jobs of a batch, or none; they are on disk when this returns.

    Args:
        digest: of the HTTP request.

    Raises:
        ApiError: 400, an own link of a row, or the webhook, cannot be used.
    """
    await require_deliverable(context, submission.webhook_url)
    job_ids = [uuid.uuid4().hex for _ in submission.rows]
    async with InlineInputs(context, job_ids) as inputs:
        batch = await _build_batch(context, caller, http, submission, digest, job_ids)
        stored = await context.submit_batch(*batch, idempotency_key(http))
        inputs.is_used = stored.id == batch[0].id
    return stored


def _find_repeated(context: ApiContext, caller: Caller, http: HttpRequest) -> Batch | None:
    """Return the batch that was submitted with the same idempotency key."""
    key = idempotency_key(http)
    return None if key is None else context.jobs.store.get_batch_by_idempotency_key(caller.tenant, key)


async def _build_batch(
    context: ApiContext,
    caller: Caller,
    http: HttpRequest,
    submission: Submission,
    digest: str,
    job_ids: list[str],
) -> tuple[Batch, list[tuple[str, Request]]]:
    base, requests, problems = context.base_url(http), list[tuple[str, Request]](), list[dict[str, Any]]()
    links = list[tuple[int, str, str]]()  # row, URL, blob
    for number, (job_id, row) in enumerate(zip(job_ids, submission.rows, strict=True)):
        dialect_state = {"model": row.model, "input": row.echoed_input, "base64": False}
        try:
            request = await build_request(
                context, caller, base, job_id, wavespeed.NAME, row.model, dialect_state, row.job_input
            )
        except ApiError as error:
            problems.append(_row_problem(number, error))
        else:
            requests.append((job_id, request))
            links += [(number, url, blob) for url, blob in own_links(row.job_input, request).items()]
    missing = await find_missing_blobs(context, [blob for _, _, blob in links])
    problems += [_row_problem(number, link_deleted(url)) for number, url, blob in links if blob in missing]
    _require_no_problems(problems, len(submission.rows))
    batch = Batch(
        id=uuid.uuid4().hex,
        tenant=caller.tenant,
        key_id=caller.key_id,
        request_id=correlation_id.get() or "-",
        dialect_state=json.dumps({"title": submission.title, "base": base, "digest": digest}),
        created_at=context.jobs.now(),
        total=len(requests),
        unfinished=len(requests),
        webhook_url=submission.webhook_url,
    )
    return batch, requests


# --- a batch ---


def batch_object(batch: Batch, jobs: BatchCounts, now: float) -> dict[str, Any]:
    """Build the object of a batch: its state, counts and progress."""
    dialect_state = _read_dialect_state(batch)
    counts = {state.value: jobs.counts[state] for state in State}
    has_started = jobs.counts.total() > jobs.counts[State.WAITING]
    state = "ended" if batch.finished_at is not None else "running" if has_started else "waiting"
    running = jobs.counts[State.RUNNING]
    return {
        "id": batch.id,
        "tenant": batch.tenant,
        "title": dialect_state["title"],
        "state": state,
        "is_stopping": state == "running" and jobs.counts[State.WAITING] == 0 and jobs.cancelling == running,
        "url": f"{dialect_state['base']}{native.PREFIX}/batches/{batch.id}",
        "created_at": format_time(batch.created_at),
        "finished_at": None if batch.finished_at is None else format_time(batch.finished_at),
        "total": batch.total,
        "counts": counts | {"deleted": batch.total - jobs.counts.total()},
        "progress": _progress_object(batch, jobs, now),
    }


def _read_dialect_state(batch: Batch) -> dict[str, Any]:
    """Return what was stored for answers about a batch; what an unreadable row lacks has a default."""
    defaults: dict[str, Any] = {"title": "", "base": ""}
    try:
        return {**defaults, **json.loads(batch.dialect_state)}
    except (ValueError, TypeError):
        return defaults


def _progress_object(batch: Batch, jobs: BatchCounts, now: float) -> dict[str, Any]:
    """Build the number of ended jobs, the finished share, and the seconds left at the speed so far."""
    ended = batch.total - jobs.counts[State.WAITING] - jobs.counts[State.RUNNING]
    share = min(1.0, (ended + sum(run.rendered_share for run in jobs.running)) / batch.total)
    remaining_s = None
    if batch.finished_at is None and share > 0 and jobs.started_at is not None:
        remaining_s = round((now - jobs.started_at) * (1 - share) / share, 1)
    return {"done": ended, "share": round(share, 4), "left_s": remaining_s}


def row_object(context: ApiContext, record: Record, base: str) -> dict[str, Any]:
    """Build the object of a row: its job's state, result and failure."""
    job = record.job
    output = job.output if job.state is State.SUCCEEDED else None
    return {
        "row": job.batch_row,
        "id": job.id,
        "state": job.state,
        "output": None if output is None else context.file_url(base, output.blob, job.created_at),
        "failure": job.failure and {"code": job.failure.code, "message": failure_message(job.failure)},
    }


def webhook_body(context: ApiContext, batch: Batch) -> bytes:
    """Build the body of the webhook: the batch object, whose URL leads to the jobs."""
    jobs = context.jobs.store.count_batch_jobs([batch.id])[batch.id]
    return json.dumps(batch_object(batch, jobs, context.jobs.now()), separators=(",", ":")).encode()


# --- routes ---


def create_router(context: ApiContext) -> APIRouter:
    """Create all endpoints, to be mounted under `native.PREFIX`."""
    router = APIRouter()

    def require_batch(batch_id: str, tenant: str | None) -> Batch:
        batch = context.jobs.store.get_batch(batch_id, tenant)
        if batch is None:
            raise ApiError(404, f"There is no batch {batch_id[:64]!r}.", "not_found")
        return batch

    def visible_tenant(caller: Caller) -> str | None:
        return None if Scope.ADMIN in caller.scopes else caller.tenant

    def batch_objects(batches: list[Batch]) -> list[dict[str, Any]]:
        counts = context.jobs.store.count_batch_jobs([batch.id for batch in batches])
        now = context.jobs.now()
        return [batch_object(batch, counts[batch.id], now) for batch in batches]

    @router.post("/batches", openapi_extra=BODY)
    async def create_batch(http: HttpRequest) -> Response:
        caller = context.authenticate(http, Scope.RUN)
        if _find_repeated(context, caller, http) is None:
            context.require_queue_capacity(caller)
        body = await read_body(http, context.settings.max_body_bytes)
        digest, batch = await request_digest(http, body), _find_repeated(context, caller, http)
        if batch is None:
            submission = await asyncio.to_thread(read_submission, context, body)
            context.require_queue_capacity(caller, len(submission.rows))
            batch = await submit_batch(context, caller, http, submission, digest)
        require_same_request(_read_dialect_state(batch).get("digest"), digest)
        records, _ = context.jobs.store.page(None, offset=0, limit=batch.total, batch_id=batch.id)
        jobs = [row_object(context, record, context.base_url(http)) for record in records]
        return JSONResponse(batch_objects([batch])[0] | {"jobs": jobs})

    @router.get("/batches")
    async def list_batches(
        http: HttpRequest,
        tenant: Annotated[str | None, Query(description="Another's, or `*`: needs the scope admin.")] = None,
        offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
        limit: Annotated[int, Query(ge=1, le=100)] = 25,
    ) -> Response:
        caller = context.authenticate(http, Scope.READ)
        batches, total = context.jobs.store.page_batches(
            native.tenant_filter(caller, tenant), offset=offset, limit=limit
        )
        return JSONResponse({"total": total, "batches": batch_objects(batches)})

    @router.get("/batches/{batch_id}")
    async def get_batch(http: HttpRequest, batch_id: str) -> Response:
        caller = context.authenticate(http, Scope.READ)
        return JSONResponse(batch_objects([require_batch(batch_id, visible_tenant(caller))])[0])

    @router.get("/batches/{batch_id}/jobs")
    async def list_batch_jobs(
        http: HttpRequest,
        batch_id: str,
        offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> Response:
        caller = context.authenticate(http, Scope.READ)
        batch, base = require_batch(batch_id, visible_tenant(caller)), context.base_url(http)
        records, total = context.jobs.store.page(None, offset=offset, limit=limit, batch_id=batch.id)
        jobs = [row_object(context, record, base) for record in records]
        return JSONResponse({"total": total, "jobs": jobs})

    @router.post("/batches/{batch_id}/cancel")
    async def cancel_batch(http: HttpRequest, batch_id: str) -> Response:
        caller = context.authenticate(http, Scope.RUN)
        batch = require_batch(batch_id, caller.tenant)
        await context.jobs.cancel_batch(batch.id)
        return JSONResponse(batch_objects([require_batch(batch_id, visible_tenant(caller))])[0])

    return router
