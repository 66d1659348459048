"""Linear layers in eight-bit floating point, for GPUs that multiply it at twice the rate of half precision.

Weights are quantized once, inputs at every forward pass. Each row has its own scale, so a window's result
does not depend on the other windows of its batch. This module knows neither devices nor settings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lipsync_engine.models.latentsync.unet import AudioCrossAttention, MotionModule, SpatialTransformer

FLOAT8 = torch.float8_e4m3fn
FLOAT8_MAX = torch.finfo(FLOAT8).max
MIN_SCALE = torch.finfo(torch.float32).tiny
"""Keeps rows of zeros at zero."""

MIN_FLOP_PER_BYTE = 300
"""Arithmetic intensity from which a layer is quantized: FLOP per byte of inputs and results in half
precision, which follows from its sides. Below it the layer is memory bound (an H100 does 295 FLOP per byte),
and quantizing the inputs only adds a pass."""

SIDE_MULTIPLE = 16
"""Both sides of the weights must be a multiple of this for eight-bit matrix products on a GPU."""


class Float8Linear(nn.Module):
    """Linear layer that equals `linear` within about 4 %: (..., K) → (..., N), in the input's dtype.

    Products are summed in float32 and returned in bfloat16, the only dtype that all such GPUs and torch
    versions support for row-wise scales.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = quantize_rows(linear.weight)
        self.weight, self.scale = (nn.Parameter(part, requires_grad=False) for part in (weight, scale))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = quantize_rows(
            x.flatten(0, -2).contiguous()
        )  # the product takes rows in row-major order
        row_wise = F.ScalingType.RowWise
        y: Tensor = F.scaled_mm(
            rows,
            self.weight.t(),
            scale,
            row_wise,
            self.scale.t(),
            row_wise,
            bias=None if self.bias is None else self.bias.to(torch.bfloat16),
            output_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return y.to(x.dtype).view(*x.shape[:-1], len(self.weight))


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize rows (R, K) to float8 over its full range; return them and float32 (R, 1) scales."""
    scale = (rows.abs().amax(-1, keepdim=True).float() / FLOAT8_MAX).clamp(min=MIN_SCALE)
    return (rows.float() / scale).clamp(-FLOAT8_MAX, FLOAT8_MAX).to(FLOAT8), scale


def to_float8(unet: nn.Module, min_flop_per_byte: float = MIN_FLOP_PER_BYTE) -> list[str]:
    """Replace linear layers of attention and feed-forward by `Float8Linear`, in place.

    Args:
        unet: `LatentSyncUNet`.
        min_flop_per_byte: see `MIN_FLOP_PER_BYTE`.

    Returns:
        Names of the replaced layers.
    """
    replaced = []
    audio_projections = {  # run once per window on a few rows: nothing to gain
        layer
        for module in unet.modules()
        if isinstance(module, AudioCrossAttention)
        for layer in (module.to_k, module.to_v)
    }
    for parent_name, parent in unet.named_modules():
        if not isinstance(parent, (SpatialTransformer, MotionModule)):
            continue
        for name, layer in list(parent.named_modules()):
            if not isinstance(layer, nn.Linear) or layer in audio_projections:
                continue
            if _is_compute_bound(layer, min_flop_per_byte):
                parent.set_submodule(name, Float8Linear(layer))
                replaced.append(f"{parent_name}.{name}")
    return replaced


def _is_compute_bound(layer: nn.Linear, min_flop_per_byte: float) -> bool:
    k, n = layer.in_features, layer.out_features
    return k % SIDE_MULTIPLE == n % SIDE_MULTIPLE == 0 and k * n / (k + n) >= min_flop_per_byte
