"""The OpenAPI document describes what clients send and receive."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.support.application import Api


def document_of(api: Api) -> dict[str, Any]:
    return dict(api.client.get("/openapi.json").json())


def test_every_operation_has_an_answer_a_unique_id_and_its_security(api: Api) -> None:
    document = document_of(api)
    operations = [
        (path, operation) for path, entry in document["paths"].items() for operation in entry.values()
    ]
    assert len({operation["operationId"] for _, operation in operations}) == len(operations)
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    public = {path for path, operation in operations if operation.get("security", document["security"]) == []}
    assert public == {"/livez", "/readyz", "/metrics", "/files/{token}/{name}", "/uploads/{token}/{name}"}
    for path, operation in operations:
        responses = operation["responses"]
        content = responses.get("200", {}).get("content")
        assert "204" in responses or all(media["schema"] for media in content.values()), path
        assert "HTTPValidationError" not in str(responses), path
    references = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert references <= set(document["components"]["schemas"])
    paths = document["paths"]
    for path in ("/api/v3/upload", "/api/v3/media/upload/binary"):
        assert "multipart/form-data" in paths[path]["post"]["requestBody"]["content"]
    assert "application/octet-stream" in paths["/uploads/{token}/{name}"]["put"]["requestBody"]["content"]


def test_servers_name_the_public_url(make_api: Callable[..., Api]) -> None:
    assert document_of(make_api())["servers"] == [{"url": "/"}]
    api = make_api(public_url="https://media.example/lipsync")
    assert document_of(api)["servers"] == [{"url": "https://media.example/lipsync"}]


def test_answers_match_their_schemas(api: Api, subtests: pytest.Subtests) -> None:
    document = document_of(api)
    done, waiting = api.submit(), ""
    api.succeed(done)
    waiting = api.submit()
    form = {"formState": {"video": "https://media.example/v.mp4", "audio": "https://media.example/a.wav"}}
    requests: list[tuple[str, str, str, dict[str, Any]]] = [
        ("get", "/api/v3/predictions/{job_id}", done, {}),
        ("get", "/api/v3/predictions/{job_id}/result", waiting, {}),
        ("post", "/api/v3/predictions", "", {"json": {"page": 1, "page_size": 5}}),
        ("post", "/api/v3/media/uploads", "", {"json": {"filename": "a.mp4", "size": 3}}),
        ("post", "/api/v3/upload", "", {"files": {"file": ("a.mp4", b"abc")}}),
        ("get", "/api/v3/models", "", {}),
        ("get", "/api/v3/balance", "", {}),
        ("post", "/api/v1/lipsync-video", "", {"json": form}),
        ("get", "/api/native/v1/jobs", "", {}),
        ("get", "/api/native/v1/jobs/{job_id}", done, {}),
        ("get", "/admin/keys", "", {}),
    ]
    for method, path, job, arguments in requests:
        with subtests.test(path=path):
            response = api.client.request(
                method, path.replace("{job_id}", job), headers=api.headers, **arguments
            )
            assert response.status_code == 200, response.text
            content = document["paths"][path][method]["responses"]["200"]["content"]
            schema = content["application/json"]["schema"] | {"components": document["components"]}
            Draft202012Validator(schema).validate(response.json())
