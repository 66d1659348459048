"""Where a job's files lie while it runs: a private folder that outlives a crash, and a result that is seen
only when it is whole.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from lipsync_engine import media
from lipsync_engine.errors import ErrorCode, InputError, ResourceError
from lipsync_engine.provenance import signed_beside

STALE_AFTER_S = 7 * 24 * 3600
"""Unfinished work older than this is removed when a new job starts."""


@contextmanager
def work_folder(jobs: Path, key: str) -> Generator[Path, None, None]:
    """A job's private folder in `jobs`, locked; finished segments stay in it when the job is interrupted.

    Raises:
        ResourceError: the same job is running.
    """
    jobs.mkdir(parents=True, exist_ok=True)
    _sweep(jobs)
    folder = jobs / key
    try:
        with FileLock(jobs / f"{key}.lock", blocking=False):
            folder.mkdir(exist_ok=True)
            _remove_unfinished(folder)
            try:
                yield folder
            except InputError:
                shutil.rmtree(folder)
                raise
            finally:
                if folder.exists():
                    _remove_unfinished(folder)
                    if not any(folder.iterdir()):
                        folder.rmdir()
                # While the lock is held; whoever opened this very file finds it unlinked and tries again.
                (jobs / f"{key}.lock").unlink(missing_ok=True)
    except Timeout:
        raise ResourceError(
            ErrorCode.JOB_BUSY,
            "The same job (same video, voice and options) is already running in another process: "
            "wait for it or stop it.",
        ) from None


@contextmanager
def unpublished(output: Path, inputs: tuple[Path, ...], key: str) -> Generator[Path, None, None]:
    """A path next to `output` to write to; removed again unless it was renamed to `output`.

    It is named by the job, so that a run after a crash finds and removes what the crash has left.
    """
    media.check_output(output, inputs)
    part = output.with_name(f".{output.stem}.{key[:8]}.part{output.suffix}")
    left = (part, signed_beside(part))
    for path in left:
        path.unlink(missing_ok=True)
    try:
        yield part
    finally:
        for path in left:
            path.unlink(missing_ok=True)


@contextmanager
def resource_errors() -> Generator[None, None, None]:
    """Turn a full disk and exhausted memory, wherever they show, into errors with a code."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                ErrorCode.DISK_FULL,
                "The disk of the result, or that of LIPSYNC_CACHE_DIR, is full: free some space, or name a "
                "larger one; run again then.",
            ) from error
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ResourceError(
            ErrorCode.OUT_OF_MEMORY,
            "Memory ran out: close other programs, use --dtype fp16, or a smaller model.",
        ) from error


def _remove_unfinished(folder: Path) -> None:
    """Drop half-made files, and a plan's parts without the plan; finished segments stay."""
    finished = set(folder.glob("segment-?????.mp4"))
    if finished and (folder / "plan.json").exists():
        finished |= set(folder.iterdir()) - set(folder.glob("*.part*"))
    for path in set(folder.iterdir()) - finished:
        path.unlink()


def _sweep(jobs: Path) -> None:
    """Remove work that nobody came back for."""
    limit = time.time() - STALE_AFTER_S
    for path in jobs.iterdir():
        if path.stat().st_mtime < limit:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def take_over(files: Mapping[str, Path], folder: Path) -> None:
    """Move another process' plan and finished segments here; what says that the plan is there comes last."""
    for name in sorted(files, key=lambda name: name == "plan.json"):
        shutil.move(files[name], folder / name)
