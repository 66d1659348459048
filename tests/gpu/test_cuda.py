"""What only a GPU can show: no step waits for it, and half precision stays near the CPU's numbers."""

from __future__ import annotations

import warnings

import pytest
import torch

from lipsync_engine import LipSyncPipeline
from lipsync_engine.models import LipSyncModel
from lipsync_engine.params import EXACT, Shortcuts, Solver

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
def test_no_step_waits_for_the_device(solver: Solver) -> None:
    """A window's inputs go up and are waited for; more steps bring no more waiting."""
    model = LipSyncPipeline.from_pretrained("tiny", device="cuda").model
    shortcuts = Shortcuts(solver=solver, whole_every=2, guide_every=2)
    waits = []
    for steps in (4, 4, 12):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            latents(model, steps, shortcuts)
            torch.cuda.set_sync_debug_mode("default")
        waits.append(len(told))
    assert waits[1] == waits[2]  # the first run also loads kernels


@pytest.mark.parametrize(("dtype", "limit"), [("fp32", 1e-3), ("fp16", 0.05)])
def test_the_gpu_agrees_with_the_cpu(dtype: str, limit: float) -> None:
    wanted = latents(LipSyncPipeline.from_pretrained("tiny", device="cpu").model, 4)
    found = latents(LipSyncPipeline.from_pretrained("tiny", device="cuda", dtype=dtype).model, 4)
    assert (found.float().cpu() - wanted).norm() < limit * wanted.norm()
