"""Threads per worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from server.workers.supervisor import threads_per_worker
from tests.support.application import Api
from tests.support.polling import wait_until


def test_workers_leave_one_core_to_the_server(subtests: pytest.Subtests) -> None:
    for cores, workers, threads in [(1, 1, 1), (2, 1, 1), (16, 1, 15), (16, 4, 3), (4, 8, 1)]:
        with subtests.test(cores=cores, workers=workers, threads=threads):
            assert threads_per_worker(workers, cores) == threads


def test_work_dir_is_removed_with_its_job(make_api: Callable[..., Api]) -> None:
    api = make_api()
    work = api.server.settings.data_dir / "work" / "jobs"
    job = api.submit()
    (work / job).mkdir(parents=True)
    (work / job / "video").write_bytes(b"half a video")
    api.client.post(f"/api/v3/predictions/{job}/cancel", headers=api.headers)
    wait_until(lambda: not (work / job).exists(), "its folder is left")
    other = api.submit()
    for name in (job, other, "unknown"):
        (work / name).mkdir()
    asyncio.run(api.server.supervisor.start())  # as after a crash
    assert [path.name for path in work.iterdir()] == [other]
