"""An S3-compatible server (moto's) over HTTP, and a proxy before it that fails or dawdles when told."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from moto.server import ThreadedMotoServer

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "4f1c9e0b",
    "AWS_REGION": "us-east-1",
}
BUCKET = "lipsync"


class Storage:
    """A bucket behind a proxy.

    Attributes:
        url: for the setting `blobs`.
        is_away: the proxy answers 500.
        fail_after: so many more requests pass, then the proxy answers 500; None: all pass.
        is_slow: requests wait until this is cleared; `has_waited` tells that one does.
        requests: method and path of all that passed.
    """

    def __init__(self) -> None:
        self._moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._moto.start()
        self._behind = self._moto.get_host_and_port()
        self.is_away = False
        self.fail_after: int | None = None
        self.requests: list[str] = []
        self.may_pass = threading.Event()
        self.may_pass.set()
        self.has_waited = threading.Event()
        storage = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if not storage.may_pass.is_set():
                    storage.has_waited.set()
                    storage.may_pass.wait(60)
                status, headers, content = storage.answer(self.command, self.path, dict(self.headers), body)
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in (
                        "connection",
                        "transfer-encoding",
                        "content-length",
                        "date",
                        "server",
                    ):
                        self.send_header(name, value)
                is_head = self.command == "HEAD"
                length = dict(headers).get("Content-Length", "0") if is_head else str(len(content))
                self.send_header("Content-Length", length)
                self.end_headers()
                self.wfile.write(content)

            def __getattr__(self, name: str) -> Callable[[], None]:
                if name.startswith("do_"):
                    return self.pass_on
                raise AttributeError(name)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        self.url = f"s3://{BUCKET}/here?endpoint=http://127.0.0.1:{self._proxy.server_address[1]}"
        self.answer(
            "POST", "/moto-api/reset", {}, b""
        )  # all of moto's servers in a process share their buckets
        self.answer("PUT", f"/{BUCKET}", {}, b"")

    def answer(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        if self.fail_after is not None:
            self.fail_after -= 1
        if self.is_away or (self.fail_after is not None and self.fail_after < 0):
            return 500, [], b""
        self.requests.append(f"{method} {path}")
        connection: Any = http.client.HTTPConnection(*self._behind, timeout=30)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        result = response.status, response.getheaders(), response.read()
        connection.close()
        return result

    def names(self) -> list[str]:
        """Names of all that can be seen in the bucket."""
        _, _, content = self.answer("GET", f"/{BUCKET}?list-type=2", {}, b"")
        return [part.split("</Key>")[0] for part in content.decode().split("<Key>")[1:]]

    def close(self) -> None:
        self.may_pass.set()
        self._proxy.shutdown()
        self._moto.stop()
