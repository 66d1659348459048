"""Tests that need a CUDA device: synchronisation, agreement with the CPU, offload, batching, FP8, graphs."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from lipsync_engine import LipSyncPipeline
from lipsync_engine.device import FP8_CAPABILITY
from lipsync_engine.models import LipSyncModel
from lipsync_engine.models.latentsync.compile import CompiledUNet
from lipsync_engine.models.latentsync.fp8 import to_float8
from lipsync_engine.models.latentsync.model import WARM_UP_SAMPLING, LatentSync
from lipsync_engine.models.latentsync.offload import enable_cpu_offload
from lipsync_engine.params import EXACT_SAMPLING, FastSampling, Solver
from tests.support import window_runs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def denoise_window(
    model: LipSyncModel,
    steps: int,
    fast_sampling: FastSampling = EXACT_SAMPLING,
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    faces = torch.rand(16, 3, 64, 64, generator=draw) * 2 - 1
    audio = torch.randn(16, 8, 96, generator=draw)
    if noise is None:  # the same on every device
        noise = torch.randn(1, 4, 1, 16, 16, generator=draw)
    return model.denoise(
        faces, audio, noise=noise, num_inference_steps=steps, guidance_scale=2.0, fast_sampling=fast_sampling
    )


@pytest.mark.parametrize("solver", Solver)
def test_window_is_enqueued_without_synchronisation(solver: Solver) -> None:
    """From inputs on the host to images that are still on the device."""
    model = LipSyncPipeline.from_pretrained("tiny", device="cuda").model
    fast_sampling = FastSampling(solver=solver, feature_cache_threshold=0.2, guidance_interval=2)
    synchronisations = []
    for steps in (4, 4, 12):
        noise = model.initial_noise(3)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            model.decode(denoise_window(model, steps, fast_sampling, noise))
            torch.cuda.set_sync_debug_mode("default")
        synchronisations.append(sum("synchronizing CUDA" in str(warning.message) for warning in caught))
    assert synchronisations[1:] == [0, 0]  # the first window also loads kernels


@pytest.mark.parametrize(("dtype", "limit"), [("fp32", 1e-3), ("fp16", 0.05)])
def test_gpu_agrees_with_cpu(dtype: str, limit: float) -> None:
    expected = denoise_window(LipSyncPipeline.from_pretrained("tiny", device="cpu").model, 4)
    latents = denoise_window(LipSyncPipeline.from_pretrained("tiny", device="cuda", dtype=dtype).model, 4)
    assert (latents.float().cpu() - expected).norm() < limit * expected.norm()


def test_cpu_offload_frees_device_memory() -> None:
    model = LipSyncPipeline.from_pretrained("tiny", device="cuda", dtype="fp32").model
    assert isinstance(model, LatentSync)
    expected, before = denoise_window(model, 4), torch.cuda.memory_allocated()
    enable_cpu_offload(model.unet, model.device)
    weights_bytes = sum(parameter.numel() * 4 for parameter in model.unet.parameters())
    assert before - torch.cuda.memory_allocated() > 0.8 * weights_bytes
    assert torch.allclose(denoise_window(model, 4), expected, atol=1e-4)
    assert before - torch.cuda.memory_allocated() > 0.8 * weights_bytes


def test_batched_windows_equal_windows_alone_on_gpu() -> None:
    model = LipSyncPipeline.from_pretrained("tiny", device="cuda", dtype="fp32").model
    assert isinstance(model, LatentSync)
    assert model.denoiser.max_windows > 1
    alone = {steps: denoise_window(model, steps) for steps in (3, 4, 5, 6)}
    model.denoiser.batch_sizes.clear()
    with ThreadPoolExecutor(len(alone)) as threads:
        batched = dict(
            zip(alone, threads.map(lambda steps: denoise_window(model, steps), alone), strict=True)
        )
    assert max(model.denoiser.batch_sizes) > 1
    for steps, expected in alone.items():
        assert (batched[steps] - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < FP8_CAPABILITY,
    reason="no FP8 units",
)
@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_fp8_faces_are_close_to_exact_ones(dtype: str) -> None:
    """Quantize every layer of the tiny model's transformers and compare on the demo."""
    pipeline = LipSyncPipeline.from_pretrained("tiny", device="cuda", dtype=dtype)
    model, mode = pipeline.model, window_runs.Mode(20)
    assert isinstance(model, LatentSync)
    windows = window_runs.demo_windows(pipeline, 2)
    exact = [window_runs.generate(model, window, mode, model.info.guidance_scale)[0] for window in windows]
    assert to_float8(model.unet, min_flop_per_byte=0)
    for window, expected in zip(windows, exact, strict=True):
        faces, _ = window_runs.generate(model, window, mode, model.info.guidance_scale)
        _, ssim = window_runs.likeness(faces, expected, model.keep_mask < 0.5)
        assert 0.98 <= ssim < 1


def test_compiled_and_graphed_windows_equal_eager_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This test is the last one, because compiling may take longer than a short session has."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = LipSyncPipeline.from_pretrained("tiny", device="cuda", dtype="fp32").model
    assert isinstance(model, LatentSync)
    eager = {
        fast_sampling: denoise_window(model, 6, fast_sampling)
        for fast_sampling in (EXACT_SAMPLING, WARM_UP_SAMPLING)
    }
    model.compile(tmp_path)
    assert list(tmp_path.rglob("*"))  # for later processes
    compiled = model.denoiser.denoiser
    assert isinstance(compiled, CompiledUNet)
    for graphed in (True, False):
        for fast_sampling, expected in eager.items():
            latents = denoise_window(model, 6, fast_sampling)
            assert (latents - expected).norm() < 1e-3 * expected.norm()
        assert compiled.release_graphs() is graphed
