"""Files that belong to jobs: uploads, inputs, results. The only owner of object storage.

Names are paths of our own making, such as `results/<id>.mp4`; nothing from outside becomes a name unchecked.
The module knows neither HTTP nor what happens to a job.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qsl, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

if TYPE_CHECKING:
    from obstore.store import S3Config

NAME = re.compile(r"[a-z]+/[A-Za-z0-9_-]{1,64}(/[A-Za-z0-9_-]{1,64})?\.[a-z0-9]{1,7}")
CHUNK_BYTES = 1 << 20
PART_BYTES = 8 << 20
"""Of a multipart upload; S3 takes parts of at least 5 MiB and at most 10,000 of them."""

PARTS_AT_ONCE = 4
ANSWER_WITHIN_S = 20.0
"""One request to S3; it has a part of a file at most to carry."""

RETRY_WITHIN_S = 8.0
"""So long requests that S3 refused for the moment are sent again."""


def result_blob(job_id: str) -> str:
    """A job's film."""
    return f"results/{job_id}.mp4"


def preview_folder(job_id: str) -> str:
    """Where the stretches of a running job's result lie that can be watched already."""
    return f"previews/{job_id}"


def share_folder(job_id: str) -> str:
    """Where a running job's plan lies for others, and the segments that are finished."""
    return f"shared/{job_id}"


def still_blob(job_id: str) -> str:
    """A small picture out of a job's result."""
    return f"stills/{job_id}.jpg"


class TooLargeError(Exception):
    """More bytes came than may be stored; nothing was kept."""


class StorageUnavailableError(Exception):
    """The storage does not answer, or refuses; nothing half was stored."""


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """Attributes: size in bytes; modified_at in seconds since 1970."""

    name: str
    size: int
    modified_at: float


