"""HTTP errors: one error type, what the known exceptions become, and the handlers that send them.

The body of an error is the dialect's: each API file has its own `error_response`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from asgi_correlation_id import correlation_id
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from server.api.auth import AccessDeniedError
from server.storage.blobs import StorageUnavailableError
from server.storage.disk import DiskFullError
from server.store import DatabaseUnavailableError

log = logging.getLogger("lipsync.server")

RETRY_AFTER_S: Final = 5
CLIENT_CLOSED_REQUEST: Final = 499
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


class ApiError(Exception):
    """An error that is sent to the client.

    Attributes:
        status: HTTP status.
        message: sentence for a person.
        code: stable word for programs; None: the dialect has none for it.
        retry_after_s: when a retry can succeed; 0: never.
        problems: errors of single parts, where the request is a list.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        retry_after_s: float = 0,
        problems: Sequence[dict[str, Any]] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.retry_after_s = status, message, code, retry_after_s
        self.problems = problems

    @property
    def headers(self) -> dict[str, str]:
        """Headers that the status requires."""
        headers = dict[str, str]()
        if self.retry_after_s:
            headers["Retry-After"] = str(max(1, round(self.retry_after_s)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status == 415:
            headers["Accept-Encoding"] = "identity"
        return headers


class BusyError(Exception):
    """A limit of requests or jobs is reached.

    Attributes:
        retry_after_s: when a retry can succeed; 0: never.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class BodyTooLargeError(Exception):
    """The body of a request is larger than the server accepts."""


KNOWN_ERRORS: Final = (
    ApiError,
    AccessDeniedError,
    BusyError,
    BodyTooLargeError,
    DiskFullError,
    DatabaseUnavailableError,
    StorageUnavailableError,
)
"""Exceptions that `to_api_error` accepts."""


def to_api_error(error: Exception) -> ApiError:
    """Convert a known exception.

    Raises:
        TypeError: the exception is none of `KNOWN_ERRORS`.
    """
    match error:
        case ApiError():
            return error
        case AccessDeniedError():
            code = "unauthorized" if error.status == 401 else "forbidden"
            return ApiError(error.status, error.message, code)
        case BusyError():
            return ApiError(429, error.message, "rate_limited", error.retry_after_s)
        case DiskFullError():
            return ApiError(503, str(error), "storage_full", 60)
        case DatabaseUnavailableError():
            sentence = "The database of this server is unavailable: try again shortly."
            return ApiError(503, sentence, "database_away", RETRY_AFTER_S)
        case StorageUnavailableError():
            sentence = "The storage of this server is unavailable: try again shortly."
            return ApiError(503, sentence, "storage_away", RETRY_AFTER_S)
        case BodyTooLargeError():
            return ApiError(413, str(error), "payload_too_large")
        case _:
            raise TypeError(f"{error!r} is not one of KNOWN_ERRORS")


def _allowed_methods(app: FastAPI, http: HttpRequest) -> list[str]:
    """List the methods that the path of a request accepts."""

    def is_allowed(method: str) -> bool:
        scope = {**http.scope, "method": "GET" if method == "HEAD" else method}
        return any(route.matches(scope)[0] is Match.FULL for route in app.routes)

    return [method for method in METHODS if is_allowed(method)]


ErrorResponse = Callable[[ApiError], Response]
"""Renders an error in the words of one dialect."""


def add_exception_handlers(
    app: FastAPI, responses: Mapping[str, ErrorResponse], default: ErrorResponse
) -> None:
    """Answer every exception of a request in the dialect of its path.

    Args:
        responses: by the prefix of the path.
        default: for all other paths.
    """

    def respond(http: HttpRequest, error: ApiError) -> Response:
        for prefix, error_response in responses.items():
            if http.url.path.startswith(f"{prefix}/"):
                return error_response(error)
        return default(error)

    async def handle_known_error(http: HttpRequest, error: Exception) -> Response:
        return respond(http, to_api_error(error))

    async def handle_disconnect(http: HttpRequest, error: Exception) -> Response:
        """Nobody receives this response; its status keeps disconnects apart from failures in the metrics."""
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    async def handle_http_error(http: HttpRequest, error: Exception) -> Response:
        match error.status_code if isinstance(error, HTTPException) else 400:
            case 404:
                return respond(http, ApiError(404, "There is no such path.", "path_not_found"))
            case 405:
                methods = ", ".join(_allowed_methods(app, http))
                sentence = f"This path does not accept {http.method}: use {methods}."
                response = respond(http, ApiError(405, sentence, "method_not_allowed"))
                response.headers["Allow"] = methods
                return response
            case status:
                return respond(http, ApiError(status, "The request could not be parsed."))

    async def handle_failure(http: HttpRequest, error: Exception) -> Response:
        log.error("request failed: %s", error, exc_info=error)
        request_id = correlation_id.get() or "-"
        sentence = f"Internal server error. See the server log, request id {request_id}."
        return respond(http, ApiError(500, sentence))

    async def handle_invalid_query(http: HttpRequest, error: Exception) -> Response:
        problem = error.errors()[0] if isinstance(error, RequestValidationError) else {}
        name, reason = [*problem.get("loc", ()), "query"][1], problem.get("msg", "it cannot be parsed")
        sentence = f"The parameter {name} is invalid: {reason}."
        return respond(http, ApiError(400, sentence, "invalid_parameter"))

    for kind in KNOWN_ERRORS:
        app.add_exception_handler(kind, handle_known_error)
    app.add_exception_handler(ClientDisconnect, handle_disconnect)
    app.add_exception_handler(HTTPException, handle_http_error)
    app.add_exception_handler(RequestValidationError, handle_invalid_query)
    app.add_exception_handler(Exception, handle_failure)
