"""Bodies of requests in memory: how many bytes at once, and base64 that is decoded piece by piece.

A body is kept as received bytes until its inputs are on disk. Long texts in it are inputs in base64: they are
cut out before the JSON is parsed and decoded in pieces, so that a body takes its own size in memory, and no
piece holds the interpreter for longer than a few milliseconds.
"""

from __future__ import annotations

import asyncio
import binascii
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.errors import ApiError

LONG_TEXT_BYTES: Final = 64 << 10
"""Texts of a body from this length on are cut out."""

EXCERPT_LENGTH: Final = 16 << 10
"""Longer than any text that is not an input may be, so that a long text passes no check."""

PIECE_BYTES: Final = 1 << 20
COUNTED_BYTES: Final = 1 << 17
MAX_REST_BYTES: Final = 8 << 20
"""Of a body without its long texts: as objects, JSON takes several times its size in memory."""

ESCAPES: Final = {
    b"\\/": b"/",
    b"\\n": b"",
    b"\\r": b"",
    b"\\t": b"",
    b"\\u002B": b"+",
    b"\\u002b": b"+",
    b"\\u002F": b"/",
    b"\\u002f": b"/",
    b"\\u003D": b"=",
    b"\\u003d": b"=",
}
"""What JSON encoders do to base64."""

ESCAPE_LENGTH: Final = 6
WHITE_SPACE: Final = b" \t\r\n\v\f"
RETRY_AFTER_S: Final = 5


class BodyError(ValueError):
    """The body is not JSON that can be stored; the message names the problem."""


class LongText(str):
    """Beginning of a text that was cut out of a body.

    Attributes:
        content: all of it, as bytes of the body.
    """

    content: memoryview

    def __new__(cls, content: memoryview) -> LongText:
        text = super().__new__(cls, bytes(content[:EXCERPT_LENGTH]).decode(errors="replace"))
        text.content = content
        return text


# --- memory ---


@dataclass(slots=True)
class BodyAccount:
    """Bytes of one request's body.

    Attributes:
        tenant: who sends it; set when the request is authenticated.
    """

    budget: BodyBudget
    tenant: str = ""
    size: int = 0

    def add(self, count: int) -> None:
        """Count received bytes.

        Raises:
            ApiError: 429 or 503, too many bytes are in memory.
        """
        budget, before = self.budget, self.budget.of_tenant[self.tenant]
        if before + count > budget.max_per_tenant:
            limit = f"{budget.max_per_tenant / 1e6:.0f} MB"
            sentence = f"Your requests may have {limit} at once: send one after the other."
            raise ApiError(429, sentence, "bodies_busy", RETRY_AFTER_S)
        if budget.total + count > budget.max_total:
            sentence = "This server receives too many large requests at once: upload the files, or retry."
            raise ApiError(503, sentence, "bodies_busy", RETRY_AFTER_S)
        self.size += count
        budget.total += count
        budget.of_tenant[self.tenant] += count

    def release(self) -> None:
        """Release the bytes: the body is no longer needed."""
        budget = self.budget
        budget.total -= self.size
        budget.of_tenant[self.tenant] -= self.size
        if not budget.of_tenant[self.tenant]:
            del budget.of_tenant[self.tenant]
        self.size = 0


@dataclass(slots=True)
class BodyBudget:
    """Bytes of all bodies in memory.

    Attributes:
        max_total, max_per_tenant: limits.
        total, of_tenant: current values.
    """

    max_total: int
    max_per_tenant: int
    total: int = 0
    of_tenant: Counter[str] = field(default_factory=Counter)


class BodyBudgetMiddleware:
    """ASGI middleware that opens an account for each request, and releases it at the end."""

    def __init__(self, app: ASGIApp, budget: BodyBudget) -> None:
        self._app, self._budget = app, budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        account = scope["state"]["body"] = BodyAccount(self._budget)
        try:
            await self._app(scope, receive, send)
        finally:
            account.release()


# --- long texts ---


