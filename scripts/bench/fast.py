"""What each shortcut costs in likeness and saves in time, side by side on the demo with the tiny model.

    OMP_NUM_THREADS=1 python -m scripts.bench fast     # benchmarks/fast.json and .png, about ten minutes

Exact is what LatentSync does: DDIM, 20 steps, every step guided, the whole network each time. Every other row
is the same windows, noise and sound, run in turns with exact. Likeness is that of the generated pixels alone;
speed is exact's processor time over the row's (denoising); `network` is the share of exact's TFLOP that the
same shortcuts cost LatentSync 1.6's network. FP8 has no speed here, for a CPU only emulates it; its rows have
every layer of the transformers in it, where the large networks have those that pay.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Mapping
from pathlib import Path

import torch

from lipsync_engine import LipSyncPipeline
from lipsync_engine.models.latentsync.fp8 import to_float8
from lipsync_engine.models.latentsync.model import LatentSync, load_latentsync
from lipsync_engine.params import PRESETS, FastSampling, Solver
from lipsync_engine.weights import WeightsStore
from scripts.bench.common import BENCHMARKS, new_plot, save_plot, write_report
from tests.support import flops
from tests.support.window_runs import Mode, Window, demo_windows, generate, likeness

STEPS = 20


def modes() -> dict[str, Mode]:
    """Each shortcut alone, then the presets."""
    found = {
        "ddim 10 steps": Mode(10),
        "ddim 8 steps": Mode(8),
        "dpm 10 steps": Mode(10, FastSampling(solver=Solver.DPM)),
        "dpm 8 steps": Mode(8, FastSampling(solver=Solver.DPM)),
        "unipc 10 steps": Mode(10, FastSampling(solver=Solver.UNIPC)),
        "unipc 8 steps": Mode(8, FastSampling(solver=Solver.UNIPC)),
        "reuse within 0.1": Mode(STEPS, FastSampling(feature_cache_threshold=0.1)),
        "reuse within 0.2": Mode(STEPS, FastSampling(feature_cache_threshold=0.2)),
        "guide every 2": Mode(STEPS, FastSampling(guidance_interval=2)),
        "guide every 4": Mode(STEPS, FastSampling(guidance_interval=4)),
    }
    for name, preset in PRESETS.items():
        if "fast_sampling" in preset:
            found[name] = Mode(preset["num_inference_steps"], preset["fast_sampling"])
    found["fp8"] = Mode(STEPS, fp8=True)
    found["fp8 fastest"] = dataclasses.replace(found["fastest"], fp8=True)
    return found


def float8_model() -> LatentSync:
    """The tiny model with every linear layer of its transformers in FP8."""
    store = WeightsStore()
    model = load_latentsync(
        store.entry("tiny"), store.verified_files("tiny"), "", torch.device("cpu"), torch.float32
    )
    to_float8(model.unet, min_flop_per_byte=0)
    return model


def measure(
    pipeline: LipSyncPipeline, windows: list[Window], chosen: Mapping[str, Mode]
) -> dict[str, dict[str, float]]:
    """By mode: psnr_db, ssim (worst window), speed over exact (median of windows; not of FP8)."""
    model, float8 = pipeline.model, float8_model()
    guidance = model.info.guidance_scale
    generated = model.keep_mask < 0.5
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in chosen}
    for window in windows:
        exact, exact_s = generate(model, window, Mode(STEPS), guidance)
        for name, mode in chosen.items():
            made, took = generate(float8 if mode.fp8 else model, window, mode, guidance)
            found[name].append((*likeness(made, exact, generated), exact_s / took))
    return {
        name: {
            "psnr_db": round(min(row[0] for row in rows), 1),
            "ssim": round(min(row[1] for row in rows), 4),
            **({} if chosen[name].fp8 else {"speed": round(statistics.median(row[2] for row in rows), 2)}),
        }
        for name, rows in found.items()
    }


def network_shares(chosen: Mapping[str, Mode]) -> dict[str, float]:
    """By mode, its share of exact's TFLOP in LatentSync 1.6's U-Net."""
    unet, _ = flops.networks()
    exact = flops.denoising(unet, 512, STEPS, 1.5)
    return {
        name: round(flops.denoising(unet, 512, mode.steps, 1.5, mode.fast_sampling) / exact, 3)
        for name, mode in chosen.items()
        if not mode.fp8
    }


def plot(rows: Mapping[str, Mapping[str, float]], path: Path) -> None:
    figure, (left, right) = new_plot(2, figsize=(9, 4.5), sharey=True)
    names = list(rows)[::-1]
    colours = ["C3" if name in PRESETS else "C0" for name in names]
    left.barh(names, [rows[name].get("speed", 0) for name in names], color=colours)
    left.set_xlabel("denoising, times exact's speed\n(tiny model, CPU)")
    right.barh(names, [rows[name]["ssim"] for name in names], color=colours)
    right.set_xlim(0.97, 1)
    right.axvline(0.98, color="0.5", linewidth=1)
    right.set_xlabel("SSIM to exact\n(generated pixels, worst window)")
    save_plot(figure, path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--no-network", action="store_true", help="do not count the large network (minutes)")
    parser.add_argument("--out", type=Path, default=BENCHMARKS)


def run(arguments: argparse.Namespace) -> None:
    pipeline = LipSyncPipeline.from_pretrained("tiny", device="cpu")
    chosen = modes()
    rows = measure(pipeline, demo_windows(pipeline, arguments.windows), chosen)
    if not arguments.no_network:
        for name, share in network_shares(chosen).items():
            rows[name]["network"] = share
    for name, row in rows.items():
        print(f"{name:16}", row)
    write_report({"exact_steps": STEPS, "modes": rows}, arguments.out / "fast.json")
    plot(rows, arguments.out / "fast.png")
