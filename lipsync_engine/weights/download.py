"""Download of one file from the model hub, a mirror, or a plain URL; a later run resumes the part file.

The transfer is huggingface_hub's `http_get`. It retries, requests only the missing bytes, follows redirects,
and drops the token when a redirect leaves the hub. `hf_hub_download` is not used because it discards what a
killed process had received (huggingface_hub 1.0 and later). The content is verified by the store; this module
only compares it with what the server announces.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]
from tqdm import tqdm  # type: ignore[import-untyped]

from lipsync_engine.errors import ErrorCode, WeightsError
from lipsync_engine.weights.files import OnBytes, to_disk_error
from lipsync_engine.weights.manifest import FileEntry


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """Metadata of a file on the server, before the transfer.

    Attributes:
        url: of the content.
        headers: of the request.
        size: bytes, or None if unknown.
        tag: identifies the content; for large files on the hub it is the SHA-256.
    """

    url: str
    headers: dict[str, str]
    size: int | None
    tag: str


def download(file: FileEntry, folder: Path, on_bytes: OnBytes) -> Path:
    """Download a file into `folder`, resuming an earlier part file.

    HF_ENDPOINT selects a mirror of the hub, HF_TOKEN gives access to gated repositories, HF_HUB_OFFLINE
    forbids network access.

    Returns:
        The complete part file. Its length matches the server's, its content is not verified yet.

    Raises:
        WeightsError: WEIGHTS_DOWNLOAD_FAILED (the part file stays), WEIGHTS_TRUNCATED or
            WEIGHTS_HASH_MISMATCH (the server has another file).
        ResourceError: DISK_FULL.
    """
    url = file.url or hf_hub_url(
        str(file.repo), file.path, revision=file.revision, endpoint=os.environ.get("HF_ENDPOINT") or None
    )
    host = urlsplit(url).netloc
    if constants.is_offline_mode():
        raise _download_error(file, host, "HF_HUB_OFFLINE is set")
    with _translate_errors(file, host, folder):
        remote = _fetch_metadata(file, url, host)
        part = folder / f"{file.name}.{remote.tag[:12]}.part"
        _transfer(file, remote, part, on_bytes)
    if remote.size not in (None, part.stat().st_size):
        part.unlink()  # resuming cannot repair a file of the wrong length
        raise WeightsError(
            ErrorCode.WEIGHTS_TRUNCATED,
            f"{host} sent {file.name} with the wrong length; the download was discarded. Pull again, from "
            "another mirror (HF_ENDPOINT) if this repeats.",
        )
    return part


@contextmanager
def _translate_errors(file: FileEntry, host: str, folder: Path) -> Iterator[None]:
    """Convert errors of network and disk to errors that a user can act on."""
    try:
        yield
    except HfHubHTTPError as error:
        raise _download_error(file, host, _describe_status(error)) from error
    except (httpx2.HTTPError, ConnectionError) as error:
        raise _download_error(file, host, str(error) or type(error).__name__) from error
    except OSError as error:
        raise to_disk_error(error, folder) from error


def _fetch_metadata(file: FileEntry, url: str, host: str) -> RemoteFile:
    """Request the file's metadata from the hub, and reject a wrong file before gigabytes are transferred."""
    if file.url is not None:
        return RemoteFile(url, {}, file.size, str(file.sha256))
    headers = build_hf_headers()
    metadata = get_hf_file_metadata(url, headers=headers)
    tag = (metadata.etag or "").lower()
    if file.size is not None and metadata.size is not None and metadata.size != file.size:
        raise WeightsError(
            ErrorCode.WEIGHTS_TRUNCATED,
            f"{file.name} has {metadata.size} bytes on {host}, but {file.size} are published: nothing was "
            "downloaded. Use another mirror (HF_ENDPOINT).",
        )
    if file.sha256 is not None and _is_sha256(tag) and tag != file.sha256:
        raise WeightsError(
            ErrorCode.WEIGHTS_HASH_MISMATCH,
            f"{file.name} on {host} is not the published file (SHA-256 {tag[:12]}…, expected "
            f"{file.sha256[:12]}…): nothing was downloaded. Use another mirror (HF_ENDPOINT).",
        )
    key = file.sha256 or "".join(c for c in tag if c.isalnum()) or str(file.revision)
    return RemoteFile(url, headers, metadata.size or file.size, key)


def _is_sha256(tag: str) -> bool:
    return len(tag) == 64 and set(tag) <= set("0123456789abcdef")


def _transfer(file: FileEntry, remote: RemoteFile, part: Path, on_bytes: OnBytes) -> None:
    part.parent.mkdir(parents=True, exist_ok=True)
    resume_size = part.stat().st_size if part.exists() else 0
    if remote.size is not None and resume_size > remote.size:
        part.unlink()
        resume_size = 0
    if remote.size is not None and remote.size - resume_size > shutil.disk_usage(part.parent).free:
        raise to_disk_error(OSError(errno.ENOSPC, "No space left"), part.parent)

    class ProgressReport(tqdm):  # type: ignore[misc]
        """A progress bar for `http_get` that draws nothing and calls `on_bytes`."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})
            on_bytes(file.name, int(self.n), int(self.total or 0))

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            on_bytes(file.name, int(self.n), int(self.total or 0))
            return None

    with part.open("ab") as target:
        try:
            http_get(
                remote.url,
                target,
                resume_size=resume_size,
                headers=remote.headers,
                expected_size=remote.size,
                tqdm_class=ProgressReport,
            )
        except OSError as error:
            # A bare OSError: a complete response with another length than announced. The caller checks it.
            if type(error) is not OSError or error.errno is not None:
                raise
        target.flush()
        os.fsync(target.fileno())


def _describe_status(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if status in (401, 403):
        return f"HTTP {status}: accept the licence on the model's page and set HF_TOKEN"
    return f"HTTP {status}"


def _download_error(file: FileEntry, host: str, reason: str) -> WeightsError:
    return WeightsError(
        ErrorCode.WEIGHTS_DOWNLOAD_FAILED,
        f"{file.name} could not be downloaded from {host} ({reason}). Run the same command again to resume, "
        "set HF_ENDPOINT to a mirror, or copy the files to this machine and run `lipsync weights import "
        "FOLDER`.",
    )
