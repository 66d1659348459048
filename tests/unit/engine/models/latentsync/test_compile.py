"""Tests of compiled layers and CUDA graphs: full windows equal eager ones, other windows stay eager."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from lipsync_engine.device import choose_compile
from lipsync_engine.errors import ParameterError
from lipsync_engine.models.latentsync.compile import CompiledUNet, CudaGraphs, Forward, Prediction
from lipsync_engine.models.latentsync.config import RunConfig, UNetConfig
from lipsync_engine.models.latentsync.model import WARM_UP_SAMPLING, WARM_UP_STEPS
from lipsync_engine.models.latentsync.sampling import DenoiseInputs, Denoiser, sampling_steps, signal_levels
from lipsync_engine.models.latentsync.unet import LatentSyncUNet
from lipsync_engine.params import EXACT_SAMPLING, PRESETS, FastSampling

FRAMES, SIDE, TOKENS, WIDTH = 4, 8, 6, 32


@pytest.fixture
def unet() -> LatentSyncUNet:
    torch.manual_seed(2)
    network = LatentSyncUNet(
        UNetConfig(block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=WIDTH)
    )
    for name, parameter in network.named_parameters():
        if "temporal_transformer.proj_out" in name:  # a new motion module has no effect
            torch.nn.init.normal_(parameter, std=0.1)
    return network.eval().requires_grad_(False)


@pytest.fixture
def compile_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty folder for compiled code; nothing is compiled before or afterwards."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    counters.clear()
    yield tmp_path
    torch._dynamo.reset()


def sample_window(
    denoiser: Denoiser,
    fast_sampling: FastSampling = EXACT_SAMPLING,
    *,
    frames: int = FRAMES,
    steps: int = 4,
    seed: int = 5,
) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    latents = torch.randn(2, 1, 4, frames, SIDE, SIDE, generator=draw)
    audio = torch.randn(frames, TOKENS, WIDTH, generator=draw)
    inputs = DenoiseInputs(torch.ones(1, 1, frames, SIDE, SIDE), latents[0], latents[1], audio)
    noise = torch.randn(1, 4, 1, SIDE, SIDE, generator=draw)
    *_, last = sampling_steps(
        denoiser,
        RunConfig(),
        inputs,
        noise=noise,
        num_inference_steps=steps,
        guidance_scale=2.0,
        fast_sampling=fast_sampling,
    )
    return last.latents


MODES = [
    EXACT_SAMPLING,
    *(preset["fast_sampling"] for preset in PRESETS.values() if "fast_sampling" in preset),
]


@pytest.mark.slow
def test_compiled_unet_equals_eager_and_reuses_its_cache(unet: LatentSyncUNet, compile_cache: Path) -> None:
    eager = [sample_window(unet, mode) for mode in MODES]
    eager_short = sample_window(unet, frames=3)
    compiled = CompiledUNet(unet, FRAMES, compile_cache)
    assert compiled.compile(lambda: sample_window(compiled, WARM_UP_SAMPLING, steps=WARM_UP_STEPS))
    misses = counters["inductor"]["fxgraph_cache_miss"]
    assert misses > 5
    for mode, expected in zip(MODES, eager, strict=True):
        latents = sample_window(compiled, mode)
        assert not torch.equal(latents, expected)  # other code ran
        assert (latents - expected).norm() < 1e-5 * expected.norm()
    assert torch.equal(sample_window(compiled, frames=3), eager_short)  # other lengths stay eager
    assert counters["inductor"]["fxgraph_cache_miss"] == misses  # and start no compiler

    torch._dynamo.reset()  # as in a new process
    reloaded = CompiledUNet(unet, FRAMES, compile_cache)
    assert reloaded.compile(lambda: sample_window(reloaded, WARM_UP_SAMPLING, steps=WARM_UP_STEPS))
    assert counters["inductor"]["fxgraph_cache_miss"] == misses
    assert counters["inductor"]["fxgraph_cache_hit"] == misses


def test_unet_runs_uncompiled_without_a_compiler(
    unet: LatentSyncUNet,
    compile_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("/no/such/compiler",))
    expected = sample_window(unet)
    compiled = CompiledUNet(unet, FRAMES, compile_cache)
    with caplog.at_level(logging.WARNING):
        assert not compiled.compile(lambda: sample_window(compiled, WARM_UP_SAMPLING, steps=WARM_UP_STEPS))
    assert torch.equal(sample_window(compiled), expected)
    assert [line for line in caplog.messages if "cannot be compiled" in line and "g++" in line]


# --- CUDA graphs ---


class FakeCapture:
    """Replays by running the forward pass again into the first results, as a CUDA graph does on a GPU."""

    def __init__(self) -> None:
        self.captures = 0

    def __call__(self, forward: Forward) -> tuple[Prediction, Callable[[], None]]:
        self.captures += 1
        results = forward()

        def replay() -> None:
            for result, update in zip(results, forward(), strict=True):
                result.copy_(update)

        return results, replay


class GraphedDenoiser:
    """A denoiser whose forward passes are all captured."""

    def __init__(self, unet: LatentSyncUNet, capture: FakeCapture) -> None:
        self.precompute_audio_kv = unet.precompute_audio_kv
        self.predict = CudaGraphs(unet.predict, capture)


@pytest.mark.parametrize("mode", [*MODES, FastSampling(feature_cache_threshold=0.2)], ids=str)
def test_graph_replay_equals_eager_for_consecutive_windows(unet: LatentSyncUNet, mode: FastSampling) -> None:
    capture = FakeCapture()
    denoiser = GraphedDenoiser(unet, capture)
    for seed in (5, 6):  # other faces and audio in the same buffers
        expected = sample_window(unet, mode, seed=seed, steps=6)
        assert torch.equal(sample_window(denoiser, mode, seed=seed, steps=6), expected)
    levels = signal_levels(RunConfig().scheduler, mode.solver, 6)
    assert capture.captures == len(set(mode.schedule_steps(levels, use_guidance=True)))


def test_warm_up_covers_every_step_kind_of_the_presets() -> None:
    def step_kinds(fast_sampling: FastSampling, steps: int) -> set[tuple[bool, bool]]:
        levels = signal_levels(RunConfig().scheduler, fast_sampling.solver, steps)
        return set(fast_sampling.schedule_steps(levels, use_guidance=True))

    warm = step_kinds(WARM_UP_SAMPLING, WARM_UP_STEPS)
    for preset in PRESETS.values():
        steps = preset.get("num_inference_steps", 20)
        assert step_kinds(preset.get("fast_sampling", EXACT_SAMPLING), steps) <= warm


# --- the setting ---


def test_argument_overrides_compile_setting(
    subtests: pytest.Subtests, monkeypatch: pytest.MonkeyPatch
) -> None:
    for argument, variable, expected in [
        (None, "", False),
        (None, "true", True),
        (None, "0", False),
        (False, "true", False),
        (True, "", True),
    ]:
        with subtests.test(argument=argument, variable=variable, expected=expected):
            monkeypatch.setenv("LIPSYNC_COMPILE", variable)
            assert choose_compile(argument) is expected


def test_invalid_compile_setting_is_named_in_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIPSYNC_COMPILE", "perhaps")
    with pytest.raises(ParameterError, match="LIPSYNC_COMPILE='perhaps'"):
        choose_compile(None)
