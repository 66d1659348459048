"""What must not get in: JSON that Python takes and a server cannot keep, broken requests."""

from __future__ import annotations

import json

import pytest

from server.api.schemas import MAX_VALUES
from tests.support.application import Api

LINKS = {"video": "https://media.example/a.mp4", "audio": "https://media.example/a.wav"}
UNSTORABLE_VALUES = {
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


def test_unstorable_json_is_rejected_and_stores_nothing(subtests: pytest.Subtests, api: Api) -> None:
    for name, value in UNSTORABLE_VALUES.items():
        for path in ["/api/v3/bytedance/latentsync", "/api/v1/lipsync-video"]:
            with subtests.test(name, path=path):
                inputs = json.dumps(LINKS)[:-1] + f', "more": {value}}}'
                body = f'{{"formState": {inputs}}}' if "v1" in path else inputs
                answer = api.client.post(path, content=body, headers=api.headers)
                assert answer.status_code == 400
                assert api.client.get("/api/native/v1/jobs", headers=api.headers).json() == {
                    "total": 0,
                    "jobs": [],
                }


def test_search_for_a_model_needs_a_string(subtests: pytest.Subtests, api: Api) -> None:
    for model in [["a"], {"a": 1}, 10**30, 1.5]:
        with subtests.test(model=model):
            body = {"page": 1, "page_size": 1, "model": model}
            answer = api.client.post("/api/v3/predictions", json=body, headers=api.headers)
            assert (answer.status_code, answer.json()["error_code"]) == (400, "invalid_parameter")


def test_nul_in_a_url_is_rejected(subtests: pytest.Subtests, api: Api) -> None:
    for path in [
        "/api/v3/predictions/%00",
        "/api/native/v1/jobs?text=a%00",
        "/files/%00/a",
        "/api/v1/jobs/%00",
    ]:
        with subtests.test(path=path):
            assert api.client.get(path, headers=api.headers).status_code == 400
