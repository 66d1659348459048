"""`lipsync cluster` and `python -m server.cluster`: workers on all machines of a Ray cluster."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from server.blobs import Blobs, StorageAwayError
from server.settings import SettingsError, load_settings
from server.store import DatabaseAwayError, Store

PORT = 6379
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
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
    from server import ray_pool

    settings = load_settings()
    if settings.database_url is None or not settings.database_url.startswith("postgresql"):
        return _failed("error: workers of a cluster share a PostgreSQL database: set LIPSYNC_DATABASE_URL.")
    Store(settings.database).close()
    Blobs(settings.blobs_place).require()
    address = arguments.address
    if address is None:
        done = subprocess.run(
            [*RAY, "start", "--head", f"--port={arguments.port}", *_slots(arguments)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            return _failed(f"error: Ray does not start: {done.stderr.strip().splitlines()[-1]}")
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
    command = [*RAY, "start", f"--address={arguments.address}", "--block", *_slots(arguments)]
    os.execv(command[0], command)


def _status(arguments: argparse.Namespace) -> int:
    from server import ray_pool

    ray_pool.connect(arguments.address)
    reports, lost = ray_pool.status()
    _say(f"{'worker':<16} {'machine':<24} {'device':<8} {'condition':<12} idle")
    for one in reports:
        idle = f"{one.idle_s:.0f} s" if one.idle_s else ""
        _say(f"{one.name:<16} {one.machine:<24} {one.device:<8} {one.condition:<12} {idle}")
    _say(f"{len(reports)} workers; {lost} were lost and replaced")
    return 0


def _drain(arguments: argparse.Namespace) -> int:
    from server import ray_pool

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
