"""Tests of sampling speed: fast paths equal slow ones, and fast sampling skips only the documented work."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lipsync_engine.models.latentsync.config import RunConfig, UNetConfig
from lipsync_engine.models.latentsync.model import LatentSync, load_latentsync
from lipsync_engine.models.latentsync.sampling import (
    DenoiseInputs,
    LinearScheduler,
    build_scheduler,
    sampling_steps,
    signal_levels,
)
from lipsync_engine.models.latentsync.unet import LatentSyncUNet
from lipsync_engine.params import EXACT_SAMPLING, PRESETS, FastSampling, Solver
from lipsync_engine.weights import WeightsStore
from tests.parity.harness import PACK_SMALL
from tests.support import flops
from tests.support.paths import ROOT

FRAMES, SIDE, TOKENS = 3, 8, 8


@pytest.fixture(scope="module")
def model() -> LatentSync:
    store = WeightsStore()
    return load_latentsync(
        store.entry("tiny"), store.verified_files("tiny"), "", torch.device("cpu"), torch.float32
    )


def load_tiny_run_config() -> RunConfig:
    return RunConfig.parse(json.loads((ROOT / "weights" / "tiny" / "model_config.json").read_text()))


def make_inputs(device: str = "cpu", width: int = 96) -> DenoiseInputs:
    draw = torch.Generator().manual_seed(5)
    latents = torch.randn(2, 1, 4, FRAMES, SIDE, SIDE, generator=draw).to(device)
    mask = torch.ones(1, 1, FRAMES, SIDE, SIDE, device=device)
    return DenoiseInputs(
        mask, latents[0], latents[1], torch.randn(FRAMES, TOKENS, width, generator=draw).to(device)
    )


def sample_window(
    unet: LatentSyncUNet,
    steps: int,
    fast_sampling: FastSampling = EXACT_SAMPLING,
    *,
    sequential_cfg: bool = False,
) -> Tensor:
    noise = torch.randn(1, 4, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(6))
    *_, last = sampling_steps(
        unet,
        load_tiny_run_config(),
        make_inputs(),
        noise=noise,
        num_inference_steps=steps,
        guidance_scale=2.0,
        sequential_cfg=sequential_cfg,
        fast_sampling=fast_sampling,
    )
    return last.latents


ROUNDING = 1.5e-4
"""Float32 rounding differences between batch sizes: the parity pack's limit for the U-Net."""


def record_batch_sizes(module: nn.Module, into: list[int]) -> torch.utils.hooks.RemovableHandle:
    return module.register_forward_pre_hook(lambda _, arguments: into.append(len(arguments[0])))


@torch.inference_mode()
def test_batched_guidance_equals_two_plain_passes(model: LatentSync) -> None:
    unet, inputs = model.unet, make_inputs()
    sample = torch.cat(
        [torch.randn_like(inputs.masked_latents), inputs.mask, *[inputs.masked_latents] * 2], dim=1
    )
    timestep = torch.tensor(501)
    both_audio = torch.cat([torch.zeros_like(inputs.audio), inputs.audio])
    plain = unet(sample.expand(2, -1, -1, -1, -1), timestep, both_audio)
    guided = unet.precompute_audio_kv(inputs.audio, num_unconditional=FRAMES)
    unconditional = unet.precompute_audio_kv(inputs.audio[:0], num_unconditional=FRAMES)
    assert torch.allclose(unet.predict(sample, timestep, guided)[0], plain, atol=ROUNDING)
    assert torch.allclose(unet.predict(sample, timestep, unconditional)[0], plain[:1], atol=ROUNDING)


@torch.inference_mode()
def test_unet_accepts_any_memory_format(model: LatentSync) -> None:
    sample = torch.randn(2, 13, FRAMES, SIDE, SIDE)
    audio = torch.randn(2 * FRAMES, TOKENS, 96)
    expected = model.unet(sample, torch.tensor(7), audio)
    channels_last = sample.contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(model.unet(channels_last, torch.tensor(7), audio), expected)


def test_sequential_cfg_equals_batched_cfg(model: LatentSync) -> None:
    batched = sample_window(model.unet, 3)
    assert torch.allclose(sample_window(model.unet, 3, sequential_cfg=True), batched, atol=1e-4)


