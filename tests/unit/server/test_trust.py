"""Consent, the audit log, the operator's hook and verification, through the server's own parts."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from lipsync_engine.provenance import ManifestFacts, ManifestSigner, SigningPolicy
from server.cli import audit_export
from server.jobs import state as job_state
from server.jobs.admission import AdmissionCheck, sha256_of
from server.jobs.state import Output
from server.settings import Settings
from server.storage.blobs import result_blob
from server.store import Record, Store
from server.store.audit import AuditEntry
from tests.support.application import Api

CONSENT = "release 17"
Make = Callable[..., Api]


def studio_body(**state: object) -> dict[str, Any]:
    return {"formState": {"video": "https://h.example/v.mp4", "audio": "https://h.example/a.wav", **state}}


# --- consent ---


def test_every_dialect_takes_a_consent_reference(api: Api) -> None:
    job_id = api.submit(consent=CONSENT)
    answer = api.client.post("/api/v1/lipsync-video", json=studio_body(consent=CONSENT), headers=api.headers)
    other = answer.json()["id"].replace("-", "")
    for found in (job_id, other):
        record = api.server.store.get(found)
        assert record is not None
        assert record.request.consent == CONSENT
    for wrong in ("x" * 201, "two\nlines", 7):
        body = {"video": "https://h.example/v.mp4", "audio": "https://h.example/a.wav", "consent": wrong}
        answer = api.client.post("/api/v3/bytedance/latentsync", json=body, headers=api.headers)
        assert (answer.status_code, answer.json()["error_code"]) == (400, "invalid_parameter")


def test_an_operator_may_require_consent(make_api: Make) -> None:
    api = make_api(require_consent=True)
    body = studio_body()["formState"]
    for path, given in (("/api/v3/bytedance/latentsync", body), ("/api/v1/lipsync-video", studio_body())):
        answer = api.client.post(path, json=given, headers=api.headers)
        assert answer.status_code == 400
        assert "consent" in answer.json()["message"]
    answer = api.client.post("/api/v3/bytedance/latentsync", json=body, headers=api.headers)
    assert answer.json()["error_code"] == "consent_required"
    assert api.server.store.page(None, offset=0, limit=9)[1] == 0
    api.submit(consent=CONSENT)


# --- the audit log ---


def told(api: Api, **query: object) -> list[dict[str, Any]]:
    answer = api.client.get("/admin/audit", params=query, headers=api.headers)
    assert answer.status_code == 200
    return [json.loads(line) for line in answer.text.splitlines()]


def test_the_log_tells_who_had_what_made(make_api: Make) -> None:
    api = make_api(marking="off")
    job_id = api.submit(consent=CONSENT, seed=5)
    record = api.begin()
    now = time.time()
    output = Output(result_blob(job_id), 1.0, is_marked=False, sha256="ab" * 32)
    api.server.store.change(job_id, now, lambda job: job_state.succeed(job, record.job.fence, now, output))
    started, submitted, ended = told(api)
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
    assert "media.example" not in json.dumps(told(api)), "links may carry secrets"
    assert [entry["event"] for entry in told(api, after=submitted["id"])] == ["job_ended"]
    assert told(api, since=time.time() + 60) == []
    assert len(told(api, limit=2)) == 2
    other = api.client.get("/admin/audit", headers={"Authorization": f"Bearer {api.other_key}"})
    assert other.status_code == 403


def test_a_failed_and_a_cancelled_job_are_there_as_well(api: Api) -> None:
    api.submit()
    failed = api.server.store.jobs_in_state(job_state.State.WAITING)[0].job.id
    api.fail(failed, "face_not_found", "No face.")
    cancelled = api.submit()
    api.client.post(f"/api/v3/predictions/{cancelled}/cancel", headers=api.headers)
    ends = [entry["facts"] for entry in told(api) if entry["event"] == "job_ended"]
    assert [(end["state"], end["code"]) for end in ends] == [
        ("failed", "face_not_found"),
        ("cancelled", None),
    ]


def test_deleting_a_job_leaves_its_entries(api: Api) -> None:
    job_id = api.submit()
    api.succeed(job_id)
    api.client.delete(f"/api/v3/predictions/{job_id}", headers=api.headers)
    assert api.server.store.get(job_id) is None
    assert [entry["event"] for entry in told(api) if entry["job_id"] == job_id] == [
        "job_submitted",
        "job_ended",
    ]


def test_only_the_operators_retention_deletes(make_api: Make) -> None:
    for kept_s, left in ((None, 2), (3600.0, 1)):
        api = make_api(audit_retention_s=kept_s, retention_s=1.0)
        api.server.store.audit.add(AuditEntry(time.time() - 7200, "server_started", {}))
        api.client.portal.call(api.server.delete_expired_data)
        assert len(told(api)) == left


def test_export(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIPSYNC_DATA_DIR", str(tmp_path))
    store = Store(f"sqlite:///{tmp_path / 'lipsync.sqlite'}")
    for day in range(3):
        store.audit.add(
            AuditEntry(1_800_000_000.0 + day * 86400, "server_started", {"day": day, "name": "日"})
        )
    command = [sys.executable, "-m", "lipsync_engine.cli", "audit", "export"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "/admin/audit" in refused.stderr
    store.close()

    def export(*arguments: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["lipsync audit", "export", *arguments])
        assert audit_export.main() == 0
        return [json.loads(line)["facts"] for line in capsys.readouterr().out.splitlines()]

    assert [facts["day"] for facts in export()] == [0, 1, 2]
    file = tmp_path / "log.jsonl"
    assert export("--since", "2027-01-16", "--until", "2027-01-17", "-o", str(file)) == []
    kept = file.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["facts"] for line in kept] == [{"day": 1, "name": "日"}]


# --- the hook ---


HOOK = """
import json, sys
asked = json.load(sys.stdin)
json.dump(asked, open(sys.argv[1], "w"))
print(sys.argv[2])
"""


@pytest.fixture
def record(api: Api) -> Record:
    api.submit(consent=CONSENT)
    return api.begin()


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    found = {"video": tmp_path / "video", "audio": tmp_path / "audio"}
    for name, path in found.items():
        path.write_text(name)
    return found


def admit(api: Api, hook: str | None, record: Record, inputs: dict[str, Path], timeout_s: float = 20) -> Any:
    gate = AdmissionCheck(api.server.jobs, hook, timeout_s)
    assert api.client.portal is not None
    return api.client.portal.call(gate.check, record, inputs)


def test_hashes_are_on_record_before_a_job_runs(api: Api, record: Record, inputs: dict[str, Path]) -> None:
    assert admit(api, None, record, inputs) is None
    last = told(api)[-1]
    assert (last["event"], last["job_id"]) == ("job_inputs", record.job.id)
    assert last["facts"]["sha256"] == {name: sha256_of(path) for name, path in inputs.items()}


def command(tmp_path: Path, answer: str) -> str:
    (tmp_path / "hook.py").write_text(HOOK)
    return f"{sys.executable} {tmp_path / 'hook.py'} {tmp_path / 'asked.json'} '{answer}'"


def test_a_command_decides(api: Api, record: Record, inputs: dict[str, Path], tmp_path: Path) -> None:
    assert admit(api, command(tmp_path, '{"allow": true}'), record, inputs) is None
    asked = json.loads((tmp_path / "asked.json").read_text())
    assert (asked["job"], asked["tenant"], asked["consent"]) == (record.job.id, "studio", CONSENT)
    assert asked["inputs"] == [
        {"name": name, "role": name, "sha256": sha256_of(path), "path": str(path)}
        for name, path in inputs.items()
    ]
    refused = admit(api, command(tmp_path, '{"allow": false, "message": "Not this person."}'), record, inputs)
    assert (refused.code, refused.message, refused.retryable) == ("job_refused", "Not this person.", False)


@pytest.mark.parametrize(
    "hook",
    ["/bin/false", "/nowhere/hook", "/bin/echo yes", "/bin/sh -c 'sleep 60'", "/bin/echo '{\"allow\": 1}'"],
)
def test_a_broken_command_refuses(api: Api, record: Record, inputs: dict[str, Path], hook: str) -> None:
    refused = admit(api, hook, record, inputs, timeout_s=0.5)
    assert refused.code == "hook_failed"
    assert "/" not in refused.message, "how the operator checks is nobody's business"


class Asked(BaseHTTPRequestHandler):
    answer: tuple[int, bytes] = (200, b'{"allow": true}')
    seen: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        Asked.seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.answer[0])
        self.end_headers()
        self.wfile.write(self.answer[1])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hook_url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Asked)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook"
    server.shutdown()
    server.server_close()


def test_a_url_decides(api: Api, record: Record, inputs: dict[str, Path], hook_url: str) -> None:
    assert admit(api, hook_url, record, inputs) is None
    assert Asked.seen[-1]["job"] == record.job.id
    for answer, code in (
        ((200, b'{"allow": false}'), "job_refused"),
        ((500, b'{"allow": true}'), "hook_failed"),
        ((200, b"<html>"), "hook_failed"),
    ):
        Asked.answer = answer
        assert admit(api, hook_url, record, inputs).code == code
    Asked.answer = (200, b'{"allow": true}')
    assert admit(api, "http://127.0.0.1:9/hook", record, inputs).code == "hook_failed"


# --- verification ---


@pytest.fixture
def signed(clip: Path, tmp_path: Path, credentials_dir: Path) -> bytes:
    film = tmp_path / "film.mp4"
    film.write_bytes(clip.read_bytes())
    assert (
        ManifestSigner(SigningPolicy.REQUIRED, credentials_dir).sign(
            film, clip, ManifestFacts("tiny", "", 7, 1, "x")
        )
        is None
    )
    return film.read_bytes()


def post(api: Api, content: bytes, **headers: str) -> Any:
    given = api.headers | {"Content-Type": "application/octet-stream"} | headers
    return api.client.post("/api/native/v1/verify", content=content, headers=given)


def test_a_film_is_verified(api: Api, signed: bytes, clip: Path) -> None:
    found = post(api, signed)
    assert found.status_code == 200
    assert (found.json()["verdict"], found.json()["made"]["seed"]) == ("trusted", 7)
    changed = bytearray(signed)
    changed[len(changed) // 2] ^= 1
    assert post(api, bytes(changed)).json()["verdict"] == "invalid"
    assert post(api, clip.read_bytes()).json()["verdict"] == "none"
    assert list(api.server.settings.data_dir.glob(".verify-*")) == []


def test_the_result_of_a_job_is_verified(api: Api, signed: bytes) -> None:
    job_id = api.submit()
    path = f"/api/native/v1/jobs/{job_id}/credentials"
    assert api.client.get(path, headers=api.headers).status_code == 404
    api.succeed(job_id, signed)
    assert api.client.get(path, headers=api.headers).json()["verdict"] == "trusted"
    other = api.client.get(path, headers={"Authorization": f"Bearer {api.other_key}"})
    assert other.status_code == 404


def test_who_may_verify_and_how_much(make_api: Make, signed: bytes) -> None:
    api = make_api(max_upload_bytes=len(signed) - 1)
    assert post(api, signed).status_code == 413
    assert post(api, signed, Authorization="Bearer nobody").status_code == 401
    assert list(api.server.settings.data_dir.glob(".verify-*")) == []


def test_the_engine_signs_as_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIPSYNC_CREDENTIALS_DIR")
    settings = Settings(data_dir=tmp_path, marking="best_effort", trust_anchors=tmp_path / "roots.pem")
    for name, value in settings.signing_environment.items():
        monkeypatch.setenv(name, value)
    signer = ManifestSigner.from_environment()
    assert (signer.policy, signer.development_dir) == (SigningPolicy.BEST_EFFORT, tmp_path / "credentials")
    assert (signer.chain, signer.trust_anchors) == (None, tmp_path / "roots.pem")
