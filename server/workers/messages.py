"""Messages between a worker process and its parent: one JSON object per line on its standard streams."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from server.jobs.request import MediaLimits, Options, SpeechInterval
from server.jobs.state import SyncConfidence

# --- parent to worker ---


@dataclass(frozen=True, slots=True)
class RunJob:
    """Do this job: local files in, `output` out. Its picture is a video, or a still to be animated.

    Attributes:
        inputs, limits: by the inputs' names.
        may_share: others can render segments of it.
        left: plan and finished segments of an earlier attempt that was made elsewhere, by name.
        left_key: names that plan.
    """

    job_id: str
    inputs: dict[str, str]
    limits: dict[str, MediaLimits]
    segments: tuple[SpeechInterval, ...]
    output: str
    options: Options
    consent: str | None = None
    may_share: bool = False
    left: dict[str, str] = field(default_factory=dict)
    left_key: str = ""
    kind: Literal["run_job"] = "run_job"


@dataclass(frozen=True, slots=True)
class CancelJob:
    """Stop that job between two windows."""

    job_id: str
    kind: Literal["cancel_job"] = "cancel_job"


@dataclass(frozen=True, slots=True)
class SegmentAssigned:
    """Answer to `NextSegment`: the segment to render. None: a file has arrived, or the job is cancelled."""

    job_id: str
    number: int | None
    kind: Literal["segment_assigned"] = "segment_assigned"


@dataclass(frozen=True, slots=True)
class RenderSegment:
    """Render a segment of somebody else's job.

    Attributes:
        folder: has the plan and what it needs, and takes the file.
    """

    job_id: str
    number: int
    folder: str
    kind: Literal["render_segment"] = "render_segment"


ToWorker = RunJob | CancelJob | SegmentAssigned | RenderSegment


# --- worker to parent ---


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """The model is loaded and has run once.

    Attributes:
        fits: equal for workers whose segments are equal: same program, weights, kind of device and
            number formats.
    """

    device: str
    model: str
    fits: str
    kind: Literal["worker_ready"] = "worker_ready"


@dataclass(frozen=True, slots=True)
class JobProgress:
    """Where the job is."""

    job_id: str
    stage: str
    done: int
    total: int
    per_s: float
    kind: Literal["job_progress"] = "job_progress"


@dataclass(frozen=True, slots=True)
class PreviewReady:
    """A stretch of the result can be seen already.

    Attributes:
        file: fragmented MP4 in the job's folder, to be taken away.
        index: of the stretch, from 0.
        start_s, stop_s: its place in the result.
        still: JPEG in the job's folder, to be taken away, with the first stretch of an attempt.
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
    """The job's plan is whole, and others may render its segments.

    Attributes:
        key: names everything that decides the pixels.
        files: what they need, by its name in their folder.
        segments: of each the file in the worker's folder, and its frames; those whose file is there are done.
    """

    job_id: str
    key: str
    files: dict[str, str]
    segments: tuple[tuple[str, int], ...]
    kind: Literal["segments_published"] = "segments_published"


@dataclass(frozen=True, slots=True)
class NextSegment:
    """Which segment of its offered job the worker may render next; it waits for `SegmentAssigned`."""

    job_id: str
    kind: Literal["next_segment"] = "next_segment"


@dataclass(frozen=True, slots=True)
class SegmentRendered:
    """A segment that was taken, or ordered by `RenderSegment`, is finished.

    Attributes:
        file: its place.
    """

    job_id: str
    number: int
    file: str
    kind: Literal["segment_rendered"] = "segment_rendered"


@dataclass(frozen=True, slots=True)
class JobSucceeded:
    """The output file is complete.

    Attributes:
        device_s: rendering alone.
        media_s: how long the result is.
        warnings: sentences on what was asked for and could not be done.
        is_marked: it carries content credentials.
        sync: None: not measured.
        is_nsfw: the source is not safe for work; None: nobody looked.
    """

    job_id: str
    device_s: float
    media_s: float
    warnings: tuple[str, ...]
    is_marked: bool
    sync: SyncConfidence | None = None
    is_nsfw: bool | None = None
    kind: Literal["job_succeeded"] = "job_succeeded"


@dataclass(frozen=True, slots=True)
class JobFailed:
    """The job failed and the worker is well. `again`: another try may succeed."""

    job_id: str
    code: str
    message: str
    again: bool
    kind: Literal["job_failed"] = "job_failed"


@dataclass(frozen=True, slots=True)
class JobCancelled:
    """The job was stopped as asked."""

    job_id: str
    kind: Literal["job_cancelled"] = "job_cancelled"


@dataclass(frozen=True, slots=True)
class JobDuplicate:
    """An equal job is being made; this one can begin after its end."""

    job_id: str
    kind: Literal["job_duplicate"] = "job_duplicate"


FromWorker = (
    WorkerReady
    | JobProgress
    | PreviewReady
    | SegmentsPublished
    | NextSegment
    | SegmentRendered
    | JobSucceeded
    | JobFailed
    | JobCancelled
    | JobDuplicate
)

_TO_WORKER: TypeAdapter[ToWorker] = TypeAdapter(Annotated[ToWorker, Field(discriminator="kind")])
_FROM_WORKER: TypeAdapter[FromWorker] = TypeAdapter(Annotated[FromWorker, Field(discriminator="kind")])


def line_to_worker(message: ToWorker) -> bytes:
    return _TO_WORKER.dump_json(message) + b"\n"


def read_to_worker(line: bytes | str) -> ToWorker:
    return _TO_WORKER.validate_json(line)


def line_from_worker(message: FromWorker) -> bytes:
    return _FROM_WORKER.dump_json(message) + b"\n"


def read_from_worker(line: bytes | str) -> FromWorker:
    return _FROM_WORKER.validate_json(line)
