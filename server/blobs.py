"""Files that belong to jobs: uploads, inputs, results. The only owner of object storage.

Names are paths of our own making, such as `results/<id>.mp4`; nothing from outside becomes a name unchecked.
The module knows neither HTTP nor what happens to a job.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import obstore
from obstore.store import LocalStore

NAME = re.compile(r"[a-z]+/[A-Za-z0-9_-]{1,64}(/[A-Za-z0-9_-]{1,64})?\.[a-z0-9]{1,5}")
CHUNK_BYTES = 1 << 20


def preview_folder(job_id: str) -> str:
    """Where the stretches of a running job's result lie that can be watched already."""
    return f"previews/{job_id}"


def still_blob(job_id: str) -> str:
    """A small picture out of a job's result."""
    return f"stills/{job_id}.jpg"


class TooLargeError(Exception):
    """More bytes came than may be stored; nothing was kept."""


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """Attributes: size in bytes; modified_at in seconds since 1970."""

    name: str
    size: int
    modified_at: float


class Blobs:
    """Blobs in a folder.

    Args:
        root: created when missing.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._root = root
        self._store = LocalStore(root)

    def path(self, name: str) -> Path:
        """Where a blob lies, for programs that read files; it exists once stored."""
        return self._root / _checked(name)

    async def write(self, name: str, chunks: AsyncIterator[bytes], max_bytes: int) -> int:
        """Store a stream; the blob appears only when complete. Returns its size.

        Raises:
            TooLargeError: more than `max_bytes` came.
        """
        size = 0

        async def counted() -> AsyncIterator[bytes]:
            nonlocal size
            async for chunk in chunks:
                size += len(chunk)
                if size > max_bytes:
                    raise TooLargeError
                yield chunk

        await obstore.put_async(self._store, _checked(name), counted(), chunk_size=CHUNK_BYTES)
        await asyncio.to_thread(_to_disk, self.path(name))
        return size

    def take(self, name: str, file: Path) -> None:
        """Store a finished file by moving it here."""
        target = self.path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
        _to_disk(target)

    def info(self, name: str) -> BlobInfo | None:
        """None where there is no such blob."""
        try:
            found = self._store.head(_checked(name))
        except FileNotFoundError:
            return None
        return BlobInfo(name, found["size"], found["last_modified"].timestamp())

    async def read(self, name: str, start: int, stop: int) -> AsyncIterator[bytes]:
        """Bytes [start, stop), in chunks."""
        at = start
        while at < stop:
            end = min(stop, at + CHUNK_BYTES)
            part = await obstore.get_range_async(self._store, _checked(name), start=at, end=end)
            yield bytes(part)
            at = end

    def delete(self, name: str) -> None:
        """Forget a blob; one that is not there is no error."""
        try:
            self._store.delete(_checked(name))
        except FileNotFoundError:
            return

    def under(self, folder: str) -> list[BlobInfo]:
        """All blobs of a folder, such as `previews/<id>`, by name."""
        found = (
            BlobInfo(meta["path"], meta["size"], meta["last_modified"].timestamp())
            for page in self._store.list(prefix=folder)
            for meta in page
        )
        return sorted(found, key=lambda blob: blob.name)

    def delete_under(self, folder: str) -> None:
        """Forget a folder and its blobs."""
        for blob in self.under(folder):
            self.delete(blob.name)
        with contextlib.suppress(OSError):  # not there, or something was stored meanwhile
            (self._root / folder).rmdir()

    def older_than(self, before: float) -> list[BlobInfo]:
        """All blobs last changed before a moment."""
        return [
            BlobInfo(meta["path"], meta["size"], changed)
            for page in self._store.list()
            for meta in page
            if (changed := meta["last_modified"].timestamp()) < before
        ]


def _to_disk(path: Path) -> None:
    """Wait until a file and its name are on the disk: what is acknowledged survives a power failure."""
    for place in (path, path.parent):
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no blob's name")
    return name
