"""What monitoring sees: counted as it happens, or looked up when it is asked for. Names: docs/operations.md.

Requests are counted by the route that answered them, never by their path: paths hold ids and signed links.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.cluster.autoscaling import Condition
from server.jobs.state import Job, State
from server.store import Store
from server.workers.registry import WorkerStatus

log = logging.getLogger("lipsync.http")

TEXT_TYPE = CONTENT_TYPE_LATEST
METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"}


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
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
        self._jobs = Gauge("lipsync_jobs", "Jobs in the database.", ["state"], registry=self._registry)
        self._oldest = Gauge(
            "lipsync_oldest_waiting_seconds",
            "How long the oldest waiting job waits.",
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
            "Jobs that the worker makes or helps with.",
            ["device"],
            registry=self._registry,
        )
        for state in State:
            if state.is_final:
                self._ended.labels(state)

    def job_ended(self, job: Job) -> None:
        self._ended.labels(job.state).inc()
        if job.output is not None:
            self._device_s.inc(job.output.device_s)

    def request_answered(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, status).observe(seconds)

    def text(
        self,
        store: Store,
        workers: Iterable[WorkerStatus],
        everywhere: Mapping[Condition, int],
        now: float,
    ) -> bytes:
        """Everything in Prometheus' format.

        Args:
            workers: of this process.
            everywhere: number of workers in each state, over all processes.
        """
        for state in State:
            self._jobs.labels(state).set(store.count_in_state(state))
        oldest = store.oldest_waiting()
        self._oldest.set(0 if oldest is None else max(0.0, now - oldest))
        waiting, dead = store.count_notices()
        self._notices.labels("waiting").set(waiting)
        self._notices.labels("dead").set(dead)
        for condition, count in everywhere.items():
            self._workers.labels(condition).set(count)
        for worker in workers:
            self._ready.labels(worker.device).set(worker.ready)
            self._starts.labels(worker.device).set(worker.starts)
            self._busy.labels(worker.device).set(worker.busy)
        return generate_latest(self._registry)


class MetricsMiddleware:
    """ASGI middleware: counts and times requests; what changes something, or fails, is logged."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            seconds = time.monotonic() - began
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.request_answered(method, route, status, seconds)
            level = logging.DEBUG if method in ("GET", "HEAD") and status < 500 else logging.INFO
            log.log(level, "%s %s %d, %.0f ms", method, route, status, 1000 * seconds)
