"""Our own dialect: what the foreign ones have no words for. Mounted under /api/native/v1.

Looks only: jobs of any dialect in full, their events as they happen, what can be watched of them already,
what content credentials are worth, the server's health, the caller. Submitting, uploading, cancelling and
deleting are the other dialects'. Facts: docs/http.md.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse

from server.api import studio, wavespeed
from server.api.auth import Caller, Scope
from server.api.context import ApiContext, BodyTooLargeError
from server.api.errors import ApiError
from server.api.submission import error_text, moment
from server.jobs.state import State
from server.storage.blobs import StorageAwayError, preview_folder, still_blob
from server.store import DatabaseAwayError, Record
from server.workers.registry import Roster, WorkerStatus
from server.workers.verification import NotVerifiedError, Verifier

PREFIX: Final = "/api/native/v1"
EVERYBODY: Final = "*"

HEARTBEAT_S: Final = 15.0
"""Proxies close streams in which nothing moves."""

LOOK_EVERY_S: Final = 1.0
"""The place in the queue changes without a change of the job."""

SPEED_JOBS: Final = 20
"""The latest so many results tell how fast the server is."""

FILE_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}

VERIFYING: Final = ".verify-"
"""So begins the name of a folder in the data folder whose file is being looked at."""

Workers = Callable[[], Sequence[WorkerStatus]]
"""Returns the workers of this process, as `Supervisor.workers`."""


def error_response(refusal: ApiError) -> JSONResponse:
    """A refused request, as this dialect says it."""
    body: dict[str, Any] = {"error": refusal.slug or "refused", "message": refusal.message}
    if refusal.problems:
        body["problems"] = list(refusal.problems)
    return JSONResponse(body, refusal.status, refusal.headers)


# --- a job ---


def listed_tenant(caller: Caller, tenant: str | None) -> str | None:
    """Whose rows a list shows: the caller's own, or with the scope admin another's; None: everybody's."""
    whose = tenant or caller.tenant
    if whose != caller.tenant:
        caller.require(Scope.ADMIN)
    return None if whose == EVERYBODY else whose


async def job_object(context: ApiContext, record: Record, base: str) -> dict[str, Any]:
    """All there is to know about a job; nulls where there is nothing yet."""
    job, said = record.job, json.loads(record.request.said)
    shown_input = said["input"]
    title = shown_input.get("title")
    return {
        "id": job.id,
        "tenant": job.tenant,
        "state": job.state,
        "is_stopping": job.cancel_asked and not job.state.is_final,
        "model": said["model"],
        "title": title[:200] if isinstance(title, str) else "",
        "created_at": moment(job.created_at),
        "started_at": _moment(job.started_at),
        "finished_at": _moment(job.finished_at),
        "wait": _wait(context, record),
        "progress": _progress(record),
        "output": _output(context, record, base),
        "failure": _failure(record),
        "warnings": _warnings(record),
        "batch": None if job.batch_id is None else {"id": job.batch_id, "row": job.batch_row},
        "thumbnail": await _thumbnail(context, record, base),
        "request": {
            "path": _path(record.request.dialect, said["model"]),
            "in_form_state": record.request.dialect == studio.NAME,
            "input": shown_input,
            "files": {
                source.name: source.url or _link(context, source.blob, base, job.created_at)
                for source in record.request.sources
            },
        },
    }


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else moment(seconds)


def _wait(context: ApiContext, record: Record) -> dict[str, Any] | None:
    """The place in the tenant's queue, and when it will probably begin."""
    if record.job.state is not State.WAITING or (turn := context.jobs.turn(record.job.id)) is None:
        return None
    wait_s = context.jobs.starts_in_s(turn)
    starts_at = None if wait_s is None else moment(context.jobs.now() + wait_s)
    return {"position": turn.position, "estimated_start": starts_at}


def _progress(record: Record) -> dict[str, Any] | None:
    progress = record.job.progress
    if record.job.state is not State.RUNNING or progress is None:
        return None
    left = max(0, progress.total - progress.done)
    left_s = left / progress.per_s if progress.total > 0 and progress.per_s > 0 else None
    return {
        "stage": progress.stage,
        "done": progress.done,
        "total": progress.total,
        "per_second": progress.per_s,
        "left_s": None if left_s is None else round(left_s, 1),
    }


def _output(context: ApiContext, record: Record, base: str) -> dict[str, Any] | None:
    job, output = record.job, record.job.output
    if job.state is not State.SUCCEEDED or output is None:
        return None
    return {
        "url": context.file_url(base, output.blob, job.created_at),
        "duration_s": round(output.media_s, 3) or None,
        "device_s": round(output.device_s, 3),
        "is_marked": output.is_marked,
        "is_nsfw": output.is_nsfw,
        "sync": None if output.sync is None else dataclasses.asdict(output.sync),
    }


def _failure(record: Record) -> dict[str, str] | None:
    if record.job.failure is None:
        return None
    return {"code": record.job.failure.code, "message": error_text(record.job.failure)}


