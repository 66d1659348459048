"""What HTTP requires of every path: HEAD, Allow, challenges, conditional requests, origins, no redirects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.application import Api, put_blob

NAME = "results/0123456789abcdef0123456789abcdef.mp4"


def link(api: Api, name: str = NAME) -> str:
    return api.server.context.file_url("", name, api.server.jobs.now())


def test_head_is_get_without_a_body(subtests: pytest.Subtests, api: Api) -> None:
    put_blob(api.server.blobs, NAME, b"0123456789")
    job = api.submit()
    events = f"/api/native/v1/jobs/{job}/events"  # without end: HEAD must not wait for it
    paths = (
        "/",
        "/livez",
        "/readyz",
        "/openapi.json",
        "/api/v3/models",
        f"/api/v3/predictions/{job}",
        link(api),
    )
    for path in (*paths, events, "/api/v3/nosuch"):
        with subtests.test(path=path):
            head = api.client.head(path, headers=api.headers)
            assert head.content == b""
            if path != events:
                get = api.client.get(path, headers=api.headers)
                assert head.status_code == get.status_code
                assert head.headers["content-length"] == get.headers["content-length"]
    assert api.client.head(link(api), headers={"Range": "bytes=2-4"}).status_code == 206


def test_refused_methods_and_keys_name_what_is_accepted(api: Api) -> None:
    for path, methods in (
        ("/livez", "GET, HEAD"),
        ("/api/v3/models", "GET, HEAD"),
        ("/api/v1/jobs/x", "GET, HEAD"),
        ("/api/native/v1/batches", "GET, HEAD, POST"),
    ):
        response = api.client.request("PATCH", path, headers=api.headers)
        assert (response.status_code, response.headers["allow"]) == (405, methods), path
        assert methods in response.json()["message"]
    for path in ("/api/v3/models", "/api/v1/jobs/x", "/api/native/v1/jobs", "/admin/keys"):
        response = api.client.get(path)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer"), path


def test_unknown_paths_are_coded_and_never_redirect(api: Api) -> None:
    for method, path in (("GET", "/api/v3/nosuch"), ("POST", "/api/v3/nosuch"), ("GET", "/nosuch")):
        response = api.client.request(method, path, follow_redirects=False)
        assert (response.status_code, response.json()["error_code"]) == (404, "path_not_found"), path


def test_invalid_query_is_named(api: Api) -> None:
    for query in ("limit=0", "state=bad"):
        response = api.client.get(f"/api/native/v1/jobs?{query}", headers=api.headers)
        assert (response.status_code, response.json()["error"]) == (400, "invalid_parameter")
        assert query.partition("=")[0] in response.json()["message"]


def test_compressed_bodies_are_refused(api: Api) -> None:
    response = api.post_job(**{"Content-Encoding": "gzip"})
    assert (response.status_code, response.json()["error_code"]) == (415, "encoding_not_supported")
    assert response.headers["accept-encoding"] == "identity"
    assert api.post_job(**{"Content-Encoding": "identity"}).status_code == 200


def test_unchanged_files_are_not_sent_again(api: Api) -> None:
    put_blob(api.server.blobs, NAME, b"0123456789")

    def status(**headers: str) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        response = api.client.get(link(api), headers=named)
        assert (response.status_code == 304) == (response.content == b"")
        return response.status_code

    first = api.client.get(link(api)).headers
    etag, modified = first["etag"], first["last-modified"]
    assert status(if_none_match=etag) == status(if_none_match=f'"x", W/{etag}') == 304
    assert status(if_none_match="*") == status(if_modified_since=modified) == 304
    assert status(if_none_match='"x"', if_modified_since=modified) == 200  # the ETag is the better witness
    assert status(if_modified_since="Thu, 01 Jan 1970 00:00:00 GMT") == status(if_modified_since="x") == 200
    assert status(range="bytes=2-4", if_range=modified) == status(range="bytes=2-4", if_range=etag) == 206
    assert status(range="bytes=2-4", if_range="Thu, 01 Jan 1970 00:00:00 GMT") == 200


def test_pages_of_named_origins_may_use_api_and_files(make_api: Callable[..., Api]) -> None:
    api, closed = make_api(cors_origins="https://app.example"), make_api()
    put_blob(api.server.blobs, NAME, b"0123456789")
    preflight = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "authorization"}
    for origin, is_allowed in (("https://app.example", True), ("https://evil.example", False)):
        answer = api.client.options("/admin/keys/x", headers={"Origin": origin, **preflight})
        assert (answer.status_code == 200) == is_allowed
        for path in (link(api), "/api/v3/models", "/api/v3/nosuch"):
            headers = api.client.get(path, headers={**api.headers, "Origin": origin}).headers
            assert (headers.get("access-control-allow-origin") == origin) == is_allowed, path
            assert "access-control-allow-credentials" not in headers
    assert "X-RateLimit-Remaining" in headers["access-control-expose-headers"]
    headers = closed.client.get("/api/v3/models", headers={"Origin": "https://app.example"}).headers
    assert "access-control-allow-origin" not in headers
    assert closed.client.options("/api/v3/models", headers={"Origin": "x", **preflight}).status_code == 405
