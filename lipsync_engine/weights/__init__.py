"""Model files: the manifest that lists them, where they lie, how they get there, and strict loading.

    manifest   `weights/manifest.toml` as checked values
    store      files on this machine: present, verified, imported
    download   one file from the hub, a mirror of it, or a plain address; resumes
    checkpoint file → tensors → module, strict both ways

Nothing here knows what the tensors mean. Only `checkpoint` needs torch, so it is imported on first use:
listing and downloading stay light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lipsync_engine.weights.manifest import Commercial, FileEntry, ModelEntry, bundled_folder, read_manifest
from lipsync_engine.weights.store import FileReport, FileState, WeightsStore

if TYPE_CHECKING:
    from lipsync_engine.weights.checkpoint import load_strict, read_checkpoint

__all__ = [
    "Commercial",
    "FileEntry",
    "FileReport",
    "FileState",
    "ModelEntry",
    "WeightsStore",
    "bundled_folder",
    "load_strict",
    "read_checkpoint",
    "read_manifest",
]


def __getattr__(name: str) -> Any:
    if name in ("load_strict", "read_checkpoint"):
        return getattr(importlib.import_module("lipsync_engine.weights.checkpoint"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
