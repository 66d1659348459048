"""One job's segments rendered by many: who may take which, and a film that is equal to one worker's."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from lipsync_engine import LipSyncPipeline, SyncParams
from server.jobs import state as job_state
from server.jobs.request import Request
from server.jobs.state import Job, JobPolicy, Output
from server.store import SegmentClaim, SegmentRecord, Store
from server.store.segments import LEASE_S, MAX_HELPER_CLAIMS
from server.store.tables import SEGMENTS
from tests.support.live_server import LiveServer
from tests.support.polling import wait_until
from tests.support.processes import descendant_pids
from tests.support.s3 import Storage

POLICY = JobPolicy()
REQUEST = Request(dialect="wavespeed", dialect_state="{}", endpoint="a/b", sources=(), key_id="0" * 16)
KEY, FITS = "k" * 32, "f" * 32
LONG_S = 4.8
Ffmpeg = Callable[..., None]
Likeness = Callable[[Path, Path], float]
numbers = itertools.count(1)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    here = request.param == "sqlite"
    opened = Store(f"sqlite:///{tmp_path / 'a.sqlite'}" if here else request.getfixturevalue("postgres_url"))
    yield opened
    opened.close()


def running(
    store: Store, tenant: str = "studio", *, frames: tuple[int, ...] = (50, 150), at: float = 1
) -> Job:
    """A job whose segments are offered."""
    store.submit(Job(id=f"{next(numbers):032x}", tenant=tenant, created_at=at), REQUEST)
    record = store.claim(at, POLICY)
    assert record is not None
    assert store.publish_segments(record.job.id, record.job.fence, KEY, FITS, frames, set())
    return record.job


def test_each_segment_is_taken_once_the_first_ones_first(store: Store) -> None:
    job = running(store, frames=(50, 150, 150))
    own = store.claim_own_segment(job.id, KEY, 10, have=set())
    helps = [store.claim_shared_segment(FITS, 10) for _ in range(3)]
    assert own == SegmentClaim(job.id, 0, KEY, 50, 1)
    assert helps == [SegmentClaim(job.id, 1, KEY, 150, 1), SegmentClaim(job.id, 2, KEY, 150, 1), None]
    assert store.claim_own_segment(job.id, KEY, 10, have=set()) is None
    assert store.renew_segment_lease(helps[0], 11, frames_done=70)
    assert store.complete_segment(job.id, KEY, 2)
    assert store.get_segments(job.id) == (
        KEY,
        [SegmentRecord(0, False, 0), SegmentRecord(1, False, 70), SegmentRecord(2, True, 150)],
    )
    assert store.complete_segment(job.id, KEY, 1, helper_s=2.5)
    assert store.helper_s(job.id) == 2.5


def test_who_asks_at_the_same_moment_gets_another_segment(postgres_url: str) -> None:
    stores = [Store(postgres_url) for _ in range(4)]
    for at in range(3):
        running(stores[0], at=at, frames=(150,) * 20)

    def take(store: Store) -> list[tuple[str, int]]:
        taken = []
        while (piece := store.claim_shared_segment(FITS, 10)) is not None:
            taken.append((piece.job_id, piece.index))
        return taken

    with ThreadPoolExecutor(len(stores)) as at_once:
        taken = [place for places in at_once.map(take, stores) for place in places]
    assert len(taken) == len(set(taken)) == 60
    for store in stores:
        store.close()


def test_a_worker_of_hundreds_costs_the_database_few_statements(store: Store) -> None:
    said: list[str] = []
    sa.event.listen(store._engine, "before_cursor_execute", lambda *told: said.append(told[2]))
    running(store)
    said.clear()
    piece = store.claim_shared_segment(FITS, 10.0)
    assert piece is not None
    assert len(said) == 2, "whose turn it is, and the segment"
    said.clear()
    assert store.renew_segment_lease(piece, 11.0, 5)
    assert store.complete_segment(piece.job_id, piece.plan_key, piece.index)
    assert store.claim_own_segment(piece.job_id, piece.plan_key, 12.0, set()) is not None
    assert len(said) == 3


def test_only_equal_workers_help(store: Store) -> None:
    running(store)
    assert store.claim_shared_segment("other weights", 10) is None


def test_a_segment_that_nobody_renders_any_more_is_taken_again(store: Store) -> None:
    job = running(store, frames=(50,))
    lost = store.claim_shared_segment(FITS, 10)
    assert lost is not None
    assert store.claim_shared_segment(FITS, 10 + LEASE_S) is None
    assert store.renew_segment_lease(lost, 20)
    assert store.claim_shared_segment(FITS, 11 + LEASE_S) is None
    again = store.claim_own_segment(job.id, KEY, 21 + LEASE_S, have=set())
    assert again == dataclasses.replace(lost, claim=2)
    assert not store.renew_segment_lease(lost, 22 + LEASE_S), "an old claim holds"
    store.release_segment(lost)
    assert store.claim_shared_segment(FITS, 22 + LEASE_S) is None, "an old claim frees another's segment"
    store.release_segment(again)
    assert store.claim_shared_segment(FITS, 22 + LEASE_S) == dataclasses.replace(lost, claim=3)


def test_a_segment_that_ends_its_workers_is_left_to_its_owner(store: Store) -> None:
    job = running(store, frames=(50,))
    for _ in range(MAX_HELPER_CLAIMS):
        piece = store.claim_shared_segment(FITS, 10)
        assert piece is not None
        store.release_segment(piece)
    assert store.claim_shared_segment(FITS, 10) is None
    assert store.claim_own_segment(job.id, KEY, 10, have=set()) is not None


def test_tenants_are_helped_in_turns(store: Store) -> None:
    first, second = running(store, "a", frames=(1,) * 9), running(store, "b", frames=(1,) * 3, at=2)
    helped = [store.claim_shared_segment(FITS, 10) for _ in range(6)]
    assert [piece.job_id for piece in helped if piece] == [first.id, second.id] * 3


@pytest.mark.parametrize("end", ["cancel", "fail", "again"])
def test_no_help_for_what_does_not_run(end: str, store: Store) -> None:
    job = running(store)
    piece = store.claim_shared_segment(FITS, 10)
    assert piece is not None
    change = {
        "cancel": lambda job: job_state.cancel(job, 11),
        "fail": lambda job: job_state.fail(job, 1, 11, job_state.RUN_TIMEOUT, POLICY),
        "again": lambda job: job_state.fail(job, 1, 11, job_state.WORKER_LOST, POLICY),
    }[end]
    store.change(job.id, 11, change)
    assert store.claim_shared_segment(FITS, 12) is None
    if end != "again":  # whoever renders for the next attempt's sake goes on
        assert not store.renew_segment_lease(piece, 12)


def test_rows_go_with_the_end_of_the_job(store: Store) -> None:
    job = running(store)
    store.change(job.id, 11, lambda job: job_state.succeed(job, 1, 11, Output("results/a.mp4", 1.0)))
    assert store.get_segments(job.id) == ("", [])
    assert not store.complete_segment(job.id, KEY, 0)


def test_a_later_attempt_keeps_what_is_done_of_the_same_plan(store: Store) -> None:
    job = running(store)
    assert store.complete_segment(job.id, KEY, 1)
    assert not store.publish_segments(job.id, 7, KEY, FITS, (50, 150), set()), "an old claim offers"
    store.change(job.id, 11, lambda job: job_state.fail(job, 1, 11, job_state.WORKER_LOST, POLICY))
    again = store.claim(12, POLICY)
    assert again is not None
    assert store.publish_segments(job.id, again.job.fence, KEY, FITS, (50, 150), {0})
    assert [share.is_done for share in store.get_segments(job.id)[1]] == [True, True]
    assert store.publish_segments(job.id, again.job.fence, "o" * 32, FITS, (50, 150), set())
    assert store.get_segments(job.id) == ("o" * 32, [SegmentRecord(0, False, 0), SegmentRecord(1, False, 0)])


# --- real workers ---


@pytest.fixture
def long_voice(make_voice: Callable[[float], Path]) -> Path:
    """Two segments."""
    return make_voice(LONG_S)


def kill(server: LiveServer) -> None:
    """As when its machine loses power."""
    assert server.process is not None
    for pid in [*descendant_pids(server.process.pid), server.process.pid]:
        os.kill(pid, signal.SIGKILL)
    server.process.wait()


def helped(servers: list[LiveServer]) -> list[str]:
    """Segments that were rendered for another worker, as job and number."""
    lines = [line for server in servers for line in server.log]
    return [
        f"{job} {number}"
        for line in lines
        for job, number in re.findall(r"job (\w+): segment (\d+) was", line)
    ]


def test_two_devices_render_one_film(
    start_server: Callable[..., LiveServer],
    tmp_path: Path,
    clip: Path,
    long_voice: Path,
    likeness_db: Likeness,
) -> None:
    """It is the film that one worker makes."""
    server = start_server(devices="cpu,cpu")
    wait_until(lambda: sum("ready with" in line for line in server.log) == 2, "a worker did not start", 120)
    job = server.submit(
        server.upload(clip), server.upload(long_voice), inference_steps=1, guidance_scale=1, seed=1
    )
    film, alone = server.download_result(job, tmp_path / "film.mp4"), tmp_path / "alone.mp4"
    assert len(helped([server])) == 1
    shared = server.data_dir / "blobs" / "shared"
    wait_until(lambda: not any(shared.iterdir()), "files are left")
    assert server.stop() == 0

    pipeline = LipSyncPipeline.from_pretrained("tiny", device="cpu", cache_dir=tmp_path / "cache")
    pipeline(clip, long_voice, alone, SyncParams(num_inference_steps=1, guidance_scale=1.0, seed=1))
    assert likeness_db(film, alone) > 55


@pytest.mark.slow
def test_a_cancelled_film_stops_on_all_devices(
    start_server: Callable[..., LiveServer], tmp_path: Path, clip: Path, long_voice: Path
) -> None:
    server = start_server(devices="cpu,cpu")
    wait_until(lambda: sum("ready with" in line for line in server.log) == 2, "a worker did not start", 120)
    workers, given = server.worker_pids(), (server.upload(clip), server.upload(long_voice))
    shared = server.data_dir / "blobs" / "shared"
    job = server.submit(*given, inference_steps=4, guidance_scale=1)
    server.wait_for_job(job, lambda seen: shared.exists() and any(shared.iterdir()))
    server.request("POST", f"/api/v3/predictions/{job}/cancel")
    assert server.wait_for_job(job)["status"] == "cancelled"
    wait_until(lambda: not any(shared.iterdir()), "files are left")
    again = server.wait_for_job(server.submit(*given, inference_steps=1, guidance_scale=1))
    assert again["status"] == "completed"
    assert server.worker_pids() == workers, "".join(server.log)
    assert server.stop() == 0


def claims(store: Store) -> dict[int, tuple[bool, int]]:
    """Of each segment whether it is done, and how often it was taken."""
    query = sa.select(SEGMENTS.c.number, SEGMENTS.c.is_done, SEGMENTS.c.claims)
    with store.read_only() as connection:
        return {number: (is_done, count) for number, is_done, count in connection.execute(query)}


@pytest.mark.slow
def test_what_is_lost_with_a_process_are_its_unfinished_segments(
    start_server: Callable[..., LiveServer],
    postgres_url: str,
    storage: Storage,
    tmp_path: Path,
    clip: Path,
    make_voice: Callable[[float], Path],
    ffmpeg: Ffmpeg,
    likeness_db: Likeness,
) -> None:
    """Machines that share a database and S3 and nothing else; a helper is killed, then the owner."""
    small, long_voice = tmp_path / "clip.mp4", make_voice(30)
    ffmpeg("-i", clip, "-vf", "scale=128:-2", "-crf", 18, small)
    common = {"database_url": postgres_url, "blobs": storage.url, "link_secret": tmp_path / "signing.key"}
    servers: list[LiveServer] = []
    for _ in range(3):
        key = servers[0].key if servers else ""
        servers.append(start_server(key=key, devices="cpu", **common))
    for server in servers:
        server.wait_ready()
    store, api = Store(postgres_url), servers[0]
    job = api.submit(api.upload(small), api.upload(long_voice), inference_steps=1, guidance_scale=1, seed=1)

    def owner() -> LiveServer:
        return next(s for s in servers if (s.data_dir / "work" / "jobs" / job).exists())

    wait_until(lambda: sum(done for done, _ in claims(store).values()) >= 1, "no segment was finished", 120)
    helper = next(s for s in servers if s is not owner())
    kill(helper)
    servers.remove(helper)
    lost = owner()
    wait_until(lambda: sum(done for done, _ in claims(store).values()) >= 2, "nothing goes on", 120)
    kept = {number: count for number, (done, count) in claims(store).items() if done}
    kill(lost)
    servers.remove(lost)
    seen: dict[int, tuple[bool, int]] = {}
    (last,) = servers

    def is_over() -> bool:
        seen.update(claims(store))
        return last.prediction(job)["status"] == "completed"

    wait_until(is_over, "the job did not end", 240, interval_s=0.1)
    assert len(seen) > 3
    assert {number: seen[number][1] for number in kept} == kept, "a finished segment was rendered again"
    film, alone = tmp_path / "film.mp4", tmp_path / "alone.mp4"
    link = last.prediction(job)["outputs"][0].removeprefix(api.base)  # the process that it names is gone
    film.write_bytes(last.request("GET", link)[1])
    wait_until(lambda: not any("/shared/" in name for name in storage.names()), "files are left")
    assert last.stop() == 0
    store.close()
    pipeline = LipSyncPipeline.from_pretrained("tiny", device="cpu", cache_dir=tmp_path / "cache")
    pipeline(small, long_voice, alone, SyncParams(num_inference_steps=1, guidance_scale=1.0, seed=1))
    assert likeness_db(film, alone) > 55
