"""Hostile clients against a real server: what they send, how slowly, and how many of them there are."""

from __future__ import annotations

import contextlib
import random
import re
import resource
import selectors
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.campaign import tricks
from tests.fuzz.campaign.mutations import Case, cases
from tests.fuzz.campaign.report import Part, resident_bytes
from tests.support.live_server import FINAL, LiveServer

MEMORY_GROWTH_BYTES = 150 << 20
CLOSED_WITHIN_S = 75.0
"""A head may take 20 s, a body is looked at every 30 s; the rest is the machine's slowness."""

ANSWERED_WITHIN_S = 5.0
OURS = {
    "lipsync.sqlite",
    "lipsync.sqlite.lock",
    "lipsync.sqlite-wal",
    "lipsync.sqlite-shm",
    "signing.key",
    "blobs",
    "work",
    "credentials",
}


@contextlib.contextmanager
def served(folder: Path, part: Part, **settings: object) -> Iterator[LiveServer]:
    """A server for one part; afterwards it must be as well as before."""
    server = LiveServer(folder / "data", requests_per_minute=10**6, min_free_bytes=0, **settings)
    server.start()
    assert server.process is not None
    around = {path.name for path in folder.iterdir()}
    try:
        server.request("GET", "/api/v3/models")
        before = resident_bytes(server.process.pid)
        yield server
        grown = resident_bytes(server.process.pid) - before
        part.facts["memory_growth_mib"] = grown >> 20
        if grown > MEMORY_GROWTH_BYTES:
            part.broken.append(f"the server grew by {grown >> 20} MiB")
        for path in ("/livez", "/api/native/v1/jobs?limit=100", "/api/native/v1/health"):
            if (status := server.request("GET", path)[0]) != 200:
                part.broken.append(f"afterwards {path} is answered with {status}")
        if server.process.poll() is not None:
            part.broken.append("the server has ended")
    finally:
        if server.process.poll() is None:
            server.stop()
    strange = {path.name for path in folder.iterdir()} - around
    strange |= {path.name for path in server.data_dir.iterdir()} - OURS
    if strange:
        part.broken.append(f"files where none belong: {sorted(strange)}")
    if faults := [line for line in server.log if "Traceback" in line or "ERROR" in line]:
        part.broken.append(f"{len(faults)} faults in the log: {faults[:3]}")


# --- what is asked ---


def requests(folder: Path, seed: int) -> Part:
    """Bodies, names, paths and headers, each alone."""
    part = Part("requests", seed)
    with served(folder, part, devices="none") as server:
        for kind, method, path, body, headers in tricks.calls():
            try:
                status, response = server.request(method, path, body, **headers)
            except urllib.error.URLError:  # refused while it was still sending
                part.count(kind, "closed", None if len(body or b"") > 1 << 20 else f"{kind}: cut off")  # type: ignore[arg-type]
                continue
            _judge(part, kind, status, response, f"{kind}: {method} {path[:80]} {body!r:.80}")
        for kind, raw in tricks.raw(server.key):
            answer = _exchange(server, raw)
            status = int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0
            _judge(part, kind, status, None, f"{kind}: {raw[:80]!r} gave {answer[:60]!r}")
    return part


def _judge(part: Part, kind: str, status: int, told: Any, what: str) -> None:
    wrong = what if status >= 500 or status == 0 else None
    if status >= 400 and isinstance(told, dict) and not (told.get("message") or told.get("error")):
        wrong = f"{what}: no sentence"
    part.count(kind, str(status), wrong)


def _exchange(server: LiveServer, raw: bytes) -> bytes:
    """What the server answers, the client having said all that it will."""
    with _connection(server) as connection:
        connection.settimeout(CLOSED_WITHIN_S)
        with contextlib.suppress(ConnectionError):
            connection.sendall(raw)
        got = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            while len(got) < 12 and (part := connection.recv(4096)):
                got += part
        return got


def _connection(server: LiveServer) -> socket.socket:
    host, _, port = server.base.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=20)


# --- how slowly, and how many ---


