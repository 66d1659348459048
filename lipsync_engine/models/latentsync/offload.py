"""Weights that wait in the host's memory and come to the device for a block's turn only.

The keys and values of the sound are computed ahead of the blocks' turns, so audio attention stays, as does
what belongs to no block: 3 % of the weights. Nothing is written back, for weights do not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lipsync_engine.models.latentsync.unet import LatentSyncUNet


def offload(unet: LatentSyncUNet, device: torch.device) -> None:
    """Keep the blocks' weights on the host until their block runs on `device`; all else goes there."""
    waiting: set[nn.Parameter] = set()
    for block in unet.blocks:
        parameters = streamed(block)
        homes = [_home(parameter.data, device) for parameter in parameters]
        _point(parameters, homes)
        block.register_forward_pre_hook(partial(_come, parameters, homes, device))
        block.register_forward_hook(partial(_go, parameters, homes), always_call=True)
        waiting.update(parameters)
    for tensor in (*unet.parameters(), *unet.buffers()):
        if tensor not in waiting:
            tensor.data = tensor.data.to(device)


def streamed(block: nn.Module) -> list[nn.Parameter]:
    """Those that can wait."""
    return [parameter for name, parameter in block.named_parameters() if ".attn2." not in name]


def _home(weights: Tensor, device: torch.device) -> Tensor:
    """A copy from which a GPU reads without the processor's help."""
    home = weights.to("cpu")
    return home.pin_memory() if device.type == "cuda" else home


def _point(parameters: Sequence[nn.Parameter], tensors: Sequence[Tensor]) -> None:
    for parameter, tensor in zip(parameters, tensors, strict=True):
        parameter.data = tensor


def _come(parameters: Sequence[nn.Parameter], homes: Sequence[Tensor], device: torch.device, *_: Any) -> None:
    _point(parameters, [home.to(device, non_blocking=True, copy=True) for home in homes])


def _go(parameters: Sequence[nn.Parameter], homes: Sequence[Tensor], *_: Any) -> None:
    _point(parameters, homes)
