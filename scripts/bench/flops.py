"""What LatentSync costs to compute, counted on our own networks at full size, without weights or a GPU.

    python -m scripts.bench flops            # prints a table, writes benchmarks/flops.json

Networks on the meta device carry shapes and no numbers: every operation of a job is counted for nothing.
A multiply-add is 2 FLOP; convolutions, linear layers and attention count, norms and activations do not.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lipsync_engine.models.latentsync.config import RunConfig
from lipsync_engine.params import EXACT_SAMPLING, PRESETS
from scripts.bench.common import BENCHMARKS, write_report
from tests.support.flops import FRAMES, denoising, networks, one_evaluation, vae_decode, vae_encode


def table(overlap: int) -> dict[str, Any]:
    """By resolution and preset, TFLOP per output frame with windows that share `overlap` frames."""
    unet, vae = networks()
    run = RunConfig()
    again = FRAMES / (FRAMES - overlap)  # how often a frame is seen by a window
    found: dict[str, Any] = {"unit": "TFLOP per output frame", "window_overlap": overlap}
    for resolution in (256, 512):
        encode, decode = vae_encode(vae, resolution), vae_decode(vae, resolution)
        found[str(resolution)] = rows = {
            "one evaluation": one_evaluation(unet, resolution),
            "encode": 2 * again * encode,
            "decode": decode,
        }
        for name in ("default", "fast", "fastest"):
            preset = PRESETS[name]
            steps = preset.get("num_inference_steps", run.num_inference_steps)
            fast_sampling = preset.get("fast_sampling", EXACT_SAMPLING)
            unet_flop = again * denoising(unet, resolution, steps, run.guidance_scale, fast_sampling)
            rows[name] = unet_flop + 2 * again * encode + decode
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overlap", type=int, default=4)
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "flops.json")


def run(arguments: argparse.Namespace) -> None:
    found = table(arguments.overlap)
    for resolution in ("256", "512"):
        print(resolution, {name: round(value, 3) for name, value in found[resolution].items()})
    write_report(found, arguments.out)
