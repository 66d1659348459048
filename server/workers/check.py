"""Checks that workers can start: model, weights, signer and devices; a child process of `lipsync serve`.

    python -m server.workers.check --model tiny --devices cuda:0,cuda:1

It loads torch only to check devices, because the start of a server waits for it. The first problem goes to
standard error, and what FFmpeg processes are not kept from to standard output.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from lipsync_engine.errors import ErrorCode, LipSyncError, ParameterError, ResourceError
from lipsync_engine.media.sandbox import SandboxStatus, check_sandbox
from lipsync_engine.provenance.signing import ManifestSigner
from lipsync_engine.weights import WeightsStore

CONTENT = "content"
NOT_LIP_SYNC = {"component", "image-to-video", "sync-score", CONTENT}
"""Families of the manifest besides those of lip-sync models."""


def check_model(store: WeightsStore, name: str) -> None:
    """Check that a model exists and that its files, and those of a required content check, are complete.

    Raises:
        LipSyncError: the sentence has the remedy.
    """
    if store.entry(name).family in NOT_LIP_SYNC:
        names = ", ".join(entry.name for entry in store.entries() if entry.family not in NOT_LIP_SYNC)
        raise ParameterError(f"{name} is not a lip-sync model: use one of {names}.")
    store.require_complete(name)
    if os.environ.get("LIPSYNC_CONTENT_CHECK") == "refuse":
        for entry in store.entries():
            if entry.family == CONTENT:
                store.require_complete(entry.name)


def check_devices(names: list[str]) -> None:
    """Check that torch can use the devices.

    Raises:
        LipSyncError: the sentence has the remedy.
    """
    from lipsync_engine.device import choose_device, choose_fp8

    for name in names:
        choose_fp8(None, choose_device(name, None).device)


def check_isolation(status: SandboxStatus, *, is_required: bool) -> str:
    """Return what FFmpeg processes are not kept from, one sentence; empty where nothing is missing.

    Raises:
        ResourceError: something is missing and the sandbox is required.
    """
    if status.blocks_network and status.blocks_files:
        return ""
    if is_required:
        raise ResourceError(
            ErrorCode.DEVICE_UNAVAILABLE,
            f"require_sandbox is on, but {status.describe()}: see docs/hardening.md.",
        )
    return status.describe()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--devices", default="", help="also check these, which loads torch")
    parser.add_argument("--require-sandbox", action="store_true")
    arguments = parser.parse_args()
    try:
        print(check_isolation(check_sandbox(), is_required=arguments.require_sandbox))  # noqa: T201
        check_model(WeightsStore(), arguments.model)
        ManifestSigner.from_environment().check_can_sign(Path("result.mp4"))
        if arguments.devices:
            check_devices(arguments.devices.split(","))
    except (LipSyncError, ValueError, OSError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
