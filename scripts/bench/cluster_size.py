"""Where would a large cluster saturate first? Costs measured here, then mean value analysis for up to 1,000
workers.

    python -m scripts.bench cluster-size --database postgresql+psycopg://…

Measured: the processor time of PostgreSQL (which must run on this machine: it is read from /proc) and of its
client for a segment, for a job, and for a line of news to one more process that listens; what a poll costs an
answering process (benchmarks/api.json). A segment is measured twice: rendered by the owner of its job, as
where there are more jobs than workers, and by a helper.
Assumed, and said in the result: the database's cores, the storage's bandwidth, the size of a segment's file,
how long a worker renders a segment, how many segments a job has, how often its client polls. A worker renders
(nobody waits for anybody), then its segment passes the database, the storage and, in its share, the API, one
after the other: a closed network of queues, whose throughput mean value analysis gives exactly. Waits for the
disk are not in it: commits of many clients share them. The database must be empty, and nobody else may use
that PostgreSQL. Results: benchmarks/cluster_size.json and .png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa

from scripts.bench.common import BENCHMARKS, new_plot, save_plot, write_report
from server.jobs import state as job_state
from server.jobs.request import Request
from server.jobs.state import Job, JobPolicy, Output, StageProgress
from server.store import SegmentClaim, Store, WorkerRecord
from server.store.notifications import CHANNEL
from server.workers.main import REPORT_INTERVAL_S as WORKER_REPORT_INTERVAL_S
from server.workers.segment_sharing import HEARTBEAT_INTERVAL_S, REPORT_INTERVAL_S

RENDER_S, SEGMENTS_PER_JOB, POLL_EVERY_S = 4.0, 10, 2.0
SEGMENT_BYTES, STORAGES_GBIT_S, DATABASE_CORES = 5e6, (10, 40), 8
NEWS_PER_JOB = 4
"""It came, it began, its segments are offered, it ended."""

KEY, FITS = "k" * 32, "f" * 32
RUNNING, ENDED, LISTENERS, TIMES = 100, 20_000, 50, 300
SIZES = (1, 2, 4, 8, 16, 32, 64, 125, 250, 500, 1000)


@dataclass(frozen=True, slots=True)
class Cost:
    """Processor time, seconds."""

    database_s: float
    client_s: float


def measured(database: str) -> dict[str, Cost]:
    """Of a segment that its owner or a helper renders, of beats, of a job, of news to one process."""
    store = Store(database)
    _history(store)
    running = itertools.cycle([_begun(store) for _ in range(RUNNING)])
    _ask(store, "ANALYZE")
    notes, looks = round(RENDER_S / WORKER_REPORT_INTERVAL_S), round(RENDER_S / REPORT_INTERVAL_S)

    def own() -> None:
        job = next(running)
        piece = store.claim_own_segment(job.id, KEY, store.now(), set())
        if piece is None:
            raise AssertionError("too few segments were offered")
        for done in range(notes):
            progress, now = StageProgress("render", done, 1500, 40.0), store.now()
            store.change(
                job.id,
                now,
                lambda j, p=progress: job_state.renew_lease(j, j.fence, store.now(), JobPolicy(), p),
            )
        for _ in range(looks):
            store.get_segments(job.id)
        store.complete_segment(job.id, KEY, piece.index)

    def helped() -> None:
        piece = store.claim_shared_segment(FITS, store.now())
        if piece is None:
            raise AssertionError("too few segments were offered")
        for done in range(looks):
            store.renew_segment_lease(piece, store.now(), done)
        store.complete_segment(piece.job_id, KEY, piece.index, RENDER_S)

    def beats() -> None:
        job, now = next(running), store.now()
        store.change(job.id, now, lambda j: job_state.renew_lease(j, j.fence, now, JobPolicy()))
        store.renew_segment_lease(SegmentClaim(job.id, 0, KEY, 150, 1), now)
        store.upsert_workers([WorkerRecord("p" * 32, 0, "machine", "cuda:0", "tiny", "busy", 1, now)])

    def whole() -> None:
        job, output = _begun(store), Output("results/x.mp4", RENDER_S)
        store.change(job.id, store.now(), lambda j: job_state.succeed(j, j.fence, store.now(), output))

    works = {"segment_by_owner": own, "segment_by_helper": helped, "beats": beats, "job": whole}
    found = {name: _cost(work) for name, work in works.items()}
    return found | {"news_to_one": _news(store, database)}


def _news(store: Store, database: str) -> Cost:
    """What a line costs more with another process that listens."""
    line = f"SELECT pg_notify('{CHANNEL}', repeat('x', 120))"
    alone = _cost(partial(_ask, store, line))
    place = sa.make_url(database).set(drivername="postgresql").render_as_string(hide_password=False)
    listening = [psycopg.connect(place, autocommit=True) for _ in range(LISTENERS)]
    for connection in listening:
        connection.execute(f"LISTEN {CHANNEL}")
    heard = _cost(partial(_ask, store, line))
    for connection in listening:
        connection.close()
    store.close()
    return Cost(max(0.0, heard.database_s - alone.database_s) / LISTENERS, 0.0)


def _history(store: Store) -> None:
    """Jobs that have ended, as a busy server has some days of."""
    columns = "id, tenant, request, label, key_id, created_at, priority, state, fence, attempts, cancel_asked"
    values = "md5(i::text), 'default', '{}', 'x', 'k', i, 0, 'succeeded', 1, 1, false, i, i + 50"
    rows = f"SELECT {values} FROM generate_series(1, {ENDED}) i"
    _ask(store, f"INSERT INTO jobs ({columns}, started_at, finished_at) {rows}")


def _ask(store: Store, statement: str) -> None:
    with store.autocommit() as connection:
        connection.exec_driver_sql(statement)


def _begun(store: Store) -> Job:
    """Submitted, claimed, its segments offered."""
    request = Request("native", "{}", "x", (), "0" * 16)
    job = Job(id=uuid.uuid4().hex, tenant="default", created_at=store.now())
    store.submit(job, request)
    record = store.claim(store.now(), JobPolicy())
    if record is None:
        raise AssertionError("somebody else works on this database")
    store.publish_segments(record.job.id, record.job.fence, KEY, FITS, [150] * SEGMENTS_PER_JOB, set())
    return record.job


def _cost(work: Callable[[], object]) -> Cost:
    """Of one of `TIMES`, after some that are not counted."""
    for _ in range(TIMES // 10):
        work()
    database_s, client_s = _postgres_s(), time.process_time()
    for _ in range(TIMES):
        work()
    return Cost((_postgres_s() - database_s) / TIMES, (time.process_time() - client_s) / TIMES)


def _postgres_s() -> float:
    """Processor time of PostgreSQL's processes that live now."""
    total_ns = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "comm").read_text().startswith("postgres"):
                total_ns += int((process / "schedstat").read_text().split()[0])
        except OSError:
            pass  # it has ended
    return total_ns / 1e9


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--database", required=True)


