"""The sampling loop: from noise to the clean latents of a window (parity pack, section 3).

The functions take and return tensors. They do not know images, audio files, or how the denoiser is run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from lipsync_engine.models.latentsync.config import RunConfig, SchedulerConfig
from lipsync_engine.models.latentsync.unet import AudioContext, Prediction
from lipsync_engine.params import EXACT_SAMPLING, FastSampling, Solver


class Denoiser(Protocol):
    """`LatentSyncUNet`, or a faster implementation with the same results."""

    def precompute_audio_kv(self, audio: Tensor, num_unconditional: int = 0) -> AudioContext:
        """See `LatentSyncUNet.precompute_audio_kv`."""

    def predict(
        self,
        sample: Tensor,
        timestep: Tensor,
        audio_context: AudioContext,
        cached_features: Tensor | None = None,
    ) -> Prediction:
        """See `LatentSyncUNet.predict`."""


@dataclass(frozen=True, slots=True)
class DenoiseInputs:
    """Conditions of one window; latents are (1, C, F, h, w).

    Attributes:
        mask: (1, 1, F, h, w), 1 = keep.
        masked_latents, reference_latents: of the masked and of the whole faces.
        audio: (F, T, D).
    """

    mask: Tensor
    masked_latents: Tensor
    reference_latents: Tensor
    audio: Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the sampling loop.

    Attributes:
        timestep: where the step starts.
        noise_pred: predicted noise after guidance, (1, C, F, h, w).
        latents: result of the step, (1, C, F, h, w).
    """

    timestep: int
    noise_pred: Tensor
    latents: Tensor


@torch.inference_mode()
def sampling_steps(
    denoiser: Denoiser,
    run_config: RunConfig,
    inputs: DenoiseInputs,
    *,
    noise: Tensor,
    num_inference_steps: int,
    guidance_scale: float,
    sequential_cfg: bool = False,
    fast_sampling: FastSampling = EXACT_SAMPLING,
) -> Iterator[Step]:
    """Denoise a window, one step at a time.

    With `guidance_scale` above 1, classifier-free guidance adds an unconditional pass without audio (parity
    pack, section 3). Nothing is read back from the device, so the device never waits for the host.

    Args:
        noise: (1, C, 1, h, w), the same for every frame.
        sequential_cfg: run the unconditional and the conditional pass one after the other, which halves the
            activations in memory. Otherwise they are one batch.
        shortcuts: solver, feature cache and guidance interval.
    """
    # 1. Conditions that are the same at every step.
    condition = torch.cat([inputs.mask, inputs.masked_latents, inputs.reference_latents], dim=1)
    frames = condition.shape[2]
    conditional = [denoiser.precompute_audio_kv(inputs.audio)]
    if sequential_cfg:
        guided_passes = [
            denoiser.precompute_audio_kv(inputs.audio[:0], num_unconditional=frames),
            *conditional,
        ]
    else:
        guided_passes = [denoiser.precompute_audio_kv(inputs.audio, num_unconditional=frames)]

    # 2. The steps. The scheduler keeps its timesteps on the host: reading them from a GPU would block.
    scheduler = build_scheduler(run_config.scheduler, fast_sampling.solver)
    scheduler.set_timesteps(num_inference_steps)
    device_timesteps = to_device_async(scheduler.timesteps, noise.device)
    latents: Tensor = noise.expand(-1, -1, frames, -1, -1) * scheduler.init_noise_sigma
    if fast_sampling.solver is Solver.UNIPC and not scheduler.config.thresholding:
        scheduler = LinearScheduler(scheduler, latents)
    cached_features: Tensor | None = None
    guidance: Tensor | float = 0.0
    schedule = fast_sampling.schedule_steps(_signal_levels(scheduler), use_guidance=guidance_scale > 1.0)
    for (is_guided, is_full), timestep, device_timestep in zip(
        schedule, scheduler.timesteps, device_timesteps, strict=True
    ):
        sample = torch.cat([latents, condition], dim=1)
        # The last item is the conditional one; a step that reuses features is never guided.
        step_cache = None if is_full or cached_features is None else cached_features[-1:]
        passes = guided_passes if is_guided else conditional
        noise_pred, features = _predict_noise(denoiser, sample, device_timestep, passes, step_cache)
        cached_features = features if is_full else cached_features
        if is_guided:
            unconditional_pred, noise_pred = noise_pred.chunk(2)
            guidance = (guidance_scale - 1.0) * (noise_pred - unconditional_pred)
        noise_pred = noise_pred + guidance
        latents = scheduler.step(noise_pred, timestep, latents, return_dict=False)[0]
        yield Step(int(timestep), noise_pred, latents)


