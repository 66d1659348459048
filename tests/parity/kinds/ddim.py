"""Kind `ddim`: the whole sampling loop with guidance, from stored latents; every step is compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lipsync_engine.models.latentsync.config import RunConfig
from lipsync_engine.models.latentsync.sampling import DenoiseInputs, sampling_steps
from tests.parity.harness import Measure, difference, load_kind, tensors


def check(pack: Path, spec: Mapping[str, Any]) -> list[Measure]:
    unet, io = load_kind("unet").load(pack, spec["unet"]), tensors(pack, spec["io"])
    inputs = DenoiseInputs(io["mask"], io["masked_latents"], io["ref_latents"], io["audio"])
    steps = list(
        sampling_steps(
            unet,
            RunConfig(),
            inputs,
            noise=io["noise_frame"],
            num_inference_steps=int(io["num_inference_steps"]),
            guidance_scale=float(io["guidance_scale"]),
        )
    )
    limit = spec["limits"]["final_latents_max"]
    exact = {
        "timesteps": torch.tensor([step.timestep for step in steps]),
        "init_latents": io["noise_frame"].expand_as(io["masked_latents"]),
    }
    measures = [Measure(name, difference(ours, io[name]).max(), 0.0) for name, ours in exact.items()]
    # The pack's limit is for the final latents. Earlier values are larger, so their differences are relative.
    intermediate = {
        "guided_eps_per_step": torch.stack([step.noise_pred for step in steps]),
        "latents_per_step": torch.stack([step.latents for step in steps]),
    }
    for name, ours in intermediate.items():
        size = max(1.0, float(io[name].abs().max()))
        measures.append(Measure(f"{name} relative", difference(ours, io[name]).max() / size, limit))
    final = difference(steps[-1].latents, io["final_latents"]).max()
    return [*measures, Measure("final_latents", final, limit)]
