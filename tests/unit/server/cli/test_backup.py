"""`lipsync backup`, `restore` and `db copy`, with a data folder that has jobs in every state."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from server.app import Server, create_app
from server.jobs.state import State
from server.settings import Settings
from server.store import Store
from server.store.audit import AUDIT
from tests.support.application import BASE
from tests.support.private_postgres import PrivatePostgres

FOLDER = Path(__file__).parents[3] / "support" / "data_dir_e5b2546"
EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text())
FOREVER_S = 1e10
RUNNING_JOB = EXPECTED["running"]


def lipsync(data_dir: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server.cli.backup", *map(str, arguments)]
    env = {**os.environ, "LIPSYNC_DATA_DIR": str(data_dir)}
    env.pop("LIPSYNC_CREDENTIALS_DIR", None)
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def open_server(data_dir: Path) -> Server:
    times: dict[str, Any] = {"retention_s": FOREVER_S, "max_wait_s": FOREVER_S}
    return Server(Settings(data_dir=data_dir, **times), devices=())


def test_restored_backup_of_running_server_has_keys_links_secrets_and_jobs(tmp_path: Path) -> None:
    source, backup, restored = tmp_path / "source", tmp_path / "backup", tmp_path / "restored"
    shutil.copytree(FOLDER, source)
    headers = {"Authorization": f"Bearer {EXPECTED['key']}"}
    job_path = f"/api/native/v1/jobs/{EXPECTED['succeeded']}"
    running = open_server(source)  # it holds the database while the backup is made
    client = TestClient(create_app(running), base_url=BASE)  # not started: what runs stays so
    link = client.get(job_path, headers=headers).json()["output"]["url"]
    credentials = source / "credentials"
    credentials.mkdir(exist_ok=True)
    (credentials / "root.pem").write_text("root")
    secrets = [key.webhook_secret for key in running.store.list_keys()]
    made = lipsync(source, "backup", backup)
    assert made.returncode == 0, made.stderr
    assert backup.stat().st_mode & 0o777 == 0o700
    running.store.close()
    shutil.rmtree(source)

    assert "not empty" in lipsync(FOLDER, "backup", backup).stderr
    done = lipsync(restored, "restore", backup)
    assert done.returncode == 0, done.stderr
    assert "exists" in lipsync(restored, "restore", backup).stderr
    shutil.rmtree(backup)
    server = open_server(restored)
    with TestClient(create_app(server), base_url=BASE) as client:
        assert client.get(job_path, headers=headers).json()["state"] == "succeeded"
        assert client.get(link).content == b"an mp4"
        assert [key.webhook_secret for key in server.store.list_keys()] == secrets
        interrupted = server.store.get(RUNNING_JOB)
        assert interrupted is not None
        assert interrupted.job.state is State.WAITING
    assert (restored / "credentials" / "root.pem").read_text() == "root"


def test_backup_that_was_cut_off_is_not_restored(tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    assert lipsync(FOLDER, "backup", backup).returncode == 0
    (backup / "backup.json").unlink()
    refused = lipsync(tmp_path / "restored", "restore", backup)
    assert refused.returncode == 2
    assert "cut off" in refused.stderr
    assert not (tmp_path / "restored").exists()


def test_backup_is_not_restored_beside_a_log_of_another_database(tmp_path: Path) -> None:
    """SQLite would apply it: the newer rows would come back, or a mixture of both."""
    backup, target = tmp_path / "backup", tmp_path / "target"
    assert lipsync(FOLDER, "backup", backup).returncode == 0
    target.mkdir()
    (target / "lipsync.sqlite-wal").write_bytes(b"what a crash left")
    refused = lipsync(target, "restore", backup)
    assert refused.returncode == 2
    assert "move the whole folder away" in refused.stderr
    assert [path.name for path in target.iterdir()] == ["lipsync.sqlite-wal"]


@pytest.fixture
def postgres() -> Iterator[PrivatePostgres]:
    database = PrivatePostgres()
    yield database
    database.close()


def test_sqlite_is_copied_to_postgresql(
    tmp_path: Path, postgres: PrivatePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = tmp_path / "data"
    shutil.copytree(FOLDER, data_dir)
    url = postgres.url.replace("+psycopg", "")
    source = Store(f"sqlite:///{data_dir / 'lipsync.sqlite'}")
    assert "stop it first" in lipsync(data_dir, "db", "copy", "--to", url).stderr
    keys, job = source.list_keys(), source.get(RUNNING_JOB)
    with source.read_only() as connection:
        entries = connection.execute(sa.select(AUDIT).order_by(AUDIT.c.id)).all()
    source.close()
    done = lipsync(data_dir, "db", "copy", "--to", url)
    assert done.returncode == 0, done.stderr
    target = Store(postgres.url)
    assert target.list_keys() == keys
    assert target.get(RUNNING_JOB) == job
    with target.read_only() as connection:
        assert connection.execute(sa.select(AUDIT).order_by(AUDIT.c.id)).all() == entries
    target.update_key(keys[0].id, {"name": "moved"}, 1.0, "a test")  # its audit entry takes the next number
    with target.read_only() as connection:
        assert connection.execute(sa.select(sa.func.max(AUDIT.c.id))).scalar_one() > entries[-1].id
    target.close()
    monkeypatch.setenv("LIPSYNC_DATABASE_URL", postgres.url)
    assert "rows already" in lipsync(data_dir, "db", "copy").stderr
