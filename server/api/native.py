"""Our own API, mounted under /api/native/v1: what the vendors' APIs do not define.

It returns jobs of every dialect in full, their events as they happen, previews, content credentials, the
server's health, and the caller. Jobs are submitted, cancelled and deleted through the other dialects. The
endpoints are described in docs/http.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse

from server.api import studio, wavespeed
from server.api.auth import AccessDeniedError, Caller, Scope
from server.api.context import ApiContext, file_too_large
from server.api.errors import RETRY_AFTER_S, ApiError, BusyError
from server.api.submission import failure_message, format_time, read_dialect_state
from server.jobs.state import State
from server.storage.blobs import StorageUnavailableError, preview_folder, still_blob
from server.store import DatabaseUnavailableError, Record
from server.workers.cli_child import VERIFICATION_LIMITS, CliChild
from server.workers.face_reports import NotReportedError, draw_overlay, report_faces
from server.workers.registry import WorkerRegistry, WorkerStatus
from server.workers.verification import NotVerifiedError, verify_file

PREFIX: Final = "/api/native/v1"
ALL_TENANTS: Final = "*"
MAX_TITLE_LENGTH: Final = 200

HEARTBEAT_S: Final = 15.0
"""Proxies close streams that send nothing for a while."""

MAX_STREAMS: Final = 1000
MAX_STREAMS_PER_KEY: Final = 100

POLL_INTERVAL_S: Final = 1.0
"""A job's position in the queue changes without a change of the job, so streams poll it."""

SPEED_SAMPLE: Final = 20
"""Number of latest results from which the speed is computed."""

FILE_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}

VERIFY_PREFIX: Final = ".verify-"
"""Prefix of temporary folders in the data folder, each with one received file."""


def error_response(error: ApiError) -> JSONResponse:
    """Render an error in this dialect."""
    body: dict[str, Any] = {"error": error.code or "refused", "message": error.message}
    if error.problems:
        body["problems"] = list(error.problems)
    return JSONResponse(body, error.status, error.headers)


# --- a job ---


def tenant_filter(caller: Caller, tenant: str | None) -> str | None:
    """Return the tenant whose rows a list may show; None: all tenants.

    Raises:
        AccessDeniedError: another tenant is named, and the caller lacks the scope admin.
    """
    tenant = tenant or caller.tenant
    if tenant != caller.tenant:
        caller.require(Scope.ADMIN)
    return None if tenant == ALL_TENANTS else tenant


async def job_object(context: ApiContext, record: Record, base: str) -> dict[str, Any]:
    """Build the complete object of a job; fields without a value are null."""
    job, dialect_state = record.job, read_dialect_state(record.request)
    echoed_input = dialect_state["input"]
    title = echoed_input.get("title")
    return {
        "id": job.id,
        "tenant": job.tenant,
        "state": job.state,
        "is_stopping": job.cancel_requested and not job.state.is_final,
        "model": dialect_state["model"],
        "title": title[:MAX_TITLE_LENGTH] if isinstance(title, str) else "",
        "created_at": format_time(job.created_at),
        "started_at": _format_time(job.started_at),
        "finished_at": _format_time(job.finished_at),
        "wait": _wait_object(context, record),
        "progress": _progress_object(record),
        "output": _output_object(context, record, base),
        "failure": _failure_object(record),
        "warnings": _warnings(record),
        "batch": None if job.batch_id is None else {"id": job.batch_id, "row": job.batch_row},
        "thumbnail": await _thumbnail_url(context, record, base),
        "request": {
            "path": _submission_path(record.request.dialect, dialect_state["model"]),
            "in_form_state": record.request.dialect == studio.NAME,
            "input": echoed_input,
            "files": {
                source.name: source.url or _blob_url(context, source.blob, base, job.created_at)
                for source in record.request.sources
            },
        },
    }


def _format_time(seconds: float | None) -> str | None:
    return None if seconds is None else format_time(seconds)


def _wait_object(context: ApiContext, record: Record) -> dict[str, Any] | None:
    """Build the position in the tenant's queue and the estimated start; None: the job does not wait."""
    if record.job.state is not State.WAITING or (turn := context.jobs.queue_position(record.job.id)) is None:
        return None
    wait_s = context.jobs.estimate_wait_s(turn)
    starts_at = None if wait_s is None else format_time(context.jobs.now() + wait_s)
    return {"position": turn.position, "estimated_start": starts_at}


def _progress_object(record: Record) -> dict[str, Any] | None:
    progress = record.job.progress
    if record.job.state is not State.RUNNING or progress is None:
        return None
    remaining = max(0, progress.total - progress.done)
    remaining_s = remaining / progress.per_s if progress.total > 0 and progress.per_s > 0 else None
    return {
        "stage": progress.stage,
        "done": progress.done,
        "total": progress.total,
        "per_second": progress.per_s,
        "left_s": None if remaining_s is None else round(remaining_s, 1),
    }


