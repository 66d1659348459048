"""Files that only the server's user may read: uploads, results, database, keys."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

log = logging.getLogger("lipsync.server")

PRIVATE_UMASK = 0o077
OTHERS = stat.S_IRWXG | stat.S_IRWXO


def create_private_files() -> None:
    """Let this process, and those that it starts, create files without rights for other users."""
    os.umask(PRIVATE_UMASK)


def make_private(folder: Path) -> None:
    """Create a folder that other users cannot read; close an open one with all that it contains."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not folder.stat().st_mode & OTHERS:
        return
    count = 0
    try:
        folder.chmod(0o700)
        for path in folder.rglob("*"):
            mode = path.lstat().st_mode
            if mode & OTHERS and not stat.S_ISLNK(mode):
                path.chmod(stat.S_IMODE(mode) & ~OTHERS)
                count += 1
    except OSError as error:
        log.warning("%s stays readable by other users: %s", folder, error)
    if count:
        log.info("%s: %d files and folders were readable by other users, and are not now", folder, count)
