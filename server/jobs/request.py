"""A client's request, independent of the API that received it.

Frozen values without behaviour. An API file translates a body into a `Request`; the store keeps it as JSON.
No field has a vendor's name.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, field
from enum import StrEnum

from pydantic import TypeAdapter


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
