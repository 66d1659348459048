"""Composition root: builds the parts of the server, runs its background tasks, and mounts the APIs.

Importing it loads neither torch nor the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import Depends, FastAPI
from fastapi import Request as HttpRequest
from fastapi.middleware.cors import CORSMiddleware

from server.api import admin, batches, native, playground, studio, uploads, wavespeed
from server.api.auth import Authenticator, RateLimiter
from server.api.bodies import BodyBudget, BodyBudgetMiddleware
from server.api.context import UPLOAD_LINK_S, ApiContext
from server.api.errors import METHODS, ApiError, add_exception_handlers
from server.api.fast_poll import FastPollMiddleware
from server.api.head_requests import HeadMiddleware
from server.api.openapi import complete_document
from server.api.proxies import ProxyMiddleware
from server.api.rate_limits import RateLimitMiddleware
from server.api.submission import webhook_headers
from server.audit_sink import open_audit_sink
from server.jobs.admission import AdmissionCheck
from server.jobs.downloads import InputDownloader
from server.jobs.inputs import InputFetcher
from server.jobs.service import JobService
from server.jobs.state import Batch, JobPolicy
from server.jobs.webhooks import PayloadBuilder, WebhookPayload, Webhooks
from server.metrics import Metrics, MetricsMiddleware
from server.settings import Settings
from server.storage.blobs import Blobs, StorageUnavailableError
from server.storage.disk import DiskSpace
from server.storage.links import LinkSigner
from server.storage.private_files import make_private
from server.storage.transport import Transport, TransportPolicy
from server.store import DatabaseUnavailableError, QueueLimits, Record, Store, audit
from server.workers.caches import delete_expired_caches
from server.workers.process import WorkerSettings
from server.workers.registry import WorkerRegistry
from server.workers.supervisor import Supervisor

log = logging.getLogger("lipsync.server")

EXPIRY_INTERVAL_S = 5.0
CLEANUP_INTERVAL_S = 600.0
SEAL_INTERVAL_S = 1.0
RESTART_DELAY_S = 5.0
MIN_DOWNLOADS_AHEAD = 4
"""Of a tenant's waiting jobs, at least so many have their inputs downloaded before they start."""

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request is invalid; the body names the problem."},
    401: {"description": "The API key is missing or not valid."},
    403: {"description": "The key, or the link, does not allow this."},
    404: {"description": "There is no such resource, or it belongs to another tenant."},
    405: {"description": "This path does not accept that method; Allow names those that it accepts."},
    413: {"description": "The body is too large."},
    415: {"description": "The body is compressed."},
    429: {"description": "Too many requests or waiting jobs; Retry-After gives the seconds to wait."},
    503: {"description": "Not ready, the disk is full, or database or storage are unavailable."},
}
EXPOSED_HEADERS = (
    "Accept-Ranges",
    "Content-Range",
    "ETag",
    "Retry-After",
    "X-RateLimit-Limit",
    "X-RateLimit-Remaining",
    "X-RateLimit-Reset",
    "X-Request-Id",
)
"""Headers of answers that a page of another origin may read besides those that browsers always show."""

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""A client's X-Request-Id that is accepted; any other is replaced."""


