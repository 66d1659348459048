"""LatentSync behind the `LipSyncModel` protocol: U-Net, VAE, Whisper encoder and scheduler.

Numbers: parity pack, sections 3 and 4. This module does not know media files, the windows of a job, or how a
face is pasted back into its frame.
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
from lipsync_engine.models.latentsync.batching import BatchedDenoiser
from lipsync_engine.models.latentsync.compile import CompiledUNet, cuda_graph_capture
from lipsync_engine.models.latentsync.config import RunConfig, UNetConfig
from lipsync_engine.models.latentsync.fp8 import to_float8
from lipsync_engine.models.latentsync.mask import downsample_mask, load_fixed_mask
from lipsync_engine.models.latentsync.memory import (
    DEFAULT_PLAN,
    PLANS,
    MemoryEstimate,
    MemoryMode,
    MemoryPlan,
    count_batched_windows,
    plan_memory,
    plan_with_graphs,
)
from lipsync_engine.models.latentsync.offload import enable_cpu_offload, offloadable_parameters
from lipsync_engine.models.latentsync.sampling import DenoiseInputs, sampling_steps, to_device_async
from lipsync_engine.models.latentsync.unet import LatentSyncUNet, sinusoidal_positions
from lipsync_engine.params import EXACT_SAMPLING, FastSampling
from lipsync_engine.weights import ModelEntry, load_strict, read_checkpoint

log = logging.getLogger("lipsync.model")

T = TypeVar("T")

WARM_UP_SAMPLING = FastSampling(feature_cache_threshold=1.0, guidance_interval=2)
WARM_UP_STEPS = 3
"""Together they include every kind of step that the presets use: guided or not, whole or cached."""


class LatentSync:
    """The LatentSync model (see `LipSyncModel`).

    When device memory runs out, it retries with a memory plan that needs less, and keeps that plan. Several
    threads may use it at the same time; their denoising steps share forward passes (`batching`).

    Args:
        info: name, resolution, defaults.
        unet, vae, audio_encoder: loaded, in one dtype, in eval mode, on the compute device; with CPU offload
            the U-Net is in host memory.
        run_config: scheduler and VAE settings.
        memory: how much of a window is processed at once.
        max_windows: windows of different threads per forward pass.
    """

    def __init__(
        self,
        info: ModelInfo,
        unet: LatentSyncUNet,
        vae: AutoencoderKL,
        audio_encoder: AudioEncoder,
        run_config: RunConfig,
        memory: MemoryPlan = DEFAULT_PLAN,
        max_windows: int = 1,
    ) -> None:
        self.info = info
        self.audio_encoder = audio_encoder
        self.device, self.dtype = vae.quant_conv.weight.device, unet.conv_in.weight.dtype
        self.precision = str(self.dtype).removeprefix("torch.")
        mask = load_fixed_mask(info.resolution)
        self.keep_mask = mask.astype(np.float32)
        self.unet, self.vae, self.run_config = unet, vae, run_config
        self.denoiser = BatchedDenoiser(unet, max_windows)
        self._compiled: CompiledUNet | None = None
        self.memory = memory
        if memory.mode is MemoryMode.OFFLOAD:
            enable_cpu_offload(unet, self.device)
        # The mask is applied in float64, as the reference does; Apple's GPU does not support float64.
        self._mask_device = self.device if self.device.type == "cuda" else torch.device("cpu")
        self._pixel_mask = torch.from_numpy(mask).to(self._mask_device)
        self._latent_mask = torch.from_numpy(downsample_mask(mask, _vae_factor(vae))).to(
            self.device, self.dtype
        )

    def initial_noise(self, seed: int) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        shape = (1, self.unet.config.out_channels, 1, *self._latent_mask.shape)
        return torch.randn(shape, generator=generator, device=self.device, dtype=self.dtype)

    def to_float8(self) -> None:
        if to_float8(self.unet):
            self.precision += " fp8"
        else:
            log.warning("FP8 is off for %s: no layer is large enough to gain from it", self.info.name)

    def compile(self, cache_dir: Path) -> None:
        capture = cuda_graph_capture(self.device) if self._reserve_graph_memory() else None
        compiled = CompiledUNet(self.unet, self.info.window_frames, cache_dir, capture)
        self.use_compiled(compiled)
        compiled.compile(lambda: self._denoise_zeros(WARM_UP_STEPS, WARM_UP_SAMPLING))

    def _reserve_graph_memory(self) -> bool:
        """Lower the VAE batch until CUDA graphs fit beside it; return False if they cannot be used."""
        if self.device.type != "cuda" or self.memory.mode is not MemoryMode.FULL:
            return False
        estimate = estimate_memory(self.info, self.unet, self.vae, self.dtype)
        free_bytes = torch.cuda.mem_get_info(self.device)[0] + estimate.weights_bytes  # already loaded
        plan = plan_with_graphs(free_bytes, estimate, self.memory)
        if plan is None:
            log.info("CUDA graphs are off: %.1f GB of device memory do not suffice", free_bytes / 1e9)
            return False
        self.memory = plan
        return True

    def use_compiled(self, compiled: CompiledUNet) -> None:
        """Denoise with `compiled` from now on; its code and CUDA graphs are for one window per pass."""
        self._compiled = self.denoiser.denoiser = compiled
        self.denoiser.max_windows = 1

    def warm_up(self) -> None:
        self.decode(self._denoise_zeros(1, EXACT_SAMPLING))

    def _denoise_zeros(self, steps: int, fast_sampling: FastSampling) -> Tensor:
        """Denoise a full window with zeros as faces and audio."""
        frames, side = self.info.window_frames, self.info.resolution
        tokens = 2 * (sum(self.info.audio_context) + 1) * (len(self.audio_encoder.blocks) + 1)
        return self.denoise(
            torch.zeros(frames, 3, side, side),
            torch.zeros(frames, tokens, self.unet.config.cross_attention_dim),
            noise=self.initial_noise(0),
            num_inference_steps=steps,
            guidance_scale=self.info.guidance_scale,
            fast_sampling=fast_sampling,
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
        fast_sampling: FastSampling = EXACT_SAMPLING,
    ) -> Tensor:
        def run() -> Tensor:
            inputs = self._encode_inputs(faces, audio, posterior_noise)
            with self.denoiser.sampling_session():
                for step in sampling_steps(
                    self.denoiser,
                    self.run_config,
                    inputs,
                    noise=noise.to(self.device, self.dtype),
                    num_inference_steps=num_inference_steps,
                    guidance_scale=guidance_scale,
                    sequential_cfg=self.memory.mode >= MemoryMode.SEQUENTIAL,
                    fast_sampling=fast_sampling,
                ):
                    latents = step.latents
            return latents[0].transpose(0, 1)

        return self._retry_on_oom(run)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        return self._retry_on_oom(lambda: self._decode(latents))

    def _encode_inputs(
        self, faces: Tensor, audio: Tensor, posterior_noise: tuple[Tensor, Tensor] | None
    ) -> DenoiseInputs:
        faces = to_device_async(faces, self._mask_device)
        masked = (faces.double() * self._pixel_mask).to(faces.dtype)
        latents = self.encode(
            torch.cat([masked, faces]), None if posterior_noise is None else torch.cat(posterior_noise)
        )
        masked_latents, reference_latents = latents.chunk(2, dim=2)
        return DenoiseInputs(
            mask=self._latent_mask.expand(1, 1, len(faces), -1, -1),
            masked_latents=masked_latents,
            reference_latents=reference_latents,
            audio=to_device_async(audio, self.device).to(self.dtype),
        )

    @torch.inference_mode()
    def encode(self, faces: Tensor, noise: Tensor | None) -> Tensor:
        """Encode faces (F, 3, R, R) to scaled latents (1, C, F, h, w).

        Args:
            noise: for a sample of the posterior; None: its mean.
        """
        batches = faces.to(self.device, self.dtype).split(self.memory.vae_batch)
        with self.denoiser.exclusive():  # memory is planned for either the VAE or the U-Net at a time
            moments = torch.cat([self.vae.encode(batch).latent_dist.parameters for batch in batches])
        posterior = DiagonalGaussianDistribution(moments)
        sample: Tensor = posterior.mean
        if noise is not None:
            sample = sample + posterior.std * noise.to(sample)
        return (sample * self.run_config.vae_scaling_factor).transpose(0, 1)[None]

    def _decode(self, latents: Tensor) -> Tensor:
        batches = (latents / self.run_config.vae_scaling_factor).split(self.memory.vae_batch)
        with self.denoiser.exclusive():
            return torch.cat([self.vae.decode(batch).sample.float() for batch in batches])

    def _retry_on_oom(self, run: Callable[[], T]) -> T:
        """Call `run`, and retry with less memory each time the device runs out of it."""
        while True:
            plan = self.memory
            try:
                return run()
            except torch.OutOfMemoryError:
                if plan == PLANS[-1]:
                    raise
            # Outside the except block: the exception keeps the failed attempt's tensors alive.
            with self.denoiser.exclusive():
                if self.memory == plan:  # otherwise another thread has lowered it already
                    self._lower_memory_mode()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _lower_memory_mode(self) -> None:
        """Release the CUDA graphs; without any, change to the next plan, which needs less memory."""
        if self._compiled is not None and self._compiled.release_graphs():
            log.warning("out of device memory; retrying without CUDA graphs")
            return
        self.memory = PLANS[PLANS.index(self.memory) + 1]
        log.warning("out of device memory; retrying with %s", self.memory.describe())
        if self.memory.mode is MemoryMode.OFFLOAD:
            enable_cpu_offload(self.unet, self.device)


def load_latentsync(
    entry: ModelEntry, files: Mapping[str, Path], sha256: str, device: torch.device, dtype: torch.dtype
) -> LatentSync:
    """Build the networks on the meta device and assign the verified weights strictly.

    Args:
        files: by role `unet`, `vae`, `vae_config`, `whisper`; optionally `unet_config`, `whisper_config` and
            `model_config`, which default to the published architecture and settings.

    Raises:
        WeightsError: files are damaged, have another architecture, or do not belong together.
    """
    # 1. Configuration.
    run_config = (
        RunConfig.parse(_read_json(files["model_config"])) if "model_config" in files else RunConfig()
    )
    config = (
        UNetConfig.from_published(_read_json(files["unet_config"]))
        if "unet_config" in files
        else UNetConfig()
    )
    whisper = read_checkpoint(files["whisper"])
    whisper_config = _read_json(files["whisper_config"]) if "whisper_config" in files else None
    dims = keys.parse_whisper_dims(whisper, whisper_config)

    # 2. Networks on the meta device, without memory.
    with torch.device("meta"):
        unet = LatentSyncUNet(config)
        vae = _build_vae(files["vae_config"])
        encoder = AudioEncoder(
            dims.n_mels, dims.n_audio_ctx, dims.n_audio_state, dims.n_audio_head, dims.n_audio_layer
        )
    _check_compatible(entry, run_config, config, vae, dims)

    info = ModelInfo(
        name=entry.name,
        family=entry.family,
        resolution=entry.resolution,
        window_frames=run_config.window_frames,
        audio_context=run_config.audio_context,
        num_inference_steps=run_config.num_inference_steps,
        guidance_scale=run_config.guidance_scale,
        weights_sha256=sha256,
    )
    # A CPU gains nothing from batched windows, and its libraries round differently in larger batches.
    memory, max_windows = DEFAULT_PLAN, 1
    if device.type == "cuda":
        if dtype is torch.float32:
            torch.backends.cudnn.allow_tf32 = False  # by default, convolutions round their inputs to TF32
        estimate, free_bytes = estimate_memory(info, unet, vae, dtype), torch.cuda.mem_get_info(device)[0]
        memory = choose_memory_plan(free_bytes, estimate)
        max_windows = count_batched_windows(free_bytes, estimate, memory)

    # 3. Weights, from the memory-mapped files straight to the device. The encoder is cheap, and its hidden
    #    states lose accuracy in half precision, so it stays float32.
    tables = {
        name: sinusoidal_positions(*table.shape[1:])
        for name, table in unet.state_dict().items()
        if name.endswith("pos_encoder.pe")
    }
    unet_state = keys.convert_unet(read_checkpoint(files["unet"]))
    vae_state = keys.convert_vae(read_checkpoint(files["vae"]))
    encoder_state = keys.convert_whisper_encoder(whisper)
    unet_device = torch.device("cpu") if memory.mode is MemoryMode.OFFLOAD else device
    load_strict(
        unet,
        _move_and_cast(unet_state, unet_device, dtype),
        recomputable=_move_and_cast(tables, unet_device, dtype),
    )
    load_strict(vae, _move_and_cast(vae_state, device, dtype))
    load_strict(encoder, _move_and_cast(encoder_state, device, torch.float32))
    for module in (unet, vae, encoder):
        module.eval().requires_grad_(False)
    convolutional: tuple[Any, ...] = (unet, vae)
    for network in convolutional:
        network.to(memory_format=torch.channels_last)
    return LatentSync(info, unet, vae, encoder, run_config, memory, max_windows)


def estimate_memory(
    info: ModelInfo, unet: LatentSyncUNet, vae: AutoencoderKL, dtype: torch.dtype
) -> MemoryEstimate:
    """Estimate the device memory of one window; the networks may be on the meta device."""
    parameters = sum(tensor.numel() for network in (unet, vae) for tensor in network.state_dict().values())
    blocks = [sum(parameter.numel() for parameter in offloadable_parameters(block)) for block in unet.blocks]
    return MemoryEstimate(
        weights_bytes=parameters * dtype.itemsize,
        offloadable_bytes=sum(blocks) * dtype.itemsize,
        largest_block_bytes=max(blocks) * dtype.itemsize,
        value_bytes=dtype.itemsize,
        pixels=info.resolution**2,
        latent_pixels=(info.resolution // _vae_factor(vae)) ** 2,
        frames=info.window_frames,
        unet_width=unet.config.block_out_channels[0],
        vae_width=vae.config.block_out_channels[0],
    )


def choose_memory_plan(free_bytes: int, estimate: MemoryEstimate) -> MemoryPlan:
    """Return the fastest plan that fits; if none does, log a warning and return the one that needs least."""
    plan = plan_memory(free_bytes, estimate)
    if plan is None:
        plan = PLANS[-1]
        log.warning(
            "model needs %.1f GB of device memory, %.1f GB are free: close other programs, use --dtype fp16, "
            "or a smaller model",
            estimate.peak_bytes(plan) / 1e9,
            free_bytes / 1e9,
        )
    return plan


def _build_vae(path: Path) -> AutoencoderKL:
    try:
        return AutoencoderKL.from_config(_read_json(path))
    except (ValueError, TypeError, LookupError) as error:
        raise _mismatch_error(
            f"{path.name} does not describe an AutoencoderKL of diffusers ({error})"
        ) from error


def _check_compatible(
    entry: ModelEntry, run_config: RunConfig, config: UNetConfig, vae: AutoencoderKL, dims: ModelDimensions
) -> None:
    """Check that the files belong to one model: each may be valid and still not fit the others."""
    if dims.n_audio_state != config.cross_attention_dim:
        raise _mismatch_error(
            f"the U-Net expects audio tokens of width {config.cross_attention_dim}, but the Whisper encoder "
            f"produces {dims.n_audio_state} (whisper-tiny: 384, whisper-small: 768)"
        )
    channels = vae.config.latent_channels
    if (config.in_channels, config.out_channels) != (3 * channels + 1, channels):
        raise _mismatch_error(
            f"the U-Net has {config.in_channels} input and {config.out_channels} output channels, but this "
            f"VAE's {channels} latent channels require {3 * channels + 1} and {channels}"
        )
    motion = config.motion_in_encoder or config.motion_in_decoder
    if motion and run_config.window_frames > config.motion_max_frames:
        raise _mismatch_error(
            f"windows have {run_config.window_frames} frames, but the motion modules support "
            f"{config.motion_max_frames}"
        )
    if entry.resolution % _vae_factor(vae):
        raise _mismatch_error(
            f"the face resolution of {entry.resolution} pixels is not a multiple of {_vae_factor(vae)}, as "
            "the VAE requires"
        )


def _mismatch_error(problem: str) -> WeightsError:
    return WeightsError(
        ErrorCode.WEIGHTS_ARCHITECTURE,
        f"The model's files do not belong together: {problem}. Pull or import the model's files again.",
    )


def _vae_factor(vae: AutoencoderKL) -> int:
    """Return the pixels per latent along each side."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def _move_and_cast(
    state: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Move, then cast: on a GPU this is faster than the reverse and needs no converted copy on the host."""
    return {name: tensor.to(device).to(dtype) for name, tensor in state.items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _mismatch_error(f"{path.name} is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise _mismatch_error(f"{path.name} is not a JSON object")
    return fields
