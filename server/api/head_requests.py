"""HEAD wherever GET is accepted: the headers of the answer, without its body."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadMiddleware:
    """ASGI middleware that answers HEAD with the head of GET's answer, and stops the handler there.

    A handler that goes on would read a whole file, or follow a job until it ends.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        has_head = asyncio.Event()

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                has_head.set()

        get_scope = {**scope, "method": "GET"}
        handler = asyncio.ensure_future(self._app(get_scope, receive, send_head))
        waiter = asyncio.ensure_future(has_head.wait())
        try:
            await asyncio.wait((handler, waiter), return_when=asyncio.FIRST_COMPLETED)
            if handler.done():
                handler.result()
        finally:
            scope["route"] = get_scope.get("route")
            waiter.cancel()
            handler.cancel()
            await asyncio.gather(handler, waiter, return_exceptions=True)
