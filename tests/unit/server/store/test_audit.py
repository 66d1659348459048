"""The audit log."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server.jobs import state as job_state
from server.jobs.state import Output
from server.storage.blobs import result_blob
from server.store.audit import AuditEntry
from tests.support.application import MEDIA, Api

CONSENT = "release 17"
Make = Callable[..., Api]


def job_entries(api: Api, **query: object) -> list[dict[str, Any]]:
    """Read the audit log without the reading itself."""
    return [entry for entry in api.audit_entries(**query) if entry["event"] != "admin_request"]


def test_audit_log_records_who_submitted_what(make_api: Make) -> None:
    api = make_api(marking="off")
    job_id = api.submit(consent=CONSENT, seed=5)
    record = api.begin()
    now = time.time()
    output = Output(result_blob(job_id), 1.0, is_signed=False, sha256="ab" * 32)
    api.server.store.change(job_id, now, lambda job: job_state.succeed(job, record.job.fence, now, output))
    started, submitted, ended = job_entries(api)
    assert started["event"] == "server_started"
    assert started["facts"]["marking"] == "off"
    assert started["facts"]["watermark"] is False
    assert submitted["event"] == "job_submitted"
    assert (submitted["tenant"], submitted["job_id"]) == ("studio", job_id)
    assert submitted["key_id"] == record.request.key_id
    assert submitted["facts"]["consent"] == CONSENT
    assert submitted["facts"]["options"]["seed"] == 5
    assert ended["event"] == "job_ended"
    assert ended["facts"] == {
        "state": "succeeded",
        "code": None,
        "consent": CONSENT,
        "output_sha256": "ab" * 32,
        "is_marked": False,
    }
    assert "media.example" not in json.dumps(api.audit_entries()), "links may carry secrets"
    assert [entry["event"] for entry in job_entries(api, after=submitted["id"])] == ["job_ended"]
    assert api.audit_entries(since=time.time() + 60) == []
    assert len(api.audit_entries(limit=2)) == 2
    other = api.client.get("/admin/audit", headers={"Authorization": f"Bearer {api.other_key}"})
    assert other.status_code == 403


def test_audit_log_records_failed_and_cancelled_jobs(api: Api) -> None:
    api.submit()
    failed = api.server.store.jobs_in_state(job_state.State.WAITING)[0].job.id
    api.fail(failed, "face_not_found", "No face.")
    cancelled = api.submit()
    api.client.post(f"/api/v3/predictions/{cancelled}/cancel", headers=api.headers)
    ends = [entry["facts"] for entry in api.audit_entries() if entry["event"] == "job_ended"]
    assert [(end["state"], end["code"]) for end in ends] == [
        ("failed", "face_not_found"),
        ("cancelled", None),
    ]


def test_deleting_a_job_keeps_its_audit_entries(api: Api) -> None:
    job_id = api.submit()
    api.succeed(job_id)
    api.client.delete(f"/api/v3/predictions/{job_id}", headers=api.headers)
    assert api.server.store.get(job_id) is None
    assert [entry["event"] for entry in api.audit_entries() if entry["job_id"] == job_id] == [
        "job_submitted",
        "job_ended",
        "job_deleted",
    ]


def test_audit_entries_expire_by_their_own_retention(make_api: Make) -> None:
    for kept_s, remaining in ((None, 2), (3600.0, 1)):
        api = make_api(audit_retention_s=kept_s, retention_s=1.0)
        api.server.store.audit.add(AuditEntry(time.time() - 7200, "server_started", {}))
        api.client.portal.call(api.server.delete_expired_data)
        assert len([entry for entry in job_entries(api) if entry["event"] == "server_started"]) == remaining


def test_administrative_acts_are_recorded(api: Api) -> None:
    other = {"Authorization": f"Bearer {api.other_key}"}
    body = {"audio": f"{MEDIA}/voice.wav", "video": f"{MEDIA}/talk.mp4"}
    submitted = api.client.post("/api/v3/bytedance/latentsync", json=body, headers=other)
    job_id = submitted.json()["data"]["id"]
    for _ in range(3):
        assert api.client.get(f"/api/native/v1/jobs/{job_id}", headers=other).status_code == 200
        assert api.client.get(f"/api/native/v1/jobs/{job_id}", headers=api.headers).status_code == 200
        assert api.client.get("/admin/keys", headers=api.headers).status_code == 200
    api.client.post("/admin/webhooks/none/retry", headers=api.headers)
    api.client.get("/admin/keys", headers=other)
    acts = [
        (entry["facts"]["method"], entry["facts"]["path"], entry["tenant"], entry["job_id"])
        for entry in api.audit_entries()
        if entry["event"] == "admin_request" and entry["facts"]["path"] != "/admin/audit"
    ]
    assert acts == [
        ("GET", f"/api/native/v1/jobs/{job_id}", "other", job_id),
        ("GET", "/admin/keys", "studio", None),
        ("POST", "/admin/webhooks/none/retry", "studio", None),
    ]


def test_entries_are_exported_as_they_happen(make_api: Make, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    api = make_api(audit_export=str(file))
    job_id = api.submit()
    api.server.seal_audit_log()
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    assert entries[-1]["job_id"] == job_id
    assert entries == api.audit_entries()[: len(entries)]
    assert file.stat().st_mode & 0o777 == 0o600
