"""Errors as responses."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.application import Api


def test_disconnect_during_a_request_is_not_logged_as_an_error(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
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
    lines: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        lines.append(message)

    assert api.client.portal is not None
    api.client.portal.call(api.client.app, scope, receive, send)
    assert lines[0]["status"] == 499
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
