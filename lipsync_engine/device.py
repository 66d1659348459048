"""Choice of compute device and precision, with the reason.

The hardware is queried by the functions, never at import. This module does not know models.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from lipsync_engine.errors import ErrorCode, ParameterError, ResourceError

log = logging.getLogger("lipsync.device")

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

HALF_CAPABILITY = (7, 5)
"""CUDA capability from which half precision is the default (Turing, which has fast float16 units)."""

NO_HALF_NAME = "GTX 16"
"""GeForce GTX 16 has capability 7.5 but no tensor cores; its float16 convolutions give NaN."""

NVIDIA_NODES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""Device nodes of NVIDIA's driver, on Linux and under WSL 2."""

BF16_CAPABILITY = (8, 0)
"""CUDA devices below this capability emulate bfloat16, slower than float32."""

FP8_CAPABILITY = (8, 9)
"""CUDA devices below this capability have no FP8 units."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """Devices that torch can use on this machine.

    Attributes:
        cuda: (name, capability) of each CUDA device.
        cuda_build: whether this torch was built with CUDA.
        mps: whether Apple's GPU is available.
        nvidia_driver: whether NVIDIA's driver is present, so that a CUDA device is expected.
    """

    cuda: tuple[tuple[str, tuple[int, int]], ...] = ()
    cuda_build: bool = False
    mps: bool = False
    nvidia_driver: bool = False

    @classmethod
    def detect(cls) -> Hardware:
        """Query torch for its devices."""
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return cls(
            cuda=tuple(
                (torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)) for i in range(count)
            ),
            cuda_build=torch.version.cuda is not None,
            mps=torch.backends.mps.is_available(),
            nvidia_driver=any(node.exists() for node in NVIDIA_NODES),
        )


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """The chosen device and precision.

    Attributes:
        device: with an index for CUDA.
        dtype: of weights and latents.
        reason: one line for users that explains both choices.
    """

    device: torch.device
    dtype: torch.dtype
    reason: str


def choose_device(
    requested: str | None, dtype: str | None, *, hardware: Hardware | None = None
) -> DeviceChoice:
    """Choose device and precision.

    Default device: LIPSYNC_DEVICE, else the first CUDA device, else Apple's GPU, else the CPU. Default dtype:
    float16 on CUDA devices from capability 7.5 on, float32 elsewhere. LatentSync was published with float16.
    Compared with float32, random weights differ by about 1 % in float16 and 6-10 % in bfloat16, so bfloat16
    is used only on request. Apple's GPU uses float32, because float16 was not measured there.

    Args:
        requested: `cuda`, `cuda:1`, `mps` or `cpu`.
        dtype: `fp32`, `fp16` or `bf16`.
        hardware: None: detected.

    Raises:
        ParameterError: the name does not exist.
        ResourceError: DEVICE_UNAVAILABLE; the message names the available devices.
    """
    hardware = hardware or Hardware.detect()
    name, reason = requested, "as requested"
    if name is None and (name := os.environ.get("LIPSYNC_DEVICE") or None):
        reason = "from LIPSYNC_DEVICE"
    if name is None:
        name, reason = _select_default_device(hardware)
        if name == "cpu" and hardware.nvidia_driver:
            log.warning(
                "NVIDIA driver is present, but PyTorch %s uses the CPU: %s. Check nvidia-smi (CUDA 13 needs "
                "driver R580 or newer), CUDA_VISIBLE_DEVICES, and that PyTorch is a CUDA build.",
                torch.__version__,
                reason,
            )
    device = _require_available(name, hardware)
    return _add_dtype(device, reason, dtype, hardware)


def choose_compile(requested: bool | None) -> bool:
    """Return whether networks are compiled: as requested, else LIPSYNC_COMPILE, else False.

    Raises:
        ParameterError: LIPSYNC_COMPILE is not a boolean.
    """
    return _read_switch(requested, "LIPSYNC_COMPILE")


def choose_fp8(requested: bool | None, device: torch.device, *, hardware: Hardware | None = None) -> bool:
    """Return whether large layers use FP8: as requested, else LIPSYNC_FP8, else False.

    Args:
        requested: by the caller.
        device: from `choose_device`.
        hardware: None: detected.

    Raises:
        ParameterError: LIPSYNC_FP8 is not a boolean.
        ResourceError: DEVICE_UNAVAILABLE, the device or this torch does not support FP8.
    """
    if not _read_switch(requested, "LIPSYNC_FP8"):
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


def _read_switch(requested: bool | None, variable: str) -> bool:
    if requested is not None:
        return requested
    text = os.environ.get(variable) or "false"
    try:
        return TypeAdapter(bool).validate_python(text)
    except ValidationError:
        raise ParameterError(f"{variable}={text!r} is not a boolean: use true or false.") from None


def _select_default_device(hardware: Hardware) -> tuple[str, str]:
    if hardware.cuda:
        return "cuda:0", f"first CUDA device, {hardware.cuda[0][0]}"
    if hardware.mps:
        return "mps", "Apple GPU; no CUDA device"
    if hardware.cuda_build:
        return "cpu", "no CUDA device is visible"
    return "cpu", "no GPU that this build of PyTorch can use"


def _require_available(name: str, hardware: Hardware) -> torch.device:
    if re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", name) is None:
        raise ParameterError(f"device={name!r} does not exist: use cuda, cuda:0, cuda:1 …, mps or cpu.")
    device = torch.device(name)
    if device.type == "cuda":
        index = device.index or 0
        if index < len(hardware.cuda):
            return torch.device("cuda", index)
        if hardware.cuda:
            count = len(hardware.cuda)
            remedy = f"this machine has {count} CUDA devices: use cuda:0 … cuda:{count - 1}"
        elif hardware.cuda_build:
            remedy = (
                "PyTorch detects no CUDA device: check the driver with nvidia-smi and CUDA_VISIBLE_DEVICES, "
                "or use cpu"
            )
        else:
            remedy = "this PyTorch is built without CUDA: install its CUDA build, or use cpu"
        raise ResourceError(ErrorCode.DEVICE_UNAVAILABLE, f"Device {name} is not available; {remedy}.")
    if device.type == "mps" and not hardware.mps:
        raise ResourceError(
            ErrorCode.DEVICE_UNAVAILABLE,
            "Device mps is not available: it needs an Apple GPU and macOS 14 or later; use cpu or cuda.",
        )
    return device


def _add_dtype(device: torch.device, reason: str, dtype: str | None, hardware: Hardware) -> DeviceChoice:
    capability = hardware.cuda[device.index][1] if device.type == "cuda" else None
    if dtype is None:
        has_tensor_cores = device.type == "cuda" and NO_HALF_NAME not in hardware.cuda[device.index][0]
        half = capability is not None and capability >= HALF_CAPABILITY and has_tensor_cores
        default = "fp16" if half else "fp32"
        return DeviceChoice(device, DTYPES[default], f"{reason}; {default} is the default for it")
    if dtype not in DTYPES:
        raise ParameterError(f"dtype={dtype!r} does not exist: use {', '.join(DTYPES)}.")
    if dtype == "bf16" and capability is not None and capability < BF16_CAPABILITY:
        name = hardware.cuda[device.index][0]
        raise ResourceError(
            ErrorCode.DEVICE_UNAVAILABLE,
            f"{name} (capability {capability[0]}.{capability[1]}) has no bfloat16: use fp16 or fp32.",
        )
    return DeviceChoice(device, DTYPES[dtype], f"{reason}; {dtype} as requested")
