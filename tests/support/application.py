"""A server in this process without workers, and what drives it as workers would."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from httpx2 import Response

from server.app import Server
from server.jobs import state as job_state
from server.jobs.state import Failure, Output
from server.storage.blobs import Blobs, result_blob
from server.store import Record

BASE = "http://lipsync.example"
MEDIA = "https://media.example/in"


@dataclass
class Api:
    """A running application, its client, and one key per tenant."""

    server: Server
    client: TestClient
    key: str
    other_key: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def post_job(self, **headers: str) -> Response:
        """Submit a job to the WaveSpeed API; the response."""
        body = {"audio": f"{MEDIA}/voice.wav", "video": f"{MEDIA}/talk.mp4"}
        all_headers = {**self.headers, **headers}
        return self.client.post("/api/v3/bytedance/latentsync", json=body, headers=all_headers)

    def audit_entries(self, **query: object) -> list[dict[str, Any]]:
        """Read the audit log."""
        response = self.client.get("/admin/audit", params=query, headers=self.headers)
        assert response.status_code == 200, response.text
        return [json.loads(line) for line in response.text.splitlines()]

    def submit(self, **body: object) -> str:
        """A job of the LatentSync model; its id."""
        inputs = {"audio": "https://media.example/in/voice.wav", "video": "https://media.example/in/talk.mp4"}
        answer = self.client.post(
            "/api/v3/bytedance/latentsync", json={**inputs, **body}, headers=self.headers
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["data"]["id"])

    def end_downloads(self) -> None:
        """Let waiting jobs start: this process has no devices and downloads nothing."""
        for job_id, _ in self.server.store.waiting_jobs():
            self.server.store.change(job_id, time.time(), job_state.inputs_ready)

    def begin(self) -> Record:
        """What a worker does first."""
        self.end_downloads()
        record = self.server.store.claim(time.time(), self.server.jobs.policy)
        assert record is not None
        return record

    def succeed(self, job_id: str, content: bytes = b"an mp4", warnings: tuple[str, ...] = ()) -> None:
        record, name = self.begin(), result_blob(job_id)
        assert record.job.id == job_id
        put_blob(self.server.blobs, name, content)
        now = time.time()
        self.server.store.change(
            job_id,
            now,
            lambda job: job_state.succeed(job, job.fence, now, Output(name, 1.25, warnings=warnings)),
        )

    def fail(self, job_id: str, code: str, message: str) -> None:
        self.begin()
        now, policy = time.time(), self.server.jobs.policy
        failure = Failure(code, message)
        self.server.store.change(
            job_id, now, lambda job: job_state.fail(job, job.fence, now, failure, policy)
        )


def put_blob(blobs: Blobs, name: str, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(content)
    asyncio.run(blobs.move_in(name, Path(file.name)))
