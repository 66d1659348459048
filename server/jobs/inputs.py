"""A job's inputs as local files: fetched, or uploads that are here already; vendors' limits are checked.

It knows nothing of dialects; what may be fetched from where is `transport`'s to decide.
"""

from __future__ import annotations

from pathlib import Path

from server.jobs.request import InputSource, MediaLimits, Role
from server.storage.blobs import Blobs
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


class Inputs:
    """Brings inputs.

    Args:
        transport: open; stays the caller's.
        blobs: where uploads lie.
    """

    def __init__(self, transport: Transport, blobs: Blobs) -> None:
        self._transport, self._blobs = transport, blobs

    async def bring(self, record: Record, folder: Path) -> dict[str, Path]:
        """All inputs of a job by their names, in `folder` or where they lie.

        Raises:
            TransportError: one cannot be had, or is not what the model takes. StorageUnavailableError.
        """
        return {source.name: await self._bring(source, folder) for source in record.request.sources}

    async def _bring(self, source: InputSource, folder: Path) -> Path:
        if source.url is not None:
            path = folder / source.name
            try:
                await self._transport.fetch(source.url, path, KINDS[source.role])
            except TransportError as error:
                if error.code is not TransportCode.URL_BAD_STATUS:
                    raise
                sentence = f"Failed to download the {source.role} from the provided URL."
                raise TransportError(error.code, sentence) from error
        else:
            try:
                path = await self._blobs.local(source.blob or "", folder)
            except FileNotFoundError:
                raise TransportError(
                    TransportCode.URL_BAD_STATUS,
                    f"The uploaded {source.role} is not here any more: upload it again.",
                ) from None
        _check(path, source.role, source.limits)
        return path


def _check(path: Path, role: Role, limits: MediaLimits) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        found = sniff(file.read(HEAD_BYTES))
    if found is None or KINDS[role] not in found.kinds:
        raise TransportError(TransportCode.URL_WRONG_TYPE, f"The {role} is no {role} file that can be used.")
    # An MP4 with sound alone is what m4a means; the container does not always say so.
    suffix = "m4a" if role is Role.AUDIO and found.suffix == "mp4" else found.suffix
    if limits.formats and suffix not in limits.formats:
        raise TransportError(
            TransportCode.URL_WRONG_TYPE,
            f"The {role} is a {suffix} file; this model takes {', '.join(limits.formats)}.",
        )
    if limits.max_bytes is not None and size > limits.max_bytes:
        raise TransportError(
            TransportCode.URL_TOO_LARGE,
            f"The {role} has {size / 1e6:.1f} MB; this model takes at most {limits.max_bytes / 1e6:.0f} MB.",
        )
