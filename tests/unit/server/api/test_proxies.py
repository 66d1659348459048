"""What trusted proxies forward, path prefixes, and slashes at the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from server.api.proxies import ProxyMiddleware
from tests.support.application import BASE, Api

Make = Callable[..., Api]


def client_of(api: Api, address: str) -> TestClient:
    """A client whose connections come from an address."""
    return TestClient(api.client.app, base_url=BASE, client=(address, 1), headers=api.headers)


def model_server(client: TestClient, path: str = "/api/v3/models", **headers: str) -> str:
    """The base URL in an answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response = client.get(path, headers=named)
    assert response.status_code == 200, response.text
    return str(response.json()["data"][0]["api_schema"]["api_schemas"][0]["server"])


def test_links_follow_what_a_trusted_proxy_forwards(subtests: pytest.Subtests, api: Api) -> None:
    near = client_of(api, "127.0.0.1")
    inner = {"Host": "127.0.0.1:8000"}
    for headers, expected in (
        ({"X_Forwarded_Proto": "https"}, "https://lipsync.example"),
        ({"X_Forwarded_Proto": "https", "X_Forwarded_Host": "a.example", **inner}, "https://a.example"),
        ({"X_Forwarded_Host": "a.example", "X_Forwarded_Port": "8443"}, "http://a.example:8443"),
        (
            {"X_Forwarded_Proto": "https", "X_Forwarded_Host": "a.example", "X_Forwarded_Port": "443"},
            "https://a.example",
        ),
        ({"X_Forwarded_Host": "a.example:81", "X_Forwarded_Port": "82"}, "http://a.example:81"),
        ({"X_Forwarded_Host": "[2001:db8::1]:81"}, "http://[2001:db8::1]:81"),
        ({"X_Forwarded_Host": "a.example, b.example"}, "http://a.example"),
        (
            {"Forwarded": 'for=192.0.2.1;proto=https;host="a.example:81", for=127.0.0.2'},
            "https://a.example:81",
        ),
        ({"Forwarded": "proto=https", "X_Forwarded_Host": "b.example"}, "https://lipsync.example"),
        ({"X_Forwarded_Prefix": "/lipsync/"}, "http://lipsync.example/lipsync"),
        ({"X_Forwarded_Host": "a.example/x?", "X_Forwarded_Proto": "ftp"}, "http://lipsync.example"),
        ({"X_Forwarded_Prefix": "//evil.example", "Forwarded": ',;="'}, "http://lipsync.example"),
    ):
        with subtests.test(headers=headers):
            assert model_server(near, **headers) == expected


def test_headers_of_other_peers_are_ignored(make_api: Make) -> None:
    api = make_api()
    far = client_of(api, "192.0.2.9")
    forwarded = {"X_Forwarded_Proto": "https", "X_Forwarded_Host": "evil.example", "X_Forwarded_Prefix": "/x"}
    assert model_server(far, **forwarded) == BASE
    assert model_server(far, Forwarded="proto=https;host=evil.example") == BASE
    api = make_api(trusted_proxies="192.0.2.0/24")
    assert model_server(client_of(api, "192.0.2.9"), **forwarded) == "https://evil.example/x"
    assert model_server(client_of(api, "127.0.0.1"), **forwarded) == BASE


def test_prefix_is_accepted_with_and_without_it(make_api: Make) -> None:
    api = make_api(public_url="https://a.example/lipsync")
    for path in ("/api/v3/models", "/lipsync/api/v3/models"):
        assert model_server(client_of(api, "192.0.2.9"), path) == "https://a.example/lipsync"
    near = client_of(make_api(), "127.0.0.1")
    assert near.get("/lipsync/livez", headers={"X-Forwarded-Prefix": "/lipsync"}).text == "ok"
    assert near.get("/lipsync/livez").status_code == 404


def test_one_slash_at_the_end_is_ignored(api: Api) -> None:
    body = {"audio": "https://media.example/a.wav", "video": "https://media.example/v.mp4"}
    for path in ("/api/v3/bytedance/latentsync/", "/api/v1/lipsync-video/"):
        answer = api.client.post(
            path, json={**body, "formState": body}, headers=api.headers, follow_redirects=False
        )
        assert answer.status_code == 200, answer.text
    assert api.client.get("/api/v3/models/", headers=api.headers).status_code == 200
    assert api.client.get("/livez//").status_code == 404


def test_client_address_is_the_last_untrusted_hop(subtests: pytest.Subtests) -> None:
    async def answer_address(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(str(scope["client"][0]))(scope, receive, send)

    app = ProxyMiddleware(answer_address, trusted=("127.0.0.1", "10.0.0.0/8", "::1"))
    for name, value, expected in (
        ("X-Forwarded-For", "192.0.2.1", "192.0.2.1"),
        (
            "X-Forwarded-For",
            "6.6.6.6, 192.0.2.1, 10.0.0.7",
            "192.0.2.1",
        ),  # the first one is the client's word
        ("X-Forwarded-For", "10.0.0.8, 10.0.0.7", "10.0.0.8"),
        ("X-Forwarded-For", "192.0.2.1:5555", "192.0.2.1"),
        ("X-Forwarded-For", "unknown, 10.0.0.7", "10.0.0.7"),
        ("X-Forwarded-For", "x", "127.0.0.1"),
        ("Forwarded", 'for="[2001:db8::7]:4711";proto=https, for=10.0.0.7', "2001:db8::7"),
        ("Forwarded", "for=_hidden", "127.0.0.1"),
    ):
        with subtests.test(value=value):
            client = TestClient(app, client=("127.0.0.1", 1))
            assert client.get("/", headers={name: value}).text == expected
