"""Where would a large cluster saturate first? Costs measured here, then mean value analysis for up to 1,000
workers.

    python scripts/simulate_cluster.py --database postgresql+psycopg://…

Measured: what a segment and a job cost the database (as many claims, beats, looks and ends as it can answer
in a second, by several clients at once) and what a poll costs an answering process (benchmarks/api.json).
Assumed, and said in the result: the storage's bandwidth, the size of a segment's file, how long a worker
renders a segment, how many segments a job has, how often its client polls. A worker renders (nobody waits for
anybody), then its segment passes the database, the storage and, in its share, the API, one after the other: a
closed network of queues, whose throughput mean value analysis gives exactly. The database must be empty.
Results: benchmarks/cluster_size.json and .png.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from live_server import ROOT

sys.path.insert(0, str(ROOT))

from server.jobs import Job, Policy
from server.messages import Request
from server.store import Store

RENDER_S, SEGMENTS_PER_JOB, POLL_EVERY_S = 4.0, 10, 2.0
SEGMENT_BYTES, STORAGE_BITS_PER_S = 5e6, 10e9
KEY, FITS = "k" * 32, "f" * 32
CLIENTS, MEASURE_S = 4, 5.0
SIZES = (1, 2, 4, 8, 16, 32, 64, 125, 250, 500, 1000)


def measured(database: str) -> dict[str, float]:
    """Seconds of the database per segment: taken, told of while it is rendered, looked at, finished."""
    stores = [Store(database) for _ in range(CLIENTS)]
    jobs = [_job(store) for store in stores]
    # While it is rendered its worker says every second how far it is, and the owner looks once a segment.
    beats = round(RENDER_S)

    def segment(store: Store, job_id: str) -> None:
        piece = store.help_with_segment(FITS, store.now())
        if piece is None:
            raise AssertionError("too few segments were offered")
        for done in range(beats):
            store.beat_segment(piece, store.now(), done)
        store.shares(job_id)
        store.finish_segment(piece.job_id, KEY, piece.number)

    per_second = _throughput([lambda s=s, j=j: segment(s, j) for s, j in zip(stores, jobs, strict=True)])
    whole = _throughput([lambda s=s: _job(s, segments=SEGMENTS_PER_JOB) for s in stores])
    for store in stores:
        store.close()
    return {"database_s_per_segment": 1 / per_second, "database_s_per_job": 1 / whole}


def _job(store: Store, segments: int = 600) -> str:
    """Submitted, claimed, its segments offered."""
    request = Request("native", "{}", "x", (), "0" * 16)
    job = Job(id=uuid.uuid4().hex, tenant="default", created_at=store.now())
    store.submit(job, request)
    record = store.claim(store.now(), Policy())
    if record is None:
        raise AssertionError("somebody else works on this database")
    store.offer_segments(record.job.id, record.job.fence, KEY, FITS, [150] * segments, set())
    return record.job.id


def _throughput(works: list[Callable[[], object]]) -> float:
    """How often all these together get done in a second."""
    counts, end = [0] * len(works), time.monotonic() + MEASURE_S

    def run(number: int) -> None:
        while time.monotonic() < end:
            works[number]()
            counts[number] += 1

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / MEASURE_S


def mean_values(demands: dict[str, float], think_s: float, workers: int) -> tuple[float, dict[str, float]]:
    """Segments per second, and how busy each station is (Reiser and Lavenberg, 1980).

    Args:
        demands: seconds of each station per segment.
        think_s: that a worker renders one.
    """
    queues, rate = dict.fromkeys(demands, 0.0), 0.0
    for count in range(1, workers + 1):
        waits = {name: demand * (1 + queues[name]) for name, demand in demands.items()}
        rate = count / (think_s + sum(waits.values()))
        queues = {name: rate * wait for name, wait in waits.items()}
    return rate, {name: rate * demand for name, demand in demands.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--database", required=True)
    costs = measured(parser.parse_args().database)
    answers = json.loads((ROOT / "benchmarks" / "api.json").read_text())["answers"]
    (poll_s,) = [answer["p50_ms"] / 1000 for answer in answers if answer["what"] == "poll"]
    demands = {
        "database": costs["database_s_per_segment"] + costs["database_s_per_job"] / SEGMENTS_PER_JOB,
        "storage": 2 * 8 * SEGMENT_BYTES / STORAGE_BITS_PER_S,
        # Each job is looked at while it runs; one of its segments costs its share of that.
        "API, one process": RENDER_S / POLL_EVERY_S * poll_s / SEGMENTS_PER_JOB,
    }
    rows = []
    for workers in SIZES:
        rate, busy = mean_values(demands, RENDER_S, workers)
        share = rate / (workers / RENDER_S)
        used = {name: round(value, 3) for name, value in busy.items()}
        rows.append({"workers": workers, "share_of_linear": round(share, 3), **used})
        print(rows[-1])
    limits = {name: round((RENDER_S + sum(demands.values())) / demand) for name, demand in demands.items()}
    result = {
        "measured": costs | {"poll_s": poll_s},
        "assumed": {
            "render_s": RENDER_S,
            "segments_per_job": SEGMENTS_PER_JOB,
            "poll_every_s": POLL_EVERY_S,
            "segment_bytes": SEGMENT_BYTES,
            "storage_bits_per_s": STORAGE_BITS_PER_S,
        },
        "workers_that_fill_it": limits,
        "rows": rows,
    }
    (ROOT / "benchmarks" / "cluster_size.json").write_text(json.dumps(result, indent=1) + "\n")
    _draw(rows, demands)


def _draw(rows: list[dict[str, Any]], demands: dict[str, float]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    workers = [row["workers"] for row in rows]
    axes.plot(workers, [row["share_of_linear"] for row in rows], "k-", label="throughput, share of linear")
    for name in demands:
        axes.plot(workers, [row[name] for row in rows], "--", label=f"{name}: busy")
    axes.set(xscale="log", xlabel="workers", ylim=(0, 1.05), title="What saturates first")
    axes.legend()
    figure.tight_layout()
    figure.savefig(ROOT / "benchmarks" / "cluster_size.png", dpi=90)


if __name__ == "__main__":
    main()
