"""The fast way equals the slow way, and a shortcut leaves out what it says and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lipsync_engine.models.latentsync.config import RunConfig, UNetConfig
from lipsync_engine.models.latentsync.model import LatentSync, load
from lipsync_engine.models.latentsync.sampling import (
    DenoiseInputs,
    _scheduler,
    _Sums,
    sampling_steps,
    signal_levels,
)
from lipsync_engine.models.latentsync.unet import LatentSyncUNet
from lipsync_engine.params import EXACT, PRESETS, Shortcuts, Solver
from lipsync_engine.weights import WeightsStore
from tests.support import flops
from tests.support.paths import ROOT, SHARED

PARITY = SHARED / "parity"
FRAMES, SIDE, TOKENS = 3, 8, 8


@pytest.fixture(scope="module")
def model() -> LatentSync:
    store = WeightsStore()
    return load(store.entry("tiny"), store.files("tiny"), "", torch.device("cpu"), torch.float32)


def tiny_run() -> RunConfig:
    return RunConfig.parse(json.loads((ROOT / "weights" / "tiny" / "model_config.json").read_text()))


def inputs(device: str = "cpu", width: int = 96) -> DenoiseInputs:
    draw = torch.Generator().manual_seed(5)
    latents = torch.randn(2, 1, 4, FRAMES, SIDE, SIDE, generator=draw).to(device)
    mask = torch.ones(1, 1, FRAMES, SIDE, SIDE, device=device)
    return DenoiseInputs(
        mask, latents[0], latents[1], torch.randn(FRAMES, TOKENS, width, generator=draw).to(device)
    )


def sampled(
    unet: LatentSyncUNet, steps: int, shortcuts: Shortcuts = EXACT, *, in_halves: bool = False
) -> Tensor:
    noise = torch.randn(1, 4, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(6))
    *_, last = sampling_steps(
        unet,
        tiny_run(),
        inputs(),
        noise=noise,
        num_inference_steps=steps,
        guidance_scale=2.0,
        in_halves=in_halves,
        shortcuts=shortcuts,
    )
    return last.latents


ROUNDING = 1.5e-4
"""What batches of other sizes may round otherwise in float32: the parity packs' bound for the U-Net."""


def rows_seen(module: nn.Module, into: list[int]) -> torch.utils.hooks.RemovableHandle:
    return module.register_forward_pre_hook(lambda _, given: into.append(len(given[0])))


@torch.inference_mode()
def test_silence_and_sound_in_one_run_equal_the_plain_network_run_on_both(model: LatentSync) -> None:
    unet, given = model.unet, inputs()
    sample = torch.cat(
        [torch.randn_like(given.masked_latents), given.mask, *[given.masked_latents] * 2], dim=1
    )
    time = torch.tensor(501)
    doubled = torch.cat([torch.zeros_like(given.audio), given.audio])
    plain = unet(sample.expand(2, -1, -1, -1, -1), time, doubled)
    shared, _ = unet.predict(sample, time, unet.listen(given.audio, silent=FRAMES))
    silent, _ = unet.predict(sample, time, unet.listen(given.audio[:0], silent=FRAMES))
    assert torch.allclose(shared, plain, atol=ROUNDING)
    assert torch.allclose(silent, plain[:1], atol=ROUNDING)


@torch.inference_mode()
def test_the_plain_network_takes_channels_in_any_order(model: LatentSync) -> None:
    sample = torch.randn(2, 13, FRAMES, SIDE, SIDE)
    audio = torch.randn(2 * FRAMES, TOKENS, 96)
    wanted = model.unet(sample, torch.tensor(7), audio)
    last = sample.contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(model.unet(last, torch.tensor(7), audio), wanted)


def test_halves_one_after_the_other_give_the_same(model: LatentSync) -> None:
    together = sampled(model.unet, 3)
    assert torch.allclose(sampled(model.unet, 3, in_halves=True), together, atol=1e-4)


