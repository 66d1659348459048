"""Segments of one job rendered by several workers: the video equals that of one worker."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from lipsync_engine import LipSyncPipeline, SyncParams
from server.store import Store
from server.store.tables import SEGMENTS
from tests.support.live_server import LiveServer
from tests.support.polling import wait_until
from tests.support.processes import descendant_pids
from tests.support.s3 import Storage

LONG_S = 4.8
Ffmpeg = Callable[..., None]
Likeness = Callable[[Path, Path], float]


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


def helped_segments(servers: list[LiveServer]) -> list[str]:
    """Segments that were rendered for another worker, as job and number."""
    lines = [line for server in servers for line in server.log]
    return [
        f"{job} {number}"
        for line in lines
        for job, number in re.findall(r"job (\w+): segment (\d+) rendered", line)
    ]


def test_two_devices_render_one_video(
    start_server: Callable[..., LiveServer],
    tmp_path: Path,
    clip: Path,
    long_voice: Path,
    likeness_db: Likeness,
) -> None:
    """It is the video that one worker makes."""
    server = start_server(devices="cpu,cpu")
    wait_until(lambda: sum("ready with" in line for line in server.log) == 2, "a worker did not start", 120)
    job = server.submit(
        server.upload(clip), server.upload(long_voice), inference_steps=1, guidance_scale=1, seed=1
    )
    video, alone = server.download_result(job, tmp_path / "film.mp4"), tmp_path / "alone.mp4"
    assert len(helped_segments([server])) == 1
    shared = server.data_dir / "blobs" / "shared"
    wait_until(lambda: not any(shared.iterdir()), "files are left")
    assert server.stop() == 0

    pipeline = LipSyncPipeline.from_pretrained("tiny", device="cpu", cache_dir=tmp_path / "cache")
    pipeline(clip, long_voice, alone, SyncParams(num_inference_steps=1, guidance_scale=1.0, seed=1))
    assert likeness_db(video, alone) > 55


@pytest.mark.slow
def test_cancelled_job_stops_on_all_devices(
    start_server: Callable[..., LiveServer], tmp_path: Path, clip: Path, long_voice: Path
) -> None:
    server = start_server(devices="cpu,cpu")
    wait_until(lambda: sum("ready with" in line for line in server.log) == 2, "a worker did not start", 120)
    workers, inputs = server.worker_pids(), (server.upload(clip), server.upload(long_voice))
    shared = server.data_dir / "blobs" / "shared"
    job = server.submit(*inputs, inference_steps=4, guidance_scale=1)
    server.wait_for_job(job, lambda states: shared.exists() and any(shared.iterdir()))
    server.request("POST", f"/api/v3/predictions/{job}/cancel")
    assert server.wait_for_job(job)["status"] == "cancelled"
    wait_until(lambda: not any(shared.iterdir()), "files are left")
    again = server.wait_for_job(server.submit(*inputs, inference_steps=1, guidance_scale=1))
    assert again["status"] == "completed"
    assert server.worker_pids() == workers, "".join(server.log)
    assert server.stop() == 0


def claims(store: Store) -> dict[int, tuple[bool, int]]:
    """Of each segment whether it is done, and how often it was taken."""
    query = sa.select(SEGMENTS.c.number, SEGMENTS.c.is_done, SEGMENTS.c.claims)
    with store.read_only() as connection:
        return {number: (is_done, count) for number, is_done, count in connection.execute(query)}


@pytest.mark.slow
def test_killed_processes_lose_only_their_unfinished_segments(
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
    coordinator = owner()
    wait_until(lambda: sum(done for done, _ in claims(store).values()) >= 2, "nothing goes on", 120)
    finished = {number: count for number, (done, count) in claims(store).items() if done}
    kill(coordinator)
    servers.remove(coordinator)
    states: dict[int, tuple[bool, int]] = {}
    (last,) = servers

    def is_over() -> bool:
        states.update(claims(store))
        return last.prediction(job)["status"] == "completed"

    wait_until(is_over, "the job did not end", 240, interval_s=0.1)
    assert len(states) > 3
    assert {number: states[number][1] for number in finished} == finished, (
        "a finished segment was rendered again"
    )
    video, alone = tmp_path / "film.mp4", tmp_path / "alone.mp4"
    link = last.prediction(job)["outputs"][0].removeprefix(api.base)  # the process that it names is gone
    video.write_bytes(last.request("GET", link)[1])
    wait_until(lambda: not any("/shared/" in name for name in storage.names()), "files are left")
    assert last.stop() == 0
    store.close()
    pipeline = LipSyncPipeline.from_pretrained("tiny", device="cpu", cache_dir=tmp_path / "cache")
    pipeline(small, long_voice, alone, SyncParams(num_inference_steps=1, guidance_scale=1.0, seed=1))
    assert likeness_db(video, alone) > 55
