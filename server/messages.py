"""What crosses between the server's parts: what a client asked for, and what parent and worker say.

Frozen values without behaviour. A dialect makes a `Request` from a body, the store keeps it. Parent and
worker exchange one JSON object per line on the worker's standard streams. No field has a foreign vendor's
name.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from server.jobs import Sync


class Role(StrEnum):
    """What an input is for."""

    VIDEO = "video"
    IMAGE = "image"
    AUDIO = "audio"
    LEFT_AUDIO = "left_audio"
    RIGHT_AUDIO = "right_audio"
    MASK = "mask_image"  # white where lips may change


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """What a model's vendor takes, enforced before work starts. None: no limit of that kind.

    Attributes:
        formats: container names such as mp4; empty: whatever the engine reads.
        max_bytes: size of the file.
        min_s, max_s: length.
        min_side_px, max_side_px: both sides of the picture.
    """

    formats: tuple[str, ...] = ()
    max_bytes: int | None = None
    min_s: float | None = None
    max_s: float | None = None
    min_side_px: int | None = None
    max_side_px: int | None = None


@dataclass(frozen=True, slots=True)
class InputSource:
    """Where an input comes from: exactly one of the two.

    Attributes:
        name: of the input in its job; the role's, except for voices of `Segment`s.
        role: what it is for.
        url: to be fetched.
        blob: already here, an upload or inline data.
        limits: of the model that was called.
    """

    name: str
    role: Role
    url: str | None = None
    blob: str | None = None
    limits: MediaLimits = MediaLimits()


@dataclass(frozen=True, slots=True)
class Segment:
    """Somebody speaks for a while.

    Attributes:
        voice: name of the input that sounds.
        face: who, as `Options.face`.
        start_s: when in the result it begins.
        length_s: how much of the voice is heard; None: all.
    """

    voice: str
    face: str
    start_s: float
    length_s: float | None


@dataclass(frozen=True, slots=True)
class Options:
    """What may be chosen about a job; None takes the model's default."""

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    fps: str | None = None
    max_short_side: int | None = None
    loop_mode: str | None = None
    face: str | None = None
    order: str | None = None
    motion: str | None = None
    preset: str | None = None
    prompt: str | None = None

    def chosen(self) -> dict[str, object]:
        """Those that are not left to the model, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Request:
    """A job as asked for.

    Attributes:
        dialect: the name of the dialect that took it and alone understands `said`.
        said: JSON text, for that dialect's answers.
        label: a word of that dialect's to look for in lists.
        sources: inputs, each with a name of its own.
        segments: who speaks when, where there is more to it than one voice, or a left and a right one.
        options: of the engine.
        key_id: of the API key that asked; its secret signs the webhook.
        request_id: of the HTTP request that submitted it; stands in logs and in the webhook's headers.
        consent: reference to the consent of the person shown.
        webhook_url: told about the end.
    """

    dialect: str
    said: str
    label: str
    sources: tuple[InputSource, ...]
    key_id: str
    segments: tuple[Segment, ...] = ()
    options: Options = field(default_factory=Options)
    webhook_url: str | None = None
    request_id: str = "-"
    consent: str | None = None

    def to_json(self) -> str:
        return _REQUEST.dump_json(self).decode()

    @staticmethod
    @functools.lru_cache(maxsize=4096)
    def from_json(text: str) -> Request:
        return _REQUEST.validate_json(text)


_REQUEST: TypeAdapter[Request] = TypeAdapter(Request)


# --- parent to worker ---


@dataclass(frozen=True, slots=True)
class Start:
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
    segments: tuple[Segment, ...]
    output: str
    options: Options
    consent: str | None = None
    may_share: bool = False
    left: dict[str, str] = field(default_factory=dict)
    left_key: str = ""
    kind: Literal["start"] = "start"


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop that job between two windows."""

    job_id: str
    kind: Literal["stop"] = "stop"


@dataclass(frozen=True, slots=True)
class Take:
    """The answer to `Ask`: render segment `number` of your job; None: a file has come, or you are to stop."""

    job_id: str
    number: int | None
    kind: Literal["take"] = "take"


@dataclass(frozen=True, slots=True)
class Render:
    """Render a segment of somebody else's job.

    Attributes:
        folder: has the plan and what it needs, and takes the file.
    """

    job_id: str
    number: int
    folder: str
    kind: Literal["render"] = "render"


ToWorker = Start | Stop | Take | Render


# --- worker to parent ---


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded and has run once.

    Attributes:
        fits: equal for workers whose segments are equal: same program, weights, kind of device and
            number formats.
    """

    device: str
    model: str
    fits: str
    kind: Literal["ready"] = "ready"


@dataclass(frozen=True, slots=True)
class Working:
    """Where the job is."""

    job_id: str
    stage: str
    done: int
    total: int
    per_s: float
    kind: Literal["working"] = "working"


@dataclass(frozen=True, slots=True)
class Shown:
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
    kind: Literal["shown"] = "shown"


@dataclass(frozen=True, slots=True)
class Offer:
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
    kind: Literal["offer"] = "offer"


@dataclass(frozen=True, slots=True)
class Ask:
    """Which segment of its offered job the worker may render next; it waits for `Take`."""

    job_id: str
    kind: Literal["ask"] = "ask"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A segment that was taken, or ordered by `Render`, is finished.

    Attributes:
        file: its place.
    """

    job_id: str
    number: int
    file: str
    kind: Literal["rendered"] = "rendered"


@dataclass(frozen=True, slots=True)
class Done:
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
    sync: Sync | None = None
    is_nsfw: bool | None = None
    kind: Literal["done"] = "done"


@dataclass(frozen=True, slots=True)
class Failed:
    """The job failed and the worker is well. `again`: another try may succeed."""

    job_id: str
    code: str
    message: str
    again: bool
    kind: Literal["failed"] = "failed"


@dataclass(frozen=True, slots=True)
class Stopped:
    """The job was stopped as asked."""

    job_id: str
    kind: Literal["stopped"] = "stopped"


@dataclass(frozen=True, slots=True)
class Busy:
    """An equal job is being made; this one can begin after its end."""

    job_id: str
    kind: Literal["busy"] = "busy"


FromWorker = Ready | Working | Shown | Offer | Ask | Rendered | Done | Failed | Stopped | Busy

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
