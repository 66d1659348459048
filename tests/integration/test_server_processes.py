"""Several processes on one PostgreSQL: they notify each other, share one clock, and survive its restart."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from server.cluster.autoscaling import WorkerState
from server.jobs import state as job_state
from server.jobs.request import Request
from server.jobs.service import POLL_INTERVAL_S, JobService
from server.jobs.state import Job, JobPolicy, State
from server.store import QueueLimits, Store
from server.store.tables import OUTBOX
from server.workers.registry import WorkerRegistry, WorkerStatus
from tests.support.application import BASE, Api
from tests.support.live_server import LiveServer
from tests.support.polling import wait_until
from tests.support.private_postgres import PrivatePostgres
from tests.support.s3 import Storage
from tests.support.webhook_receiver import WebhookReceiver

LATENTSYNC = "/api/v3/bytedance/latentsync"
NOWHERE = {
    "video": "http://127.0.0.2/clip.mp4",
    "audio": "http://127.0.0.2/voice.wav",
}  # refused when fetched
Ffmpeg = Callable[..., None]


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    opened = WebhookReceiver()
    yield opened
    opened.close()


# --- two answering processes, without workers ---


@pytest.fixture
def two(make_api: Callable[..., Api], postgres_url: str, tmp_path: Path) -> tuple[Api, Api]:
    """Two servers on one database, each with a data folder of its own."""
    shared = {
        "database_url": postgres_url,
        "link_secret": tmp_path / "signing.key",
        "allow_hosts": "127.0.0.1",
    }
    return make_api(**shared), make_api(**shared)


def test_sync_request_returns_when_another_process_ends_the_job(two: tuple[Api, Api]) -> None:
    here, there = two
    body = {"audio": f"{BASE}/a.wav", "video": f"{BASE}/v.mp4", "enable_sync_mode": True}
    with ThreadPoolExecutor(1) as client:
        future = client.submit(here.client.post, LATENTSYNC, json=body, headers=here.headers)
        wait_until(lambda: there.server.store.count_in_state(State.WAITING) == 1, "the job did not come")
        (job, _), *_ = there.server.store.waiting_jobs()
        there.succeed(job)
        since = time.monotonic()
        assert future.result().json()["data"]["status"] == "completed"
    assert time.monotonic() - since < POLL_INTERVAL_S / 2, "it was looked for, not heard"
    assert here.server.jobs.typical_run_s is not None, "both know how long a job takes"


def test_event_stream_follows_another_process(two: tuple[Api, Api]) -> None:
    here, there = two
    job = there.submit()
    with ThreadPoolExecutor(1) as client:
        path = f"/api/native/v1/jobs/{job}/events"
        response = client.submit(here.client.get, path, headers=here.headers)
        there.succeed(job)
        assert '"state": "succeeded"' in response.result(20).text


def test_cancellation_stops_the_job_in_another_process(two: tuple[Api, Api]) -> None:
    here, there = two
    stopped: list[str] = []
    there.server.jobs.on_stop = stopped.append
    job = here.submit()
    there.begin()
    here.server.store.change(job, 1.0, lambda job: job_state.cancel(job, 1.0))
    wait_until(lambda: stopped == [job], "the other process was not told", 5)


def test_webhook_is_delivered_by_exactly_one_process(two: tuple[Api, Api], receiver: WebhookReceiver) -> None:
    here, there = two
    output = [here.submit(webhook_url=receiver.url) for _ in range(30)]
    for job in output:
        here.client.post(f"/api/v3/predictions/{job}/cancel", headers=here.headers)
    wait_until(lambda: here.server.store.count_webhooks() == (0, 0), "not all were delivered", 20)
    assert sorted(receiver.ids()) == sorted(output)
    assert there.server.store.count_webhooks() == (0, 0)


def test_concurrent_claims_of_webhooks_are_disjoint(postgres_url: str) -> None:
    stores, count = [Store(postgres_url) for _ in range(4)], 400
    entry = {"url": "x", "created_at": 0.0, "due_at": 1.0, "tries": 0}
    rows = [{"id": str(n), "job_id": str(n), "tenant": f"t{n % 5}", **entry} for n in range(count)]
    with stores[0].transaction() as connection:
        connection.execute(sa.insert(OUTBOX), rows)

    def claim_all(store: Store) -> list[str]:
        ids = list[str]()
        while (store.next_webhook_at() or 0.0) < 100:
            ids += [claimed.id for claimed in store.claim_webhooks(100.0, 3, 1000.0)]
        return ids

    with ThreadPoolExecutor(len(stores)) as processes:
        claims = [name for ids in processes.map(claim_all, stores) for name in ids]
    for store in stores:
        store.close()
    assert sorted(claims) == sorted(row["id"] for row in rows)


def test_keys_and_links_are_valid_in_all_processes(two: tuple[Api, Api]) -> None:
    here, there = two
    job = here.submit()
    there.succeed(job)
    view = there.client.get(f"/api/v3/predictions/{job}", headers=here.headers).json()["data"]
    assert view["status"] == "completed"
    token = here.server.context.file_url("", "results/a.mp4", time.time()).split("/")[2]
    assert there.server.context.signer.check("read", "results/a.mp4", token, time.time()) == "valid"
    assert (
        there.client.delete(f"/admin/keys/{here.key.split('_')[1]}", headers=there.headers).status_code == 204
    )
    wait_until(
        lambda: here.client.get("/api/v3/balance", headers=here.headers).status_code == 401,
        "it still works",
        3,
    )


def test_workers_are_listed_by_all_processes(two: tuple[Api, Api]) -> None:
    here, there = two

    def seen() -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = here.client.get("/admin/workers", headers=here.headers).json()
        return result

    def counted() -> dict[str, int]:
        response = here.client.get("/api/native/v1/health", headers=here.headers).json()
        return {condition: count for condition, count in response["workers"].items() if count}

    async def work() -> None:
        state = WorkerState.BUSY
        registry = WorkerRegistry(
            there.server.jobs,
            lambda: [
                WorkerStatus("cuda:0", state, ready=True, starts=2, busy=1),
                WorkerStatus("cuda:1", WorkerState.IDLE, ready=True, starts=1, busy=0),
            ],
            "tiny",
        )
        running = asyncio.create_task(registry.run())
        await asyncio.to_thread(
            wait_until, lambda: len(seen()) == 2, "the other process does not know them", 10
        )
        assert await asyncio.to_thread(counted) == {"busy": 1, "idle": 1}
        state = WorkerState.DRAINING
        assert [one.state for one in registry.list_workers()] == ["draining", "idle"]
        running.cancel()
        await registry.deregister()

    assert there.client.portal is not None
    assert (seen(), counted()) == ([], {})
    there.client.portal.call(work)
    assert (seen(), counted()) == ([], {})
    assert 'lipsync_workers{state="busy"} 0.0' in here.client.get("/metrics").text
    answer = here.client.get("/admin/workers", headers={"Authorization": f"Bearer {here.other_key}"})
    assert answer.status_code == 403


@pytest.mark.parametrize(("grace_s", "state"), [(60.0, State.RUNNING), (0.0, State.WAITING)])
def test_lease_does_not_expire_until_its_holder_could_renew_it(
    postgres_url: str, grace_s: float, state: State
) -> None:
    """The process has just connected to the database, as after an outage."""
    store = Store(postgres_url)
    jobs = JobService(store, JobPolicy(), QueueLimits(), 1, lease_grace_s=grace_s)

    async def expire_after_connect() -> None:
        await jobs.submit(Job(id="0" * 32, tenant="t", created_at=store.now()), REQUEST, None)
        store.claim(store.now() - 2 * JobPolicy().lease_s, JobPolicy())
        listening = asyncio.create_task(jobs.listen())
        await asyncio.sleep(0)
        await jobs.expire()
        listening.cancel()

    asyncio.run(expire_after_connect())
    assert store.count_in_state(state) == 1
    jobs.close()
    store.close()


def test_requeued_job_wakes_workers_of_another_process(two: tuple[Api, Api]) -> None:
    here, there = two
    job = here.submit()
    record = there.begin()
    job_available = here.server.jobs.job_available
    there.server.store.change(job, 1.0, lambda job: job_state.requeue(job, record.job.fence, 1.0))
    wait_until(job_available.is_set, "the other process was not notified", 5)


def test_leases_use_the_database_clock(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose clock is an hour fast expires no lease, and gives no lease of an hour."""
    store = Store(postgres_url)
    jobs = JobService(store, JobPolicy(), QueueLimits(), 1)
    real = time.time

    async def go() -> tuple[Job, Job]:
        await jobs.submit(Job(id="0" * 32, tenant="t", created_at=real()), REQUEST, None)
        with monkeypatch.context() as fast:
            fast.setattr(time, "time", lambda: real() + 3600)
            claimed = await jobs.claim()
            await jobs.expire()
            previous = store.get("0" * 32)
        assert claimed is not None
        assert previous is not None
        return claimed.job, previous.job

    claimed, previous = asyncio.run(go())
    jobs.close()
    store.close()
    assert claimed.lease_until == pytest.approx(real() + JobPolicy().lease_s, abs=10)
    assert previous == claimed


