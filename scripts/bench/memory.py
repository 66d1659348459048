"""Peak memory against length: the same job on a short and on a long 1080p video.

The whole pipeline runs as in a real job (hardened decoders, face tracking, audio features, windows, paste,
x264, assembly), except that a stand-in (`stand_in.py`) takes the U-Net's and VAE's place, so that the long
run takes minutes instead of hours.

    python -m scripts.bench memory --short-s 30 --long-s 600

Prints a table, writes JSON with --json, and exits with 1 when the long run's peak is over 1.10 times the
short's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from scripts.bench.common import ROOT, loop_demo, write_report

LIMIT = 1.10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--short-s", type=int, default=30)
    parser.add_argument("--long-s", type=int, default=600)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", nargs=2, metavar=("VIDEO", "AUDIO"), help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    if arguments.run:
        print(json.dumps(run_job(*map(Path, arguments.run))))
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seconds in (arguments.short_s, arguments.long_s):
            video, voice = make_input(Path(folder), seconds)
            command = [sys.executable, "-m", "scripts.bench", "memory", "--run", str(video), str(voice)]
            text = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
            rows.append({"input_s": seconds} | json.loads(text.splitlines()[-1]))
    print(f"{'input':>8} {'frames':>7} {'peak, program':>14} {'peak, FFmpeg child':>19} {'wall clock':>11}")
    for row in rows:
        print(
            f"{row['input_s']:>6} s {row['frames']:>7} {row['peak_mib']:>10.0f} MiB "
            f"{row['child_peak_mib']:>15.0f} MiB {row['wall_s']:>9.0f} s"
        )
    ratio = max(rows[1][key] / rows[0][key] for key in ("peak_mib", "child_peak_mib"))
    print(f"long / short: {ratio:.3f} (limit {LIMIT}); stand-in model, everything else real")
    if arguments.json:
        write_report({"rows": rows, "ratio": ratio, "limit": LIMIT}, arguments.json)
    return 0 if ratio <= LIMIT else 1


def make_input(folder: Path, seconds: int) -> tuple[Path, Path]:
    """Write the demo's presenter in a 1080p frame and its voice, both repeated to the length."""
    fit = "scale=1080:1080,pad=1920:1080:420:0:gray,fps=25"
    return loop_demo(folder, seconds, "-vf", fit, "-c:v", "libx264", "-preset", "veryfast")


def run_job(video: Path, voice: Path) -> dict[str, float]:
    """One job in this process; its peaks in MiB."""
    from lipsync_engine.faces.registry import load_detector
    from lipsync_engine.pipeline import LipSyncPipeline
    from lipsync_engine.weights import WeightsStore
    from tests.support.stand_in import StandIn

    peaks_kib: dict[str, int] = {}
    threading.Thread(target=watch_children, args=(peaks_kib,), daemon=True).start()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as cache:
        pipeline = LipSyncPipeline(StandIn(), load_detector("drawn", WeightsStore()), cache_dir=Path(cache))
        result = pipeline(video, voice, Path(cache) / "out.mp4")
    return {
        "frames": result.frames,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "child_peak_mib": max(peaks_kib.values()) / 1024,
        "wall_s": time.monotonic() - began,
    }


def watch_children(peaks_kib: dict[str, int]) -> None:
    """Every 0.2 s the highest resident size of each FFmpeg child, from its /proc entry.

    (RUSAGE_CHILDREN would count the copy of this process that a child is until it becomes FFmpeg.)
    """
    tasks = Path("/proc/self/task")
    while True:
        for pid in [pid for task in tasks.iterdir() for pid in (task / "children").read_text().split()]:
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                if "ffmpeg" in status.split("\n", 1)[0]:
                    peaks_kib[pid] = int(re.search(r"VmHWM:\s+(\d+)", status)[1])
        time.sleep(0.2)
