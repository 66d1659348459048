"""CPU offload: the U-Net's blocks stay in host memory and are copied to the device for their forward pass.

The keys and values of audio cross-attention are computed ahead of the blocks, so those layers stay on the
device, as does everything outside the blocks: 3 % of the weights. Weights never change, so nothing is copied
back.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lipsync_engine.models.latentsync.unet import LatentSyncUNet


def enable_cpu_offload(unet: LatentSyncUNet, device: torch.device) -> None:
    """Keep each block's weights in host memory except during its forward pass on `device`.

    Everything else is moved to `device`.
    """
    offloaded: set[nn.Parameter] = set()
    for block in unet.blocks:
        parameters = offloadable_parameters(block)
        host_copies = [_host_copy(parameter.data, device) for parameter in parameters]
        _assign(parameters, host_copies)
        block.register_forward_pre_hook(partial(_load_block, parameters, host_copies, device))
        block.register_forward_hook(partial(_evict_block, parameters, host_copies), always_call=True)
        offloaded.update(parameters)
    for tensor in (*unet.parameters(), *unet.buffers()):
        if tensor not in offloaded:
            tensor.data = tensor.data.to(device)


def offloadable_parameters(block: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are needed only during the block's forward pass."""
    return [parameter for name, parameter in block.named_parameters() if ".attn2." not in name]


def _host_copy(weights: Tensor, device: torch.device) -> Tensor:
    """Copy weights to host memory; pinned for CUDA, so that a copy to the GPU does not block."""
    host_copy = weights.to("cpu")
    return host_copy.pin_memory() if device.type == "cuda" else host_copy


def _assign(parameters: Sequence[nn.Parameter], tensors: Sequence[Tensor]) -> None:
    for parameter, tensor in zip(parameters, tensors, strict=True):
        parameter.data = tensor


def _load_block(
    parameters: Sequence[nn.Parameter], host_copies: Sequence[Tensor], device: torch.device, *_: Any
) -> None:
    _assign(parameters, [copy.to(device, non_blocking=True, copy=True) for copy in host_copies])


def _evict_block(parameters: Sequence[nn.Parameter], host_copies: Sequence[Tensor], *_: Any) -> None:
    _assign(parameters, host_copies)
