"""Free disk space: every writer of strangers' bytes checks it as the bytes come."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

WRITER_BYTES = 4 << 20
"""Reserved for each writer: received, but perhaps not on the disk yet."""

CHECK_BYTES = 1 << 19
"""Free space is read once per so many bytes of a stream."""


class DiskFullError(Exception):
    """The disk has less free space than the server requires."""


def free_bytes(folder: Path) -> int:
    """Read the free bytes of a folder's disk."""
    return shutil.disk_usage(folder).free


class DiskSpace:
    """Free space of the data folder's disk, less what open writers have reserved.

    Args:
        min_free_bytes: is left free.
        read_free: returns the free bytes of a folder's disk.
    """

    def __init__(
        self, folder: Path, min_free_bytes: int, read_free: Callable[[Path], int] = free_bytes
    ) -> None:
        self._folder, self._min_free_bytes, self._read_free = folder, min_free_bytes, read_free
        self._writers = 0

    def require(self) -> None:
        """Check that there is room.

        Raises:
            DiskFullError.
        """
        free = self._read_free(self._folder) - self._writers * WRITER_BYTES
        if free < self._min_free_bytes:
            raise DiskFullError("The disk of this server is full: retry later, or ask its operator.")

    @contextlib.contextmanager
    def writer(self) -> Iterator[None]:
        """Reserve room for one writer, which calls `require` as it writes.

        Raises:
            DiskFullError.
        """
        self._writers += 1
        try:
            self.require()
            yield
        finally:
            self._writers -= 1

    async def guard(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Pass a stream on that is written to the disk.

        Raises:
            DiskFullError: perhaps after some chunks.
        """
        unchecked = 0
        with self.writer():
            async for chunk in chunks:
                if (unchecked := unchecked + len(chunk)) >= CHECK_BYTES:
                    unchecked = 0
                    self.require()
                yield chunk
