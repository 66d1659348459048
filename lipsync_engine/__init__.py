"""Lip-sync for video: a video and a voice in, the same video with lips that speak that voice out.

The public names load on first use, so that `import lipsync_engine` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipsync_engine.batch import run_batch
    from lipsync_engine.errors import ErrorCode, LipSyncError
    from lipsync_engine.params import (
        FaceChoice,
        LoopMode,
        Motion,
        Order,
        Provenance,
        Quality,
        Speaker,
        SyncParams,
        Tail,
    )
    from lipsync_engine.pipeline import LipSyncPipeline
    from lipsync_engine.planning.speakers import dialogue
    from lipsync_engine.progress import Progress, Stage
    from lipsync_engine.result import SyncResult

_HOME = {
    "ErrorCode": "errors",
    "FaceChoice": "params",
    "LipSyncError": "errors",
    "LipSyncPipeline": "pipeline",
    "LoopMode": "params",
    "Motion": "params",
    "Order": "params",
    "Progress": "progress",
    "Provenance": "params",
    "Quality": "params",
    "Speaker": "params",
    "Stage": "progress",
    "SyncParams": "params",
    "SyncResult": "result",
    "Tail": "params",
    "dialogue": "planning.speakers",
    "run_batch": "batch",
}

__all__ = [
    "ErrorCode",
    "FaceChoice",
    "LipSyncError",
    "LipSyncPipeline",
    "LoopMode",
    "Motion",
    "Order",
    "Progress",
    "Provenance",
    "Quality",
    "Speaker",
    "Stage",
    "SyncParams",
    "SyncResult",
    "Tail",
    "dialogue",
    "run_batch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
