"""Helpers for weight files on disk, shared by the store and the download."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from pathlib import Path

from lipsync_engine.errors import ErrorCode, ResourceError

OnBytes = Callable[[str, int, int], None]
"""Called with (file name, bytes done, bytes in all or 0 where unknown)."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def disk_fault(error: OSError, folder: Path) -> ResourceError:
    """What a fault of the disk means to the user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            ErrorCode.DISK_FULL,
            f"{folder} has no room for the model: free space there, or set LIPSYNC_WEIGHTS_DIR to a larger "
            "disk.",
        )
    return ResourceError(
        ErrorCode.OUTPUT_NOT_WRITABLE,
        f"{folder} cannot be used ({error.strerror or error}): set LIPSYNC_WEIGHTS_DIR to a writable folder.",
    )
