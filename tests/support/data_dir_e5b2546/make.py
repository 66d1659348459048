"""Makes the data folder that `test_older_data_dir.py` opens, with the server of commit e5b2546.

    git worktree add ../before e5b2546
    cd ../before && PYTHONPATH=. python .../tests/support/data_dir_e5b2546/make.py .../data_dir_e5b2546

The jobs come in through the HTTP API and are driven through the store as workers do it. `expected.json` has
their ids and the answers of that server.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fastapi.testclient import TestClient
from server.auth import Scope

from server import auth, jobs
from server.app import Server, create_app
from server.jobs import Failure, Job, Output, Progress, Sync
from server.settings import Settings
from server.store import Record

LATENTSYNC = "/api/v3/bytedance/latentsync"
VIDEO, VOICE = "https://media.example/in/talk.mp4", "https://media.example/in/voice.wav"
HOOK = "http://127.0.0.1:9/hook"
FOREVER_S = 1e10


def main(target: Path) -> None:
    folder = Path(tempfile.mkdtemp()) / "data"
    server = Server(Settings(data_dir=folder, retention_s=FOREVER_S, max_wait_s=FOREVER_S), devices=())
    store, policy = server.store, server.board.policy
    key, _ = auth.create_key(store, time.time(), tenant="studio", name="fixture", scopes=frozenset(Scope))
    expected: dict[str, object] = {"key": key}

    def change(record: Record, transition: Callable[[Job, float], Job]) -> None:
        now = time.time()
        store.change(record.job.id, now, lambda job: transition(job, now))

    def claim(job_id: str) -> Record:
        record = store.claim(time.time(), policy)
        assert record is not None
        assert record.job.id == job_id
        return record

    def succeed(job_id: str, output: Output, content: bytes) -> None:
        record = claim(job_id)
        with tempfile.NamedTemporaryFile(delete=False) as file:
            file.write(content)
        asyncio.run(server.blobs.take(output.blob, Path(file.name)))
        change(record, lambda job, now: jobs.succeed(job, job.fence, now, output))

    # Without its lifespan: no background task delivers the webhooks.
    client = TestClient(create_app(server), base_url="http://lipsync.example")
    headers = {"Authorization": f"Bearer {key}"}

    def post(path: str, body: object, **more: str) -> dict[str, object]:
        answer = client.post(path, json=body, headers=headers | more)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def submit(path: str = LATENTSYNC, webhook: str | None = None, **body: object) -> str:
        url = path if webhook is None else f"{path}?webhook={webhook}"
        return str(post(url, {"audio": VOICE, "video": VIDEO, **body})["data"]["id"])

    expected["succeeded"] = succeeded = submit(title="The first", seed=7)
    result = Output(
        f"results/{succeeded}.mp4",
        12.5,
        media_s=4.8,
        warnings=("prompt was not used",),
        is_marked=True,
        sha256="ab" * 32,
        sync=Sync(6.2, -1, ((0.5, 6.0), (1.5, 6.4))),
        is_nsfw=False,
    )
    succeed(succeeded, result, b"an mp4")

    expected["failed"] = failed = submit(webhook=HOOK, guidance_scale=1.5, inference_steps=3)
    failure = Failure("face_not_found", "No face was found.")
    record = claim(failed)
    change(record, lambda job, now: jobs.fail(job, job.fence, now, failure, policy))

    answer = client.post(
        "/api/v1/lipsync-video",
        json={"formState": {"video": VIDEO, "audio": VOICE, "resolution": "480p"}},
        headers=headers,
    )
    assert answer.status_code == 200, answer.text
    expected["cancelled"] = cancelled = answer.json()["requestId"].replace("-", "")
    record = claim(cancelled)
    change(record, lambda job, now: jobs.cancel(job, now))
    change(record, lambda job, now: jobs.confirm_cancel(job, job.fence, now))

    expected["running"] = running = submit(inference_steps=2)
    record, now = claim(running), time.time()
    progress = Progress("render", 50, 200, 9.5)
    change(record, lambda job, now: jobs.beat(job, job.fence, now, policy, progress))
    assert store.offer_segments(running, record.job.fence, "5" * 32, "6" * 32, (50, 150), {0})
    assert store.help_with_segment("6" * 32, now) is not None

    rows = [
        {"model": "bytedance/latentsync", "input": {"video": VIDEO, "audio": VOICE, "seed": seed}}
        for seed in range(3)
    ]
    batch = post("/api/native/v1/batches", {"jobs": rows, "title": "Monday", "webhook_url": HOOK})
    expected["batch"] = batch["id"]
    expected["batch_rows"] = ids = [row["id"] for row in batch["jobs"]]
    succeed(ids[0], Output(f"results/{ids[0]}.mp4", 3.0), b"the first row")

    segments = [
        {"audio": VOICE, "face": "left", "end": 0.6},
        {"audio": VOICE, "face": "right", "start": 0.4, "end": 1.2},
    ]
    body = {"video": VIDEO, "segments": segments, "prompt": "calm", "consent": "release 17"}
    queued = post(LATENTSYNC, body, **{"Idempotency-Key": "monday", "X-Request-Id": "fixture-1"})
    expected["queued"] = queued["data"]["id"]
    ticket = post("/api/v3/media/uploads", {"filename": "v.mp4", "size": 3})["data"]
    uploaded = client.put(ticket["upload"]["url"], content=b"abc")
    assert uploaded.status_code == 200, uploaded.text
    expected["queued_inline"] = submit(video=ticket["download_url"], audio="aGVsbG8gd29ybGQ=")

    paths = [
        *(f"/api/native/v1/jobs/{record.job.id}" for record in store.page(None, offset=0, limit=99)[0]),
        *(f"/api/v3/predictions/{expected[name]}" for name in ("succeeded", "failed", "running", "queued")),
        f"/api/v1/jobs/{cancelled}",
        f"/api/native/v1/batches/{batch['id']}",
        f"/api/native/v1/batches/{batch['id']}/jobs",
        "/api/native/v1/jobs?text=calm",
        "/admin/keys",
        "/admin/webhooks/dead",
    ]
    answers = {path: client.get(path, headers=headers) for path in paths}
    assert {answer.status_code for answer in answers.values()} == {200}
    expected["answers"] = {path: answer.json() for path, answer in answers.items()}
    expected["audit"] = client.get("/admin/audit", headers=headers).text.splitlines()

    server.board.close()
    store.close()
    for name in ("lipsync.sqlite", "signing.key"):
        shutil.copy(folder / name, target / name)
    shutil.rmtree(target / "blobs", ignore_errors=True)
    shutil.copytree(folder / "blobs", target / "blobs", dirs_exist_ok=True)
    (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
