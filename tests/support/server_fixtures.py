"""Fixtures of the server's tests: databases, stores, applications. Heavy imports wait for their first use."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from server.storage.blobs import Blobs
    from server.store import Store
    from tests.support.application import Api
    from tests.support.live_server import LiveServer
    from tests.support.s3 import Storage

POSTGRES = os.environ.get("TEST_POSTGRES_URL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres")
numbers = itertools.count(1)


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """An empty database of its own."""
    import sqlalchemy as sa

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
    from server.store import Store

    opened = Store(url)
    yield opened
    opened.close()


@pytest.fixture
def make_api(tmp_path: Path) -> Iterator[Callable[..., Api]]:
    """`make_api(max_waiting=1)`: an API with settings changed."""
    from fastapi.testclient import TestClient

    from server.api import auth
    from server.api.auth import Scope
    from server.app import Server, create_app
    from server.settings import Settings
    from tests.support.application import BASE, Api

    open_clients = []

    def make(storage: Blobs | None = None, **changes: object) -> Api:
        folder = tmp_path / f"data {len(open_clients)}"
        server = Server(Settings(data_dir=folder, **changes), devices=(), blobs=storage)  # type: ignore[arg-type]
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


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., LiveServer]]:
    """`start_server(devices="cpu")`: a live server with a data folder of its own; killed in the end."""
    from tests.support.live_server import LiveServer

    servers: list[LiveServer] = []

    def start(*, key: str = "", **settings: object) -> LiveServer:
        server = LiveServer(tmp_path / f"server-{len(servers)}", **settings)
        server.key = key
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.kill_if_running()


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """An S3 bucket, with its credentials in the environment."""
    from tests.support.s3 import ENVIRONMENT, Storage

    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    bucket = Storage()
    yield bucket
    bucket.close()