@pytest.mark.parametrize("solver", Solver)
def test_sampling_reads_nothing_back_from_the_device(solver: Solver) -> None:
    """On the meta device any attempt to read a value fails."""
    with torch.device("meta"):
        unet = LatentSyncUNet(UNetConfig(block_out_channels=(32, 64), cross_attention_dim=96))
    fast_sampling = FastSampling(solver=solver, feature_cache_threshold=0.2, guidance_interval=2)
    noise = torch.empty(1, 4, 1, SIDE, SIDE, device="meta")
    steps = sampling_steps(
        unet,
        RunConfig(),
        make_inputs("meta"),
        noise=noise,
        num_inference_steps=4,
        guidance_scale=1.5,
        fast_sampling=fast_sampling,
    )
    assert len(list(steps)) == 4


@torch.inference_mode()
def test_cached_features_skip_the_coarse_layers(model: LatentSync) -> None:
    unet, inputs = model.unet, make_inputs()
    mask = inputs.mask
    sample = torch.cat([mask.expand(1, 4, -1, -1, -1), mask, *[inputs.masked_latents] * 2], dim=1)
    audio_context = unet.precompute_audio_kv(inputs.audio)
    whole, features = unet.predict(sample, torch.tensor(501), audio_context)
    batch_sizes: list[int] = []
    handle = record_batch_sizes(unet.mid_block, batch_sizes)
    cached, _ = unet.predict(sample, torch.tensor(501), audio_context, features)
    handle.remove()
    assert torch.equal(cached, whole)
    assert batch_sizes == []


def test_fast_sampling_skips_the_documented_work(subtests: pytest.Subtests, model: LatentSync) -> None:
    """Batch sizes of each step, after the unconditional and the conditional rows have parted."""
    for fast_sampling, coarse, fine in [
        (EXACT_SAMPLING, [2, 2, 2, 2], [2, 2, 2, 2]),
        (FastSampling(guidance_interval=2), [2, 1, 2, 1], [2, 1, 2, 1]),
        (FastSampling(feature_cache_threshold=1.0), [2, 2], [2, 1, 1, 2]),
        (FastSampling(feature_cache_threshold=0.3), [2, 2, 2], [2, 1, 2, 2]),
        (FastSampling(feature_cache_threshold=0.3, guidance_interval=2), [2, 1, 2], [2, 1, 1, 2]),
        (FastSampling(feature_cache_threshold=1.0, guidance_interval=2), [2, 1], [2, 1, 1, 1]),
    ]:
        with subtests.test(fast_sampling=fast_sampling, coarse=coarse, fine=fine):
            unet = model.unet
            sizes: tuple[list[int], list[int]] = ([], [])
            handles = [
                record_batch_sizes(unet.mid_block, sizes[0]),
                record_batch_sizes(unet.conv_norm_out, sizes[1]),
            ]
            sample_window(unet, 4, fast_sampling)
            for handle in handles:
                handle.remove()
            assert sizes == (coarse, fine)


def test_feature_cache_is_refreshed_when_signal_level_changes(subtests: pytest.Subtests) -> None:
    for within, whole in [(0.0, [0, 1, 2, 3, 4]), (0.2, [0, 2, 3, 4]), (0.5, [0, 3, 4]), (1.0, [0, 4])]:
        with subtests.test(within=within, whole=whole):
            levels = [0.1, 0.3, 0.5, 0.8, 0.9]
            schedule = FastSampling(feature_cache_threshold=within).schedule_steps(levels, use_guidance=False)
            assert [number for number, (_, is_whole) in enumerate(schedule) if is_whole] == whole


def test_signal_levels_increase_over_the_steps() -> None:
    for solver in Solver:
        levels = signal_levels(RunConfig().scheduler, solver, 8)
        assert levels == sorted(levels)
        assert levels[0] < 0.2
        assert levels[-1] > 0.9


def test_solvers_converge_to_the_same_latents(model: LatentSync) -> None:
    exact, ddim = sample_window(model.unet, 24), sample_window(model.unet, 8)
    for solver in (Solver.DPM, Solver.UNIPC):
        latents = sample_window(model.unet, 8, FastSampling(solver=solver))
        assert (latents - ddim).norm() > 0
        assert (latents - exact).norm() < 0.15 * exact.norm()


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if "fast_sampling" in preset])
def test_documented_preset_quality_matches_benchmark(name: str) -> None:
    row = json.loads((ROOT / "benchmarks" / "fast.json").read_text())["modes"][name]
    assert row["ssim"] >= 0.98
    text = (ROOT / "docs" / "speed.md").read_text()
    assert f"| `{name}` |" in text
    assert f"| {row['ssim']:.3f} | {row['psnr_db']:.1f} |" in text