def patience(folder: Path, seed: int, slow: int, idle: int) -> Part:
    """Slow clients are closed in time, and nobody else waits for them."""
    part = Part("slow and idle clients", seed)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    idle = min(idle, hard - 500)
    with served(folder, part, devices="none") as server:
        ticket = {"filename": "a.mp4", "size": 100_000_000}
        place = server.request("POST", "/api/v3/media/uploads", ticket)[1]["data"]["upload"][
            "url"
        ].removeprefix(server.base)
        key = f"Host: a\r\nAuthorization: Bearer {server.key}\r\n".encode()
        begins = {
            "a slow head": b"GET / HTTP/1.1\r\n",
            "a slow body": b"POST "
            + tricks.SUBMIT.encode()
            + b" HTTP/1.1\r\n"
            + key
            + b"Content-Length: 100000\r\n\r\n",
            "a slow upload": b"PUT "
            + place.encode()
            + b" HTTP/1.1\r\n"
            + key
            + b"Content-Length: 100000000\r\n\r\n",
            "a slow refused body": b"POST "
            + tricks.SUBMIT.encode()
            + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n",
            "empty lines": b"",
        }
        clients = [(kind, begin) for kind, begin in begins.items() for _ in range(slow // len(begins))]
        part.facts["slowest_answer_meanwhile_s"] = _dribble(server, part, clients)
        part.facts["slowest_answer_to_many_s"] = _crowd(server, part, idle)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return part


def _dribble(server: LiveServer, part: Part, clients: list[tuple[str, bytes]]) -> float:
    """A byte a second from each; returns the slowest answer that others got."""
    drip = {"a slow head": b"X", "empty lines": b"\r\n"}
    open_ones: dict[socket.socket, str] = {}
    for kind, begin in clients:
        connection = _connection(server)
        connection.sendall(begin)
        connection.setblocking(False)
        open_ones[connection] = kind
    began, slowest = time.monotonic(), 0.0
    while open_ones and time.monotonic() - began < CLOSED_WITHIN_S:
        tick = time.monotonic()
        for connection, kind in list(open_ones.items()):
            if not _is_open(connection, drip.get(kind, b"a")):
                connection.close()
                del open_ones[connection]
                part.count(kind, "closed")
        slowest = max(slowest, _answer_s(server))
        _rest(tick + 1.0)
    for connection, kind in open_ones.items():
        part.count(kind, "open", f"{kind}: still open after {CLOSED_WITHIN_S:g} s")
        connection.close()
    part.facts["last_closed_s"] = round(time.monotonic() - began, 1)
    if slowest > ANSWERED_WITHIN_S:
        part.broken.append(f"others waited {slowest:.1f} s")
    return round(slowest, 2)


def _is_open(connection: socket.socket, more: bytes) -> bool:
    try:
        connection.send(more)
        while part := connection.recv(4096):
            del part
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _crowd(server: LiveServer, part: Part, count: int) -> float:
    """So many connections that say nothing; returns the slowest answer that others got."""
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        slowest, closed = 0.0, 0
        for number in range(count):
            connection = stack.enter_context(_connection(server))
            selector.register(connection, selectors.EVENT_READ)
            if number % 500 == 499:
                slowest = max(slowest, _answer_s(server))
        began = time.monotonic()
        while selector.get_map() and time.monotonic() - began < CLOSED_WITHIN_S:
            for key, _ in selector.select(1.0):
                if not _is_open_silently(key.fileobj):  # type: ignore[arg-type]
                    selector.unregister(key.fileobj)
                    closed += 1
            slowest = max(slowest, _answer_s(server))
        part.counts["nothing at all"]["closed"] += closed
        for _ in range(count - closed):
            part.count("nothing at all", "open", "an idle connection was never closed")
        part.facts["crowd_closed_s"] = round(time.monotonic() - began, 1)
    if slowest > ANSWERED_WITHIN_S:
        part.broken.append(f"in the crowd others waited {slowest:.1f} s")
    return round(slowest, 2)


def _is_open_silently(connection: socket.socket) -> bool:
    try:
        connection.setblocking(False)
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _answer_s(server: LiveServer) -> float:
    began = time.monotonic()
    status, _ = server.request("GET", "/api/v3/balance")
    return time.monotonic() - began if status == 200 else 1e9


def _rest(until: float) -> None:
    with selectors.DefaultSelector() as nothing:
        nothing.select(max(0.0, until - time.monotonic()))


# --- jobs ---


def jobs(folder: Path, seeds: list[Path], seed: int, count: int, secret: Path) -> Part:
    """Damaged media as jobs of a real worker, which must outlive them all."""
    part = Part("jobs with damaged media", seed)
    rng = random.Random(seed)
    videos = [path for path in seeds if path.suffix in (".mp4", ".mov", ".mkv", ".webm")]
    sounds = [path for path in seeds if path.suffix in (".wav", ".mp3", ".m4a", ".ogg")]
    all_cases = list(cases(videos + sounds, rng, 200 + 20 * count, secret))
    selection = [
        case
        for case in all_cases
        if case.is_trap or case.kind in ("bits flipped", "box sizes", "two files spliced", "cut off")
    ]
    voice = next(path for path in sounds if path.suffix == ".wav")
    with served(folder, part, stall_s=60, enforce_vendor_limits=False) as server:
        server.wait_ready()
        good = {
            "video": _upload(server, videos[0].name, videos[0].read_bytes()),
            "audio": _upload(server, "a.wav", voice.read_bytes()),
        }
        for case in rng.sample(selection, count):
            _job(server, part, case, good)
        ended = server.wait_for_job(server.submit(good["video"], good["audio"], inference_steps=1))
        if ended["status"] != "completed":
            part.broken.append(f"afterwards a good job ends {ended['status']}: {ended['error']}")
        starts = server.request("GET", "/api/native/v1/health")[1]["devices"][0]["starts"]
        part.facts["worker_starts"] = starts
        if starts != 1:
            part.broken.append(f"the worker was started {starts} times")
    return part


def _job(server: LiveServer, part: Part, case: Case, good: dict[str, str]) -> None:
    use = "audio" if case.use == "audio" else "video"
    inputs = {**good, use: _upload(server, case.name, case.data or b"\0")}
    job = server.submit(inputs["video"], inputs["audio"], inference_steps=1)
    ended = server.wait_for_job(job, timeout_s=240)
    response = server.request("GET", f"/api/native/v1/jobs/{job}")[1]
    code = ended["status"] if ended["status"] == "completed" else response["failure"]["code"]
    bad = ended["status"] not in FINAL or code in ("worker_lost", "internal_error", "run_timeout")
    taken = case.is_trap and code == "completed"
    part.count(case.kind.partition(":")[0], code, f"{case.kind}: {ended}" if bad or taken else None)


def _upload(server: LiveServer, name: str, data: bytes) -> str:
    _, response = server.request("POST", "/api/v3/media/uploads", {"filename": name, "size": len(data)})
    status, _ = server.request("PUT", response["data"]["upload"]["url"], data)
    assert status == 200
    return str(response["data"]["download_url"])


# --- by the schema ---


def by_schema(folder: Path, seed: int, examples: int) -> Part:
    """schemathesis makes requests of what the server says of itself, with a key and without."""
    part = Part("requests by the schema", seed)
    program = Path(sys.executable).with_name("st")
    with served(folder, part, devices="none") as server:
        for who, headers in (
            ("without a key", []),
            ("with a key", ["-H", f"Authorization: Bearer {server.key}"]),
        ):
            command = [str(program), "run", f"{server.base}/openapi.json", *headers, "--seed", str(seed)]
            command += [
                "--max-examples",
                str(examples),
                "--checks",
                "not_a_server_error",
                "--phases",
                "fuzzing",
            ]
            command += [
                "--no-color",
                "--request-timeout",
                "60",
                "--exclude-path",
                "/readyz",
            ]  # 503: nobody works here
            result = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, check=False, timeout=3600
            )
            output = re.search(r"(\d+) generated", result.stdout)
            part.counts[who]["answered"] += int(output[1]) if output else 0
            if result.returncode != 0 or not output:
                part.broken.append(f"{who}: {result.stdout[-1500:]}")
        for remaining in (folder / ".hypothesis", folder / ".schemathesis"):
            if remaining.exists():
                subprocess.run(["rm", "-r", str(remaining)], check=True)
    return part
