"""A JSON body as values that can be stored, sent on and said back: bounded, finite, plain Unicode.

Python's parser takes more: NaN, half characters (lone surrogates), hundreds of levels, a hundred megabytes of
empty lists. Each breaks something later, where the client is no longer there to be told.
"""

from __future__ import annotations

import json
import math
from typing import Any

MAX_VALUES = 10_000
"""Of a whole body; inputs as base64 are one value each, however long."""

MAX_DEPTH = 32


class BodyError(ValueError):
    """The message says what is wrong with the body."""


def read_json(body: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        BodyError: it is no JSON, has more than MAX_VALUES values or MAX_DEPTH levels, a number that is not
            finite, or text with NUL or half characters.
    """
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:  # before memory is spent on it
        raise BodyError(f"The body has more than {MAX_VALUES} values.")
    try:
        given = json.loads(body.decode())
    except (ValueError, RecursionError):
        raise BodyError("The body is not JSON in UTF-8.") from None
    _check(given, 0)
    return given


def _check(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise BodyError(f"The body is nested more than {MAX_DEPTH} levels deep.")
    match value:
        case dict():
            for name, part in value.items():
                _check(name, depth + 1)
                _check(part, depth + 1)
        case list():
            for part in value:
                _check(part, depth + 1)
        case str():
            if "\0" in value or not _is_whole(value):
                raise BodyError("A text in the body has a character that cannot be stored.")
        case float():
            if not math.isfinite(value):
                raise BodyError("A number in the body is not finite.")


def _is_whole(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
