"""Microbenchmarks of the GPU benchmark: single operations at LatentSync 1.6's shapes, 20 s in all.

They decide between ways to compute the same: attention back ends, memory layouts of norm and convolution, and
ways to copy faces to the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from scripts.bench.common import Report

ATTENTION_SHAPES = {"over pixels": (32, 8, 4096, 40), "over time": (8192, 8, 16, 40)}
"""(batch, heads, tokens, head size) of a guided window at 512 px; over time in one window."""

MANY_SEQUENCES = (65_536, 8, 16, 40)
"""Attention over time of eight windows, one sequence more than a CUDA grid's second axis."""

BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
PACKED = 8
"""Pixels whose frames share a sequence in the packed form of attention over time."""

Seconds = Callable[[Callable[[], Any]], float]


def micro_report(
    device: torch.device, dtype: torch.dtype, seconds: Seconds, *, small: bool
) -> Iterator[Report]:
    """Yield what was measured so far, in milliseconds; an error where a way is not available.

    Args:
        seconds: measures the time of a function.
        small: tiny shapes, to see that it works.
    """
    report: Report = {}
    for report["attention_ms"] in _attention(device, dtype, seconds, small=small):
        yield report
    for report["norm_silu_convolution_ms"] in _norms(device, dtype, seconds, small=small):
        yield report
    if device.type == "cuda":
        for report["copy_to_host_ms"] in _copies(device, seconds):
            yield report


def _attention(
    device: torch.device, dtype: torch.dtype, seconds: Seconds, *, small: bool
) -> Iterator[Report]:
    report: Report = {}
    shapes = ATTENTION_SHAPES | {"over time, 8 windows": MANY_SEQUENCES}
    for name, (batch, heads, tokens, size) in shapes.items():
        batch = min(batch, 16) if small else batch
        tokens = min(tokens, 64) if small else tokens
        query, key, value = (
            torch.randn(batch, heads, tokens, size, device=device, dtype=dtype) for _ in range(3)
        )
        report[name] = {}
        for backend, kind in BACKENDS.items():
            if backend == "math" and tokens > 1000 and not small:
                continue

            def attend(kind: SDPBackend = kind) -> torch.Tensor:
                with sdpa_kernel(kind):
                    return F.scaled_dot_product_attention(query, key, value)  # noqa: B023

            report[name][backend] = _milliseconds(seconds, attend)
            yield report
        if "time" in name:
            report[name][f"packed by {PACKED}"] = _milliseconds(
                seconds,
                lambda q=query, k=key, v=value: _attend_packed(q, k, v),  # type: ignore[misc]
            )
            yield report


def _attend_packed(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention of `PACKED` sequences in one, with a mask of blocks: fewer, longer sequences."""
    batch, heads, tokens, size = query.shape
    index = torch.arange(PACKED * tokens, device=query.device) // tokens
    mask = index[:, None] == index[None]

    def pack(rows: torch.Tensor) -> torch.Tensor:
        return rows.view(-1, PACKED, heads, tokens, size).transpose(1, 2).flatten(2, 3)

    mixed = F.scaled_dot_product_attention(pack(query), pack(key), pack(value), attn_mask=mask)
    return mixed.unflatten(2, (PACKED, tokens)).transpose(1, 2).reshape(batch, heads, tokens, size)


def _norms(device: torch.device, dtype: torch.dtype, seconds: Seconds, *, small: bool) -> Iterator[Report]:
    report: Report = {}
    side = 16 if small else 64
    layers = nn.Sequential(nn.GroupNorm(32, 320), nn.SiLU(), nn.Conv2d(320, 320, 3, padding=1))
    layers = layers.to(device, dtype).requires_grad_(False)
    for name, layout in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
        x = torch.randn(2 if small else 32, 320, side, side, device=device, dtype=dtype)
        x, ordered = x.to(memory_format=layout), layers.to(memory_format=layout)
        report[name] = _milliseconds(seconds, lambda x=x, y=ordered: y(x))  # type: ignore[misc]
        yield report


def _copies(device: torch.device, seconds: Seconds) -> Iterator[Report]:
    """Faces of a window, from the device to pageable and to pinned memory."""
    faces = torch.zeros(12, 512, 512, 3, device=device)
    pinned = torch.empty(faces.shape, pin_memory=True)
    report = {"pageable": _milliseconds(seconds, faces.cpu)}
    yield report
    report["pinned"] = _milliseconds(seconds, lambda: pinned.copy_(faces, non_blocking=True))
    yield report


def _milliseconds(seconds: Seconds, work: Callable[[], Any]) -> float | str:
    try:
        return round(1000 * seconds(work), 4)
    except RuntimeError as error:
        return str(error).splitlines()[0][:200]
