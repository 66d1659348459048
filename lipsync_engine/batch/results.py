"""OUT/results.jsonl: one line per finished row, written to disk before the next row starts.

A row is done if its last `done` line has the same inputs and options and its result exists; a later run then
skips it. A line that a crash has truncated is ignored. The module knows no processes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Self

from pydantic import TypeAdapter, ValidationError

from lipsync_engine import media
from lipsync_engine.batch.manifest import ManifestRow
from lipsync_engine.errors import ErrorCode
from lipsync_engine.params import stored_as

FILE_NAME = "results.jsonl"


class RowStatus(StrEnum):
    """How a row ended."""

    DONE = "done"
    FAILED = "failed"  # after at least one attempt
    REFUSED = "refused"  # before any attempt: the manifest or a file is invalid


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file as it was when it was used; properties are None if a failed row did not determine them."""

    path: Path
    size_bytes: int | None = None
    mtime_ns: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class SyncSummary:
    """The two figures of a `lipsync_engine.sync_score.SyncScore` that a batch stores."""

    confidence: float
    offset_frames: int


@dataclass(frozen=True, slots=True)
class ClipStats:
    """What the engine reports about a finished clip.

    Attributes:
        frames, frames_without_face, duration_s: of the result.
        segments_resumed: segments that an interrupted run had rendered.
        seconds: wall-clock time per stage.
        warnings: sentences about options that had no effect.
        has_thumbnail: a thumbnail was written.
        is_signed: the result has content credentials.
        sync: how well lips and audio match; None: not measured.
    """

    __pydantic_config__ = stored_as(has_thumbnail="thumbnail", is_signed="is_marked")

    frames: int
    frames_without_face: int
    duration_s: float
    segments_resumed: int
    seconds: Mapping[str, float]
    warnings: tuple[str, ...]
    has_thumbnail: bool
    is_signed: bool = False
    sync: SyncSummary | None = None


@dataclass(frozen=True, slots=True)
class RowResult:
    """One line of the file.

    Attributes:
        row: number in the manifest of that run.
        output: path in the output folder; empty if a refused row has no valid one, then `clip` is the row's
            display name.
        inputs: by column.
        options_sha256: of everything but the inputs that decides the result.
        code, message: of a row that is not done; the problems of a refused row are joined.
        attempts: number of workers that tried.
        consent: reference to the consent of the person shown.
        finished_at: seconds since 1970, UTC.
    """

    __pydantic_config__ = stored_as(stats="made")

    row: int
    status: RowStatus
    output: str
    finished_at: float
    inputs: Mapping[str, InputFile] = field(default_factory=dict)
    options_sha256: str = ""
    code: ErrorCode | None = None
    message: str = ""
    attempts: int = 0
    stats: ClipStats | None = None
    clip: str = ""
    consent: str | None = None


_RESULT: TypeAdapter[RowResult] = TypeAdapter(RowResult)
_ROW: TypeAdapter[ManifestRow] = TypeAdapter(ManifestRow)


def options_sha256(row: ManifestRow, model: tuple[str, ...]) -> str:
    """Return a hash of what decides a row's result besides its input files.

    Args:
        model: its name, and how it is loaded.
    """
    not_options: dict[str, bool | set[str]] = {
        "number": True,
        "inputs": True,
        "params": {"mask_image", *row.params.new_options_at_default()},
        "consent": True,
    }
    options = _ROW.dump_json(row, exclude=not_options)
    return hashlib.sha256(repr(model).encode() + b"\0" + options).hexdigest()


def thumbnail_path(output: str) -> str:
    """Return the path of a result's thumbnail in the output folder."""
    return f"thumbnails/{hashlib.sha256(output.encode()).hexdigest()[:20]}.jpg"


class ResultLog:
    """The results file, created with its first line; a context manager.

    Args:
        folder: of the results.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        path = folder / FILE_NAME
        # The last `done` line of each output: a failed attempt after it did not touch the file.
        self._done_by_output: dict[str, RowResult] = {}
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
        for line in lines:
            try:
                result = _RESULT.validate_json(line)
            except ValidationError:  # truncated by a crash, or empty
                continue
            self._index_result(result)
        self._is_truncated = bool(lines[-1])
        self._file: BinaryIO | None = None

    def append(self, result: RowResult) -> None:
        """Write a line; it is on disk when this returns."""
        if self._file is None:
            self._file = (self._folder / FILE_NAME).open("ab")
            if self._is_truncated:
                self._file.write(b"\n")
        self._file.write(_RESULT.dump_json(result) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._index_result(result)

    def find_done(self, row: ManifestRow, options_hash: str) -> RowResult | None:
        """Return the result of an earlier run that is still valid for this row, or None.

        Input files are hashed only if their modification times differ.
        """
        result = self._done_by_output.get(row.output)
        if (
            result is None
            or result.options_sha256 != options_hash
            or result.inputs.keys() != {str(role) for role in row.inputs}
            or not (self._folder / row.output).is_file()
        ):
            return None
        is_valid = all(_is_unchanged(path, result.inputs[role]) for role, path in row.inputs.items())
        return result if is_valid else None

    def _index_result(self, result: RowResult) -> None:
        if result.status is RowStatus.DONE:
            self._done_by_output[result.output] = result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _is_unchanged(path: Path, record: InputFile) -> bool:
    try:
        status = path.stat()
        if status.st_size != record.size_bytes:
            return False
        return status.st_mtime_ns == record.mtime_ns or media.content_hash(path) == record.sha256
    except OSError:
        return False
