"""Uploads, downloads, and the signed links that need no key.

All bytes pass through the server, also to and from S3: a link is valid as long as its file exists, ends with
the signing secret, and clients need no access to the storage.
"""

from __future__ import annotations

import re
from email.utils import formatdate, parsedate_to_datetime
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query
from fastapi import Request as HttpRequest
from fastapi.responses import Response, StreamingResponse

from server.api.auth import Scope
from server.api.context import MEDIA_TYPES, ApiContext, Upload, file_too_large, size_mismatch
from server.api.errors import ApiError
from server.api.multipart import receive_file
from server.api.schemas import read_json_object
from server.api.submission import format_time
from server.api.wavespeed import JSON_BODY, read_int, success_response
from server.storage.blobs import BlobInfo
from server.storage.links import LinkState

RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
"""One range; a request for several is answered with the whole file, as HTTP allows."""

MAX_FILENAME_LENGTH = 255


def create_router(context: ApiContext) -> APIRouter:
    """Create WaveSpeed's upload endpoints, to be mounted under its prefixes and before its model ids."""
    router = APIRouter()

    @router.post("/media/uploads", openapi_extra=JSON_BODY)
    async def create_upload(http: HttpRequest) -> Response:
        caller = context.authenticate(http, Scope.RUN)
        fields = await read_json_object(http)
        if fields.get("size") is None:
            sentence = "The parameter size is missing: send the number of bytes of the file."
            raise ApiError(400, sentence, "missing_parameter")
        size = read_int(fields, "size", 1, 2**63)
        if size > context.settings.max_upload_bytes:
            raise file_too_large(context.settings.max_upload_bytes)
        media_type = fields.get("content_type")
        if not isinstance(media_type, str) or not re.fullmatch(r"[\w.+-]+/[\w.+-]+", media_type):
            media_type = None
        filename = _base_name(fields.get("filename"))
        upload = context.create_upload(caller, context.base_url(http), filename, media_type, size)
        return success_response(
            _upload_object(upload, filename, size)
            | {
                "upload": {
                    "method": "PUT",
                    "url": upload.put_url,
                    "headers": {"Content-Type": media_type} if media_type else {},
                    "expires_at": format_time(upload.expires_at),
                }
            }
        )

    @router.post("/media/upload/binary")
    @router.post("/upload")
    async def upload_file(http: HttpRequest) -> Response:
        caller = context.authenticate(http, Scope.RUN)
        file = await receive_file(http)
        filename = _base_name(file.filename)
        upload = context.create_upload(caller, context.base_url(http), filename, file.media_type)
        size = await context.store_upload(upload.blob, file.chunks)
        return success_response(_upload_object(upload, filename, size) | {"url": upload.download_url})

    return router


def mount(app: FastAPI, context: ApiContext) -> None:
    """Mount the signed links."""

    @app.get("/files/{token}/{name:path}")
    async def download(http: HttpRequest, token: str, name: str) -> Response:
        state = context.signer.check("read", name, token, context.jobs.now())
        if state is LinkState.FORGED:
            raise ApiError(404, "This link is damaged: copy it again.", "link_damaged")
        if state is LinkState.EXPIRED:
            raise ApiError(404, "This link has expired.", "link_expired")
        if (info := await context.blobs.info(name)) is None:
            raise ApiError(404, "The file of this link was deleted, or never uploaded.", "link_deleted")
        etag = f'"{info.size:x}-{int(1000 * info.modified_at):x}"'
        modified = formatdate(info.modified_at, usegmt=True)
        headers = {
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, max-age=3600",
            "ETag": etag,
            "Last-Modified": modified,
            "Content-Security-Policy": "sandbox; default-src 'none'; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        }
        if _is_not_modified(http, etag, info):
            return Response(status_code=304, headers=headers)
        is_unchanged = http.headers.get("if-range", etag) in (etag, modified)
        byte_range = _parse_range(http.headers.get("range", ""), info) if is_unchanged else None
        if byte_range == (0, 0):
            return Response(status_code=416, headers={"Content-Range": f"bytes */{info.size}"})
        start, stop = byte_range or (0, info.size)
        headers["Content-Length"] = str(stop - start)
        if byte_range is not None:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{info.size}"
        status = 200 if byte_range is None else 206
        media_type = MEDIA_TYPES.get(name.rpartition(".")[2], "application/octet-stream")
        content = context.blobs.read(name, start, stop)
        return StreamingResponse(content, status, headers, media_type)

    @app.put("/uploads/{token}/{name:path}")
    async def put_upload(
        http: HttpRequest, token: str, name: str, size: Annotated[int, Query(ge=0, le=2**63)] = 0
    ) -> Response:
        state = context.signer.check(f"write {size}", name, token, context.jobs.now())
        if state is LinkState.FORGED:
            raise ApiError(403, "This upload link is damaged: copy it again.", "link_damaged")
        if state is LinkState.EXPIRED:
            raise ApiError(403, "This upload link has expired: request a new one.", "link_expired")
        announced = http.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) != size:  # before the client sends it all
            raise size_mismatch(int(announced), size)
        await context.receive_upload(name, http.stream(), size)
        return Response(status_code=200)


def _upload_object(upload: Upload, filename: str, size: int) -> dict[str, Any]:
    return {"type": upload.kind, "download_url": upload.download_url, "filename": filename, "size": size}


def _base_name(value: object) -> str:
    """Return a client's file name without folders; it is repeated in answers and gives the suffix."""
    return (
        re.split(r"[/\\]", value)[-1][:MAX_FILENAME_LENGTH] if isinstance(value, str) and value else "upload"
    )


def _is_not_modified(http: HttpRequest, etag: str, info: BlobInfo) -> bool:
    """Return whether the client has the file already; an ETag comes before a time (RFC 9110, 13.2.2)."""
    if (tags := http.headers.get("if-none-match")) is not None:
        return tags.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in tags.split(","))
    try:
        since = parsedate_to_datetime(http.headers.get("if-modified-since", ""))
    except ValueError:
        return False
    return int(info.modified_at) <= since.timestamp()


def _parse_range(header: str, info: BlobInfo) -> tuple[int, int] | None:
    """Parse a Range header: [start, stop); None: the whole file; (0, 0): outside of the file."""
    match = RANGE.fullmatch(header.strip())
    if not match or not (match[1] or match[2]):
        return None
    if not match[1]:
        start, stop = max(0, info.size - int(match[2])), info.size
    else:
        start, stop = int(match[1]), min(info.size, int(match[2]) + 1 if match[2] else info.size)
        if match[2] and int(match[2]) < start:
            return None
    return (start, stop) if start < stop else (0, 0)