def _output_object(context: ApiContext, record: Record, base: str) -> dict[str, Any] | None:
    job, output = record.job, record.job.output
    if job.state is not State.SUCCEEDED or output is None:
        return None
    return {
        "url": context.file_url(base, output.blob, job.created_at),
        "duration_s": round(output.media_s, 3) or None,
        "device_s": round(output.device_s, 3),
        "is_marked": output.is_signed,
        "is_nsfw": output.is_nsfw,
        "sync": None if output.sync is None else dataclasses.asdict(output.sync),
        "pauses_s": output.pauses_s,
    }


def _failure_object(record: Record) -> dict[str, str] | None:
    failure = record.job.failure
    return None if failure is None else {"code": failure.code, "message": failure_message(failure)}


def _warnings(record: Record) -> list[dict[str, Any]]:
    """Build what the user should know although the job goes on or has succeeded."""
    job, warnings = record.job, list[dict[str, Any]]()
    if job.attempts > 1:
        sentence = "An earlier attempt was interrupted; the job resumed after its finished parts."
        warnings.append({"code": "tried_again", "message": sentence, "attempt": job.attempts})
    if job.output is not None:
        coded = itertools.zip_longest(job.output.warning_codes, job.output.warnings, fillvalue="not_done")
        warnings += [{"code": code, "message": sentence} for code, sentence in coded]
    return warnings


async def _thumbnail_url(context: ApiContext, record: Record, base: str) -> str | None:
    name = still_blob(record.job.id)
    try:
        exists = await context.blobs.info(name) is not None
    except StorageUnavailableError:  # the job is shown without its thumbnail
        return None
    return _blob_url(context, name, base, record.job.created_at) if exists else None


def _blob_url(context: ApiContext, blob: str | None, base: str, since: float) -> str | None:
    return context.file_url(base, blob, since) if blob else None


def _submission_path(dialect: str, model: str) -> str:
    """Return the path to which the same input can be submitted again."""
    prefix = studio.PREFIX if dialect == studio.NAME else wavespeed.PREFIXES[0]
    return f"{prefix}/{model}"


async def preview_segments(
    context: ApiContext, record: Record, base: str, after: int = -1
) -> list[dict[str, Any]]:
    """List the finished segments of a running job as links to fragmented MP4, in order.

    Args:
        after: only segments with a greater index.
    """
    if record.job.state.is_final:
        return []
    try:
        blobs = await context.blobs.list_folder(preview_folder(record.job.id))
    except StorageUnavailableError:  # they are listed when the storage is back
        return []
    segments = []
    for blob in blobs:
        index, start_ms, stop_ms = map(int, blob.name.rpartition("/")[2].removesuffix(".mp4").split("-"))
        if index > after:
            segments.append(
                {
                    "index": index,
                    "start_s": start_ms / 1000,
                    "stop_s": stop_ms / 1000,
                    "url": context.file_url(base, blob.name, record.job.created_at),
                }
            )
    return segments


# --- events ---


async def stream_events(context: ApiContext, job_id: str, base: str, after: int) -> AsyncIterator[str]:
    """Yield a job's changes as server-sent events until it ends, is deleted, or the server stops.

    `job`: the job object, whenever it has changed. `segment`: a segment that can be played; its index is the
    event's id, so that a client that reconnects misses none. `gone`: the job was deleted.
    """
    last_sent, idle_s = "", 0.0
    with context.jobs.watch(job_id) as changed:
        while not context.jobs.is_stopping:
            try:
                record = context.jobs.store.get(job_id)
            except DatabaseUnavailableError:
                yield ": the database is unavailable\n\n"
                await context.jobs.wait_for_change(changed, POLL_INTERVAL_S)
                continue
            if record is None:
                yield _format_event("gone", {"id": job_id})
                return
            for segment in await preview_segments(context, record, base, after):
                after = segment["index"]
                yield _format_event("segment", segment, after)
            if (current := json.dumps(await job_object(context, record, base))) != last_sent:
                last_sent, idle_s = current, 0.0
                yield f"event: job\ndata: {current}\n\n"
            if record.job.state.is_final:
                return
            has_changed = await context.jobs.wait_for_change(changed, POLL_INTERVAL_S)
            if not has_changed and (idle_s := idle_s + POLL_INTERVAL_S) >= HEARTBEAT_S:
                idle_s = 0.0
                yield ": heartbeat\n\n"


