"""Messages of a worker process."""

from __future__ import annotations

import asyncio

import pytest

from server.workers.device_worker import restart_delay_s
from server.workers.process import WorkerDiedError, WorkerProcess


def test_invalid_message_of_a_worker_ends_it(subtests: pytest.Subtests) -> None:
    async def read_first_message(line: bytes) -> object:
        stdout = asyncio.StreamReader(limit=100)
        stdout.feed_data(line)
        return await WorkerProcess(0, stdout, None).wait_ready(5)  # type: ignore[arg-type]

    for line in [b'{"kind":"boast"}\n', b"\xff\n", b"x" * 200, b'{"kind":"worker_ready"}\n']:
        with subtests.test(line=line), pytest.raises(WorkerDiedError, match="invalid message"):
            asyncio.run(read_first_message(line))


def test_restarts_of_a_worker_that_cannot_start_become_rare() -> None:
    assert [restart_delay_s(failures) for failures in (0, 1, 3, 6, 10**6)] == [2, 4, 16, 120, 120]


def test_silent_job_is_blamed_alone() -> None:
    """Its neighbour in the same worker loses no attempt."""

    async def receive(worker: WorkerProcess, job_id: str, timeout_s: float) -> None:
        async with worker.open_channel(job_id) as channel:
            await channel.receive(timeout_s)

    async def run() -> list[BaseException | None]:
        worker = WorkerProcess(0, asyncio.StreamReader(), None)  # type: ignore[arg-type]  (nothing is sent)
        receivers = receive(worker, "silent", 0.05), receive(worker, "neighbour", 30)
        return await asyncio.gather(*receivers, return_exceptions=True)

    errors = asyncio.run(run())
    assert [error.job_id for error in errors if isinstance(error, WorkerDiedError)] == ["silent", "silent"]
