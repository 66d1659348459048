"""Memory plans of `lipsync doctor`: how each LatentSync model would use a GPU's memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lipsync_engine.models.latentsync.memory import estimate_published, plan_memory
from lipsync_engine.weights import WeightsStore

GIGA = 10**9
CONTEXT_BYTES = GIGA // 2
"""GPU memory that the CUDA context itself takes."""


def describe_memory_plans(
    store: WeightsStore, device: torch.device, dtype: torch.dtype, card_gb: float | None
) -> Iterator[tuple[str, str]]:
    """Yield (model, plan) for the manifest's models of LatentSync's published size.

    Args:
        card_gb: size of a GPU that is not installed, in float16; None: the device, nothing for a CPU.
    """
    if card_gb is not None:
        free_bytes, dtype = int(card_gb * GIGA) - CONTEXT_BYTES, torch.float16
    elif device.type == "cuda":
        free_bytes = torch.cuda.mem_get_info(device)[0]
    else:
        return
    for entry in store.entries():
        if entry.family != "latentsync" or any(file.role == "unet_config" for file in entry.files):
            continue
        estimate = estimate_published(entry.resolution, dtype.itemsize)
        plan = plan_memory(free_bytes, estimate)
        if plan is None:
            yield entry.name, f"does not fit into {free_bytes / GIGA:.1f} GB of free memory"
        else:
            peak_gb = estimate.peak_bytes(plan) / GIGA
            yield entry.name, f"{plan.describe()}: {peak_gb:.1f} of {free_bytes / GIGA:.1f} GB"
