"""Files of jobs: uploads, inputs, results. The only owner of object storage.

Names are paths that this server chooses, such as `results/<id>.mp4`; names from outside are validated. The
module knows neither HTTP nor the state of a job.
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
"""Size of a part of a multipart upload; S3 takes parts of at least 5 MiB and at most 10,000 of them."""

MAX_CONCURRENT_PARTS = 4


def result_blob(job_id: str) -> str:
    """Name a job's result."""
    return f"results/{job_id}.mp4"


def preview_folder(job_id: str) -> str:
    """Name the folder of a running job's previews, the parts of the result that can be watched already."""
    return f"previews/{job_id}"


def shared_folder(job_id: str) -> str:
    """Name the folder of a running job's shared plan and finished segments."""
    return f"shared/{job_id}"


def download_folder(job_id: str) -> str:
    """Name the folder of a job's downloaded inputs."""
    return f"downloads/{job_id}"


def still_blob(job_id: str) -> str:
    """Name a job's still, a small frame of its result."""
    return f"stills/{job_id}.jpg"


class TooLargeError(Exception):
    """The stream is longer than allowed; nothing was stored."""


class StorageUnavailableError(Exception):
    """The storage does not answer, or rejects the request; no partial file was stored."""


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """Size in bytes and time of the last change, in seconds since 1970."""

    name: str
    size: int
    modified_at: float


class Blobs:
    """Blobs in a folder or in a bucket.

    Args:
        location: a folder, created when missing, or `s3://BUCKET/PREFIX?endpoint=URL&region=NAME`, all but
            the bucket optional.
        credentials: access key and secret; None: AWS' variables, files and machine roles.
        timeout_s: of one request to S3, which carries at most one part of a file.
        retry_s: how long requests that S3 rejects temporarily are repeated.

    Raises:
        ValueError: a URL of another kind.
    """

    def __init__(
        self,
        location: Path | str,
        *,
        credentials: tuple[str, str] | None = None,
        timeout_s: float = 20.0,
        retry_s: float = 8.0,
    ) -> None:
        self._root = location if isinstance(location, Path) else None
        self._store: LocalStore | S3Store
        if isinstance(location, Path):
            location.mkdir(parents=True, exist_ok=True)
            self._store = LocalStore(location)
        else:
            self._store = _open_s3(location, credentials, timeout_s, retry_s)

    def check_access(self) -> None:
        """Check that the storage can be used, so that a start fails with the reason.

        Raises:
            StorageUnavailableError.
        """
        with _translate_errors():
            next(iter(self._store.list(prefix="uploads", chunk_size=1)), None)

    async def local(self, name: str, folder: Path) -> Path:
        """Return a blob as a file in `folder` that stays as it is, whatever happens to the blob.

        Raises:
            FileNotFoundError: there is no such blob.
            StorageUnavailableError.
        """
        path = folder / name.replace("/", "-")
        await self.copy_out(name, path)
        return path

    async def copy_out(self, name: str, path: Path) -> None:
        """Copy a blob to a file that the caller may delete, but must not write to.

        Raises:
            FileNotFoundError: there is no such blob.
            StorageUnavailableError.
        """
        if self._root is not None:
            await asyncio.to_thread(_link, self._root / _validate(name), path)
            return
        if (info := await self.info(name)) is None:
            raise FileNotFoundError(name)
        part = path.with_name(f"{path.name}.part")
        with part.open("wb") as file:
            async for chunk in self.read(name, 0, info.size):
                await asyncio.to_thread(file.write, chunk)
        part.replace(path)

    async def copy_in(self, name: str, file: Path) -> None:
        """Store a finished file that stays in place and is not written to any more.

        Raises:
            StorageUnavailableError.
        """
        if self._root is not None:
            await asyncio.to_thread(_link, file, self._root / _validate(name))
            return
        with _translate_errors():
            await self._put(_validate(name), file)

    async def move_in(self, name: str, file: Path) -> None:
        """Store a finished file and delete it here.

        Raises:
            StorageUnavailableError: the file stays in place.
        """
        if self._root is not None:
            await asyncio.to_thread(_move, file, self._root / _validate(name))
            return
        with _translate_errors():
            await self._put(_validate(name), file)
        file.unlink()

    async def write(self, name: str, chunks: AsyncIterator[bytes], max_bytes: int) -> int:
        """Store a stream and return its size; the blob appears only when complete.

        Raises:
            TooLargeError: the stream is longer than `max_bytes`.
            StorageUnavailableError.
        """
        size = 0

        async def count_bytes() -> AsyncIterator[bytes]:
            nonlocal size
            async for chunk in chunks:
                size += len(chunk)
                if size > max_bytes:
                    raise TooLargeError
                yield chunk

        with _translate_errors():
            await self._put(_validate(name), count_bytes())
        if self._root is not None:
            await asyncio.to_thread(_sync_to_disk, self._root / name)
        return size

    async def info(self, name: str) -> BlobInfo | None:
        """Look up a blob; None where there is none.

        Raises:
            StorageUnavailableError.
        """
        try:
            with _translate_errors():
                meta = await self._store.head_async(_validate(name))
        except FileNotFoundError:
            return None
        return BlobInfo(name, meta["size"], meta["last_modified"].timestamp())

    async def read(self, name: str, start: int, stop: int) -> AsyncIterator[bytes]:
        """Yield bytes [start, stop) in chunks; each is requested when it is needed.

        Raises:
            FileNotFoundError, StorageUnavailableError: perhaps after some chunks.
        """
        at = start
        while at < stop:
            end = min(stop, at + CHUNK_BYTES)
            with _translate_errors():
                part = await obstore.get_range_async(self._store, _validate(name), start=at, end=end)
            yield bytes(part)
            at = end

    async def delete(self, name: str) -> None:
        """Delete a blob; a missing one is no error.

        Raises:
            StorageUnavailableError.
        """
        with _translate_errors(), contextlib.suppress(FileNotFoundError):
            await self._store.delete_async(_validate(name))

    async def list_folder(self, folder: str) -> list[BlobInfo]:
        """List all blobs of a folder, such as `previews/<id>`, by name.

        Raises:
            StorageUnavailableError.
        """
        return sorted(await self._list(folder), key=lambda blob: blob.name)

    async def delete_folder(self, folder: str) -> None:
        """Delete a folder and its blobs.

        Raises:
            StorageUnavailableError.
        """
        for blob in await self._list(folder):
            await self.delete(blob.name)
        if self._root is not None:
            with contextlib.suppress(OSError):  # it does not exist, or something was stored meanwhile
                (self._root / folder).rmdir()

    async def list_older_than(self, before: float) -> list[BlobInfo]:
        """List all blobs last changed before a time.

        Raises:
            StorageUnavailableError.
        """
        return [blob for blob in await self._list(None) if blob.modified_at < before]

    async def _list(self, folder: str | None) -> list[BlobInfo]:
        with _translate_errors():
            blobs = await self._store.list(prefix=folder).collect_async()
        return [BlobInfo(meta["path"], meta["size"], meta["last_modified"].timestamp()) for meta in blobs]

    async def _put(self, name: str, content: AsyncIterator[bytes] | Path) -> None:
        part_bytes = CHUNK_BYTES if self._root is not None else PART_BYTES
        await obstore.put_async(
            self._store, name, content, chunk_size=part_bytes, max_concurrency=MAX_CONCURRENT_PARTS
        )


