"""Admission: input hashes and the operator's hook."""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from server.jobs.admission import AdmissionCheck, sha256_of
from server.store import Record
from tests.support.application import Api

CONSENT = "release 17"
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
    paths = {"video": tmp_path / "video", "audio": tmp_path / "audio"}
    for name, path in paths.items():
        path.write_text(name)
    return paths


def admit(api: Api, hook: str | None, record: Record, inputs: dict[str, Path], timeout_s: float = 20) -> Any:
    check = AdmissionCheck(api.server.jobs, hook, timeout_s, api.server._hook_headers)
    assert api.client.portal is not None
    return api.client.portal.call(check.check, record, inputs)


def test_input_hashes_are_stored_before_a_job_runs(api: Api, record: Record, inputs: dict[str, Path]) -> None:
    assert admit(api, None, record, inputs) is None
    last = api.audit_entries()[-1]
    assert (last["event"], last["job_id"]) == ("job_inputs", record.job.id)
    assert last["facts"]["sha256"] == {name: sha256_of(path) for name, path in inputs.items()}


def command(tmp_path: Path, answer: str) -> str:
    (tmp_path / "hook.py").write_text(HOOK)
    return f"{sys.executable} {tmp_path / 'hook.py'} {tmp_path / 'asked.json'} '{answer}'"


def test_command_hook_decides(api: Api, record: Record, inputs: dict[str, Path], tmp_path: Path) -> None:
    assert admit(api, command(tmp_path, '{"allow": true}'), record, inputs) is None
    request = json.loads((tmp_path / "asked.json").read_text())
    assert (request["job"], request["tenant"], request["consent"]) == (record.job.id, "studio", CONSENT)
    assert request["inputs"] == [
        {"name": name, "role": name, "sha256": sha256_of(path), "path": str(path)}
        for name, path in inputs.items()
    ]
    rejection = admit(
        api, command(tmp_path, '{"allow": false, "message": "Not this person."}'), record, inputs
    )
    assert (rejection.code, rejection.message, rejection.retryable) == (
        "job_refused",
        "Not this person.",
        False,
    )


@pytest.mark.parametrize(
    "hook",
    ["/bin/false", "/nowhere/hook", "/bin/echo yes", "/bin/sh -c 'sleep 60'", "/bin/echo '{\"allow\": 1}'"],
)
def test_broken_command_hook_rejects_the_job(
    api: Api, record: Record, inputs: dict[str, Path], hook: str
) -> None:
    rejection = admit(api, hook, record, inputs, timeout_s=0.5)
    assert rejection.code == "hook_failed"
    assert "/" not in rejection.message, "how the operator checks is nobody's business"


class HookHandler(BaseHTTPRequestHandler):
    answer: tuple[int, bytes] = (200, b'{"allow": true}')
    seen: list[dict[str, Any]] = []
    body: bytes
    headers_seen: dict[str, str]

    def do_POST(self) -> None:
        HookHandler.body = self.rfile.read(int(self.headers["Content-Length"]))
        HookHandler.headers_seen = dict(self.headers.items())
        HookHandler.seen.append(json.loads(HookHandler.body))
        self.send_response(self.answer[0])
        self.end_headers()
        self.wfile.write(self.answer[1])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hook_url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), HookHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook"
    server.shutdown()
    server.server_close()


def test_request_to_a_url_hook_is_signed(
    make_api: Callable[..., Api], inputs: dict[str, Path], hook_url: str
) -> None:
    api = make_api(job_hook_secret="4f1c9e0b7a2d8853")
    api.submit()
    record = api.begin()
    files = {source.name: next(iter(inputs.values())) for source in record.request.sources}
    assert admit(api, hook_url, record, files) is None
    headers = {name.lower(): value for name, value in HookHandler.headers_seen.items()}
    assert headers["webhook-id"] == record.job.id
    message = f"{record.job.id}.{headers['webhook-timestamp']}.".encode() + HookHandler.body
    mac = hmac.new(b"4f1c9e0b7a2d8853", message, hashlib.sha256).hexdigest()
    assert headers["webhook-signature"] == f"v3,{mac}"
    assert headers["user-agent"] == "lipsync-server"


def test_url_hook_decides(api: Api, record: Record, inputs: dict[str, Path], hook_url: str) -> None:
    assert admit(api, hook_url, record, inputs) is None
    assert HookHandler.seen[-1]["job"] == record.job.id
    for answer, code in (
        ((200, b'{"allow": false}'), "job_refused"),
        ((500, b'{"allow": true}'), "hook_failed"),
        ((200, b"<html>"), "hook_failed"),
    ):
        HookHandler.answer = answer
        assert admit(api, hook_url, record, inputs).code == code
    HookHandler.answer = (200, b'{"allow": true}')
    assert admit(api, "http://127.0.0.1:9/hook", record, inputs).code == "hook_failed"
