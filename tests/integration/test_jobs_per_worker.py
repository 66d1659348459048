"""A worker that makes several jobs at once: they do not change, stop or cost each other."""

from __future__ import annotations

import itertools
import os
import re
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.live_server import Live, until

Ffmpeg = Callable[..., None]
Likeness = Callable[[Path, Path], float]
LONG_S = 4.8
"""Two segments."""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Live]]:
    """A server with one worker for two jobs; what is left of it at the end is killed."""
    started: list[Live] = []

    def begin(**settings: object) -> Live:
        given = {"devices": "cpu", "jobs_per_worker": 2, "marking": "off", "requests_per_minute": 10**6}
        server = Live(tmp_path / f"data-{len(started)}", **given | settings)
        server.start()
        started.append(server)
        server.wait_ready()
        return server

    yield begin
    for server in started:
        if server.process is not None and server.process.poll() is None:
            server.stop(signal.SIGKILL)


@pytest.fixture
def long_voice(tmp_path: Path, voice: Path, ffmpeg: Ffmpeg) -> Path:
    path = tmp_path / "voice.wav"
    ffmpeg("-stream_loop", -1, "-i", voice, "-t", LONG_S, path)
    return path


def submit_two(server: Live, clip: Path, voice: Path, **body: object) -> tuple[str, str]:
    video, audio = server.upload(clip), server.upload(voice)
    given: dict[str, Any] = {"inference_steps": 1, "guidance_scale": 1, **body}
    one, other = (server.submit(video, audio, seed=seed, **given) for seed in (1, 2))
    return one, other


def working(server: Live, *jobs: str) -> bool:
    """All of them are seen at work at the same time."""
    return all(server.look(job)["timings"].get("done", 0) > 0 for job in jobs)


def rows(server: Live) -> dict[str, tuple[str, int, float, float]]:
    """Of each job its state, attempts, and when the last of them began and ended."""
    database = sqlite3.connect(server.data_dir / "lipsync.sqlite", timeout=20)
    found = database.execute("SELECT id, state, attempts, started_at, finished_at FROM jobs").fetchall()
    database.close()
    return {job: (state, attempts, began, ended) for job, state, attempts, began, ended in found}


def film(server: Live, job: str, path: Path) -> Path:
    done = server.wait(job)
    assert done["status"] == "completed", done
    path.write_bytes(server.call("GET", done["outputs"][0])[1])
    return path


def jobs_of(server: Live) -> int:
    _, text = server.call("GET", "/metrics")
    found = re.search(rb'lipsync_worker_jobs\{device="cpu"\} (\d)', text)
    assert found, text
    return int(found[1])


def test_two_jobs_at_once_are_what_each_is_alone(
    start: Callable[..., Live], clip: Path, voice: Path, tmp_path: Path, likeness_db: Likeness
) -> None:
    server = start()
    jobs = submit_two(server, clip, voice)
    until(lambda: working(server, *jobs), "they are not made at once", pause_s=0.05)
    assert jobs_of(server) == 2
    _, told = server.call("GET", "/api/native/v1/health")
    assert [device["jobs"] for device in told["devices"]] == [2]
    films = [film(server, job, tmp_path / f"{job}.mp4") for job in jobs]
    until(lambda: jobs_of(server) == 0, "it still has work")

    video, audio = server.upload(clip), server.upload(voice)
    again = server.submit(video, audio, seed=1, inference_steps=1, guidance_scale=1)
    alone = film(server, again, tmp_path / "alone.mp4")
    assert likeness_db(films[0], alone) > 55
    assert likeness_db(films[1], alone) < 53
    assert len(server.worker_pids()) == 1
    assert server.stop() == 0


@pytest.mark.slow
def test_equal_jobs_come_one_after_the_other(
    start: Callable[..., Live], clip: Path, long_voice: Path
) -> None:
    server = start()
    video, audio = server.upload(clip), server.upload(long_voice)
    jobs = [server.submit(video, audio, inference_steps=1, guidance_scale=1) for _ in range(2)]
    assert [server.wait(job)["status"] for job in jobs] == ["completed"] * 2
    (_, one, _, ended), (_, other, began, _) = rows(server).values()
    assert (one, other) == (1, 1)
    assert began < ended, "the second was not taken while the first was made"


