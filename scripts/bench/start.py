"""Cold start of the engine, and how long a client waits for the first preview of a job.

    python -m scripts.bench start engine --model tiny --runs 3          # prints JSON
    python -m scripts.bench start preview --seconds 10 20 40            # prints a table

`engine`: each run is a process of its own. `loaded` is when the weights are on the device, `ready` when one
window has been denoised and decoded, as a server's worker does before it reports that it is ready.
`preview`: a server of its own with the tiny model. Every job's video has other bytes, so no analysis comes
from a cache. The time runs from the submission to the event that names the first segment.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from scripts.bench.common import ROOT, loop_demo
from tests.support.live_server import LiveServer

CHILD = """
import json, sys, time
began = float(sys.argv[1])
def report(mark): print(json.dumps([mark, time.time() - began]), flush=True)
import torch
from lipsync_engine import LipSyncPipeline
report("imported")
model = LipSyncPipeline.from_pretrained(sys.argv[2], device=sys.argv[3] or None).model
report("loaded")
model.warm_up()
if model.device.type == "cuda": torch.cuda.synchronize()
report("ready")
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["engine", "preview"])
    parser.add_argument("--model", default="tiny", help="engine")
    parser.add_argument("--device", default="", help="engine; empty: the best there is")
    parser.add_argument("--runs", type=int, default=3, help="engine")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10, 20, 40], help="preview")
    parser.add_argument("--steps", type=int, default=2, help="preview")


def run(arguments: argparse.Namespace) -> None:
    if arguments.what == "engine":
        measure_engine(arguments.model, arguments.device, arguments.runs)
    else:
        measure_previews(arguments.seconds, arguments.steps)


def measure_engine(model: str, device: str, runs: int) -> None:
    marks: dict[str, list[float]] = {}
    for _ in range(runs):
        command = [sys.executable, "-c", CHILD, str(time.time()), model, device]
        output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
        for line in output.splitlines():
            mark, after_s = json.loads(line)
            marks.setdefault(mark, []).append(after_s)
    print(json.dumps({f"{mark}_s": round(statistics.median(times), 2) for mark, times in marks.items()}))


def measure_previews(lengths_s: list[float], steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        live = LiveServer(Path(folder) / "data", drain_s=0)
        live.start()
        try:
            live.wait_ready()
            print("video s | first preview after s | done after s")
            for length_s in lengths_s:
                video, voice = loop_demo(Path(folder), length_s, "-c", "copy")
                first_s, done_s = time_job(live, live.upload(video), live.upload(voice), steps)
                print(f"{length_s:7g} | {first_s:21.1f} | {done_s:12.1f}", flush=True)
        finally:
            live.stop()


def time_job(live: LiveServer, video: str, voice: str, steps: int) -> tuple[float, float]:
    """Seconds to the first segment, and to the end."""
    began = time.monotonic()
    job = live.submit(video, voice, inference_steps=steps)
    url = f"{live.base}/api/native/v1/jobs/{job}/events"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {live.key}"})
    first_s, name = float("nan"), ""
    with urllib.request.urlopen(request, timeout=600) as stream:
        for raw in stream:
            field, _, value = raw.decode().strip().partition(": ")
            name = value if field == "event" else name
            if field == "data" and name == "segment" and json.loads(value)["index"] == 0:
                first_s = time.monotonic() - began
    answer = live.prediction(job)
    if answer["status"] != "completed":
        raise SystemExit(f"job {job} {answer['status']}: {answer['error']}")
    return first_s, time.monotonic() - began