@pytest.mark.parametrize("solver", Solver)
def test_the_loop_never_waits_for_the_device(solver: Solver) -> None:
    """On the meta device nothing can be read back: whatever tries fails."""
    with torch.device("meta"):
        unet = LatentSyncUNet(UNetConfig(block_out_channels=(32, 64), cross_attention_dim=96))
    shortcuts = Shortcuts(solver=solver, reuse_within=0.2, guide_every=2)
    noise = torch.empty(1, 4, 1, SIDE, SIDE, device="meta")
    steps = sampling_steps(
        unet,
        RunConfig(),
        inputs("meta"),
        noise=noise,
        num_inference_steps=4,
        guidance_scale=1.5,
        shortcuts=shortcuts,
    )
    assert len(list(steps)) == 4


@torch.inference_mode()
def test_a_later_step_may_use_what_the_coarse_layers_said(model: LatentSync) -> None:
    unet, given = model.unet, inputs()
    sample = torch.cat([given.mask.expand(1, 4, -1, -1, -1), given.mask, *[given.masked_latents] * 2], dim=1)
    heard = unet.listen(given.audio)
    whole, deep = unet.predict(sample, torch.tensor(501), heard)
    runs: list[int] = []
    handle = rows_seen(unet.mid_block, runs)
    again, _ = unet.predict(sample, torch.tensor(501), heard, deep)
    handle.remove()
    assert torch.equal(again, whole)
    assert runs == []


@pytest.mark.parametrize(
    ("shortcuts", "coarse", "fine"),
    [
        (EXACT, [2, 2, 2, 2], [2, 2, 2, 2]),
        (Shortcuts(guide_every=2), [2, 1, 2, 1], [2, 1, 2, 1]),
        (Shortcuts(reuse_within=1.0), [2, 2], [2, 1, 1, 2]),
        (Shortcuts(reuse_within=0.3), [2, 2, 2], [2, 1, 2, 2]),
        (Shortcuts(reuse_within=0.3, guide_every=2), [2, 1, 2], [2, 1, 1, 2]),
        (Shortcuts(reuse_within=1.0, guide_every=2), [2, 1], [2, 1, 1, 1]),
    ],
    ids=lambda value: str(value) if isinstance(value, Shortcuts) else "",
)
def test_what_is_left_out(
    model: LatentSync, shortcuts: Shortcuts, coarse: list[int], fine: list[int]
) -> None:
    """Batch items, step by step, after silence and sound have parted."""
    unet = model.unet
    found: tuple[list[int], list[int]] = ([], [])
    handles = [rows_seen(unet.mid_block, found[0]), rows_seen(unet.conv_norm_out, found[1])]
    sampled(unet, 4, shortcuts)
    for handle in handles:
        handle.remove()
    assert found == (coarse, fine)


@pytest.mark.parametrize(
    ("within", "whole"), [(0.0, [0, 1, 2, 3, 4]), (0.2, [0, 2, 3, 4]), (0.5, [0, 3, 4]), (1.0, [0, 4])]
)
def test_coarse_layers_run_again_when_the_signal_has_moved(within: float, whole: list[int]) -> None:
    levels = [0.1, 0.3, 0.5, 0.8, 0.9]
    schedule = Shortcuts(reuse_within=within).schedule(levels, guided=False)
    assert [number for number, (_, is_whole) in enumerate(schedule) if is_whole] == whole


def test_the_signal_grows_from_noise_to_clean() -> None:
    for solver in Solver:
        levels = signal_levels(RunConfig().scheduler, solver, 8)
        assert levels == sorted(levels)
        assert levels[0] < 0.2
        assert levels[-1] > 0.9


def test_solvers_end_at_the_same_picture(model: LatentSync) -> None:
    """They follow the same curve, in longer strides."""
    wanted, plain = sampled(model.unet, 24), sampled(model.unet, 8)
    for solver in (Solver.DPM, Solver.UNIPC):
        found = sampled(model.unet, 8, Shortcuts(solver=solver))
        assert (found - plain).norm() > 0
        assert (found - wanted).norm() < 0.15 * wanted.norm()


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if "shortcuts" in preset])
def test_presets_are_as_close_to_exact_as_documented(name: str) -> None:
    row = json.loads((ROOT / "benchmarks" / "fast.json").read_text())["modes"][name]
    assert row["ssim"] >= 0.98
    text = (ROOT / "docs" / "speed.md").read_text()
    assert f"| `{name}` |" in text
    assert f"| {row['ssim']:.3f} | {row['psnr_db']:.1f} |" in text


