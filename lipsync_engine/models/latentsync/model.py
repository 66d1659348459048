"""LatentSync put together: U-Net, VAE, Whisper encoder and scheduler behind the `LipSyncModel` protocol.

Numbers: parity pack sections 3 and 4. It does not know files of video or sound, windows of a job, or how a
face gets back into its frame.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor
from whisper.model import AudioEncoder, ModelDimensions

from lipsync_engine.errors import ErrorCode, WeightsError
from lipsync_engine.models import ModelInfo
from lipsync_engine.models.latentsync import keys
from lipsync_engine.models.latentsync.config import RunConfig, UNetConfig
from lipsync_engine.models.latentsync.mask import fixed_mask, latent_mask
from lipsync_engine.models.latentsync.unet import LatentSyncUNet, positional_table
from lipsync_engine.weights import ModelEntry, load_strict, read_checkpoint

VAE_BATCH = 4
"""Pictures that the VAE takes at once: it never mixes them, and at 512 pixels 16 need gigabytes."""

log = logging.getLogger("lipsync.model")

T = TypeVar("T")


class Thrift(IntEnum):
    """How little device memory is used at once; each step costs speed, the last one faint traces of tiles."""

    NONE = 0
    SINGLE = 1
    """The VAE takes one picture at a time, the U-Net the two halves of guidance one after the other."""
    TILED = 2
    """The VAE also takes a picture in overlapping quarters."""


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
    unet: LatentSyncUNet,
    run: RunConfig,
    inputs: DenoiseInputs,
    *,
    noise: Tensor,
    num_inference_steps: int,
    guidance_scale: float,
    in_halves: bool = False,
) -> Iterator[Step]:
    """From one noise (1, C, 1, h, w), the same for every frame, step by step to clean latents.

    Guidance above 1 doubles the batch: first the same picture without sound, then with it (parity pack
    section 3); `in_halves` runs the network twice instead.
    """
    # 1. What does not change over the steps.
    fixed = torch.cat([inputs.mask, inputs.masked_latents, inputs.reference_latents], dim=1)
    audio = inputs.audio
    guided = guidance_scale > 1.0
    if guided:
        fixed = fixed.expand(2, -1, -1, -1, -1)
        audio = torch.cat([torch.zeros_like(audio), audio])

    # 2. The steps. The scheduler counts on the host: reading its place back from a GPU would wait each time.
    scheduler = DDIMScheduler(**dataclasses.asdict(run.scheduler))
    scheduler.set_timesteps(num_inference_steps)
    latents: Tensor = noise.expand(-1, -1, fixed.shape[2], -1, -1) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        sample = torch.cat([latents.expand(len(fixed), -1, -1, -1, -1), fixed], dim=1)
        parts = 2 if guided and in_halves else 1
        predicted = torch.cat(
            [
                unet(some, timestep.to(noise.device), heard)
                for some, heard in zip(sample.chunk(parts), audio.chunk(parts), strict=True)
            ]
        )
        if guided:
            silent, heard = predicted.chunk(2)
            predicted = silent + guidance_scale * (heard - silent)
        latents = scheduler.step(predicted, int(timestep), latents, eta=0.0).prev_sample
        yield Step(int(timestep), predicted, latents)


class LatentSync:
    """See `LipSyncModel`. When device memory runs out it tries again with more `thrift`, and keeps that.

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
        self.unet, self._vae, self._run = unet, vae, run
        self.thrift = Thrift.NONE
        self._pixel_mask = torch.from_numpy(mask)
        self._latent_mask = torch.from_numpy(latent_mask(mask, _vae_factor(vae))).to(self.device, self.dtype)

    def initial_noise(self, seed: int) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        shape = (1, self.unet.config.out_channels, 1, *self._latent_mask.shape)
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
        return self._thriftily(
            lambda: self._denoise(
                faces, audio, noise, num_inference_steps, guidance_scale, posterior_noise or (None, None)
            )
        )

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        return self._thriftily(lambda: self._decode(latents))

    def _denoise(
        self,
        faces: Tensor,
        audio: Tensor,
        noise: Tensor,
        num_inference_steps: int,
        guidance_scale: float,
        posterior_noise: tuple[Tensor | None, Tensor | None],
    ) -> Tensor:
        masked = (faces.double() * self._pixel_mask).to(faces.dtype)  # in float64, as the reference
        noise_masked, noise_reference = posterior_noise
        inputs = DenoiseInputs(
            mask=self._latent_mask.expand(1, 1, len(faces), -1, -1),
            masked_latents=self.encode(masked, noise_masked),
            reference_latents=self.encode(faces, noise_reference),
            audio=audio.to(self.device, self.dtype),
        )
        for step in sampling_steps(
            self.unet,
            self._run,
            inputs,
            noise=noise.to(self.device, self.dtype),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            in_halves=self.thrift >= Thrift.SINGLE,
        ):
            latents = step.latents
        return latents[0].transpose(0, 1)

    @torch.inference_mode()
    def encode(self, faces: Tensor, noise: Tensor | None) -> Tensor:
        """Scaled latents (1, C, F, h, w) of faces (F, 3, R, R): the posterior's mean, or a sample."""
        parts = faces.to(self.device, self.dtype).split(self._vae_batch)
        posterior = DiagonalGaussianDistribution(
            torch.cat([self._vae.encode(part).latent_dist.parameters for part in parts])
        )
        sample: Tensor = posterior.mean
        if noise is not None:
            sample = sample + posterior.std * noise.to(sample)
        return (sample * self._run.vae_scaling_factor).transpose(0, 1)[None]

    def _decode(self, latents: Tensor) -> Tensor:
        parts = (latents / self._run.vae_scaling_factor).split(self._vae_batch)
        return torch.cat([self._vae.decode(part).sample.float() for part in parts])

    @property
    def _vae_batch(self) -> int:
        return VAE_BATCH if self.thrift is Thrift.NONE else 1

    def _thriftily(self, work: Callable[[], T]) -> T:
        """Do it; as often as memory runs out, again with the next step of thrift."""
        while True:
            try:
                return work()
            except torch.OutOfMemoryError:
                if self.thrift is Thrift.TILED:
                    raise
            # Outside of the except block: the exception keeps the failed attempt's tensors alive.
            self.thrift = Thrift(self.thrift + 1)
            log.warning("device memory ran out; trying again, %s", self.thrift.name.lower())
            if self.thrift is Thrift.TILED:
                side = self.info.resolution // 2
                self._vae.enable_tiling()
                self._vae.tile_sample_min_size = side
                self._vae.tile_latent_min_size = side // _vae_factor(self._vae)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def load(
    entry: ModelEntry, files: Mapping[str, Path], sha256: str, device: torch.device, dtype: torch.dtype
) -> LatentSync:
    """Build on the meta device, assign verified weights strictly.

    Roles: `unet`, `vae`, `vae_config`, `whisper`; optional `unet_config`, `whisper_config`, `model_config`,
    without which the published architecture and settings are taken.

    Raises:
        WeightsError: files that are damaged, of another architecture, or that do not belong together.
    """
    # 1. What the files say about themselves.
    run = RunConfig.parse(_json(files["model_config"])) if "model_config" in files else RunConfig()
    config = (
        UNetConfig.from_published(_json(files["unet_config"])) if "unet_config" in files else UNetConfig()
    )
    whisper = read_checkpoint(files["whisper"])
    dims = keys.whisper_dims(whisper, _json(files["whisper_config"]) if "whisper_config" in files else None)

    # 2. Networks without memory.
    with torch.device("meta"):
        unet = LatentSyncUNet(config)
        vae = _build_vae(files["vae_config"])
        encoder = AudioEncoder(
            dims.n_mels, dims.n_audio_ctx, dims.n_audio_state, dims.n_audio_head, dims.n_audio_layer
        )
    _require_fit(entry, run, config, vae, dims)

    # 3. Their weights. The encoder is cheap and its hidden states lose accuracy in half precision: float32.
    tables = {
        name: positional_table(*table.shape[1:])
        for name, table in unet.state_dict().items()
        if name.endswith("pos_encoder.pe")
    }
    unet_state = keys.unet(read_checkpoint(files["unet"]))
    load_strict(unet, _cast(unet_state, dtype), recomputable=_cast(tables, dtype))
    load_strict(vae, _cast(keys.vae(read_checkpoint(files["vae"])), dtype))
    load_strict(encoder, _cast(keys.whisper_encoder(whisper), torch.float32))
    for module in (unet, vae, encoder):
        module.to(device).eval().requires_grad_(False)
    vae.to(memory_format=torch.channels_last)  # convolutions with few channels are faster so

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
    return LatentSync(info, unet, vae, encoder, run)


