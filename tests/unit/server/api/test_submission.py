"""Submitting jobs: quotas, free space, consent."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.application import Api

CONSENT = "release 17"
Make = Callable[..., Api]


def test_exceeded_key_quota_is_rejected_with_retry_after(api: Api) -> None:
    output = api.client.post("/admin/keys?tenant=studio&max_active_jobs=1", headers=api.headers).json()
    own = {"Authorization": f"Bearer {output['key']}"}
    assert api.post_job(**own).status_code == 200
    response = api.post_job(**own)
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) > 0
    assert api.post_job().status_code == 200  # another key of the same tenant
    assert api.client.post("/admin/keys?max_active_jobs=0", headers=api.headers).status_code == 400


def test_full_disk_rejects_jobs_and_uploads(make_api: Callable[..., Api]) -> None:
    api = make_api(min_free_bytes=1 << 60)
    response = api.post_job()
    assert (response.status_code, response.headers["retry-after"]) == (503, "60")
    ticket = api.client.post(
        "/api/v3/media/uploads", json={"filename": "v.mp4", "size": 3}, headers=api.headers
    )
    assert (ticket.status_code, ticket.json()["error_code"]) == (503, "storage_full")
    assert api.client.get("/api/v3/balance", headers=api.headers).status_code == 200


def studio_body(**state: object) -> dict[str, Any]:
    return {"formState": {"video": "https://h.example/v.mp4", "audio": "https://h.example/a.wav", **state}}


def test_every_dialect_accepts_a_consent_reference(api: Api) -> None:
    job_id = api.submit(consent=CONSENT)
    answer = api.client.post("/api/v1/lipsync-video", json=studio_body(consent=CONSENT), headers=api.headers)
    other = answer.json()["id"].replace("-", "")
    for result in (job_id, other):
        record = api.server.store.get(result)
        assert record is not None
        assert record.request.consent == CONSENT
    for wrong in ("x" * 201, "two\nlines", 7):
        body = {"video": "https://h.example/v.mp4", "audio": "https://h.example/a.wav", "consent": wrong}
        answer = api.client.post("/api/v3/bytedance/latentsync", json=body, headers=api.headers)
        assert (answer.status_code, answer.json()["error_code"]) == (400, "invalid_parameter")


def test_hdr_setting_holds_for_requests_without_the_option(make_api: Make) -> None:
    for setting in ("tonemap", "refuse"):
        api = make_api(hdr=setting)
        for option in (None, "tonemap", "refuse"):
            record = api.server.store.get(api.submit(**({"hdr": option} if option else {})))
            assert record is not None
            assert record.request.options.hdr == (option or setting)


def test_required_consent_is_enforced(make_api: Make) -> None:
    api = make_api(require_consent=True)
    body = studio_body()["formState"]
    for path, inputs in (("/api/v3/bytedance/latentsync", body), ("/api/v1/lipsync-video", studio_body())):
        answer = api.client.post(path, json=inputs, headers=api.headers)
        assert answer.status_code == 400
        assert "consent" in answer.json()["message"]
    answer = api.client.post("/api/v3/bytedance/latentsync", json=body, headers=api.headers)
    assert answer.json()["error_code"] == "consent_required"
    assert api.server.store.page(None, offset=0, limit=9)[1] == 0
    api.submit(consent=CONSENT)


def inline_body() -> dict[str, str]:
    return {"video": "https://h.example/v.mp4", "audio": base64.b64encode(b"RIFF" * 10).decode()}


def stored_files(api: Api) -> list[Path]:
    return [path for path in (api.server.settings.data_dir / "blobs").rglob("*") if path.is_file()]


def test_refused_submissions_leave_no_files(api: Api) -> None:
    query = "tenant=studio&max_active_jobs=1"
    key = api.client.post(f"/admin/keys?{query}", headers=api.headers).json()["key"]
    own = {"Authorization": f"Bearer {key}"}
    url = "/api/v3/bytedance/latentsync"
    assert api.client.post(url, json=inline_body(), headers=own).status_code == 200
    before = stored_files(api)
    assert len(before) == 1
    assert api.client.post(url, json=inline_body(), headers=own).status_code == 429
    rows = [{"model": "bytedance/latentsync", "input": inline_body()}] * 2
    assert api.client.post("/api/native/v1/batches", json={"jobs": rows}, headers=own).status_code == 429
    assert stored_files(api) == before


def test_repeated_submissions_leave_no_files_and_need_no_room(api: Api) -> None:
    query = "tenant=studio&max_active_jobs=1"
    key = api.client.post(f"/admin/keys?{query}", headers=api.headers).json()["key"]
    own = {"Authorization": f"Bearer {key}", "Idempotency-Key": "7"}
    url, batches = "/api/v3/bytedance/latentsync", "/api/native/v1/batches"
    jobs = [api.client.post(url, json=inline_body(), headers=own).json()["data"]["id"] for _ in range(3)]
    assert len(set(jobs)) == 1
    assert len(stored_files(api)) == 1
    rows = {"jobs": [{"model": "bytedance/latentsync", "input": inline_body()}]}
    headers = {**api.headers, "Idempotency-Key": "8"}
    ids = [api.client.post(batches, json=rows, headers=headers).json()["id"] for _ in range(3)]
    assert len(set(ids)) == 1
    assert len(stored_files(api)) == 2


def test_one_tenants_batch_leaves_room_for_others(make_api: Make) -> None:
    api = make_api(max_waiting=8, max_waiting_per_tenant=3)
    rows = [{"model": "bytedance/latentsync", "input": {**inline_body()}}]
    send = partial(api.client.post, "/api/native/v1/batches", headers=api.headers)
    assert send(json={"jobs": rows * 4}).status_code == 400
    assert send(json={"jobs": rows * 3}).status_code == 200
    refusal = send(json={"jobs": rows})
    assert (refusal.status_code, refusal.json()["error"]) == (429, "rate_limited")
    assert api.post_job(Authorization=f"Bearer {api.other_key}").status_code == 200


def test_idempotency_key_with_another_request_is_refused(make_api: Make) -> None:
    api = make_api(max_waiting=2)
    own, body = {**api.headers, "Idempotency-Key": "k"}, studio_body()["formState"]
    path = "/api/v3/bytedance/latentsync"
    first = api.client.post(path, json=body, headers=own)
    assert first.json() == api.client.post(path, json=body, headers=own).json()
    for other_path, other in (
        (path, {**body, "seed": 1}),
        (f"{path}?webhook=https://hook.example/x", body),
        ("/api/v3/wavespeed-ai/latentsync", body),
        ("/api/v1/lipsync-video", studio_body()),
    ):
        response = api.client.post(other_path, json=other, headers=own)
        assert response.status_code == 422, other_path
        assert "Idempotency-Key" in response.json()["error"]
    assert response.request.url.path == "/api/v1/lipsync-video"
    theirs = {"Authorization": f"Bearer {api.other_key}", "Idempotency-Key": "k"}
    assert api.client.post(path, json={**body, "seed": 1}, headers=theirs).status_code == 200
    assert api.server.store.page(None, offset=0, limit=9)[1] == 2


def test_webhook_that_can_never_be_delivered_is_refused(make_api: Make) -> None:
    api = make_api(allow_hosts="10.0.0.9")
    body, batch = studio_body()["formState"], {"model": "bytedance/latentsync"}
    for url, status in (
        ("http://10.0.0.8/x", 400),
        ("https://localhost/x", 400),
        ("http://[::1]:9/x", 400),
        ("http://user:word@hook.example/x", 400),
        ("http://10.0.0.9/x", 200),
        ("https://unresolvable.invalid/x", 200),  # names come and go
    ):
        for path, request in (
            ("/api/v3/bytedance/latentsync", {**body, "webhook_url": url}),
            ("/api/native/v1/batches", {"jobs": [{**batch, "input": body}], "webhook_url": url}),
            ("/api/v1/lipsync-video", {**studio_body(), "webhook": url.replace("http:", "https:")}),
        ):
            response = api.client.post(path, json=request, headers=api.headers)
            assert response.status_code == status, (path, url, response.text)
            if status == 400:
                assert "can never be delivered" in response.json()["message"]
