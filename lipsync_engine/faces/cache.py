"""Face analyses kept on disk by content, so that a second voice on the same video skips detection."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

from lipsync_engine.faces.tracking import FORMAT, FaceTracks
from lipsync_engine.utils import drop_oldest

MAX_BYTES = 2**30


def analysis_key(video_hash: str, detector_name: str) -> str:
    """Names an analysis: the video's bytes, who looked, and the format of the answer."""
    return hashlib.sha256(f"{FORMAT} {detector_name} {video_hash}".encode()).hexdigest()[:40]


class AnalysisCache:
    """A folder of face tracks, the least recently used removed beyond MAX_BYTES; safe for many processes."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def get(self, key: str) -> FaceTracks | None:
        """The stored tracks; a damaged file counts as none and is removed."""
        path = self._path(key)
        try:
            tracks = FaceTracks.load(path)
            os.utime(path)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
            path.unlink(missing_ok=True)
            return None
        return tracks

    def put(self, key: str, tracks: FaceTracks) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        tracks.save(self._path(key))
        drop_oldest(self._root, MAX_BYTES)

    def _path(self, key: str) -> Path:
        return self._root / f"{key}.npz"