def to_device_async(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to `device`; on CUDA from pinned memory and without blocking the host."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class LinearScheduler:
    """A scheduler whose updates are precomputed linear combinations of the network's predictions.

    diffusers' UniPC copies scalars to the device and solves linear systems there, and the host waits for both
    at every step. Its update of the latents is linear. Running the scheduler once on unit vectors therefore
    gives the weights of every step.

    Args:
        scheduler: with timesteps set; it is stepped through by the constructor.
        latents: initial latents.
    """

    def __init__(self, scheduler: Any, latents: Tensor) -> None:
        self.timesteps, self.alphas_cumprod = scheduler.timesteps, scheduler.alphas_cumprod
        self._terms = [latents.float()]
        units = torch.eye(len(self.timesteps) + 1, dtype=torch.float64)
        self._weights, row = [], units[:1]
        for unit, timestep in zip(units[1:], self.timesteps, strict=True):
            (row,) = scheduler.step(unit[None], timestep, row, return_dict=False)
            self._weights.append(row[0].tolist())

    def step(self, noise_pred: Tensor, _: Tensor, latents: Tensor, *, return_dict: bool) -> tuple[Tensor]:
        """Compute the same as the scheduler's own `step`, up to rounding."""
        weights = self._weights[len(self._terms) - 1]
        self._terms.append(noise_pred.float())
        total = torch.zeros_like(self._terms[0])
        for weight, term in zip(weights, self._terms, strict=False):
            total.add_(term, alpha=weight)
        return (total.to(latents.dtype),)


def _predict_noise(
    denoiser: Denoiser,
    sample: Tensor,
    timestep: Tensor,
    passes: Sequence[AudioContext],
    cached_features: Tensor | None,
) -> Prediction:
    """Run the denoiser once per audio context and concatenate the results on the batch axis."""
    caches = [None] * len(passes) if cached_features is None else cached_features.chunk(len(passes))
    predictions = [
        denoiser.predict(sample, timestep, audio_context, cache)
        for audio_context, cache in zip(passes, caches, strict=True)
    ]
    if len(predictions) == 1:
        return predictions[0]
    noises, features = zip(*predictions, strict=True)
    return torch.cat(noises), torch.cat(features)


def signal_levels(config: SchedulerConfig, solver: Solver, steps: int) -> list[float]:
    """Return the signal level of the latents at the start of each step: 0 is noise, 1 is clean."""
    scheduler = build_scheduler(config, solver)
    scheduler.set_timesteps(steps)
    return _signal_levels(scheduler)


def _signal_levels(scheduler: Any) -> list[float]:
    levels: list[float] = scheduler.alphas_cumprod[scheduler.timesteps].sqrt().tolist()
    return levels


def build_scheduler(config: SchedulerConfig, solver: Solver) -> Any:
    """Build the diffusers scheduler of a solver; eta is 0, and the last step ends as the model's own does."""
    common = dataclasses.asdict(config)
    if solver is Solver.DDIM:
        return DDIMScheduler(**common)
    ends_clean = common.pop("set_alpha_to_one")
    common |= {
        "solver_order": 2,
        "final_sigmas_type": "zero" if ends_clean else "sigma_min",
        "thresholding": common.pop("clip_sample"),
    }
    if solver is Solver.DPM:
        return DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++", lower_order_final=True)
    return UniPCMultistepScheduler(**common, solver_type="bh2", lower_order_final=True)
