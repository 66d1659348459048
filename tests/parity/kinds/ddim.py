"""Kind `ddim`: the whole denoising loop with guidance, from stored latents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import Measure, difference, load_kind, tensors

from lipsync_engine.models.latentsync.model import DenoiseInputs, RunConfig, denoise_latents


def check(pack: Path, spec: Mapping[str, Any]) -> list[Measure]:
    unet, io = load_kind("unet").load(pack, spec["unet"]), tensors(pack, spec["io"])
    inputs = DenoiseInputs(io["mask"], io["masked_latents"], io["ref_latents"], io["audio"])
    final = denoise_latents(
        unet,
        RunConfig(),
        inputs,
        noise=io["noise_frame"],
        num_inference_steps=int(io["num_inference_steps"]),
        guidance_scale=float(io["guidance_scale"]),
    )
    limit = spec["limits"]["final_latents_max"]
    return [Measure("final latents", difference(final, io["final_latents"]).max(), limit)]
