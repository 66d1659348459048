"""Databases of earlier commits, each with a job that was cut off, and rows that cannot be read.

`support/old_databases/COMMIT.sql` has what the server of that commit stored for four jobs.
Its first lines name the key and the jobs.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from server.app import Server, create_app
from server.jobs.request import Role
from server.jobs.state import State
from server.settings import Settings
from server.store import DatabaseUnavailableError, Store
from tests.support.application import BASE, Api
from tests.support.paths import ROOT

DUMPS = sorted((ROOT / "tests" / "support" / "old_databases").glob("*.sql"))
FOREVER_S = 1e10


def restore(dump: Path, data_dir: Path, *statements: str) -> dict[str, str]:
    """Write a data folder with the database, changed by the statements; returns the key and the jobs' ids."""
    data_dir.mkdir()
    with sqlite3.connect(data_dir / "lipsync.sqlite") as database:
        database.executescript("\n".join([dump.read_text(), *statements]))
    database.close()
    heads = [line.split() for line in dump.read_text().splitlines() if line.startswith("-- ")]
    return {name: value for _, name, value in heads}


@contextmanager
def started(data_dir: Path, key: str) -> Iterator[Api]:
    settings = Settings(data_dir=data_dir, retention_s=FOREVER_S, max_wait_s=FOREVER_S)
    server = Server(settings, devices=())
    with TestClient(create_app(server), base_url=BASE) as client:
        yield Api(server, client, key, "")


def get_statuses(api: Api, ids: dict[str, str]) -> dict[str, str]:
    """Poll all jobs, and check that lists and health answer."""
    for path in ("/api/native/v1/health", "/api/native/v1/jobs", "/admin/keys", "/metrics", "/admin/audit"):
        assert api.client.get(path, headers=api.headers).status_code == 200, path
    page = {"page": 1, "page_size": 9}
    listed = api.client.post("/api/v3/predictions", json=page, headers=api.headers).json()["data"]
    assert listed["total"] == 4
    for job_id in ids.values():
        for path in (f"/api/v1/jobs/{job_id}", f"/api/native/v1/jobs/{job_id}"):
            assert api.client.get(path, headers=api.headers).status_code == 200, path
    poll = (api.client.get(f"/api/v3/predictions/{name}", headers=api.headers) for name in ids.values())
    return {name: answer.json()["data"]["status"] for name, answer in zip(ids, poll, strict=True)}


def test_database_of_an_earlier_commit_is_carried_on(subtests: pytest.Subtests, tmp_path: Path) -> None:
    assert {dump.stem for dump in DUMPS} >= {"6e72970", "bd8087c", "c7f4da9", "7c88fe7"}
    for dump in DUMPS:
        with subtests.test(commit=dump.stem):
            ids = restore(dump, tmp_path / dump.stem)
            key = ids.pop("key")
            with started(tmp_path / dump.stem, key) as api:
                assert get_statuses(api, ids) == {
                    "succeeded": "completed", "failed": "failed",
                    "running": "processing", "waiting": "created",
                }  # fmt: skip
                claimed = {record.job.id: record for record in (api.begin(), api.begin())}
            interrupted = claimed[ids["running"]]
            assert (interrupted.job.attempts, set(claimed)) == (2, {ids["running"], ids["waiting"]})
            assert {source.name: source.role for source in interrupted.request.sources} == {
                "video": Role.VIDEO, "audio": Role.AUDIO,
            }  # fmt: skip
            assert interrupted.request.options.num_inference_steps == 2


def test_row_that_cannot_be_read_is_shown_as_such_and_affects_no_other(tmp_path: Path) -> None:
    dump = DUMPS[0]
    damages = {
        "succeeded": "output = '[]'",
        "failed": "request = 'garbage'",
        "running": "request = '{\"version\": 99}'",
        "waiting": "request = replace(request, 'sources', 'springs'), progress = '7'",
    }
    all_ids = restore(dump, tmp_path / "data")
    key, ids = all_ids.pop("key"), all_ids
    with sqlite3.connect(tmp_path / "data" / "lipsync.sqlite") as database:
        for name, change in damages.items():
            database.execute(f"UPDATE jobs SET {change} WHERE id = ?", (ids[name],))
    database.close()
    with started(tmp_path / "data", key) as api:
        assert set(get_statuses(api, ids).values()) == {"failed"}
        for job_id in ids.values():
            job = api.client.get(f"/api/native/v1/jobs/{job_id}", headers=api.headers).json()
            assert job["failure"]["code"] == "job_unreadable"
        fresh = api.submit()
        assert api.begin().job.id == fresh
        deleted = api.client.post(
            "/api/v3/predictions/delete", json={"ids": list(ids.values())}, headers=api.headers
        )
        assert deleted.json()["data"]["deleted_count"] == 4


def test_row_damaged_while_the_server_runs_ends_at_its_claim(api: Api) -> None:
    job, other = api.submit(), api.submit()
    api.end_downloads()
    with api.server.store.transaction() as connection:
        connection.exec_driver_sql(f"UPDATE jobs SET request = '7' WHERE id = '{job}'")
    assert api.server.store.claim(9e9, api.server.jobs.policy) is None
    assert api.begin().job.id == other
    assert api.server.store.count_in_state(State.FAILED) == 1


def test_newer_database_stops_an_older_program_with_a_sentence(url: str) -> None:
    store = Store(url)
    with store.transaction() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    store.close()
    with pytest.raises(DatabaseUnavailableError, match=r"newer version.*9999") as error:
        Store(url)
    assert "\n" not in str(error.value)
