"""Tests of memory planning: plans for cards of every size, and the constants behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lipsync_engine.models import ModelInfo
from lipsync_engine.models.latentsync.memory import (
    DECODER_ACTIVATIONS,
    ENCODER_ACTIVATIONS,
    PLANS,
    UNET_ACTIVATIONS,
    MemoryMode,
    MemoryPlan,
    estimate_published,
    plan_memory,
    plan_with_graphs,
)
from lipsync_engine.models.latentsync.model import choose_memory_plan, estimate_memory
from tests.support import flops
from tests.support.paths import ROOT

GIGA = 10**9
CONTEXT = GIGA // 2
"""Memory that the CUDA context takes before planning."""


def test_plan_for_each_card_size(subtests: pytest.Subtests) -> None:
    for card_gb, at_512, at_256 in [
        (4, MemoryPlan(MemoryMode.OFFLOAD, 1), MemoryPlan(MemoryMode.OFFLOAD, 1)),
        (6, MemoryPlan(MemoryMode.SEQUENTIAL, 1), MemoryPlan(MemoryMode.FULL, 16)),
        (8, MemoryPlan(MemoryMode.FULL, 4), MemoryPlan(MemoryMode.FULL, 32)),
        (12, MemoryPlan(MemoryMode.FULL, 8), MemoryPlan(MemoryMode.FULL, 32)),
        (16, MemoryPlan(MemoryMode.FULL, 16), MemoryPlan(MemoryMode.FULL, 32)),
        (24, MemoryPlan(MemoryMode.FULL, 32), MemoryPlan(MemoryMode.FULL, 32)),
    ]:
        with subtests.test(card_gb=card_gb, at_512=at_512, at_256=at_256):
            free = card_gb * GIGA - CONTEXT
            for resolution, expected in ((512, at_512), (256, at_256)):
                estimate = estimate_published(resolution, 2)
                assert plan_memory(free, estimate) == expected
                assert estimate.peak_bytes(expected) < free


def test_published_estimate_matches_the_networks() -> None:
    info = ModelInfo("", "latentsync", 512, 16, (2, 2), 20, 1.5, "")
    assert estimate_published(512, 2) == estimate_memory(info, *flops.networks(), torch.float16)


def test_documented_plans_match_computed_ones() -> None:
    """Compare docs/speed.md row by row: plan and peak in float16."""
    table = (ROOT / "docs" / "speed.md").read_text()
    for card_gb in (4, 6, 8, 12, 16, 24):
        cells = [f"{card_gb} GB"]
        for resolution in (512, 256):
            estimate = estimate_published(resolution, 2)
            plan = plan_memory(card_gb * GIGA - CONTEXT, estimate)
            assert plan is not None
            cells.append(f"{plan.describe()}: {estimate.peak_bytes(plan) / GIGA:.1f} GB")
        assert f"| {' | '.join(cells)} |" in table


@pytest.mark.parametrize(("card_gb", "vae_batch"), [(6, None), (8, None), (12, 8), (16, 16), (24, 32)])
def test_graphs_get_memory_of_their_own(card_gb: int, vae_batch: int | None) -> None:
    """A graph keeps the U-Net's activations while the VAE runs."""
    estimate = estimate_published(512, 2)
    plan = plan_memory(card_gb * GIGA - CONTEXT, estimate)
    assert plan is not None
    with_graphs = plan_with_graphs(card_gb * GIGA - CONTEXT, estimate, plan)
    assert (with_graphs and with_graphs.vae_batch) == vae_batch
    if with_graphs is not None:
        unet_bytes = estimate.peak_bytes(MemoryPlan(MemoryMode.FULL, vae_batch=0)) - estimate.weights_bytes
        peak = estimate.weights_bytes + unet_bytes + estimate.vae_bytes(with_graphs)
        assert peak < card_gb * GIGA - CONTEXT


def test_more_memory_never_gives_a_slower_plan() -> None:
    estimate = estimate_published(512, 4)
    plans = [plan_memory(gb * GIGA, estimate) for gb in range(1, 40)]
    ranks = [len(PLANS) if plan is None else PLANS.index(plan) for plan in plans]
    assert ranks == sorted(ranks, reverse=True)
    assert plans[0] is None
    assert plans[-1] == PLANS[0]


@pytest.mark.slow
def test_activation_constants_match_the_networks() -> None:
    unet, vae = flops.networks()
    frames, resolution = 16, 256
    side = resolution // 8
    sample = torch.empty(1, 13, frames, side, side, device="meta")
    audio = torch.empty(frames, 50, 384, device="meta")
    image = torch.empty(1, 3, resolution, resolution, device="meta")
    latents = torch.empty(1, 4, side, side, device="meta")
    per_latent = count_peak_values(lambda: unet(sample, torch.empty((), device="meta"), audio), unet)
    assert per_latent / (frames * side**2) == pytest.approx(UNET_ACTIVATIONS, rel=0.1)
    encoding = count_peak_values(lambda: vae.encode(image), vae.encoder, vae.quant_conv)
    assert encoding / resolution**2 == pytest.approx(ENCODER_ACTIVATIONS, rel=0.1)
    decoding = count_peak_values(lambda: vae.decode(latents), vae.decoder, vae.post_quant_conv)
    on_cuda = 1.15  # group norms copy between memory layouts there
    assert on_cuda * decoding / resolution**2 == pytest.approx(DECODER_ACTIVATIONS, rel=0.1)


def count_peak_values(call: Callable[[], Any], *networks: torch.nn.Module) -> float:
    """Count the float32 values alive at the same time, without the networks' weights."""
    from torch.distributed._tools.mem_tracker import MemTracker

    tracker = MemTracker()
    with torch.no_grad(), _FusedAttention(), tracker:
        call()
    peak = tracker.get_tracker_snapshot("peak")[torch.device("meta")]["Total"]
    return peak / 4 - sum(t.numel() for network in networks for t in network.state_dict().values())


class _FusedAttention(TorchFunctionMode):
    """Attention that stores nothing but its result, as GPU kernels do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def test_last_plan_is_used_with_a_warning_if_none_fits(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_memory_plan(5 * GIGA, estimate_published(512, 4)) == PLANS[-1]
    assert "use --dtype fp16" in caplog.text