def _open_s3(location: str, credentials: tuple[str, str] | None, timeout_s: float, retry_s: float) -> S3Store:
    parts = urlsplit(location)
    options = dict(parse_qsl(parts.query))
    if parts.scheme != "s3" or not parts.netloc or not set(options) <= {"endpoint", "region"}:
        raise ValueError(f"blobs = {location!r}: write it as s3://BUCKET/PREFIX?endpoint=URL&region=NAME")
    if credentials is not None:
        options["access_key_id"], options["secret_access_key"] = credentials
    return S3Store(
        parts.netloc,
        prefix=parts.path.strip("/") or None,
        config=cast("S3Config", options),
        client_options={"allow_http": True, "timeout": timedelta(seconds=timeout_s)},
        retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=retry_s)},
    )


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except BaseError as error:
        raise StorageUnavailableError(str(error).strip().splitlines()[0]) from error


def _link(file: Path, target: Path) -> None:
    """Create a hard link; a copy where the two are on different file systems."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{uuid.uuid4().hex}.part")  # others may link to the same name at this moment
    try:
        part.hardlink_to(file)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(file, part)
    part.replace(target)
    part.unlink(missing_ok=True)  # `replace` does nothing where both are links to one file already


def _move(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    file.replace(target)
    _sync_to_disk(target)


def _sync_to_disk(path: Path) -> None:
    """Wait until a file and its name are on the disk: what is acknowledged survives a power failure."""
    for entry in (path, path.parent):
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _validate(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a blob name")
    return name