def count_bytes(body: bytes | bytearray, tokens: bytes, limit: int) -> int:
    """Count bytes of a body in pieces, until there are more than `limit`."""
    count = 0
    for start in range(0, len(body), COUNTED_BYTES):
        piece = body[start : start + COUNTED_BYTES]
        count += len(piece) - len(piece.translate(None, tokens))
        if count > limit:
            break
    return count


def parse_cut(body: bytes | bytearray, max_quotes: int) -> Any:
    """Parse JSON whose long texts are replaced by `LongText`.

    Raises:
        BodyError: more than `max_quotes` quotation marks, or more than `MAX_REST_BYTES` besides long texts.
        ValueError, RecursionError: it is no JSON in UTF-8.
    """
    if len(body) < LONG_TEXT_BYTES:
        return json.loads(body.decode())
    if count_bytes(body, b'"', max_quotes) > max_quotes:
        raise BodyError(f"The body has more than {max_quotes // 2} texts.")
    token, parts, texts, rest_start = secrets.token_hex(16), list[bytes](), dict[str, LongText](), 0
    view = memoryview(body).toreadonly()
    for start, stop in _long_texts(body):
        name = f"{token}{len(texts)}"
        parts += [bytes(view[rest_start:start]), name.encode()]
        texts[name] = LongText(view[start:stop])
        rest_start = stop
    parts.append(bytes(view[rest_start:]))
    if sum(map(len, parts)) > MAX_REST_BYTES:
        raise BodyError(f"The body has more than {MAX_REST_BYTES >> 20} MiB besides its inputs.")
    return _insert_texts(json.loads(b"".join(parts).decode()), texts, 0)


def _long_texts(body: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of each long text, without its quotation marks."""
    at = 0
    while (start := body.find(b'"', at) + 1) > 0:
        stop = start
        while (stop := body.find(b'"', stop)) >= 0 and _is_escaped(body, start, stop):
            stop += 1
        if stop < 0:
            return
        if stop - start >= LONG_TEXT_BYTES:
            yield start, stop
        at = stop + 1


def _is_escaped(body: bytes | bytearray, start: int, at: int) -> bool:
    backslashes = 0
    while at - backslashes > start and body[at - backslashes - 1] == 0x5C:
        backslashes += 1
    return backslashes % 2 == 1


def _insert_texts(value: Any, texts: dict[str, LongText], depth: int) -> Any:
    if depth > 100:
        raise RecursionError
    if isinstance(value, dict):
        return {texts.get(name, name): _insert_texts(part, texts, depth + 1) for name, part in value.items()}
    if isinstance(value, list):
        return [_insert_texts(part, texts, depth + 1) for part in value]
    return texts.get(value, value) if isinstance(value, str) else value


# --- base64 ---


@dataclass(frozen=True, slots=True)
class InlineFile:
    """An input in base64, as a body has it; decoded in pieces."""

    content: memoryview

    def pieces(self) -> Iterator[bytes]:
        """Decode.

        Raises:
            ValueError: it is not base64; perhaps after some pieces.
        """
        digits, raw_rest, is_padded = b"", b"", False
        for start in range(0, len(self.content), PIECE_BYTES):
            raw = raw_rest + self.content[start : start + PIECE_BYTES].tobytes()
            raw_rest = b""
            is_last = start + PIECE_BYTES >= len(self.content)
            if not is_last and (escape := raw.rfind(b"\\")) > len(raw) - ESCAPE_LENGTH:
                raw, raw_rest = raw[:escape], raw[escape:]
            if b"\\" in raw:
                for escape_text, replacement in ESCAPES.items():
                    raw = raw.replace(escape_text, replacement)
            digits += raw.translate(None, WHITE_SPACE)
            whole = len(digits) - len(digits) % 4
            if whole == 0:
                continue
            if is_padded:
                raise ValueError("data after the padding")
            yield binascii.a2b_base64(digits[:whole], strict_mode=True)
            is_padded = digits[whole - 1 : whole] == b"="
            digits = digits[whole:]
        if digits:
            raise ValueError("the last group is incomplete")


async def stream_pieces(file: InlineFile) -> AsyncIterator[bytes]:
    """Decode in a thread."""
    pieces = file.pieces()
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece
