"""When device memory runs out: less at a time, weights that wait elsewhere, and a typed failure after that.

The device's limit is played by hooks on diffusers' VAE and on the U-Net: given more than fits, they raise
what CUDA's allocator raises.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lipsync_engine import LipSyncPipeline
from lipsync_engine.models.latentsync.compile import CompiledUNet
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


def test_weights_wait_elsewhere_when_they_leave_no_room(
    model: LatentSync, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = window(model)
    blocks = model.unet.blocks
    at_home = {id(block): block.resnets[0].conv1.weight.data_ptr() for block in blocks}
    here: list[list[int]] = []

    def refuse(running: nn.Module, _: Any) -> None:
        """There is room for one block's weights."""
        here.append([i for i, block in enumerate(blocks) if address(block) != at_home[id(block)]])
        if model.memory.thrift < Thrift.OFFLOADED:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    def address(block: Any) -> int:
        return int(block.resnets[0].conv1.weight.data_ptr())

    for block in blocks:
        block.resnets[0].register_forward_pre_hook(refuse)
    found = window(model)
    assert model.memory == MemoryPlan(Thrift.OFFLOADED, 1)
    assert torch.allclose(found, wanted, atol=1e-4)
    assert here[-len(blocks) :] == [[i] for i in range(len(blocks))]
    assert [line for line in caplog.messages if "ran out" in line] == [
        f"device memory ran out; trying again: {MemoryPlan(thrift, 1).describe()}"
        for thrift in (Thrift.SINGLE, Thrift.OFFLOADED)
    ]
    caplog.clear()
    assert torch.equal(window(model), found)
    assert caplog.messages == []  # what was learned is kept


def test_a_model_may_begin_offloaded(model: LatentSync) -> None:
    wanted = window(model)
    lean = MemoryPlan(Thrift.OFFLOADED, 1)
    found = LatentSync(model.info, model.unet, model._vae, model.audio_encoder, model._run, lean)
    assert torch.allclose(window(found), wanted, atol=1e-4)


def test_recorded_runs_are_given_up_first(
    model: LatentSync, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    wanted = window(model)
    network = CompiledUNet(model.unet, FRAMES, tmp_path, lambda work: (work(), lambda: None))
    model._compiled = model._network.network = network
    failures = iter([True])

    def refuse(*_: Any) -> None:
        if next(failures, False):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.unet.mid_block.register_forward_pre_hook(refuse)
    assert torch.equal(window(model), wanted)
    assert model.memory == MemoryPlan()
    assert not network.forget_runs()


def test_when_nothing_helps_it_fails(model: LatentSync) -> None:
    limit(model.unet.conv_in, 1)
    with pytest.raises(torch.OutOfMemoryError):
        window(model)
