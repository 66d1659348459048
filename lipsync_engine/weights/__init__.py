"""Model files: manifest, local store, download, and strict loading.

    manifest    `weights/manifest.toml` as validated values
    store       files on this machine: present, verified, imported
    download    one file from the hub, a mirror, or a plain URL; resumes
    files       hashing and disk errors
    checkpoint  file → tensors → module, strict in both directions

This package does not know what the tensors mean. Only `checkpoint` needs torch and is imported on first use,
so that listing and downloading stay light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lipsync_engine.weights.manifest import (
    Commercial,
    FileEntry,
    ModelEntry,
    bundled_weights_dir,
    read_model_manifest,
)
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
    "bundled_weights_dir",
    "load_strict",
    "read_checkpoint",
    "read_model_manifest",
]


def __getattr__(name: str) -> Any:
    if name in ("load_strict", "read_checkpoint"):
        return getattr(importlib.import_module("lipsync_engine.weights.checkpoint"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
