"""Tests of FP8: which layers, how close, and where it is rejected. A CPU computes the same products."""

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
from lipsync_engine.models.latentsync.fp8 import Float8Linear, quantize_rows, to_float8
from lipsync_engine.models.latentsync.model import LatentSync, load_latentsync
from lipsync_engine.models.latentsync.offload import enable_cpu_offload
from lipsync_engine.models.latentsync.unet import LatentSyncUNet
from lipsync_engine.weights import WeightsStore
from tests.support import flops

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
ADA = Hardware(cuda=(("L4", (8, 9)),), cuda_build=True)
AMPERE = Hardware(cuda=(("A100", (8, 0)),), cuda_build=True)


def load_tiny() -> LatentSync:
    store = WeightsStore()
    return load_latentsync(store.entry("tiny"), store.verified_files("tiny"), "", CPU, torch.float32)


@torch.inference_mode()
def latents(model: LatentSync, frames: int = 4) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    faces = torch.rand(frames, 3, 64, 64, generator=draw) * 2 - 1
    audio = torch.randn(frames, 8, 96, generator=draw)
    noise = torch.randn(1, 4, 1, 16, 16, generator=draw)
    return model.denoise(faces, audio, noise=noise, num_inference_steps=2, guidance_scale=2.0)


def relative_error(output: torch.Tensor, expected: torch.Tensor) -> float:
    return float((output.float() - expected.float()).norm() / expected.float().norm())


# --- one layer ---


def test_float8_linear_takes_the_tokens_of_one_frame() -> None:
    """Without guidance they are a transposed view. Meta tensors refuse what a GPU's product refuses."""
    layer = Float8Linear(nn.Linear(256, 512, device="meta", dtype=torch.bfloat16).requires_grad_(False))
    tokens = torch.empty(1, 256, 64, device="meta", dtype=torch.bfloat16).transpose(1, 2)
    assert layer(tokens).shape == (1, 64, 512)


def test_float8_linear_is_close_and_keeps_the_dtype(subtests: pytest.Subtests) -> None:
    for dtype in [torch.float32, torch.float16, torch.bfloat16]:
        for bias in [True, False]:
            with subtests.test(dtype=dtype, bias=bias):
                torch.manual_seed(1)
                layer = nn.Linear(256, 512, bias=bias).to(dtype).requires_grad_(False)
                tokens = torch.randn(2, 30, 256, dtype=dtype)
                output = Float8Linear(layer)(tokens)
                assert output.dtype == dtype
                assert output.shape == (2, 30, 512)
                assert relative_error(output, layer(tokens)) < 0.045


def test_float8_rows_do_not_depend_on_each_other() -> None:
    torch.manual_seed(2)
    layer = Float8Linear(nn.Linear(64, 32).requires_grad_(False))
    rows = torch.randn(40, 64) * torch.logspace(-4, 4, 40)[:, None]
    assert torch.equal(layer(rows)[10:20], layer(rows[10:20]))


def test_float8_row_of_zeros_yields_the_bias() -> None:
    layer = nn.Linear(64, 32).requires_grad_(False)
    assert torch.equal(Float8Linear(layer)(torch.zeros(1, 64))[0], layer.bias.bfloat16().float())


def test_quantize_rows_uses_the_full_range() -> None:
    rows = torch.tensor([[1e-30, -2e-30, 0.5e-30], [3e4, 1.0, -6e4]])
    values, scale = quantize_rows(rows)
    assert values.float().abs().amax(-1).tolist() == [448, 448]
    assert torch.allclose(values.float() * scale, rows, rtol=2**-4, atol=0.2)


# --- the network ---


