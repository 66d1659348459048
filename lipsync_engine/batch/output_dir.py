"""The output folder of a batch: its lock, and the log of its workers."""

from __future__ import annotations

import errno
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from lipsync_engine.errors import ErrorCode, ResourceError

LOCK_NAME, LOG_NAME = ".lipsync-batch.lock", "workers.log"


@contextmanager
def open_worker_log(folder: Path) -> Generator[IO[bytes], None, None]:
    """Open the file that takes the workers' standard error; an empty file is removed at the end."""
    path = folder / LOG_NAME
    try:
        with path.open("ab") as log:
            yield log
    finally:
        if not path.stat().st_size:
            path.unlink()


@contextmanager
def locked_output_dir(folder: Path) -> Generator[None, None, None]:
    """Create and lock the output folder, so that one batch at a time writes to it.

    Raises:
        ResourceError: JOB_BUSY, another batch has the lock; OUTPUT_NOT_WRITABLE; DISK_FULL, at any time.
    """
    lock = FileLock(folder / LOCK_NAME, blocking=False, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise ResourceError(
            ErrorCode.JOB_BUSY,
            f"Another batch is writing to {folder.name!r}: wait for it, stop it, or use another folder.",
        ) from None
    except OSError as error:
        raise ResourceError(
            ErrorCode.OUTPUT_NOT_WRITABLE,
            f"The output folder {folder.name!r} is not writable ({error.strerror}): use another folder.",
        ) from error
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceError(
            ErrorCode.DISK_FULL,
            f"The disk of {folder.name!r} is full: free some space, then run the same command again.",
        ) from error
    finally:
        # Unlink while the lock is held: a process that has opened this very file notices and retries.
        (folder / LOCK_NAME).unlink(missing_ok=True)
        lock.release()