class Server:
    """All parts of one server process.

    Args:
        devices: one worker each; none: this process only serves the API.
        quarantines: see `WorkerSettings`.
        blobs: an open storage; by default the one that the settings name.

    Attributes:
        isolation_warning: what FFmpeg processes are not kept from; `/readyz` reports it.
    """

    def __init__(
        self,
        settings: Settings,
        devices: tuple[str, ...],
        *,
        quarantines: bool = False,
        blobs: Blobs | None = None,
    ) -> None:
        make_private(settings.data_dir)
        self.settings = settings
        self.isolation_warning = ""
        self.store = Store(settings.effective_database_url)
        policy = JobPolicy(
            max_attempts=settings.max_attempts, max_wait_s=settings.max_wait_s, max_run_s=settings.max_run_s
        )
        limits = QueueLimits(settings.max_waiting, settings.max_waiting_per_tenant)
        slots = len(devices) * settings.jobs_per_worker
        self.jobs = JobService(self.store, policy, limits, slots)
        self.blobs = blobs or Blobs(settings.blob_location, credentials=settings.s3_credentials)
        disk = DiskSpace(settings.data_dir, settings.min_free_bytes)
        self.transport = Transport(
            TransportPolicy(
                allow=settings.allow_hosts,
                total_s=settings.download_timeout_s,
                min_bytes_per_s=settings.download_min_bytes_per_s,
                media_hosts=settings.media_hosts,
                media_ports=settings.media_ports,
                webhook_ports=settings.webhook_ports,
                max_bytes=settings.max_upload_bytes,
            ),
            disk=disk,
        )
        self.context = ApiContext(
            settings,
            self.jobs,
            self.blobs,
            LinkSigner.from_file(settings.link_secret_path),
            Authenticator(self.store),
            RateLimiter(settings.requests_per_minute),
            RateLimiter(settings.reads_per_minute),
            self.transport,
            disk,
        )
        self._audit_export = open_audit_sink(settings.audit_export) if settings.audit_export else None
        self.metrics = Metrics()
        worker_settings = WorkerSettings(
            model=settings.model,
            jobs_per_worker=settings.jobs_per_worker,
            folder=settings.data_dir / "work",
            stall_s=settings.stall_s,
            recycle_after_jobs=settings.recycle_after_jobs,
            recycle_growth_bytes=settings.recycle_growth_bytes,
            log_format=settings.log_format,
            drain_s=settings.drain_s,
            environment=settings.worker_environment,
            quarantines=quarantines,
            sync_score=settings.sync_score,
            label=settings.label,
            watermark=settings.watermark,
        )
        admission = AdmissionCheck(
            self.jobs, settings.job_hook, settings.job_hook_timeout_s, self._hook_headers
        )
        inputs = InputFetcher(self.transport, self.blobs)
        self.downloader = InputDownloader(
            self.jobs,
            inputs,
            self.blobs,
            settings.data_dir / "work" / "downloads",
            total_s=settings.download_timeout_s,
            ahead=max(MIN_DOWNLOADS_AHEAD, 2 * slots),
        )
        self.supervisor = Supervisor(self.jobs, self.blobs, inputs, admission, devices, worker_settings)
        self.registry = WorkerRegistry(self.jobs, lambda: self.supervisor.workers, settings.model)
        self.jobs.on_end = self._on_job_end
        payload_builders: dict[str, PayloadBuilder] = {
            wavespeed.NAME: partial(self._webhook_payload, wavespeed.webhook_body),
            studio.NAME: partial(self._webhook_payload, studio.webhook_body),
        }
        self.webhooks = Webhooks(self.jobs, self.transport, payload_builders, self._batch_webhook_payload)

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Run workers and background tasks inside the context; drain the workers at its end."""
        async with self.transport:
            await self.jobs.recover()
            await self._record_start()
            await self.supervisor.start()
            background = [
                self.jobs.listen,
                self.webhooks.run,
                self.registry.run,
                self._expire_jobs,
                self._seal_audit_log,
                self._delete_expired_data,
            ]
            if self.supervisor.workers:  # a process without devices leaves downloads to the others
                background.append(self.downloader.run)
            tasks = [asyncio.create_task(_run_forever(task)) for task in background]
            try:
                yield
            finally:
                await self.drain()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await self.registry.deregister()
                with contextlib.suppress(DatabaseUnavailableError, OSError):
                    await asyncio.to_thread(self.seal_audit_log)
                self.jobs.close()
                self.store.close()

    async def drain(self) -> None:
        """Take no new jobs, let running ones end for a while, requeue the rest, and end the workers."""
        self.jobs.is_draining = True
        await self.supervisor.drain()

    async def delete_expired_data(self) -> None:
        """Delete jobs and files older than the retention, and local files of ended jobs."""
        before = self.jobs.now() - self.settings.retention_s
        for record in await self.jobs.write(partial(self.store.delete_older, before, self.jobs.now())):
            await self.context.delete_files(record)
        expired = self.jobs.now() - UPLOAD_LINK_S
        await self.jobs.write(partial(self.store.delete_used_upload_links, expired))
        if (audit_retention_s := self.settings.audit_retention_s) is not None:
            now = self.jobs.now()
            await self.jobs.write(partial(self.store.audit.delete_older, now - audit_retention_s, now))
        for folder in self.settings.data_dir.glob(f"{native.VERIFY_PREFIX}*"):  # left by a killed server
            if folder.stat().st_mtime < before:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        for blob in await self.blobs.list_older_than(before):
            await self.blobs.delete(blob.name)
        await self.supervisor.delete_orphaned_files()
        await asyncio.to_thread(delete_expired_caches, self.settings.engine_dir, self.settings.retention_s)

    def _on_job_end(self, record: Record) -> None:
        self.metrics.count_job(record)
        self.supervisor.forget(record.job.id)

    async def _record_start(self) -> None:
        """Write the operator's decisions on marking and consent to the audit log."""
        settings = self.settings
        if settings.marking == "off":
            log.warning("marking is off: results carry no content credentials")
        facts = {
            "version": version("lipsync-engine"),
            "marking": settings.marking,
            "watermark": settings.watermark,
            "require_consent": settings.require_consent,
            "job_hook": settings.job_hook is not None,
            "content_check": settings.content_check,
            "label": settings.label,
            "audit_retention_s": settings.audit_retention_s,
        }
        entry = audit.AuditEntry(self.jobs.now(), audit.SERVER_STARTED, facts)
        await self.jobs.write(partial(self.store.audit.add, entry))

    def seal_audit_log(self) -> None:
        """Add new entries of the audit log to its chain, and export them."""
        while self.store.audit.seal(self._export_audit_entries):
            pass

    def _export_audit_entries(self, entries: Sequence[audit.AuditEntry]) -> None:
        if self._audit_export is not None:
            self._audit_export([entry.to_json() for entry in entries])

    async def _seal_audit_log(self) -> None:
        while True:
            await self.jobs.write(self.seal_audit_log)
            await asyncio.sleep(SEAL_INTERVAL_S)

    async def _expire_jobs(self) -> None:
        while True:
            await self.jobs.expire()
            await asyncio.sleep(EXPIRY_INTERVAL_S)

    async def _delete_expired_data(self) -> None:
        while True:
            await self.delete_expired_data()
            await asyncio.sleep(CLEANUP_INTERVAL_S)

    def _webhook_payload(
        self, build_body: Callable[[ApiContext, Record], bytes], record: Record, secret: str, now: float
    ) -> WebhookPayload:
        body = build_body(self.context, record)
        return WebhookPayload(body, webhook_headers(secret, record.job.id, body, now))

    def _hook_headers(self, job_id: str, body: bytes) -> dict[str, str]:
        if self.settings.job_hook_secret is None:
            return {"Content-Type": "application/json"}
        return webhook_headers(self.settings.job_hook_secret, job_id, body, self.jobs.now())

    def _batch_webhook_payload(self, batch: Batch, secret: str, now: float) -> WebhookPayload:
        body = batches.webhook_body(self.context, batch)
        return WebhookPayload(body, webhook_headers(secret, batch.id, body, now))


