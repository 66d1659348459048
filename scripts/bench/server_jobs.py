"""Short jobs through a real server whose worker makes one at a time, and a few: how much faster.

    python -m scripts.bench server-jobs                                  # the tiny model on a CPU
    python -m scripts.bench server-jobs --device cuda:0 --model latentsync-1.6 --jobs-per-worker 1 2 4 8

Servers that differ in `jobs_per_worker` alone run side by side, each with a worker that has loaded its model,
and are given the same jobs in turns, one server at a time: other work comes and goes. A round is timed from
the first submission to the last film. On a busy machine a worker that does more at once also gets a larger
share of it, so the worker's processor time is given as well. Films are signed, so pictures are compared:
in how many jobs they are the same to the bit as those of the first server.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from scripts.bench.common import BENCHMARKS, DEMO_VIDEO, DEMO_VOICE, paired_ratio, run_ffmpeg, write_report
from tests.support.live_server import LiveServer

VOICE_S = 1.6


@contextlib.contextmanager
def running(folder: Path, jobs_per_worker: int, device: str, model: str) -> Iterator[LiveServer]:
    server = LiveServer(
        folder / str(jobs_per_worker), devices=device, model=model, jobs_per_worker=jobs_per_worker,
        requests_per_minute=10**6,
    )  # fmt: skip
    server.start()
    try:
        server.wait_ready(900)
        yield server
    finally:
        server.stop()


def processor_s(server: LiveServer) -> float:
    """Of the worker and the processes that it started and that have ended."""
    (worker,) = server.worker_pids()
    spent = psutil.Process(worker).cpu_times()
    return float(spent.user + spent.system + spent.children_user + spent.children_system)


def make(
    server: LiveServer, video: Path, voice: Path, jobs: int, first_seed: int
) -> tuple[float, float, list[str]]:
    """Seconds until all jobs are done, those of processor time, and what the pictures are."""
    given = server.upload(video), server.upload(voice)
    began, spent_s = time.perf_counter(), processor_s(server)
    ids = [server.submit(*given, seed=first_seed + number, inference_steps=2) for number in range(jobs)]
    done = [server.wait_for_job(job, timeout_s=3600) for job in ids]
    seconds, spent_s = time.perf_counter() - began, processor_s(server) - spent_s
    if any(one["status"] != "completed" for one in done):
        raise AssertionError(done)
    return (
        seconds,
        spent_s,
        [pictures(server.request("GET", one["outputs"][0])[1], server.data_dir) for one in done],
    )


def pictures(film: bytes, folder: Path) -> str:
    """A checksum of every decoded frame."""
    path = folder / "film.mp4"
    path.write_bytes(film)
    return run_ffmpeg("-i", path, "-map", "0:v", "-f", "md5", "-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--jobs", type=int, default=8, help="in a round")
    parser.add_argument("--jobs-per-worker", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--video", type=Path, default=DEMO_VIDEO)
    parser.add_argument("--voice", type=Path, default=DEMO_VOICE)
    parser.add_argument("--output", type=Path, default=BENCHMARKS / "server_jobs.json")


def run(arguments: argparse.Namespace) -> None:
    counts: list[int] = arguments.jobs_per_worker
    took: dict[int, list[float]] = {count: [] for count in counts}
    spent: dict[int, list[float]] = {count: [] for count in counts}
    equal: dict[int, int] = dict.fromkeys(counts, 0)
    with tempfile.TemporaryDirectory(prefix="lipsync-bench-") as name, contextlib.ExitStack() as servers:
        folder = Path(name)
        video, voice = folder / "video.mp4", folder / "voice.wav"
        run_ffmpeg("-i", arguments.video, "-t", str(VOICE_S), "-an", "-crf", "12", video)
        run_ffmpeg("-i", arguments.voice, "-t", str(VOICE_S), voice)
        live = {
            count: servers.enter_context(running(folder, count, arguments.device, arguments.model))
            for count in counts
        }
        for server in live.values():  # what is done at first use
            make(server, video, voice, 1, 1)
        for number in range(arguments.rounds):
            films = {}
            for count in counts if number % 2 == 0 else reversed(counts):
                seed = 1000 * (number + 1)
                seconds, spent_s, films[count] = make(live[count], video, voice, arguments.jobs, seed)
                took[count].append(round(seconds, 2))
                spent[count].append(round(spent_s, 2))
                print(f"{number + 1}: {count} at once {seconds:.1f} s, {spent_s:.1f} s of CPU", flush=True)
            for count in counts:
                pairs = zip(films[count], films[counts[0]], strict=True)
                equal[count] += sum(one == other for one, other in pairs)

    def ratio(measured: dict[int, list[float]], count: int) -> float:
        return paired_ratio(measured[counts[0]], measured[count])

    report: dict[str, Any] = {
        "device": arguments.device,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": round(os.getloadavg()[2], 1),
        "model": arguments.model,
        "voice_s": VOICE_S,
        "jobs": arguments.jobs,
        "rounds": arguments.rounds,
        "jobs_per_worker": {
            count: {
                "seconds": took[count],
                "ratio": ratio(took, count),
                "processor_s": spent[count],
                "processor_ratio": ratio(spent, count),
                "equal_films": f"{equal[count]} of {arguments.jobs * arguments.rounds}",
            }
            for count in counts
        },
    }
    write_report(report, arguments.output)
    print(json.dumps(report))