def test_to_float8_replaces_only_compute_bound_layers() -> None:
    with torch.device("meta"):
        unet = LatentSyncUNet(UNetConfig())
    before = {name: layer for name, layer in unet.named_modules() if isinstance(layer, nn.Linear)}
    replaced = to_float8(unet)
    assert {name for name, layer in unet.named_modules() if isinstance(layer, Float8Linear)} == set(replaced)
    sides = {(before[name].in_features, before[name].out_features) for name in replaced}
    ends = {(width, width) for width in (640, 1280)} | {(4 * width, width) for width in (640, 1280)}
    assert sides == ends | {(width, 8 * width) for width in (640, 1280)}
    assert not any("time_emb" in name or "attn2.to_k" in name or "attn2.to_v" in name for name in replaced)
    assert to_float8(unet) == []


def test_small_model_stays_float32(caplog: pytest.LogCaptureFixture) -> None:
    model = load_tiny()
    model.to_float8()
    assert "FP8 is off for tiny" in caplog.text
    assert model.precision == "float32"
    assert not any(isinstance(layer, Float8Linear) for layer in model.unet.modules())


def test_float8_unet_is_close_with_and_without_cpu_offload() -> None:
    expected, model = latents(load_tiny()), load_tiny()
    assert len(to_float8(model.unet, min_flop_per_byte=0)) > 50
    output = latents(model)
    assert 0 < relative_error(output, expected) < 0.05
    enable_cpu_offload(model.unet, CPU)
    assert torch.equal(latents(model), output)


@torch.inference_mode()
def test_float8_reads_nothing_back_from_the_device() -> None:
    """On the meta device nothing can be."""
    with torch.device("meta"):
        unet = LatentSyncUNet(UNetConfig(block_out_channels=(32, 64), cross_attention_dim=96))
        assert to_float8(unet, min_flop_per_byte=0)
        noise_pred = unet(torch.empty(1, 13, 2, 8, 8), torch.empty(()), torch.empty(2, 8, 96))
    assert noise_pred.shape == (1, 4, 2, 8, 8)


def test_precision_names_fp8() -> None:
    info = ModelInfo("large", "latentsync", 64, 16, (2, 2), 20, 1.5, "")
    with torch.device("meta"):
        networks = LatentSyncUNet(UNetConfig()), AutoencoderKL(**flops.VAE), AudioEncoder(80, 100, 16, 2, 1)
    model = LatentSync(info, *networks, RunConfig())
    assert model.precision == "float32"
    model.to_float8()
    assert model.precision == "float32 fp8"


# --- the setting ---


def test_argument_overrides_fp8_setting(subtests: pytest.Subtests, monkeypatch: pytest.MonkeyPatch) -> None:
    for argument, variable, expected in [
        (None, "", False),
        (None, "true", True),
        (None, "0", False),
        (False, "true", False),
        (True, "", True),
    ]:
        with subtests.test(argument=argument, variable=variable, expected=expected):
            monkeypatch.setenv("LIPSYNC_FP8", variable)
            assert choose_fp8(argument, CUDA, hardware=ADA) is expected


@pytest.mark.parametrize(("device", "device_name"), [(CUDA, "A100"), (CPU, "cpu")])
def test_unsupported_device_is_named_in_fp8_error(device: torch.device, device_name: str) -> None:
    with pytest.raises(ResourceError, match=rf"capability 8\.9 or above .* not {device_name}") as error:
        choose_fp8(True, device, hardware=AMPERE)
    assert error.value.code is ErrorCode.DEVICE_UNAVAILABLE
    assert not choose_fp8(None, device, hardware=AMPERE)


def test_fp8_needs_a_recent_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.nn.functional, "scaled_mm")
    with pytest.raises(ResourceError, match=r"PyTorch 2\.10 or newer"):
        choose_fp8(True, CUDA, hardware=ADA)


def test_invalid_fp8_setting_is_named_in_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIPSYNC_FP8", "perhaps")
    with pytest.raises(ParameterError, match="LIPSYNC_FP8='perhaps'"):
        choose_fp8(None, CUDA, hardware=ADA)


def test_pipeline_rejects_fp8_on_cpu_when_it_loads() -> None:
    with pytest.raises(ResourceError, match="FP8 needs an NVIDIA GPU"):
        LipSyncPipeline.from_pretrained("tiny", device="cpu", fp8=True)
