"""A server in this process without workers, and helpers to drive what workers would do."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parent))

from server import auth, jobs
from server.app import Server, create_app
from server.auth import Scope
from server.blobs import Blobs, result_blob
from server.jobs import Failure, Output
from server.settings import Settings
from server.store import Record, Store

BASE = "http://lipsync.example"
POSTGRES = os.environ.get("TEST_POSTGRES_URL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres")
numbers = itertools.count(1)


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

    def submit(self, **body: object) -> str:
        """A job of the LatentSync model; its id."""
        given = {"audio": "https://media.example/in/voice.wav", "video": "https://media.example/in/talk.mp4"}
        answer = self.client.post(
            "/api/v3/bytedance/latentsync", json={**given, **body}, headers=self.headers
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["data"]["id"])

    def begin(self) -> Record:
        """What a worker does first."""
        record = self.server.store.claim(time.time(), self.server.board.policy)
        assert record is not None
        return record

    def succeed(self, job_id: str, content: bytes = b"an mp4", warnings: tuple[str, ...] = ()) -> None:
        record, name = self.begin(), result_blob(job_id)
        assert record.job.id == job_id
        put_blob(self.server.blobs, name, content)
        now = time.time()
        self.server.store.change(
            job_id, now, lambda job: jobs.succeed(job, job.fence, now, Output(name, 1.25, warnings=warnings))
        )

    def fail(self, job_id: str, code: str, message: str) -> None:
        self.begin()
        now, policy = time.time(), self.server.board.policy
        failure = Failure(code, message)
        self.server.store.change(job_id, now, lambda job: jobs.fail(job, job.fence, now, failure, policy))


def put_blob(blobs: Blobs, name: str, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(content)
    asyncio.run(blobs.take(name, Path(file.name)))


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """An empty database of its own."""
    server = sa.create_engine(POSTGRES, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 2})
    name = f"lipsync_test_{os.getpid()}_{next(numbers)}"
    try:
        with server.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
    except sa.exc.OperationalError as error:
        pytest.skip(f"no PostgreSQL at {POSTGRES}: {str(error).splitlines()[0]}")
    yield str(sa.make_url(POSTGRES).set(database=name).render_as_string(hide_password=False))
    with server.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = Store(url)
    yield opened
    opened.close()


@pytest.fixture
def make_api(tmp_path: Path) -> Iterator[Callable[..., Api]]:
    """`make_api(max_waiting=1)`: an API with settings changed."""
    open_clients = []

    def make(**changes: object) -> Api:
        folder = tmp_path / f"data {len(open_clients)}"
        server = Server(Settings(data_dir=folder, **changes), devices=())  # type: ignore[arg-type]
        now = time.time()
        key, _ = auth.create_key(server.store, now, tenant="studio", scopes=frozenset(Scope))
        other, _ = auth.create_key(server.store, now, tenant="other")
        client = TestClient(create_app(server), base_url=BASE, raise_server_exceptions=False)
        client.__enter__()
        open_clients.append(client)
        return Api(server, client, key, other)

    yield make
    for client in open_clients:
        client.__exit__(None, None, None)


@pytest.fixture
def api(make_api: Callable[..., Api]) -> Api:
    return make_api()
