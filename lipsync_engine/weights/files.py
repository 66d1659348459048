"""Progress callback and disk errors of weight files, shared by the store and the download."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

from lipsync_engine.errors import ErrorCode, ResourceError

OnBytes = Callable[[str, int, int], None]
"""Progress callback: (file name, bytes done, total bytes or 0 if unknown)."""


def to_disk_error(error: OSError, folder: Path) -> ResourceError:
    """Convert an error of the file system to one that a user can act on."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            ErrorCode.DISK_FULL,
            f"The disk of {folder} is full: free space there, or set LIPSYNC_WEIGHTS_DIR to a larger disk.",
        )
    return ResourceError(
        ErrorCode.OUTPUT_NOT_WRITABLE,
        f"{folder} is not writable ({error.strerror or error}): set LIPSYNC_WEIGHTS_DIR to another folder.",
    )
