"""Tests of device and dtype: choice by hardware, and errors with a remedy."""

import subprocess
import sys

import pytest
import torch

from lipsync_engine.device import Hardware, choose_device
from lipsync_engine.errors import ErrorCode, ParameterError, ResourceError

NOTHING = Hardware()
NO_DRIVER = Hardware(cuda_build=True)
APPLE = Hardware(mps=True)
HOPPER = Hardware(cuda=(("H100", (9, 0)), ("H100", (9, 0))), cuda_build=True)
TURING = Hardware(cuda=(("T4", (7, 5)),), cuda_build=True)
GTX_16 = Hardware(cuda=(("NVIDIA GeForce GTX 1660 Ti", (7, 5)),), cuda_build=True)
VOLTA = Hardware(cuda=(("V100", (7, 0)),), cuda_build=True)


@pytest.fixture(autouse=True)
def _no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIPSYNC_DEVICE", raising=False)


def test_default_device_and_dtype_follow_the_hardware(subtests: pytest.Subtests) -> None:
    for hardware, device, dtype, reason in [
        (HOPPER, "cuda:0", torch.float16, "H100"),
        (TURING, "cuda:0", torch.float16, "T4"),
        (GTX_16, "cuda:0", torch.float32, "GTX 1660"),
        (VOLTA, "cuda:0", torch.float32, "V100"),
        (APPLE, "mps", torch.float32, "Apple"),
        (NO_DRIVER, "cpu", torch.float32, "no CUDA device is visible"),
        (NOTHING, "cpu", torch.float32, "build of PyTorch"),
    ]:
        with subtests.test(hardware=hardware, device=device, dtype=dtype, reason=reason):
            choice = choose_device(None, None, hardware=hardware)
            assert (str(choice.device), choice.dtype) == (device, dtype)
            assert reason in choice.reason


def test_cpu_beside_an_nvidia_driver_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    assert str(choose_device(None, None, hardware=NO_DRIVER).device) == "cpu"
    assert caplog.messages == []
    old_driver = Hardware(cuda_build=True, nvidia_driver=True)
    assert str(choose_device(None, None, hardware=old_driver).device) == "cpu"
    assert "R580" in caplog.messages[0]
    assert choose_device("cpu", None, hardware=old_driver).reason.startswith("as requested")
    assert len(caplog.messages) == 1


def test_default_device_of_this_machine_works() -> None:
    choice = choose_device(None, None)
    assert torch.zeros(2, device=choice.device, dtype=choice.dtype).sum().item() == 0
    assert choice.reason


def test_requested_device_and_dtype_are_used() -> None:
    choice = choose_device("cuda:1", "bf16", hardware=HOPPER)
    assert (str(choice.device), choice.dtype) == ("cuda:1", torch.bfloat16)
    assert str(choose_device("cuda", None, hardware=HOPPER).device) == "cuda:0"
    assert str(choose_device("cpu", None, hardware=HOPPER).device) == "cpu"
    assert choose_device("cpu", "fp16", hardware=NOTHING).dtype is torch.float16


def test_environment_is_used_only_without_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIPSYNC_DEVICE", "cpu")
    choice = choose_device(None, None, hardware=HOPPER)
    assert str(choice.device) == "cpu"
    assert "LIPSYNC_DEVICE" in choice.reason
    assert str(choose_device("cuda", None, hardware=HOPPER).device) == "cuda:0"


def test_unavailable_device_is_an_error_with_a_remedy(subtests: pytest.Subtests) -> None:
    for device, dtype, hardware, advice in [
        ("cuda", None, NOTHING, "install its CUDA build"),
        ("cuda", None, NO_DRIVER, "nvidia-smi"),
        ("cuda:2", None, HOPPER, "cuda:0 … cuda:1"),
        ("mps", None, HOPPER, "cpu or cuda"),
        ("cuda", "bf16", TURING, "use fp16 or fp32"),
    ]:
        with subtests.test(device=device, dtype=dtype, hardware=hardware, advice=advice):
            with pytest.raises(ResourceError, match=advice) as caught:
                choose_device(device, dtype, hardware=hardware)
            assert caught.value.code is ErrorCode.DEVICE_UNAVAILABLE


def test_unknown_device_or_dtype_is_an_error(subtests: pytest.Subtests) -> None:
    for device, dtype in [
        ("gpu", None),
        ("cuda:-1", None),
        ("cuda:x", None),
        ("", "fp8"),
        ("cpu", "float16"),
    ]:
        with (
            subtests.test(device=device, dtype=dtype),
            pytest.raises(ParameterError, match="does not exist"),
        ):
            choose_device(device, dtype, hardware=HOPPER)


def test_import_does_not_initialise_cuda() -> None:
    code = "import lipsync_engine.device, torch; raise SystemExit(torch.cuda.is_initialized())"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
