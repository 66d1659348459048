"""The output folder of a batch: held by one batch at a time, with what its workers complain of."""

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
def log_of(folder: Path) -> Generator[IO[bytes], None, None]:
    """What workers write to standard error; gone at the end where that is nothing."""
    path = folder / LOG_NAME
    try:
        with path.open("ab") as log:
            yield log
    finally:
        if not path.stat().st_size:
            path.unlink()


@contextmanager
def only_batch(folder: Path) -> Generator[None, None, None]:
    """The folder exists and no other batch writes to it."""
    lock = FileLock(folder / LOCK_NAME, blocking=False, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise ResourceError(
            ErrorCode.JOB_BUSY,
            f"Another batch is writing to {folder.name!r}: wait for it, stop it, or name another folder.",
        ) from None
    except OSError as error:
        raise ResourceError(
            ErrorCode.OUTPUT_NOT_WRITABLE,
            f"{folder.name!r} cannot take results ({error.strerror}): name another folder.",
        ) from error
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceError(
            ErrorCode.DISK_FULL, "The disk is full: free some space; the same command goes on then."
        ) from error
    finally:
        # While it is held; whoever opened this very file finds it unlinked and tries again.
        (folder / LOCK_NAME).unlink(missing_ok=True)
        lock.release()