def _warnings(record: Record) -> list[dict[str, Any]]:
    """What the user should know though the job goes on, or is done."""
    job, found = record.job, list[dict[str, Any]]()
    if job.attempts > 1:
        sentence = "An earlier attempt was interrupted; the job went on after its finished parts."
        found.append({"code": "tried_again", "message": sentence, "attempt": job.attempts})
    if job.output is not None:
        found += [{"code": "not_done", "message": sentence} for sentence in job.output.warnings]
    return found


async def _thumbnail(context: ApiContext, record: Record, base: str) -> str | None:
    name = still_blob(record.job.id)
    try:
        is_there = await context.blobs.info(name) is not None
    except StorageAwayError:  # the job can be looked at without it
        return None
    return _link(context, name, base, record.job.created_at) if is_there else None


def _link(context: ApiContext, blob: str | None, base: str, since: float) -> str | None:
    return context.file_url(base, blob, since) if blob else None


def _path(dialect: str, model: str) -> str:
    """Where the same job is submitted again."""
    prefix = studio.PREFIX if dialect == studio.NAME else wavespeed.PREFIXES[0]
    return f"{prefix}/{model}"


async def stretches(context: ApiContext, record: Record, base: str, after: int = -1) -> list[dict[str, Any]]:
    """What can be watched of a running job: links to fragmented MP4, in order.

    Args:
        after: only those behind this index.
    """
    if record.job.state.is_final:
        return []
    try:
        blobs = await context.blobs.under(preview_folder(record.job.id))
    except StorageAwayError:  # they are seen when it is back
        return []
    found = []
    for blob in blobs:
        index, start_ms, stop_ms = map(int, blob.name.rpartition("/")[2].removesuffix(".mp4").split("-"))
        if index > after:
            url = context.file_url(base, blob.name, record.job.created_at)
            found.append({"index": index, "start_s": start_ms / 1000, "stop_s": stop_ms / 1000, "url": url})
    return found


# --- events ---


async def events(context: ApiContext, job_id: str, base: str, after: int) -> AsyncIterator[str]:
    """A job's life as server-sent events, until it ends, is deleted, or the server stops.

    `job`: the job object, whenever it has changed. `segment`: a stretch that can be watched; its number is
    the event's id, so that a client that comes back misses none. `gone`: the job was deleted.
    """
    told, silent_s = "", 0.0
    with context.jobs.watched(job_id) as changed:
        while not context.jobs.is_leaving:
            try:
                record = context.jobs.store.get(job_id)
            except DatabaseAwayError:
                yield ": the database is away\n\n"
                await context.jobs.change_or_pause(changed, LOOK_EVERY_S)
                continue
            if record is None:
                yield _event("gone", {"id": job_id})
                return
            for stretch in await stretches(context, record, base, after):
                after = stretch["index"]
                yield _event("segment", stretch, after)
            if (now := json.dumps(await job_object(context, record, base))) != told:
                told, silent_s = now, 0.0
                yield f"event: job\ndata: {now}\n\n"
            if record.job.state.is_final:
                return
            is_news = await context.jobs.change_or_pause(changed, LOOK_EVERY_S)
            if not is_news and (silent_s := silent_s + LOOK_EVERY_S) >= HEARTBEAT_S:
                silent_s = 0.0
                yield ": still here\n\n"


def _event(name: str, data: dict[str, Any], number: int | None = None) -> str:
    head = "" if number is None else f"id: {number}\n"
    return f"{head}event: {name}\ndata: {json.dumps(data)}\n\n"


# --- the server ---


def health(context: ApiContext, workers: Workers, roster: Roster) -> dict[str, Any]:
    """This process' devices, all workers, queue, speed and disk."""
    store, now = context.jobs.store, context.jobs.now()
    disk, oldest = shutil.disk_usage(context.settings.data_dir), store.oldest_waiting()
    records, _ = store.page(None, offset=0, limit=SPEED_JOBS, states=[State.SUCCEEDED])
    outputs = [record.job.output for record in records if record.job.output is not None]
    measured = [output for output in outputs if output.media_s > 0 and output.device_s > 0]
    media_s, device_s = (
        sum(getattr(output, name) for output in measured) for name in ("media_s", "device_s")
    )
    statuses = workers()
    return {
        "ready": not statuses or any(status.ready for status in statuses),
        "model": context.settings.model,
        "devices": [
            {
                "name": status.device,
                "ready": status.ready,
                "starts": status.starts,
                "jobs": status.busy,
            }
            for status in statuses
        ],
        "workers": roster.counts(),
        "queue": {
            "waiting": store.count_in_state(State.WAITING),
            "running": store.count_in_state(State.RUNNING),
            "most_waiting": context.settings.max_waiting,
            "oldest_wait_s": 0.0 if oldest is None else round(max(0.0, now - oldest), 1),
        },
        "speed": {
            "jobs": len(measured),
            "media_s_per_device_s": round(media_s / device_s, 3) if measured else None,
            "usual_run_s": None if context.jobs.usual_run_s is None else round(context.jobs.usual_run_s, 1),
        },
        "disk": {
            "free_bytes": disk.free,
            "total_bytes": disk.total,
            "least_free_bytes": context.settings.min_free_bytes,
        },
    }


