"""Counts what LatentSync's networks cost to compute, at full size, without weights or a GPU.

Networks on the meta device carry shapes and no numbers: every operation of a job is counted for nothing.
A multiply-add is 2 FLOP. Convolutions, linear layers and attention count, norms and activations do not.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode

from lipsync_engine.models.latentsync.config import RunConfig, UNetConfig
from lipsync_engine.models.latentsync.sampling import DenoiseInputs, sampling_steps, signal_levels
from lipsync_engine.models.latentsync.unet import LatentSyncUNet
from lipsync_engine.params import EXACT_SAMPLING, FastSampling

FRAMES = RunConfig().window_frames

TOKENS = 50

TERA = 1e12

VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
}
"""The dimensions of sd-vae-ft-mse."""


def networks(device: str = "meta") -> tuple[LatentSyncUNet, AutoencoderKL]:
    """LatentSync 1.5's and 1.6's U-Net and their VAE; on a real device with random weights."""
    with torch.device(device):
        return LatentSyncUNet(UNetConfig()).eval(), AutoencoderKL(**VAE).eval()


def flop(work: Callable[[], Any]) -> float:
    """TFLOP of what `work` does."""
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        work()
    return counter.get_total_flops() / TERA


def one_evaluation(unet: LatentSyncUNet, resolution: int) -> float:
    """TFLOP per frame of the plain network, without guidance, over a window."""
    side = resolution // 8
    sample = torch.empty(1, 13, FRAMES, side, side, device="meta")
    audio = torch.empty(FRAMES, TOKENS, unet.config.cross_attention_dim, device="meta")
    return flop(lambda: unet(sample, torch.empty((), device="meta"), audio)) / FRAMES


def denoising(
    unet: LatentSyncUNet,
    resolution: int,
    steps: int,
    guidance_scale: float,
    fast_sampling: FastSampling = EXACT_SAMPLING,
) -> float:
    """TFLOP per frame of a window's whole sampling loop: each kind of step counted once, as it runs."""
    guided = guidance_scale > 1.0
    levels = signal_levels(RunConfig().scheduler, fast_sampling.solver, steps)
    kinds = Counter(fast_sampling.schedule_steps(levels, use_guidance=guided))
    return sum(count * _step(unet, resolution, *kind) for kind, count in kinds.items())


@functools.cache
def _step(unet: LatentSyncUNet, resolution: int, guided: bool, whole: bool) -> float:
    """TFLOP per frame of one step; the finest layer alone is what comes between a first and a last step."""
    if whole:
        return _loop(unet, resolution, 1, guided, EXACT_SAMPLING)
    three = _loop(unet, resolution, 3, guided, FastSampling(feature_cache_threshold=1.0))
    return three - 2 * _step(unet, resolution, guided, True)


def _loop(
    unet: LatentSyncUNet, resolution: int, steps: int, guided: bool, fast_sampling: FastSampling
) -> float:
    side = resolution // 8
    latents = torch.empty(1, 4, FRAMES, side, side, device="meta")
    inputs = DenoiseInputs(
        mask=torch.empty(1, 1, FRAMES, side, side, device="meta"),
        masked_latents=latents,
        reference_latents=latents,
        audio=torch.empty(FRAMES, TOKENS, unet.config.cross_attention_dim, device="meta"),
    )

    def work() -> None:
        for _ in sampling_steps(
            unet,
            RunConfig(),
            inputs,
            noise=latents[:, :, :1],
            num_inference_steps=steps,
            guidance_scale=2.0 if guided else 1.0,
            fast_sampling=fast_sampling,
        ):
            pass

    return flop(work) / FRAMES


def vae_encode(vae: AutoencoderKL, resolution: int) -> float:
    """TFLOP of one picture."""
    picture = torch.empty(1, 3, resolution, resolution, device="meta")
    return flop(lambda: vae.encode(picture))


def vae_decode(vae: AutoencoderKL, resolution: int) -> float:
    """TFLOP of one picture."""
    side = resolution // 8
    latents = torch.empty(1, 4, side, side, device="meta")
    return flop(lambda: vae.decode(latents))
