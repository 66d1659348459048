"""An imperceptible mark in generated faces, and looking for it in a film.

    pattern   what is added to a face; averaging faces and looking for it (pure)
    film      the faces of a file

It knows neither models nor who asks.
"""

from __future__ import annotations

from lipsync_engine.provenance.watermark.pattern import Watermark, WatermarkReader, marked
from lipsync_engine.provenance.watermark.video import read_watermark

__all__ = ["Watermark", "WatermarkReader", "marked", "read_watermark"]
