"""The HTTP application: puts the parts together, mounts the dialects, serves files, tells how it is.

Importing it loads neither torch nor the engine. It decides nothing about jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any

from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import Depends, FastAPI, Query
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from server.api import auth, batches, native, playground, studio, uploads, wavespeed
from server.api.auth import Authenticator, RateLimiter, Scope
from server.api.context import ApiContext
from server.api.errors import KNOWN_ERRORS, ApiError, to_api_error
from server.api.fast_poll import FastPollMiddleware
from server.api.submission import signed_headers
from server.jobs.admission import AdmissionCheck
from server.jobs.inputs import Inputs
from server.jobs.service import JobService
from server.jobs.state import Batch, Job, Policy
from server.jobs.webhooks import Letter, Webhooks
from server.metrics import TEXT_TYPE, Metrics, MetricsMiddleware
from server.settings import Settings
from server.storage.blobs import Blobs, StorageAwayError
from server.storage.links import Signer
from server.storage.transport import Transport, TransportPolicy
from server.store import DatabaseAwayError, Record, Store, audit
from server.workers.process import WorkerSettings
from server.workers.registry import Roster
from server.workers.supervisor import Supervisor

log = logging.getLogger("lipsync.server")

TICK_S = 5.0
Limit = Annotated[int | None, Query(ge=1, le=10**9)]
ERROR_ANSWERS: dict[int | str, dict[str, Any]] = {
    400: {"description": "Something in the request is wrong; the body says what."},
    401: {"description": "No key, or one that is not valid."},
    403: {"description": "The key, or the link, does not allow this."},
    404: {"description": "There is no such thing, or it is another tenant's."},
    405: {"description": "This path does not take that method."},
    413: {"description": "Too many bytes."},
    429: {"description": "Too many requests or waiting jobs; Retry-After says when to come again."},
    503: {"description": "Not ready, the disk is full, or database or storage are away."},
}
CLIENT_GONE = 499
SWEEP_EVERY_S = 600.0
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""A client's own X-Request-Id that is taken over; for any other one is made."""


class Server:
    """Everything that runs while the application does.

    Args:
        devices: one worker each; none: the API alone.
        quarantines: see `WorkerSettings`.
    """

    def __init__(self, settings: Settings, devices: tuple[str, ...], *, quarantines: bool = False) -> None:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        self.settings = settings
        self.store = Store(settings.database)
        policy = Policy(
            max_attempts=settings.max_attempts, max_wait_s=settings.max_wait_s, max_run_s=settings.max_run_s
        )
        at_once = len(devices) * settings.jobs_per_worker
        self.jobs = JobService(self.store, policy, settings.max_waiting, at_once)
        self.blobs = Blobs(settings.blobs_place)
        self.context = ApiContext(
            settings,
            self.jobs,
            self.blobs,
            Signer.from_file(settings.link_secret_file),
            Authenticator(self.store),
            RateLimiter(settings.requests_per_minute),
        )
        self.metrics = Metrics()
        self.transport = Transport(
            TransportPolicy(allow=settings.allow_hosts, max_bytes=settings.max_upload_bytes)
        )
        work = WorkerSettings(
            model=settings.model,
            jobs_per_worker=settings.jobs_per_worker,
            folder=settings.data_dir / "work",
            stall_s=settings.stall_s,
            recycle_after_jobs=settings.recycle_after_jobs,
            recycle_growth_bytes=settings.recycle_growth_bytes,
            log_format=settings.log_format,
            drain_s=settings.drain_s,
            environment=settings.of_workers,
            quarantines=quarantines,
            sync_score=settings.sync_score,
            label=settings.label,
            watermark=settings.watermark,
        )
        gate = AdmissionCheck(self.jobs, settings.job_hook, settings.job_hook_timeout_s)
        inputs = Inputs(self.transport, self.blobs)
        self.supervisor = Supervisor(self.jobs, self.blobs, inputs, gate, devices, work)
        self.roster = Roster(self.jobs, lambda: self.supervisor.conditions, settings.model)
        self.jobs.on_end = self._ended
        letters: dict[str, Letter] = {
            wavespeed.NAME: partial(self._letter, wavespeed.webhook_body),
            studio.NAME: partial(self._letter, studio.webhook_body),
        }
        self.webhooks = Webhooks(self.jobs, self.transport, letters, self._batch_letter)

    def _ended(self, job: Job) -> None:
        self.metrics.job_ended(job)
        self.supervisor.forget(job.id)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self.transport:
            await self.jobs.recover()
            await self._note_start()
            await self.supervisor.start()
            works = (self.jobs.listen, self.webhooks.run, self.roster.run, self._tick, self._sweep)
            tasks = [asyncio.create_task(_kept_up(work)) for work in works]
            try:
                yield
            finally:
                await self.supervisor.drain()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await self.roster.leave()
                self.jobs.close()
                self.store.close()

    async def _note_start(self) -> None:
        """What the operator has decided about marking and consent is on record."""
        settings = self.settings
        if settings.marking == "off":
            log.warning("marking is off: results carry no content credentials")
        facts = {
            "version": version("lipsync-engine"),
            "marking": settings.marking,
            "watermark": settings.watermark,
            "require_consent": settings.require_consent,
            "job_hook": settings.job_hook is not None,
        }
        entry = audit.Entry(self.jobs.now(), audit.SERVER_STARTED, facts)
        await self.jobs.write(partial(self.store.audit.add, entry))

    async def _tick(self) -> None:
        """Limits of waiting and running jobs."""
        while True:
            await self.jobs.expire()
            await asyncio.sleep(TICK_S)

    async def _sweep(self) -> None:
        while True:
            await self.sweep()
            await asyncio.sleep(SWEEP_EVERY_S)

    async def sweep(self) -> None:
        """Delete what is older than the retention: jobs, then files; and what ended jobs have left here."""
        before = self.jobs.now() - self.settings.retention_s
        for record in await self.jobs.write(partial(self.store.delete_older, before)):
            await self.context.forget_files(record)
        if (kept_s := self.settings.audit_retention_s) is not None:
            await self.jobs.write(partial(self.store.audit.delete_older, self.jobs.now() - kept_s))
        for left in self.settings.data_dir.glob(f"{native.VERIFYING}*"):  # of a server that was killed
            if left.stat().st_mtime < before:
                await asyncio.to_thread(shutil.rmtree, left, ignore_errors=True)
        for blob in await self.blobs.older_than(before):
            await self.blobs.delete(blob.name)
        await self.supervisor.remove_left()

    def _letter(
        self, body_of: Callable[[ApiContext, Record], bytes], record: Record, secret: str, now: float
    ) -> tuple[bytes, dict[str, str]]:
        body = body_of(self.context, record)
        return body, signed_headers(secret, record.job.id, body, now)

    def _batch_letter(self, batch: Batch, secret: str, now: float) -> tuple[bytes, dict[str, str]]:
        body = batches.webhook_body(self.context, batch)
        return body, signed_headers(secret, batch.id, body, now)


