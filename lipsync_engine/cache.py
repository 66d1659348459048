"""Files that may be made again, kept in a folder of limited size."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import platformdirs


def drop_oldest(folder: Path, max_bytes: int) -> None:
    """Remove the least recently used files until the rest fits; the newest one stays in any case.

    Safe beside other processes that do the same. A file counts as used when its modification time says so.
    """
    found = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            found.append((stat.st_mtime, stat.st_size, path))
    found.sort()
    total = sum(size for _, size, _ in found)
    for _, size, path in found[:-1]:
        if total <= max_bytes:
            break
        path.unlink(missing_ok=True)
        total -= size


def default_cache_dir() -> Path:
    """LIPSYNC_CACHE_DIR, else the user's cache folder."""
    given = os.environ.get("LIPSYNC_CACHE_DIR")
    return Path(given) if given else Path(platformdirs.user_cache_dir("lipsync"))
