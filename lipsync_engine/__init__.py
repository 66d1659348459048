"""Lip-sync: video and audio in, the same video with lips that follow the audio out.

Public names load on first use, so that `import lipsync_engine` stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipsync_engine.batch import run_batch
    from lipsync_engine.errors import ErrorCode, LipSyncError
    from lipsync_engine.face_report import FaceReport, report_faces
    from lipsync_engine.params import (
        FaceChoice,
        HdrMode,
        LoopMode,
        Motion,
        Provenance,
        Quality,
        Speaker,
        SpeakerOrder,
        SyncParams,
        Tail,
        VideoCodec,
    )
    from lipsync_engine.pipeline import LipSyncPipeline
    from lipsync_engine.planning.speakers import make_dialogue
    from lipsync_engine.progress import Progress, Stage
    from lipsync_engine.result import JobWarning, SyncResult, WarningCode

_MODULES = {
    "ErrorCode": "errors",
    "FaceChoice": "params",
    "FaceReport": "face_report",
    "HdrMode": "params",
    "JobWarning": "result",
    "LipSyncError": "errors",
    "LipSyncPipeline": "pipeline",
    "LoopMode": "params",
    "Motion": "params",
    "Progress": "progress",
    "Provenance": "params",
    "Quality": "params",
    "Speaker": "params",
    "SpeakerOrder": "params",
    "Stage": "progress",
    "SyncParams": "params",
    "SyncResult": "result",
    "Tail": "params",
    "VideoCodec": "params",
    "WarningCode": "result",
    "make_dialogue": "planning.speakers",
    "report_faces": "face_report",
    "run_batch": "batch",
}

__all__ = [
    "ErrorCode",
    "FaceChoice",
    "FaceReport",
    "HdrMode",
    "JobWarning",
    "LipSyncError",
    "LipSyncPipeline",
    "LoopMode",
    "Motion",
    "Progress",
    "Provenance",
    "Quality",
    "Speaker",
    "SpeakerOrder",
    "Stage",
    "SyncParams",
    "SyncResult",
    "Tail",
    "VideoCodec",
    "WarningCode",
    "make_dialogue",
    "report_faces",
    "run_batch",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
