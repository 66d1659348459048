"""What must not get in: JSON that Python takes and a server cannot keep, broken requests."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from typing import Any

import pytest

from server.api.schemas import MAX_DEPTH, MAX_VALUES, BodyError, parse_json
from server.workers.process import WorkerDiedError, WorkerProcess
from tests.support.application import Api

LINKS = {"video": "https://media.example/a.mp4", "audio": "https://media.example/a.wav"}
HOSTILE = {
    "half a character": r'"\ud800"',
    "half a character as a name": r'{"\udfff": 1}',
    "NUL": r'"http://a.example/\u0000"',
    "NaN": "NaN",
    "endless": "1e999",
    "deep": "[" * 700 + "]" * 700,
    "too deep": '{"a":' * 2000 + "1" + "}" * 2000,
    "many": "[" + ",".join(["[]"] * MAX_VALUES) + "]",
    "a long integer": "9" * 5000,
}


def test_a_poisoned_body_is_refused_and_leaves_nothing(subtests: pytest.Subtests, api: Api) -> None:
    for name, value in HOSTILE.items():
        for path in ["/api/v3/bytedance/latentsync", "/api/v1/lipsync-video"]:
            with subtests.test(name, path=path):
                given = json.dumps(LINKS)[:-1] + f', "more": {value}}}'
                body = f'{{"formState": {given}}}' if "v1" in path else given
                answer = api.client.post(path, content=body, headers=api.headers)
                assert answer.status_code == 400
                assert api.client.get("/api/native/v1/jobs", headers=api.headers).json() == {
                    "total": 0,
                    "jobs": [],
                }


def test_a_model_to_search_for_is_a_string(subtests: pytest.Subtests, api: Api) -> None:
    for model in [["a"], {"a": 1}, 10**30, 1.5]:
        with subtests.test(model=model):
            body = {"page": 1, "page_size": 1, "model": model}
            answer = api.client.post("/api/v3/predictions", json=body, headers=api.headers)
            assert (answer.status_code, answer.json()["error_code"]) == (400, "invalid_parameter")


def test_no_url_holds_nul(subtests: pytest.Subtests, api: Api) -> None:
    for path in [
        "/api/v3/predictions/%00",
        "/api/native/v1/jobs?text=a%00",
        "/files/%00/a",
        "/api/v1/jobs/%00",
    ]:
        with subtests.test(path=path):
            assert api.client.get(path, headers=api.headers).status_code == 400


def test_what_is_usual_is_read() -> None:
    usual = {"text": "größer 😀 \r\n", "numbers": [1, 2.5, -1], "none": None, "deep": [[[{"a": []}]]]}
    assert parse_json(json.dumps(usual).encode()) == usual
    assert parse_json(json.dumps(usual, ensure_ascii=False).encode()) == usual
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    with pytest.raises(BodyError, match="levels"):
        parse_json(b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2))
    with pytest.raises(BodyError, match="UTF-8"):
        parse_json(json.dumps(usual).encode("utf-16"))


def test_many_values_cost_no_memory() -> None:
    body = b"[" + b"{}," * (10 << 20)
    tracemalloc.start()
    with pytest.raises(BodyError, match="values"):
        parse_json(body)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_client_that_leaves_in_the_middle_is_no_fault(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/v1/lipsync-video",
        "raw_path": b"/api/v1/lipsync-video",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "headers": [(b"host", b"a"), (b"authorization", f"Bearer {api.key}".encode())],
        "server": ("a", 80),
        "client": ("b", 80),
    }
    said: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    assert api.client.portal is not None
    api.client.portal.call(api.client.app, scope, receive, send)
    assert said[0]["status"] == 499
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_worker_that_speaks_nonsense_is_given_up(subtests: pytest.Subtests) -> None:
    async def read_first_message(line: bytes) -> object:
        stdout = asyncio.StreamReader(limit=100)
        stdout.feed_data(line)
        return await WorkerProcess(0, stdout, None).begin(5)  # type: ignore[arg-type]

    for line in [b'{"kind":"boast"}\n', b"\xff\n", b"x" * 200, b'{"kind":"worker_ready"}\n']:
        with subtests.test(line=line), pytest.raises(WorkerDiedError, match="nonsense"):
            asyncio.run(read_first_message(line))