async def _kept_up(work: Callable[[], Awaitable[None]]) -> None:
    """Run it until it is done: a full disk or a database that is away for a while must not end it."""
    while True:
        try:
            await work()
            return
        except (DatabaseAwayError, StorageAwayError) as error:
            log.warning("database or storage are away, a part of the server waits %g s: %s", TICK_S, error)
        except Exception:
            log.exception("a part of the server stumbled and goes on in %g s", TICK_S)
        await asyncio.sleep(TICK_S)


def create_app(server: Server) -> FastAPI:
    """The application around a server that is not running yet; it runs while the application does."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with server.running():
            yield

    app = FastAPI(
        title="lipsync server",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=ERROR_ANSWERS,
        dependencies=[Depends(_require_plain_url)],
    )
    for prefix in wavespeed.PREFIXES:
        app.include_router(
            wavespeed.router(server.context),
            prefix=prefix,
            include_in_schema=prefix == wavespeed.PREFIXES[0],
        )
    app.include_router(studio.router(server.context), prefix=studio.PREFIX)
    ours = native.router(server.context, lambda: server.supervisor.workers, server.roster)
    app.include_router(ours, prefix=native.PREFIX)
    app.include_router(batches.router(server.context), prefix=native.PREFIX)
    playground.mount(app)
    uploads.mount(app, server.context)
    _operations(app, server)
    _errors(app)
    app.add_middleware(FastPollMiddleware, context=server.context)
    app.add_middleware(MetricsMiddleware, metrics=server.metrics)
    app.add_middleware(
        CorrelationIdMiddleware,
        header_name="X-Request-Id",
        validator=lambda given: REQUEST_ID.fullmatch(given) is not None,
        transformer=None,
    )
    return app


def _require_plain_url(http: HttpRequest) -> None:
    """No database, file system or log takes NUL: refused before it gets to one."""
    if "\0" in http.scope["path"] or b"%00" in http.scope["query_string"]:
        raise ApiError(400, "The URL has a character that cannot be used.", "invalid_parameter")


def _operations(app: FastAPI, server: Server) -> None:
    """For load balancers, monitoring, and the operator's keys."""

    @app.get("/livez")
    async def livez() -> Response:
        return PlainTextResponse("ok")

    @app.get("/readyz")
    async def readyz() -> Response:
        ready = server.supervisor.is_ready
        return PlainTextResponse("ready" if ready else "no worker is ready yet", 200 if ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        workers, counts = server.supervisor.workers, server.roster.counts()
        text = server.metrics.text(server.store, workers, counts, server.jobs.now())
        return Response(text, media_type=TEXT_TYPE)

    @app.get("/admin/workers")
    async def workers(http: HttpRequest) -> Response:
        server.context.authenticate(http, Scope.ADMIN)
        seen = await asyncio.to_thread(server.roster.everywhere)
        return JSONResponse([dataclasses.asdict(worker) for worker in seen])

    @app.get("/admin/keys")
    async def list_keys(http: HttpRequest) -> Response:
        server.context.authenticate(http, Scope.ADMIN)
        hidden = ("digest", "webhook_secret")
        keys = [
            {name: getattr(key, name) for name in key.__dataclass_fields__ if name not in hidden}
            for key in server.store.all_keys()
        ]
        return JSONResponse(keys)

    @app.post("/admin/keys")
    async def create_key(
        http: HttpRequest,
        tenant: str = "default",
        name: str = "",
        scopes: str = "run read",
        requests_per_minute: Limit = None,
        max_active_jobs: Limit = None,
        max_jobs_per_day: Limit = None,
    ) -> Response:
        server.context.authenticate(http, Scope.ADMIN)
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", tenant) or len(name) > 100:
            return JSONResponse({"error": "tenant: 1 to 64 letters, digits, - or _; name: at most 100."}, 400)
        if unknown := set(scopes.split()) - set(Scope):
            return JSONResponse({"error": f"unknown scope {min(unknown)}"}, 400)
        chosen = frozenset(Scope(scope) for scope in scopes.split())
        make = partial(
            auth.create_key,
            server.store,
            server.jobs.now(),
            tenant=tenant,
            name=name,
            scopes=chosen,
            requests_per_minute=requests_per_minute,
            max_active_jobs=max_active_jobs,
            max_jobs_per_day=max_jobs_per_day,
        )
        text, key = await server.jobs.write(make)
        return JSONResponse({"id": key.id, "key": text, "tenant": tenant, "name": name, "scopes": key.scopes})

    @app.get("/admin/audit")
    async def audit_log(
        http: HttpRequest,
        since: Annotated[float | None, Query(description="First moment, seconds since 1970.")] = None,
        until: Annotated[float | None, Query(description="Moment before which it ends.")] = None,
        after: Annotated[int, Query(ge=0, le=2**31 - 1, description="Id of the last entry seen.")] = 0,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    ) -> Response:
        server.context.authenticate(http, Scope.ADMIN)
        playground = partial(server.store.audit.page, after=after, since=since, until=until, limit=limit)
        entries = await asyncio.to_thread(playground)
        lines = "".join(f"{entry.to_json()}\n" for entry in entries)
        return Response(lines, media_type="application/jsonl")

    @app.get("/admin/webhooks/dead")
    async def dead_webhooks(http: HttpRequest) -> Response:
        server.context.authenticate(http, Scope.ADMIN)
        return JSONResponse([dataclasses.asdict(notice) for notice in server.store.dead_notices(1000)])

    @app.post("/admin/webhooks/{notice_id}/retry")
    async def retry_webhook(http: HttpRequest, notice_id: str) -> Response:
        server.context.authenticate(http, Scope.ADMIN)
        again = partial(server.store.try_again, notice_id, server.jobs.now())
        done = await server.jobs.write(again)
        server.jobs.webhook_due.set()
        return Response(status_code=204 if done else 404)

    @app.delete("/admin/keys/{key_id}")
    async def revoke_key(http: HttpRequest, key_id: str) -> Response:
        server.context.authenticate(http, Scope.ADMIN)
        done = await server.jobs.write(partial(server.store.revoke_key, key_id, server.jobs.now()))
        server.context.keys.forget()
        return Response(status_code=204 if done else 404)


def _errors(app: FastAPI) -> None:
    """One place that turns errors into answers."""

    def answer(http: HttpRequest, refusal: ApiError) -> Response:
        if http.url.path.startswith(f"{studio.PREFIX}/"):
            return studio.error_response(refusal)
        if http.url.path.startswith(f"{native.PREFIX}/"):
            return native.error_response(refusal)
        return wavespeed.error_response(refusal)

    async def known(http: HttpRequest, error: Exception) -> Response:
        return answer(http, to_api_error(error))

    for kind in KNOWN_ERRORS:
        app.add_exception_handler(kind, known)

    async def gone(http: HttpRequest, error: Exception) -> Response:
        """The client left in the middle of its request: nobody hears this, monitoring sees no fault."""
        return Response(status_code=CLIENT_GONE)

    app.add_exception_handler(ClientDisconnect, gone)

    async def http_error(http: HttpRequest, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 400
        sentence = {404: "There is no such path.", 405: "This path does not take that method."}
        text = sentence.get(status, "The request could not be understood.")
        return answer(http, ApiError(status, text))

    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, http_error)

    async def crash(http: HttpRequest, error: Exception) -> Response:
        log.error("a request failed", exc_info=error)
        return answer(http, ApiError(500, "The server made a mistake; it is in its log."))

    app.add_exception_handler(Exception, crash)