REQUEST = Request(dialect="wavespeed", dialect_state="{}", endpoint="a/b", sources=(), key_id="0" * 16)


# --- real processes, and a database that goes and comes back ---


@pytest.fixture
def private() -> Iterator[PrivatePostgres]:
    database = PrivatePostgres()
    yield database
    database.close()


def test_outage_of_database_and_storage_loses_and_repeats_nothing(
    private: PrivatePostgres,
    storage: Storage,
    tmp_path: Path,
    clip: Path,
    voice: Path,
    make_voice: Callable[[float], Path],
    start_server: Callable[..., LiveServer],
    receiver: WebhookReceiver,
) -> None:
    """One process answers, another renders, files lie in S3; the database stops in the middle of a job and of
    submissions, the storage when a film is to be stored, and before one is to be read.
    """
    long_voice = make_voice(2.4)
    shared = {"database_url": private.url, "blobs": storage.url, "link_secret": tmp_path / "signing.key"}
    shared |= {"allow_hosts": "127.0.0.1", "requests_per_minute": 10**6, "max_attempts": 2}
    api = start_server(devices="none", **shared)
    worker = start_server(key=api.key, **shared)
    video, audio = api.upload(clip), api.upload(long_voice)
    assert api.request("GET", "/readyz")[0] == 200
    worker.wait_ready()
    (process,) = worker.worker_pids()

    acknowledged: dict[str, str] = {}
    rejection: list[dict[str, object]] = []
    is_over = threading.Event()

    def submit_on(client: int) -> None:
        for number in range(10_000):
            if is_over.wait(0.1):  # ten a second
                return
            key, status, response = f"{client}-{number}", 0, {}
            while status != 200 and not is_over.is_set():
                path = f"{LATENTSYNC}?webhook={receiver.url}"
                status, response = api.request("POST", path, NOWHERE, **{"Idempotency-Key": key})
                if status != 200:
                    is_over.wait(0.1)
                    assert status == 503, response
                    rejection.append(response)
                else:
                    acknowledged[key] = response["data"]["id"]

    film = api.submit(video, audio, inference_steps=2, webhook_url=receiver.url)
    api.wait_for_job(film, lambda seen: seen["timings"].get("stage") == "render")
    with ThreadPoolExecutor(2) as clients:
        running = [clients.submit(submit_on, client) for client in range(2)]
        try:
            wait_until(lambda: len(acknowledged) > 5, "no submission comes in")
            private.stop()
            wait_until(lambda: len(rejection) > 5, "nothing was refused")
            since = time.monotonic()
            status, response = api.request("POST", "/api/v1/lipsync-video", {"formState": NOWHERE})
            assert (status, "unavailable" in response["message"]) == (503, True)
            status, response = api.request("GET", f"/api/native/v1/jobs/{film}")
            assert (status, response["error"]) == (503, "database_away")
            assert api.request("GET", "/livez")[0] == 200
            assert time.monotonic() - since < 2, "requests waited for a database that is away"
            stored = f"here/results/{film}.mp4"
            wait_until(lambda: stored in storage.names(), "the running job did not go on", interval_s=0.1)
            private.start()
            before = len(acknowledged)
            wait_until(lambda: len(acknowledged) > before + 5, "no submission comes in again", 20)
        finally:
            is_over.set()
        for client in running:
            client.result()
    assert {response["error_code"] for response in rejection} == {"database_away"}

    expected = {film, *acknowledged.values()}
    wait_until(lambda: expected <= set(receiver.ids()), "a job did not end", 60, interval_s=0.1)
    assert len(set(acknowledged.values())) == len(acknowledged)
    assert sorted(receiver.ids()) == sorted(set(receiver.ids())), "a webhook came twice"
    view = api.request("GET", f"/api/native/v1/jobs/{film}")[1]
    assert (view["state"], view["warnings"]) == ("succeeded", [])
    assert worker.worker_pids() == [process], "the worker was replaced for the database's sake"

    short = api.upload(voice)
    previous = api.submit(video, short, inference_steps=1, guidance_scale=1, seed=1)
    api.wait_for_job(previous, lambda seen: seen["timings"].get("stage") == "render")
    storage.is_away = True
    wait_until(lambda: any("not stored" in line for line in worker.log), "it was stored nowhere")
    storage.is_away = False
    prediction = api.wait_for_job(previous)
    assert prediction["status"] == "completed"
    content = api.request("GET", prediction["outputs"][0])[1]
    assert api.request("GET", prediction["outputs"][0], Range="bytes=4-11")[1] == content[4:12]

    storage.is_away = True
    unread = api.submit(video, short, inference_steps=1, guidance_scale=1, seed=2)
    assert api.wait_for_job(unread)["status"] == "failed"
    view = api.request("GET", f"/api/native/v1/jobs/{unread}")[1]
    assert (view["failure"]["code"], view["thumbnail"]) == ("storage_away", None)
    storage.is_away = False

    cancelled = api.submit(video, audio, inference_steps=2, seed=3)
    api.wait_for_job(cancelled, lambda seen: seen["timings"].get("stage") == "render")
    api.request("POST", f"/api/v3/predictions/{cancelled}/cancel")
    assert api.wait_for_job(cancelled)["status"] == "cancelled"
    assert worker.worker_pids() == [process], "the worker was replaced for the storage's sake"
    wait_until(lambda: not any("previews" in key for key in storage.names()), "previews are left")
    assert worker.stop() == 0
    assert api.stop() == 0
