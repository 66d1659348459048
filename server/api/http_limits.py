"""Limits of HTTP connections: clients that send nothing, too slowly or without end are disconnected.

uvicorn itself waits without limit for a request's head and body, keeps heads of any size in memory, and
accepts connections until the process has no file descriptors left.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

BAD_REQUEST, TIMED_OUT, HEAD_TOO_LARGE = 400, 408, 431
MESSAGES = {
    BAD_REQUEST: "Invalid HTTP request received.",
    TIMED_OUT: "The request was sent too slowly.",
    HEAD_TOO_LARGE: "The request's head is too large.",
}
MAX_FILES = 65_536
HEADER_OVERHEAD_BYTES = 32
"""Added to the size of each header, as in HTTP/2: a header takes memory, however short it is."""

FILES_PER_CONNECTION = 2
"""One descriptor for the socket, one for the other files of the process."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of one connection, and of their number.

    Attributes:
        head_timeout_s: from the connection, or from a request's first byte, to the end of its head.
        body_interval_s, min_body_bytes: in every interval, a body must grow by at least that much.
        write_timeout_s: a client that receives nothing of its answer for that long is disconnected.
        max_head_bytes: URL and headers together.
        max_connections: one more closes the one that has been idle longest.
        max_pipelined: requests that may wait for an earlier answer; the connection is closed after them, and
            their heads together may have `max_head_bytes`.
    """

    head_timeout_s: float = 20.0
    body_interval_s: float = 30.0
    min_body_bytes: int = 30_000
    write_timeout_s: float = 120.0
    max_head_bytes: int = 64 << 10
    max_connections: int = 10_000
    max_pipelined: int = 8


@dataclass(slots=True)
class ProtocolFactory:
    """Creates the protocols of a uvicorn server: pass it as `http` of its configuration.

    Attributes:
        idle: connections without a complete request, the longest idle first.
    """

    limits: ConnectionLimits = ConnectionLimits()
    idle: dict[LimitedHttpProtocol, None] = field(default_factory=dict)

    def __call__(self, **arguments: Any) -> LimitedHttpProtocol:
        return LimitedHttpProtocol(self, **arguments)


class LimitedHttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with limits of time and size."""

    def __init__(self, factory: ProtocolFactory, **arguments: Any) -> None:
        self._idle, self._limits = factory.idle, factory.limits
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0  # of the current request and those that wait
        self._is_last = False  # no more requests are read
        self._framing_bytes = 0  # received since the last data of a body
        self._body_bytes = 0
        self._checked_body_bytes = 0  # at the last check
        self._error_status = BAD_REQUEST
        super().__init__(**arguments)

    # --- a connection ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections and self._idle:
            next(iter(self._idle)).transport.abort()
        self._idle[self] = None
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._idle.pop(self, None)
        self._cancel_read_timer()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing() or self._is_last:
            return
        self._framing_bytes += len(data)
        super().data_received(data)
        if self._framing_bytes > self._limits.max_head_bytes:  # an endless head, chunk extension or trailer
            self._reject(HEAD_TOO_LARGE)
        elif self._read_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._await_head()  # the data begins no request, but has stopped uvicorn's own timer

    def send_400_response(self, msg: str) -> None:
        """Send an error; uvicorn calls this for every invalid request, the status is ours."""
        self._cancel_read_timer()
        if self._is_last:  # the waiting requests are answered first
            return
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()  # an error cannot be sent in the middle of an answer
            return
        message = MESSAGES[self._error_status].encode()
        head = b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\n"
        size = b"content-length: %d\r\n\r\n" % len(message)
        self.transport.write(STATUS_LINE[self._error_status] + head + size + message)
        self.transport.close()

    def _reject(self, status: int) -> None:
        if not self.transport.is_closing():
            self._error_status = status
            self.send_400_response("")

    # --- a request ---

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= self._limits.max_pipelined:
            # One read of 256 KiB holds thousands of requests: uvicorn would queue all of them.
            self._is_last, self.cycle.keep_alive = True, False
            raise ValueError("too many requests wait")  # stops the parser
        if not self.pipeline:
            self._head_bytes = 0
        self._await_head()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count_head_bytes(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head_bytes(len(name) + len(value) + HEADER_OVERHEAD_BYTES)
        if name.lower() == b"host" and any(other == b"host" for other, _ in self.headers):
            raise ValueError("two Host headers")  # proxies and servers could choose different ones
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._idle.pop(self, None)
        self._checked_body_bytes = self._body_bytes = 0
        self._start_read_timer(self._limits.body_interval_s, self._check_body_progress)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._framing_bytes = 0
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._framing_bytes = 0
        self._cancel_read_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # no request is pipelined: uvicorn closes the idle connection later
            self._idle[self] = None

    def _count_head_bytes(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._limits.max_head_bytes:
            self._error_status = HEAD_TOO_LARGE
            raise ValueError(MESSAGES[HEAD_TOO_LARGE])  # stops the parser, and uvicorn sends the error

    def _await_head(self) -> None:
        self._start_read_timer(self._limits.head_timeout_s, self._reject_slow_client)

    def _check_body_progress(self) -> None:
        growth = self._body_bytes - self._checked_body_bytes
        if growth < self._limits.min_body_bytes and not self.flow.read_paused:
            self._reject_slow_client()
            return
        self._checked_body_bytes = self._body_bytes
        self._start_read_timer(self._limits.body_interval_s, self._check_body_progress)

    def _reject_slow_client(self) -> None:
        self._reject(TIMED_OUT)

    # --- an answer ---

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._limits.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    # --- the timer ---

    def _start_read_timer(self, seconds: float, callback: Callable[[], None]) -> None:
        self._cancel_read_timer()
        self._read_timer = self.loop.call_later(seconds, callback)

    def _cancel_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None


def raise_file_limit() -> int:
    """Raise the limit of open files as far as the system allows; return the connections it is enough for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
    return max(soft, target) // FILES_PER_CONNECTION
