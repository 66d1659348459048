"""Bodies of requests: JSON that can be stored, and the input of a job, described and validated.

The schemas are the same in every dialect. Media files are not opened here.
"""

from __future__ import annotations

import codecs
import dataclasses
import json
import math
import secrets
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi import Request as HttpRequest

from server.api.bodies import BodyAccount, BodyError, InlineFile, LongText, count_bytes, parse_cut
from server.api.errors import ApiError, BodyTooLargeError
from server.jobs.request import MIB, InputSource, MediaLimits, Options, Role, SpeechInterval
from server.storage.transport import MAX_URL_LENGTH

# --- JSON ---

MAX_VALUES: Final = 10_000
"""Most values of a body. An input in base64 is one value, however long."""

MAX_QUOTES: Final = 4 * MAX_VALUES
MAX_DEPTH: Final = 32
ECHOED_LENGTHS: Final = (2048, 256, 32)
"""Longer texts of an input are base64, and answers repeat only their beginning. The first limit is used with
which the input has at most `MAX_ECHO_BYTES`."""

MAX_ECHO_BYTES: Final = 64 << 10
"""Size of an input as it is stored and repeated: of lists, a hundred are in one answer."""

MAX_DATA_URI_HEAD: Final = 1024
MAX_URL_BYTES: Final = 64 << 10
"""All URLs of a job together, which are stored and repeated in full."""

MAX_TITLE_LENGTH: Final = 200


async def read_body(http: HttpRequest, max_bytes: int) -> bytearray:
    """Read the whole body; its bytes count until the request ends or `release_body` is called.

    Raises:
        BodyTooLargeError: as soon as the size is known.
        ApiError: 429 or 503, too many bodies are in memory.
    """
    account: BodyAccount | None = getattr(http.state, "body", None)
    sentence = f"The request may have at most {max_bytes / 1e6:.0f} MB: upload large files first."
    announced = http.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced) > max_bytes:
        raise BodyTooLargeError(sentence)
    body = bytearray()
    async for chunk in http.stream():
        if len(body) + len(chunk) > max_bytes:
            raise BodyTooLargeError(sentence)
        if account is not None:
            account.add(len(chunk))
        body += chunk
    return body


def release_body(http: HttpRequest) -> None:
    """Stop counting a body whose inputs are stored."""
    account: BodyAccount | None = getattr(http.state, "body", None)
    if account is not None:
        account.release()


async def read_json_object(http: HttpRequest, max_bytes: int = 1 << 20) -> dict[str, Any]:
    """Read the body as a JSON object; an empty body is an empty object."""
    return parse_json_object(await read_body(http, max_bytes) or b"{}")


def parse_json_object(body: bytes | bytearray) -> dict[str, Any]:
    """Parse a JSON object that can be stored.

    Raises:
        ApiError: 400, the body is something else.
    """
    try:
        value = parse_json(body)
    except BodyError as error:
        raise ApiError(400, str(error), "invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object.", "invalid_json")
    return value


def parse_json(body: bytes | bytearray) -> Any:
    """Parse JSON in UTF-8 that can be stored and sent on.

    Python's parser also accepts NaN, lone surrogates, hundreds of levels and a hundred megabytes of empty
    lists. Each of them breaks something later, where the client can no longer be answered.

    Raises:
        BodyError: invalid JSON, more than MAX_VALUES values or MAX_DEPTH levels, a number that is not
            finite, NUL or a lone surrogate.
    """
    if count_bytes(body, b",[{", MAX_VALUES) > MAX_VALUES:  # before parsing takes memory
        raise BodyError(f"The body has more than {MAX_VALUES} values.")
    try:
        value = parse_cut(body, MAX_QUOTES)
    except BodyError:
        raise
    except RecursionError:
        raise BodyError(f"The body is nested more than {MAX_DEPTH} levels deep.") from None
    except ValueError as error:
        raise BodyError(_describe_invalid(body, error)) from None
    _require_storable(value, 0)
    return value


