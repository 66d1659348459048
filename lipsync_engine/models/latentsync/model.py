"""LatentSync put together: U-Net, VAE, Whisper encoder and scheduler behind the `LipSyncModel` protocol.

Numbers: parity pack sections 3 and 4. It does not know files of video or sound, windows of a job, or how a
face gets back into its frame.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor
from whisper.model import AudioEncoder, ModelDimensions

from lipsync_engine.errors import ErrorCode, WeightsError
from lipsync_engine.models import ModelInfo
from lipsync_engine.models.latentsync import keys
from lipsync_engine.models.latentsync.batching import SharedNetwork
from lipsync_engine.models.latentsync.compile import CompiledUNet, cuda_graphs
from lipsync_engine.models.latentsync.config import RunConfig, UNetConfig
from lipsync_engine.models.latentsync.fp8 import to_float8
from lipsync_engine.models.latentsync.mask import fixed_mask, latent_mask
from lipsync_engine.models.latentsync.memory import (
    DEFAULT_PLAN,
    PLANS,
    MemoryPlan,
    Needs,
    Thrift,
    plan_memory,
    windows_at_once,
)
from lipsync_engine.models.latentsync.offload import offload, streamed
from lipsync_engine.models.latentsync.sampling import DenoiseInputs, sampling_steps, sent
from lipsync_engine.models.latentsync.unet import LatentSyncUNet, positional_table
from lipsync_engine.params import EXACT, Shortcuts
from lipsync_engine.weights import ModelEntry, load_strict, read_checkpoint

log = logging.getLogger("lipsync.model")

T = TypeVar("T")

KINDS = Shortcuts(reuse_within=1.0, guide_every=2)
EVERY_KIND_OF_STEP = 3
"""Steps, with those shortcuts, that are of every kind that presets take."""


class LatentSync:
    """See `LipSyncModel`. When device memory runs out it tries again with a leaner `memory`, and keeps that.

    Several threads may use it at once, for jobs of their own (`shared`).

    Args:
        info: name, resolution, defaults.
        unet, vae, audio_encoder: loaded, in one dtype, in eval mode, on the device that computes; the U-Net
            on the host where `memory` has it offloaded.
        run: scheduler and VAE settings.
        memory: how much of a window is done at once.
        windows: how many windows of different threads may share a run.
    """

    def __init__(
        self,
        info: ModelInfo,
        unet: LatentSyncUNet,
        vae: AutoencoderKL,
        audio_encoder: AudioEncoder,
        run: RunConfig,
        memory: MemoryPlan = DEFAULT_PLAN,
        windows: int = 1,
    ) -> None:
        self.info = info
        self.audio_encoder = audio_encoder
        self.device, self.dtype = vae.quant_conv.weight.device, unet.conv_in.weight.dtype
        self.precision = str(self.dtype).removeprefix("torch.")
        mask = fixed_mask(info.resolution)
        self.keep_mask = mask.astype(np.float32)
        self.unet, self._vae, self._run = unet, vae, run
        self._network = SharedNetwork(unet, windows)
        self._compiled: CompiledUNet | None = None
        self.memory = memory
        if memory.thrift is Thrift.OFFLOADED:
            offload(unet, self.device)
        # Where it is applied: in float64, as the reference does, which Apple's GPU has not.
        self._masks_on = self.device if self.device.type == "cuda" else torch.device("cpu")
        self._pixel_mask = torch.from_numpy(mask).to(self._masks_on)
        self._latent_mask = torch.from_numpy(latent_mask(mask, _vae_factor(vae))).to(self.device, self.dtype)

    def initial_noise(self, seed: int) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        shape = (1, self.unet.config.out_channels, 1, *self._latent_mask.shape)
        return torch.randn(shape, generator=generator, device=self.device, dtype=self.dtype)

    def to_float8(self) -> None:
        if to_float8(self.unet):
            self.precision += " fp8"
        else:
            log.warning("no layer of %s is large enough to gain from FP8: it runs as before", self.info.name)

    def compile(self, cache_dir: Path) -> None:
        graphs = self.device.type == "cuda" and self.memory.thrift is Thrift.NONE
        record = cuda_graphs(self.device) if graphs else None
        compiled = CompiledUNet(self.unet, self.info.window_frames, cache_dir, record)
        self._compiled = self._network.network = compiled
        self._network.most = 1  # compiled code and recorded runs are of one window
        compiled.compile(lambda: self._nothing(EVERY_KIND_OF_STEP, KINDS))

    def warm_up(self) -> None:
        self.decode(self._nothing(1, EXACT))

    def _nothing(self, steps: int, shortcuts: Shortcuts) -> Tensor:
        """Latents of a full window in which nothing is seen and heard."""
        frames, side = self.info.window_frames, self.info.resolution
        tokens = 2 * (sum(self.info.audio_context) + 1) * (len(self.audio_encoder.blocks) + 1)
        return self.denoise(
            torch.zeros(frames, 3, side, side),
            torch.zeros(frames, tokens, self.unet.config.cross_attention_dim),
            noise=self.initial_noise(0),
            num_inference_steps=steps,
            guidance_scale=self.info.guidance_scale,
            shortcuts=shortcuts,
        )

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
        shortcuts: Shortcuts = EXACT,
    ) -> Tensor:
        def work() -> Tensor:
            inputs = self._inputs(faces, audio, posterior_noise)
            with self._network.window():
                for step in sampling_steps(
                    self._network,
                    self._run,
                    inputs,
                    noise=noise.to(self.device, self.dtype),
                    num_inference_steps=num_inference_steps,
                    guidance_scale=guidance_scale,
                    in_halves=self.memory.thrift >= Thrift.SINGLE,
                    shortcuts=shortcuts,
                ):
                    latents = step.latents
            return latents[0].transpose(0, 1)

        return self._thriftily(work)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        return self._thriftily(lambda: self._decode(latents))

    def _inputs(
        self, faces: Tensor, audio: Tensor, posterior_noise: tuple[Tensor, Tensor] | None
    ) -> DenoiseInputs:
        faces = sent(faces, self._masks_on)
        masked = (faces.double() * self._pixel_mask).to(faces.dtype)
        latents = self.encode(
            torch.cat([masked, faces]), None if posterior_noise is None else torch.cat(posterior_noise)
        )
        masked_latents, reference_latents = latents.chunk(2, dim=2)
        return DenoiseInputs(
            mask=self._latent_mask.expand(1, 1, len(faces), -1, -1),
            masked_latents=masked_latents,
            reference_latents=reference_latents,
            audio=sent(audio, self.device).to(self.dtype),
        )

    @torch.inference_mode()
    def encode(self, faces: Tensor, noise: Tensor | None) -> Tensor:
        """Scaled latents (1, C, F, h, w) of faces (F, 3, R, R): the posterior's mean, or a sample."""
        parts = faces.to(self.device, self.dtype).split(self.memory.vae_batch)
        with self._network.still():  # memory is planned for one thing at a time
            moments = torch.cat([self._vae.encode(part).latent_dist.parameters for part in parts])
        posterior = DiagonalGaussianDistribution(moments)
        sample: Tensor = posterior.mean
        if noise is not None:
            sample = sample + posterior.std * noise.to(sample)
        return (sample * self._run.vae_scaling_factor).transpose(0, 1)[None]

    def _decode(self, latents: Tensor) -> Tensor:
        parts = (latents / self._run.vae_scaling_factor).split(self.memory.vae_batch)
        with self._network.still():
            return torch.cat([self._vae.decode(part).sample.float() for part in parts])

    def _thriftily(self, work: Callable[[], T]) -> T:
        """Do it; as often as memory runs out, again with less of it."""
        while True:
            plan = self.memory
            try:
                return work()
            except torch.OutOfMemoryError:
                if plan == PLANS[-1]:
                    raise
            # Outside of the except block: the exception keeps the failed attempt's tensors alive.
            with self._network.still():
                if self.memory == plan:  # else another thread was faster
                    self._spare()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _spare(self) -> None:
        """Give up what is kept for speed alone, then go to the next leaner plan."""
        if self._compiled is not None and self._compiled.forget_runs():
            log.warning("device memory ran out; trying again without recorded runs")
            return
        self.memory = PLANS[PLANS.index(self.memory) + 1]
        log.warning("device memory ran out; trying again: %s", self.memory.describe())
        if self.memory.thrift is Thrift.OFFLOADED:
            offload(self.unet, self.device)


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
    memory, windows = DEFAULT_PLAN, 1  # a CPU gains nothing from larger runs, and rounds otherwise in them
    if device.type == "cuda":
        need, free = needs(info, unet, vae, dtype), torch.cuda.mem_get_info(device)[0]
        memory = fitted(need, free)
        windows = windows_at_once(free, need, memory)

    # 3. Their weights, from the mapped files straight to the device. The encoder is cheap and its hidden
    #    states lose accuracy in half precision: float32.
    tables = {
        name: positional_table(*table.shape[1:])
        for name, table in unet.state_dict().items()
        if name.endswith("pos_encoder.pe")
    }
    unet_state, vae_state = keys.unet(read_checkpoint(files["unet"])), keys.vae(read_checkpoint(files["vae"]))
    home = torch.device("cpu") if memory.thrift is Thrift.OFFLOADED else device
    load_strict(unet, _placed(unet_state, home, dtype), recomputable=_placed(tables, home, dtype))
    load_strict(vae, _placed(vae_state, device, dtype))
    load_strict(encoder, _placed(keys.whisper_encoder(whisper), device, torch.float32))
    for module in (unet, vae, encoder):
        module.eval().requires_grad_(False)
    both: tuple[Any, ...] = (unet, vae)
    for network in both:
        network.to(memory_format=torch.channels_last)
    return LatentSync(info, unet, vae, encoder, run, memory, windows)


