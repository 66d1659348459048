"""What operators see: metrics, request ids, logs, quotas, given-up webhooks, old files."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from server.jobs import state as job_state
from server.jobs.state import Job, Output
from server.store import Record
from server.workers.supervisor import threads_per_worker
from tests.support.application import Api
from tests.support.paths import ROOT
from tests.support.polling import wait_until


def submit(api: Api, **headers: str) -> tuple[int, dict[str, str], str]:
    body = {"audio": "https://media.example/in/voice.wav", "video": "https://media.example/in/talk.mp4"}
    answer = api.client.post("/api/v3/bytedance/latentsync", json=body, headers={**api.headers, **headers})
    return answer.status_code, dict(answer.headers), answer.json().get("data", {}).get("id", "")


def test_every_metric_is_documented_and_tells_the_truth(api: Api) -> None:
    done = api.submit()
    api.succeed(done)
    api.submit()
    text = api.client.get("/metrics").text
    documented = (ROOT / "docs" / "operations.md").read_text()
    for name in set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)):
        if not name.endswith("_created"):
            assert f"| `{name}` |" in documented, name
    assert 'lipsync_jobs{state="waiting"} 1.0' in text
    assert 'lipsync_jobs{state="succeeded"} 1.0' in text
    api.client.get(f"/api/v3/predictions/{done}/result", headers=api.headers)
    text = api.client.get("/metrics").text
    answered = 'method="GET",route="/predictions/{job_id}/result",status="200"'
    assert f"lipsync_http_request_seconds_count{{{answered}}} 1.0" in text
    answered = 'method="POST",route="/{vendor}/{name:path}",status="200"'
    assert f"lipsync_http_request_seconds_count{{{answered}}} 2.0" in text
    assert done not in text


def test_a_request_keeps_its_id(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lipsync.http"):
        status, headers, job = submit(api, **{"X-Request-Id": "studio-42"})
    assert (status, headers["x-request-id"]) == (200, "studio-42")
    record = api.server.store.get(job)
    assert record is not None
    assert record.tags == {"job": job, "tenant": "studio", "request_id": "studio-42"}
    _, headers, _ = submit(api, **{"X-Request-Id": "two\tlines <script>"})
    assert re.fullmatch(r"[0-9a-f]{32}", headers["x-request-id"])
    assert any("POST /{vendor}/{name:path} 200" in line for line in caplog.messages)


def test_json_logs_are_objects_with_the_request(tmp_path: Path) -> None:
    code = (
        "import logging; from server import logs; logs.configure_logging('json');"
        "logging.getLogger('lipsync.x').info('job %s ends', 'a1', extra={'job': 'a1', 'request_id': 'r7'});"
        "logging.getLogger('lipsync.x').info('two\\nlines')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    first, second = (json.loads(line) for line in done.stderr.splitlines())
    assert (first["message"], first["job"], first["request_id"]) == ("job a1 ends", "a1", "r7")
    assert (first["level"], first["logger"]) == ("INFO", "lipsync.x")
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
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    secrets = json.loads(done.stdout.splitlines()[-1])
    assert len(set(secrets)) == 8
    assert "POST" in done.stderr
    assert [secret for secret in secrets if secret in done.stderr] == []


def test_a_keys_quota_is_answered_with_when_to_come_again(api: Api) -> None:
    made = api.client.post("/admin/keys?tenant=studio&max_active_jobs=1", headers=api.headers).json()
    own = {"Authorization": f"Bearer {made['key']}"}
    assert submit(api, **own)[0] == 200
    status, headers, _ = submit(api, **own)
    assert status == 429
    assert int(headers["retry-after"]) > 0
    assert submit(api)[0] == 200  # another key of the same tenant
    assert api.client.post("/admin/keys?max_active_jobs=0", headers=api.headers).status_code == 400


def test_a_full_disk_takes_nothing_more(make_api: Callable[..., Api]) -> None:
    api = make_api(min_free_bytes=1 << 60)
    status, headers, _ = submit(api)
    assert (status, headers["retry-after"]) == (503, "60")
    ticket = api.client.post(
        "/api/v3/media/uploads", json={"filename": "v.mp4", "size": 3}, headers=api.headers
    )
    assert (ticket.status_code, ticket.json()["error_code"]) == (503, "storage_full")
    assert api.client.get("/api/v3/balance", headers=api.headers).status_code == 200


def test_given_up_webhooks_are_listed_and_sent_again(api: Api) -> None:
    job = api.submit(webhook_url="https://hook.example/x")
    api.succeed(job)
    api.server.store.webhook_failed(job, "status 500", None)
    (dead,) = api.client.get("/admin/webhooks/dead", headers=api.headers).json()
    assert (dead["job_id"], dead["last_error"]) == (job, "status 500")
    assert api.client.post(f"/admin/webhooks/{job}/retry", headers=api.headers).status_code == 204
    assert api.client.get("/admin/webhooks/dead", headers=api.headers).json() == []
    assert api.client.post(f"/admin/webhooks/{'0' * 32}/retry", headers=api.headers).status_code == 404


def test_a_waiting_job_knows_about_when_it_starts(api: Api) -> None:
    jobs, job = api.server.jobs, api.submit()
    shown = api.client.get(f"/api/v3/predictions/{job}/result", headers=api.headers).json()["data"]
    assert "estimated_start" not in shown["timings"]  # nobody knows yet
    call = api.client.portal.call if api.client.portal is not None else None
    assert call is not None
    running: Record = call(jobs.claim)
    began, output = running.job.started_at, Output("results/x.mp4", 1.0)
    assert began is not None
    call(jobs.change, job, lambda j, now: job_state.succeed(j, 1, began + 40.0, output))
    first, second = (api.server.store.get(api.submit()) for _ in range(2))
    assert first is not None
    assert second is not None
    turns = [jobs.queue_position(record.job.id) for record in (first, second)]
    assert [turn and jobs.estimate_wait_s(turn) for turn in turns] == [
        pytest.approx(20.0),
        pytest.approx(60.0),
    ]


def _ended_at(job: Job, moment: float) -> Job:
    return dataclasses.replace(job, finished_at=moment)


def test_what_an_attempt_has_left_goes_with_its_job(make_api: Callable[..., Api]) -> None:
    api = make_api()
    work = api.server.settings.data_dir / "work" / "jobs"
    job = api.submit()
    (work / job).mkdir(parents=True)
    (work / job / "video").write_bytes(b"half a video")
    api.client.post(f"/api/v3/predictions/{job}/cancel", headers=api.headers)
    wait_until(lambda: not (work / job).exists(), "its folder is left")
    other = api.submit()
    for name in (job, other, "unknown"):
        (work / name).mkdir()
    asyncio.run(api.server.supervisor.start())  # as after a crash
    assert [path.name for path in work.iterdir()] == [other]


def test_what_is_old_is_swept_away(make_api: Callable[..., Api]) -> None:
    api = make_api(retention_s=3600)
    old, fresh = api.submit(), api.submit()
    api.succeed(old, b"old film")
    long_ago = time.time() - 7200
    blob = api.server.settings.data_dir / "blobs" / "results" / f"{old}.mp4"
    api.server.store.change(old, long_ago, lambda job: _ended_at(job, long_ago))
    upload = api.client.post(
        "/api/v3/media/uploads", json={"filename": "v.mp4", "size": 3}, headers=api.headers
    ).json()["data"]
    api.client.put(upload["upload"]["url"], content=b"abc")
    (stored,) = blob.parents[1].glob("uploads/studio/*")
    os.utime(stored, (long_ago, long_ago))

    assert api.client.portal is not None
    api.client.portal.call(api.server.delete_expired_data)
    assert api.server.store.get(old) is None
    assert not blob.exists()
    assert not stored.exists()
    assert api.server.store.get(fresh) is not None


def test_workers_leave_the_server_a_core(subtests: pytest.Subtests, monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, workers, threads in [(1, 1, 1), (2, 1, 1), (16, 1, 15), (16, 4, 3), (4, 8, 1)]:
        with subtests.test(cores=cores, workers=workers, threads=threads):
            monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
            assert threads_per_worker(workers) == threads
