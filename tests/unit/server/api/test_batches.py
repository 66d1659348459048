"""Many jobs in one request: taken or refused as a whole, told of once at the end, seen by their tenant."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from server.api import native
from server.api.auth import create_key
from server.api.submission import webhook_headers
from server.jobs import state as job_state
from server.jobs.state import Batch, Job, Output, StageProgress, State
from server.store import QueueFullError, QueueLimits, QuotaError, Store, audit, metadata
from server.store.database import MIGRATIONS
from tests.support.application import Api
from tests.support.records import NO_FACE, POLICY, REQUEST, new_job
from tests.support.webhook_receiver import WebhookReceiver

V1 = native.PREFIX
MODEL = "bytedance/latentsync"
INPUT = {"video": "https://media.example/v.mp4", "audio": "https://media.example/a.wav"}
Make = Callable[..., Api]


# --- in the database, of both kinds ---


def new_batch(n_jobs: int, tenant: str = "studio", at: float = 100.0, key_id: str = REQUEST.key_id) -> Batch:
    return Batch(
        id=new_job().id,
        tenant=tenant,
        key_id=key_id,
        request_id="-",
        dialect_state="{}",
        created_at=at,
        total=n_jobs,
        unfinished=n_jobs,
        webhook_url="https://h.example/batch",
    )


def put(store: Store, batch: Batch, **given: Any) -> list[str]:
    """Ids of its jobs, in the order of their rows."""
    output = [
        Job(
            id=new_job().id,
            tenant=batch.tenant,
            created_at=batch.created_at,
            priority=-1,
            batch_id=batch.id,
            batch_row=row,
        )
        for row in range(batch.total)
    ]
    request = dataclasses.replace(REQUEST, webhook_url=None, key_id=batch.key_id)
    store.submit_batch(batch, [(job, request) for job in output], **given)
    return [job.id for job in output]


def batch_notices(store: Store) -> list[str | None]:
    return [notice.batch_id for notice in store.claim_webhooks(1e9, 100, 60.0)]


def test_last_finished_job_ends_the_batch(store: Store) -> None:
    batch = new_batch(3)
    ids = put(store, batch)
    assert [store.claim(101.0, POLICY).job.id for _ in ids] == ids  # type: ignore[union-attr]
    store.change(ids[0], 102.0, lambda job: job_state.fail(job, 1, 102.0, job_state.WORKER_LOST, POLICY))
    store.change(ids[1], 103.0, lambda job: job_state.fail(job, 1, 103.0, NO_FACE, POLICY))
    store.change(ids[2], 104.0, lambda job: job_state.cancel(job, 104.0))
    assert store.get_batch(batch.id).unfinished == 2, "one that is tried again has not ended"  # type: ignore[union-attr]
    store.change(ids[2], 105.0, lambda job: job_state.confirm_cancel(job, 1, 105.0))
    assert batch_notices(store) == []
    assert store.claim(106.0, POLICY).job.id == ids[0]  # type: ignore[union-attr]
    store.change(ids[0], 107.0, lambda job: job_state.succeed(job, 2, 107.0, Output("x.mp4", 1.0)))
    ended = store.get_batch(batch.id)
    assert ended is not None
    assert (ended.unfinished, ended.finished_at) == (0, 107.0)
    assert batch_notices(store) == [batch.id]
    assert dict(store.count_batch_jobs([batch.id])[batch.id].counts) == {
        State.SUCCEEDED: 1,
        State.FAILED: 1,
        State.CANCELLED: 1,
    }
    response = [(entry.event, entry.at) for entry in store.audit.page() if "batch_" in entry.event]
    assert response == [("batch_submitted", 100.0), ("batch_ended", 107.0)]


def test_concurrent_ends_notify_once(store: Store) -> None:
    batch = new_batch(24)
    ids, together = put(store, batch), threading.Barrier(6)

    def end(mine: list[str]) -> None:
        together.wait()
        for job_id in mine:
            store.change(job_id, 101.0, lambda job: job_state.cancel(job, 101.0))

    threads = [threading.Thread(target=end, args=(ids[number::6],)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get_batch(batch.id).unfinished == 0  # type: ignore[union-attr]
    assert batch_notices(store) == [batch.id]


def test_batch_is_stored_whole_or_not_at_all(store: Store) -> None:
    _, key = create_key(store, 0.0, max_active_jobs=3, max_jobs_per_day=4)
    put(store, new_batch(1))
    before = len(store.audit.page())
    with pytest.raises(QueueFullError):
        put(store, new_batch(3), limits=QueueLimits(3))
    with pytest.raises(QuotaError, match="3 unfinished jobs, has 0, and would get 4") as error:
        put(store, new_batch(4, key_id=key.id))
    assert error.value.wait_s == 0, "coming again does not help"
    assert (store.page(None, offset=0, limit=9)[1], store.page_batches(None, offset=0, limit=9)[1]) == (1, 1)
    assert len(store.audit.page()) == before
    ids = put(store, new_batch(3, key_id=key.id), limits=QueueLimits(4))
    for job_id in ids:
        store.change(job_id, 101.0, lambda job: job_state.cancel(job, 101.0))
    with pytest.raises(QuotaError, match="4 jobs in 24 hours, has submitted 3") as error:
        put(store, new_batch(2, key_id=key.id))
    assert error.value.wait_s > 80000
    put(store, new_batch(1, key_id=key.id))


def test_concurrent_submissions_with_one_key_create_one_batch(store: Store) -> None:
    output, together = list[tuple[Batch, bool]](), threading.Barrier(8)

    def submit() -> None:
        batch, job = new_batch(1), new_job()
        together.wait()
        entries = [(dataclasses.replace(job, batch_id=batch.id, batch_row=0), REQUEST)]
        output.append(store.submit_batch(batch, entries, idempotency_key="same"))

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({batch.id for batch, _ in output}) == 1
    assert sum(is_new for _, is_new in output) == 1
    assert store.page(None, offset=0, limit=9)[1] == 1


def test_rows_run_in_order_after_single_jobs_of_the_tenant(store: Store) -> None:
    ids, single = put(store, new_batch(5, at=1.0)), new_job(at=50.0)
    store.submit(single, REQUEST)
    order = []
    while (record := store.claim(100.0, POLICY)) is not None:
        order.append(record.job.id)
    assert order == [single.id, *ids]
    page, total = store.page("studio", offset=1, limit=3, batch_id=store.get(ids[0]).job.batch_id)  # type: ignore[union-attr]
    assert ([record.job.id for record in page], total) == (ids[1:4], 5)


def test_ended_batch_is_deleted_with_its_jobs(store: Store) -> None:
    old, going = new_batch(1, at=1.0), new_batch(1, at=1.0)
    ids = [*put(store, old), *put(store, going)]
    store.change(ids[0], 2.0, lambda job: job_state.cancel(job, 2.0))
    store.delete_older(3.0)
    assert store.get_batch(old.id) is None
    assert store.get_batch(going.id) == going


def test_migration_keeps_pending_webhooks(url: str) -> None:
    store = Store(url)
    store.close()
    engine, config = sa.create_engine(url), Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        metadata.drop_all(connection)
        audit.metadata.drop_all(connection)
        connection.execute(sa.text("DROP TABLE alembic_version"))
        if url.startswith("postgresql"):
            connection.execute(sa.text("DROP FUNCTION audit_is_append_only, audit_is_kept"))
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        values = "('n', 'j', 'studio', 'https://h.example/', 1.0, 1.0, 0, NULL, NULL)"
        connection.execute(sa.text(f"INSERT INTO outbox VALUES {values}"))
    engine.dispose()
    store = Store(url)
    (notice,) = store.claim_webhooks(2.0, 9, 60.0)
    assert (notice.id, notice.job_id, notice.batch_id) == ("n", "j", None)
    store.close()


# --- over HTTP ---


def rows(*changes: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"model": MODEL, "input": {**INPUT, **change}} for change in changes]


def post(api: Api, body: Any, key: str | None = None, **headers: str) -> Any:
    inputs = {"Authorization": f"Bearer {key or api.key}", **headers}
    return api.client.post(f"{V1}/batches", json=body, headers=inputs)


def submit(api: Api, n_jobs: int = 3, **fields: Any) -> dict[str, Any]:
    answer = post(api, {"jobs": rows(*({"seed": number} for number in range(n_jobs))), **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def get(api: Api, path: str, **parameters: Any) -> Any:
    answer = api.client.get(f"{V1}{path}", params=parameters, headers=api.headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_batch_from_submission_to_end(api: Api) -> None:
    output = submit(api, title="Monday")
    ids = [row["id"] for row in output["jobs"]]
    assert [row["row"] for row in output["jobs"]] == [0, 1, 2]
    batch = get(api, f"/batches/{output['id']}")
    assert batch == {name: value for name, value in output.items() if name != "jobs"}
    assert (batch["title"], batch["state"], batch["total"]) == ("Monday", "waiting", 3)
    assert batch["progress"] == {"done": 0, "share": 0.0, "left_s": None}
    assert get(api, f"/jobs/{ids[1]}")["batch"] == {"id": output["id"], "row": 1}
    assert get(api, f"/jobs/{ids[1]}")["request"]["input"]["seed"] == 1

    api.succeed(ids[0])
    api.fail(ids[1], "face_not_found", "No face: HTTP 500.")
    record, now = api.begin(), time.time()
    assert record.job.id == ids[2]
    half = StageProgress("render", 50, 100, 9.0)
    api.server.store.change(ids[2], now, lambda job: job_state.renew_lease(job, 1, now, POLICY, half))
    batch = get(api, f"/batches/{output['id']}")
    assert batch["state"] == "running"
    assert (batch["progress"]["done"], batch["progress"]["share"]) == (2, 0.8333)
    assert 0 <= batch["progress"]["left_s"] < 5

    lost = job_state.WORKER_LOST
    api.server.store.change(ids[2], now, lambda job: job_state.fail(job, 1, now, lost, POLICY))
    assert get(api, f"/batches/{output['id']}")["progress"]["share"] == 0.8333  # it does not go back
    prediction = api.client.get(f"/api/v3/predictions/{ids[2]}", headers=api.headers).json()["data"]
    assert prediction["status"] == "processing"
    assert api.begin().job.fence == 2

    api.server.store.change(ids[2], now, lambda job: job_state.cancel(job, now))
    assert get(api, f"/batches/{output['id']}")["is_stopping"] is True
    api.server.store.change(ids[2], now, lambda job: job_state.confirm_cancel(job, 2, now))
    batch = get(api, f"/batches/{output['id']}")
    assert (batch["state"], batch["is_stopping"]) == ("ended", False)
    assert batch["counts"] == {
        "waiting": 0, "running": 0, "succeeded": 1, "failed": 1, "cancelled": 1, "deleted": 0
    }  # fmt: skip
    assert batch["progress"] == {"done": 3, "share": 1.0, "left_s": None}
    result = get(api, f"/batches/{output['id']}/jobs")
    assert result["total"] == 3
    assert [row["state"] for row in result["jobs"]] == ["succeeded", "failed", "cancelled"]
    assert api.client.get(result["jobs"][0]["output"]).content == b"an mp4"
    assert result["jobs"][1]["failure"] == {"code": "face_not_found", "message": "No face: status 500."}
    (last,) = get(api, f"/batches/{output['id']}/jobs", offset=2, limit=1)["jobs"]
    assert (last["id"], last["output"], last["failure"]) == (ids[2], None, None)

    api.client.delete(f"/api/v3/predictions/{ids[0]}", headers=api.headers)
    assert get(api, f"/batches/{output['id']}")["counts"]["deleted"] == 1


def test_one_invalid_row_rejects_the_batch(api: Api) -> None:
    bad = [
        *rows({}, {"video": None}, {"inference_steps": 99}, {"audio": "%%"}, {"enable_sync_mode": True}),
        {"model": "no/model", "input": INPUT},
        {"model": MODEL},
        "row",
    ]
    answer = post(api, {"jobs": bad})
    response = answer.json()
    assert (answer.status_code, response["error"]) == (400, "batch_invalid")
    assert response["message"].startswith("7 of 8 jobs")
    assert [(problem["row"], problem["code"]) for problem in response["problems"]] == [
        (1, "missing_parameter"),
        (2, "invalid_parameter"),
        (3, "invalid_parameter"),
        (4, "invalid_parameter"),
        (5, "model_not_found"),
        (6, "invalid_parameter"),
        (7, "invalid_parameter"),
    ]
    assert "inference_steps" in response["problems"][1]["message"]
    for body in ({}, {"jobs": []}, {"jobs": rows({}), "title": 7}, {"jobs": rows({}), "webhook_url": "x"}):
        assert post(api, body).json()["error"] == "invalid_parameter"
    assert get(api, "/batches")["total"] == get(api, "/jobs")["total"] == 0


def test_required_consent_applies_to_every_row(make_api: Make) -> None:
    api = make_api(require_consent=True)
    blank = post(api, {"jobs": rows({"consent": "release 17"}, {"consent": " \u00a0"})})
    answer = post(api, {"jobs": rows({"consent": "release 17"}, {})})
    assert blank.json() == answer.json()
    (problem,) = answer.json()["problems"]
    assert (problem["row"], problem["code"]) == (1, "consent_required")
    assert post(api, {"jobs": rows({"consent": "release 17"})}).status_code == 200


def test_inputs_of_rows_are_inline_or_uploaded(api: Api) -> None:
    ticket = api.client.post(
        "/api/v3/media/uploads", json={"filename": "v.mp4", "size": 3}, headers=api.headers
    ).json()["data"]
    api.client.put(ticket["upload"]["url"], content=b"mp4")
    output = post(api, {"jobs": rows({"video": ticket["download_url"], "audio": "aGk="})}).json()
    files = get(api, f"/jobs/{output['jobs'][0]['id']}")["request"]["files"]
    assert api.client.get(files["audio"]).content == b"hi"
    assert "/uploads/studio/" in files["video"]


def test_full_queue_rejects_the_whole_batch(make_api: Make) -> None:
    api = make_api(max_waiting=3)
    answer = post(api, {"jobs": rows(*[{}] * 4)})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_parameter")
    api.submit()
    full = post(api, {"jobs": rows(*[{}] * 3)})
    assert (full.status_code, full.headers["retry-after"]) == (429, "5")
    assert get(api, "/jobs")["total"] == 1
    submit(api, 2)
    unread = api.client.post(f"{V1}/batches", content=b"{not even JSON", headers=api.headers)
    assert unread.status_code == 429, "refused before the body is looked at"


def test_key_quota_applies_to_batches(api: Api) -> None:
    output = api.client.post("/admin/keys?tenant=studio&max_active_jobs=2", headers=api.headers).json()
    rejection = post(api, {"jobs": rows({}, {}, {})}, output["key"])
    assert rejection.status_code == 429
    assert "retry-after" not in rejection.headers
    assert post(api, {"jobs": rows({}, {})}, output["key"]).status_code == 200
    assert get(api, "/jobs")["total"] == 2


def test_repeated_submission_returns_the_same_batch(api: Api) -> None:
    body = {"jobs": rows({}, {})}
    first, second = (post(api, body, **{"Idempotency-Key": "monday"}).json() for _ in range(2))
    assert first == second
    assert get(api, "/jobs")["total"] == 2
    theirs = post(api, body, api.other_key, **{"Idempotency-Key": "monday"}).json()
    assert theirs["id"] != first["id"]
    reused = post(api, {"jobs": rows({})}, **{"Idempotency-Key": "monday"})
    assert (reused.status_code, reused.json()["error"]) == (422, "idempotency_key_reused")


def test_cancel_ends_unfinished_jobs(api: Api) -> None:
    output = submit(api)
    ids = [row["id"] for row in output["jobs"]]
    api.succeed(ids[0])
    api.begin()
    answer = api.client.post(f"{V1}/batches/{output['id']}/cancel", headers=api.headers).json()
    assert (answer["counts"]["cancelled"], answer["counts"]["running"]) == (1, 1)
    assert answer["is_stopping"] is True
    now = time.time()
    api.server.store.change(ids[1], now, lambda job: job_state.confirm_cancel(job, 1, now))
    assert (
        api.client.post(f"{V1}/batches/{output['id']}/cancel", headers=api.headers).json()["state"] == "ended"
    )
    assert get(api, f"/jobs/{ids[0]}")["state"] == "succeeded"


def test_batches_of_other_tenants_are_not_found(api: Api) -> None:
    output, other = submit(api), {"Authorization": f"Bearer {api.other_key}"}
    for method, path in (("GET", ""), ("GET", "/jobs"), ("POST", "/cancel")):
        answer = api.client.request(method, f"{V1}/batches/{output['id']}{path}", headers=other)
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found"), path
    assert api.client.get(f"{V1}/batches", headers=other).json() == {"total": 0, "batches": []}
    for tenant in ("*", "studio"):
        rejection = api.client.get(f"{V1}/batches", params={"tenant": tenant}, headers=other)
        assert rejection.status_code == 403
    theirs = post(api, {"jobs": rows({})}, api.other_key).json()
    assert [batch["id"] for batch in get(api, "/batches")["batches"]] == [output["id"]]
    assert [batch["id"] for batch in get(api, "/batches", tenant="*")["batches"]] == [
        theirs["id"],
        output["id"],
    ]
    assert get(api, f"/batches/{theirs['id']}")["tenant"] == "other"  # who asks is an administrator
    stop = api.client.post(f"{V1}/batches/{theirs['id']}/cancel", headers=api.headers)
    assert stop.status_code == 404, "but only the tenant cancels"
    assert get(api, "/jobs", state="waiting")["total"] == 3


def test_audit_log_names_the_batch(api: Api) -> None:
    output = submit(api, 2)
    lines = api.client.get("/admin/audit", headers=api.headers).text.splitlines()
    entries = [json.loads(line) for line in lines][1:]
    assert [entry["event"] for entry in entries] == ["batch_submitted", "job_submitted", "job_submitted"]
    assert entries[0]["facts"] == {"batch": output["id"], "jobs": 2}
    assert entries[0]["tenant"] == "studio"
    assert {entry["facts"]["batch"] for entry in entries} == {output["id"]}


# --- the webhook ---


def test_batch_webhook_is_retried_until_accepted(make_api: Make) -> None:
    receiver = WebhookReceiver(refusals=1)
    api = make_api(allow_hosts="127.0.0.1")
    assert api.client.portal is not None
    output = submit(api, 2, webhook_url=receiver.url)
    for row in output["jobs"]:
        record = api.begin()
        assert not receiver.deliveries
        result = partial(job_state.succeed, fence=record.job.fence, output=Output("results/x.mp4", 1.0))
        api.client.portal.call(api.server.jobs.change, row["id"], lambda j, now, d=result: d(j, now=now))
    for _ in range(2):
        assert receiver.arrived.acquire(timeout=30)
    key = api.server.store.get_key(record.request.key_id)
    assert key is not None
    assert len(receiver.deliveries) == 2
    for headers, body in receiver.deliveries:
        assert headers["webhook-id"] == output["id"]
        stamp = float(headers["webhook-timestamp"])
        expected = webhook_headers(key.webhook_secret, output["id"], body, stamp)["webhook-signature"]
        assert headers["webhook-signature"] == expected
    report = json.loads(receiver.deliveries[-1][1])
    assert (report["id"], report["state"], report["counts"]["succeeded"]) == (output["id"], "ended", 2)
    assert report == get(api, report["url"].partition(V1)[2])
    assert api.server.store.dead_webhooks(9) == []
    receiver.close()
