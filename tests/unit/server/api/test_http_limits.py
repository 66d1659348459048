"""Clients that are slow, endless or many: real sockets against uvicorn with our impatient protocol."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from server.api.http_limits import ConnectionLimits, ProtocolFactory, raise_file_limit
from tests.support.polling import wait_until

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n"
LIMITS = ConnectionLimits(
    head_timeout_s=0.4,
    body_interval_s=0.4,
    min_body_bytes=1000,
    write_timeout_s=0.4,
    max_head_bytes=8000,
    max_connections=4,
)
ANSWER_BYTES = 50 << 20


async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
    """Answers how long the body was; /early without reading it, /long with very much."""
    size = 0
    while scope["path"] != "/early":
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        if not message["more_body"]:
            break
    body = bytes(ANSWER_BYTES) if scope["path"] == "/long" else b"%d" % size
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[uvicorn.Server, tuple[str, int]]]:
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        http=ProtocolFactory(LIMITS),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        log_config=None,
        timeout_keep_alive=60,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    yield server, listening.getsockname()
    server.should_exit = True
    thread.join(20)


@pytest.fixture
def address(server: tuple[uvicorn.Server, tuple[str, int]]) -> tuple[str, int]:
    return server[1]


@contextlib.contextmanager
def connected(address: tuple[str, int]) -> Iterator[socket.socket]:
    with socket.create_connection(address, timeout=10) as connection:
        yield connection


def answer(connection: socket.socket) -> bytes:
    """All that comes until the server closes; empty where it was cut off."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            got += part
    return got


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(b"", b"408", id="nothing"),
        pytest.param(HEAD, b"408", id="half a head"),
        pytest.param(b"\r\n", b"408", id="an empty line"),
        pytest.param(HEAD + b"Content-Length: 9000\r\n\r\nabc", b"408", id="a body that stops"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc", b"408", id="a chunk that stops"),
        pytest.param(HEAD + b"X: " + b"x" * 9000 + b"\r\n\r\n", b"431", id="a large header"),
        pytest.param(HEAD + b"X: " + b"x" * 9000, b"431", id="a header without end"),
        pytest.param(HEAD + b"X: y\r\n" * 2000 + b"\r\n", b"431", id="many headers"),
        pytest.param(b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", b"431", id="a long path"),
        pytest.param(
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 2000 + b"\r\n",
            b"431",
            id="trailers",
        ),
        pytest.param(
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n5;" + b"x" * 9000, b"431", id="a chunk's name"
        ),
        pytest.param(HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\na", b"400", id="two lengths"),
        pytest.param(
            HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"400",
            id="length and chunks",
        ),
        pytest.param(HEAD + b"Host: b\r\n\r\n", b"400", id="two hosts"),
    ],
)
def test_incomplete_or_oversized_request_is_rejected(
    address: tuple[str, int], sent: bytes, status: bytes
) -> None:
    with connected(address) as connection:
        connection.sendall(sent)
        got = answer(connection)
    assert got.startswith(b"HTTP/1.1 " + status + b" "), got[:200]
    assert got.count(b"HTTP/1.1") == 1


def test_slow_but_steady_body_is_accepted(address: tuple[str, int]) -> None:
    pause = threading.Event()
    with connected(address) as connection:
        connection.sendall(HEAD + b"Content-Length: 6000\r\nConnection: close\r\n\r\n")
        for _ in range(6):
            pause.wait(0.15)
            connection.sendall(bytes(1000))
        assert answer(connection).endswith(b"6000")


def test_unread_body_of_a_rejected_request_times_out(address: tuple[str, int]) -> None:
    with connected(address) as connection:
        connection.sendall(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 6000\r\n\r\n")
        got = answer(connection)
    assert got.startswith(b"HTTP/1.1 200")
    assert b"408" in got


def test_junk_between_requests_closes_the_connection(address: tuple[str, int]) -> None:
    """uvicorn's own timer ends with the first byte that comes, whatever it is."""
    with connected(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        first = b""
        while part := connection.recv(1 << 16):
            first += part
            if first.endswith(b"\r\n\r\n0"):  # head and body may come apart
                break
        assert first.startswith(b"HTTP/1.1 200")
        connection.sendall(b"\r\n")
        assert answer(connection).startswith(b"HTTP/1.1 408")


def test_pipelined_requests_are_answered(address: tuple[str, int]) -> None:
    request = HEAD + b"Content-Length: 6000\r\n\r\n" + bytes(6000)
    with connected(address) as connection:
        for _ in range(4):  # together more than a head may have
            connection.sendall(request)
            got = b""
            while not got.endswith(b"6000"):
                got += connection.recv(1 << 16)
        last = HEAD + b"Content-Length: 2\r\nConnection: close\r\n\r\nab"
        connection.sendall(request * 3 + last)
        got = answer(connection)
    assert got.count(b"HTTP/1.1 200") == 4
    assert got.endswith(b"\r\n\r\n2")


def test_pipelined_requests_over_the_limit_end_the_connection(address: tuple[str, int]) -> None:
    """Thousands of requests come in one read; those that may wait are answered, the rest is dropped."""
    with connected(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 10_000)
        got = answer(connection)
    assert got.count(b"HTTP/1.1 200") == LIMITS.max_pipelined + 1
    assert got.count(b"HTTP/1.1") == LIMITS.max_pipelined + 1
    assert b"connection: close" in got


def test_heads_of_waiting_requests_count_together(address: tuple[str, int]) -> None:
    request = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 5000 + b"\r\n\r\n"
    with connected(address) as connection:
        connection.sendall(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n" + request * 2)
        assert answer(connection).count(b"HTTP/1.1 200") <= 1


def test_client_that_reads_nothing_is_disconnected(
    server: tuple[uvicorn.Server, tuple[str, int]], address: tuple[str, int]
) -> None:
    with connected(address) as connection:
        connection.sendall(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(1).startswith(b"H")
        wait_until(lambda: not server[0].server_state.connections, "it still waits", 10)
        assert len(answer(connection)) < ANSWER_BYTES


def test_excess_connection_closes_the_longest_idle_one(address: tuple[str, int]) -> None:
    with contextlib.ExitStack() as stack:
        many = [stack.enter_context(connected(address)) for _ in range(LIMITS.max_connections)]
        newest = stack.enter_context(connected(address))
        newest.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert answer(newest).startswith(b"HTTP/1.1 200")
        assert answer(many[0]) == b""
        many[-1].sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert answer(many[-1]).startswith(b"HTTP/1.1 200")


def test_file_limit_is_raised() -> None:
    connections = raise_file_limit()
    limits = Path("/proc/self/limits")
    if not limits.exists():
        pytest.skip("this system does not show the limits of a process")
    row = next(line for line in limits.read_text().splitlines() if line.startswith("Max open files"))
    assert int(row.split()[3]) // 2 == connections >= 500
