"""Operations: probes, metrics, and for keys with the scope admin workers, keys, audit log and webhooks."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
from collections.abc import Iterator
from datetime import date
from functools import partial
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Query
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from server.api.auth import Scope, create_key, create_webhook_secret, rotate_key
from server.api.context import ApiContext
from server.api.errors import ApiError
from server.api.keys import (
    CHANGEABLE,
    CREATABLE,
    DEFAULT_OVERLAP_S,
    NUMBERS,
    body_schema,
    key_object,
    read_key_fields,
    read_seconds,
)
from server.api.schemas import read_json_object
from server.api.usage import start_of_day, usage_csv
from server.metrics import TEXT_TYPE, Metrics
from server.store import KeyExistsError, LastAdminKeyError
from server.workers.registry import WorkerRegistry
from server.workers.supervisor import Supervisor

T = TypeVar("T")

MAX_DEAD_WEBHOOKS = 1000
ROTATION_BODY: Final = {
    "requestBody": {
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "overlap_s": {
                            "type": "number",
                            "default": DEFAULT_OVERLAP_S,
                            "description": "How long the old key stays valid.",
                        }
                    },
                }
            }
        }
    }
}


def create_router(
    context: ApiContext,
    supervisor: Supervisor,
    registry: WorkerRegistry,
    metrics: Metrics,
    isolation_warning: str = "",
) -> APIRouter:
    """Create all endpoints, to be mounted without a prefix."""
    router = APIRouter()
    jobs, store = context.jobs, context.jobs.store

    @router.get("/livez")
    async def livez() -> Response:
        return PlainTextResponse("ok")

    @router.get("/readyz")
    async def readyz() -> Response:
        if jobs.is_draining:
            return PlainTextResponse("the server is about to stop", 503)
        if not supervisor.is_ready:
            return PlainTextResponse("no worker is ready yet", 503)
        if store.is_exclusive and not supervisor.workers:
            return PlainTextResponse(
                "there can be no worker: set devices, or share a PostgreSQL database", 503
            )
        context.require_accepting()
        return PlainTextResponse(f"ready. {isolation_warning}" if isolation_warning else "ready")

    @router.get("/metrics")
    async def get_metrics(http: HttpRequest) -> Response:
        if context.settings.metrics == "off":
            raise ApiError(404, "The metrics of this server are switched off.", "not_found")
        if context.settings.metrics == "key":
            context.authenticate(http, Scope.METRICS)
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
        return JSONResponse([key_object(key) for key in store.list_keys()])

    @router.post("/admin/keys", openapi_extra=body_schema(CREATABLE))
    async def add_key(http: HttpRequest) -> Response:
        caller = context.authenticate(http, Scope.ADMIN)
        values = read_key_fields(await _read_fields(http), CREATABLE, jobs.now())
        try:
            text, key = await jobs.write(partial(create_key, store, jobs.now(), **values, by=caller.key_id))
        except KeyExistsError:
            raise ApiError(409, "This key exists already: import another one.", "key_exists") from None
        return JSONResponse({**key_object(key), "key": text})

    @router.patch("/admin/keys/{key_id}", openapi_extra=body_schema(CHANGEABLE))
    async def change_key(http: HttpRequest, key_id: str) -> Response:
        caller = context.authenticate(http, Scope.ADMIN)
        values = read_key_fields(await _read_fields(http), CHANGEABLE, jobs.now())
        if "scopes" in values:
            values["scopes"] = " ".join(sorted(values["scopes"]))
        with _last_admin_as_conflict():
            key = await jobs.write(partial(store.update_key, key_id, values, jobs.now(), caller.key_id))
        context.authenticator.clear_cache()
        return JSONResponse(key_object(_require_key(key, key_id)))

    @router.post("/admin/keys/{key_id}/rotate", openapi_extra=ROTATION_BODY)
    async def replace_key(http: HttpRequest, key_id: str) -> Response:
        caller = context.authenticate(http, Scope.ADMIN)
        fields = await _read_fields(http)
        if set(fields) - {"overlap_s"}:
            raise ApiError(400, "Only overlap_s can be set here.", "invalid_parameter")
        overlap_s = read_seconds("overlap_s", fields.get("overlap_s", DEFAULT_OVERLAP_S))
        rotate = partial(rotate_key, store, key_id, jobs.now(), overlap_s=overlap_s, by=caller.key_id)
        text, key = _require_key(await jobs.write(rotate), key_id)
        context.authenticator.clear_cache()
        return JSONResponse({**key_object(key), "key": text, "replaces": key_id})

    @router.post("/admin/keys/{key_id}/webhook-secret")
    async def replace_webhook_secret(http: HttpRequest, key_id: str) -> Response:
        caller = context.authenticate(http, Scope.ADMIN)
        values = {"webhook_secret": create_webhook_secret()}
        key = await jobs.write(partial(store.update_key, key_id, values, jobs.now(), caller.key_id))
        return JSONResponse({"id": _require_key(key, key_id).id, **values})

    @router.delete("/admin/keys/{key_id}")
    async def revoke_key(http: HttpRequest, key_id: str) -> Response:
        caller = context.authenticate(http, Scope.ADMIN)
        with _last_admin_as_conflict():
            was_revoked = await jobs.write(partial(store.revoke_key, key_id, jobs.now(), caller.key_id))
        _require_key(was_revoked or None, key_id)
        context.authenticator.clear_cache()
        return Response(status_code=204)

    @router.get("/admin/usage")
    async def export_usage(
        http: HttpRequest, since: date | None = None, until: date | None = None
    ) -> Response:
        context.authenticate(http, Scope.ADMIN)
        first, last = (None if day is None else start_of_day(day) for day in (since, until))
        rows = await asyncio.to_thread(store.usage, None, first, last)
        return Response(usage_csv(rows), media_type="text/csv")

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
        if not was_dead:
            raise ApiError(404, f"There is no dead webhook {notice_id[:64]!r}.", "not_found")
        jobs.webhook_due.set()
        return Response(status_code=204)

    return router


async def _read_fields(http: HttpRequest) -> dict[str, Any]:
    """Return the fields of the JSON body and of the query; in the query, numbers are text."""
    query = {
        name: int(value) if name in NUMBERS and re.fullmatch(r"\d{1,15}", value) else value
        for name, value in http.query_params.items()
    }
    body = await read_json_object(http)
    if both := sorted(set(query) & set(body)):
        raise ApiError(400, f"{both[0]!r} is in the query and in the body.", "invalid_parameter")
    return query | body


def _require_key(value: T | None, key_id: str) -> T:
    if value is None:
        raise ApiError(404, f"There is no key {key_id[:64]!r}, or it was revoked.", "not_found")
    return value


@contextlib.contextmanager
def _last_admin_as_conflict() -> Iterator[None]:
    try:
        yield
    except LastAdminKeyError:
        sentence = "This is the last key with the scope admin that does not end: create another one first."
        raise ApiError(409, sentence, "last_admin_key") from None
