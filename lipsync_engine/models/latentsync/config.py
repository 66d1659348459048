"""Configuration that belongs to a set of LatentSync weights: U-Net dimensions and run settings.

The published configuration has many fields with only one value in all released weights. Those are checked and
dropped. This module does not know tensors or files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from lipsync_engine.errors import ErrorCode, WeightsError

MOTION_NORM_GROUPS = 32
"""Groups of the motion modules' norm; `norm_num_groups` does not apply to them (parity pack 2.3)."""

_STRICT = ConfigDict(extra="forbid")


@dataclasses.dataclass(frozen=True, slots=True)
class UNetConfig:
    """Dimensions of `LatentSyncUNet`; the defaults are LatentSync 1.5's and 1.6's (parity pack, section 1).

    Attributes:
        in_channels, out_channels: latent channels in (noise 4, mask 1, masked 4, reference 4) and out.
        block_out_channels: widths from fine to coarse.
        layers_per_block: residual blocks of a down block; up blocks have one more.
        attention_head_dim: number of heads; the name is the published file's.
        cross_attention_dim: width of an audio token: 384 for whisper-tiny, 768 for whisper-small.
        norm_num_groups, norm_eps: of the residual blocks' group norms.
        motion_in_encoder, motion_in_decoder: which half of the U-Net has motion modules.
        motion_heads, motion_max_frames: of the motion modules; a window cannot have more frames.

    Raises:
        WeightsError: the widths cannot be split into these groups or heads.
    """

    in_channels: int = 13
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    attention_head_dim: int = 8
    cross_attention_dim: int = 384
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    motion_in_encoder: bool = True
    motion_in_decoder: bool = True
    motion_heads: int = 8
    motion_max_frames: int = 24

    def __post_init__(self) -> None:
        divisors = {"attention_head_dim": self.attention_head_dim, "norm_num_groups": self.norm_num_groups}
        if self.motion_in_encoder or self.motion_in_decoder:
            divisors |= {"motion_heads": self.motion_heads, "motion_norm_groups": MOTION_NORM_GROUPS}
        for name, count in divisors.items():
            if indivisible := [width for width in self.block_out_channels if width % count]:
                raise _unsupported_config(f"widths {indivisible} are not divisible by {name}={count}")

    @property
    def time_embed_dim(self) -> int:
        return 4 * self.block_out_channels[0]

    @classmethod
    def from_published(cls, fields: Mapping[str, Any]) -> UNetConfig:
        """Convert the `model` section of LatentSync's published configuration files.

        Unknown fields are accepted if they are off (None or False).

        Raises:
            WeightsError: a field is missing, unknown, or has a value that this network does not implement.
        """
        field_names = {field.name for field in dataclasses.fields(_PublishedConfig)}
        active = {
            name: value
            for name, value in fields.items()
            if name in field_names or not (name.startswith("_") or value is None or value is False)
        }
        if not active.get("use_motion_module"):
            active = {name: value for name, value in active.items() if not name.startswith("motion_module")}
        try:
            published = TypeAdapter(_PublishedConfig).validate_python(active)
        except ValidationError as error:
            raise _unsupported_config(_describe_first_error(error)) from error
        published.check_layout()
        return cls(
            in_channels=published.in_channels,
            out_channels=published.out_channels,
            block_out_channels=published.block_out_channels,
            layers_per_block=published.layers_per_block,
            attention_head_dim=published.attention_head_dim,
            cross_attention_dim=published.cross_attention_dim,
            norm_num_groups=published.norm_num_groups,
            norm_eps=published.norm_eps,
            motion_in_encoder=published.use_motion_module and not published.motion_module_decoder_only,
            motion_in_decoder=published.use_motion_module,
            motion_heads=published.motion_module_kwargs.num_attention_heads,
            motion_max_frames=published.motion_module_kwargs.temporal_position_encoding_max_len,
        )


@dataclass(frozen=True, slots=True, config=_STRICT)
class SchedulerConfig:
    """Arguments of diffusers' DDIMScheduler; the defaults are LatentSync's (parity pack, section 3)."""

    num_train_timesteps: int = Field(default=1000, ge=1)
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    clip_sample: bool = False
    set_alpha_to_one: bool = False
    steps_offset: int = 1
    timestep_spacing: Literal["leading", "linspace", "trailing"] = "leading"
    rescale_betas_zero_snr: bool = False


