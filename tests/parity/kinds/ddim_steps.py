"""Kind `ddim_steps`: the sampling loop with the reference's noise predictions instead of a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipsync_engine.models.latentsync.config import RunConfig
from lipsync_engine.models.latentsync.sampling import DenoiseInputs, sampling_steps
from lipsync_engine.models.latentsync.unet import AudioContext, Prediction
from tests.parity.harness import Measure, difference, tensors


class StoredDenoiser:
    """Returns the stored prediction of each step; guidance is already applied to them."""

    def __init__(self, noise_preds: Tensor) -> None:
        self._noise_preds = iter(noise_preds)

    def precompute_audio_kv(self, audio: Tensor, num_unconditional: int = 0) -> AudioContext:
        return ()

    def predict(
        self,
        sample: Tensor,
        timestep: Tensor,
        audio_context: AudioContext,
        cached_features: Tensor | None = None,
    ) -> Prediction:
        return next(self._noise_preds), sample


def check(pack: Path, spec: Mapping[str, Any]) -> list[Measure]:
    io, limit = tensors(pack, spec["io"]), spec["limits"]["final_latents_max"]
    latents = io["init_latents"]
    inputs = DenoiseInputs(latents[:, :1], latents, latents, torch.empty(0))
    steps = list(
        sampling_steps(
            StoredDenoiser(io["guided_eps_per_step"]),
            RunConfig(),
            inputs,
            noise=io["noise_frame"],
            num_inference_steps=len(io["timesteps"]),
            guidance_scale=1.0,
        )
    )
    latents_per_step = torch.stack([step.latents for step in steps])
    size = max(1.0, float(io["latents_per_step"].abs().max()))
    worst = difference(latents_per_step, io["latents_per_step"]).max() / size
    timesteps = torch.tensor([step.timestep for step in steps])
    initial = io["noise_frame"].expand_as(latents)
    return [
        Measure("timesteps", difference(timesteps, io["timesteps"]).max(), 0.0),
        Measure("init_latents", difference(initial, latents).max(), 0.0),
        Measure("latents_per_step relative", worst, limit),
        Measure("final_latents", difference(steps[-1].latents, io["final_latents"]).max(), limit),
    ]
