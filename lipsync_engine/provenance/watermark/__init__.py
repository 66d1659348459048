"""Invisible watermark in generated faces, and its detection in a video.

    pattern   embedding in a face; detection over averaged faces (pure)
    video     faces of a video file

This package does not know models or callers.
"""

from __future__ import annotations

from lipsync_engine.provenance.watermark.pattern import WatermarkDetector, WatermarkResult, embed_watermark
from lipsync_engine.provenance.watermark.video import read_watermark

__all__ = ["WatermarkDetector", "WatermarkResult", "embed_watermark", "read_watermark"]
