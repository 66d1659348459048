"""The batch's memory: a line per finished row in OUT/results.jsonl, on disk before the next one is begun.

A row counts as done when the last of its lines that says so has the same inputs and options, and its result
is there; a later run then leaves it alone. A line that a crash has cut is passed over. It knows no processes.
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
from lipsync_engine.batch.manifest import Row
from lipsync_engine.errors import ErrorCode

FILE_NAME = "results.jsonl"


class Status(StrEnum):
    DONE = "done"
    FAILED = "failed"  # it was tried
    REFUSED = "refused"  # it was not: the manifest or a file is wrong


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file as it was when it was used; what is not known of a row that failed is None."""

    path: Path
    size_bytes: int | None = None
    mtime_ns: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Sync:
    """Attributes: as of `lipsync_engine.sync_score.SyncScore`."""

    confidence: float
    offset_frames: int


@dataclass(frozen=True, slots=True)
class Made:
    """What the engine says of a clip.

    Attributes:
        frames, frames_without_face, duration_s: of the result.
        segments_resumed: segments that an interrupted run had left.
        seconds: wall clock per stage.
        warnings: sentences on what was asked for and not done.
        thumbnail: whether there is one.
        is_marked: it carries content credentials.
        sync: how well lips and voice belong together; None: not measured.
    """

    frames: int
    frames_without_face: int
    duration_s: float
    segments_resumed: int
    seconds: Mapping[str, float]
    warnings: tuple[str, ...]
    thumbnail: bool
    is_marked: bool = False
    sync: Sync | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the file.

    Attributes:
        row: number in the manifest of that run.
        output: in the output folder; empty where a refused row names none that can be used, then `clip` says
            what the row calls itself.
        inputs: by column.
        options_sha256: of everything but the inputs that decides the result.
        code, message: of a row that is not done; a refused row's mistakes are joined.
        attempts: how many workers tried.
        consent: reference to the consent of the person shown.
        finished_at: seconds since 1970, UTC.
    """

    row: int
    status: Status
    output: str
    finished_at: float
    inputs: Mapping[str, InputFile] = field(default_factory=dict)
    options_sha256: str = ""
    code: ErrorCode | None = None
    message: str = ""
    attempts: int = 0
    made: Made | None = None
    clip: str = ""
    consent: str | None = None


_RESULT: TypeAdapter[Result] = TypeAdapter(Result)
_ROW: TypeAdapter[Row] = TypeAdapter(Row)


def options_sha256(row: Row, model: tuple[str, ...]) -> str:
    """Names what decides a row's result besides its files.

    Args:
        model: its name, and how it is loaded.
    """
    no_option: dict[str, bool | set[str]] = {
        "number": True,
        "inputs": True,
        "params": {"mask_image"},
        "consent": True,
    }
    options = _ROW.dump_json(row, exclude=no_option)
    return hashlib.sha256(repr(model).encode() + b"\0" + options).hexdigest()


def thumbnail(output: str) -> str:
    """Path of a result's thumbnail in the output folder."""
    return f"thumbnails/{hashlib.sha256(output.encode()).hexdigest()[:20]}.jpg"


class Ledger:
    """The file, which appears with its first line; a context manager.

    Args:
        folder: of the results.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        path = folder / FILE_NAME
        self._done: dict[str, Result] = {}  # a failure after it has left the file as it was
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
        for line in lines:
            try:
                result = _RESULT.validate_json(line)
            except ValidationError:  # cut by a crash, or empty
                continue
            self._note(result)
        self._is_cut = bool(lines[-1])
        self._file: BinaryIO | None = None

    def add(self, result: Result) -> None:
        """On disk when this returns."""
        if self._file is None:
            self._file = (self._folder / FILE_NAME).open("ab")
            if self._is_cut:
                self._file.write(b"\n")
        self._file.write(_RESULT.dump_json(result) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._note(result)

    def done(self, row: Row, options: str) -> Result | None:
        """The result of an earlier run that is this row's; files are hashed only where their times differ."""
        found = self._done.get(row.output)
        if (
            found is None
            or found.options_sha256 != options
            or found.inputs.keys() != {str(role) for role in row.inputs}
            or not (self._folder / row.output).is_file()
        ):
            return None
        same = all(_is_same(path, found.inputs[role]) for role, path in row.inputs.items())
        return found if same else None

    def _note(self, result: Result) -> None:
        if result.status is Status.DONE:
            self._done[result.output] = result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _is_same(path: Path, known: InputFile) -> bool:
    try:
        status = path.stat()
        if status.st_size != known.size_bytes:
            return False
        return status.st_mtime_ns == known.mtime_ns or media.content_hash(path) == known.sha256
    except OSError:
        return False
