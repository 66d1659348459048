"""A worker that makes several jobs at once: they do not change, stop or cost each other."""

from __future__ import annotations

import itertools
import os
import re
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.live_server import LiveServer
from tests.support.polling import wait_until

Ffmpeg = Callable[..., None]
Likeness = Callable[[Path, Path], float]
LONG_S = 4.8
"""Two segments."""


@pytest.fixture
def start(start_server: Callable[..., LiveServer]) -> Callable[..., LiveServer]:
    """A server with one worker for two jobs."""

    def start_with(**settings: object) -> LiveServer:
        defaults = {"devices": "cpu", "jobs_per_worker": 2, "marking": "off", "requests_per_minute": 10**6}
        server = start_server(**defaults | settings)
        server.wait_ready()
        return server

    return start_with


@pytest.fixture
def long_voice(make_voice: Callable[[float], Path]) -> Path:
    return make_voice(LONG_S)


def submit_two(server: LiveServer, clip: Path, voice: Path, **body: object) -> tuple[str, str]:
    video, audio = server.upload(clip), server.upload(voice)
    inputs: dict[str, Any] = {"inference_steps": 1, "guidance_scale": 1, **body}
    one, other = (server.submit(video, audio, seed=seed, **inputs) for seed in (1, 2))
    return one, other


def are_rendering(server: LiveServer, *jobs: str) -> bool:
    """All of them are rows_now at work at the same time."""
    return all(server.prediction(job)["timings"].get("done", 0) > 0 for job in jobs)


def job_rows(server: LiveServer) -> dict[str, tuple[str, int, float, float]]:
    """Of each job its state, attempts, and when the last of them began and ended."""
    database = sqlite3.connect(server.data_dir / "lipsync.sqlite", timeout=20)
    result = database.execute("SELECT id, state, attempts, started_at, finished_at FROM jobs").fetchall()
    database.close()
    return {job: (state, attempts, began, ended) for job, state, attempts, began, ended in result}


def running_jobs(server: LiveServer) -> int:
    _, text = server.request("GET", "/metrics")
    result = re.search(rb'lipsync_worker_jobs\{device="cpu"\} (\d)', text)
    assert result, text
    return int(result[1])


def test_concurrent_jobs_equal_jobs_that_run_alone(
    start: Callable[..., LiveServer], clip: Path, voice: Path, tmp_path: Path, likeness_db: Likeness
) -> None:
    server = start()
    jobs = submit_two(server, clip, voice)
    wait_until(lambda: are_rendering(server, *jobs), "they are not made at once", interval_s=0.05)
    assert running_jobs(server) == 2
    _, health = server.request("GET", "/api/native/v1/health")
    assert [device["jobs"] for device in health["devices"]] == [2]
    videos = [server.download_result(job, tmp_path / f"{job}.mp4") for job in jobs]
    wait_until(lambda: running_jobs(server) == 0, "it still has work")

    video, audio = server.upload(clip), server.upload(voice)
    again = server.submit(video, audio, seed=1, inference_steps=1, guidance_scale=1)
    alone = server.download_result(again, tmp_path / "alone.mp4")
    assert likeness_db(videos[0], alone) > 55
    assert likeness_db(videos[1], alone) < 53
    assert len(server.worker_pids()) == 1
    assert server.stop() == 0


@pytest.mark.slow
def test_equal_jobs_run_one_after_the_other(
    start: Callable[..., LiveServer], clip: Path, long_voice: Path
) -> None:
    server = start()
    video, audio = server.upload(clip), server.upload(long_voice)
    jobs = [server.submit(video, audio, inference_steps=1, guidance_scale=1) for _ in range(2)]
    assert [server.wait_for_job(job)["status"] for job in jobs] == ["completed"] * 2
    (_, one, _, ended), (_, other, began, _) = job_rows(server).values()
    assert (one, other) == (1, 1)
    assert began < ended, "the second was not taken while the first was made"


