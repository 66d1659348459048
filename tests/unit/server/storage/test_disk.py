"""Free disk space is checked while bytes come, with room for what open writers have not written yet."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.storage.disk import CHECK_BYTES, WRITER_BYTES, DiskFullError, DiskSpace, free_bytes

MIN_FREE = 100


def test_each_open_writer_reserves_room(tmp_path: Path) -> None:
    disk = DiskSpace(tmp_path, MIN_FREE, lambda folder: MIN_FREE + 2 * WRITER_BYTES)
    with contextlib.ExitStack() as stack:
        stack.enter_context(disk.writer())
        stack.enter_context(disk.writer())
        with pytest.raises(DiskFullError):
            stack.enter_context(disk.writer())
        disk.require()
    DiskSpace(tmp_path, 0).require()
    with pytest.raises(DiskFullError):
        DiskSpace(tmp_path, 2 * free_bytes(tmp_path)).require()


def test_stream_ends_when_space_becomes_scarce(tmp_path: Path) -> None:
    free = [MIN_FREE + WRITER_BYTES, MIN_FREE + WRITER_BYTES, MIN_FREE + WRITER_BYTES - 1]
    disk = DiskSpace(tmp_path, MIN_FREE, lambda folder: free.pop(0))
    passed = []

    async def chunks() -> AsyncIterator[bytes]:
        while True:
            yield bytes(CHECK_BYTES // 2)

    async def read() -> None:
        async for chunk in disk.guard(chunks()):
            passed.append(len(chunk))

    with pytest.raises(DiskFullError):
        asyncio.run(read())
    assert len(passed) == 3, "it is read again once per half megabyte"