@pytest.mark.slow
def test_a_cancelled_job_leaves_its_neighbour_alone(
    start: Callable[..., Live], clip: Path, long_voice: Path
) -> None:
    server = start()
    workers = server.worker_pids()
    one, other = submit_two(server, clip, long_voice, inference_steps=4)
    until(lambda: working(server, one, other), "they are not made at once", pause_s=0.05)
    server.call("POST", f"/api/v3/predictions/{one}/cancel")
    assert server.wait(one)["status"] == "cancelled"
    assert server.look(other)["status"] == "processing"
    assert server.wait(other)["status"] == "completed"
    assert server.worker_pids() == workers


@pytest.mark.slow
def test_jobs_whose_worker_was_killed_are_tried_again_one_by_one(
    start: Callable[..., Live], clip: Path, long_voice: Path
) -> None:
    server = start()
    jobs = submit_two(server, clip, long_voice)
    until(lambda: working(server, *jobs), "they are not made at once", pause_s=0.05)
    (worker,) = server.worker_pids()
    os.kill(worker, signal.SIGKILL)
    until(lambda: worker not in server.worker_pids(), "it does not die")
    fresh = server.submit(server.upload(clip), server.upload(long_voice), inference_steps=1, guidance_scale=1)
    assert [server.wait(job)["status"] for job in (*jobs, fresh)] == ["completed"] * 3
    seen = rows(server)
    assert [seen[job][1] for job in (*jobs, fresh)] == [2, 2, 1]
    tried = sorted(seen[job][2:] for job in (*jobs, fresh))
    assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(tried)), tried


@pytest.mark.slow
def test_a_job_that_does_not_stop_costs_its_neighbour_nothing(
    start: Callable[..., Live], clip: Path, long_voice: Path
) -> None:
    server = start()
    one, other = submit_two(server, clip, long_voice)
    until(lambda: working(server, one, other), "they are not made at once", pause_s=0.05)
    (worker,) = server.worker_pids()
    os.kill(worker, signal.SIGSTOP)
    server.call("POST", f"/api/v3/predictions/{one}/cancel")
    assert server.wait(one)["status"] == "cancelled"
    assert server.wait(other)["status"] == "completed"
    assert rows(server)[other][1] == 1
    assert worker not in server.worker_pids()


@pytest.mark.slow
def test_a_worker_that_has_done_enough_ends_what_it_has(
    start: Callable[..., Live], clip: Path, voice: Path
) -> None:
    server = start(recycle_after_jobs=2)
    workers = server.worker_pids()
    video, audio = server.upload(clip), server.upload(voice)
    jobs = [server.submit(video, audio, inference_steps=1, guidance_scale=1, seed=seed) for seed in range(3)]
    assert [server.wait(job)["status"] for job in jobs] == ["completed"] * 3
    seen = rows(server)
    assert [seen[job][1] for job in jobs] == [1, 1, 1]
    assert max(seen[job][3] for job in jobs[:2]) <= seen[jobs[2]][2], (
        "a third job was begun by a tired worker"
    )
    assert server.worker_pids() != workers


@pytest.mark.slow
def test_an_idle_device_comes_before_a_busy_one_and_helps_it(
    start: Callable[..., Live], clip: Path, long_voice: Path, tmp_path: Path, likeness_db: Likeness
) -> None:
    """Two devices with two places each: a film for each, then one film for both."""
    server = start(devices="cpu,cpu")
    until(lambda: sum("ready with" in line for line in server.log) == 2, "a worker did not start", 120)
    jobs = submit_two(server, clip, long_voice)
    until(lambda: working(server, *jobs), "they are not made at once", pause_s=0.05)
    _, told = server.call("GET", "/api/native/v1/health")
    assert [device["jobs"] for device in told["devices"]] == [1, 1]
    films = [film(server, job, tmp_path / f"{job}.mp4") for job in jobs]
    server.log.clear()
    video, audio = server.upload(clip), server.upload(long_voice)
    again = server.submit(video, audio, seed=1, inference_steps=1, guidance_scale=1)
    assert likeness_db(films[0], film(server, again, tmp_path / "again.mp4")) > 55
    assert sum("was rendered here for it" in line for line in server.log) == 1
    assert len(server.worker_pids()) == 2
