"""Operations: probes, metrics, and for keys with the scope admin workers, keys, audit log and webhooks."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from server.api.auth import Scope, create_key
from server.api.context import ApiContext
from server.metrics import TEXT_TYPE, Metrics
from server.workers.registry import WorkerRegistry
from server.workers.supervisor import Supervisor

Limit = Annotated[int | None, Query(ge=1, le=10**9)]
SECRET_FIELDS = ("digest", "webhook_secret")
MAX_DEAD_WEBHOOKS = 1000


def create_router(
    context: ApiContext, supervisor: Supervisor, registry: WorkerRegistry, metrics: Metrics
) -> APIRouter:
    """Create all endpoints, to be mounted without a prefix."""
    router = APIRouter()
    jobs, store = context.jobs, context.jobs.store

    @router.get("/livez")
    async def livez() -> Response:
        return PlainTextResponse("ok")

    @router.get("/readyz")
    async def readyz() -> Response:
        is_ready = supervisor.is_ready
        return PlainTextResponse("ready" if is_ready else "no worker is ready yet", 200 if is_ready else 503)

    @router.get("/metrics")
    async def get_metrics() -> Response:
        text = metrics.render(store, supervisor.workers, registry.counts(), jobs.now())
        return Response(text, media_type=TEXT_TYPE)

    @router.get("/admin/workers")
    async def list_workers(http: HttpRequest) -> Response:
        context.authenticate(http, Scope.ADMIN)
        workers = await asyncio.to_thread(registry.list_workers)
        return JSONResponse([worker.to_json() for worker in workers])

    @router.get("/admin/keys")
    async def list_keys(http: HttpRequest) -> Response:
        context.authenticate(http, Scope.ADMIN)
        keys = [
            {name: getattr(key, name) for name in key.__dataclass_fields__ if name not in SECRET_FIELDS}
            for key in store.list_keys()
        ]
        return JSONResponse(keys)

    @router.post("/admin/keys")
    async def add_key(
        http: HttpRequest,
        tenant: str = "default",
        name: str = "",
        scopes: str = "run read",
        requests_per_minute: Limit = None,
        max_active_jobs: Limit = None,
        max_jobs_per_day: Limit = None,
    ) -> Response:
        context.authenticate(http, Scope.ADMIN)
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", tenant) or len(name) > 100:
            return JSONResponse({"error": "tenant: 1 to 64 letters, digits, - or _; name: at most 100."}, 400)
        if unknown := set(scopes.split()) - set(Scope):
            return JSONResponse({"error": f"unknown scope {min(unknown)}: use run, read or admin"}, 400)
        create = partial(
            create_key,
            store,
            jobs.now(),
            tenant=tenant,
            name=name,
            scopes=frozenset(Scope(scope) for scope in scopes.split()),
            requests_per_minute=requests_per_minute,
            max_active_jobs=max_active_jobs,
            max_jobs_per_day=max_jobs_per_day,
        )
        text, key = await jobs.write(create)
        return JSONResponse({"id": key.id, "key": text, "tenant": tenant, "name": name, "scopes": key.scopes})

    @router.delete("/admin/keys/{key_id}")
    async def revoke_key(http: HttpRequest, key_id: str) -> Response:
        context.authenticate(http, Scope.ADMIN)
        was_revoked = await jobs.write(partial(store.revoke_key, key_id, jobs.now()))
        context.authenticator.clear_cache()
        return Response(status_code=204 if was_revoked else 404)

    @router.get("/admin/audit")
    async def read_audit_log(
        http: HttpRequest,
        since: Annotated[float | None, Query(description="First moment, seconds since 1970.")] = None,
        until: Annotated[float | None, Query(description="Moment before which it ends.")] = None,
        after: Annotated[int, Query(ge=0, le=2**31 - 1, description="Id of the last entry received.")] = 0,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    ) -> Response:
        context.authenticate(http, Scope.ADMIN)
        read_page = partial(store.audit.page, after=after, since=since, until=until, limit=limit)
        entries = await asyncio.to_thread(read_page)
        lines = "".join(f"{entry.to_json()}\n" for entry in entries)
        return Response(lines, media_type="application/jsonl")

    @router.get("/admin/webhooks/dead")
    async def list_dead_webhooks(http: HttpRequest) -> Response:
        context.authenticate(http, Scope.ADMIN)
        return JSONResponse([dataclasses.asdict(notice) for notice in store.dead_webhooks(MAX_DEAD_WEBHOOKS)])

    @router.post("/admin/webhooks/{notice_id}/retry")
    async def retry_webhook(http: HttpRequest, notice_id: str) -> Response:
        context.authenticate(http, Scope.ADMIN)
        was_dead = await jobs.write(partial(store.retry_webhook, notice_id, jobs.now()))
        jobs.webhook_due.set()
        return Response(status_code=204 if was_dead else 404)

    return router
