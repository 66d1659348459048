"""Our own dialect's batches: many jobs in one request, taken or refused as a whole, told of once at the end.

A row is a submission to a model id as `wavespeed` takes it, and becomes a job of that dialect like any other.
Mounted with `native`. Facts: docs/http.md.
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

from server.api import wavespeed
from server.api.auth import Caller, Scope
from server.api.context import ApiContext, read_body
from server.api.errors import ApiError
from server.api.native import listed_tenant
from server.api.schemas import JobInput, is_url, json_object, shortened, validate_job_input
from server.api.submission import error_text, idempotency_key, make_request, moment, require_consent
from server.api.wavespeed_models import require_model
from server.jobs.request import Request
from server.jobs.state import Batch, State
from server.store import Record, Tally

TITLE_LENGTH: Final = 200

ROW: Final = {
    "type": "object",
    "properties": {
        "model": {"type": "string", "description": "A model id, as GET /api/v3/models lists them."},
        "input": {"type": "object", "description": "What is submitted to that model."},
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
                        "title": {"type": "string", "maxLength": TITLE_LENGTH},
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
    """A checked row."""

    model: str
    asked: JobInput
    said_input: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Submission:
    """A checked body."""

    rows: tuple[Row, ...]
    title: str
    webhook_url: str | None


def read_submission(context: ApiContext, body: bytes) -> Submission:
    """Check all rows without touching media.

    Raises:
        ApiError: 400; where rows are bad, with all of them.
    """
    given, most = json_object(body), context.settings.max_waiting
    rows, title, webhook_url = given.get("jobs"), given.get("title") or "", given.get("webhook_url") or None
    if not isinstance(rows, list) or not 1 <= len(rows) <= most:
        raise ApiError(400, f"jobs must be a list of 1 to {most} objects.", "invalid_parameter")
    if not isinstance(title, str) or len(title) > TITLE_LENGTH:
        raise ApiError(400, f"title must have at most {TITLE_LENGTH} characters.", "invalid_parameter")
    if webhook_url is not None and not (isinstance(webhook_url, str) and is_url(webhook_url)):
        raise ApiError(400, "webhook_url must be an http or https URL.", "invalid_parameter")
    good, problems = list[Row](), list[dict[str, Any]]()
    for number, row in enumerate(rows):
        try:
            good.append(_read_row(context, row))
        except ApiError as refusal:
            problems.append({"row": number, "code": refusal.slug, "message": refusal.message})
    if problems:
        sentence = f"{len(problems)} of {len(rows)} jobs are wrong, so none was taken: problems has each."
        raise ApiError(400, sentence, "batch_invalid", problems=problems)
    return Submission(tuple(good), title, webhook_url)


def _read_row(context: ApiContext, row: Any) -> Row:
    if not isinstance(row, dict) or not isinstance(row.get("input"), dict):
        raise ApiError(400, "A job must be an object with model and input.", "invalid_parameter")
    if not isinstance(name := row.get("model"), str):
        raise ApiError(400, "The parameter model is missing.", "missing_parameter")
    model, given = require_model(name), wavespeed.normalize_names(row["input"])
    if asked_for := [flag for flag in wavespeed.FLAGS if given.get(flag)]:
        sentence = f"{asked_for[0]} cannot be chosen for a job of a batch."
        raise ApiError(400, sentence, "invalid_parameter")
    asked = validate_job_input(model.form, given, vendor_limits=context.settings.enforce_vendor_limits)
    require_consent(context, asked)
    return Row(model.id, asked, {name: shortened(value) for name, value in given.items()})


async def take(context: ApiContext, caller: Caller, http: HttpRequest, submission: Submission) -> Batch:
    """All jobs into the queue, on disk when this returns, or none."""
    base, requests = context.base_url(http), list[tuple[str, Request]]()
    for row in submission.rows:
        job_id = uuid.uuid4().hex
        said = {"model": row.model, "input": row.said_input, "base64": False}
        request = await make_request(
            context, caller, base, job_id, wavespeed.NAME, row.model, said, row.asked
        )
        requests.append((job_id, request))
    batch = Batch(
        id=uuid.uuid4().hex,
        tenant=caller.tenant,
        key_id=caller.key_id,
        request_id=correlation_id.get() or "-",
        said=json.dumps({"title": submission.title, "base": base}),
        created_at=context.jobs.now(),
        total=len(requests),
        unfinished=len(requests),
        webhook_url=submission.webhook_url,
    )
    return await context.submit_batch(batch, requests, idempotency_key(http))


# --- a batch ---


def batch_object(batch: Batch, tally: Tally, now: float) -> dict[str, Any]:
    """How far a batch is."""
    said = json.loads(batch.said)
    counts = {state.value: tally.counts[state] for state in State}
    begun = tally.counts.total() - tally.counts[State.WAITING]
    state = "ended" if batch.finished_at is not None else "running" if begun else "waiting"
    running = tally.counts[State.RUNNING]
    return {
        "id": batch.id,
        "tenant": batch.tenant,
        "title": said["title"],
        "state": state,
        "is_stopping": state == "running" and tally.counts[State.WAITING] == 0 and tally.stopping == running,
        "url": f"{said['base']}/api/native/v1/batches/{batch.id}",
        "created_at": moment(batch.created_at),
        "finished_at": None if batch.finished_at is None else moment(batch.finished_at),
        "total": batch.total,
        "counts": counts | {"deleted": batch.total - tally.counts.total()},
        "progress": _progress(batch, tally, now),
    }


def _progress(batch: Batch, tally: Tally, now: float) -> dict[str, Any]:
    """Jobs ended, the share of the whole that is done, and seconds to go at the speed so far."""
    rendered = (run.done / run.total for run in tally.running if run.stage == "render" and run.total > 0)
    done = batch.total - batch.unfinished
    share = min(1.0, (done + sum(rendered)) / batch.total)
    left_s = None
    if batch.finished_at is None and share > 0 and tally.began_at is not None:
        left_s = round((now - tally.began_at) * (1 - share) / share, 1)
    return {"done": done, "share": round(share, 4), "left_s": left_s}


def row_object(context: ApiContext, record: Record, base: str) -> dict[str, Any]:
    """What became of a row."""
    job = record.job
    done = job.output if job.state is State.SUCCEEDED else None
    return {
        "row": job.batch_row,
        "id": job.id,
        "state": job.state,
        "output": None if done is None else context.file_url(base, done.blob, job.created_at),
        "failure": job.failure and {"code": job.failure.code, "message": error_text(job.failure)},
    }


def webhook_body(context: ApiContext, batch: Batch) -> bytes:
    """The batch as it is; its jobs are behind its URL."""
    tally = context.jobs.store.tallies([batch.id])[batch.id]
    return json.dumps(batch_object(batch, tally, context.jobs.now()), separators=(",", ":")).encode()


# --- routes ---


def router(context: ApiContext) -> APIRouter:
    """All endpoints, to be mounted under `native.PREFIX`."""
    routes = APIRouter()

    def visible(caller: Caller, batch_id: str) -> Batch:
        everybody = Scope.ADMIN in caller.scopes
        batch = context.jobs.store.batch(batch_id, None if everybody else caller.tenant)
        if batch is None:
            raise ApiError(404, f"There is no batch {batch_id[:64]!r}.", "not_found")
        return batch

    def shown(batches: list[Batch]) -> list[dict[str, Any]]:
        tallies, now = context.jobs.store.tallies([batch.id for batch in batches]), context.jobs.now()
        return [batch_object(batch, tallies[batch.id], now) for batch in batches]

    @routes.post("/batches", openapi_extra=BODY)
    async def submit(http: HttpRequest) -> Response:
        caller = context.authenticate(http, Scope.RUN)
        context.require_queue_capacity()
        body = await read_body(http, context.settings.max_body_bytes)
        submission = await asyncio.to_thread(read_submission, context, body)
        context.require_queue_capacity(len(submission.rows))
        batch = await take(context, caller, http, submission)
        records, _ = context.jobs.store.page(None, offset=0, limit=batch.total, batch_id=batch.id)
        jobs = [row_object(context, record, context.base_url(http)) for record in records]
        return JSONResponse(shown([batch])[0] | {"jobs": jobs})

    @routes.get("/batches")
    async def listed(
        http: HttpRequest,
        tenant: Annotated[str | None, Query(description="Another's, or `*`: needs the scope admin.")] = None,
        offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
        limit: Annotated[int, Query(ge=1, le=100)] = 25,
    ) -> Response:
        caller = context.authenticate(http, Scope.READ)
        found, total = context.jobs.store.batches(listed_tenant(caller, tenant), offset=offset, limit=limit)
        return JSONResponse({"total": total, "batches": shown(found)})

    @routes.get("/batches/{batch_id}")
    async def look(http: HttpRequest, batch_id: str) -> Response:
        return JSONResponse(shown([visible(context.authenticate(http, Scope.READ), batch_id)])[0])

    @routes.get("/batches/{batch_id}/jobs")
    async def jobs(
        http: HttpRequest,
        batch_id: str,
        offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> Response:
        batch, base = visible(context.authenticate(http, Scope.READ), batch_id), context.base_url(http)
        records, total = context.jobs.store.page(None, offset=offset, limit=limit, batch_id=batch.id)
        return JSONResponse(
            {"total": total, "jobs": [row_object(context, record, base) for record in records]}
        )

    @routes.post("/batches/{batch_id}/cancel")
    async def cancel(http: HttpRequest, batch_id: str) -> Response:
        caller = context.authenticate(http, Scope.RUN)
        if (batch := context.jobs.store.batch(batch_id, caller.tenant)) is None:
            raise ApiError(404, f"There is no batch {batch_id[:64]!r}.", "not_found")
        await context.jobs.cancel_batch(batch.id)
        return JSONResponse(shown([visible(caller, batch_id)])[0])

    return routes
