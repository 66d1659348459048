"""What a LatentSync checkpoint needs to be rebuilt: dimensions of the U-Net and settings of a run.

The published YAML/JSON names many fields that the two released checkpoints leave at one value; those are
checked and not carried. It does not know tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lipsync_engine.errors import ErrorCode, WeightsError


@dataclass(frozen=True, slots=True)
class UNetConfig:
    """Dimensions of `LatentSyncUNet`; the defaults are those of LatentSync 1.5 and 1.6 (parity pack section
    1).

    Attributes:
        in_channels, out_channels: latent channels in (noise 4, mask 1, masked 4, reference 4) and out.
        block_out_channels: widths from fine to coarse.
        layers_per_block: residual blocks of a down block; up blocks have one more.
        attention_head_dim: number of heads (so named in the published file).
        cross_attention_dim: width of an audio token: 384 for whisper-tiny, 768 for whisper-small.
        norm_num_groups, norm_eps: of the residual blocks' group norms.
        motion_in_encoder, motion_in_decoder: where motion modules stand.
        motion_heads, motion_max_frames: of the motion modules; a window cannot hold more frames.
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

    @property
    def time_embed_dim(self) -> int:
        return 4 * self.block_out_channels[0]

    @classmethod
    def from_published(cls, fields: Mapping[str, Any]) -> UNetConfig:
        """Read the published form (`unet_latentsync_config.json`).

        Raises:
            WeightsError: a field has a value that this network does not implement.
        """
        for name, expected in _FIXED.items():
            if name in fields and _plain(fields[name]) != expected:
                raise WeightsError(
                    ErrorCode.WEIGHTS_ARCHITECTURE,
                    f"The model's configuration has {name}={fields[name]!r}, but only {expected!r} is "
                    "supported: use weights of LatentSync 1.5 or 1.6.",
                )
        motion = bool(fields.get("use_motion_module", False))
        kwargs = fields.get("motion_module_kwargs") or {}
        return cls(
            in_channels=int(fields["in_channels"]),
            out_channels=int(fields["out_channels"]),
            block_out_channels=tuple(int(width) for width in fields["block_out_channels"]),
            layers_per_block=int(fields["layers_per_block"]),
            attention_head_dim=int(fields["attention_head_dim"]),
            cross_attention_dim=int(fields["cross_attention_dim"]),
            norm_num_groups=int(fields["norm_num_groups"]),
            norm_eps=float(fields["norm_eps"]),
            motion_in_encoder=motion and not fields.get("motion_module_decoder_only", False),
            motion_in_decoder=motion,
            motion_heads=int(kwargs.get("num_attention_heads", 8)),
            motion_max_frames=int(kwargs.get("temporal_position_encoding_max_len", 24)),
        )


_FIXED: Mapping[str, Any] = {
    "act_fn": "silu",
    "add_audio_layer": True,
    "center_input_sample": False,
    "down_block_types": ["CrossAttnDownBlock3D"] * 3 + ["DownBlock3D"],
    "mid_block_type": "UNetMidBlock3DCrossAttn",
    "up_block_types": ["UpBlock3D"] + ["CrossAttnUpBlock3D"] * 3,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "resnet_time_scale_shift": "default",
    "motion_module_mid_block": False,
    "motion_module_type": "Vanilla",
    "motion_module_resolutions": [1, 2, 4, 8],
    "use_inflated_groupnorm": False,
}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
