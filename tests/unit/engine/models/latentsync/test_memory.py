"""Plans for cards of every size, and the figures they stand on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lipsync_engine.models import ModelInfo
from lipsync_engine.models.latentsync.memory import (
    DECODER_VALUES,
    ENCODER_VALUES,
    PLANS,
    UNET_VALUES,
    MemoryPlan,
    Thrift,
    plan_memory,
    published_needs,
)
from lipsync_engine.models.latentsync.model import fitted, needs
from tests.support import flops
from tests.support.paths import ROOT

GIGA = 10**9
CONTEXT = GIGA // 2
"""What CUDA itself takes of a card before anything is planned."""


@pytest.mark.parametrize(
    ("card_gb", "at_512", "at_256"),
    [
        (4, MemoryPlan(Thrift.OFFLOADED, 1), MemoryPlan(Thrift.OFFLOADED, 1)),
        (6, MemoryPlan(Thrift.SINGLE, 1), MemoryPlan(Thrift.NONE, 16)),
        (8, MemoryPlan(Thrift.NONE, 8), MemoryPlan(Thrift.NONE, 32)),
        (12, MemoryPlan(Thrift.NONE, 16), MemoryPlan(Thrift.NONE, 32)),
        (16, MemoryPlan(Thrift.NONE, 16), MemoryPlan(Thrift.NONE, 32)),
        (24, MemoryPlan(Thrift.NONE, 32), MemoryPlan(Thrift.NONE, 32)),
    ],
)
def test_plans_by_card(card_gb: int, at_512: MemoryPlan, at_256: MemoryPlan) -> None:
    free = card_gb * GIGA - CONTEXT
    for resolution, wanted in ((512, at_512), (256, at_256)):
        need = published_needs(resolution, 2)
        assert plan_memory(free, need) == wanted
        assert need.peak_bytes(wanted) < free


def test_what_is_known_of_the_published_networks_is_what_they_are() -> None:
    info = ModelInfo("", "latentsync", 512, 16, (2, 2), 20, 1.5, "")
    assert published_needs(512, 2) == needs(info, *flops.networks(), torch.float16)


def test_the_table_of_cards_is_as_computed() -> None:
    """docs/speed.md, row by row: plan and peak in float16."""
    table = (ROOT / "docs" / "speed.md").read_text()
    for card_gb in (4, 6, 8, 12, 16, 24):
        cells = [f"{card_gb} GB"]
        for resolution in (512, 256):
            need = published_needs(resolution, 2)
            plan = plan_memory(card_gb * GIGA - CONTEXT, need)
            assert plan is not None
            cells.append(f"{plan.describe()}: {need.peak_bytes(plan) / GIGA:.1f} GB")
        assert f"| {' | '.join(cells)} |" in table


def test_more_memory_is_never_used_less() -> None:
    need = published_needs(512, 4)
    found = [plan_memory(gb * GIGA, need) for gb in range(1, 40)]
    places = [len(PLANS) if plan is None else PLANS.index(plan) for plan in found]
    assert places == sorted(places, reverse=True)
    assert found[0] is None
    assert found[-1] == PLANS[0]


@pytest.mark.slow
def test_the_figures_are_what_the_networks_hold() -> None:
    unet, vae = flops.networks()
    frames, resolution = 16, 256
    side = resolution // 8
    sample = torch.empty(1, 13, frames, side, side, device="meta")
    audio = torch.empty(frames, 50, 384, device="meta")
    picture = torch.empty(1, 3, resolution, resolution, device="meta")
    latents = torch.empty(1, 4, side, side, device="meta")
    per_latent = peak_values(lambda: unet(sample, torch.empty((), device="meta"), audio), unet)
    assert per_latent / (frames * side**2) == pytest.approx(UNET_VALUES, rel=0.1)
    encoding = peak_values(lambda: vae.encode(picture), vae.encoder, vae.quant_conv)
    assert encoding / resolution**2 == pytest.approx(ENCODER_VALUES, rel=0.1)
    decoding = peak_values(lambda: vae.decode(latents), vae.decoder, vae.post_quant_conv)
    assert decoding / resolution**2 == pytest.approx(DECODER_VALUES, rel=0.1)


def peak_values(work: Callable[[], Any], *networks: torch.nn.Module) -> float:
    """float32 values alive at once besides the networks' own."""
    from torch.distributed._tools.mem_tracker import MemTracker

    tracker = MemTracker()
    with torch.no_grad(), _FusedAttention(), tracker:
        work()
    peak = tracker.get_tracker_snapshot("peak")[torch.device("meta")]["Total"]
    return peak / 4 - sum(t.numel() for network in networks for t in network.state_dict().values())


class _FusedAttention(TorchFunctionMode):
    """Attention as the GPU kernels do it: nothing but the result is kept."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def test_where_nothing_fits_the_leanest_is_tried_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert fitted(published_needs(512, 4), 5 * GIGA) == PLANS[-1]
    assert "use --dtype fp16" in caplog.text
