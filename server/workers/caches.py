"""Ends what workers keep from clips beyond a job: face tracks, generated portraits and unfinished work.

All of it shows or describes the people in the clips, so it must not outlive them by long.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from pathlib import Path

from filelock import FileLock, Timeout

REUSE_S = 3600.0
"""A cached analysis or portrait is deleted so long after its last use: takes of a clip follow soon."""

RESUME_S = 86400.0
"""Unfinished work is deleted so long after its last change: an interrupted job can resume until then."""


def tenant_cache_dir(folder: Path, tenant: str) -> Path:
    """Return the `cache_dir` of a tenant's jobs.

    Tenants share no cache: it would tell one what another has processed, and give it the other's face tracks
    or segments for a file of equal content.
    """
    return folder / "tenants" / hashlib.sha256(tenant.encode()).hexdigest()[:16]


def delete_face_tracks(cache_dir: Path) -> None:
    """Delete the face tracks of all clips of a tenant who has deleted a job; others detect faces again."""
    for file in (cache_dir / "analysis").glob("*"):
        file.unlink(missing_ok=True)


def delete_expired_caches(folder: Path, retention_s: float) -> None:
    """Delete what was not used for an hour, unfinished work for a day, and both after the retention.

    Args:
        folder: of the engine; see `LipSyncPipeline`'s `cache_dir`.
    """
    for cache_dir in (folder, *(folder / "tenants").glob("*/")):
        _delete_expired_in(cache_dir, retention_s)


def _delete_expired_in(folder: Path, retention_s: float) -> None:
    now = time.time()
    for name in ("analysis", "motion"):
        for file in (folder / name).glob("*"):
            if _modified_at(file) < now - min(REUSE_S, retention_s):
                file.unlink(missing_ok=True)
    for work in (folder / "jobs").glob("*/"):
        with contextlib.suppress(FileNotFoundError):  # its job has just ended
            if max(map(_modified_at, (work, *work.iterdir()))) < now - min(RESUME_S, retention_s):
                _delete_unlocked(work)


def _delete_unlocked(work: Path) -> None:
    """Delete a work directory, unless its job runs."""
    lock = work.with_name(f"{work.name}.lock")
    with contextlib.suppress(Timeout), FileLock(lock, blocking=False):
        shutil.rmtree(work, ignore_errors=True)
        lock.unlink(missing_ok=True)


def _modified_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # a worker has deleted it
        return 0.0
