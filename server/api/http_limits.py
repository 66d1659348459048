"""Limits of HTTP connections: clients that send nothing, too slowly or without end are disconnected.

uvicorn itself waits for ever for a request's head and body, keeps heads of any size in memory, and accepts
until the process has no files left. It knows nothing of what is asked or answered.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

BAD, TIMED_OUT, HEAD_TOO_LARGE = 400, 408, 431
SENTENCES = {
    BAD: "Invalid HTTP request received.",
    TIMED_OUT: "The request came too slowly.",
    HEAD_TOO_LARGE: "The request's head is too large.",
}
MOST_FILES = 65_536
HEADER_COST = 32
"""Bytes that a header counts besides its own, as in HTTP/2: it costs memory, however short it is."""

FILES_PER_CONNECTION = 2
"""A connection is one file; the other is left for what the process opens besides."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What is waited for, and how much is kept.

    Attributes:
        head_s: from the connection, or from a request's first byte, to the end of its head.
        body_s, body_bytes: a body that is being read has to come on by that many bytes in that time.
        answer_s: a client that takes nothing of its answer for that long is cut off.
        head_bytes: URL and headers together.
        connections: one more, and the longest idle one is closed.
    """

    head_s: float = 20.0
    body_s: float = 30.0
    body_bytes: int = 30_000
    answer_s: float = 120.0
    head_bytes: int = 64 << 10
    connections: int = 10_000


@dataclass(slots=True)
class ProtocolFactory:
    """Makes uvicorn's protocols: pass it as `http` of its configuration.

    Attributes:
        idle: connections with no whole request, the longest idle first.
    """

    patience: ConnectionLimits = ConnectionLimits()
    idle: dict[LimitedHttpProtocol, None] = field(default_factory=dict)

    def __call__(self, **given: Any) -> LimitedHttpProtocol:
        return LimitedHttpProtocol(self, **given)


class LimitedHttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with limits of time and size."""

    def __init__(self, all_: ProtocolFactory, **given: Any) -> None:
        self._all, self._patience = all_, all_.patience
        self._timer: asyncio.TimerHandle | None = None  # for what the client sends
        self._answer_timer: asyncio.TimerHandle | None = None  # for what it takes
        self._head_bytes = 0  # of this request
        self._bare_bytes = 0  # since the last piece of a body
        self._body_bytes = 0
        self._body_seen = 0  # at the last look
        self._refusal = BAD
        super().__init__(**given)

    # --- a connection ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._patience.connections and self._all.idle:
            next(iter(self._all.idle)).transport.abort()
        self._all.idle[self] = None
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.idle.pop(self, None)
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._bare_bytes += len(data)
        super().data_received(data)
        if self._bare_bytes > self._patience.head_bytes:  # a head, a chunk's name or trailers without end
            self._refuse(HEAD_TOO_LARGE)
        elif self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._wait_for_head()  # what came begins no request yet, and has stopped uvicorn's own timer

    def send_400_response(self, msg: str) -> None:
        """uvicorn's only refusal: the status is ours."""
        self._stop_waiting()
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()  # in the middle of an answer there is no place for another
            return
        sentence = SENTENCES[self._refusal].encode()
        head = b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\n"
        size = b"content-length: %d\r\n\r\n" % len(sentence)
        self.transport.write(STATUS_LINE[self._refusal] + head + size + sentence)
        self.transport.close()

    def _refuse(self, status: int) -> None:
        if not self.transport.is_closing():
            self._refusal = status
            self.send_400_response("")

    # --- a request ---

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        self._wait_for_head()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + HEADER_COST)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._all.idle.pop(self, None)
        self._body_seen = self._body_bytes = 0
        self._wait(self._patience.body_s, self._look_at_body)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._bare_bytes = 0
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._bare_bytes = 0
        self._stop_waiting()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # none is waiting: uvicorn closes it soon, unless something comes
            self._all.idle[self] = None

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._patience.head_bytes:
            self._refusal = HEAD_TOO_LARGE
            raise ValueError(SENTENCES[HEAD_TOO_LARGE])  # the parser stops, uvicorn refuses

    def _wait_for_head(self) -> None:
        self._wait(self._patience.head_s, self._too_slow)

    def _look_at_body(self) -> None:
        came = self._body_bytes - self._body_seen
        if came < self._patience.body_bytes and not self.flow.read_paused:
            self._too_slow()
            return
        self._body_seen = self._body_bytes
        self._wait(self._patience.body_s, self._look_at_body)

    def _too_slow(self) -> None:
        self._refuse(TIMED_OUT)

    # --- an answer ---

    def pause_writing(self) -> None:
        super().pause_writing()
        self._answer_timer = self.loop.call_later(self._patience.answer_s, self.transport.abort)

    def resume_writing(self) -> None:
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None
        super().resume_writing()

    # --- the timer ---

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, then)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def raise_file_limit() -> int:
    """Take as many open files as the system grants; returns how many connections they are enough for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted) // FILES_PER_CONNECTION
