"""A data folder that commit e5b2546 wrote: its jobs, batch, webhooks and keys are read and carried on."""

from __future__ import annotations

import copy
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from server.app import Server, create_app
from server.jobs.state import State
from server.settings import Settings
from server.store import Record
from tests.support.application import BASE, Api
from tests.support.webhook_receiver import WebhookReceiver

FOLDER = Path(__file__).parents[2] / "support" / "data_dir_e5b2546"
EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text())
FOREVER_S = 1e10
"""Of `make.py`: nothing in the folder is too old."""


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "data"))


@pytest.fixture
def server(data_dir: Path) -> Server:
    inputs: dict[str, Any] = {"retention_s": FOREVER_S, "max_wait_s": FOREVER_S, "allow_hosts": "127.0.0.1"}
    return Server(Settings(data_dir=data_dir, **inputs), devices=())


@pytest.fixture
def api(server: Server) -> Iterator[Api]:
    with TestClient(create_app(server), base_url=BASE) as client:
        yield Api(server, client, EXPECTED["key"], "")


@pytest.fixture
def receiver(data_dir: Path) -> Iterator[WebhookReceiver]:
    """A web server to which the folder's webhooks go."""
    opened = WebhookReceiver()
    with sqlite3.connect(data_dir / "lipsync.sqlite") as database:
        for table, column in (("outbox", "url"), ("batches", "webhook_url")):
            database.execute(f"UPDATE {table} SET {column} = ?", (opened.url,))
    database.close()
    yield opened
    opened.close()


def test_answers_about_stored_jobs_are_unchanged(server: Server) -> None:
    client = TestClient(create_app(server), base_url=BASE)  # not started: what runs is left as it is
    headers = {"Authorization": f"Bearer {EXPECTED['key']}"}
    answers = {path: client.get(path, headers=headers).json() for path in EXPECTED["answers"]}
    for view in (answers, expected := copy.deepcopy(EXPECTED["answers"])):  # these two go with the time
        view["/admin/keys"][0].pop("last_used_at")
        view[f"/api/native/v1/batches/{EXPECTED['batch']}"]["progress"].pop("left_s")
    for view in answers.values():
        if isinstance(view, dict) and isinstance(view.get("output"), dict):
            assert view["output"].pop("pauses_s") == []  # newer than the data
    assert answers == expected
    entries = client.get("/admin/audit", headers=headers).text.splitlines()
    assert [entry for entry in entries if "admin_request" not in entry] == EXPECTED["audit"]
    result = answers[f"/api/native/v1/jobs/{EXPECTED['succeeded']}"]["output"]
    assert client.get(result["url"]).content == b"an mp4"
    server.jobs.close()
    server.store.close()


def test_interrupted_and_waiting_jobs_run_to_their_end(receiver: WebhookReceiver, api: Api) -> None:
    interrupted = api.server.store.get(EXPECTED["running"])
    assert interrupted is not None
    assert (interrupted.job.state, interrupted.job.attempts) == (State.WAITING, 1)
    claimed: dict[str, Record] = {}
    while api.server.store.count_in_state(State.WAITING):
        (job_id, _), *_ = api.server.store.waiting_jobs()
        record = api.server.store.get(job_id)
        assert record is not None
        claimed[job_id] = record
        api.succeed(job_id, warnings=("checked",))
    rows = EXPECTED["batch_rows"]
    names = "running", "queued", "queued_inline"
    assert set(claimed) == {*(EXPECTED[name] for name in names), *rows[1:]}
    request = claimed[EXPECTED["queued"]].request
    assert [(part.voice, part.face, part.start_s, part.length_s) for part in request.segments] == [
        ("segment_0", "left", 0.0, 0.6),
        ("segment_1", "right", 0.4, pytest.approx(0.8)),
    ]
    assert (request.options.prompt, request.consent, request.request_id) == (
        "calm",
        "release 17",
        "fixture-1",
    )
    uploaded = {source.name: source.blob for source in claimed[EXPECTED["queued_inline"]].request.sources}
    assert uploaded["audio"] == f"inputs/{EXPECTED['queued_inline']}/audio.bin"

    view = api.client.get(f"/api/native/v1/batches/{EXPECTED['batch']}", headers=api.headers).json()
    assert (view["title"], view["state"], view["counts"]["succeeded"]) == ("Monday", "ended", 3)
    last = api.client.get(f"/api/native/v1/jobs/{EXPECTED['queued']}", headers=api.headers).json()
    assert (last["state"], last["warnings"][-1]["message"]) == ("succeeded", "checked")


def test_due_webhook_is_delivered(receiver: WebhookReceiver, api: Api) -> None:
    assert receiver.arrived.acquire(timeout=30)
    ((headers, body),) = receiver.deliveries
    assert headers["webhook-id"] == EXPECTED["failed"]
    assert json.loads(body)["status"] == "failed"


def test_idempotency_key_names_the_stored_job(api: Api) -> None:
    body = {"video": "https://media.example/in/talk.mp4", "audio": "https://media.example/in/voice.wav"}
    answer = api.client.post(
        "/api/v3/bytedance/latentsync", json=body, headers=api.headers | {"Idempotency-Key": "monday"}
    )
    assert answer.json()["data"]["id"] == EXPECTED["queued"]
