"""When device memory runs out: less at a time, and a typed failure when even that is too much.

The device's limit is played by hooks on diffusers' VAE and on the U-Net: given more than fits, they raise
what CUDA's allocator raises.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lipsync_engine import LipSyncPipeline
from lipsync_engine.models.latentsync.memory import MemoryPlan, Thrift
from lipsync_engine.models.latentsync.model import LatentSync

FRAMES = 16


@pytest.fixture
def model() -> LatentSync:
    loaded = LipSyncPipeline.from_pretrained("tiny", device="cpu").model
    assert isinstance(loaded, LatentSync)
    return loaded


def limit(network: nn.Module, values: int) -> None:
    """Let a network take inputs of at most so many values."""

    def refuse(_: nn.Module, given: tuple[Any, ...]) -> None:
        if given[0].numel() > values:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    network.register_forward_pre_hook(refuse)


def window(model: LatentSync) -> Tensor:
    """float (16, 3, R, R): a window made from the same faces, sound and noise each time."""
    side = model.info.resolution
    draw = torch.Generator().manual_seed(3)
    faces = torch.rand(FRAMES, 3, side, side, generator=draw) * 2 - 1
    heard = torch.randn(FRAMES, 8, 96, generator=draw)
    latents = model.denoise(
        faces, heard, noise=model.initial_noise(1), num_inference_steps=2, guidance_scale=2.0
    )
    return model.decode(latents)


def test_one_at_a_time_gives_the_same_picture(model: LatentSync) -> None:
    wanted = window(model)
    assert model.memory == MemoryPlan()
    side = model.info.resolution
    limit(model._vae.encoder, 3 * side * side)
    one_item = model.unet.config.block_out_channels[-1] * FRAMES * (side // 32) ** 2
    limit(model.unet.mid_block, one_item)
    assert torch.allclose(window(model), wanted, atol=1e-4)
    assert model.memory == MemoryPlan(Thrift.SINGLE, 1)


def test_tiles_when_one_picture_is_too_much(model: LatentSync, caplog: pytest.LogCaptureFixture) -> None:
    wanted = window(model)
    side = model.info.resolution
    limit(model._vae.decoder, 4 * (side // 8) ** 2)
    found = window(model)
    assert model.memory == MemoryPlan(Thrift.TILED, 1)
    assert 10 * torch.log10(4 / ((found - wanted) ** 2).mean()) > 25
    assert [line for line in caplog.messages if "ran out" in line] == [
        f"device memory ran out; trying again, {MemoryPlan(thrift, 1)}"
        for thrift in (Thrift.SINGLE, Thrift.TILED)
    ]
    caplog.clear()
    window(model)
    assert caplog.messages == []  # what was learned is kept


def test_when_nothing_helps_it_fails(model: LatentSync) -> None:
    limit(model.unet.conv_in, 1)
    with pytest.raises(torch.OutOfMemoryError):
        window(model)
