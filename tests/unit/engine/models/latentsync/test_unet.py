"""The U-Net's key names and shapes, its variants as configurations, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from lipsync_engine.errors import ErrorCode, WeightsError
from lipsync_engine.models.latentsync.config import UNetConfig
from lipsync_engine.models.latentsync.unet import LatentSyncUNet, positional_table
from lipsync_engine.weights import load_strict
from tests.support.paths import ROOT, SHARED

PARITY = SHARED / "parity"
TINY = json.loads((ROOT / "weights" / "tiny" / "unet_config.json").read_text())


def on_meta(config: UNetConfig) -> LatentSyncUNet:
    with torch.device("meta"):
        return LatentSyncUNet(config)


def test_every_published_key_and_shape() -> None:
    if not PARITY.is_dir():
        pytest.skip(f"no parity pack at {PARITY}")
    published = json.loads((PARITY / "unet_latentsync_keys.json").read_text())
    fields = json.loads((PARITY / "unet_latentsync_config.json").read_text())
    assert UNetConfig.from_published(fields) == UNetConfig()
    ours = {name: list(tensor.shape) for name, tensor in on_meta(UNetConfig()).state_dict().items()}
    assert len(ours) == 1246
    assert ours == {name: shape for name, (shape, _) in published.items()}


@pytest.mark.parametrize(
    ("change", "motion_in"),
    [
        ({"use_motion_module": False}, set()),
        ({"motion_module_decoder_only": True}, {"up_blocks"}),
        ({"cross_attention_dim": 768}, {"down_blocks", "up_blocks"}),
    ],
    ids=["no motion", "decoder only", "whisper-small"],
)
def test_variants_are_configurations(change: dict[str, Any], motion_in: set[str]) -> None:
    config = UNetConfig.from_published({**TINY, **change})
    state = on_meta(config).state_dict()
    assert {name.split(".")[0] for name in state if "motion_modules" in name} == motion_in
    widths = {t.shape[1] for name, t in state.items() if name.endswith("attn2.to_k.weight")}
    assert widths == {config.cross_attention_dim}


@pytest.mark.parametrize(
    "change",
    [
        {"act_fn": "relu"},
        {"add_audio_layer": False},
        {"use_inflated_groupnorm": True},
        {"flip_sin_to_cos": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_not_implemented_is_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match=next(iter(change))) as raised:
        UNetConfig.from_published({**TINY, **change})
    assert raised.value.code is ErrorCode.WEIGHTS_ARCHITECTURE


def test_only_a_positional_table_may_be_missing() -> None:
    torch.manual_seed(0)
    config = UNetConfig.from_published(TINY)
    state = LatentSyncUNet(config).state_dict()
    tables = {k: positional_table(*v.shape[1:]) for k, v in state.items() if k.endswith("pos_encoder.pe")}
    without = {k: v for k, v in state.items() if k not in tables}
    unet = on_meta(config)
    load_strict(unet, without, recomputable=tables)
    name = next(iter(tables))
    assert torch.allclose(unet.state_dict()[name], state[name], atol=1e-6)
    with pytest.raises(WeightsError, match=r"conv_out\.weight"):
        load_strict(
            on_meta(config), {k: v for k, v in without.items() if k != "conv_out.weight"}, recomputable=tables
        )


@torch.inference_mode()
def test_zero_audio_takes_the_audio_attention_out() -> None:
    """With no bias on keys and values, silence leaves only the output's bias: guidance stands on that."""
    torch.manual_seed(0)
    block = LatentSyncUNet(UNetConfig.from_published(TINY)).down_blocks[0].attentions[0].transformer_blocks[0]
    tokens = torch.randn(2, 9, block.norm2.normalized_shape[0])
    heard = block.attn2.listen(torch.zeros(2, 50, TINY["cross_attention_dim"]), silent=0)
    out = block.attn2(tokens, heard)
    assert torch.equal(out, block.attn2.to_out[0].bias.expand_as(out))


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_precisions_agree(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    unet = LatentSyncUNet(UNetConfig.from_published(TINY)).eval()
    sample, audio = torch.randn(1, 13, 3, 16, 16), torch.randn(3, 50, TINY["cross_attention_dim"])
    exact = unet(sample, torch.tensor(501), audio)
    other = unet.to(dtype)(sample.to(dtype), torch.tensor(501), audio.to(dtype)).float()
    assert (other - exact).norm() / exact.norm() < (1e-5 if dtype is torch.float64 else 0.1)
