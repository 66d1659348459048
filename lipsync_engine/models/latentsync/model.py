"""LatentSync put together: U-Net, VAE, Whisper encoder and scheduler behind the `LipSyncModel` protocol.

Numbers: parity pack sections 3 and 4. It does not know files of video or sound, windows of a job, or how a
    face gets back into its frame.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from whisper.model import AudioEncoder

from lipsync_engine.errors import ErrorCode, WeightsError
from lipsync_engine.models import ModelInfo
from lipsync_engine.models.latentsync import keys
from lipsync_engine.models.latentsync.config import UNetConfig
from lipsync_engine.models.latentsync.mask import fixed_mask, latent_mask
from lipsync_engine.models.latentsync.unet import LatentSyncUNet, positional_table
from lipsync_engine.weights import ModelEntry, load_strict, read_checkpoint

REFERENCE_SCHEDULER: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
"""DDIM as LatentSync runs it (parity pack section 3)."""

REFERENCE_SCALING_FACTOR = 0.18215


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Settings that belong to a set of weights; the defaults are LatentSync 1.5's and 1.6's."""

    window_frames: int = 16
    audio_context: tuple[int, int] = (2, 2)
    num_inference_steps: int = 20
    guidance_scale: float = 1.5
    vae_scaling_factor: float = REFERENCE_SCALING_FACTOR
    scheduler: Mapping[str, Any] = field(default_factory=lambda: dict(REFERENCE_SCHEDULER))


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


@torch.inference_mode()
def denoise_latents(
    unet: LatentSyncUNet,
    run: RunConfig,
    inputs: DenoiseInputs,
    *,
    noise: Tensor,
    num_inference_steps: int,
    guidance_scale: float,
) -> Tensor:
    """The sampling loop: from one noise (1, C, 1, h, w), the same for every frame, to clean latents (1, C, F,
    h, w).

    Guidance above 1 doubles the batch: first the same picture without sound, then with it (parity pack
        section 3).
    """
    # 1. What does not change over the steps.
    fixed = torch.cat([inputs.mask, inputs.masked_latents, inputs.reference_latents], dim=1)
    audio = inputs.audio
    guided = guidance_scale > 1.0
    if guided:
        fixed = fixed.expand(2, -1, -1, -1, -1)
        audio = torch.cat([torch.zeros_like(audio), audio])

    # 2. The steps.
    scheduler = DDIMScheduler(**run.scheduler)
    scheduler.set_timesteps(num_inference_steps, device=noise.device)
    latents: Tensor = noise.expand(-1, -1, fixed.shape[2], -1, -1) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        sample = torch.cat([latents.expand(len(fixed), -1, -1, -1, -1), fixed], dim=1)
        predicted = unet(sample, timestep, audio)
        if guided:
            silent, heard = predicted.chunk(2)
            predicted = silent + guidance_scale * (heard - silent)
        latents = scheduler.step(predicted, timestep, latents, eta=0.0).prev_sample
    return latents


