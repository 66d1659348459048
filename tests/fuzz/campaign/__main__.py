"""Hostile input against everything that takes input: what breaks, if anything.

    python -m tests.fuzz.campaign --out benchmarks/hostile.json       (`make campaign`)

Damaged media, our parsers under a fuzzer, hostile requests, slow and idle clients, requests made from the
schema, jobs with damaged media. Seeds are fixed: a finding can be repeated. Prints a table; ends with 1 when
a promise broke: no crash, no hang, no 5xx, no file outside, memory flat, every case a coded error.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lipsync_engine import media
from tests.fuzz.campaign import media_part, parsers, wire
from tests.fuzz.campaign.report import Part


def parts(folder: Path, seed: int, share: float) -> dict[str, Callable[[], Part]]:
    """Every part by its name; `share` of the full number of cases."""

    def some(count: int) -> int:
        return max(1, round(count * share))

    def place(name: str) -> Path:
        path = folder / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def jobs() -> Part:
        where = place("jobs")
        seeds = media_part.make_seeds(folder / "job-seeds")
        return wire.jobs(where, seeds, seed, some(24), media_part.make_secret(folder / "job-secret"))

    return {
        "media": lambda: media_part.look(place("media"), some(2000), seed),
        "films": lambda: media_part.films(place("media"), some(60), seed),
        "parsers": lambda: parsers.strike_all(some(100_000), seed),
        "requests": lambda: wire.requests(place("requests"), seed),
        "patience": lambda: wire.patience(place("patience"), seed, some(500), some(10_000)),
        "schema": lambda: wire.by_schema(place("schema"), seed, some(100)),
        "jobs": jobs,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.campaign", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", type=float, default=1.0, help="of the number of cases")
    parser.add_argument("--only", nargs="*", help="names of parts; `films` needs `media`")
    parser.add_argument("--out", type=Path, help="JSON with the counts; parts that did not run stay in it")
    arguments = parser.parse_args()
    matches: list[Part] = []
    with tempfile.TemporaryDirectory(prefix="lipsync-campaign-") as name:
        for part_name, run in parts(Path(name), arguments.seed, arguments.share).items():
            if arguments.only and part_name not in arguments.only:
                continue
            began = time.monotonic()
            part = run()
            part.facts["seconds"] = round(time.monotonic() - began)
            print(part.table(), flush=True)
            matches.append(part)
            if arguments.out is not None:
                _keep(arguments.out, part_name, part)
    broken = sum(len(part.broken) for part in matches)
    print(f"\n{sum(part.cases for part in matches)} cases, {broken} broken promises")
    return 1 if broken else 0


def _keep(out: Path, name: str, part: Part) -> None:
    previous = json.loads(out.read_text()) if out.exists() else {"parts": {}}
    previous["machine"] = {
        "python": platform.python_version(),
        "system": platform.system(),
        "ffmpeg": media.ffmpeg_version(),
    }
    previous["parts"][name] = part.to_json()
    out.write_text(json.dumps(previous, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main())
