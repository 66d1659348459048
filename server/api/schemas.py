"""What a job's body may hold, in all dialects: inputs, options, who speaks when; described, and checked.

It touches no media, and decides nothing about jobs.
"""

from __future__ import annotations

import binascii
import dataclasses
import re
import secrets
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi import Request as HttpRequest

from server.api.context import read_body
from server.api.errors import ApiError
from server.api.json_body import BodyError, read_json
from server.jobs.request import InputSource, MediaLimits, Options, Role, Segment

OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "guidance_scale": {
        "type": "number", "minimum": 1, "maximum": 3, "description": "Weight of the voice."
    },
    "inference_steps": {"type": "integer", "minimum": 1, "maximum": 50, "description": "Denoising steps."},
    "num_inference_steps": {
        "type": "integer", "minimum": 1, "maximum": 50, "description": "Another name of inference_steps.",
        "x-alias-of": "inference_steps",
    },
    "seed": {
        "type": "integer", "minimum": -1, "maximum": 2147483647, "default": -1, "description": "-1: random."
    },
    "loop_mode": {
        "type": "string", "enum": ["pingpong", "loop"], "default": "pingpong",
        "description": "When the audio is longer than the video: back and forth, or from the start again.",
    },
    "face": {"type": "string", "description": "Who speaks: largest, left, right, a number, or X,Y@SECONDS."},
    "fps": {"type": "number", "minimum": 1, "maximum": 120, "description": "Frame rate; absent: as it is."},
    "resolution": {
        "type": "string", "enum": ["480p", "720p"],
        "description": "Largest short side of the result, never an upscale; absent: the source's size.",
    },
    "order": {
        "type": "string", "enum": ["meanwhile", "left_right", "right_left"], "default": "meanwhile",
        "description": "Whether the two speak at once, or one after the other.",
    },
    "motion": {
        "type": "string", "enum": ["still", "natural", "generated"],
        "description": "What a still head does besides speaking; absent: as the server is set.",
    },
    "preset": {
        "type": "string", "enum": ["default", "fast", "fastest"],
        "description": "What is left out for speed, nothing at default; absent: as the server is set.",
    },
    "prompt": {"type": "string", "maxLength": 2000, "description": "What a generated motion shows."},
}  # fmt: skip
"""Every option of every dialect; a `EndpointSchema` names those that it takes."""

