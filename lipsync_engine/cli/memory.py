"""What `doctor` says of a GPU's memory: how each of LatentSync's models would use it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lipsync_engine.models.latentsync.memory import estimate_published, plan_memory
from lipsync_engine.weights import WeightsStore

GIGA = 10**9
CONTEXT_BYTES = GIGA // 2
"""What CUDA itself takes of a card."""


def plans(
    store: WeightsStore, device: torch.device, dtype: torch.dtype, card_gb: float | None
) -> Iterator[tuple[str, str]]:
    """(model, plan) of the manifest's models that have LatentSync's published size.

    Args:
        card_gb: of a card that is not there, in float16; None: the device that is, none for a CPU.
    """
    if card_gb is not None:
        free, dtype = int(card_gb * GIGA) - CONTEXT_BYTES, torch.float16
    elif device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        return
    for entry in store.entries():
        if entry.family != "latentsync" or any(file.role == "unet_config" for file in entry.files):
            continue
        estimate = estimate_published(entry.resolution, dtype.itemsize)
        plan = plan_memory(free, estimate)
        if plan is None:
            yield entry.name, f"does not fit into the {free / GIGA:.1f} GB that are free"
        else:
            peak = estimate.peak_bytes(plan) / GIGA
            yield entry.name, f"{plan.describe()}: {peak:.1f} of {free / GIGA:.1f} GB"