def _build_vae(path: Path) -> AutoencoderKL:
    try:
        return AutoencoderKL.from_config(_json(path))
    except (ValueError, TypeError, LookupError) as error:
        raise _misfit(f"{path.name} does not describe an AutoencoderKL of diffusers ({error})") from error


def _require_fit(
    entry: ModelEntry, run: RunConfig, config: UNetConfig, vae: AutoencoderKL, dims: ModelDimensions
) -> None:
    """Files of different models may each be sound and still not belong together."""
    if dims.n_audio_state != config.cross_attention_dim:
        raise _misfit(
            f"the U-Net hears tokens of width {config.cross_attention_dim}, but the Whisper encoder gives "
            f"{dims.n_audio_state} (whisper-tiny: 384, whisper-small: 768)"
        )
    channels = vae.config.latent_channels
    if (config.in_channels, config.out_channels) != (3 * channels + 1, channels):
        raise _misfit(
            f"the U-Net takes {config.in_channels} channels and gives {config.out_channels}, but with this "
            f"VAE's {channels} they must be {3 * channels + 1} and {channels}"
        )
    motion = config.motion_in_encoder or config.motion_in_decoder
    if motion and run.window_frames > config.motion_max_frames:
        raise _misfit(
            f"windows of {run.window_frames} frames do not fit motion modules made for "
            f"{config.motion_max_frames}"
        )
    if entry.resolution % _vae_factor(vae):
        raise _misfit(f"faces of {entry.resolution} pixels do not divide by the VAE's {_vae_factor(vae)}")


def _misfit(problem: str) -> WeightsError:
    return WeightsError(
        ErrorCode.WEIGHTS_ARCHITECTURE,
        f"The model's files do not go together: {problem}. Pull or import the model's files again.",
    )


def _vae_factor(vae: AutoencoderKL) -> int:
    """Pixels per latent, along each side."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def _cast(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def _json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _misfit(f"{path.name} is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise _misfit(f"{path.name} is not a JSON object")
    return fields