async def _run_forever(task: Callable[[], Awaitable[None]]) -> None:
    """Run a background task until it returns; restart it after a failure, such as a full disk."""
    name = getattr(task, "__qualname__", repr(task))
    while True:
        try:
            await task()
            return
        except (DatabaseUnavailableError, StorageUnavailableError) as error:
            log.warning("background task %s failed; restarting in %g s: %s", name, RESTART_DELAY_S, error)
        except Exception:
            log.exception("background task %s failed; restarting in %g s", name, RESTART_DELAY_S)
        await asyncio.sleep(RESTART_DELAY_S)


def create_app(server: Server) -> FastAPI:
    """Create the application, which starts and stops the server with itself."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with server.run():
            yield

    app = FastAPI(
        title="lipsync server",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=ERROR_RESPONSES,
        dependencies=[Depends(_require_plain_request)],
    )
    context, registry = server.context, server.registry
    for prefix in wavespeed.PREFIXES:
        is_documented = prefix == wavespeed.PREFIXES[0]
        for router in (uploads.create_router(context), wavespeed.create_router(context)):
            app.include_router(router, prefix=prefix, include_in_schema=is_documented)
    app.include_router(studio.create_router(context), prefix=studio.PREFIX)
    native_router = native.create_router(context, lambda: server.supervisor.workers, registry)
    app.include_router(native_router, prefix=native.PREFIX)
    app.include_router(batches.create_router(context), prefix=native.PREFIX)
    playground.mount(app)
    uploads.mount(app, context)
    app.include_router(
        admin.create_router(context, server.supervisor, registry, server.metrics, server.isolation_warning)
    )
    error_responses = {studio.PREFIX: studio.error_response, native.PREFIX: native.error_response}
    add_exception_handlers(app, error_responses, default=wavespeed.error_response)
    public_url = server.settings.public_url
    complete_document(app, None if public_url is None else str(public_url).rstrip("/"))
    app.add_middleware(FastPollMiddleware, context=context)
    app.add_middleware(RateLimitMiddleware)
    budget = BodyBudget(server.settings.max_bodies_bytes, server.settings.max_tenant_bodies_bytes)
    app.add_middleware(BodyBudgetMiddleware, budget=budget)
    app.add_middleware(HeadMiddleware)
    app.add_middleware(MetricsMiddleware, metrics=server.metrics)
    app.add_middleware(
        CorrelationIdMiddleware,
        header_name="X-Request-Id",
        validator=lambda request_id: REQUEST_ID.fullmatch(request_id) is not None,
        transformer=None,
    )
    if server.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=server.settings.cors_origins,
            allow_methods=METHODS,
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
    public_prefix = (server.settings.public_url and server.settings.public_url.path) or ""
    app.add_middleware(ProxyMiddleware, trusted=server.settings.trusted_proxies, public_prefix=public_prefix)
    return app


def _require_plain_request(http: HttpRequest) -> None:
    """Reject NUL in the URL, which databases, file systems and logs do not accept, and compressed bodies."""
    if "\0" in http.scope["path"] or b"%00" in http.scope["query_string"]:
        raise ApiError(400, "The URL has a character that cannot be used.", "invalid_parameter")
    if (encoding := http.headers.get("content-encoding", "identity").lower()) != "identity":
        sentence = f"The body has the Content-Encoding {encoding[:40]!r}: send it without compression."
        raise ApiError(415, sentence, "encoding_not_supported")
