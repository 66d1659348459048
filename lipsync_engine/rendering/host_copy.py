"""Copies of generated faces from the device to the host, which overlap with the next window."""

from __future__ import annotations

from typing import Protocol

import torch

from lipsync_engine.utils import FloatArray


class HostCopy(Protocol):
    """A tensor on its way to host memory."""

    def wait(self) -> FloatArray:
        """Return the values; on a GPU wait for what was submitted before the copy, and for nothing else."""


class TensorCopy:
    """See `HostCopy`; on CUDA into pinned memory, followed by an event."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._values = tensor
        if tensor.is_cuda:
            self._values = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._values.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))

    def wait(self) -> FloatArray:
        if self._event is not None:
            self._event.synchronize()
        values: FloatArray = self._values.cpu().numpy()
        return values
