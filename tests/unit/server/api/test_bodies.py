"""Bodies in memory: bounded in bytes, and inputs in base64 are decoded in pieces."""

from __future__ import annotations

import base64
import json
import random
import tracemalloc
from collections.abc import Callable

import pytest

from server.api.bodies import (
    LONG_TEXT_BYTES,
    MAX_REST_BYTES,
    PIECE_BYTES,
    BodyAccount,
    BodyBudget,
    BodyError,
    InlineFile,
    LongText,
    parse_cut,
)
from server.api.errors import ApiError
from server.api.schemas import EndpointSchema, parse_json, validate_job_input
from server.jobs.request import MediaLimits
from tests.support.application import Api

DATA = random.Random(1).randbytes(PIECE_BYTES + 12_345)


def decode(text: bytes) -> bytes:
    return b"".join(InlineFile(memoryview(text)).pieces())


def test_base64_is_decoded_across_pieces() -> None:
    text = base64.b64encode(DATA)
    lines = base64.encodebytes(DATA)
    assert len(text) > PIECE_BYTES
    for variant in (
        text,
        lines,
        lines.replace(b"\n", b"\\r\\n"),
        lines.replace(b"\n", b" \t"),
        text.replace(b"/", b"\\/"),
        text.replace(b"+", b"\\u002B").replace(b"=", b"\\u003d"),
        b" " * 3 + text,
    ):
        assert decode(variant) == DATA
    for broken in (text[:-1], text + b"A", text + text, text[:-4] + b"A=AA", b"{" + text, b"AA==" * 400_000):
        with pytest.raises(ValueError, match=r"."):
            decode(broken)


def test_long_texts_are_cut_out_and_the_rest_is_parsed() -> None:
    long = base64.b64encode(DATA).decode()
    value = {"video": long, "audio": "short", "list": [{"audio": long, "odd": 'a\\"b\\\\'}], "n": 1.5}
    parsed = parse_cut(bytearray(json.dumps(value).encode()), 1000)
    assert isinstance(parsed["video"], LongText)
    assert isinstance(parsed["list"][0]["audio"], LongText)
    assert bytes(parsed["video"].content).decode() == long
    assert parsed["list"][0]["odd"] == value["list"][0]["odd"]  # type: ignore[index]
    assert (parsed["audio"], parsed["n"]) == ("short", 1.5)
    escaped = json.dumps({"a": "\\" * LONG_TEXT_BYTES, "b": '"' * LONG_TEXT_BYTES}).encode()
    assert bytes(parse_cut(escaped, 10**6)["a"].content) == b"\\" * 2 * LONG_TEXT_BYTES
    with pytest.raises(BodyError, match="texts"):
        parse_cut(escaped, 1000)
    texts = ["x" * (LONG_TEXT_BYTES - 1)] * (MAX_REST_BYTES // LONG_TEXT_BYTES + 1)
    with pytest.raises(BodyError, match="besides"):
        parse_cut(json.dumps(texts).encode(), 1000)


def test_long_texts_are_no_urls_and_no_options() -> None:
    long = "https://h.example/" + "x" * LONG_TEXT_BYTES
    usual = {"video": "https://h.example/v.mp4", "audio": "https://h.example/a.wav"}
    for name in ("video", "face", "prompt", "consent"):
        fields = parse_json(json.dumps({**usual, name: long}).encode())
        with pytest.raises(ApiError) as error:
            validate_job_input(EndpointSchema(), fields, vendor_limits=True)
        assert error.value.status == 400


def test_large_input_takes_its_own_size_in_memory() -> None:
    body = bytearray(b'{"video": "https://h.example/v.mp4", "audio": "' + b"A A " * (4 << 20) + b'"}')
    tracemalloc.start()
    given = validate_job_input(EndpointSchema(), parse_json(body), vendor_limits=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(map(len, given.files.inline["audio"].pieces())) == 6 << 20
    assert given.files.sources[1].limits == MediaLimits()
    assert peak < 8 * PIECE_BYTES


def test_bodies_in_memory_are_bounded() -> None:
    budget = BodyBudget(max_total=100, max_per_tenant=60)
    mallory, again, bob = (BodyAccount(budget, name) for name in ("mallory", "mallory", "bob"))
    mallory.add(40)
    with pytest.raises(ApiError) as error:
        again.add(30)
    assert (error.value.status, error.value.code) == (429, "bodies_busy")
    bob.add(55)
    with pytest.raises(ApiError) as error:
        again.add(10)
    assert (error.value.status, error.value.code) == (503, "bodies_busy")
    mallory.release()
    mallory.release()
    again.add(45)
    for account in (again, bob):
        account.release()
    assert (budget.total, dict(budget.of_tenant)) == (0, {})


def test_requests_release_their_bodies(make_api: Callable[..., Api]) -> None:
    api = make_api(max_bodies_bytes=300_000, max_tenant_bodies_bytes=200_000)
    url, text = "/api/v3/bytedance/latentsync", base64.b64encode(DATA[:100_000]).decode()
    body = {"video": "https://media.example/v.mp4", "audio": text}
    for _ in range(3):
        assert api.client.post(url, json=body, headers=api.headers).status_code == 200
        assert api.client.post(url, json={"audio": text}, headers=api.headers).status_code == 400
    refusal = api.client.post(url, json={**body, "video": text}, headers=api.headers)
    assert (refusal.status_code, refusal.json()["error_code"]) == (429, "bodies_busy")
    assert refusal.headers["retry-after"] == "5"


def test_base64_output_is_streamed_up_to_a_size(make_api: Callable[..., Api]) -> None:
    api = make_api(max_base64_output_bytes=len(DATA))
    for content, is_inline in ((DATA, True), (DATA + b"x", False)):
        job = api.submit(enable_base64_output=True)
        api.succeed(job, content)
        answer = api.client.get(f"/api/v3/predictions/{job}/result", headers=api.headers)
        (output,) = answer.json()["data"]["outputs"]
        assert int(answer.headers["content-length"]) == len(answer.content)
        if is_inline:
            assert base64.b64decode(output) == content
        else:
            assert api.client.get(output).content == content
            assert "base64 is limited" in answer.json()["data"]["warnings"][0]
