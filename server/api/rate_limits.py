"""Headers that report a key's rate limit."""

from __future__ import annotations

import math

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.auth import RateLimit


class RateLimitMiddleware:
    """ASGI middleware that adds X-RateLimit headers to answers of requests with a valid key."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope["state"]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start" and (rate_limit := state.get("rate_limit")):
                message["headers"] = [*message["headers"], *_headers(rate_limit)]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _headers(rate_limit: RateLimit) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-ratelimit-limit", b"%d" % rate_limit.limit),
        (b"x-ratelimit-remaining", b"%d" % rate_limit.remaining),
        (b"x-ratelimit-reset", b"%d" % math.ceil(rate_limit.reset_at)),
    ]
