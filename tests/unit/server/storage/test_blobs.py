"""Blobs in a folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.storage.blobs import Blobs, TooLargeError


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def test_blob_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)

    async def go() -> None:
        assert await blobs.write("uploads/t/a.wav", stream(b"one", b"two"), 10) == 6
        assert b"".join([part async for part in blobs.read("uploads/t/a.wav", 2, 5)]) == b"etw"
        with pytest.raises(TooLargeError):
            await blobs.write("uploads/t/b.wav", stream(b"x" * 8, b"y" * 8), 10)

        async def breaks() -> AsyncIterator[bytes]:
            yield b"half"
            raise ConnectionError

        with pytest.raises(ConnectionError):
            await blobs.write("uploads/t/c.wav", breaks(), 10)

    asyncio.run(go())
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.wav"]
    result = asyncio.run(blobs.info("uploads/t/a.wav"))
    assert result is not None
    assert result.size == 6

    async def go_on() -> None:
        assert await blobs.info("uploads/t/b.wav") is None
        assert [blob.name for blob in await blobs.list_older_than(result.modified_at + 1)] == [
            "uploads/t/a.wav"
        ]
        assert await blobs.list_older_than(result.modified_at - 1) == []
        await blobs.delete("uploads/t/a.wav")
        await blobs.delete("uploads/t/a.wav")
        assert await blobs.info("uploads/t/a.wav") is None

    asyncio.run(go_on())


def test_invalid_blob_names_are_rejected(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for name in [
        "../a.wav",
        "uploads/../a.wav",
        "/etc/passwd",
        "a.wav",
        "uploads/a",
        "uploads//a.wav",
        "uploads/t/x/a.wav",
        "uploads/a.wav\n",
        "uploads/ü.wav",
    ]:
        with subtests.test(name=name), pytest.raises(ValueError, match="not a blob name"):
            asyncio.run(Blobs(tmp_path).info(name))


def test_local_file_stays_as_it_is_when_its_blob_is_replaced(tmp_path: Path) -> None:
    """A job reads the bytes that were checked and hashed, whoever writes to the upload meanwhile."""
    blobs, folder = Blobs(tmp_path / "blobs"), tmp_path / "job"

    async def replace() -> Path:
        await blobs.write("uploads/t/a.wav", stream(b"checked"), 10)
        local = await blobs.local("uploads/t/a.wav", folder)
        await blobs.write("uploads/t/a.wav", stream(b"other"), 10)
        return local

    local = asyncio.run(replace())
    assert local.parent == folder
    assert local.read_bytes() == b"checked"