@pytest.mark.slow
def test_cancelling_a_job_leaves_concurrent_jobs_running(
    start: Callable[..., LiveServer], clip: Path, long_voice: Path
) -> None:
    server = start()
    workers = server.worker_pids()
    one, other = submit_two(server, clip, long_voice, inference_steps=4)
    wait_until(lambda: are_rendering(server, one, other), "they are not made at once", interval_s=0.05)
    server.request("POST", f"/api/v3/predictions/{one}/cancel")
    assert server.wait_for_job(one)["status"] == "cancelled"
    assert server.prediction(other)["status"] == "processing"
    assert server.wait_for_job(other)["status"] == "completed"
    assert server.worker_pids() == workers


@pytest.mark.slow
def test_jobs_of_a_killed_worker_are_retried_one_by_one(
    start: Callable[..., LiveServer], clip: Path, long_voice: Path
) -> None:
    server = start()
    jobs = submit_two(server, clip, long_voice)
    wait_until(lambda: are_rendering(server, *jobs), "they are not made at once", interval_s=0.05)
    (worker,) = server.worker_pids()
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: worker not in server.worker_pids(), "it does not die")
    fresh = server.submit(server.upload(clip), server.upload(long_voice), inference_steps=1, guidance_scale=1)
    assert [server.wait_for_job(job)["status"] for job in (*jobs, fresh)] == ["completed"] * 3
    rows_now = job_rows(server)
    assert [rows_now[job][1] for job in (*jobs, fresh)] == [2, 2, 1]
    tried = sorted(rows_now[job][2:] for job in (*jobs, fresh))
    assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(tried)), tried


@pytest.mark.slow
def test_unstoppable_job_costs_concurrent_jobs_no_attempt(
    start: Callable[..., LiveServer], clip: Path, long_voice: Path
) -> None:
    server = start()
    one, other = submit_two(server, clip, long_voice)
    wait_until(lambda: are_rendering(server, one, other), "they are not made at once", interval_s=0.05)
    (worker,) = server.worker_pids()
    os.kill(worker, signal.SIGSTOP)
    server.request("POST", f"/api/v3/predictions/{one}/cancel")
    assert server.wait_for_job(one)["status"] == "cancelled"
    assert server.wait_for_job(other)["status"] == "completed"
    assert job_rows(server)[other][1] == 1
    assert worker not in server.worker_pids()


@pytest.mark.slow
def test_recycled_worker_finishes_its_jobs_first(
    start: Callable[..., LiveServer], clip: Path, voice: Path
) -> None:
    server = start(recycle_after_jobs=2)
    workers = server.worker_pids()
    video, audio = server.upload(clip), server.upload(voice)
    jobs = [server.submit(video, audio, inference_steps=1, guidance_scale=1, seed=seed) for seed in range(3)]
    assert [server.wait_for_job(job)["status"] for job in jobs] == ["completed"] * 3
    rows_now = job_rows(server)
    assert [rows_now[job][1] for job in jobs] == [1, 1, 1]
    assert max(rows_now[job][3] for job in jobs[:2]) <= rows_now[jobs[2]][2], (
        "a third job was begun by a tired worker"
    )
    assert server.worker_pids() != workers


@pytest.mark.slow
def test_idle_device_is_preferred_and_helps_the_busy_one(
    start: Callable[..., LiveServer], clip: Path, long_voice: Path, tmp_path: Path, likeness_db: Likeness
) -> None:
    """Two devices with two places each: a download for each, then one download for both."""
    server = start(devices="cpu,cpu")
    wait_until(lambda: sum("ready with" in line for line in server.log) == 2, "a worker did not start", 120)
    jobs = submit_two(server, clip, long_voice)
    wait_until(lambda: are_rendering(server, *jobs), "they are not made at once", interval_s=0.05)
    _, health = server.request("GET", "/api/native/v1/health")
    assert [device["jobs"] for device in health["devices"]] == [1, 1]
    videos = [server.download_result(job, tmp_path / f"{job}.mp4") for job in jobs]
    server.log.clear()
    video, audio = server.upload(clip), server.upload(long_voice)
    again = server.submit(video, audio, seed=1, inference_steps=1, guidance_scale=1)
    assert likeness_db(videos[0], server.download_result(again, tmp_path / "again.mp4")) > 55
    assert sum("rendered for another worker" in line for line in server.log) == 1
    assert len(server.worker_pids()) == 2