def run(arguments: argparse.Namespace) -> None:
    costs = measured(arguments.database)
    answers = json.loads((BENCHMARKS / "api.json").read_text())["answers"]
    (poll_s,) = [answer["p50_ms"] / 1000 for answer in answers if answer["what"] == "poll"]
    told = {
        name: {"database_ms": round(1e3 * cost.database_s, 4), "client_ms": round(1e3 * cost.client_s, 4)}
        for name, cost in costs.items()
    }
    print(told)

    def demands(workers: int, storage_gbit_s: int) -> dict[str, float]:
        """Of each station per segment; news go to every process."""
        job_s = costs["job"].database_s + NEWS_PER_JOB * workers * costs["news_to_one"].database_s
        segment_s = max(costs[kind].database_s for kind in ("segment_by_owner", "segment_by_helper"))
        segment_s += RENDER_S / HEARTBEAT_INTERVAL_S * costs["beats"].database_s
        return {
            "database": (segment_s + job_s / SEGMENTS_PER_JOB) / DATABASE_CORES,
            "storage": 2 * 8 * SEGMENT_BYTES / (1e9 * storage_gbit_s),
            # Each job is looked at while it runs; one of its segments costs its share of that.
            "API, one process": RENDER_S / POLL_EVERY_S * poll_s / SEGMENTS_PER_JOB,
        }

    rows = []
    for storage_gbit_s, workers in itertools.product(STORAGES_GBIT_S, SIZES):
        needed = demands(workers, storage_gbit_s)
        rate, busy = mean_values(needed, RENDER_S + costs["segment_by_owner"].client_s, workers)
        row: dict[str, Any] = {"storage_gbit_s": storage_gbit_s, "workers": workers}
        row |= {"share_of_linear": round(rate / (workers / RENDER_S), 3)}
        row |= {name: round(value, 3) for name, value in busy.items()}
        rows.append(row | {"database_ms": round(1000 * DATABASE_CORES * needed["database"], 2)})
        print(rows[-1])
    result = {
        "measured": told | {"poll_s": poll_s},
        "assumed": {
            "render_s": RENDER_S,
            "segments_per_job": SEGMENTS_PER_JOB,
            "poll_every_s": POLL_EVERY_S,
            "segment_bytes": SEGMENT_BYTES,
            "database_cores": DATABASE_CORES,
        },
        "rows": rows,
    }
    write_report(result, BENCHMARKS / "cluster_size.json")
    _draw(rows)


def _draw(rows: list[dict[str, Any]]) -> None:
    figure, axes = new_plot(figsize=(7, 4))
    for storage_gbit_s, style in zip(STORAGES_GBIT_S, ("-", "--"), strict=True):
        of_it = [row for row in rows if row["storage_gbit_s"] == storage_gbit_s]
        workers = [row["workers"] for row in of_it]
        for name, colour in (("share_of_linear", "k"), ("database", "C0"), ("storage", "C1")):
            label = f"{name.replace('_', ' ')}, storage of {storage_gbit_s} Gbit/s"
            axes.plot(workers, [row[name] for row in of_it], colour, linestyle=style, label=label)
    axes.set(xscale="log", xlabel="workers", ylim=(0, 1.05), title="What saturates first")
    axes.legend(fontsize="small")
    save_plot(figure, BENCHMARKS / "cluster_size.png")
