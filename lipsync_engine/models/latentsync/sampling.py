"""The sampling loop: from noise to a window's clean latents, step by step (parity pack section 3).

Tensors in, tensors out; it does not know pictures, sound, or how the network is run.
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
from lipsync_engine.models.latentsync.unet import Heard
from lipsync_engine.params import EXACT, Shortcuts, Solver


class Network(Protocol):
    """`LatentSyncUNet`, or what says the same faster."""

    def listen(self, audio: Tensor, silent: int = 0) -> Heard:
        """See `LatentSyncUNet`."""

    def predict(
        self, sample: Tensor, timestep: Tensor, heard: Heard, deep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `LatentSyncUNet`."""


@dataclass(frozen=True, slots=True)
class DenoiseInputs:
    """What a window is generated from; latents are (1, C, F, h, w).

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
        timestep: of the noise level that it starts from.
        predicted: what the network said, after guidance; (1, C, F, h, w).
        latents: the result, (1, C, F, h, w).
    """

    timestep: int
    predicted: Tensor
    latents: Tensor


@torch.inference_mode()
def sampling_steps(
    unet: Network,
    run: RunConfig,
    inputs: DenoiseInputs,
    *,
    noise: Tensor,
    num_inference_steps: int,
    guidance_scale: float,
    in_halves: bool = False,
    shortcuts: Shortcuts = EXACT,
) -> Iterator[Step]:
    """From one noise (1, C, 1, h, w), the same for every frame, step by step to clean latents.

    Guidance above 1 lets the network see the same picture without sound, then with it (parity pack section
    3), in one run until memory forces two (`in_halves`). Nothing is read back from the device, so that it
    never waits for the host.
    """
    # 1. What does not change over the steps.
    fixed = torch.cat([inputs.mask, inputs.masked_latents, inputs.reference_latents], dim=1)
    frames = fixed.shape[2]
    heard = [unet.listen(inputs.audio)]
    both = [unet.listen(inputs.audio, silent=frames)]
    if in_halves:
        both = [unet.listen(inputs.audio[:0], silent=frames), *heard]

    # 2. The steps. The scheduler counts on the host: reading its place back from a GPU would wait each time.
    scheduler = _scheduler(run.scheduler, shortcuts.solver)
    scheduler.set_timesteps(num_inference_steps)
    timesteps = sent(scheduler.timesteps, noise.device)
    latents: Tensor = noise.expand(-1, -1, frames, -1, -1) * scheduler.init_noise_sigma
    if shortcuts.solver is Solver.UNIPC and not scheduler.config.thresholding:
        scheduler = _Sums(scheduler, latents)
    deep: Tensor | None = None
    guidance: Tensor | float = 0.0
    schedule = shortcuts.schedule(_signal_levels(scheduler), guided=guidance_scale > 1.0)
    for (guided, whole), timestep, on_device in zip(schedule, scheduler.timesteps, timesteps, strict=True):
        sample = torch.cat([latents, fixed], dim=1)
        reused = None if whole or deep is None else deep[-1:]  # with sound
        predicted, said = _predict(unet, sample, on_device, both if guided else heard, reused)
        deep = said if whole else deep
        if guided:
            silent, predicted = predicted.chunk(2)
            guidance = (guidance_scale - 1.0) * (predicted - silent)
        predicted = predicted + guidance
        latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
        yield Step(int(timestep), predicted, latents)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A host's tensor on `device`; a GPU takes it when its turn comes, and the host goes on."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class _Sums:
    """A scheduler's steps as sums of what the network has said, weighted on the host.

    diffusers' UniPC sends numbers to the device and solves equations there, and waits for both at each step.
    What it does to latents is linear, so its own steps, taken with unit vectors, give the weights.
    """

    def __init__(self, scheduler: Any, latents: Tensor) -> None:
        self.timesteps, self.alphas_cumprod = scheduler.timesteps, scheduler.alphas_cumprod
        self._known = [latents.float()]
        units = torch.eye(len(self.timesteps) + 1, dtype=torch.float64)
        self._weights, row = [], units[:1]
        for said, timestep in zip(units[1:], self.timesteps, strict=True):
            (row,) = scheduler.step(said[None], timestep, row, return_dict=False)
            self._weights.append(row[0].tolist())

    def step(self, predicted: Tensor, _: Tensor, latents: Tensor, *, return_dict: bool) -> tuple[Tensor]:
        """The same as diffusers', but for rounding."""
        weights = self._weights[len(self._known) - 1]
        self._known.append(predicted.float())
        total = torch.zeros_like(self._known[0])
        for weight, part in zip(weights, self._known, strict=False):
            total.add_(part, alpha=weight)
        return (total.to(latents.dtype),)


def _predict(
    unet: Network, sample: Tensor, timestep: Tensor, runs: Sequence[Heard], deep: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One run of the network for each of `runs`, results one after the other on the batch axis."""
    kept = [None] * len(runs) if deep is None else deep.chunk(len(runs))
    said = [unet.predict(sample, timestep, heard, before) for heard, before in zip(runs, kept, strict=True)]
    if len(said) == 1:
        return said[0]
    return torch.cat([predicted for predicted, _ in said]), torch.cat([deep for _, deep in said])


def signal_levels(config: SchedulerConfig, solver: Solver, steps: int) -> list[float]:
    """Of each step: the share of signal in the latents that it starts from, 0 is noise, 1 is clean."""
    scheduler = _scheduler(config, solver)
    scheduler.set_timesteps(steps)
    return _signal_levels(scheduler)


def _signal_levels(scheduler: Any) -> list[float]:
    levels: list[float] = scheduler.alphas_cumprod[scheduler.timesteps].sqrt().tolist()
    return levels


def _scheduler(config: SchedulerConfig, solver: Solver) -> Any:
    """diffusers' scheduler; eta is 0 for all, the last step ends where the model's own would."""
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