class Blobs:
    """Blobs in a folder or in a bucket.

    Args:
        place: a folder, created when missing, or `s3://BUCKET/PREFIX?endpoint=URL&region=NAME`, all but the
            bucket optional; credentials come from the environment, in AWS' names.

    Raises:
        ValueError: a URL of another kind.
    """

    def __init__(self, place: Path | str) -> None:
        self._root = place if isinstance(place, Path) else None
        self._store: LocalStore | S3Store
        if isinstance(place, Path):
            place.mkdir(parents=True, exist_ok=True)
            self._store = LocalStore(place)
        else:
            self._store = _s3(place)

    def require(self) -> None:
        """Look whether the storage can be used, for a start that says what is wrong.

        Raises:
            StorageUnavailableError.
        """
        with _translated():
            next(iter(self._store.list(prefix="uploads", chunk_size=1)), None)

    async def local(self, name: str, folder: Path) -> Path:
        """A blob as a local file: where it lies, else a copy in `folder`.

        Raises:
            FileNotFoundError: there is no such blob. StorageUnavailableError.
        """
        if self._root is not None:
            path = self._root / _checked(name)
            if not path.exists():
                raise FileNotFoundError(name)
            return path
        path = folder / name.replace("/", "-")
        await self.copy_out(name, path)
        return path

    async def copy_out(self, name: str, path: Path) -> None:
        """A blob as a file that is the caller's: it may go, but must not be written to.

        Raises:
            FileNotFoundError: there is no such blob. StorageUnavailableError.
        """
        if self._root is not None:
            await asyncio.to_thread(_link, self._root / _checked(name), path)
            return
        if (found := await self.info(name)) is None:
            raise FileNotFoundError(name)
        part = path.with_name(f"{path.name}.part")
        with part.open("wb") as file:
            async for chunk in self.read(name, 0, found.size):
                await asyncio.to_thread(file.write, chunk)
        part.replace(path)

    async def copy_in(self, name: str, file: Path) -> None:
        """Store a finished file that stays where it is, and is not written to any more.

        Raises:
            StorageUnavailableError.
        """
        if self._root is not None:
            await asyncio.to_thread(_link, file, self._root / _checked(name))
            return
        with _translated():
            await self._put(_checked(name), file)

    async def write(self, name: str, chunks: AsyncIterator[bytes], max_bytes: int) -> int:
        """Store a stream; the blob appears only when complete. Returns its size.

        Raises:
            TooLargeError: more than `max_bytes` came. StorageUnavailableError.
        """
        size = 0

        async def counted() -> AsyncIterator[bytes]:
            nonlocal size
            async for chunk in chunks:
                size += len(chunk)
                if size > max_bytes:
                    raise TooLargeError
                yield chunk

        with _translated():
            await self._put(_checked(name), counted())
        if self._root is not None:
            await asyncio.to_thread(_to_disk, self._root / name)
        return size

    async def take(self, name: str, file: Path) -> None:
        """Store a finished file by moving it here.

        Raises:
            StorageUnavailableError: the file stays where it is.
        """
        if self._root is not None:
            await asyncio.to_thread(_move, file, self._root / _checked(name))
            return
        with _translated():
            await self._put(_checked(name), file)
        file.unlink()

    async def info(self, name: str) -> BlobInfo | None:
        """None where there is no such blob.

        Raises:
            StorageUnavailableError.
        """
        try:
            with _translated():
                found = await self._store.head_async(_checked(name))
        except FileNotFoundError:
            return None
        return BlobInfo(name, found["size"], found["last_modified"].timestamp())

    async def read(self, name: str, start: int, stop: int) -> AsyncIterator[bytes]:
        """Bytes [start, stop), in chunks; each is asked for when it is wanted.

        Raises:
            FileNotFoundError, StorageUnavailableError: perhaps after some chunks.
        """
        at = start
        while at < stop:
            end = min(stop, at + CHUNK_BYTES)
            with _translated():
                part = await obstore.get_range_async(self._store, _checked(name), start=at, end=end)
            yield bytes(part)
            at = end

    async def delete(self, name: str) -> None:
        """Forget a blob; one that is not there is no error.

        Raises:
            StorageUnavailableError.
        """
        with _translated(), contextlib.suppress(FileNotFoundError):
            await self._store.delete_async(_checked(name))

    async def under(self, folder: str) -> list[BlobInfo]:
        """All blobs of a folder, such as `previews/<id>`, by name.

        Raises:
            StorageUnavailableError.
        """
        return sorted(await self._list(folder), key=lambda blob: blob.name)

    async def delete_under(self, folder: str) -> None:
        """Forget a folder and its blobs.

        Raises:
            StorageUnavailableError.
        """
        for blob in await self._list(folder):
            await self.delete(blob.name)
        if self._root is not None:
            with contextlib.suppress(OSError):  # not there, or something was stored meanwhile
                (self._root / folder).rmdir()

    async def older_than(self, before: float) -> list[BlobInfo]:
        """All blobs last changed before a moment.

        Raises:
            StorageUnavailableError.
        """
        return [blob for blob in await self._list(None) if blob.modified_at < before]

    async def _list(self, folder: str | None) -> list[BlobInfo]:
        with _translated():
            found = await self._store.list(prefix=folder).collect_async()
        return [BlobInfo(meta["path"], meta["size"], meta["last_modified"].timestamp()) for meta in found]

    async def _put(self, name: str, content: AsyncIterator[bytes] | Path) -> None:
        part_bytes = CHUNK_BYTES if self._root is not None else PART_BYTES
        await obstore.put_async(
            self._store, name, content, chunk_size=part_bytes, max_concurrency=PARTS_AT_ONCE
        )


def _s3(place: str) -> S3Store:
    parts = urlsplit(place)
    given = dict(parse_qsl(parts.query))
    if parts.scheme != "s3" or not parts.netloc or not set(given) <= {"endpoint", "region"}:
        raise ValueError(f"blobs = {place!r}: write it as s3://BUCKET/PREFIX?endpoint=URL&region=NAME")
    return S3Store(
        parts.netloc,
        prefix=parts.path.strip("/") or None,
        config=cast("S3Config", given),
        client_options={"allow_http": True, "timeout": timedelta(seconds=ANSWER_WITHIN_S)},
        retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=RETRY_WITHIN_S)},
    )


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except BaseError as error:
        raise StorageUnavailableError(str(error).strip().splitlines()[0]) from error


def _link(file: Path, target: Path) -> None:
    """The same bytes under another name; a copy where the two are on different file systems."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{uuid.uuid4().hex}.part")  # others may link to the same name at this moment
    try:
        part.hardlink_to(file)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(file, part)
    part.replace(target)
    part.unlink(missing_ok=True)  # it stays where both were links to one file already


def _move(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    file.replace(target)
    _to_disk(target)


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
