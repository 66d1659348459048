"""A client's request, independent of the API that received it.

Frozen values without behaviour. An API file translates a body into a `Request`; the store keeps it as JSON.
No field has a vendor's name. Aliases keep the keys of stored JSON.

Stored JSON has a version. A change that makes older JSON unreadable raises `VERSION` and extends `_upgrade`.
A new field with a default does not.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, TypeAdapter


class Role(StrEnum):
    """Purpose of an input."""

    VIDEO = "video"
    IMAGE = "image"
    AUDIO = "audio"
    LEFT_AUDIO = "left_audio"
    RIGHT_AUDIO = "right_audio"
    MASK = "mask_image"  # white where lips may change


MIB = 2**20

VERSION = 1
"""Version of stored JSON. 0: without a version, as commits before 0.3.0 wrote it."""


class UnreadableError(Exception):
    """Stored JSON is damaged, or a newer version wrote it."""


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """Limits that a model's vendor documents, enforced before work starts. None: no limit of that kind.

    Attributes:
        formats: container names such as mp4; empty: whatever the engine reads.
        max_bytes: size of the file.
        min_s, max_s: duration.
        min_side_px, max_side_px: both sides of the frame.
        short_sides_px: the short side is one of them, such as 720 for 720p; empty: any.
    """

    formats: tuple[str, ...] = ()
    max_bytes: int | None = None
    min_s: float | None = None
    max_s: float | None = None
    min_side_px: int | None = None
    max_side_px: int | None = None
    short_sides_px: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class InputSource:
    """Source of one input: exactly one of `url` and `blob` is set.

    Attributes:
        name: of the input in its job; the role's, except for voices of `SpeechInterval`s.
        role: purpose of the input.
        url: to be downloaded.
        blob: already stored, an upload or inline data.
        limits: of the requested model.
    """

    name: str
    role: Role
    url: str | None = None
    blob: str | None = None
    limits: MediaLimits = MediaLimits()


@dataclass(frozen=True, slots=True)
class SpeechInterval:
    """Interval in which one face speaks.

    Attributes:
        voice: name of the audio input.
        face: who speaks, as `Options.face`.
        start_s: beginning in the result.
        length_s: how much of the voice is used; None: all.
    """

    voice: str
    face: str
    start_s: float
    length_s: float | None


@dataclass(frozen=True, slots=True)
class Options:
    """Engine options of a job; None takes the model's default."""

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    fps: str | None = None
    max_short_side: int | None = None
    loop_mode: str | None = None
    video_codec: str | None = None
    hdr: str | None = None
    face: str | None = None
    order: str | None = None
    motion: str | None = None
    preset: str | None = None
    prompt: str | None = None

    def chosen(self) -> dict[str, object]:
        """Return the options that are not left to the model, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that a client requested for one job.

    Attributes:
        dialect: name of the dialect that accepted it; only that dialect reads `dialect_state`.
        dialect_state: JSON text for that dialect's answers.
        endpoint: name of the dialect's endpoint, by which lists are filtered.
        sources: inputs, each with a name of its own.
        segments: who speaks when, where there is more than one voice or a left and a right one.
        options: of the engine.
        key_id: of the API key that submitted it; the key's secret signs the webhook.
        request_id: of the HTTP request that submitted it, for logs and the webhook's headers.
        consent: reference to the consent of the person shown.
        webhook_url: called at the end of the job.
        body_digest: hash of the HTTP request, by which a reused idempotency key is detected; None: of an
            earlier version, or a row of a batch.
    """

    dialect: str
    dialect_state: Annotated[str, Field(alias="said")]
    endpoint: Annotated[str, Field(alias="label")]
    sources: tuple[InputSource, ...]
    key_id: str
    segments: tuple[SpeechInterval, ...] = ()
    options: Options = field(default_factory=Options)
    webhook_url: str | None = None
    request_id: str = "-"
    consent: str | None = None
    body_digest: str | None = None

    @property
    def has_downloads(self) -> bool:
        """Some input is named by its URL."""
        return any(source.url is not None for source in self.sources)

    def to_json(self) -> str:
        """Encode for the store; `from_json` reads it."""
        return f'{{"version":{VERSION},' + _REQUEST.dump_json(self, by_alias=True).decode()[1:]

    @staticmethod
    def from_json(text: str) -> Request:
        """Decode what `to_json` of this or an earlier version has written.

        Raises:
            UnreadableError.
        """
        return _decode_cached(text) if len(text) <= MAX_CACHED_LENGTH else _decode(text)


MAX_CACHED_LENGTH = 8192
"""Longer requests are decoded anew each time, so that the cache has at most some 32 MiB of text."""


@functools.lru_cache(maxsize=4096)
def _decode_cached(text: str) -> Request:
    return _decode(text)


def _decode(text: str) -> Request:
    try:
        return _REQUEST.validate_python(_upgrade(load_versioned(text)))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UnreadableError(str(error)) from error


def _upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """Bring the request of an older version up to `VERSION`."""
    if values.pop("version") < 1:  # an input had no name but its role
        sources = [{"name": source["role"], **source} for source in values["sources"]]
        values["sources"] = sources
    return values


def load_versioned(text: str) -> dict[str, Any]:
    """Decode a stored JSON object; its `version` is always set.

    Raises:
        UnreadableError.
    """
    try:
        values = {"version": 0, **json.loads(text)}
    except (ValueError, TypeError) as error:
        raise UnreadableError(str(error)) from error
    if not isinstance(values["version"], int) or values["version"] > VERSION:
        raise UnreadableError(f"version {values['version']!r} of stored JSON is newer than {VERSION}")
    return values


_REQUEST: TypeAdapter[Request] = TypeAdapter(Request)
