"""Tests of the retries when device memory runs out: less at a time, CPU offload, and then a typed error.

Hooks on the real networks stand in for the device's limit. For inputs that are too large they raise what
CUDA's allocator raises.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lipsync_engine import LipSyncPipeline
from lipsync_engine.models.latentsync.compile import CompiledUNet
from lipsync_engine.models.latentsync.memory import MemoryMode, MemoryPlan
from lipsync_engine.models.latentsync.model import LatentSync

FRAMES = 16


@pytest.fixture
def model() -> LatentSync:
    loaded = LipSyncPipeline.from_pretrained("tiny", device="cpu").model
    assert isinstance(loaded, LatentSync)
    return loaded


def limit_input_size(network: nn.Module, values: int) -> None:
    """Let a network accept inputs of at most this many values."""

    def reject(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        if arguments[0].numel() > values:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    network.register_forward_pre_hook(reject)


def generate_window(model: LatentSync) -> Tensor:
    """Generate float (16, 3, R, R) faces from the same faces, audio and noise each time."""
    side = model.info.resolution
    draw = torch.Generator().manual_seed(3)
    faces = torch.rand(FRAMES, 3, side, side, generator=draw) * 2 - 1
    audio = torch.randn(FRAMES, 8, 96, generator=draw)
    latents = model.denoise(
        faces, audio, noise=model.initial_noise(1), num_inference_steps=2, guidance_scale=2.0
    )
    return model.decode(latents)


def test_sequential_mode_gives_the_same_faces(model: LatentSync) -> None:
    expected = generate_window(model)
    assert model.memory == MemoryPlan()
    side = model.info.resolution
    limit_input_size(model.vae.encoder, 3 * side * side)
    one_item = model.unet.config.block_out_channels[-1] * FRAMES * (side // 32) ** 2
    limit_input_size(model.unet.mid_block, one_item)
    assert torch.allclose(generate_window(model), expected, atol=1e-4)
    assert model.memory == MemoryPlan(MemoryMode.SEQUENTIAL, 1)


def test_cpu_offload_keeps_one_block_on_the_device(
    model: LatentSync, caplog: pytest.LogCaptureFixture
) -> None:
    expected = generate_window(model)
    blocks = model.unet.blocks

    def address(block: Any) -> int:
        return int(block.resnets[0].conv1.weight.data_ptr())

    host_addresses = {id(block): address(block) for block in blocks}
    loaded: list[list[int]] = []

    def reject(running: nn.Module, _: Any) -> None:
        """Accept the forward pass only if the weights of a single block are on the device."""
        loaded.append([i for i, block in enumerate(blocks) if address(block) != host_addresses[id(block)]])
        if model.memory.mode < MemoryMode.OFFLOAD:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    for block in blocks:
        block.resnets[0].register_forward_pre_hook(reject)
    faces = generate_window(model)
    assert model.memory == MemoryPlan(MemoryMode.OFFLOAD, 1)
    assert torch.allclose(faces, expected, atol=1e-4)
    assert loaded[-len(blocks) :] == [[i] for i in range(len(blocks))]
    assert [line for line in caplog.messages if "out of device memory" in line] == [
        f"out of device memory; retrying with {MemoryPlan(mode, 1).describe()}"
        for mode in (MemoryMode.SEQUENTIAL, MemoryMode.OFFLOAD)
    ]
    caplog.clear()
    assert torch.equal(generate_window(model), faces)
    assert caplog.messages == []  # the lower mode is kept


def test_model_can_start_with_cpu_offload(model: LatentSync) -> None:
    expected = generate_window(model)
    offloaded = LatentSync(
        model.info,
        model.unet,
        model.vae,
        model.audio_encoder,
        model.run_config,
        MemoryPlan(MemoryMode.OFFLOAD, 1),
    )
    assert torch.allclose(generate_window(offloaded), expected, atol=1e-4)


def test_cuda_graphs_are_released_before_the_plan_changes(
    model: LatentSync, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    expected = generate_window(model)
    compiled = CompiledUNet(model.unet, FRAMES, tmp_path, lambda forward: (forward(), lambda: None))
    model.use_compiled(compiled)
    failures = iter([True])

    def reject_once(*_: Any) -> None:
        if next(failures, False):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.unet.mid_block.register_forward_pre_hook(reject_once)
    assert torch.equal(generate_window(model), expected)
    assert model.memory == MemoryPlan()
    assert not compiled.release_graphs()


def test_out_of_memory_with_the_last_plan_is_raised(model: LatentSync) -> None:
    limit_input_size(model.unet.conv_in, 1)
    with pytest.raises(torch.OutOfMemoryError):
        generate_window(model)
