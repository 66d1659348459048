"""A Ray cluster of several nodes on this machine, measured with a worker that sleeps like a GPU.

    python -m scripts.bench cluster scaling --database postgresql+psycopg://… [--segments 32 --workers 1 2 4]
    python -m scripts.bench cluster kills   --database postgresql+psycopg://… [--jobs 100 --seed 1]

Everything is real but the worker process (tests/support/stand_in_worker): Ray's nodes and actors, the pool,
supervisors, database, blobs in a folder. `scaling`: one film of many segments, then many films of one, on 1,
2, 4, … workers; and how long a worker waits for its next segment. `kills`: nodes are killed at random moments
while jobs run; then every job must have ended once, as a success, with all its segments in their order. The
database must be empty. Results go to benchmarks/cluster.json and a plot beside it; exit status 1 where an
invariant is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from scripts.bench.common import BENCHMARKS, DEMO_VIDEO, DEMO_VOICE, ROOT, new_plot, save_plot, write_report
from tests.support.polling import wait_until
from tests.support.ray_nodes import add_node, open_cluster

RESULTS = BENCHMARKS / "cluster.json"
STAND_IN = ROOT / "tests" / "support" / "stand_in_worker"
WORKERS = [1, 2, 4, 8, 16]
SEGMENT_BYTES = 1 << 20
KILL_EVERY_S = (12.0, 30.0)
NODES = 3


class Bench:
    """A cluster, its database and folder.

    Args:
        segment_s: that a segment takes a worker.
        spread: how much more or less, as a part of it; many GPUs do not end in the same instant.
    """

    def __init__(self, database: str, segment_s: float, spread: float, **settings: object) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lipsync-bench-"))
        self.gaps = self.folder / "gaps"
        given = {"SEGMENT_S": segment_s, "SPREAD": spread, "BYTES": SEGMENT_BYTES, "GAPS": self.gaps}
        os.environ |= {f"STAND_IN_{name}": str(value) for name, value in given.items()}
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [str(STAND_IN), str(ROOT), os.environ.get("PYTHONPATH", "")]
        )
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0"}
        from server.cluster import ray as ray_pool
        from server.settings import Settings
        from server.store import Store

        self.ray_pool, self.store = ray_pool, Store(database)
        self.settings = Settings(
            data_dir=self.folder / "data",
            database_url=database,
            devices=("cpu",),
            marking="off",
            **settings,  # type: ignore[arg-type]
        )
        uploads = self.folder / "data" / "blobs" / "uploads" / "default"
        uploads.mkdir(parents=True)
        shutil.copy(DEMO_VIDEO, uploads / "clip.mp4")
        shutil.copy(DEMO_VOICE, uploads / "voice.wav")
        self.cluster = open_cluster()
        ray_pool.connect(self.cluster.address)

    def submit(self, segments: int) -> str:
        from server.jobs.request import InputSource, Options, Request, Role
        from server.jobs.state import Job

        sources = (
            InputSource("video", Role.VIDEO, blob="uploads/default/clip.mp4"),
            InputSource("audio", Role.AUDIO, blob="uploads/default/voice.wav"),
        )
        options = Options(num_inference_steps=segments)
        request = Request("native", "{}", "stand-in", sources, "0" * 16, options=options)
        job = Job(id=uuid.uuid4().hex, tenant="default", created_at=self.store.now())
        return self.store.submit(job, request)[0].job.id

    def ended(self, job_id: str) -> bool:
        record = self.store.get(job_id)
        return record is not None and record.job.state.is_final

    def time(self, jobs: int, segments: int) -> float:
        """Seconds that these jobs take together."""
        began = time.monotonic()
        waiting = {self.submit(segments) for _ in range(jobs)}
        while waiting:
            waiting = {job for job in waiting if not self.ended(job)}
            time.sleep(0.02)
        return time.monotonic() - began

    def close(self) -> None:
        import ray

        ray.shutdown()
        self.cluster.shutdown()
        self.store.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def scaling(bench: Bench, segment_s: float, segments: int, workers: list[int]) -> dict[str, Any]:
    """Workers are added by and by; each time the same work is done."""
    import ray

    hosts: list[Any] = []
    rows = []
    for count in workers:
        fresh = count - len(hosts)
        add_node(bench.cluster, num_cpus=fresh)
        for _ in range(fresh):
            actor: Any = ray.remote(bench.ray_pool.Host)
            given = bench.settings.model_dump(mode="json")
            hosts.append(actor.options(num_cpus=1).remote(f"w{len(hosts)}", given, "cpu"))
            hosts[-1].run.remote()
        wait_until(
            lambda: all(ray.get(h.report.remote()).state == "idle" for h in hosts), "no start", 600, 0.5
        )
        bench.gaps.unlink(missing_ok=True)
        row = {"workers": count, "ideal_s": round(segments * segment_s / count, 2)}
        for name, jobs, each in (("one_film", 1, segments), ("many_films", segments, 1)):
            seconds = bench.time(jobs, each)
            row |= {f"{name}_s": round(seconds, 2), f"{name}_share": round(row["ideal_s"] / seconds, 3)}
            if name == "one_film":
                gaps = sorted(map(float, bench.gaps.read_text().split()))
                row["gap_median_ms"] = round(1000 * statistics.median(gaps), 1)
                row["gap_p95_ms"] = round(1000 * gaps[int(0.95 * (len(gaps) - 1))], 1)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return {"segment_s": segment_s, "segments": segments, "load": os.getloadavg()[0], "rows": rows}


def kills(bench: Bench, jobs: int, seed: int) -> dict[str, Any]:
    """Nodes die at random moments while jobs run; the pool replaces their workers."""
    rng = random.Random(seed)
    nodes = [add_node(bench.cluster, num_cpus=1) for _ in range(NODES)]
    bench.ray_pool.start_pool(bench.settings)
    wait_until(lambda: _ready(bench) == NODES, "the pool does not start", 300, 0.5)
    wanted = {bench.submit(count): count for count in (rng.randint(1, 6) for _ in range(jobs))}
    began, killed = time.monotonic(), 0
    next_kill = began + rng.uniform(*KILL_EVERY_S)
    while not all(bench.ended(job) for job in wanted):
        if time.monotonic() > next_kill:
            victim = nodes.pop(rng.randrange(len(nodes)))
            bench.cluster.remove_node(victim, allow_graceful=False)
            nodes.append(add_node(bench.cluster, num_cpus=1))
            killed += 1
            next_kill = time.monotonic() + rng.uniform(*KILL_EVERY_S)
        time.sleep(0.1)
    seconds = time.monotonic() - began
    _, lost = bench.ray_pool.status()
    broken = [problem for job, count in wanted.items() for problem in _problems(bench, job, count)]
    bench.ray_pool.drain()
    left = [str(path) for path in (bench.folder / "data" / "blobs" / "shared").glob("*/*")]
    attempts = [record.job.attempts for job in wanted if (record := bench.store.get(job)) is not None]
    return {
        "jobs": jobs,
        "segments": sum(wanted.values()),
        "seconds": round(seconds),
        "nodes_killed": killed,
        "workers_lost": lost,
        "jobs_with_more_than_one_attempt": sum(count > 1 for count in attempts),
        "broken": broken + ([f"{len(left)} shared files are left"] if left else []),
    }


def _ready(bench: Bench) -> int:
    """Workers that have started."""
    return sum(report.state != "starting" for report in bench.ray_pool.status()[0])


def _problems(bench: Bench, job: str, segments: int) -> list[str]:
    """What is wrong with an ended job: it succeeded, once, with all its segments in their order."""
    record = bench.store.get(job)
    state = None if record is None else record.job.state
    if state != "succeeded":
        return [f"{job} is {state}"]
    found = []
    content = (bench.folder / "data" / "blobs" / "results" / f"{job}.mp4").read_bytes()
    parts = [content[at : at + SEGMENT_BYTES].split(b"\n")[0] for at in range(0, len(content), SEGMENT_BYTES)]
    if parts != [f"{job} {number}".encode() for number in range(segments)]:
        found.append(f"{job} has wrong segments")
    entries = bench.store.audit.page(limit=100_000)
    if sum(entry.event == "job_ended" and entry.job_id == job for entry in entries) != 1:
        found.append(f"{job} did not end once")
    if bench.store.get_segments(job)[1]:
        found.append(f"{job} has rows of segments left")
    return found


def draw(runs: dict[str, Any]) -> None:
    """How many workers' worth of work so many workers did, beside what would be perfect."""
    figure, axes = new_plot(figsize=(7, 4))
    axes.plot([1, WORKERS[-1]], [1, WORKERS[-1]], "k:", label="linear")
    for run, style in zip(runs, ("-", "--"), strict=False):
        counts = [row["workers"] for row in runs[run]["rows"]]
        for kind, colour in (("one_film", "C0"), ("many_films", "C1")):
            worth = [row["workers"] * row[f"{kind}_share"] for row in runs[run]["rows"]]
            axes.plot(counts, worth, f"{colour}o", linestyle=style, label=f"{kind.replace('_', ' ')}, {run}")
    axes.set(xlabel="workers", ylabel="workers' worth of work", title="Scaling on one cluster")
    axes.legend(fontsize="small")
    save_plot(figure, RESULTS.with_name("cluster_scaling.png"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["scaling", "kills"])
    parser.add_argument("--database", required=True)
    parser.add_argument("--segment-s", type=float, default=4.0)
    parser.add_argument("--spread", type=float, default=0.0)
    parser.add_argument("--segments", type=int, default=32)
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)


def run(arguments: argparse.Namespace) -> int:
    given = arguments
    segment_s = given.segment_s if given.what == "scaling" else 0.5
    limits = {"cluster_min": NODES, "cluster_max": NODES, "max_attempts": 10}
    bench = Bench(given.database, segment_s, given.spread, **limits)
    try:
        if given.what == "scaling":
            result = scaling(bench, segment_s, given.segments, given.workers) | {"spread": given.spread}
        else:
            result = kills(bench, given.jobs, given.seed)
    finally:
        bench.close()
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if given.what == "scaling":
        known.setdefault("scaling", {})[f"{given.segments} segments"] = result
    else:
        known["kills"] = result
    write_report(known, RESULTS)
    draw(known["scaling"])
    print(json.dumps(result, indent=1))
    return 1 if result.get("broken") else 0
