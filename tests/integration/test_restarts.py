"""Restarts that clients do not notice: the server drains while it answers, and its socket outlives it."""

from __future__ import annotations

import http.client
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.live_server import LiveServer
from tests.support.paths import ROOT
from tests.support.polling import wait_until

LATENTSYNC = "/api/v3/bytedance/latentsync"
POLLERS = 6


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """What systemd holds while servers come and go."""
    with socket.create_server(("127.0.0.1", 0)) as opened:
        yield opened


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Workers without torch, which end no job before this file exists."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "support" / "stand_in_worker"))
    values = {"SEGMENT_S": 0.1, "BYTES": 1000, "GAPS": tmp_path / "gaps", "RELEASE": tmp_path / "release"}
    for name, value in values.items():
        monkeypatch.setenv(f"STAND_IN_{name}", str(value))
    return tmp_path / "release"


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., LiveServer]]:
    """`make_server("name", listener=…)`: not started; killed in the end."""
    servers: list[LiveServer] = []

    def make(name: str, **settings: Any) -> LiveServer:
        servers.append(LiveServer(tmp_path / name, **settings))
        return servers[-1]

    yield make
    for server in servers:
        server.kill_if_running()


def submit_waiting_job(server: LiveServer) -> str:
    links = []
    for name, head in (("clip.mp4", b"\0\0\0\x18ftypmp42"), ("voice.wav", b"RIFF\0\0\0\0WAVEfmt ")):
        file = server.data_dir / name
        file.write_bytes(head.ljust(99))
        links.append(server.upload(file))
    return server.submit(*links, inference_steps=1)


@contextmanager
def polling(server: LiveServer, job: str) -> Iterator[list[object]]:
    """Poll a job with several kept-alive connections; provides what was not 200."""
    problems: list[object] = []
    counts, is_over = [0] * POLLERS, threading.Event()

    def poll(number: int) -> None:
        connection = http.client.HTTPConnection(str(urlsplit(server.base).netloc), timeout=30)
        headers = {"Authorization": f"Bearer {server.key}"}
        while not is_over.wait(0.02):
            try:
                connection.request("GET", f"/api/v3/predictions/{job}/result", headers=headers)
                response = connection.getresponse()
                response.read()
            except OSError as error:
                problems.append(error)
                return
            if response.status != 200:
                problems.append(response.status)
            counts[number] += 1

    threads = [threading.Thread(target=poll, args=(number,)) for number in range(POLLERS)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: min(counts) > 2, "nobody polls")
        yield problems
        before = [*counts]
        wait_until(
            lambda: all(a > b for a, b in zip(counts, before, strict=True)) or problems, "nobody polls"
        )
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def test_stopping_server_answers_until_its_jobs_have_ended(
    make_server: Callable[..., LiveServer], listener: socket.socket, release: Path
) -> None:
    server = make_server("data", listener=listener, devices="cpu", drain_s=30)
    server.start()
    job = submit_waiting_job(server)
    server.wait_for_job(job, lambda prediction: prediction["status"] == "processing")
    with polling(server, job) as problems:
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.request("GET", "/readyz")[0] == 503, "it does not drain")
        refused = [
            server.request("POST", LATENTSYNC, {"video": "https://a.example/v.mp4", "audio": "x"}),
            server.request("POST", "/api/v3/media/uploads", {"filename": "a.mp4", "size": 9}),
        ]
        assert [(status, body["error_code"]) for status, body in refused] == [(503, "server_stopping")] * 2
        assert server.prediction(job)["status"] == "processing"
        release.touch()
        restart = threading.Thread(target=lambda: (server.process.wait(60), server.start()))
        restart.start()
        prediction = server.wait_for_job(job)
        assert prediction["status"] == "completed"
        assert server.request("GET", prediction["outputs"][0])[0] == 200
        restart.join()
    assert not problems
    assert server.prediction(job)["status"] == "completed"

    release.unlink()
    server.settings["drain_s"] = 0
    server.restart(signal.SIGTERM)
    server.wait_for_job(submit_waiting_job(server), lambda prediction: prediction["status"] == "processing")
    assert server.stop() == 0
    assert "never retrieved" not in "".join(server.log)


def test_rolling_restart_of_two_processes_fails_no_poll(
    make_server: Callable[..., LiveServer], tmp_path: Path, postgres_url: str, listener: socket.socket
) -> None:
    shared = {"devices": "none", "database_url": postgres_url, "link_secret": tmp_path / "link.key"}
    servers = [make_server(name, listener=listener, **shared) for name in ("first", "second")]
    first, second = servers
    first.start()
    second.key = first.key
    second.start()
    job = first.submit("https://media.example/talk.mp4", "https://media.example/voice.wav")
    with polling(first, job) as problems:
        for server in servers:
            server.restart(signal.SIGTERM)
    assert not problems
    for server in servers:
        assert server.stop() == 0


@pytest.mark.usefixtures("release")
def test_reason_of_a_worker_that_does_not_start_is_shown(
    make_server: Callable[..., LiveServer], postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_PROBLEM", "The weights are damaged.")
    server = make_server("data", devices="cpu", database_url=postgres_url)
    server.start()

    def problems() -> set[str | None]:
        (device,) = server.request("GET", "/api/native/v1/health")[1]["devices"]
        (worker,) = server.request("GET", "/admin/workers")[1]
        return {device["problem"], worker["problem"]}

    wait_until(lambda: problems() == {"The weights are damaged."}, "no reason is shown", 20)
    assert server.stop() == 0
