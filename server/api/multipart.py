"""One file of a multipart body as a stream: it is neither kept in memory nor spooled to disk."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Final

from fastapi import Request as HttpRequest
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.api.errors import ApiError

MAX_OTHER_BYTES: Final = 64 << 10
"""Of everything before the file: other fields, headers of parts, boundaries."""


@dataclass(slots=True)
class FilePart:
    """The file of a body.

    Attributes:
        filename, media_type: as the client names them.
        chunks: the content.
    """

    filename: str
    media_type: str
    chunks: AsyncIterator[bytes]


@dataclass(slots=True)
class _Parts:
    """State of the parser: the headers of the current part, and the data of the file."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: bytes = b""
    value: bytes = b""
    options: dict[bytes, bytes] | None = None
    data: list[bytes] = field(default_factory=list)
    is_complete: bool = False

    def begin_part(self) -> None:
        if self.options is None:
            self.headers = {}

    def add_name(self, data: bytes, start: int, end: int) -> None:
        self.name += data[start:end]

    def add_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def end_header(self) -> None:
        if self.options is None:
            self.headers[self.name.lower()] = self.value
        self.name = self.value = b""

    def end_headers(self) -> None:
        if self.options is None:
            _, options = parse_options_header(self.headers.get(b"content-disposition"))
            if options.get(b"name") == b"file":
                self.options = options

    def add_data(self, data: bytes, start: int, end: int) -> None:
        if self.options is not None and not self.is_complete:
            self.data.append(data[start:end])

    def end_part(self) -> None:
        self.is_complete = self.options is not None


async def receive_file(http: HttpRequest) -> FilePart:
    """Read a multipart body up to the content of its field `file`.

    Raises:
        ApiError: 400, there is no such field, or the body is damaged.
    """
    kind, options = parse_options_header(http.headers.get("content-type"))
    if kind != b"multipart/form-data" or not (boundary := options.get(b"boundary")):
        raise _missing()
    parts, received = _Parts(), 0
    callbacks = {
        "on_part_begin": parts.begin_part,
        "on_part_data": parts.add_data,
        "on_part_end": parts.end_part,
        "on_header_field": parts.add_name,
        "on_header_value": parts.add_value,
        "on_header_end": parts.end_header,
        "on_headers_finished": parts.end_headers,
    }
    stream = http.stream()
    with _damaged_as_error():
        parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        while parts.options is None:
            if (chunk := await anext(stream, b"")) == b"":
                raise _missing()
            if (received := received + len(chunk)) > MAX_OTHER_BYTES + len(chunk):
                raise ApiError(400, "Send the file before other fields.", "invalid_parameter")
            parser.write(chunk)

    async def read_chunks() -> AsyncIterator[bytes]:
        with _damaged_as_error():
            while True:
                for data in parts.data:
                    yield data
                parts.data.clear()
                if parts.is_complete:
                    break
                if (chunk := await anext(stream, b"")) == b"":
                    raise ApiError(400, "The multipart body ends in its file.", "invalid_parameter")
                parser.write(chunk)

    content_type = parts.headers.get(b"content-type", b"").decode("latin-1")
    return FilePart(parts.options.get(b"filename", b"").decode(errors="replace"), content_type, read_chunks())


def _missing() -> ApiError:
    return ApiError(400, "Send the file as the multipart field `file`.", "missing_parameter")


@contextlib.contextmanager
def _damaged_as_error() -> Iterator[None]:
    try:
        yield
    except MultipartParseError:
        raise ApiError(400, "The multipart body is damaged: send it anew.", "invalid_parameter") from None
