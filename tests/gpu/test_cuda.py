"""What only a GPU can show: no step waits for it, and half precision stays near the CPU's numbers."""

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
from lipsync_engine.models.latentsync.model import KINDS, LatentSync
from lipsync_engine.models.latentsync.offload import offload
from lipsync_engine.params import EXACT, Shortcuts, Solver
from tests.support import window_runs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def latents(model: LipSyncModel, steps: int, shortcuts: Shortcuts = EXACT) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    faces = torch.rand(16, 3, 64, 64, generator=draw) * 2 - 1
    heard = torch.randn(16, 8, 96, generator=draw)
    noise = torch.randn(1, 4, 1, 16, 16, generator=draw)
    return model.denoise(
        faces, heard, noise=noise, num_inference_steps=steps, guidance_scale=2.0, shortcuts=shortcuts
    )


@pytest.mark.parametrize("solver", Solver)
def test_a_window_is_ordered_without_waiting_for_the_device(solver: Solver) -> None:
    """From inputs on the host to pictures that nobody has read yet."""
    model = LipSyncPipeline.from_pretrained("tiny", device="cuda").model
    shortcuts = Shortcuts(solver=solver, reuse_within=0.2, guide_every=2)
    waits = []
    for steps in (4, 4, 12):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            model.decode(latents(model, steps, shortcuts))
            torch.cuda.set_sync_debug_mode("default")
        waits.append(len(told))
    assert waits[1:] == [0, 0]  # the first run also loads kernels


@pytest.mark.parametrize(("dtype", "limit"), [("fp32", 1e-3), ("fp16", 0.05)])
def test_the_gpu_agrees_with_the_cpu(dtype: str, limit: float) -> None:
    wanted = latents(LipSyncPipeline.from_pretrained("tiny", device="cpu").model, 4)
    found = latents(LipSyncPipeline.from_pretrained("tiny", device="cuda", dtype=dtype).model, 4)
    assert (found.float().cpu() - wanted).norm() < limit * wanted.norm()


def test_weights_that_wait_on_the_host_leave_the_device() -> None:
    model = LipSyncPipeline.from_pretrained("tiny", device="cuda", dtype="fp32").model
    assert isinstance(model, LatentSync)
    wanted, before = latents(model, 4), torch.cuda.memory_allocated()
    offload(model.unet, model.device)
    weights = sum(parameter.numel() * 4 for parameter in model.unet.parameters())
    assert before - torch.cuda.memory_allocated() > 0.8 * weights
    assert torch.allclose(latents(model, 4), wanted, atol=1e-4)
    assert before - torch.cuda.memory_allocated() > 0.8 * weights


def test_windows_of_several_threads_in_one_run_are_what_each_is_alone() -> None:
    model = LipSyncPipeline.from_pretrained("tiny", device="cuda", dtype="fp32").model
    assert isinstance(model, LatentSync)
    assert model._network.most > 1
    wanted = {steps: latents(model, steps) for steps in (3, 4, 5, 6)}
    model._network.runs.clear()
    with ThreadPoolExecutor(len(wanted)) as threads:
        found = dict(zip(wanted, threads.map(lambda steps: latents(model, steps), wanted), strict=True))
    assert max(model._network.runs) > 1
    for steps, said in wanted.items():
        assert (found[steps] - said).norm() < 1e-3 * said.norm()


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < FP8_CAPABILITY,
    reason="no units for FP8",
)
@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_fp8_looks_like_exact(dtype: str) -> None:
    """Every layer of the tiny model's transformers, on the demo."""
    pipeline = LipSyncPipeline.from_pretrained("tiny", device="cuda", dtype=dtype)
    model, mode = pipeline.model, window_runs.Mode(20)
    assert isinstance(model, LatentSync)
    windows = window_runs.demo_windows(pipeline, 2)
    wanted = [window_runs.generate(model, window, mode, model.info.guidance_scale)[0] for window in windows]
    assert to_float8(model.unet, least_work=0)
    for window, exact in zip(windows, wanted, strict=True):
        made, _ = window_runs.generate(model, window, mode, model.info.guidance_scale)
        _, ssim = window_runs.likeness(made, exact, model.keep_mask < 0.5)
        assert 0.98 <= ssim < 1


def test_compiled_and_recorded_runs_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one here, for compiling may take longer than a short run has."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = LipSyncPipeline.from_pretrained("tiny", device="cuda", dtype="fp32").model
    assert isinstance(model, LatentSync)
    wanted = {shortcuts: latents(model, 6, shortcuts) for shortcuts in (EXACT, KINDS)}
    model.compile(tmp_path)
    assert list(tmp_path.rglob("*"))  # for the next process
    assert isinstance(model._compiled, CompiledUNet)
    for recorded in (True, False):
        for shortcuts, said in wanted.items():
            assert (latents(model, 6, shortcuts) - said).norm() < 1e-3 * said.norm()
        assert model._compiled.forget_runs() is recorded
