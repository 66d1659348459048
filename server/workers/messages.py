"""Messages between a worker process and its parent: one JSON object per line on its standard streams.

Commands go to the worker, events come from it. Both processes run the same version of this file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from server.jobs.request import MediaLimits, Options, SpeechInterval
from server.jobs.state import SyncConfidence

# --- commands: parent to worker ---


@dataclass(frozen=True, slots=True)
class RunJob:
    """Run a job on local files. Its source is a video, or an image to be animated.

    Attributes:
        inputs, limits: by the inputs' names.
        segments: who speaks when; empty: see `Request.segments`.
        output: path of the result.
        shareable: other workers can render segments of it.
        tenant: its caches and unfinished work are used by its own jobs alone.
        plan_key: key of a plan that an earlier attempt has shared; empty: none.
        previous_files: that plan and its finished segments, by file name.
    """

    job_id: str
    inputs: dict[str, str]
    limits: dict[str, MediaLimits]
    segments: tuple[SpeechInterval, ...]
    output: str
    options: Options
    tenant: str
    consent: str | None = None
    shareable: bool = False
    plan_key: str = ""
    previous_files: dict[str, str] = field(default_factory=dict)
    kind: Literal["run_job"] = "run_job"


@dataclass(frozen=True, slots=True)
class CancelJob:
    """Stop a job, or the rendering of its segment, between two windows."""

    job_id: str
    kind: Literal["cancel_job"] = "cancel_job"


@dataclass(frozen=True, slots=True)
class SegmentAssigned:
    """Answer to `NextSegment`: the segment to render. None: a file has arrived, or the job is cancelled."""

    job_id: str
    index: int | None
    kind: Literal["segment_assigned"] = "segment_assigned"


@dataclass(frozen=True, slots=True)
class RenderSegment:
    """Render a segment of another worker's job.

    Attributes:
        folder: contains the plan and the files that it needs; the segment's file is written there.
    """

    job_id: str
    index: int
    folder: str
    kind: Literal["render_segment"] = "render_segment"


Command = RunJob | CancelJob | SegmentAssigned | RenderSegment


# --- events: worker to parent ---


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """The model is loaded and warmed up.

    Attributes:
        compatibility_key: equal for workers that render equal segments: same program, weights, kind of
            device and number formats.
    """

    device: str
    model: str
    compatibility_key: str
    kind: Literal["worker_ready"] = "worker_ready"


@dataclass(frozen=True, slots=True)
class WorkerFailed:
    """The worker cannot start, and ends; the sentence is for the operator."""

    message: str
    kind: Literal["worker_failed"] = "worker_failed"


@dataclass(frozen=True, slots=True)
class JobProgress:
    """Progress of a job or segment: name of the stage, steps done, in total and per second."""

    job_id: str
    stage: str
    done: int
    total: int
    per_s: float
    kind: Literal["job_progress"] = "job_progress"


@dataclass(frozen=True, slots=True)
class PreviewReady:
    """A part of the result can be watched.

    Attributes:
        file: fragmented MP4 in the job's folder; the parent moves it away.
        index: of the segment, from 0.
        start_s, stop_s: its position in the result.
        still: JPEG in the job's folder, which the parent moves away; sent with an attempt's first preview.
    """

    job_id: str
    file: str
    index: int
    start_s: float
    stop_s: float
    still: str | None = None
    kind: Literal["preview_ready"] = "preview_ready"


@dataclass(frozen=True, slots=True)
class SegmentsPublished:
    """The job's plan is complete, and other workers may render its segments.

    Attributes:
        plan_key: hash of everything that decides the pixels.
        files: files that rendering needs, by their names in a helper's folder.
        segments: file in the worker's folder and number of frames of each segment; a segment whose file
            exists is finished.
    """

    job_id: str
    plan_key: str
    files: dict[str, str]
    segments: tuple[tuple[str, int], ...]
    kind: Literal["segments_published"] = "segments_published"


@dataclass(frozen=True, slots=True)
class NextSegment:
    """Request for the next segment of the worker's own shared job; it waits for `SegmentAssigned`."""

    job_id: str
    kind: Literal["next_segment"] = "next_segment"


@dataclass(frozen=True, slots=True)
class SegmentRendered:
    """A segment from `SegmentAssigned` or `RenderSegment` is finished; `file` is its path."""

    job_id: str
    index: int
    file: str
    kind: Literal["segment_rendered"] = "segment_rendered"


@dataclass(frozen=True, slots=True)
class JobSucceeded:
    """The output file is complete.

    Attributes:
        device_s: seconds of rendering alone.
        media_s: duration of the result.
        warnings: sentences on deviations from the request, and on what needs attention.
        is_signed: carries content credentials.
        sync: None: not measured.
        is_nsfw: the source is not safe for work; None: not checked.
        warning_codes: one per warning.
        pauses_s: (start, stop) of the output where the voice gate is closed.
    """

    job_id: str
    device_s: float
    media_s: float
    warnings: tuple[str, ...]
    is_signed: bool
    sync: SyncConfidence | None = None
    is_nsfw: bool | None = None
    warning_codes: tuple[str, ...] = ()
    pauses_s: tuple[tuple[float, float], ...] = ()
    kind: Literal["job_succeeded"] = "job_succeeded"


@dataclass(frozen=True, slots=True)
class JobFailed:
    """The job failed and the worker is healthy; `retryable`: another attempt may succeed."""

    job_id: str
    code: str
    message: str
    retryable: bool
    kind: Literal["job_failed"] = "job_failed"


@dataclass(frozen=True, slots=True)
class JobCancelled:
    """The job was stopped on request."""

    job_id: str
    kind: Literal["job_cancelled"] = "job_cancelled"


@dataclass(frozen=True, slots=True)
class JobDuplicate:
    """An equal job is running; this one can start after its end."""

    job_id: str
    kind: Literal["job_duplicate"] = "job_duplicate"


JobEvent = (
    JobProgress
    | PreviewReady
    | SegmentsPublished
    | NextSegment
    | SegmentRendered
    | JobSucceeded
    | JobFailed
    | JobCancelled
    | JobDuplicate
)
Event = WorkerReady | WorkerFailed | JobEvent

_COMMAND: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="kind")])
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def encode_command(command: Command) -> bytes:
    return _COMMAND.dump_json(command) + b"\n"


def decode_command(line: bytes) -> Command:
    """Decode a line.

    Raises:
        ValueError: the line is not a command.
    """
    return _COMMAND.validate_json(line)


def encode_event(event: Event) -> bytes:
    return _EVENT.dump_json(event) + b"\n"


def decode_event(line: bytes) -> Event:
    """Decode a line.

    Raises:
        ValueError: the line is not an event.
    """
    return _EVENT.validate_json(line)
