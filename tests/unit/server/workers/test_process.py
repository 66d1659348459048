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
