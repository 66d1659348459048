"""What a batch and its workers say to each other: one JSON object per line. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from lipsync_engine.batch.manifest import Row
from lipsync_engine.batch.results import InputFile, Made
from lipsync_engine.errors import ErrorCode
from lipsync_engine.progress import Stage


@dataclass(frozen=True, slots=True)
class Start:
    """Make a clip.

    Attributes:
        row: what.
        output: where; its folder exists.
        thumbnail: JPEG to write once it is done.
    """

    row: Row
    output: Path
    thumbnail: Path
    kind: Literal["start"] = "start"


@dataclass(frozen=True, slots=True)
class Stop:
    """Leave what you are doing, clean up, and end."""

    kind: Literal["stop"] = "stop"


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded."""

    device: str
    kind: Literal["ready"] = "ready"


@dataclass(frozen=True, slots=True)
class Unable:
    """The model cannot be loaded here: the worker ends."""

    code: ErrorCode
    message: str
    kind: Literal["unable"] = "unable"


@dataclass(frozen=True, slots=True)
class Working:
    """Where the clip of a row is; `total` is 0 where it is not known."""

    row: int
    stage: Stage
    done: int
    total: int
    kind: Literal["working"] = "working"


@dataclass(frozen=True, slots=True)
class Done:
    """The clip of a row is complete."""

    row: int
    made: Made
    inputs: Mapping[str, InputFile]
    kind: Literal["done"] = "done"


@dataclass(frozen=True, slots=True)
class Failed:
    """The clip of a row cannot be made; the worker is well."""

    row: int
    code: ErrorCode
    message: str
    kind: Literal["failed"] = "failed"


ToWorker = Start | Stop
FromWorker = Ready | Unable | Working | Done | Failed

_TO_WORKER: TypeAdapter[ToWorker] = TypeAdapter(Annotated[ToWorker, Field(discriminator="kind")])
_FROM_WORKER: TypeAdapter[FromWorker] = TypeAdapter(Annotated[FromWorker, Field(discriminator="kind")])


def line_to_worker(message: ToWorker) -> bytes:
    return _TO_WORKER.dump_json(message) + b"\n"


def read_to_worker(line: bytes) -> ToWorker:
    return _TO_WORKER.validate_json(line)


def line_from_worker(message: FromWorker) -> bytes:
    return _FROM_WORKER.dump_json(message) + b"\n"


def read_from_worker(line: bytes) -> FromWorker:
    return _FROM_WORKER.validate_json(line)
