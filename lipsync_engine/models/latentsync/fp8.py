"""Linear layers in eight-bit floating point, for GPUs that multiply it at twice the rate of half precision.

Weights are rounded once, inputs at every run; each row has a scale of its own, so what a window says does not
depend on which others share its run. It knows neither devices nor whether anybody wants it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lipsync_engine.models.latentsync.unet import AudioAttention, MotionModule, SpatialTransformer

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
SMALLEST_SCALE = torch.finfo(torch.float32).tiny
"""A row of zeros stays zeros."""

LEAST_WORK = 300
"""FLOP of a layer per byte of inputs and results in half precision, which is what its sides decide. With less
it waits for memory (an H100 does 295 in the time of one byte), and eight bits would only add a pass."""

SIDES = 16
"""What a GPU's eight-bit product needs both sides of the weights to be a multiple of."""


class Float8Linear(nn.Module):
    """Says what `linear` says within about 4 %: (..., K) → (..., N), in the input's dtype.

    Products are summed in float32 and come in bfloat16, the one dtype that every such GPU and version of
    torch gives for scales by row.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = rounded(linear.weight)
        self.weight, self.scale = (nn.Parameter(part, requires_grad=False) for part in (weight, scale))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = rounded(x.flatten(0, -2))
        by_row = F.ScalingType.RowWise
        y: Tensor = F.scaled_mm(
            rows,
            self.weight.t(),
            scale,
            by_row,
            self.scale.t(),
            by_row,
            bias=None if self.bias is None else self.bias.to(torch.bfloat16),
            output_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return y.to(x.dtype).view(*x.shape[:-1], len(self.weight))


def rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (R, K) as float8, each as large as float8 can be, and their scales, float32 (R, 1)."""
    scale = (rows.abs().amax(-1, keepdim=True).float() / LARGEST).clamp(min=SMALLEST_SCALE)
    return (rows.float() / scale).clamp(-LARGEST, LARGEST).to(FLOAT8), scale


def to_float8(unet: nn.Module, least_work: float = LEAST_WORK) -> list[str]:
    """Turn layers of attention and feed-forward into `Float8Linear`, in place.

    Args:
        unet: `LatentSyncUNet`.
        least_work: see `LEAST_WORK`.

    Returns:
        Their names.
    """
    turned = []
    once = {  # per window, of a few rows: nothing to gain
        layer
        for module in unet.modules()
        if isinstance(module, AudioAttention)
        for layer in (module.to_k, module.to_v)
    }
    for outer_name, outer in unet.named_modules():
        if not isinstance(outer, (SpatialTransformer, MotionModule)):
            continue
        for name, layer in list(outer.named_modules()):
            if isinstance(layer, nn.Linear) and layer not in once and _pays(layer, least_work):
                outer.set_submodule(name, Float8Linear(layer))
                turned.append(f"{outer_name}.{name}")
    return turned


def _pays(layer: nn.Linear, least_work: float) -> bool:
    inner, outer = layer.in_features, layer.out_features
    return inner % SIDES == outer % SIDES == 0 and inner * outer / (inner + outer) >= least_work
