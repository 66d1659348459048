"""Background tasks of the server."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable

from server.jobs.state import Job
from tests.support.application import Api


def _ended_at(job: Job, moment: float) -> Job:
    return dataclasses.replace(job, finished_at=moment)


def test_draining_server_refuses_new_work_and_answers_the_rest(api: Api) -> None:
    job = api.submit()
    api.server.jobs.is_draining = True
    answer = api.post_job()
    assert (answer.status_code, answer.json()["error_code"]) == (503, "server_stopping")
    assert int(answer.headers["retry-after"]) > 0
    files = {"file": ("a.mp4", b"x")}
    upload = api.client.post("/api/v3/media/upload/binary", files=files, headers=api.headers)
    assert upload.status_code == 503
    assert api.client.get("/readyz").status_code == 503
    for path in ("/livez", f"/api/v3/predictions/{job}/result", "/api/native/v1/health", "/api/v3/models"):
        assert api.client.get(path, headers=api.headers).status_code == 200


def test_expired_jobs_and_files_are_deleted(make_api: Callable[..., Api]) -> None:
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
