"""JSON that can be stored."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from server.api.schemas import MAX_DEPTH, BodyError, parse_json


def test_ordinary_json_is_parsed() -> None:
    usual = {"text": "größer 😀 \r\n", "numbers": [1, 2.5, -1], "none": None, "deep": [[[{"a": []}]]]}
    assert parse_json(json.dumps(usual).encode()) == usual
    assert parse_json(json.dumps(usual, ensure_ascii=False).encode()) == usual
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    with pytest.raises(BodyError, match="levels"):
        parse_json(b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2))
    with pytest.raises(BodyError, match="UTF-8"):
        parse_json(json.dumps(usual).encode("utf-16"))


def test_too_many_values_are_rejected_in_bounded_memory() -> None:
    body = b"[" + b"{}," * (10 << 20)
    tracemalloc.start()
    with pytest.raises(BodyError, match="values"):
        parse_json(body)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
