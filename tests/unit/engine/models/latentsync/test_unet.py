"""Tests of the U-Net: key names and shapes, configurations, audio cross-attention, precisions."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from lipsync_engine.errors import ErrorCode, WeightsError
from lipsync_engine.models.latentsync.config import UNetConfig
from lipsync_engine.models.latentsync.unet import LatentSyncUNet, sinusoidal_positions
from lipsync_engine.weights import load_strict
from tests.parity.harness import PACK_SMALL
from tests.support.paths import ROOT

TINY = json.loads((ROOT / "weights" / "tiny" / "unet_config.json").read_text())


def build_on_meta(config: UNetConfig) -> LatentSyncUNet:
    with torch.device("meta"):
        return LatentSyncUNet(config)


def test_unet_has_every_published_key_and_shape() -> None:
    published = json.loads((PACK_SMALL / "unet_latentsync_keys.json").read_text())
    fields = json.loads((PACK_SMALL / "unet_latentsync_config.json").read_text())
    assert UNetConfig.from_published(fields) == UNetConfig()
    ours = {name: list(tensor.shape) for name, tensor in build_on_meta(UNetConfig()).state_dict().items()}
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
def test_config_selects_motion_modules_and_audio_width(change: dict[str, Any], motion_in: set[str]) -> None:
    config = UNetConfig.from_published({**TINY, **change})
    state = build_on_meta(config).state_dict()
    assert {name.split(".")[0] for name in state if "motion_modules" in name} == motion_in
    widths = {t.shape[1] for name, t in state.items() if name.endswith("attn2.to_k.weight")}
    assert widths == {config.cross_attention_dim}


def test_config_error_names_unsupported_field(subtests: pytest.Subtests) -> None:
    for change in [
        {"act_fn": "relu"},
        {"add_audio_layer": False},
        {"use_inflated_groupnorm": True},
        {"flip_sin_to_cos": False},
    ]:
        with subtests.test(change=change):
            with pytest.raises(WeightsError, match=next(iter(change))) as error:
                UNetConfig.from_published({**TINY, **change})
            assert error.value.code is ErrorCode.WEIGHTS_ARCHITECTURE


def test_load_strict_recomputes_only_positional_tables() -> None:
    torch.manual_seed(0)
    config = UNetConfig.from_published(TINY)
    state = LatentSyncUNet(config).state_dict()
    tables = {k: sinusoidal_positions(*v.shape[1:]) for k, v in state.items() if k.endswith("pos_encoder.pe")}
    without = {k: v for k, v in state.items() if k not in tables}
    unet = build_on_meta(config)
    load_strict(unet, without, recomputable=tables)
    name = next(iter(tables))
    assert torch.allclose(unet.state_dict()[name], state[name], atol=1e-6)
    with pytest.raises(WeightsError, match=r"conv_out\.weight"):
        load_strict(
            build_on_meta(config),
            {k: v for k, v in without.items() if k != "conv_out.weight"},
            recomputable=tables,
        )


@torch.inference_mode()
def test_zero_audio_yields_only_the_output_bias() -> None:
    """Keys and values have no bias, so the unconditional pass of guidance can skip cross-attention."""
    torch.manual_seed(0)
    block = LatentSyncUNet(UNetConfig.from_published(TINY)).down_blocks[0].attentions[0].transformer_blocks[0]
    tokens = torch.randn(2, 9, block.norm2.normalized_shape[0])
    audio = torch.zeros(2, 50, TINY["cross_attention_dim"])
    out = block.attn2(tokens, block.attn2.precompute_audio_kv(audio, num_unconditional=0))
    assert torch.equal(out, block.attn2.to_out[0].bias.expand_as(out))


@torch.inference_mode()
def test_unet_agrees_across_precisions(subtests: pytest.Subtests) -> None:
    for dtype in [torch.bfloat16, torch.float16, torch.float64]:
        with subtests.test(dtype=dtype):
            torch.manual_seed(0)
            unet = LatentSyncUNet(UNetConfig.from_published(TINY)).eval()
            sample, audio = torch.randn(1, 13, 3, 16, 16), torch.randn(3, 50, TINY["cross_attention_dim"])
            exact = unet(sample, torch.tensor(501), audio)
            other = unet.to(dtype)(sample.to(dtype), torch.tensor(501), audio.to(dtype)).float()
            assert (other - exact).norm() / exact.norm() < (1e-5 if dtype is torch.float64 else 0.1)
