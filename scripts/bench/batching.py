"""Windows of several jobs in shared runs of the U-Net: how much faster, and how near to each job alone.

    python -m scripts.bench batching                   # the tiny model on the CPU: benchmarks/batching.json
    python -m scripts.bench batching --device cuda:0   # also the published networks, at 256 and 512

Per number of jobs: as many threads as jobs sample windows of their own, one after the other, the same number
of windows in all; once with as many windows in a run as there are jobs (`shared`), once with one (`apart`),
in turns in one process. Numbers are windows per second, VAE included; distances are to the same window
sampled alone. On a CPU a second is one of processor time, so that other work on the machine does not count.
The published networks have random weights, which cost the same.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from lipsync_engine import LipSyncPipeline
from lipsync_engine.models.latentsync.model import LatentSync
from scripts.bench.common import BENCHMARKS, paired_ratio, write_report
from scripts.bench.gpu import DTYPES, FULL, Bench, Window, distance

JOBS = (1, 2, 4, 8)
WINDOWS = 8


def in_threads(works: list[Callable[[], None]], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds until all are done."""
    threads = [threading.Thread(target=work) for work in works]
    began = clock()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return clock() - began


def windows_per_s(model: LatentSync, jobs: int, most: int, steps: int) -> float:
    """Of `jobs` threads that make `WINDOWS` between them, `most` windows in one run."""
    model.denoiser.max_windows = most

    def work(number: int) -> None:
        window = Window.random(model, seed=number)
        for _ in range(WINDOWS // jobs):
            model.decode(window.denoised(model, steps)).cpu()

    clock = time.process_time if model.device.type == "cpu" else time.perf_counter
    return WINDOWS / in_threads([lambda n=number: work(n) for number in range(jobs)], clock)  # type: ignore[misc]


def differences(model: LatentSync, jobs: int, steps: int) -> dict[str, float]:
    """Between windows in shared runs and each alone: the largest of a value, and the relative distance."""
    windows = [Window.random(model, seed=number) for number in range(jobs)]
    alone = [window.denoised(model, steps) for window in windows]
    found: dict[int, torch.Tensor] = {}
    model.denoiser.max_windows = jobs
    model.denoiser.batch_sizes.clear()

    def work(number: int) -> None:
        found[number] = windows[number].denoised(model, steps)

    in_threads([lambda n=number: work(n) for number in range(jobs)])  # type: ignore[misc]
    pairs = [(found[number].float(), alone[number].float()) for number in range(jobs)]
    return {
        "largest": max(float((one - other).abs().max()) for one, other in pairs),
        "relative": max(distance(one, other) for one, other in pairs),
        "windows_per_run": round(statistics.fmean(model.denoiser.batch_sizes.elements()), 2),
    }


def report_of(model: LatentSync, steps: int, repeats: int) -> Iterator[dict[str, Any]]:
    """What is known so far, after every number of jobs."""
    windows_per_s(model, 1, 1, 1)  # what is done at first use
    found: dict[str, Any] = {"steps": steps, "jobs": {}}
    for jobs in JOBS:
        shared, apart = list[float](), list[float]()
        for _ in range(repeats):  # in turns, for other work comes and goes
            shared.append(windows_per_s(model, jobs, jobs, steps))
            apart.append(windows_per_s(model, jobs, 1, steps))
        found["jobs"][jobs] = {
            "shared": round(statistics.median(shared), 3),
            "apart": round(statistics.median(apart), 3),
            "ratio": paired_ratio(shared, apart),
            "differences": differences(model, jobs, steps),
        }
        yield found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp16", help="of the published networks")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path, default=BENCHMARKS, help="folder")


def run(arguments: argparse.Namespace) -> None:
    device = torch.device(arguments.device)
    report: dict[str, Any] = {
        "device": platform.machine() if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "models": {},
    }
    tiny = LipSyncPipeline.from_pretrained("tiny", device=arguments.device, dtype="fp32").model
    models: dict[str, Callable[[], Any]] = {"tiny": lambda: tiny}
    if device.type == "cuda":
        bench = Bench(device, DTYPES[arguments.dtype], FULL, arguments.repeats)
        models |= {
            name: lambda n=name, side=resolution: bench.model(n, side)
            for name, resolution in FULL.resolutions.items()
        }
    for name, load in models.items():
        for found in report_of(load(), arguments.steps, arguments.repeats):
            report["models"][name] = found
            write_report(report, arguments.out / "batching.json")
        print(name, json.dumps(found), flush=True)
