"""Shortcut for the most frequent request: a client that polls a prediction.

Two hundred clients poll once a second each, on the machine that renders. Routing, validation and error
handling would take processor time from rendering. The handler is the router's.
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
    """The attribute of a route that `MetricsMiddleware` reads."""

    path: str


class FastPollMiddleware:
    """ASGI middleware that answers polls and passes every other request on."""

    def __init__(self, app: ASGIApp, context: ApiContext) -> None:
        self._app, self._context = app, context

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        is_get = scope["type"] == "http" and scope["method"] == "GET"
        match = PATH.fullmatch(scope["path"]) if is_get else None
        if match is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = _Route(f"/predictions/{{job_id}}{match[2] or ''}")
        try:
            response = await wavespeed.poll_prediction(self._context, HttpRequest(scope), match[1])
        except KNOWN_ERRORS as error:
            response = wavespeed.error_response(to_api_error(error))
        await response(scope, receive, send)
