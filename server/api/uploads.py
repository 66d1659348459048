"""Links that carry their own permission: files to download, in pieces too, and places to upload to.

Bytes go through the server, also where they lie in S3: so a link lasts as long as its file, is taken back
with the signing secret, and clients need no way to the storage.
"""

from __future__ import annotations

import re

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import PlainTextResponse, Response, StreamingResponse

from server.api.context import MEDIA_TYPES, ApiContext
from server.storage.blobs import BlobInfo

RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
"""One piece; a request for several is answered with the whole, as HTTP allows."""


def mount(app: FastAPI, context: ApiContext) -> None:
    @app.head("/files/{token}/{name:path}", include_in_schema=False)
    @app.get("/files/{token}/{name:path}")
    async def download(http: HttpRequest, token: str, name: str) -> Response:
        held = context.signer.holds("read", name, token, context.jobs.now())
        info = await context.blobs.info(name) if held else None
        if info is None:
            return PlainTextResponse("There is no such file, or the link has expired.", 404)
        etag = f'"{info.size:x}-{int(1000 * info.modified_at):x}"'
        headers = {
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, max-age=3600",
            "ETag": etag,
            "X-Content-Type-Options": "nosniff",
        }
        is_same = http.headers.get("if-range", etag) == etag
        piece = _piece(http.headers.get("range", ""), info) if is_same else None
        if piece == (0, 0):
            return Response(status_code=416, headers={"Content-Range": f"bytes */{info.size}"})
        start, stop = piece or (0, info.size)
        headers["Content-Length"] = str(stop - start)
        if piece is not None:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{info.size}"
        status = 200 if piece is None else 206
        media_type = MEDIA_TYPES.get(name.rpartition(".")[2], "application/octet-stream")
        if http.method == "HEAD":
            return Response(status_code=status, media_type=media_type, headers=headers)
        content = context.blobs.read(name, start, stop)
        return StreamingResponse(content, status, headers, media_type)

    @app.put("/uploads/{token}/{name:path}")
    async def put(http: HttpRequest, token: str, name: str) -> Response:
        if not context.signer.holds("write", name, token, context.jobs.now()):
            return PlainTextResponse("This upload link is not valid, or has expired: ask for a new one.", 403)
        await context.store_upload(name, http.stream())
        return Response(status_code=200)


def _piece(asked: str, info: BlobInfo) -> tuple[int, int] | None:
    """[start, stop) that a Range header asks for; None: the whole; (0, 0): nothing that there is."""
    if not (found := RANGE.fullmatch(asked.strip())) or not (found[1] or found[2]):
        return None
    if not found[1]:
        start, stop = max(0, info.size - int(found[2])), info.size
    else:
        start, stop = int(found[1]), min(info.size, int(found[2]) + 1 if found[2] else info.size)
        if found[2] and int(found[2]) < start:
            return None
    return (start, stop) if start < stop else (0, 0)