# --- routes ---


def router(context: ApiContext, workers: Workers, roster: Roster) -> APIRouter:
    """All endpoints, to be mounted under `PREFIX`."""
    routes = APIRouter()
    verifier = Verifier(context.settings.signing)

    async def verified(file: Path) -> Response:
        try:
            return JSONResponse(await verifier.verify(file))
        except NotVerifiedError:
            sentence = "The file could not be looked at: is it a whole video or picture?"
            raise ApiError(400, sentence, "not_verified") from None

    def visible(caller: Caller, job_id: str) -> Record:
        everybody = Scope.ADMIN in caller.scopes
        record = context.jobs.store.get(job_id, None if everybody else caller.tenant)
        if record is None:
            raise ApiError(404, f"There is no job {job_id[:64]!r}.", "not_found")
        return record

    @routes.get("/me")
    async def me(http: HttpRequest) -> Response:
        caller = context.authenticate(http, Scope.READ)
        key = context.jobs.store.key(caller.key_id)
        return JSONResponse(
            {
                "key_id": caller.key_id,
                "name": key.name if key is not None else "",
                "tenant": caller.tenant,
                "scopes": sorted(caller.scopes),
                "model": context.settings.model,
                "limits": {
                    "max_upload_bytes": context.settings.max_upload_bytes,
                    "retention_s": context.settings.retention_s,
                    "vendor_limits": context.settings.enforce_vendor_limits,
                },
            }
        )

    @routes.get("/jobs")
    async def jobs(
        http: HttpRequest,
        state: Annotated[list[State], Query(description="Any of these.")] = [],  # noqa: B006
        text: Annotated[str, Query(max_length=200, description="In the id, or in what was asked for.")] = "",
        since: Annotated[float | None, Query(description="Submitted after, seconds since 1970.")] = None,
        tenant: Annotated[str | None, Query(description="Another's, or `*`: needs the scope admin.")] = None,
        offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
        limit: Annotated[int, Query(ge=1, le=100)] = 25,
    ) -> Response:
        caller = context.authenticate(http, Scope.READ)
        records, total = context.jobs.store.page(
            listed_tenant(caller, tenant),
            offset=offset,
            limit=limit,
            states=state,
            text=text or None,
            created_from=since,
        )
        base = context.base_url(http)
        shown = await asyncio.gather(*(job_object(context, record, base) for record in records))
        return JSONResponse({"total": total, "jobs": shown})

    @routes.get("/jobs/{job_id}")
    async def job(http: HttpRequest, job_id: str) -> Response:
        record, base = visible(context.authenticate(http, Scope.READ), job_id), context.base_url(http)
        preview = await stretches(context, record, base)
        return JSONResponse(await job_object(context, record, base) | {"preview": preview})

    @routes.get("/jobs/{job_id}/credentials")
    async def credentials(http: HttpRequest, job_id: str) -> Response:
        record = visible(context.authenticate(http, Scope.READ), job_id)
        if (output := record.job.output) is None:
            raise ApiError(404, "This job has no result.", "not_found")
        with tempfile.TemporaryDirectory(dir=context.settings.data_dir, prefix=VERIFYING) as folder:
            try:
                return await verified(await context.blobs.local(output.blob, Path(folder)))
            except FileNotFoundError:
                raise ApiError(404, "This job has no result.", "not_found") from None

    @routes.post("/verify", openapi_extra=FILE_BODY)
    async def verify(http: HttpRequest) -> Response:
        context.authenticate(http, Scope.READ)
        context.require_disk_space()
        most = context.settings.max_upload_bytes
        with tempfile.TemporaryDirectory(dir=context.settings.data_dir, prefix=VERIFYING) as folder:
            path, size = Path(folder) / "file", 0
            with path.open("wb") as file:
                async for chunk in http.stream():
                    if (size := size + len(chunk)) > most:
                        raise BodyTooLargeError(f"A file may have at most {most / 1e6:.0f} MB here.")
                    await asyncio.to_thread(file.write, chunk)
            return await verified(path)

    @routes.get("/jobs/{job_id}/events")
    async def job_events(http: HttpRequest, job_id: str) -> Response:
        record = visible(context.authenticate(http, Scope.READ), job_id)
        last = http.headers.get("last-event-id", "")
        after = int(last) if last.isascii() and last.isdigit() and len(last) < 10 else -1
        return StreamingResponse(
            events(context, record.job.id, context.base_url(http), after),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    @routes.get("/health")
    async def server_health(http: HttpRequest) -> Response:
        context.authenticate(http, Scope.READ)
        return JSONResponse(health(context, workers, roster))

    return routes