def _describe_invalid(body: bytes | bytearray, error: ValueError) -> str:
    if not body.strip():
        return "The body is empty: send a JSON object."
    if body.startswith(b"\x1f\x8b"):
        return "The body is compressed with gzip: send it without compression."
    if body.startswith(codecs.BOM_UTF8):
        return "The body begins with a byte order mark: send UTF-8 without one."
    if isinstance(error, json.JSONDecodeError):
        return f"The body is not JSON: {error.msg}, line {error.lineno}, column {error.colno}."
    return "The body is not UTF-8: encode its JSON so."


def _require_storable(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise BodyError(f"The body is nested more than {MAX_DEPTH} levels deep.")
    match value:
        case dict():
            for name, part in value.items():
                _require_storable(name, depth + 1)
                _require_storable(part, depth + 1)
        case list():
            for part in value:
                _require_storable(part, depth + 1)
        case str():
            if "\0" in value or not _is_encodable(value):
                raise BodyError("A text in the body has a character that cannot be stored.")
        case float():
            if not math.isfinite(value):
                raise BodyError("A number in the body is not finite.")


def _is_encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def echo_input(schema: EndpointSchema, fields: dict[str, Any]) -> dict[str, Any]:
    """Return an input as it is stored and answers repeat it: known fields, long texts shortened.

    The result has at most `MAX_ECHO_BYTES` as JSON, whatever the client has sent.
    """
    known = {*schema.required, *schema.optional, *schema.options, "consent"}
    echo = {name: value for name, value in fields.items() if name in known and _is_scalar(value)}
    if isinstance(title := fields.get("title"), str):
        echo["title"] = title[:MAX_TITLE_LENGTH]
    if schema.accepts_segments and isinstance(entries := fields.get("segments"), list):
        names = SEGMENTS["items"]["properties"]
        echo["segments"] = [
            {name: value for name, value in entry.items() if name in names and _is_scalar(value)}
            for entry in entries
        ]
    for length in ECHOED_LENGTHS:
        shortened: dict[str, Any] = _shorten_texts(echo, length)
        if len(json.dumps(shortened)) <= MAX_ECHO_BYTES:
            break
    return {name: shortened[name] for name in fields if name in shortened}


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int | float)


def _shorten_texts(value: Any, length: int) -> Any:
    if isinstance(value, dict):
        return {name: _shorten_texts(part, length) for name, part in value.items()}
    if isinstance(value, list):
        return [_shorten_texts(part, length) for part in value]
    return value if not isinstance(value, str) or len(value) <= length else f"{value[: min(64, length)]}…"


# --- schemas ---

OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "guidance_scale": {
        "type": "number", "minimum": 1, "maximum": 3,
        "description": "Classifier-free guidance: how strongly the audio drives the lips.",
    },
    "inference_steps": {"type": "integer", "minimum": 1, "maximum": 50, "description": "Denoising steps."},
    "num_inference_steps": {
        "type": "integer", "minimum": 1, "maximum": 50, "description": "Alias of inference_steps.",
        "x-alias-of": "inference_steps",
    },
    "seed": {
        "type": "integer", "minimum": -1, "maximum": 2**31 - 1, "default": -1, "description": "-1: random."
    },
    "loop_mode": {
        "type": "string", "enum": ["pingpong", "loop"], "default": "pingpong",
        "description": "When the audio is longer than the video: back and forth, or from the start again.",
    },
    "face": {"type": "string", "description": "Who speaks: largest, left, right, a number, or X,Y@SECONDS."},
    "fps": {
        "type": "number", "minimum": 1, "maximum": 120,
        "description": "Frame rate of the result; absent: that of the source.",
    },
    "resolution": {
        "type": "string", "enum": ["480p", "720p"],
        "description": "Largest short side of the result, never an upscale; absent: the source's size.",
    },
    "video_codec": {
        "type": "string", "enum": ["h264", "hevc10"], "default": "h264",
        "description": "Codec of the result: H.264 with 8 bits, or HEVC Main 10.",
    },
    "hdr": {
        "type": "string", "enum": ["tonemap", "refuse"],
        "description": "HDR video (PQ, HLG): tone-map it to SDR, or refuse it; absent: the server's default.",
    },
    "order": {
        "type": "string", "enum": ["meanwhile", "left_right", "right_left"], "default": "meanwhile",
        "description": "Whether the two speak at once, or one after the other.",
    },
    "motion": {
        "type": "string", "enum": ["still", "natural", "generated"],
        "description": "Head motion of a still image; absent: the server's default.",
    },
    "preset": {
        "type": "string", "enum": ["default", "fast", "fastest"],
        "description": "Trades fidelity for speed; absent: the server's default.",
    },
    "prompt": {"type": "string", "maxLength": 2000, "description": "Describes generated motion."},
}  # fmt: skip
"""Every option of every dialect; an `EndpointSchema` names those that it accepts."""

