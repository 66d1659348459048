"""The end of cached face data and of unfinished work."""

from __future__ import annotations

import os
import time
from pathlib import Path

from filelock import FileLock

from server.workers.caches import RESUME_S, REUSE_S, delete_expired_caches, tenant_cache_dir
from tests.support.application import Api


def add(path: Path, age_s: float) -> Path:
    """Create a file, and let it and its folder be that old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"faces")
    for changed in (path, path.parent):
        os.utime(changed, (time.time() - age_s,) * 2)
    return path


def test_caches_end_after_their_last_use(tmp_path: Path) -> None:
    old = [
        add(tmp_path / "analysis" / "a.npz", REUSE_S + 60),
        add(tmp_path / "motion" / "a.mp4", REUSE_S + 60),
        add(tenant_cache_dir(tmp_path, "a") / "analysis" / "a.npz", REUSE_S + 60),
        add(tmp_path / "jobs" / "a" / "segment-00000.mp4", RESUME_S + 60),
    ]
    current = [
        add(tmp_path / "analysis" / "b.npz", REUSE_S - 60),
        add(tmp_path / "motion" / "b.mp4", REUSE_S - 60),
        add(tmp_path / "jobs" / "b" / "segment-00000.mp4", RESUME_S - 60),
        add(tmp_path / "compiled" / "c", 10 * RESUME_S),
    ]
    delete_expired_caches(tmp_path, retention_s=7 * RESUME_S)
    assert [path for path in old if path.exists()] == []
    assert all(path.exists() for path in current)
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == ["b"]


def test_work_of_a_running_job_stays(tmp_path: Path) -> None:
    segment = add(tmp_path / "jobs" / "a" / "segment-00000.mp4", 120)
    with FileLock(tmp_path / "jobs" / "a.lock"):
        delete_expired_caches(tmp_path, retention_s=60)
    assert segment.exists()
    delete_expired_caches(tmp_path, retention_s=60)
    assert not segment.parent.exists()


def test_face_data_do_not_outlive_the_retention(api: Api) -> None:
    engine = api.server.settings.data_dir / "work" / "engine"
    analysis = add(engine / "analysis" / "a.npz", api.server.settings.retention_s + 60)
    assert api.client.portal is not None
    api.client.portal.call(api.server.delete_expired_data)
    assert not analysis.exists()


def test_face_tracks_are_deleted_with_a_job_of_their_tenant(api: Api) -> None:
    engine = api.server.settings.engine_dir
    own, other = (
        add(tenant_cache_dir(engine, tenant) / "analysis" / "a.npz", 0) for tenant in ("studio", "other")
    )
    job = api.submit()
    api.succeed(job)
    assert own.exists()
    api.client.delete(f"/api/v3/predictions/{job}", headers=api.headers)
    assert not own.exists()
    assert other.exists()
