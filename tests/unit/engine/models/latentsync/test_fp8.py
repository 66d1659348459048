"""Layers in eight-bit floating point: which, how near, where refused. A CPU computes the same products."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn
from whisper.model import AudioEncoder

from lipsync_engine import LipSyncPipeline
from lipsync_engine.device import Hardware, choose_fp8
from lipsync_engine.errors import ErrorCode, ParameterError, ResourceError
from lipsync_engine.models import ModelInfo
from lipsync_engine.models.latentsync.config import RunConfig, UNetConfig
from lipsync_engine.models.latentsync.fp8 import Float8Linear, rounded, to_float8
from lipsync_engine.models.latentsync.model import LatentSync, load
from lipsync_engine.models.latentsync.offload import offload
from lipsync_engine.models.latentsync.unet import LatentSyncUNet
from lipsync_engine.weights import WeightsStore
from tests.support import flops

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
ADA = Hardware(cuda=(("L4", (8, 9)),), cuda_build=True)
AMPERE = Hardware(cuda=(("A100", (8, 0)),), cuda_build=True)


def tiny() -> LatentSync:
    store = WeightsStore()
    return load(store.entry("tiny"), store.files("tiny"), "", CPU, torch.float32)


@torch.inference_mode()
def latents(model: LatentSync, frames: int = 4) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    faces = torch.rand(frames, 3, 64, 64, generator=draw) * 2 - 1
    heard = torch.randn(frames, 8, 96, generator=draw)
    noise = torch.randn(1, 4, 1, 16, 16, generator=draw)
    return model.denoise(faces, heard, noise=noise, num_inference_steps=2, guidance_scale=2.0)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


# --- one layer ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_near_and_keeps_the_dtype(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(1)
    layer = nn.Linear(256, 512, bias=bias).to(dtype).requires_grad_(False)
    tokens = torch.randn(2, 30, 256, dtype=dtype)
    found = Float8Linear(layer)(tokens)
    assert found.dtype == dtype
    assert found.shape == (2, 30, 512)
    assert error(found, layer(tokens)) < 0.045


def test_rows_do_not_depend_on_their_company() -> None:
    torch.manual_seed(2)
    layer = Float8Linear(nn.Linear(64, 32).requires_grad_(False))
    rows = torch.randn(40, 64) * torch.logspace(-4, 4, 40)[:, None]
    assert torch.equal(layer(rows)[10:20], layer(rows[10:20]))


def test_a_row_of_zeros_is_the_bias_alone() -> None:
    layer = nn.Linear(64, 32).requires_grad_(False)
    assert torch.equal(Float8Linear(layer)(torch.zeros(1, 64))[0], layer.bias.bfloat16().float())


def test_rounding_uses_the_whole_range() -> None:
    rows = torch.tensor([[1e-30, -2e-30, 0.5e-30], [3e4, 1.0, -6e4]])
    values, scale = rounded(rows)
    assert values.float().abs().amax(-1).tolist() == [448, 448]
    assert torch.allclose(values.float() * scale, rows, rtol=2**-4, atol=0.2)


# --- the network ---


def test_layers_that_pay_are_those_with_most_work_for_each_byte() -> None:
    with torch.device("meta"):
        unet = LatentSyncUNet(UNetConfig())
    before = {name: layer for name, layer in unet.named_modules() if isinstance(layer, nn.Linear)}
    turned = to_float8(unet)
    assert {name for name, layer in unet.named_modules() if isinstance(layer, Float8Linear)} == set(turned)
    sides = {(before[name].in_features, before[name].out_features) for name in turned}
    ends = {(width, width) for width in (640, 1280)} | {(4 * width, width) for width in (640, 1280)}
    assert sides == ends | {(width, 8 * width) for width in (640, 1280)}
    assert not any("time_emb" in name or "attn2.to_k" in name or "attn2.to_v" in name for name in turned)
    assert to_float8(unet) == []


def test_a_model_of_small_layers_runs_as_before(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny()
    model.to_float8()
    assert "no layer of tiny is large enough" in caplog.text
    assert model.precision == "float32"
    assert not any(isinstance(layer, Float8Linear) for layer in model.unet.modules())


def test_a_whole_network_stays_near_wherever_its_weights_wait() -> None:
    wanted, model = latents(tiny()), tiny()
    assert len(to_float8(model.unet, least_work=0)) > 50
    found = latents(model)
    assert 0 < error(found, wanted) < 0.05
    offload(model.unet, CPU)
    assert torch.equal(latents(model), found)


@torch.inference_mode()
def test_nothing_is_read_back_from_the_device() -> None:
    """On the meta device nothing can be."""
    with torch.device("meta"):
        unet = LatentSyncUNet(UNetConfig(block_out_channels=(32, 64), cross_attention_dim=96))
        assert to_float8(unet, least_work=0)
        said = unet(torch.empty(1, 13, 2, 8, 8), torch.empty(()), torch.empty(2, 8, 96))
    assert said.shape == (1, 4, 2, 8, 8)


def test_results_name_it() -> None:
    info = ModelInfo("large", "latentsync", 64, 16, (2, 2), 20, 1.5, "")
    with torch.device("meta"):
        networks = LatentSyncUNet(UNetConfig()), AutoencoderKL(**flops.VAE), AudioEncoder(80, 100, 16, 2, 1)
    model = LatentSync(info, *networks, RunConfig())
    assert model.precision == "float32"
    model.to_float8()
    assert model.precision == "float32 fp8"


# --- whether ---


@pytest.mark.parametrize(
    ("asked", "variable", "wanted"),
    [(None, "", False), (None, "true", True), (None, "0", False), (False, "true", False), (True, "", True)],
)
def test_it_is_chosen_by_the_caller_then_by_the_environment(
    asked: bool | None, variable: str, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIPSYNC_FP8", variable)
    assert choose_fp8(asked, CUDA, hardware=ADA) is wanted


@pytest.mark.parametrize(("device", "named"), [(CUDA, "A100"), (CPU, "cpu")])
def test_other_devices_are_refused_by_name(device: torch.device, named: str) -> None:
    with pytest.raises(ResourceError, match=rf"capability 8\.9 or above .* not {named}") as refused:
        choose_fp8(True, device, hardware=AMPERE)
    assert refused.value.code is ErrorCode.DEVICE_UNAVAILABLE
    assert not choose_fp8(None, device, hardware=AMPERE)


def test_an_older_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.nn.functional, "scaled_mm")
    with pytest.raises(ResourceError, match=r"PyTorch 2\.10 or newer"):
        choose_fp8(True, CUDA, hardware=ADA)


def test_a_variable_that_is_not_understood_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIPSYNC_FP8", "perhaps")
    with pytest.raises(ParameterError, match="LIPSYNC_FP8='perhaps'"):
        choose_fp8(None, CUDA, hardware=ADA)


def test_a_pipeline_that_cannot_says_so_when_it_loads() -> None:
    with pytest.raises(ResourceError, match="FP8 needs an NVIDIA GPU"):
        LipSyncPipeline.from_pretrained("tiny", device="cpu", fp8=True)
