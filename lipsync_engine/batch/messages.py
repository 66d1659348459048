"""Messages between a batch and its workers: one JSON object per line. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from lipsync_engine.batch.manifest import ManifestRow
from lipsync_engine.batch.results import ClipStats, InputFile
from lipsync_engine.errors import ErrorCode
from lipsync_engine.progress import Stage


@dataclass(frozen=True, slots=True)
class RunJob:
    """Command: lip-sync the clip of a row.

    Attributes:
        row: with absolute input paths.
        output: file to write; its folder exists.
        thumbnail: JPEG to write from the result.
    """

    row: ManifestRow
    output: Path
    thumbnail: Path
    kind: Literal["run_job"] = "run_job"


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Command: cancel all jobs, clean up, and exit."""

    kind: Literal["shutdown"] = "shutdown"


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """Event: the model is loaded."""

    device: str
    kind: Literal["worker_ready"] = "worker_ready"


@dataclass(frozen=True, slots=True)
class WorkerUnusable:
    """Event: the model cannot be loaded here; the worker exits."""

    code: ErrorCode
    message: str
    kind: Literal["worker_unusable"] = "worker_unusable"


@dataclass(frozen=True, slots=True)
class JobProgress:
    """Event: progress of a row's clip; `total` is 0 if unknown."""

    row: int
    stage: Stage
    done: int
    total: int
    kind: Literal["job_progress"] = "job_progress"


@dataclass(frozen=True, slots=True)
class JobSucceeded:
    """Event: the clip of a row is complete."""

    row: int
    stats: ClipStats
    inputs: Mapping[str, InputFile]
    kind: Literal["job_succeeded"] = "job_succeeded"


@dataclass(frozen=True, slots=True)
class JobFailed:
    """Event: the clip of a row failed; the worker continues."""

    row: int
    code: ErrorCode
    message: str
    kind: Literal["job_failed"] = "job_failed"


ToWorker = RunJob | Shutdown
FromWorker = WorkerReady | WorkerUnusable | JobProgress | JobSucceeded | JobFailed

_TO_WORKER: TypeAdapter[ToWorker] = TypeAdapter(Annotated[ToWorker, Field(discriminator="kind")])
_FROM_WORKER: TypeAdapter[FromWorker] = TypeAdapter(Annotated[FromWorker, Field(discriminator="kind")])


def line_to_worker(message: ToWorker) -> bytes:
    """Encode a command."""
    return _TO_WORKER.dump_json(message) + b"\n"


def read_to_worker(line: bytes) -> ToWorker:
    """Decode a command."""
    return _TO_WORKER.validate_json(line)


def line_from_worker(message: FromWorker) -> bytes:
    """Encode an event."""
    return _FROM_WORKER.dump_json(message) + b"\n"


def read_from_worker(line: bytes) -> FromWorker:
    """Decode an event."""
    return _FROM_WORKER.validate_json(line)
