"""Fields of API keys, as /admin/keys and `lipsync keys` take and show them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from server.api.auth import Scope
from server.api.errors import ApiError
from server.store import SECRET_COLUMNS, ApiKey

LIMITS: Final = ("requests_per_minute", "max_active_jobs", "max_jobs_per_day")
CHANGEABLE: Final = ("name", "scopes", "expires_at", "expires_in", *LIMITS)
CREATABLE: Final = ("tenant", "key", *CHANGEABLE)
NUMBERS: Final = ("expires_at", "expires_in", "overlap_s", *LIMITS)
"""Fields that are numbers, or may be."""

MAX_SECONDS: Final = 10**10
DEFAULT_OVERLAP_S: Final = 86400.0

LIMIT_SCHEMA: Final = {"type": ["integer", "null"], "minimum": 1}
SCHEMA: Final[dict[str, Any]] = {
    "tenant": {"type": "string", "default": "default"},
    "name": {"type": "string", "maxLength": 100},
    "scopes": {"type": ["array", "string"], "items": {"enum": list(Scope)}, "default": ["read", "run"]},
    "expires_at": {
        "type": ["string", "number", "null"],
        "description": "A time such as 2027-01-02T03:04:05Z, or seconds since 1970; null: never.",
    },
    "expires_in": {"type": "number", "description": "Seconds from now, instead of expires_at."},
    "key": {"type": "string", "description": "A key that clients have already; absent: a new one."},
    **dict.fromkeys(LIMITS, LIMIT_SCHEMA),
}


def body_schema(names: tuple[str, ...]) -> dict[str, Any]:
    """Return the OpenAPI description of a body with these fields."""
    properties = {name: SCHEMA[name] for name in names}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {"requestBody": {"content": {"application/json": {"schema": schema}}}}


def read_key_fields(fields: Mapping[str, Any], names: tuple[str, ...], now: float) -> dict[str, Any]:
    """Validate fields of a key; return values for `create_key` or columns of a key.

    Args:
        names: `CREATABLE` or `CHANGEABLE`.

    Raises:
        ApiError: 400 with the name of the wrong or unknown field.
    """
    if unknown := sorted(set(fields) - set(names)):
        raise _invalid(f"{unknown[0][:100]!r} cannot be set here: use {', '.join(names)}.")
    if "expires_at" in fields and "expires_in" in fields:
        raise _invalid("Give either expires_at or expires_in, not both.")
    values = {name: READERS[name](name, value) for name, value in fields.items()}
    if "expires_in" in values:
        values["expires_at"] = now + values.pop("expires_in")
    if (expires_at := values.get("expires_at")) is not None and expires_at <= now:
        raise _invalid("expires_at is in the past: give a later time, or revoke the key.")
    if "key" in values:
        values["text"] = values.pop("key")
    return values


def key_object(key: ApiKey) -> dict[str, Any]:
    """Return the fields of a key without its secrets."""
    return {name: getattr(key, name) for name in key.__dataclass_fields__ if name not in SECRET_COLUMNS}


def read_seconds(name: str, value: Any) -> float:
    """Return a number of seconds that is not negative.

    Raises:
        ApiError: 400.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= MAX_SECONDS:
        raise _invalid(f"{name} must be a number of seconds from 0 to {MAX_SECONDS}.")
    return float(value)


def _invalid(sentence: str) -> ApiError:
    return ApiError(400, sentence, "invalid_parameter")


def _read_tenant(name: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", value):
        raise _invalid(f"{name} must have 1 to 64 characters (A-Z, a-z, 0-9, - or _).")
    return value


def _read_name(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > 100 or not (value == "" or value.isprintable()):
        raise _invalid(f"{name} must have at most 100 printable characters.")
    return value


def _read_key(name: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_-]{32,200}", value):
        raise _invalid(f"{name} must be 32 to 200 random characters (A-Z, a-z, 0-9, - or _).")
    return value


def _read_scopes(name: str, value: Any) -> frozenset[Scope]:
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list) or not words or not all(word in list(Scope) for word in words):
        raise _invalid(f"{name} must be one or more of {', '.join(Scope)}.")
    return frozenset(Scope(word) for word in words)


def _read_time(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, str):
        try:
            time = datetime.fromisoformat(value)
            return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            raise _invalid(f"{name} must be a time such as 2027-01-02T03:04:05Z.") from None
    return read_seconds(name, value)


def _read_limit(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 10**9:
        raise _invalid(f"{name} must be an integer from 1 to {10**9}.")
    return value


READERS: Final[dict[str, Callable[[str, Any], Any]]] = {
    "tenant": _read_tenant,
    "name": _read_name,
    "key": _read_key,
    "scopes": _read_scopes,
    "expires_at": _read_time,
    "expires_in": read_seconds,
    **dict.fromkeys(LIMITS, _read_limit),
}
