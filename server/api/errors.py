"""Known errors as answers: what every dialect says in its own words. It makes no answer itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from server.api.context import RETRY_AFTER_S, AccessDeniedError, BodyTooLargeError, BusyError, DiskFullError
from server.storage.blobs import StorageAwayError
from server.store import DatabaseAwayError


class ApiError(Exception):
    """An error answer: HTTP status, sentence, a word for programs, what is wrong with parts of a whole."""

    def __init__(
        self,
        status: int,
        message: str,
        slug: str | None = None,
        retry_after_s: float = 0,
        problems: Sequence[dict[str, Any]] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.slug, self.retry_after_s = status, message, slug, retry_after_s
        self.problems = problems

    @property
    def headers(self) -> dict[str, str] | None:
        return {"Retry-After": str(max(1, round(self.retry_after_s)))} if self.retry_after_s else None


KNOWN_ERRORS: Final = (
    ApiError,
    AccessDeniedError,
    BusyError,
    BodyTooLargeError,
    DiskFullError,
    DatabaseAwayError,
    StorageAwayError,
)
"""What `to_api_error` makes an answer of."""


def to_api_error(error: Exception) -> ApiError:
    """A known error as an answer."""
    match error:
        case ApiError():
            return error
        case AccessDeniedError():
            slug = "unauthorized" if error.status == 401 else "forbidden"
            return ApiError(error.status, error.message, slug)
        case BusyError():
            return ApiError(429, error.message, "rate_limited", error.wait_s)
        case DiskFullError():
            return ApiError(503, str(error), "storage_full", 60)
        case DatabaseAwayError():
            sentence = "The database of this server is away for the moment: try again shortly."
            return ApiError(503, sentence, "database_away", RETRY_AFTER_S)
        case StorageAwayError():
            sentence = "The storage of this server is away for the moment: try again shortly."
            return ApiError(503, sentence, "storage_away", RETRY_AFTER_S)
        case BodyTooLargeError():
            return ApiError(413, str(error), "payload_too_large")
        case _:
            raise TypeError(f"{error!r} is no known error")