def test_documented_stage_speed_matches_benchmark() -> None:
    report = json.loads((ROOT / "benchmarks" / "stages.json").read_text())
    text = (ROOT / "docs" / "speed.md").read_text()
    for stage in ("crop", "paste", "together"):
        times = [report[resolution][stage]["times"] for resolution in ("256", "512")]
        assert min(times) > 3
        assert " | ".join(f"{value:.1f}" for value in times) in text
    for stage in ("detect", "encode"):
        assert report[stage]["times"] > 3
        assert " | ".join([f"{report[stage]['times']:.1f}"] * 2) in text


# --- counted at full size ---


def test_flops_match_the_published_networks() -> None:
    published = json.loads((PACK_SMALL / "flops.json").read_text())["256x256"]
    unet, vae = flops.networks()
    plain = flops.one_evaluation(unet, 256)
    assert plain == pytest.approx(published["unet_per_frame_per_step_tflop"], rel=0.01)
    assert flops.vae_encode(vae, 256) == pytest.approx(published["vae_encode_per_image_tflop"], rel=0.01)
    assert flops.vae_decode(vae, 256) == pytest.approx(published["vae_decode_per_image_tflop"], rel=0.01)


def test_guidance_costs_less_than_two_passes() -> None:
    """Both passes share the layers before the first cross-attention; the unconditional one needs no audio."""
    with torch.device("meta"):
        unet = LatentSyncUNet(UNetConfig(block_out_channels=(64, 128)))
    plain = flops.one_evaluation(unet, 256)
    guided = flops.denoising(unet, 256, 1, 1.5)
    assert plain < guided < 1.95 * plain
    every_other = flops.denoising(unet, 256, 2, 1.5, FastSampling(guidance_interval=2))
    assert every_other == pytest.approx(guided + plain, rel=0.01)


class BlockingOperations(TorchDispatchMode):
    """Records operations that block the host on a GPU: copies to the device and linear solves there."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        copied = "_to_copy" in str(function) and args[0].device.type == "cpu" and (kwargs or {}).get("device")
        if "linalg" in str(function) or (copied and torch.device(kwargs["device"]).type == "meta"):
            self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("solver", Solver)
def test_sampling_sends_nothing_to_the_device_between_steps(solver: Solver) -> None:
    with torch.device("meta"):
        unet = LatentSyncUNet(UNetConfig(block_out_channels=(32, 64), cross_attention_dim=96))
    steps = sampling_steps(
        unet,
        RunConfig(),
        make_inputs("meta"),
        noise=torch.empty(1, 4, 1, SIDE, SIDE, device="meta"),
        num_inference_steps=4,
        guidance_scale=1.5,
        fast_sampling=FastSampling(solver=solver, guidance_interval=2),
    )
    next(steps)
    with BlockingOperations() as blocking:
        assert len(list(steps)) == 3
    assert blocking.names == []


def test_linear_scheduler_equals_unipc(subtests: pytest.Subtests) -> None:
    """The predictions are a function of the latents and a fixed draw."""
    for steps in [1, 2, 3, 8, 20]:
        with subtests.test(steps=steps):
            draw = torch.Generator().manual_seed(7)
            latents, noise = torch.randn(2, 1, 4, FRAMES, SIDE, SIDE, generator=draw)
            unipc, other = (build_scheduler(RunConfig().scheduler, Solver.UNIPC) for _ in range(2))
            for scheduler in (unipc, other):
                scheduler.set_timesteps(steps)
            linear, ours, expected = LinearScheduler(other, latents), latents, latents
            for timestep in unipc.timesteps:
                noise_pred = 0.9 * expected + 0.3 * noise.roll(int(timestep))
                expected = unipc.step(noise_pred, timestep, expected, return_dict=False)[0]
                (ours,) = linear.step(noise_pred, timestep, ours, return_dict=False)
                assert torch.allclose(ours, expected, atol=2e-5)