def test_stages_around_the_model_are_as_fast_as_documented() -> None:
    found = json.loads((ROOT / "benchmarks" / "stages.json").read_text())
    text = (ROOT / "docs" / "speed.md").read_text()
    for stage in ("crop", "paste", "together"):
        times = [found[resolution][stage]["times"] for resolution in ("256", "512")]
        assert min(times) > 3
        assert " | ".join(f"{value:.1f}" for value in times) in text
    for stage in ("detect", "encode"):
        assert found[stage]["times"] > 3
        assert " | ".join([f"{found[stage]['times']:.1f}"] * 2) in text


# --- counted at full size ---


def test_our_networks_cost_what_the_published_ones_do() -> None:
    if not PARITY.is_dir():
        pytest.skip(f"no parity pack at {PARITY}")
    published = json.loads((PARITY / "flops.json").read_text())["256x256"]
    unet, vae = flops.networks()
    plain = flops.one_evaluation(unet, 256)
    assert plain == pytest.approx(published["unet_per_frame_per_step_tflop"], rel=0.01)
    assert flops.vae_encode(vae, 256) == pytest.approx(published["vae_encode_per_image_tflop"], rel=0.01)
    assert flops.vae_decode(vae, 256) == pytest.approx(published["vae_decode_per_image_tflop"], rel=0.01)


def test_guidance_costs_less_than_the_network_twice() -> None:
    """Both halves part after the first attention, and silence needs no attention to sound."""
    with torch.device("meta"):
        unet = LatentSyncUNet(UNetConfig(block_out_channels=(64, 128)))
    plain = flops.one_evaluation(unet, 256)
    guided = flops.denoising(unet, 256, 1, 1.5)
    assert plain < guided < 1.95 * plain
    every_other = flops.denoising(unet, 256, 2, 1.5, Shortcuts(guide_every=2))
    assert every_other == pytest.approx(guided + plain, rel=0.01)


class Waits(TorchDispatchMode):
    """Operations that a GPU's host waits for: numbers sent there, equations solved there."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, _: Any, given: Any = (), options: Any = None) -> Any:
        moved = (
            "_to_copy" in str(function) and given[0].device.type == "cpu" and (options or {}).get("device")
        )
        if "linalg" in str(function) or (moved and torch.device(options["device"]).type == "meta"):
            self.found.append(str(function))
        return function(*given, **(options or {}))


@pytest.mark.parametrize("solver", Solver)
def test_the_host_sends_nothing_to_the_device_between_steps(solver: Solver) -> None:
    with torch.device("meta"):
        unet = LatentSyncUNet(UNetConfig(block_out_channels=(32, 64), cross_attention_dim=96))
    steps = sampling_steps(
        unet,
        RunConfig(),
        inputs("meta"),
        noise=torch.empty(1, 4, 1, SIDE, SIDE, device="meta"),
        num_inference_steps=4,
        guidance_scale=1.5,
        shortcuts=Shortcuts(solver=solver, guide_every=2),
    )
    next(steps)
    with Waits() as waits:
        assert len(list(steps)) == 3
    assert waits.found == []


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 20])
def test_unipc_summed_on_the_host_is_unipc(steps: int) -> None:
    """The network is played by a function of the latents and a fixed draw."""
    draw = torch.Generator().manual_seed(7)
    latents, noise = torch.randn(2, 1, 4, FRAMES, SIDE, SIDE, generator=draw)
    plain, summed = (_scheduler(RunConfig().scheduler, Solver.UNIPC) for _ in range(2))
    for scheduler in (plain, summed):
        scheduler.set_timesteps(steps)
    sums, found, wanted = _Sums(summed, latents), latents, latents
    for timestep in plain.timesteps:
        said = 0.9 * wanted + 0.3 * noise.roll(int(timestep))
        wanted = plain.step(said, timestep, wanted, return_dict=False)[0]
        (found,) = sums.step(said, timestep, found, return_dict=False)
        assert torch.allclose(found, wanted, atol=2e-5)
