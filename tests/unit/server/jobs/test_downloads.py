"""Inputs are downloaded before a device is claimed: slow hosts hold up nobody but their own tenant."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from server.jobs import state as job_state
from server.jobs.downloads import MAX_PER_TENANT, InputDownloader
from server.jobs.inputs import InputFetcher
from server.jobs.request import InputSource, Role
from server.jobs.service import JobService
from server.jobs.state import Job, JobPolicy, State
from server.storage.blobs import Blobs
from server.storage.transport import Transport, TransportPolicy
from server.store import QueueLimits, Store
from tests.support.records import POLICY, REQUEST, new_job

WAV = b"RIFF\x00\x00\x00\x00WAVE" + bytes(5000)


class Host:
    """Serves /wav at once and /drip a byte at a time, until closed."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self._closed = threading.Event()
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.requests.append(self.path)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(WAV)
                while self.path == "/drip" and not host._closed.wait(0.02):
                    try:
                        self.wfile.write(b"x")
                    except OSError:
                        return

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self._closed.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


class Bench:
    """A store, and a downloader that runs inside `run`."""

    def __init__(self, folder: Path, **limits: float) -> None:
        self.store = Store(f"sqlite:///{folder / 'jobs.sqlite'}")
        self.blobs, self.folder = Blobs(folder / "blobs"), folder / "downloads"
        self.jobs = JobService(self.store, JobPolicy(), QueueLimits(), 1)
        self.total_s = limits.pop("total_s", 60.0)
        self.policy = TransportPolicy(allow=("127.0.0.1",), **limits)  # type: ignore[arg-type]

    def submit(self, tenant: str, url: str) -> str:
        job = dataclasses.replace(new_job(tenant, at=self.store.now()), inputs_ready=False)
        sources = (InputSource("audio", Role.AUDIO, url=url),)
        self.store.submit(job, dataclasses.replace(REQUEST, sources=sources, webhook_url=None))
        return job.id

    async def wait_for(self, job_id: str, condition: Callable[[Job], Any]) -> Job:
        with self.jobs.watch(job_id) as changed:
            async with asyncio.timeout(20):
                while (record := self.store.get(job_id)) is None or not condition(record.job):
                    await changed.wait()
                    changed.clear()
        return record.job

    def run(self, scene: Callable[[], Any]) -> None:
        async def play() -> None:
            async with Transport(self.policy) as transport:
                inputs = InputFetcher(transport, self.blobs)
                downloader = InputDownloader(
                    self.jobs, inputs, self.blobs, self.folder, total_s=self.total_s, ahead=2 * MAX_PER_TENANT
                )
                task = asyncio.create_task(downloader.run())
                try:
                    await scene()
                finally:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)

        asyncio.run(play())
        self.jobs.close()
        self.store.close()

    def files(self) -> list[str]:
        roots = (self.folder, self.folder.parent / "blobs")
        return [path.name for root in roots for path in root.rglob("*") if path.is_file()]


def test_slow_host_delays_neither_other_tenants_nor_the_device(tmp_path: Path, host: Host) -> None:
    bench = Bench(tmp_path)

    async def scene() -> None:
        for _ in range(3 * MAX_PER_TENANT):
            bench.submit("mallory", f"{host.url}/drip")
        job_id = bench.submit("bob", f"{host.url}/wav")
        bench.jobs.wake_workers()
        await bench.wait_for(job_id, lambda job: job.inputs_ready)
        record = bench.store.claim(bench.store.now(), POLICY)
        assert record is not None
        assert record.job.id == job_id
        assert bench.store.claim(bench.store.now(), POLICY) is None, "nothing else can start"
        assert host.requests.count("/drip") <= MAX_PER_TENANT
        files = await InputFetcher(Transport(bench.policy), bench.blobs).fetch(record, tmp_path)
        assert files["audio"].read_bytes() == WAV

    bench.run(scene)


def test_slow_download_ends_with_a_code(tmp_path: Path, host: Host) -> None:
    for name, limits in (
        ("speed", {"min_bytes_per_s": 1_000_000, "speed_interval_s": 0.1}),
        ("total", {"total_s": 0.2}),
    ):
        (tmp_path / name).mkdir()
        bench = Bench(tmp_path / name, **limits)

        async def scene(bench: Bench = bench) -> None:
            job_id = bench.submit("bob", f"{host.url}/drip")
            bench.jobs.wake_workers()
            job = await bench.wait_for(job_id, lambda job: job.state.is_final)
            assert job.failure is not None
            assert (job.state, job.failure.code) == (State.FAILED, "url_timeout")

        bench.run(scene)
        assert bench.files() == []


def test_cancelled_download_stops_and_leaves_no_files(tmp_path: Path, host: Host) -> None:
    bench = Bench(tmp_path)

    async def scene() -> None:
        job_id = bench.submit("bob", f"{host.url}/drip")
        bench.jobs.wake_workers()
        async with asyncio.timeout(20):
            while not bench.files():
                await asyncio.sleep(0.01)
            await bench.jobs.cancel(job_id)
            while bench.files():
                await asyncio.sleep(0.01)

    bench.run(scene)


def test_only_the_first_jobs_of_a_queue_are_downloaded(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    for priority in (0, 0, 0, 5):
        job = dataclasses.replace(new_job(priority=priority), inputs_ready=False)
        store.submit(job, REQUEST)
    claims = [store.claim_downloads(100.0, 9, 60.0, 2) for _ in range(3)]
    assert [len(records) for records in claims] == [1, 1, 0]
    assert claims[0][0].job.priority == 5
    job_id = claims[0][0].job.id
    assert store.renew_download(job_id, 300.0)
    assert [record.job.id for record in store.claim_downloads(200.0, 9, 60.0, 2)] == [claims[1][0].job.id]
    store.change(job_id, 200.0, job_state.inputs_ready)
    assert not store.renew_download(job_id, 400.0)
    store.close()
