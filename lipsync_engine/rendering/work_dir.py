"""A job's files while it runs: a private work directory that survives a crash, and an atomic output."""

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
from lipsync_engine.provenance import signed_copy_path

STALE_AFTER_S = 7 * 24 * 3600
"""Unfinished work older than this is removed when a new job starts."""


@contextmanager
def work_dir(jobs: Path, key: str) -> Generator[Path, None, None]:
    """Create and lock a job's private folder in `jobs`; finished segments stay in it after an interruption.

    Raises:
        ResourceError: the same job is running.
    """
    jobs.mkdir(parents=True, exist_ok=True)
    _remove_stale(jobs)
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
                # Unlink while the lock is held: a process that has opened this very file notices and retries.
                (jobs / f"{key}.lock").unlink(missing_ok=True)
    except Timeout:
        raise ResourceError(
            ErrorCode.JOB_BUSY,
            "The same job (same video, audio and options) is already running in another process: "
            "wait for it or stop it.",
        ) from None


@contextmanager
def atomic_output(output: Path, inputs: tuple[Path, ...], key: str) -> Generator[Path, None, None]:
    """Provide a temporary path next to `output`; the caller renames it to `output`, otherwise it is removed.

    Its name contains the job's key, so that the next run of the job removes the remains of a crash.
    """
    media.check_output(output, inputs)
    part = output.with_name(f".{output.stem}.{key[:8]}.part{output.suffix}")
    temporary_files = (part, signed_copy_path(part))
    for path in temporary_files:
        path.unlink(missing_ok=True)
    try:
        yield part
    finally:
        for path in temporary_files:
            path.unlink(missing_ok=True)


@contextmanager
def translate_resource_errors() -> Generator[None, None, None]:
    """Turn a full disk and exhausted memory into errors with a code."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                ErrorCode.DISK_FULL,
                "The disk of the result or of LIPSYNC_CACHE_DIR is full: free some space or use a larger "
                "disk, then run the same command again.",
            ) from error
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ResourceError(
            ErrorCode.OUT_OF_MEMORY,
            "Out of memory: close other programs, use --dtype fp16, or use a smaller model.",
        ) from error


def adopt_segments(files: Mapping[str, Path], folder: Path) -> None:
    """Move another process's plan and finished segments to `folder`; `plan.json`, which marks it, last."""
    for name in sorted(files, key=lambda name: name == "plan.json"):
        shutil.move(files[name], folder / name)


def _remove_unfinished(folder: Path) -> None:
    """Remove unfinished files, and a plan's other files without `plan.json`; finished segments stay."""
    keep = set(folder.glob("segment-?????.mp4"))
    if keep and (folder / "plan.json").exists():
        keep |= set(folder.iterdir()) - set(folder.glob("*.part*"))
    for path in set(folder.iterdir()) - keep:
        path.unlink()


def _remove_stale(jobs: Path) -> None:
    """Remove unfinished work that was not resumed in time."""
    oldest = time.time() - STALE_AFTER_S
    for path in jobs.iterdir():
        if path.stat().st_mtime < oldest:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
