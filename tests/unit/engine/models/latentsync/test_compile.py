"""Compiled and recorded runs of full windows say what the plain network says; nothing else is touched."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from lipsync_engine.device import choose_compiling
from lipsync_engine.errors import ParameterError
from lipsync_engine.models.latentsync.compile import CompiledUNet, Predicted, RecordedRuns, Work
from lipsync_engine.models.latentsync.config import RunConfig, UNetConfig
from lipsync_engine.models.latentsync.model import EVERY_KIND_OF_STEP, KINDS
from lipsync_engine.models.latentsync.sampling import DenoiseInputs, Network, sampling_steps, signal_levels
from lipsync_engine.models.latentsync.unet import LatentSyncUNet
from lipsync_engine.params import EXACT, PRESETS, Shortcuts

FRAMES, SIDE, TOKENS, WIDTH = 4, 8, 6, 32


@pytest.fixture
def unet() -> LatentSyncUNet:
    torch.manual_seed(2)
    network = LatentSyncUNet(
        UNetConfig(block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=WIDTH)
    )
    for name, parameter in network.named_parameters():
        if "temporal_transformer.proj_out" in name:  # a fresh motion module is silent
            torch.nn.init.normal_(parameter, std=0.1)
    return network.eval().requires_grad_(False)


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty folder for compiled code, and nothing compiled before or left after."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    counters.clear()
    yield tmp_path
    torch._dynamo.reset()


def sampled(
    network: Network, shortcuts: Shortcuts = EXACT, *, frames: int = FRAMES, steps: int = 4, seed: int = 5
) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    latents = torch.randn(2, 1, 4, frames, SIDE, SIDE, generator=draw)
    audio = torch.randn(frames, TOKENS, WIDTH, generator=draw)
    inputs = DenoiseInputs(torch.ones(1, 1, frames, SIDE, SIDE), latents[0], latents[1], audio)
    noise = torch.randn(1, 4, 1, SIDE, SIDE, generator=draw)
    *_, last = sampling_steps(
        network,
        RunConfig(),
        inputs,
        noise=noise,
        num_inference_steps=steps,
        guidance_scale=2.0,
        shortcuts=shortcuts,
    )
    return last.latents


MODES = [EXACT, *(preset["shortcuts"] for preset in PRESETS.values() if "shortcuts" in preset)]


@pytest.mark.slow
def test_compiled_code_says_the_same_and_is_found_again(unet: LatentSyncUNet, cold: Path) -> None:
    wanted = [sampled(unet, mode) for mode in MODES]
    short = sampled(unet, frames=3)
    network = CompiledUNet(unet, FRAMES, cold)
    assert network.compile(lambda: sampled(network, KINDS, steps=EVERY_KIND_OF_STEP))
    compiled = counters["inductor"]["fxgraph_cache_miss"]
    assert compiled > 5
    for mode, latents in zip(MODES, wanted, strict=True):
        found = sampled(network, mode)
        assert not torch.equal(found, latents)  # it was other code
        assert (found - latents).norm() < 1e-5 * latents.norm()
    assert torch.equal(sampled(network, frames=3), short)  # other windows run as before
    assert counters["inductor"]["fxgraph_cache_miss"] == compiled  # and no job waits for a compiler

    torch._dynamo.reset()  # as in a new process
    again = CompiledUNet(unet, FRAMES, cold)
    assert again.compile(lambda: sampled(again, KINDS, steps=EVERY_KIND_OF_STEP))
    assert counters["inductor"]["fxgraph_cache_miss"] == compiled
    assert counters["inductor"]["fxgraph_cache_hit"] == compiled


def test_without_a_compiler_everything_runs_as_before(
    unet: LatentSyncUNet, cold: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("/no/such/compiler",))
    wanted = sampled(unet)
    network = CompiledUNet(unet, FRAMES, cold)
    with caplog.at_level(logging.WARNING):
        assert not network.compile(lambda: sampled(network, KINDS, steps=EVERY_KIND_OF_STEP))
    assert torch.equal(sampled(network), wanted)
    assert [line for line in caplog.messages if "cannot be compiled" in line and "g++" in line]


# --- recorded runs ---


class Recorder:
    """Does the work itself again, into the first results: all that CUDA graphs do, but for their speed."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, work: Work) -> tuple[Predicted, Callable[[], None]]:
        self.recorded += 1
        results = work()

        def again() -> None:
            for place, new in zip(results, work(), strict=True):
                place.copy_(new)

        return results, again


class Recording:
    """A network whose runs are all recorded."""

    def __init__(self, unet: LatentSyncUNet, recorder: Recorder) -> None:
        self.listen, self.predict = unet.listen, RecordedRuns(unet.predict, recorder)


@pytest.mark.parametrize("mode", [*MODES, Shortcuts(reuse_within=0.2)], ids=str)
def test_recorded_runs_say_the_same_window_after_window(unet: LatentSyncUNet, mode: Shortcuts) -> None:
    recorder = Recorder()
    network = Recording(unet, recorder)
    for seed in (5, 6):  # other faces and another sound at the same places
        wanted = sampled(unet, mode, seed=seed, steps=6)
        assert torch.equal(sampled(network, mode, seed=seed, steps=6), wanted)
    levels = signal_levels(RunConfig().scheduler, mode.solver, 6)
    assert recorder.recorded == len(set(mode.schedule(levels, guided=True)))


def test_what_presets_run_is_compiled_at_the_start() -> None:
    def kinds(shortcuts: Shortcuts, steps: int) -> set[tuple[bool, bool]]:
        levels = signal_levels(RunConfig().scheduler, shortcuts.solver, steps)
        return set(shortcuts.schedule(levels, guided=True))

    ready = kinds(KINDS, EVERY_KIND_OF_STEP)
    for preset in PRESETS.values():
        steps = preset.get("num_inference_steps", 20)
        assert kinds(preset.get("shortcuts", EXACT), steps) <= ready


# --- whether ---


@pytest.mark.parametrize(
    ("asked", "variable", "wanted"),
    [(None, "", False), (None, "true", True), (None, "0", False), (False, "true", False), (True, "", True)],
)
def test_compiling_is_chosen_by_the_caller_then_by_the_environment(
    asked: bool | None, variable: str, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIPSYNC_COMPILE", variable)
    assert choose_compiling(asked) is wanted


def test_a_variable_that_is_not_understood_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIPSYNC_COMPILE", "perhaps")
    with pytest.raises(ParameterError, match="LIPSYNC_COMPILE='perhaps'"):
        choose_compiling(None)
