"""Log lines and request ids."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.support.application import Api
from tests.support.paths import ROOT


def test_request_keeps_its_id(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lipsync.http"):
        response = api.post_job(**{"X-Request-Id": "studio-42"})
    assert (response.status_code, response.headers["x-request-id"]) == (200, "studio-42")
    job = response.json()["data"]["id"]
    record = api.server.store.get(job)
    assert record is not None
    assert record.tags == {"job": job, "tenant": "studio", "request_id": "studio-42"}
    response = api.post_job(**{"X-Request-Id": "two\tlines <script>"})
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])
    assert any("POST /api/v3/bytedance/latentsync 200" in line for line in caplog.messages)


def test_request_line_names_client_key_tenant_and_model(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lipsync.http"):
        api.post_job()
        api.client.get("/api/v3/predictions/" + "0" * 32, headers=api.headers)
        api.client.get("/readyz")
        api.client.get("/api/v3/balance", headers={"Authorization": "Bearer wrong"})
        api.client.put("/files/1a-AbC_9/x/y%0Az.mp4", content=b"")
    submission, wrong_key, link = (vars(record) for record in caplog.records if record.name == "lipsync.http")
    key = next(key for key in api.server.store.list_keys() if key.tenant == "studio")
    expected = {
        "method": "POST",
        "path": "/api/v3/bytedance/latentsync",
        "status": 200,
        "client": "testclient",
        "key_id": key.id,
        "tenant": "studio",
        "model": "bytedance/latentsync",
    }
    assert {name: submission[name] for name in expected} == expected
    assert submission["ms"] >= 0
    assert (wrong_key["path"], wrong_key["status"], wrong_key["key_id"]) == ("/api/v3/balance", 401, "-")
    assert link["path"] == "/files/-/x/y\\nz.mp4"


def test_json_log_lines_hold_job_and_request(tmp_path: Path) -> None:
    code = (
        "import logging; from server import logs; logs.configure_logging('json');"
        "logging.getLogger('lipsync.x').info('job %s ends', 'a1', extra={'job': 'a1', 'request_id': 'r7'});"
        "logging.getLogger('lipsync.x').info('two\\nlines')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    first, second = (json.loads(line) for line in result.stderr.splitlines())
    assert (first["message"], first["job"], first["request_id"]) == ("job a1 ends", "a1", "r7")
    assert (first["level"], first["logger"]) == ("INFO", "lipsync.x")
    assert datetime.fromisoformat(first["time"]).utcoffset() == timedelta(0)
    assert (second["message"], second["request_id"]) == ("two\nlines", "-")


def test_no_secret_is_logged(tmp_path: Path) -> None:
    """A whole day of a server in one go, and its log searched for everything that opens something."""
    code = """
import json, sys
from pathlib import Path
from server import logs
logs.configure_logging("json")
from tests.support.application import Api, BASE
from fastapi.testclient import TestClient
from server.api import auth
from server.api.auth import Scope
from server.app import Server, create_app
from server.settings import Settings
import time
server = Server(Settings(data_dir=Path(sys.argv[1])), devices=())
key, stored = auth.create_key(server.store, time.time(), tenant="studio", scopes=frozenset(Scope))
with TestClient(create_app(server), base_url=BASE) as client:
    api = Api(server, client, key, key)
    place = client.post(
        "/api/v3/media/uploads", json={"filename": "v.mp4", "size": 3}, headers=api.headers
    ).json()["data"]
    client.put(place["upload"]["url"], content=b"abc")
    client.get(place["download_url"])
    client.get(place["download_url"] + "x")
    job = api.submit(video=place["download_url"], webhook_url="https://hook.example/?token=hidden-token")
    api.succeed(job)
    result = client.get(f"/api/v3/predictions/{job}/result", headers=api.headers).json()["data"]["outputs"][0]
    client.get(result)
    client.get("/api/v3/balance", headers={"Authorization": "Bearer sk_wrong-key"})
    made = client.post("/admin/keys?tenant=t", headers=api.headers).json()["key"]
links = [place["upload"]["url"], place["download_url"], result]
tokens = [link.split("/")[4] for link in links]
print(json.dumps([key, made, stored.webhook_secret, "sk_wrong-key", "hidden-token", *tokens]))
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    secrets = json.loads(result.stdout.splitlines()[-1])
    assert len(set(secrets)) == 8
    assert "POST" in result.stderr
    assert [secret for secret in secrets if secret in result.stderr] == []


def test_start_is_one_json_object_where_the_log_is_json(tmp_path: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "server", "--port", "0", "--data-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "LIPSYNC_LOG_FORMAT": "json", "LIPSYNC_DEVICES": "none"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    start = json.loads(server.stdout.readline())
    server.terminate()
    assert (server.stdout.read(), server.wait(30)) == ("", 0)
    assert (start["logger"], start["message"], start["model"]) == ("lipsync.server", "server starts", "tiny")
    assert start["url"].startswith("http://127.0.0.1:")
    assert start["api_key"].startswith("sk_")