class LatentSync:
    """See `LipSyncModel`.

    Args:
        info: name, resolution, defaults.
        unet, vae, audio_encoder: loaded, on one device, in one dtype, in eval mode.
        run: scheduler and VAE settings.
    """

    def __init__(
        self,
        info: ModelInfo,
        unet: LatentSyncUNet,
        vae: AutoencoderKL,
        audio_encoder: AudioEncoder,
        run: RunConfig,
    ) -> None:
        self.info = info
        self.audio_encoder = audio_encoder
        self.device, self.dtype = unet.conv_in.weight.device, unet.conv_in.weight.dtype
        mask = fixed_mask(info.resolution)
        self.keep_mask = mask.astype(np.float32)
        self._unet, self._vae, self._run = unet, vae, run
        self._pixel_mask = torch.from_numpy(mask)
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self._latent_mask = torch.from_numpy(latent_mask(mask, factor)).to(self.device, self.dtype)

    def initial_noise(self, seed: int) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        shape = (1, self._unet.config.out_channels, 1, *self._latent_mask.shape)
        return torch.randn(shape, generator=generator, device=self.device, dtype=self.dtype)

    @torch.inference_mode()
    def denoise(
        self,
        faces: Tensor,
        audio: Tensor,
        *,
        noise: Tensor,
        num_inference_steps: int,
        guidance_scale: float,
        posterior_noise: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        masked = (faces.double() * self._pixel_mask).to(
            faces.dtype
        )  # the product in float64, as the reference
        noise_masked, noise_reference = posterior_noise or (None, None)
        inputs = DenoiseInputs(
            mask=self._latent_mask.expand(1, 1, len(faces), -1, -1),
            masked_latents=self.encode(masked, noise_masked),
            reference_latents=self.encode(faces, noise_reference),
            audio=audio.to(self.device, self.dtype),
        )
        latents = denoise_latents(
            self._unet,
            self._run,
            inputs,
            noise=noise,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
        )
        return latents[0].transpose(0, 1)

    @torch.inference_mode()
    def encode(self, faces: Tensor, noise: Tensor | None) -> Tensor:
        """Scaled latents (1, C, F, h, w) of faces (F, 3, R, R): the posterior's mean, or a sample."""
        posterior = self._vae.encode(faces.to(self.device, self.dtype)).latent_dist
        sample: Tensor = posterior.mean
        if noise is not None:
            sample = sample + posterior.std * noise.to(sample)
        return (sample * self._run.vae_scaling_factor).transpose(0, 1)[None]

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        decoded: Tensor = self._vae.decode(latents / self._run.vae_scaling_factor).sample
        return decoded.float()


def load(
    entry: ModelEntry, files: Mapping[str, Path], sha256: str, device: torch.device, dtype: torch.dtype
) -> LatentSync:
    """Build on the meta device, assign verified weights strictly.

    Roles: `unet`, `vae`, `vae_config`, `whisper`; optional `unet_config`, `whisper_config`, `model_config`,
        without which the published architecture and settings are taken.
    """
    run = _run_config(files["model_config"]) if "model_config" in files else RunConfig()
    unet_fields = _json(files["unet_config"]) if "unet_config" in files else None
    unet_config = UNetConfig.from_published(unet_fields) if unet_fields is not None else UNetConfig()

    with torch.device("meta"):
        unet = LatentSyncUNet(unet_config)
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(files["vae_config"]))
    tables = {
        name: positional_table(*table.shape[1:])
        for name, table in unet.state_dict().items()
        if name.endswith("pos_encoder.pe")
    }
    load_strict(
        unet, _cast(keys.unet(read_checkpoint(files["unet"])), dtype), recomputable=_cast(tables, dtype)
    )
    load_strict(vae, _cast(keys.vae(read_checkpoint(files["vae"])), dtype))

    whisper = read_checkpoint(files["whisper"])
    dims = keys.whisper_dims(whisper, _json(files["whisper_config"]) if "whisper_config" in files else None)
    if dims.n_audio_state != unet_config.cross_attention_dim:
        raise WeightsError(
            ErrorCode.WEIGHTS_ARCHITECTURE,
            f"The U-Net hears tokens of width {unet_config.cross_attention_dim}, but the Whisper encoder "
            f"gives {dims.n_audio_state}: use whisper-tiny (384) or whisper-small (768), whichever the "
            "U-Net was trained with.",
        )
    with torch.device("meta"):
        encoder = AudioEncoder(
            dims.n_mels, dims.n_audio_ctx, dims.n_audio_state, dims.n_audio_head, dims.n_audio_layer
        )
    # Cheap, and hidden states lose accuracy in half precision: the encoder stays in float32.
    load_strict(encoder, _cast(keys.whisper_encoder(whisper), torch.float32))

    info = ModelInfo(
        name=entry.name,
        family=entry.family,
        resolution=entry.resolution,
        window_frames=run.window_frames,
        audio_context=run.audio_context,
        num_inference_steps=run.num_inference_steps,
        guidance_scale=run.guidance_scale,
        weights_sha256=sha256,
    )
    for module in (unet, vae, encoder):
        module.to(device).eval().requires_grad_(False)
    return LatentSync(info, unet, vae, encoder, run)


def _cast(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def _run_config(path: Path) -> RunConfig:
    try:
        return TypeAdapter(RunConfig).validate_python(_json(path))
    except ValidationError as error:
        raise WeightsError(
            ErrorCode.WEIGHTS_ARCHITECTURE, f"{path.name} is not understood: {error.errors()[0]['msg']}."
        ) from error


def _json(path: Path) -> dict[str, Any]:
    fields = json.loads(path.read_text())
    if not isinstance(fields, dict):
        raise WeightsError(
            ErrorCode.WEIGHTS_ARCHITECTURE,
            f"{path.name} is not a JSON object: import the model's files again.",
        )
    return fields