SEGMENTS: Final[dict[str, Any]] = {
    "type": "array",
    "minItems": 1,
    "maxItems": 64,
    "description": "Instead of audio: who speaks when, each with an own voice.",
    "items": {
        "type": "object",
        "properties": {
            "audio": {"type": "string", "description": "The voice: a URL, a data URI or base64."},
            "face": OPTIONS["face"],
            "start": {"type": "number", "minimum": 0, "default": 0, "description": "Seconds of the result."},
            "end": {"type": "number", "description": "Seconds; absent: when the voice ends."},
        },
        "required": ["audio", "face"],
    },
}
CONSENT: Final[dict[str, Any]] = {
    "type": "string",
    "maxLength": 200,
    "description": "Reference to the consent of the person shown, for the record.",
}
MEGABYTE: Final = 10**6
MAX_LENGTH_S: Final = 6 * 3600.0
ORDERS: Final = {"meanwhile": "together", "left_right": "left_right", "right_left": "right_left"}
LIP_OPTIONS: Final = (
    "guidance_scale", "inference_steps", "num_inference_steps", "seed", "face", "resolution", "preset",
    "prompt",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EndpointSchema:
    """What a kind of job takes.

    Attributes:
        required, optional: inputs, in the order in which a person gives them; named by their roles.
        options: names from `OPTIONS`.
        limits: of single inputs, as a vendor documents them.
        resolution: the vendor's, where none is asked for.
    """

    required: tuple[Role, ...] = (Role.VIDEO, Role.AUDIO)
    optional: tuple[Role, ...] = (Role.MASK,)
    options: tuple[str, ...] = (*LIP_OPTIONS, "loop_mode", "fps")
    limits: tuple[tuple[Role, MediaLimits], ...] = ()
    resolution: str | None = None

    @property
    def takes_segments(self) -> bool:
        return Role.AUDIO in self.required

    def limit(self, role: Role) -> MediaLimits:
        return dict(self.limits).get(role, MediaLimits())


PORTRAIT_OPTIONS: Final = (*LIP_OPTIONS, "motion")
TWO_VOICES: Final = (Role.IMAGE, Role.LEFT_AUDIO, Role.RIGHT_AUDIO)
TWO_VOICES_OPTIONS: Final = (*(name for name in PORTRAIT_OPTIONS if name != "face"), "order")


def properties(form: EndpointSchema) -> dict[str, Any]:
    """JSON Schema of everything that a form takes."""
    found: dict[str, Any] = {}
    for role in (*form.required, *form.optional):
        kind = "image" if role is Role.MASK else role.value.rpartition("_")[2]
        found[role.value] = {
            "type": "string",
            "title": role.value.capitalize().replace("_", " "),
            "description": _role_text(role, form.limit(role)),
            "x-ui-component": "uploader",
            "x-accept": f"{kind}/*",
            "x-limits": {
                name: value for name, value in dataclasses.asdict(form.limit(role)).items() if value
            },
        }
    if form.takes_segments:
        found["segments"] = SEGMENTS
    for name in form.options:
        default = {"default": form.resolution} if name == "resolution" and form.resolution else {}
        found[name] = OPTIONS[name] | default
    return found | {"consent": CONSENT}


def _role_text(role: Role, limits: MediaLimits) -> str:
    what = "An image, white where the picture may change" if role is Role.MASK else f"The {role.value}"
    parts = [f"{what.replace('_', ' ')}: a URL, a data URI or base64."]
    if limits.formats:
        parts.append(f"Formats: {', '.join(limits.formats)}.")
    if limits.max_bytes:
        parts.append(f"At most {limits.max_bytes // MEGABYTE} MB.")
    if limits.max_s:
        parts.append(f"From {limits.min_s:g} to {limits.max_s:g} s.")
    if limits.max_side_px:
        parts.append(f"Both sides from {limits.min_side_px} to {limits.max_side_px} pixels.")
    return " ".join(parts)


async def read_object(http: HttpRequest, max_bytes: int = 1 << 20) -> dict[str, Any]:
    """The body as a JSON object; an empty one is an empty object."""
    return json_object(await read_body(http, max_bytes) or b"{}")


def json_object(body: bytes) -> dict[str, Any]:
    try:
        given = read_json(body)
    except BodyError as error:
        raise ApiError(400, str(error), "invalid_json") from None
    if not isinstance(given, dict):
        raise ApiError(400, "The body must be a JSON object.", "invalid_json")
    return given


@dataclass(slots=True)
class InputFiles:
    """Input files of a submission; inline data is held as bytes until it is stored."""

    sources: list[InputSource] = field(default_factory=list)
    inline: dict[str, bytes] = field(default_factory=dict)

    def add(self, name: str, role: Role, value: Any, limits: MediaLimits) -> None:
        """An input given as URL, data URI or base64.

        Args:
            name: a word, unique in the job.

        Raises:
            ApiError: 400 that names it.
        """
        if value is None or value == "":
            raise ApiError(400, f"The parameter {name} is missing.", "missing_parameter")
        if not isinstance(value, str):
            raise ApiError(400, f"The parameter {name} must be a string.", "invalid_parameter")
        if is_url(value):
            self.sources.append(InputSource(name, role, url=value, limits=limits))
        else:
            self.inline[name] = _inline(name, value)
            self.sources.append(InputSource(name, role, blob="", limits=limits))


def is_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def _inline(name: str, value: str) -> bytes:
    text = value
    if value.startswith("data:"):
        head, comma, text = value.partition(",")
        if not comma or not head.endswith(";base64"):
            raise ApiError(400, f"The data URI of {name} must be base64.", "invalid_parameter")
    try:
        data = binascii.a2b_base64(re.sub(r"\s+", "", text), strict_mode=True)
    except (binascii.Error, ValueError):
        sentence = f"The parameter {name} is neither an http(s) URL, nor a data URI, nor base64."
        raise ApiError(400, sentence, "invalid_parameter") from None
    if not data:
        raise ApiError(400, f"The parameter {name} is empty.", "invalid_parameter")
    return data


@dataclass(frozen=True, slots=True)
class JobInput:
    """A checked form: everything of a job but who wants it."""

    inputs: InputFiles
    segments: tuple[Segment, ...]
    options: Options
    consent: str | None


def validate_job_input(form: EndpointSchema, given: dict[str, Any], *, vendor_limits: bool) -> JobInput:
    """Check what can be checked without touching media.

    Args:
        vendor_limits: whether the vendor's limits and defaults hold.

    Raises:
        ApiError: 400 with the name of what is wrong.
    """
    inputs, segments = InputFiles(), tuple[Segment, ...]()
    in_segments = form.takes_segments and given.get("segments") is not None
    if in_segments and given.get("audio"):
        raise ApiError(400, "Give either audio or segments, not both.", "invalid_parameter")
    for role in (*form.required, *form.optional):
        wanted = role in form.required and not (role is Role.AUDIO and in_segments)
        if wanted or given.get(role):
            limits = form.limit(role) if vendor_limits else MediaLimits()
            inputs.add(role.value, role, given.get(role), limits)
    if in_segments:
        segments = _segments(given["segments"], inputs, form.limit(Role.AUDIO) if vendor_limits else None)
    if vendor_limits and form.resolution is not None:
        given = {**given, "resolution": given.get("resolution") or form.resolution}
    return JobInput(inputs, segments, _options(form, given), _consent(given.get("consent")))


def _segments(given: Any, inputs: InputFiles, limits: MediaLimits | None) -> tuple[Segment, ...]:
    if not isinstance(given, list) or not 1 <= len(given) <= SEGMENTS["maxItems"]:
        raise ApiError(
            400, f"segments must be a list of 1 to {SEGMENTS['maxItems']} objects.", "invalid_parameter"
        )
    found = []
    for number, entry in enumerate(given):
        where = f"segments[{number}]"
        if not isinstance(entry, dict):
            raise ApiError(400, f"{where} must be an object with audio and face.", "invalid_parameter")
        if not isinstance(face := entry.get("face"), str) or not face:
            raise ApiError(400, f"{where}.face must say who speaks, such as left.", "missing_parameter")
        start_s, end_s = entry.get("start") or 0, entry.get("end")
        for value in (start_s, MAX_LENGTH_S if end_s is None else end_s):
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not 0 <= value <= MAX_LENGTH_S:
                sentence = f"{where}: start and end must be seconds from 0 to {MAX_LENGTH_S:g}."
                raise ApiError(400, sentence, "invalid_parameter")
        if end_s is not None and end_s < start_s + 0.04:
            raise ApiError(400, f"{where} must end after it starts.", "invalid_parameter")
        name = f"segment_{number}"
        try:
            inputs.add(name, Role.AUDIO, entry.get("audio"), limits or MediaLimits())
        except ApiError as error:
            raise ApiError(400, error.message.replace(name, f"{where}.audio"), error.slug) from None
        length_s = None if end_s is None else float(end_s - start_s)
        found.append(Segment(name, face, float(start_s), length_s))
    return tuple(found)


def _consent(given: Any) -> str | None:
    if given is None or given == "":
        return None
    if not isinstance(given, str) or len(given) > CONSENT["maxLength"] or not given.isprintable():
        sentence = f"consent must be a reference of at most {CONSENT['maxLength']} printable characters."
        raise ApiError(400, sentence, "invalid_parameter")
    return given


def _options(form: EndpointSchema, given: dict[str, Any]) -> Options:
    found: dict[str, Any] = {}
    for name in form.options:
        rule, value = OPTIONS[name], given.get(name)
        if value is None or value == "":
            continue
        kinds = {"number": (int, float), "integer": (int,), "string": (str,)}[rule["type"]]
        is_wrong = isinstance(value, bool) or not isinstance(value, kinds)
        if is_wrong or not rule.get("minimum", value) <= value <= rule.get("maximum", value):
            raise ApiError(400, f"{name} must be {_wanted(rule)}.", "invalid_parameter")
        if value not in rule.get("enum", (value,)):
            raise ApiError(400, f"{name} must be one of {', '.join(rule['enum'])}.", "invalid_parameter")
        if len(str(value)) > rule.get("maxLength", 200):
            raise ApiError(400, f"{name} is too long.", "invalid_parameter")
        found[name] = value
    fps, resolution = found.get("fps"), found.get("resolution")
    return Options(
        num_inference_steps=found.get("inference_steps", found.get("num_inference_steps")),
        guidance_scale=found.get("guidance_scale"),
        seed=_drawn_seed(found.get("seed", -1)),
        fps=None if fps is None else str(fps),
        max_short_side=None if resolution is None else int(resolution.removesuffix("p")),
        loop_mode=found.get("loop_mode"),
        face=found.get("face"),
        order=ORDERS[found["order"]] if "order" in found else None,
        motion=found.get("motion"),
        preset=found.get("preset"),
        prompt=found.get("prompt"),
    )


def _wanted(rule: dict[str, Any]) -> str:
    kind = {"number": "a number", "integer": "an integer", "string": "a string"}[rule["type"]]
    return f"{kind} from {rule['minimum']} to {rule['maximum']}" if "minimum" in rule else kind


def _drawn_seed(value: int) -> int:
    """A random one is drawn here and kept, so that a retried job repeats itself."""
    return secrets.randbelow(2**31) if value < 0 else value


def shortened(value: Any) -> Any:
    """What is said back of an input: long text, which is base64, without most of it."""
    if isinstance(value, dict):
        return {name: shortened(part) for name, part in value.items()}
    if isinstance(value, list):
        return [shortened(part) for part in value]
    return value if not isinstance(value, str) or len(value) <= 2048 else f"{value[:64]}…"
