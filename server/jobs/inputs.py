"""Inputs of a job as local files: downloads, or uploads that are stored already; vendors' limits are checked.

The module knows no dialect. `storage.transport` decides which addresses may be reached.
"""

from __future__ import annotations

from pathlib import Path

from server.jobs.request import MIB, InputSource, MediaLimits, Role
from server.storage.blobs import Blobs, download_folder
from server.storage.transport import MediaKind, Transport, TransportCode, TransportError, sniff
from server.store import Record

KINDS = {
    Role.VIDEO: MediaKind.VIDEO,
    Role.IMAGE: MediaKind.IMAGE,
    Role.AUDIO: MediaKind.AUDIO,
    Role.LEFT_AUDIO: MediaKind.AUDIO,
    Role.RIGHT_AUDIO: MediaKind.AUDIO,
    Role.MASK: MediaKind.IMAGE,
}
HEAD_BYTES = 4096
CONVERTED = {"avi": "mp4", "wmv": "mp4", "flv": "mp4", "aiff": "wav"}
"""Formats that the server converts: they are accepted where a model takes the other one."""


class InputFetcher:
    """Fetches the inputs of jobs.

    Args:
        transport: open; the caller closes it.
        blobs: storage of uploads.
    """

    def __init__(self, transport: Transport, blobs: Blobs) -> None:
        self._transport, self._blobs = transport, blobs

    async def fetch(self, record: Record, folder: Path) -> dict[str, Path]:
        """Return local files by the inputs' names, in `folder` or where they are stored.

        Raises:
            TransportError: an input has expired, or the model does not accept it.
            StorageUnavailableError.
        """
        job_id = record.job.id
        return {
            source.name: await self._fetch_one(job_id, source, folder) for source in record.request.sources
        }

    async def download(self, record: Record, folder: Path) -> None:
        """Download and store the inputs that a job names by URL; `fetch` finds them.

        Args:
            folder: for files that are not complete.

        Raises:
            TransportError: an input cannot be downloaded, or the model does not accept it.
            StorageUnavailableError.
        """
        for source in record.request.sources:
            if source.url is None:
                continue
            path = folder / source.name
            try:
                await self._transport.fetch(source.url, path, KINDS[source.role])
            except TransportError as error:
                if error.code is not TransportCode.URL_BAD_STATUS:
                    raise
                sentence = f"Failed to download the {source.role} from the provided URL."
                raise TransportError(error.code, sentence) from error
            _check(path, source.role, source.limits)
            await self._blobs.move_in(_blob_of(record.job.id, source), path)

    async def _fetch_one(self, job_id: str, source: InputSource, folder: Path) -> Path:
        try:
            path = await self._blobs.local(_blob_of(job_id, source), folder)
        except FileNotFoundError:
            sentence = f"The {source.role} has expired: upload it again, or submit the job again."
            raise TransportError(TransportCode.URL_BAD_STATUS, sentence) from None
        _check(path, source.role, source.limits)
        return path


def _blob_of(job_id: str, source: InputSource) -> str:
    return source.blob or f"{download_folder(job_id)}/{source.name}.bin"


def _check(path: Path, role: Role, limits: MediaLimits) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        media_type = sniff(file.read(HEAD_BYTES))
    if media_type is None or KINDS[role] not in media_type.kinds:
        raise TransportError(
            TransportCode.URL_WRONG_TYPE,
            f"The {role} is not a supported {KINDS[role]} file: send another one.",
        )
    # An MP4 without a video stream is an m4a; the container does not always show it.
    suffix = "m4a" if role is Role.AUDIO and media_type.suffix == "mp4" else media_type.suffix
    suffix = CONVERTED.get(suffix, suffix)
    if limits.formats and suffix not in limits.formats:
        raise TransportError(
            TransportCode.URL_WRONG_TYPE,
            f"The {role} is a {suffix} file; this model takes {', '.join(limits.formats)}.",
        )
    if limits.max_bytes is not None and size > limits.max_bytes:
        raise TransportError(
            TransportCode.URL_TOO_LARGE,
            f"The {role} has {size:,} bytes; this model takes at most {limits.max_bytes:,} "
            f"({limits.max_bytes / MIB:g} MB).",
        )