@dataclass(frozen=True, slots=True, config=_STRICT)
class RunConfig:
    """Run settings that belong to a set of weights; the defaults are LatentSync 1.5's and 1.6's.

    Attributes:
        window_frames: frames that are denoised together.
        audio_context: steps of 40 ms before and after a frame whose audio conditions it.
        num_inference_steps, guidance_scale: defaults.
        vae_scaling_factor: of the latents; the value in the VAE's own file does not apply (parity pack,
            section 4).
        scheduler: of the sampling loop.
    """

    window_frames: int = Field(default=16, ge=1)
    audio_context: tuple[int, int] = (2, 2)
    num_inference_steps: int = Field(default=20, ge=1)
    guidance_scale: float = Field(default=1.5, ge=0)
    vae_scaling_factor: float = Field(default=0.18215, gt=0)
    scheduler: SchedulerConfig = SchedulerConfig()

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> RunConfig:
        """Validate the content of a `model_config` file.

        Raises:
            WeightsError: a field is unknown or has an unsupported value.
        """
        try:
            return TypeAdapter(cls).validate_python(fields)
        except ValidationError as error:
            raise _unsupported_config(_describe_first_error(error)) from error


# --- the published form ---


@dataclass(frozen=True, slots=True, config=_STRICT)
class _MotionKwargs:
    num_attention_heads: int = Field(default=8, ge=1)
    num_transformer_block: Literal[1] = 1
    attention_block_types: tuple[Literal["Temporal_Self"], Literal["Temporal_Self"]] = (
        "Temporal_Self",
        "Temporal_Self",
    )
    temporal_position_encoding: Literal[True] = True
    temporal_position_encoding_max_len: int = Field(default=24, ge=1)
    temporal_attention_dim_div: Literal[1] = 1
    zero_initialize: bool = True  # only for training


@dataclass(frozen=True, slots=True, config=_STRICT)
class _PublishedConfig:
    """The published fields; a Literal is the only supported value."""

    in_channels: int = Field(ge=1)
    out_channels: int = Field(ge=1)
    block_out_channels: tuple[int, ...] = Field(min_length=2)
    layers_per_block: int = Field(ge=1)
    attention_head_dim: int = Field(ge=1)
    cross_attention_dim: int = Field(ge=1)
    norm_num_groups: int = Field(ge=1)
    norm_eps: float = Field(gt=0)
    act_fn: Literal["silu"] = "silu"
    add_audio_layer: Literal[True] = True
    mid_block_type: Literal["UNetMidBlock3DCrossAttn"] = "UNetMidBlock3DCrossAttn"
    down_block_types: tuple[str, ...] | None = None
    up_block_types: tuple[str, ...] | None = None
    downsample_padding: Literal[1] = 1
    mid_block_scale_factor: Literal[1] = 1
    flip_sin_to_cos: Literal[True] = True
    freq_shift: Literal[0] = 0
    resnet_time_scale_shift: Literal["default"] = "default"
    sample_size: Any = None  # has no effect
    use_motion_module: bool = False
    motion_module_type: Literal["Vanilla"] = "Vanilla"
    motion_module_decoder_only: bool = False
    motion_module_resolutions: tuple[int, ...] | None = None
    motion_module_kwargs: _MotionKwargs = _MotionKwargs()

    def check_layout(self) -> None:
        """Check that all levels but the coarsest have attention, and that every level has motion modules."""
        levels = len(self.block_out_channels)
        supported = {
            "down_block_types": ("CrossAttnDownBlock3D",) * (levels - 1) + ("DownBlock3D",),
            "up_block_types": ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * (levels - 1),
            "motion_module_resolutions": tuple(2**level for level in range(levels)),
        }
        for name, expected in supported.items():
            if getattr(self, name) not in (None, expected):
                raise _unsupported_config(
                    f"{name}={list(getattr(self, name))} where {list(expected)} is expected"
                )


def _describe_first_error(error: ValidationError) -> str:
    problem = error.errors()[0]
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"{name} is missing"
    if problem["type"] == "unexpected_keyword_argument":
        return f"{name}={problem['input']!r} is unknown"
    return f"{name}={problem['input']!r}: {problem['msg']}"


def _unsupported_config(problem: str) -> WeightsError:
    return WeightsError(
        ErrorCode.WEIGHTS_ARCHITECTURE,
        f"The model's configuration is not supported: {problem}. Use weights and configuration of the same "
        "published LatentSync version.",
    )
