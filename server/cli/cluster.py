"""`lipsync cluster` and `python -m server.cli.cluster`: run workers on all machines of a Ray cluster."""

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
from server.storage.blobs import Blobs, StorageUnavailableError
from server.store import DatabaseUnavailableError, Store

PORT = 6379
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
JOIN_ATTEMPTS = 10
RAY_START_TIMEOUT_S = 15.0
"""Ray gives up on a machine that starts more slowly, as a busy one does: such a start is retried."""

RAY_STARTED = "Ray runtime started"
NO_RAY = "error: Ray is not installed: pip install 'lipsync-engine[ray,postgresql]'"


def main() -> int:
    arguments = create_parser().parse_args()
    try:
        from ray.exceptions import RayError  # comes with an extra
    except ModuleNotFoundError:
        return _fail(NO_RAY)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray sends usage statistics by default
    try:
        status: int = arguments.run(arguments)
        return status
    except (
        DatabaseUnavailableError,
        StorageUnavailableError,
        RayError,
        SettingsError,
        OSError,
        ValueError,
    ) as error:
        return _fail(f"error: {str(error).splitlines()[0]}")


def create_parser() -> argparse.ArgumentParser:
    """Create the parser of the command line."""
    parser = argparse.ArgumentParser(prog="lipsync cluster", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)

    def add_command(name: str, run: object, description: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=description, description=description)
        command.set_defaults(run=run)
        return command

    up = add_command("up", _start_head, "Start Ray's head on this machine, and the pool of workers.")
    up.add_argument("--address", help="address of a running cluster (auto: this machine's); starts no head")
    up.add_argument("--port", type=int, default=PORT, help=f"port of the head [default: {PORT}]")
    join = add_command("join", _join, "Add this machine to a cluster, until Ctrl-C.")
    join.add_argument("address", help="address of the head, printed by `up`")
    for command in (up, join):
        command.add_argument("--cpus", type=int, help="most workers without a GPU [default: cores]")
        command.add_argument("--gpus", type=int, help="GPUs to use [default: all]")
    for name, run, description in (
        ("status", _print_status, "Show the workers."),
        ("drain", _drain, "Stop all workers after their running jobs, and start no more."),
    ):
        command = add_command(name, run, description)
        command.add_argument(
            "--address", default="auto", help="address of the head [default: this machine's]"
        )
    return parser


def _start_head(arguments: argparse.Namespace) -> int:
    from server.cluster import ray as ray_pool

    settings = load_settings()
    if settings.database_url is None or not settings.database_url.startswith("postgresql"):
        return _fail("error: a cluster needs a PostgreSQL database: set LIPSYNC_DATABASE_URL.")
    Store(settings.effective_database_url).close()
    Blobs(settings.blob_location, credentials=settings.s3_credentials).check_access()
    address = arguments.address
    if address is None:
        if _is_port_used(arguments.port):
            return _fail(
                f"error: port {arguments.port} is in use by a cluster (use it with --address=auto) or by "
                "another program (choose another port below 10000 with --port)."
            )
        command = [*RAY, "start", "--head", f"--port={arguments.port}", *_resource_flags(arguments)]
        command.append("--include-dashboard=false")  # nothing here uses it, and it holds a gigabyte
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode != 0:
            return _fail(f"error: Ray does not start: {_error_line(process.stderr)}")
        address = f"127.0.0.1:{arguments.port}"
    ray_pool.connect(address)
    ray_pool.start_pool(settings)
    _print(
        f"the pool runs {settings.cluster_min} to {settings.cluster_max} workers",
        f"add other machines: lipsync cluster join {ray_pool.head_address()}",
        "show the workers: lipsync cluster status; stop them: lipsync cluster drain",
    )
    return 0


def _join(arguments: argparse.Namespace) -> int:
    ray_connection.require_reachable(arguments.address)
    command = [*RAY, "start", f"--address={arguments.address}", "--block", *_resource_flags(arguments)]
    for _ in range(JOIN_ATTEMPTS):
        start = time.monotonic()
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            is_leaving = _forward_signals(process)
            lines = process.stdout or ()
            has_joined = any(RAY_STARTED in line for line in lines)
            if has_joined:
                _print(f"this machine has joined the cluster at {arguments.address}, until Ctrl-C")
            for _ in lines:  # Ray's own advice
                pass
            process.wait()
            errors.seek(0)
            reason = _error_line(errors.read())
        if is_leaving.is_set():
            return 0
        if has_joined:
            return _fail(f"error: lost the cluster at {arguments.address}: is its head running?")
        if time.monotonic() - start < RAY_START_TIMEOUT_S:
            break
        print(f"retrying: {reason}", file=sys.stderr, flush=True)  # noqa: T201
    return _fail(f"error: Ray does not start: {reason}")


def _forward_signals(process: subprocess.Popen[str]) -> threading.Event:
    """Let Ray stop its own processes on a signal; return an event that is set by the signal."""
    is_leaving = threading.Event()

    def handle_signal(number: int, frame: FrameType | None) -> None:
        is_leaving.set()
        if number == signal.SIGTERM:  # the terminal sends Ctrl-C to Ray as well
            process.terminate()

    signal.signal(signal.SIGINT, handle_signal)
    signal.signal(signal.SIGTERM, handle_signal)
    return is_leaving


def _is_port_used(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


def _error_line(stderr: str) -> str:
    """Return the line with the exception of a traceback, else the last line."""
    lines = stderr.strip().splitlines() or ["no error output"]
    return next((line for line in lines if re.match(r"\w*(Error|Exception): ", line)), lines[-1])


def _print_status(arguments: argparse.Namespace) -> int:
    from server.cluster import ray as ray_pool

    ray_pool.connect(arguments.address)
    reports, lost = ray_pool.status()
    _print(f"{'worker':<16} {'machine':<24} {'device':<8} {'condition':<12} idle")
    for report in reports:
        idle = f"{report.idle_s:.0f} s" if report.idle_s else ""
        _print(f"{report.name:<16} {report.machine:<24} {report.device:<8} {report.state:<12} {idle}")
    _print(f"{len(reports)} workers; {lost} were lost and replaced")
    return 0


def _drain(arguments: argparse.Namespace) -> int:
    from server.cluster import ray as ray_pool

    ray_pool.connect(arguments.address)
    ray_pool.drain()
    _print(
        "all workers have stopped",
        "start workers with other settings: lipsync cluster up --address auto",
        "stop Ray itself: ray stop, on each machine",
    )
    return 0


def _resource_flags(arguments: argparse.Namespace) -> list[str]:
    counts = {"num-cpus": arguments.cpus, "num-gpus": arguments.gpus}
    return [f"--{name}={count}" for name, count in counts.items() if count is not None]


def _print(*lines: str) -> None:
    print("\n".join(lines), flush=True)  # noqa: T201  (a command line's answer)


def _fail(message: str) -> int:
    print(message, file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    sys.exit(main())