def needs(info: ModelInfo, unet: LatentSyncUNet, vae: AutoencoderKL, dtype: torch.dtype) -> Needs:
    """What a window takes of a device's memory; the networks may be on the meta device."""
    values = sum(tensor.numel() for network in (unet, vae) for tensor in network.state_dict().values())
    blocks = [sum(parameter.numel() for parameter in streamed(block)) for block in unet.blocks]
    return Needs(
        weights_bytes=values * dtype.itemsize,
        streamed_bytes=sum(blocks) * dtype.itemsize,
        largest_block_bytes=max(blocks) * dtype.itemsize,
        value_bytes=dtype.itemsize,
        pixels=info.resolution**2,
        latent_pixels=(info.resolution // _vae_factor(vae)) ** 2,
        frames=info.window_frames,
        unet_width=unet.config.block_out_channels[0],
        vae_width=vae.config.block_out_channels[0],
    )


def fitted(needs: Needs, free_bytes: int) -> MemoryPlan:
    """The fastest plan that fits; where none does, the leanest, and a warning before memory runs out."""
    plan = plan_memory(free_bytes, needs)
    if plan is None:
        plan = PLANS[-1]
        log.warning(
            "needs %.1f GB, %.1f GB are free: close other programs, use --dtype fp16, or a smaller model",
            needs.peak_bytes(plan) / 1e9,
            free_bytes / 1e9,
        )
    return plan


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


def _placed(state: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Moved, then cast: on a GPU that is faster than the other way round, and keeps no copy on the host."""
    return {name: tensor.to(device).to(dtype) for name, tensor in state.items()}


def _json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _misfit(f"{path.name} is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise _misfit(f"{path.name} is not a JSON object")
    return fields
