"""Which device computes, in which number format, and why.

Looks at the hardware when asked, never at import. It does not know models.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import torch
from pydantic import TypeAdapter, ValidationError

from lipsync_engine.errors import ErrorCode, ParameterError, ResourceError

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

HALF_CAPABILITY = (7, 5)
"""From this CUDA capability on half precision is the default: Turing has fast float16 units."""

BF16_CAPABILITY = (8, 0)
"""CUDA devices below only emulate bfloat16, slower than float32."""

FP8_CAPABILITY = (8, 9)
"""CUDA devices below have no units for eight-bit floating point."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What torch can use on this machine.

    Attributes:
        cuda: (name, capability) of each CUDA device.
        cuda_build: whether this torch was built for CUDA at all.
        mps: whether Apple's GPU is there.
    """

    cuda: tuple[tuple[str, tuple[int, int]], ...] = ()
    cuda_build: bool = False
    mps: bool = False

    @classmethod
    def detect(cls) -> Hardware:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return cls(
            cuda=tuple(
                (torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)) for i in range(count)
            ),
            cuda_build=torch.version.cuda is not None,
            mps=torch.backends.mps.is_available(),
        )


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """Where to compute.

    Attributes:
        device: with an index for CUDA.
        dtype: of weights and latents.
        reason: one line for people, saying why each was taken.
    """

    device: torch.device
    dtype: torch.dtype
    reason: str


def choose_device(
    requested: str | None, dtype: str | None, *, hardware: Hardware | None = None
) -> DeviceChoice:
    """Device and number format of a job.

    Without a request: LIPSYNC_DEVICE, else the first CUDA device, else Apple's GPU, else the CPU. Without a
    dtype: float16 on CUDA devices of capability 7.5 and above, float32 elsewhere. LatentSync was published
    with float16; against float32, random weights differ by about 1 % in float16 and 6-10 % in bfloat16, so
    bfloat16 is never taken unasked. Float32 on Apple's GPU, since float16 was not measured there.

    Args:
        requested: `cuda`, `cuda:1`, `mps` or `cpu`.
        dtype: `fp32`, `fp16` or `bf16`.
        hardware: what there is; None looks.

    Raises:
        ParameterError: a name that does not exist.
        ResourceError: DEVICE_UNAVAILABLE, saying what there is instead.
    """
    hardware = hardware or Hardware.detect()
    wanted, why = requested, "as asked"
    if wanted is None and (wanted := os.environ.get("LIPSYNC_DEVICE") or None):
        why = "from LIPSYNC_DEVICE"
    if wanted is None:
        wanted, why = _best(hardware)
    device = _available(wanted, hardware)
    return _with_dtype(device, why, dtype, hardware)


def choose_compile(requested: bool | None) -> bool:
    """Whether networks are compiled: as asked, else as LIPSYNC_COMPILE says, else not.

    Raises:
        ParameterError: LIPSYNC_COMPILE is neither true nor false.
    """
    return _switched(requested, "LIPSYNC_COMPILE")


def choose_fp8(requested: bool | None, device: torch.device, *, hardware: Hardware | None = None) -> bool:
    """Whether large layers compute in eight-bit floating point: as asked, else as LIPSYNC_FP8 says, else not.

    Args:
        requested: by the caller.
        device: from `choose_device`.
        hardware: what there is; None looks.

    Raises:
        ParameterError: LIPSYNC_FP8 is neither true nor false.
        ResourceError: DEVICE_UNAVAILABLE where it is asked for and the device, or this torch, cannot.
    """
    if not _switched(requested, "LIPSYNC_FP8"):
        return False
    hardware = hardware or Hardware.detect()
    name, capability = hardware.cuda[device.index or 0] if device.type == "cuda" else (str(device), (0, 0))
    if capability < FP8_CAPABILITY:
        raise ResourceError(
            ErrorCode.DEVICE_UNAVAILABLE,
            f"FP8 needs an NVIDIA GPU of capability 8.9 or above (GeForce 40, L4, L40, H100 and later), not "
            f"{name}: set LIPSYNC_FP8=false.",
        )
    if not hasattr(torch.nn.functional, "scaled_mm"):
        raise ResourceError(
            ErrorCode.DEVICE_UNAVAILABLE,
            f"FP8 needs PyTorch 2.10 or newer, not {torch.__version__}: update it, or set LIPSYNC_FP8=false.",
        )
    return True


def _switched(requested: bool | None, variable: str) -> bool:
    if requested is not None:
        return requested
    text = os.environ.get(variable) or "false"
    try:
        return TypeAdapter(bool).validate_python(text)
    except ValidationError:
        raise ParameterError(f"{variable}={text!r} is not understood: use true or false.") from None


def _best(hardware: Hardware) -> tuple[str, str]:
    if hardware.cuda:
        return "cuda:0", f"first CUDA device, {hardware.cuda[0][0]}"
    if hardware.mps:
        return "mps", "Apple GPU; no CUDA device"
    if hardware.cuda_build:
        return "cpu", "no CUDA device is visible"
    return "cpu", "no GPU that this build of PyTorch can use"


def _available(wanted: str, hardware: Hardware) -> torch.device:
    if re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", wanted) is None:
        raise ParameterError(f"device={wanted!r} does not exist: use cuda, cuda:0, cuda:1 …, mps or cpu.")
    device = torch.device(wanted)
    if device.type == "cuda":
        index = device.index or 0
        if index < len(hardware.cuda):
            return torch.device("cuda", index)
        if hardware.cuda:
            there = f"there are {len(hardware.cuda)}: use cuda:0 … cuda:{len(hardware.cuda) - 1}"
        elif hardware.cuda_build:
            there = (
                "PyTorch sees no CUDA device: check the driver with nvidia-smi and CUDA_VISIBLE_DEVICES, "
                "or use cpu"
            )
        else:
            there = "this PyTorch is built without CUDA: install its CUDA build, or use cpu"
        raise ResourceError(ErrorCode.DEVICE_UNAVAILABLE, f"Device {wanted} is not available; {there}.")
    if device.type == "mps" and not hardware.mps:
        raise ResourceError(
            ErrorCode.DEVICE_UNAVAILABLE,
            "Device mps is not available: it needs an Apple GPU and macOS 14 or later; use cpu or cuda.",
        )
    return device


def _with_dtype(device: torch.device, why: str, dtype: str | None, hardware: Hardware) -> DeviceChoice:
    capability = hardware.cuda[device.index][1] if device.type == "cuda" else None
    if dtype is None:
        half = capability is not None and capability >= HALF_CAPABILITY
        default = "fp16" if half else "fp32"
        return DeviceChoice(device, DTYPES[default], f"{why}; {default} is the default there")
    if dtype not in DTYPES:
        raise ParameterError(f"dtype={dtype!r} does not exist: use {', '.join(DTYPES)}.")
    if dtype == "bf16" and capability is not None and capability < BF16_CAPABILITY:
        name = hardware.cuda[device.index][0]
        raise ResourceError(
            ErrorCode.DEVICE_UNAVAILABLE,
            f"{name} (capability {capability[0]}.{capability[1]}) has no bfloat16: use fp16 or fp32.",
        )
    return DeviceChoice(device, DTYPES[dtype], f"{why}; {dtype} as asked")
