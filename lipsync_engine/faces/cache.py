"""Face analyses on disk, by content hash, so that a second voice on the same video skips detection."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

from lipsync_engine.faces.tracking import FORMAT, FaceTracks
from lipsync_engine.utils import drop_oldest

MAX_BYTES = 2**30


def analysis_key(video_hash: str, detector_name: str) -> str:
    """Return the name of an analysis: it depends on the video's bytes, the detector and the format."""
    return hashlib.sha256(f"{FORMAT} {detector_name} {video_hash}".encode()).hexdigest()[:40]


class AnalysisCache:
    """A directory of face tracks. Safe for many processes.

    Beyond MAX_BYTES the least recently used analyses are removed.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def get(self, key: str) -> FaceTracks | None:
        """Return the stored tracks, or None. A damaged file is removed."""
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
        """Store the tracks."""
        self._root.mkdir(parents=True, exist_ok=True)
        tracks.save(self._path(key))
        drop_oldest(self._root, MAX_BYTES)

    def _path(self, key: str) -> Path:
        return self._root / f"{key}.npz"
