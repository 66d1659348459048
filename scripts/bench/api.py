"""What the API costs: submissions and polls beside a rendering worker, on this machine.

    python -m scripts.bench api --output benchmarks/api.json

A real server with the tiny model: 1,000 jobs wait, 200 clients ask for one of them once a second each, and
one worker renders. Submissions and polls are timed as clients see them; the same job is rendered with the
pollers silent and with the pollers asking, in turns, and the median ratio of the pairs' rendering times is
what polling costs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from scripts.bench.common import DEMO_VIDEO, DEMO_VOICE, paired_ratio, run_ffmpeg, write_report
from tests.support.live_server import LiveServer

WAITING, POLLERS, PAIRS = 1000, 200, 10


@dataclass
class Times:
    """Seconds that answers took, and what was not 200."""

    taken_s: list[float] = field(default_factory=list)
    refused: int = 0

    def percentile_ms(self, percent: int) -> float:
        return 1000 * statistics.quantiles(self.taken_s, n=100)[percent - 1]

    def row(self, name: str, per_s: float) -> dict[str, object]:
        figures = {f"p{percent}_ms": round(self.percentile_ms(percent), 1) for percent in (50, 95, 99)}
        return {"what": name, "requests": len(self.taken_s), "per_s": round(per_s, 1), **figures,
                "refused": self.refused}  # fmt: skip


class Client:
    """One kept connection that speaks as little HTTP as it can, so that measuring costs little."""

    def __init__(self, server: LiveServer) -> None:
        self._place, self._key = urlsplit(server.base), server.key

    async def __aenter__(self) -> Client:
        self._reader, self._writer = await asyncio.open_connection(self._place.hostname, self._place.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def ask(self, method: str, path: str, times: Times, body: bytes = b"") -> bytes:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._place.netloc}\r\nAuthorization: Bearer {self._key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        began = time.monotonic()
        self._writer.write(head.encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in answer.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        )
        content = await self._reader.readexactly(length)
        times.taken_s.append(time.monotonic() - began)
        times.refused += b" 200 " not in answer.partition(b"\r\n")[0]
        return content


async def submit(server: LiveServer, body: bytes, count: int, times: Times, clients: int = 8) -> list[str]:
    async def some(share: int) -> list[str]:
        async with Client(server) as client:
            return [
                json.loads(await client.ask("POST", "/api/v3/bytedance/latentsync", times, body))["data"][
                    "id"
                ]
                for _ in range(share)
            ]

    shares = await asyncio.gather(*(some(count // clients) for _ in range(clients)))
    return list(itertools.chain.from_iterable(shares))


async def poll(client: Client, jobs: list[str], times: Times) -> None:
    """One client: asks once a second."""
    for job in itertools.cycle(jobs):
        await asyncio.sleep(random.uniform(0, 2))
        await client.ask("GET", f"/api/v3/predictions/{job}/result", times)


@contextlib.asynccontextmanager
async def polled(server: LiveServer, jobs: list[str], times: Times) -> AsyncIterator[None]:
    """All clients ask."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(server)) for _ in range(POLLERS)]
        asking = [
            asyncio.create_task(poll(client, jobs[number::POLLERS], times))
            for number, client in enumerate(clients)
        ]
        yield
        for task in asking:
            task.cancel()
        ends = await asyncio.gather(*asking, return_exceptions=True)
    if broken := [end for end in ends if not isinstance(end, asyncio.CancelledError)]:
        raise SystemExit(f"{len(broken)} clients broke off: {broken[0]!r}")


async def render(server: LiveServer, body: bytes) -> float:
    """Seconds that the next job's rendering takes, as the worker measures it."""
    job = (await submit(server, body, 1, Times(), clients=1))[0]
    async with Client(server) as client:
        while True:
            await asyncio.sleep(0.25)
            seen = json.loads(await client.ask("GET", f"/api/v3/predictions/{job}/result", Times()))["data"]
            if seen["status"] == "completed":
                return float(seen["timings"]["inference"]) / 1000
            if seen["status"] in ("failed", "cancelled"):
                raise SystemExit(f"the measured job {seen['status']}: {seen['error']}")


async def measure(
    server: LiveServer, mine: LiveServer, clip: Path, voices: tuple[Path, Path]
) -> dict[str, object]:
    """`server` and `mine` are two tenants of one server; they take turns: `mine` need not wait long."""
    body, measured = (
        json.dumps({"video": who.upload(clip), "audio": who.upload(voice), "inference_steps": 4}).encode()
        for who, voice in zip((server, mine), voices, strict=True)
    )
    await render(mine, measured)  # from here on its analysis is cached

    submitting, polling = Times(), Times()
    began = time.monotonic()
    jobs = await submit(server, body, WAITING, submitting)
    submit_per_s = WAITING / (time.monotonic() - began)

    silent_s: list[float] = []
    beside_s: list[float] = []
    asking_s = 0.0
    for turn in range(PAIRS):
        for ask in (False, True) if turn % 2 else (True, False):
            if not ask:
                silent_s.append(await render(mine, measured))
                continue
            began = time.monotonic()
            async with polled(server, jobs, polling):
                beside_s.append(await render(mine, measured))
            asking_s += time.monotonic() - began
    answers = [
        submitting.row("submit", submit_per_s),
        polling.row("poll", len(polling.taken_s) / asking_s),
    ]
    return {
        "cores": os.cpu_count(),
        "waiting_jobs": WAITING,
        "pollers": POLLERS,
        "answers": answers,
        "rendering_s": {"silent": silent_s, "polled": beside_s},
        "rendering_ratio": paired_ratio(beside_s, silent_s),
    }


def start_s() -> float:
    """Seconds from `python -m server` to the first answer."""
    with tempfile.TemporaryDirectory(prefix="lipsync-bench-") as folder:
        server = LiveServer(Path(folder) / "data")
        began = time.monotonic()
        server.start()
        while server.request("GET", "/livez")[0] != 200:
            pass
        taken = time.monotonic() - began
        server.stop()
    return taken


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path)


def run(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="lipsync-bench-") as name:
        folder = Path(name)
        clip, voices = folder / "clip.mp4", (folder / "short.wav", folder / "long.wav")
        run_ffmpeg("-i", DEMO_VIDEO, "-t", "1", "-an", "-vf", "scale=256:-2", clip)
        for voice, seconds in zip(voices, ("1", "1.5"), strict=True):
            run_ffmpeg("-i", DEMO_VOICE, "-t", seconds, voice)
        server = LiveServer(folder / "data", max_waiting=2 * WAITING, requests_per_minute=10**6, drain_s=0)
        server.start()
        try:
            server.wait_ready()
            mine = LiveServer(server.data_dir)
            mine.base = server.base
            mine.key = server.request("POST", "/admin/keys?tenant=measured")[1]["key"]
            found = asyncio.run(measure(server, mine, clip, voices))
        finally:
            server.stop()
    found["first_answer_s"] = round(start_s(), 2)
    print(f"{'':<8}{'requests':>9}{'per s':>9}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'not 200':>9}")
    for row in found["answers"]:  # type: ignore[attr-defined]
        print(f"{row['what']:<8}" + "".join(f"{value:>9}" for value in list(row.values())[1:]))
    print(f"rendering, polled over silent: {found['rendering_ratio']}")
    print(f"first answer after {found['first_answer_s']} s")
    if arguments.output is not None:
        write_report(found, arguments.output)
    return 0