SEGMENTS: Final[dict[str, Any]] = {
    "type": "array",
    "minItems": 1,
    "maxItems": 64,
    "description": "Instead of audio: who speaks when, each with an audio file of their own.",
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
    "description": "Reference to the consent of the person shown, for the audit log.",
}
MAX_TIME_S: Final = 6 * 3600.0
MAX_FACE_LENGTH: Final = 200
MIN_SEGMENT_S: Final = 0.04
ORDERS: Final = {"meanwhile": "together", "left_right": "left_right", "right_left": "right_left"}
LIP_OPTIONS: Final = (
    "guidance_scale", "inference_steps", "num_inference_steps", "seed", "face", "resolution", "preset",
    "prompt", "video_codec",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EndpointSchema:
    """Input of one kind of job.

    Attributes:
        required, optional: input files by role, in the order of the vendor's page.
        options: names from `OPTIONS`.
        limits: of single inputs, as the vendor documents them.
        resolution: the vendor's default; None: the source's size.
        max_seed: largest seed that the vendor takes.
    """

    required: tuple[Role, ...] = (Role.VIDEO, Role.AUDIO)
    optional: tuple[Role, ...] = (Role.MASK,)
    options: tuple[str, ...] = (*LIP_OPTIONS, "loop_mode", "fps", "hdr")
    limits: tuple[tuple[Role, MediaLimits], ...] = ()
    resolution: str | None = None
    max_seed: int = 2**31 - 1

    @property
    def accepts_segments(self) -> bool:
        return Role.AUDIO in self.required

    def rule_of(self, option: str) -> dict[str, Any]:
        """Return the JSON Schema of an option."""
        rule = OPTIONS[option]
        if option == "seed":
            return rule | {"maximum": self.max_seed}
        if option == "resolution" and self.resolution:
            return rule | {"default": self.resolution}
        return rule

    def limits_of(self, role: Role) -> MediaLimits:
        """Return the limits of an input; without any where the vendor documents none."""
        return dict(self.limits).get(role, MediaLimits())


PORTRAIT_OPTIONS: Final = (*LIP_OPTIONS, "motion")
TWO_VOICES: Final = (Role.IMAGE, Role.LEFT_AUDIO, Role.RIGHT_AUDIO)
TWO_VOICES_OPTIONS: Final = (*(name for name in PORTRAIT_OPTIONS if name != "face"), "order")


def json_schema_properties(schema: EndpointSchema) -> dict[str, Any]:
    """Return the JSON Schema of every field that an endpoint accepts, by name."""
    fields: dict[str, Any] = {}
    for role in (*schema.required, *schema.optional):
        limits = schema.limits_of(role)
        kind = "image" if role is Role.MASK else role.value.rpartition("_")[2]
        fields[role.value] = {
            "type": "string",
            "title": role.value.capitalize().replace("_", " "),
            "description": _describe_input(role, limits),
            "x-ui-component": "uploader",
            "x-accept": f"{kind}/*",
            "x-limits": {name: value for name, value in dataclasses.asdict(limits).items() if value},
        }
    if schema.accepts_segments:
        fields["segments"] = SEGMENTS
    for name in schema.options:
        fields[name] = schema.rule_of(name)
    return fields | {"consent": CONSENT}


def _describe_input(role: Role, limits: MediaLimits) -> str:
    subject = "An image, white where the frame may change" if role is Role.MASK else f"The {role.value}"
    parts = [f"{subject.replace('_', ' ')}: a URL, a data URI or base64."]
    if limits.formats:
        parts.append(f"Formats: {', '.join(limits.formats)}.")
    if limits.max_bytes:
        parts.append(f"At most {limits.max_bytes // MIB} MB.")
    if limits.max_s:
        parts.append(f"From {limits.min_s:g} to {limits.max_s:g} s.")
    if limits.max_side_px:
        parts.append(f"Both sides from {limits.min_side_px} to {limits.max_side_px} pixels.")
    if limits.short_sides_px:
        parts.append(f"Only {' and '.join(f'{side}p' for side in limits.short_sides_px)}.")
    return " ".join(parts)


# --- the input of a job ---


@dataclass(slots=True)
class InputFiles:
    """Input files of a job.

    Attributes:
        sources: where each file comes from.
        inline: by name, files in the body, until they are stored.
    """

    sources: list[InputSource] = field(default_factory=list)
    inline: dict[str, InlineFile] = field(default_factory=dict)

    def add(self, name: str, role: Role, value: Any, limits: MediaLimits) -> None:
        """Add a file from a URL, a data URI or base64.

        Args:
            name: unique in the job.

        Raises:
            ApiError: 400 with the name of the input.
        """
        if value is None or value == "":
            raise ApiError(400, f"The parameter {name} is missing.", "missing_parameter")
        if not isinstance(value, str):
            raise ApiError(400, f"The parameter {name} must be a string.", "invalid_parameter")
        if not isinstance(value, LongText) and is_url(value):
            self.sources.append(InputSource(name, role, url=value, limits=limits))
        else:
            self.inline[name] = _read_inline(name, value)
            self.sources.append(InputSource(name, role, blob="", limits=limits))


def is_url(value: str) -> bool:
    """Return whether a text is an http or https URL with a host, of a length that can be fetched."""
    if len(value) > MAX_URL_LENGTH:
        return False
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def _read_inline(name: str, value: str) -> InlineFile:
    """Return a file in base64; it is decoded here to check it, and again when it is stored."""
    content = value.content if isinstance(value, LongText) else memoryview(value.encode(errors="replace"))
    head = content[:MAX_DATA_URI_HEAD].tobytes()
    if head.startswith(b"data:"):
        head, comma, _ = head.partition(b",")
        if not comma or not head.endswith(b";base64"):
            raise ApiError(400, f"The data URI of {name} must be base64.", "invalid_parameter")
        content = content[len(head) + 1 :]
    file = InlineFile(content)
    try:
        size = sum(map(len, file.pieces()))
    except ValueError:
        sentence = f"The parameter {name} is neither an http(s) URL, nor a data URI, nor base64."
        raise ApiError(400, sentence, "invalid_parameter") from None
    if not size:
        raise ApiError(400, f"The parameter {name} is empty.", "invalid_parameter")
    return file


@dataclass(frozen=True, slots=True)
class JobInput:
    """The validated input of a job."""

    files: InputFiles
    segments: tuple[SpeechInterval, ...]
    options: Options
    consent: str | None


def validate_job_input(schema: EndpointSchema, body: dict[str, Any], *, vendor_limits: bool) -> JobInput:
    """Validate everything that can be validated without opening media.

    Args:
        vendor_limits: whether the vendor's limits and defaults apply.

    Raises:
        ApiError: 400 with the name of the wrong field.
    """
    files, segments = InputFiles(), tuple[SpeechInterval, ...]()
    has_segments = schema.accepts_segments and body.get("segments") is not None
    if has_segments and body.get("audio"):
        raise ApiError(400, "Give either audio or segments, not both.", "invalid_parameter")
    for role in (*schema.required, *schema.optional):
        is_required = role in schema.required and not (role is Role.AUDIO and has_segments)
        if is_required or body.get(role):
            limits = schema.limits_of(role) if vendor_limits else MediaLimits()
            files.add(role.value, role, body.get(role), limits)
    if has_segments:
        limits = schema.limits_of(Role.AUDIO) if vendor_limits else MediaLimits()
        segments = _validate_segments(body["segments"], files, limits)
    if sum(len(source.url or "") for source in files.sources) > MAX_URL_BYTES:
        sentence = f"The URLs of a job may have {MAX_URL_BYTES >> 10} KiB together: use shorter ones."
        raise ApiError(400, sentence, "invalid_parameter")
    if vendor_limits and schema.resolution is not None:
        body = {**body, "resolution": body.get("resolution") or schema.resolution}
    options, consent = _validate_options(schema, body), _validate_consent(body.get("consent"))
    return JobInput(files, segments, options, consent)


def _validate_segments(entries: Any, files: InputFiles, limits: MediaLimits) -> tuple[SpeechInterval, ...]:
    if not isinstance(entries, list) or not 1 <= len(entries) <= SEGMENTS["maxItems"]:
        sentence = f"segments must be a list of 1 to {SEGMENTS['maxItems']} objects."
        raise ApiError(400, sentence, "invalid_parameter")
    segments = []
    for number, entry in enumerate(entries):
        path = f"segments[{number}]"
        if not isinstance(entry, dict):
            raise ApiError(400, f"{path} must be an object with audio and face.", "invalid_parameter")
        if not isinstance(face := entry.get("face"), str) or not 1 <= len(face) <= MAX_FACE_LENGTH:
            raise ApiError(400, f"{path}.face must name who speaks, such as left.", "missing_parameter")
        start_s, end_s = entry.get("start") or 0, entry.get("end")
        for value in (start_s, MAX_TIME_S if end_s is None else end_s):
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not 0 <= value <= MAX_TIME_S:
                sentence = f"{path}: start and end must be seconds from 0 to {MAX_TIME_S:g}."
                raise ApiError(400, sentence, "invalid_parameter")
        if end_s is not None and end_s < start_s + MIN_SEGMENT_S:
            raise ApiError(400, f"{path} must end after it starts.", "invalid_parameter")
        name = f"segment_{number}"
        try:
            files.add(name, Role.AUDIO, entry.get("audio"), limits)
        except ApiError as error:
            raise ApiError(400, error.message.replace(name, f"{path}.audio"), error.code) from None
        length_s = None if end_s is None else float(end_s - start_s)
        segments.append(SpeechInterval(name, face, float(start_s), length_s))
    return tuple(segments)


def _validate_consent(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str) or len(value) > CONSENT["maxLength"] or not value.isprintable():
        sentence = f"consent must be a reference of at most {CONSENT['maxLength']} printable characters."
        raise ApiError(400, sentence, "invalid_parameter")
    return value


def _validate_options(schema: EndpointSchema, body: dict[str, Any]) -> Options:
    values: dict[str, Any] = {}
    for name in schema.options:
        rule, value = schema.rule_of(name), body.get(name)
        if value is None or value == "":
            continue
        types = {"number": (int, float), "integer": (int,), "string": (str,)}[rule["type"]]
        is_wrong_type = isinstance(value, bool) or not isinstance(value, types)
        if is_wrong_type or not rule.get("minimum", value) <= value <= rule.get("maximum", value):
            raise ApiError(400, f"{name} must be {_describe_rule(rule)}.", "invalid_parameter")
        if value not in rule.get("enum", (value,)):
            raise ApiError(400, f"{name} must be one of {', '.join(rule['enum'])}.", "invalid_parameter")
        if len(str(value)) > rule.get("maxLength", 200):
            raise ApiError(400, f"{name} is too long.", "invalid_parameter")
        values[name] = value
    fps, resolution = values.get("fps"), values.get("resolution")
    return Options(
        num_inference_steps=values.get("inference_steps", values.get("num_inference_steps")),
        guidance_scale=values.get("guidance_scale"),
        seed=_draw_seed(values.get("seed", -1)),
        fps=None if fps is None else str(fps),
        max_short_side=None if resolution is None else int(resolution.removesuffix("p")),
        loop_mode=values.get("loop_mode"),
        video_codec=values.get("video_codec"),
        hdr=values.get("hdr"),
        face=values.get("face"),
        order=ORDERS[values["order"]] if "order" in values else None,
        motion=values.get("motion"),
        preset=values.get("preset"),
        prompt=values.get("prompt"),
    )


def _describe_rule(rule: dict[str, Any]) -> str:
    kind = {"number": "a number", "integer": "an integer", "string": "a string"}[rule["type"]]
    return f"{kind} from {rule['minimum']} to {rule['maximum']}" if "minimum" in rule else kind


def _draw_seed(value: int) -> int:
    """Draw a random seed here and store it, so that a retry of the job repeats itself."""
    return secrets.randbelow(2**31) if value < 0 else value
