"""The web page at `/`: static files of the folder `playground`, under a strict content security policy.

The page is a client of the API like any other.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import PlainTextResponse, Response

FOLDER: Final = Path(__file__).parents[1] / "playground"
PREFIX: Final = "/playground"
MEDIA_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(self), geolocation=()",
    "Cache-Control": "no-cache",
}


def mount(app: FastAPI) -> None:
    """Serve the page from memory; its files are read once, here."""
    files = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES}
    etags = {name: f'"{hashlib.sha256(content).hexdigest()[:32]}"' for name, content in files.items()}

    def file_response(http: HttpRequest, name: str) -> Response:
        if name not in files:
            return PlainTextResponse("There is no such file.", 404)
        headers = HEADERS | {"ETag": etags[name]}
        if http.headers.get("if-none-match") == etags[name]:
            return Response(status_code=304, headers=headers)
        return Response(files[name], media_type=MEDIA_TYPES[Path(name).suffix], headers=headers)

    @app.get("/", include_in_schema=False)
    async def get_index(http: HttpRequest) -> Response:
        return file_response(http, "index.html")

    @app.get(f"{PREFIX}/{{name}}", include_in_schema=False)
    async def get_file(http: HttpRequest, name: str) -> Response:
        return file_response(http, name)
