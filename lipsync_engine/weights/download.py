"""One file from the model hub, a mirror of it, or a plain address, into a part file that a later run
continues.

The transfer itself is huggingface_hub's `http_get`: it retries, asks only for the missing bytes, follows
redirects and drops the token where they leave the hub. Its `hf_hub_download` is not used because it throws
away what a killed process had received (huggingface_hub 1.0 and later). Nothing here decides whether the
bytes are right, beyond what the server itself announces.
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
from lipsync_engine.weights.files import OnBytes, disk_fault
from lipsync_engine.weights.manifest import FileEntry


@dataclass(frozen=True, slots=True)
class Announced:
    """What the server says about a file before it is sent.

    Attributes:
        url: where to get it.
        headers: to send along.
        size: bytes, or None.
        tag: names this content; the SHA-256 itself for large files on the hub.
    """

    url: str
    headers: dict[str, str]
    size: int | None
    tag: str


def download(file: FileEntry, folder: Path, on_bytes: OnBytes) -> Path:
    """Fetch a file into `folder`; what an earlier run left there is continued.

    HF_ENDPOINT names a mirror of the hub, HF_TOKEN opens gated repositories, HF_HUB_OFFLINE forbids the
    network.

    Returns:
        the finished part file, of the announced length, its content not yet verified.

    Raises:
        WeightsError: WEIGHTS_DOWNLOAD_FAILED (the part is kept), WEIGHTS_TRUNCATED or WEIGHTS_HASH_MISMATCH
            (the server has another file).
        ResourceError: DISK_FULL.
    """
    url = file.url or hf_hub_url(
        str(file.repo), file.path, revision=file.revision, endpoint=os.environ.get("HF_ENDPOINT") or None
    )
    host = urlsplit(url).netloc
    if constants.is_offline_mode():
        raise _failed(file, host, "HF_HUB_OFFLINE is set")
    with _named_faults(file, host, folder):
        announced = _ask(file, url, host)
        part = folder / f"{file.name}.{announced.tag[:12]}.part"
        _transfer(file, announced, part, on_bytes)
    if announced.size not in (None, part.stat().st_size):
        part.unlink()  # nothing that is asked for in addition would make this file right
        raise WeightsError(
            ErrorCode.WEIGHTS_TRUNCATED,
            f"{host} sent a {file.name} of the wrong length; it was not kept. Pull again, from another "
            "mirror (HF_ENDPOINT) if this repeats.",
        )
    return part


@contextmanager
def _named_faults(file: FileEntry, host: str, folder: Path) -> Iterator[None]:
    """Faults of network and disk as errors that say what to do."""
    try:
        yield
    except HfHubHTTPError as error:
        raise _failed(file, host, _status(error)) from error
    except (httpx2.HTTPError, ConnectionError) as error:
        raise _failed(file, host, str(error) or type(error).__name__) from error
    except OSError as error:
        raise disk_fault(error, folder) from error


def _ask(file: FileEntry, url: str, host: str) -> Announced:
    """Ask the hub what it would send, and refuse early what cannot be right: gigabytes are at stake."""
    if file.url is not None:
        return Announced(url, {}, file.size, str(file.sha256))
    headers = build_hf_headers()
    found = get_hf_file_metadata(url, headers=headers)
    tag = (found.etag or "").lower()
    if file.size is not None and found.size is not None and found.size != file.size:
        raise WeightsError(
            ErrorCode.WEIGHTS_TRUNCATED,
            f"{host} offers a {file.name} of {found.size} bytes, but {file.size} are published: nothing was "
            "downloaded. Use another mirror (HF_ENDPOINT).",
        )
    if file.sha256 is not None and _is_sha256(tag) and tag != file.sha256:
        raise WeightsError(
            ErrorCode.WEIGHTS_HASH_MISMATCH,
            f"{host} offers another {file.name} than the published one (SHA-256 {tag[:12]}…, expected "
            f"{file.sha256[:12]}…): nothing was downloaded. Use another mirror (HF_ENDPOINT).",
        )
    key = file.sha256 or "".join(c for c in tag if c.isalnum()) or str(file.revision)
    return Announced(url, headers, found.size or file.size, key)


def _is_sha256(tag: str) -> bool:
    return len(tag) == 64 and set(tag) <= set("0123456789abcdef")


def _transfer(file: FileEntry, announced: Announced, part: Path, on_bytes: OnBytes) -> None:
    part.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    if announced.size is not None and have > announced.size:
        part.unlink()
        have = 0
    if announced.size is not None and announced.size - have > shutil.disk_usage(part.parent).free:
        raise disk_fault(OSError(errno.ENOSPC, "No space left"), part.parent)

    class Report(tqdm):  # type: ignore[misc]
        """The progress bar that `http_get` wants; it draws nothing."""

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
                announced.url,
                target,
                resume_size=have,
                headers=announced.headers,
                expected_size=announced.size,
                tqdm_class=Report,
            )
        except OSError as error:
            # A bare OSError: a complete answer that is not as long as announced. The caller measures it.
            if type(error) is not OSError or error.errno is not None:
                raise
        target.flush()
        os.fsync(target.fileno())


def _status(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if status in (401, 403):
        return f"HTTP {status}: accept the licence on the model's page and set HF_TOKEN"
    return f"HTTP {status}"


def _failed(file: FileEntry, host: str, why: str) -> WeightsError:
    return WeightsError(
        ErrorCode.WEIGHTS_DOWNLOAD_FAILED,
        f"{file.name} could not be downloaded from {host} ({why}). Run the same command again to go on "
        "where it stopped, set HF_ENDPOINT to a mirror, or copy the files here and run `lipsync weights "
        "import FOLDER`.",
    )
