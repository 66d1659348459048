"""The shortest way for the most frequent request: a client that asks again how its job is.

Two hundred clients ask once a second each, on the machine that renders; what routing, validation and error
handling cost them would be missing there. The answer is made where the router's is made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastapi import Request as HttpRequest
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from server.api import wavespeed
from server.api.context import ApiContext
from server.api.errors import KNOWN_ERRORS, to_api_error

PATH = re.compile(rf"(?:{'|'.join(wavespeed.PREFIXES)})/predictions/([0-9a-f]{{32}})(/result)?")


@dataclass(frozen=True, slots=True)
class _Route:
    """What the measuring middleware wants to know of a route."""

    path: str


class FastPollMiddleware:
    """ASGI middleware: answers polls itself, hands everything else on."""

    def __init__(self, app: ASGIApp, context: ApiContext) -> None:
        self._app, self._context = app, context

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        is_get = scope["type"] == "http" and scope["method"] == "GET"
        if not is_get or not (found := PATH.fullmatch(scope["path"])):
            await self._app(scope, receive, send)
            return
        scope["route"] = _Route(f"/predictions/{{job_id}}{found[2] or ''}")
        try:
            response = await wavespeed.poll(self._context, HttpRequest(scope), found[1])
        except KNOWN_ERRORS as error:
            response = wavespeed.error_response(to_api_error(error))
        await response(scope, receive, send)
