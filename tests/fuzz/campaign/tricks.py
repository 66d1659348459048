"""What hostile clients ask: bodies, names, paths and heads, each meant to break one thing."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

from tests.fuzz.campaign.mutations import png

SUBMIT = "/api/v3/bytedance/latentsync"
LINKS = {"video": "https://a.example/v.mp4", "audio": "https://a.example/a.wav"}
Call = tuple[str, str, str, object, dict[str, str]]
"""Kind, method, path, body, headers."""


def calls() -> Iterator[Call]:
    """Requests that a client library can send."""
    yield from _bodies()
    yield from _names()
    yield from _paths()


def _bodies() -> Iterator[Call]:
    poison = (
        rb'"\ud800"', rb'{"\udfff":1}', rb'"\u0000"', b"NaN", b"-Infinity", b"1e999", b"9" * 4400, b"-0",
        b"[" * 31 + b"]" * 31, b"[" * 900 + b"]" * 900, b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b"[" * 100_000, b'"' + b"\\u00e9" * 100_000 + b'"', b"[" + b"0," * 9000 + b"0]", b"null", b"true",
    )  # fmt: skip
    fields = (
        "video",
        "audio",
        "seed",
        "fps",
        "face",
        "segments",
        "webhook_url",
        "consent",
        "unknown",
        "resolution",
    )
    for field in fields:
        for value in poison:
            body = json.dumps({**LINKS, "x": 0})[:-1].encode() + b',"' + field.encode() + b'":' + value + b"}"
            yield "JSON, one poisoned value", "POST", SUBMIT, body, {}
            yield (
                "JSON, one poisoned value",
                "POST",
                "/api/v1/lipsync-video",
                b'{"formState":' + body + b"}",
                {},
            )
    for value in poison:
        for path in ("/api/v3/predictions", "/api/v3/predictions/delete", "/api/v3/media/uploads", SUBMIT):
            yield "JSON, not an object", "POST", path, value, {}
        for name in ("page", "page_size", "status", "model", "created_after"):
            body = b'{"page":1,"page_size":1,"' + name.encode() + b'":' + value + b"}"
            yield "JSON, a search", "POST", "/api/v3/predictions", body, {}
    large = b'{"video":"https://a.example/v.mp4","audio":"'
    yield "JSON, huge", "POST", SUBMIT, large + b"A" * (90 << 20) + b'"}', {}
    yield "JSON, huge", "POST", SUBMIT, large + b"A" * (100 << 20) + b'"}', {}
    yield "JSON, huge", "POST", SUBMIT, b"[" + b"[]," * (30 << 20) + b"1]", {}
    yield "JSON, huge", "POST", SUBMIT, b"{" + b'"a":0,' * (12 << 20) + b'"a":0}', {}
    yield "JSON, huge", "POST", SUBMIT, b"[" * (90 << 20), {}
    for text in (
        "data:",
        "data:,",
        "data:;base64,",
        "data:a;base64,=",
        "A" * 5,
        "====",
        "A===",
        "\uff21" * 8,
        "data:x;base64," + "é",
    ):
        yield "base64", "POST", SUBMIT, {**LINKS, "video": text}, {}
    for picture in (png(50_000, 50_000), png(2**31 - 1, 2**31 - 1)):
        body = {"image": base64.b64encode(picture).decode(), "audio": LINKS["audio"]}
        yield "a picture that unpacks to gigabytes", "POST", "/api/v3/bytedance/avatar-omni-human", body, {}


NAMES = (
    "../../../../tmp/x.mp4", "..\\..\\x.mp4", "/etc/passwd", "C:\\x.mp4", "a\0.mp4", "a\r\nX: y.mp4",
    "CON", "NUL.mp4",
    "aux.mp4:stream", "\u202egpm.4pm", "\ufeff.mp4", "e\u0301.mp4", ".", "..", "", " ", "a" * 5000 + ".mp4",
    "%2e%2e%2f", "~/.ssh/x", "-rf", "$(id).mp4", "`id`", "a;b", "😀.mp4", "file.mp4/", "....//",
    "\ud800.mp4",
)  # fmt: skip


def _names() -> Iterator[Call]:
    for name in NAMES:
        yield "names, upload ticket", "POST", "/api/v3/media/uploads", {"filename": name, "size": 1}, {}
        for quoted in (name, name.replace('"', "")):
            place = f'Content-Disposition: form-data; name="file"; filename="{quoted}"'
            head = f"--b\r\n{place}\r\n\r\nabc\r\n--b--\r\n"
            inputs = {"Content-Type": "multipart/form-data; boundary=b"}
            yield (
                "names, multipart",
                "POST",
                "/api/v3/media/upload/binary",
                head.encode("utf-8", "replace"),
                inputs,
            )
    for kind in (
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "b" * 5000,
    ):
        yield (
            "multipart, broken",
            "POST",
            "/api/v3/media/upload/binary",
            b"--b\r\n\r\nabc",
            {"Content-Type": kind},
        )
    many = b"".join(b'--b\r\nContent-Disposition: form-data; name="f%d"\r\n\r\n\r\n' % n for n in range(5000))
    for body in (
        many + b"--b--\r\n",
        b"--b\r\n" + b"X: y\r\n" * 50_000,
        b"--b\r\nContent-Disposition: " + b"x" * 10**6,
    ):
        inputs = {"Content-Type": "multipart/form-data; boundary=b"}
        yield "multipart, broken", "POST", "/api/v3/media/upload/binary", body, inputs


def _paths() -> Iterator[Call]:
    tricks = (
        "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "..%5c..%5cx", "%00", "%ff%fe",
        "%c0%ae%c0%ae/", "%0d%0aX:y",
        "a%2f" * 200, "a" * 8000, "CON", "%e2%80%ae", "%ed%a0%80", ".", "-", "1e999", "%252e%252e", ";x=y",
    )  # fmt: skip
    prefixes = (
        "/files/t/", "/uploads/t/", "/files/", "/api/v3/predictions/", "/api/v3/", "/api/v1/jobs/",
        "/api/native/v1/jobs/",
        "/admin/keys/", "/", "/static/", "/api/native/v1/jobs?text=", "/api/native/v1/jobs?state=",
        "/api/native/v1/jobs?since=",
        "/admin/audit?since=", "/admin/audit?after=",
    )  # fmt: skip
    for prefix in prefixes:
        for trick in tricks:
            for method in ("GET", "DELETE", "PUT") if prefix != "/" else ("GET",):
                yield "paths", method, prefix + trick, None, {}


def raw(secret: str) -> Iterator[tuple[str, bytes]]:
    """(kind, bytes) that no client library would send.

    Args:
        secret: a key of the server.
    """
    key = f"Authorization: Bearer {secret}\r\n".encode()
    get = b"GET /api/v3/models HTTP/1.1\r\n" + key
    post = b"POST " + SUBMIT.encode() + b" HTTP/1.1\r\n" + key
    for host in (
        b"",
        b"[",
        b"[::1",
        b"a b",
        b"a:b:c",
        b"\xff\xfe",
        b"a:99999999",
        b"a/../b",
        b"a@b",
        b"a" * 5000,
    ):
        yield "headers, Host", get + b"Host: " + host + b"\r\nConnection: close\r\n\r\n"
    yield "headers, Host", get + b"Connection: close\r\n\r\n"
    yield "headers, Host", get + b"Host: a\r\nHost: b\r\nConnection: close\r\n\r\n"
    host = b"Host: a\r\nConnection: close\r\n"
    for line in (
        b"X: a\0b", b"X: a\rb", b"X : a", b": a", b"X", b" X: a", b"X:\r\n a", b"X-Request-Id: a\x0bb",
        b"\xff: a",
        b"X-Request-Id: " + b"a" * 5000, b"Range: bytes=" + b"9" * 4000 + b"-",
        b"Idempotency-Key: " + b"k" * 5000,
        b"Last-Event-ID: 99999999999999999999", b"Expect: 100-continue", b"Expect: x",
        b"Upgrade: websocket\r\nConnection: upgrade",
        b"Upgrade: h2c\r\nHTTP2-Settings: a", b"Transfer-Encoding: gzip", b"Content-Encoding: gzip",
        b"Cookie: " + b"a=b;" * 9000,
        b"X: " + b"x" * 70_000, b"X: y\r\n" * 3000 + b"Z: z", b"Authorization: Bearer \xff",
        b"Authorization: " + b"B" * 60_000,
    ):  # fmt: skip
        yield "headers, odd", get + host + line + b"\r\n\r\n"
    body = json.dumps(LINKS).encode()
    size = b"Content-Length: %d\r\n" % len(body)
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    for lines in (
        size + size, size + b"Content-Length: 1\r\n", b"Content-Length: +5\r\n", b"Content-Length: -1\r\n",
        b"Content-Length: 5, 6\r\n", b"Content-Length: 0x5\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        size + b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: xchunked\r\n", b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    ):  # fmt: skip
        yield "lengths and smuggling", post + host + lines + b"\r\n" + body + smuggled
    chunked = post + host + b"Transfer-Encoding: chunked\r\n\r\n"
    for chunks in (
        b"fffffffffffffffff\r\n", b"-1\r\n", b"5;" + b"x" * 70_000, b"1\na\n0\n\n", b"1\r\nab\r\n",
        b"0x1\r\na\r\n0\r\n\r\n",
        b"0\r\n" + b"X: y\r\n" * 9000 + b"\r\n", b"1\r\na\r\n" * 20_000 + b"0\r\n\r\n",
        b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n",
    ):  # fmt: skip
        yield "chunks", chunked + chunks
    for line in (
        b"", b"\r\n", b"\0" * 200, b"GET", b"GET /", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\n\n",
        b"get / HTTP/1.1\r\n\r\n",
        b"GET  /  HTTP/1.1\r\n\r\n", b"GET http://[ HTTP/1.1\r\n\r\n", b"GET a HTTP/1.1\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(500),
        b"SSH-2.0-x\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"TRACE / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"GET /?" + b"a&" * 40_000 + b" HTTP/1.1\r\n\r\n",
    ):  # fmt: skip
        yield "request lines", line
