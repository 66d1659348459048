"""Prometheus metrics: events are counted as they happen, states are read at each scrape.

Requests are counted by route, never by path: paths contain ids and signed links. The names are listed in
docs/operations.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.cluster.autoscaling import WorkerState
from server.jobs.state import State
from server.logs import log_request
from server.store import Record, Store
from server.workers.registry import WorkerStatus

TEXT_TYPE = CONTENT_TYPE_LATEST
JOB_BUCKETS_S = (1, 5, 15, 60, 300, 900, 3600, 14400)
MAX_TENANTS = 100
OTHER_TENANTS = "(others)"
"""Label of all tenants after the first `MAX_TENANTS`: each label is kept in memory and at Prometheus."""

METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"}


COUNTS_MAX_AGE_S = 1.0
"""Rows are counted at most this often: it takes 38 ms at 200,000 jobs, and the metrics may need no key."""


class Metrics:
    """The metrics of one server process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._counted_at = float("-inf")
        self._requests = Histogram(
            "lipsync_http_request_seconds",
            "Time to answer a request.",
            ["method", "route", "status"],
            registry=self._registry,
            buckets=(0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300),
        )
        self._ended = Counter("lipsync_jobs_ended", "Jobs that ended.", ["state"], registry=self._registry)
        self._device_s = Counter(
            "lipsync_device_seconds", "Time that devices spent rendering.", registry=self._registry
        )
        self._tenant_device_s = Counter(
            "lipsync_tenant_device_seconds",
            "Time that devices spent rendering for a tenant.",
            ["tenant"],
            registry=self._registry,
        )
        self._tenants: set[str] = set()
        self._wait_s = Histogram(
            "lipsync_job_wait_seconds",
            "Time from the submission of an ended job to its start.",
            ["model"],
            registry=self._registry,
            buckets=JOB_BUCKETS_S,
        )
        self._run_s = Histogram(
            "lipsync_job_run_seconds",
            "Time from the start to the end of a job that succeeded.",
            ["model"],
            registry=self._registry,
            buckets=JOB_BUCKETS_S,
        )
        ProcessCollector(registry=self._registry)
        self._jobs = Gauge("lipsync_jobs", "Jobs in the database.", ["state"], registry=self._registry)
        self._oldest = Gauge(
            "lipsync_oldest_waiting_seconds",
            "Age of the oldest waiting job.",
            registry=self._registry,
        )
        self._notices = Gauge("lipsync_webhooks", "Undelivered webhooks.", ["state"], registry=self._registry)
        self._workers = Gauge(
            "lipsync_workers", "Workers of all processes.", ["state"], registry=self._registry
        )
        self._ready = Gauge(
            "lipsync_worker_ready", "1 when the worker is ready.", ["device"], registry=self._registry
        )
        self._starts = Gauge(
            "lipsync_worker_starts",
            "Worker processes started since the server did.",
            ["device"],
            registry=self._registry,
        )
        self._busy = Gauge(
            "lipsync_worker_jobs",
            "Jobs and shared segments that run on the worker.",
            ["device"],
            registry=self._registry,
        )
        for state in State:
            if state.is_final:
                self._ended.labels(state)

    def count_job(self, record: Record) -> None:
        """Count a job that has ended."""
        job, model = record.job, record.request.endpoint
        self._ended.labels(job.state).inc()
        if job.started_at is not None:
            self._wait_s.labels(model).observe(max(0.0, job.started_at - job.created_at))
        if job.run_s is not None:
            self._run_s.labels(model).observe(job.run_s)
        if job.output is not None:
            self._device_s.inc(job.output.device_s)
            if len(self._tenants) < MAX_TENANTS:
                self._tenants.add(job.tenant)
            tenant = job.tenant if job.tenant in self._tenants else OTHER_TENANTS
            self._tenant_device_s.labels(tenant).inc(job.output.device_s)

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request and the time of its answer."""
        self._requests.labels(method, route, status).observe(seconds)

    def render(
        self,
        store: Store,
        workers: Iterable[WorkerStatus],
        all_workers: Mapping[WorkerState, int],
        now: float,
    ) -> bytes:
        """Return all metrics in Prometheus' text format.

        Args:
            workers: of this process.
            all_workers: number of workers in each state, over all processes.
        """
        if not 0 <= now - self._counted_at < COUNTS_MAX_AGE_S:
            self._counted_at = now
            self._count_rows(store, now)
        for condition, count in all_workers.items():
            self._workers.labels(condition).set(count)
        for worker in workers:
            self._ready.labels(worker.device).set(worker.ready)
            self._starts.labels(worker.device).set(worker.starts)
            self._busy.labels(worker.device).set(worker.busy)
        return generate_latest(self._registry)

    def _count_rows(self, store: Store, now: float) -> None:
        for state in State:
            self._jobs.labels(state).set(store.count_in_state(state))
        oldest = store.oldest_waiting_at()
        self._oldest.set(0 if oldest is None else max(0.0, now - oldest))
        waiting, dead = store.count_webhooks()
        self._notices.labels("waiting").set(waiting)
        self._notices.labels("dead").set(dead)


class MetricsMiddleware:
    """ASGI middleware that measures and logs requests."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 500

        async def send_and_record_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_record_status)
        finally:
            seconds = time.monotonic() - start
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.observe_request(method, route, status, seconds)
            log_request(scope, status, seconds)
