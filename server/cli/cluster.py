"""`lipsync cluster` and `python -m server.cli.cluster`: workers on all machines of a Ray cluster."""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from types import FrameType

from lipsync_engine import ray_connection
from server.settings import SettingsError, load_settings
from server.storage.blobs import Blobs, StorageAwayError
from server.store import DatabaseAwayError, Store

PORT = 6379
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
JOIN_TRIES = 10
GIVEN_UP_AFTER_S = 15.0
"""Ray gives up a machine that takes longer to start, as a busy one does: then it is worth another try."""

STARTED = "Ray runtime started"
NO_RAY = "error: Ray is not installed: pip install 'lipsync-engine[ray,postgresql]'"


def main() -> int:
    arguments = parser().parse_args()
    try:
        from ray.exceptions import RayError  # comes with an extra
    except ModuleNotFoundError:
        return _failed(NO_RAY)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    try:
        code: int = arguments.do(arguments)
        return code
    except (DatabaseAwayError, StorageAwayError, RayError, SettingsError, OSError, ValueError) as error:
        return _failed(f"error: {str(error).splitlines()[0]}")


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    whole = argparse.ArgumentParser(prog="lipsync cluster", description=__doc__.splitlines()[0])
    commands = whole.add_subparsers(required=True)

    def command(name: str, do: object, words: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=words, description=words)
        one.set_defaults(do=do)
        return one

    up = command("up", _up, "Start Ray's head on this machine, and the pool that keeps workers.")
    up.add_argument("--address", help="of a cluster that runs (auto: this machine's); no head is started")
    up.add_argument("--port", type=int, default=PORT, help=f"of the head; {PORT} where not given")
    join = command("join", _join, "Give this machine to a cluster, until Ctrl-C.")
    join.add_argument("address", help="of the head, as `up` printed it")
    for one in (up, join):
        one.add_argument("--cpus", type=int, help="workers without a GPU that fit; else Ray counts cores")
        one.add_argument("--gpus", type=int, help="GPUs to use; else Ray counts them")
    for name, do, words in (
        ("status", _status, "Show the workers."),
        ("drain", _drain, "Let all workers end what they do, and start no more."),
    ):
        command(name, do, words).add_argument("--address", default="auto", help="of the head")
    return whole


def _up(arguments: argparse.Namespace) -> int:
    from server.cluster import ray as ray_pool

    settings = load_settings()
    if settings.database_url is None or not settings.database_url.startswith("postgresql"):
        return _failed("error: workers of a cluster share a PostgreSQL database: set LIPSYNC_DATABASE_URL.")
    Store(settings.database).close()
    Blobs(settings.blobs_place).require()
    address = arguments.address
    if address is None:
        if _is_taken(arguments.port):
            return _failed(
                f"error: port {arguments.port} is taken, by a cluster (--address=auto uses it) or another "
                "program: name another one below 10000 with --port."
            )
        command = [*RAY, "start", "--head", f"--port={arguments.port}", *_slots(arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return _failed(f"error: Ray does not start: {_reason(done.stderr)}")
        address = f"127.0.0.1:{arguments.port}"
    ray_pool.connect(address)
    ray_pool.start_pool(settings)
    _say(
        f"the pool keeps {settings.cluster_min} to {settings.cluster_max} workers",
        f"other machines: lipsync cluster join {ray_pool.head_address()}",
        "lipsync cluster status shows them; lipsync cluster drain ends them",
    )
    return 0


def _join(arguments: argparse.Namespace) -> int:
    ray_connection.require(arguments.address)
    command = [*RAY, "start", f"--address={arguments.address}", "--block", *_slots(arguments)]
    for _ in range(JOIN_TRIES):
        began = time.monotonic()
        with tempfile.TemporaryFile("w+") as complaints:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True)
            is_leaving = _signals_for(process)
            lines = process.stdout or ()
            has_joined = any(STARTED in line for line in lines)
            if has_joined:
                _say(f"this machine works for the cluster at {arguments.address}, until Ctrl-C")
            for _ in lines:  # Ray's own advice
                pass
            process.wait()
            complaints.seek(0)
            reason = _reason(complaints.read())
        if is_leaving.is_set():
            return 0
        if has_joined:
            return _failed(f"error: this machine has lost the cluster at {arguments.address}")
        if time.monotonic() - began < GIVEN_UP_AFTER_S:
            break
        print(f"once more: {reason}", file=sys.stderr, flush=True)  # noqa: T201
    return _failed(f"error: Ray does not start: {reason}")


def _signals_for(process: subprocess.Popen[str]) -> threading.Event:
    """Leave the end to Ray, which stops what it has started here; set when it is asked for."""
    is_leaving = threading.Event()

    def leave(number: int, frame: FrameType | None) -> None:
        is_leaving.set()
        if number == signal.SIGTERM:  # a Ctrl-C in the terminal is for Ray as well
            process.terminate()

    signal.signal(signal.SIGINT, leave)
    signal.signal(signal.SIGTERM, leave)
    return is_leaving


def _is_taken(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("", port))
        except OSError:
            return True
    return False


def _reason(complaints: str) -> str:
    """The exception of a traceback, which may go on for lines; else the last line."""
    lines = complaints.strip().splitlines() or ["it says nothing"]
    return next((line for line in lines if re.match(r"\w*(Error|Exception): ", line)), lines[-1])


def _status(arguments: argparse.Namespace) -> int:
    from server.cluster import ray as ray_pool

    ray_pool.connect(arguments.address)
    reports, lost = ray_pool.status()
    _say(f"{'worker':<16} {'machine':<24} {'device':<8} {'condition':<12} idle")
    for one in reports:
        idle = f"{one.idle_s:.0f} s" if one.idle_s else ""
        _say(f"{one.name:<16} {one.machine:<24} {one.device:<8} {one.condition:<12} {idle}")
    _say(f"{len(reports)} workers; {lost} were lost and replaced")
    return 0


def _drain(arguments: argparse.Namespace) -> int:
    from server.cluster import ray as ray_pool

    ray_pool.connect(arguments.address)
    ray_pool.drain()
    _say("all workers have ended; Ray itself ends with `ray stop` on each machine")
    return 0


def _slots(arguments: argparse.Namespace) -> list[str]:
    given = {"num-cpus": arguments.cpus, "num-gpus": arguments.gpus}
    return [f"--{name}={count}" for name, count in given.items() if count is not None]


def _say(*lines: str) -> None:
    print("\n".join(lines), flush=True)  # noqa: T201  (a command line's answer)


def _failed(sentence: str) -> int:
    print(sentence, file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    sys.exit(main())