class EventStreams:
    """Open event streams of this process, limited per key and in total; each polls once a second."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    def require_room(self, key_id: str) -> None:
        """Check that a key may open one more stream.

        Raises:
            BusyError: 429.
        """
        if self._open[key_id] >= MAX_STREAMS_PER_KEY or self._open.total() >= MAX_STREAMS:
            sentence = "Too many event streams are open: close some, or poll the job instead."
            raise BusyError(sentence, RETRY_AFTER_S)

    async def limit(
        self, key_id: str, events: AsyncIterator[str], is_valid: Callable[[], bool]
    ) -> AsyncIterator[str]:
        """Count a stream while it is open, and end it when its key is no longer valid."""
        self._open[key_id] += 1
        next_event = asyncio.ensure_future(anext(events, None))
        try:
            while is_valid():
                done, _ = await asyncio.wait([next_event], timeout=POLL_INTERVAL_S)
                if not done:
                    continue
                if (event := next_event.result()) is None:
                    return
                if not is_valid():
                    return
                yield event
                next_event = asyncio.ensure_future(anext(events, None))
        finally:
            next_event.cancel()
            self._open[key_id] -= 1
            if not self._open[key_id]:
                del self._open[key_id]


def _is_key_valid(context: ApiContext, authorization: str | None) -> bool:
    try:
        context.authenticator.authenticate(authorization, context.jobs.now())
    except AccessDeniedError:
        return False
    except DatabaseUnavailableError:
        return True
    return True


def _format_event(name: str, data: dict[str, Any], event_id: int | None = None) -> str:
    head = "" if event_id is None else f"id: {event_id}\n"
    return f"{head}event: {name}\ndata: {json.dumps(data)}\n\n"


# --- the server ---


def health_object(
    context: ApiContext, list_workers: Callable[[], Sequence[WorkerStatus]], registry: WorkerRegistry
) -> dict[str, Any]:
    """Build the state of this process' devices, all workers, queue, speed and disk.

    Args:
        list_workers: returns the workers of this process.
    """
    store, now, settings = context.jobs.store, context.jobs.now(), context.settings
    disk, oldest = shutil.disk_usage(settings.data_dir), store.oldest_waiting_at()
    records, _ = store.page(None, offset=0, limit=SPEED_SAMPLE, states=[State.SUCCEEDED])
    outputs = [record.job.output for record in records if record.job.output is not None]
    measured = [output for output in outputs if output.media_s > 0 and output.device_s > 0]
    media_s = sum(output.media_s for output in measured)
    device_s = sum(output.device_s for output in measured)
    workers, usual_run_s = list_workers(), context.jobs.typical_run_s
    return {
        "ready": not workers or any(worker.ready for worker in workers),
        "version": version("lipsync-engine"),
        "model": settings.model,
        "devices": [
            {
                "name": worker.device,
                "ready": worker.ready,
                "starts": worker.starts,
                "jobs": worker.busy,
                "problem": worker.problem,
            }
            for worker in workers
        ],
        "workers": registry.counts(),
        "queue": {
            "waiting": store.count_in_state(State.WAITING),
            "running": store.count_in_state(State.RUNNING),
            "most_waiting": settings.max_waiting,
            "oldest_wait_s": 0.0 if oldest is None else round(max(0.0, now - oldest), 1),
        },
        "speed": {
            "jobs": len(measured),
            "media_s_per_device_s": round(media_s / device_s, 3) if measured else None,
            "usual_run_s": None if usual_run_s is None else round(usual_run_s, 1),
        },
        "disk": {
            "free_bytes": disk.free,
            "total_bytes": disk.total,
            "least_free_bytes": settings.min_free_bytes,
        },
    }


# --- routes ---


def create_router(
    context: ApiContext, list_workers: Callable[[], Sequence[WorkerStatus]], registry: WorkerRegistry
) -> APIRouter:
    """Create all endpoints, to be mounted under `PREFIX`.

    Args:
        list_workers: returns the workers of this process.
    """
    router = APIRouter()
    # Each kind of work waits for its own: a long face report must not hold up verification.
    streams = EventStreams()
    verifying_child = CliChild(
        context.settings.signing_environment,
        VERIFICATION_LIMITS,
        readable=context.settings.trusted_root_files,
    )
    face_child = CliChild({})

    @contextlib.asynccontextmanager
    async def received_file(http: HttpRequest) -> AsyncIterator[Path]:
        """Write the body to a file in a temporary folder of its own."""
        max_bytes = context.settings.max_upload_bytes
        with tempfile.TemporaryDirectory(dir=context.settings.data_dir, prefix=VERIFY_PREFIX) as folder:
            path, size = Path(folder) / "file", 0
            with path.open("wb") as file:
                async for chunk in context.disk.guard(http.stream()):
                    if (size := size + len(chunk)) > max_bytes:
                        raise file_too_large(max_bytes)
                    await asyncio.to_thread(file.write, chunk)
            yield path

    async def verification_response(file: Path, tenant: str) -> Response:
        try:
            return JSONResponse(await verify_file(verifying_child, file, tenant))
        except NotVerifiedError:
            sentence = "The file cannot be verified: send a complete video or image."
            raise ApiError(400, sentence, "not_verified") from None

    def require_job(http: HttpRequest, caller: Caller, job_id: str) -> Record:
        is_admin = Scope.ADMIN in caller.scopes
        record = context.jobs.store.get(job_id, None if is_admin else caller.tenant)
        if record is None:
            raise ApiError(404, f"There is no job {job_id[:64]!r}.", "not_found")
        if record.job.tenant != caller.tenant:
            context.record_admin_request(http, caller, record.job)
        return record

    @router.get("/me")
    async def get_caller(http: HttpRequest) -> Response:
        caller = context.authenticate(http, Scope.READ)
        key = context.jobs.store.get_key(caller.key_id)
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

    @router.get("/jobs")
    async def list_jobs(
        http: HttpRequest,
        state: Annotated[list[State], Query(description="Any of these states.")] = [],  # noqa: B006
        text: Annotated[str, Query(max_length=200, description="Part of the id or of the input.")] = "",
        since: Annotated[float | None, Query(description="Submitted after, seconds since 1970.")] = None,
        tenant: Annotated[str | None, Query(description="Another's, or `*`: needs the scope admin.")] = None,
        offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
        limit: Annotated[int, Query(ge=1, le=100)] = 25,
    ) -> Response:
        caller = context.authenticate(http, Scope.READ)
        records, total = context.jobs.store.page(
            tenant_filter(caller, tenant),
            offset=offset,
            limit=limit,
            states=state,
            text=text or None,
            created_from=since,
        )
        base = context.base_url(http)
        jobs = await asyncio.gather(*(job_object(context, record, base) for record in records))
        return JSONResponse({"total": total, "jobs": jobs})

    @router.get("/jobs/{job_id}")
    async def get_job(http: HttpRequest, job_id: str) -> Response:
        record = require_job(http, context.authenticate(http, Scope.READ), job_id)
        base = context.base_url(http)
        preview = await preview_segments(context, record, base)
        return JSONResponse(await job_object(context, record, base) | {"preview": preview})

    @router.get("/jobs/{job_id}/credentials")
    async def get_job_credentials(http: HttpRequest, job_id: str) -> Response:
        caller = context.authenticate(http, Scope.READ)
        record = require_job(http, caller, job_id)
        if (output := record.job.output) is None:
            raise ApiError(404, "This job has no result.", "not_found")
        with tempfile.TemporaryDirectory(dir=context.settings.data_dir, prefix=VERIFY_PREFIX) as folder:
            try:
                file = await context.blobs.local(output.blob, Path(folder))
                return await verification_response(file, caller.tenant)
            except FileNotFoundError:
                raise ApiError(404, "This job has no result.", "not_found") from None

    @router.post("/verify", openapi_extra=FILE_BODY)
    async def post_verification(http: HttpRequest) -> Response:
        caller = context.authenticate(http, Scope.READ)
        async with received_file(http) as path:
            return await verification_response(path, caller.tenant)

    @router.post("/faces", openapi_extra=FILE_BODY)
    async def post_face_report(
        http: HttpRequest, detector: Literal["yunet", "drawn"] = "yunet", overlay: bool = False
    ) -> Response:
        caller = context.authenticate(http, Scope.READ)
        async with received_file(http) as path:
            try:
                if not overlay:
                    return JSONResponse(await report_faces(face_child, path, detector, caller.tenant))
                drawn = path.with_name("overlay.mp4")
                await draw_overlay(face_child, path, detector, drawn, caller.tenant)
                return Response(await asyncio.to_thread(drawn.read_bytes), media_type="video/mp4")
            except NotReportedError as error:
                raise ApiError(400, error.message, error.code) from None

    @router.get("/jobs/{job_id}/events")
    async def stream_job_events(http: HttpRequest, job_id: str) -> Response:
        record = require_job(http, context.authenticate(http, Scope.READ), job_id)
        last_id = http.headers.get("last-event-id", "")
        after = int(last_id) if last_id.isascii() and last_id.isdigit() and len(last_id) < 10 else -1
        caller: Caller = http.state.caller
        streams.require_room(caller.key_id)
        events = stream_events(context, record.job.id, context.base_url(http), after)
        is_valid = partial(_is_key_valid, context, http.headers.get("authorization"))
        return StreamingResponse(
            streams.limit(caller.key_id, events, is_valid),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    @router.get("/health")
    async def get_health(http: HttpRequest) -> Response:
        context.authenticate(http, Scope.READ)
        return JSONResponse(health_object(context, list_workers, registry))

    return router
