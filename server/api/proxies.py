"""The request as the client sent it: address, scheme, host and path prefix that trusted proxies forward.

`Forwarded` (RFC 7239) comes before `X-Forwarded-For`, `-Proto`, `-Host` and `-Port`. `X-Forwarded-Prefix` is
the path under which the proxy serves this server. Headers of peers that are not trusted are ignored.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?")
PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]{1,100}){1,10}")
FORWARDED_PAIR = re.compile(r'\s*(\w+)=("[^"]*"|[^;,\s"]+)\s*(?:;|$)')
DEFAULT_PORTS = {"http": "80", "https": "443"}
FORWARDING_HEADERS = frozenset(
    (b"forwarded", *(b"x-forwarded-" + name for name in (b"for", b"proto", b"host", b"port", b"prefix")))
)
KEPT_SLASHES = ("/files/", "/uploads/")


class ProxyMiddleware:
    """ASGI middleware that puts what trusted proxies forward into the scope.

    The prefix becomes `scope["state"]["prefix"]` and is removed from the path, as is one slash at its end.

    Args:
        trusted: addresses and networks of proxies.
        public_prefix: path of the server's public URL.
    """

    def __init__(self, app: ASGIApp, trusted: Sequence[str], public_prefix: str = "") -> None:
        self._app = app
        self._trusted = [ipaddress.ip_network(entry) for entry in trusted]
        self._public_prefix = public_prefix.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            prefix = self._public_prefix
            is_forwarded = any(name in FORWARDING_HEADERS for name, _ in scope["headers"])
            if is_forwarded and scope["client"] is not None and self._is_trusted(scope["client"][0]):
                prefix = self._apply(scope, Headers(scope=scope)) or prefix
            scope.setdefault("state", {})["prefix"] = prefix
            scope["path"] = _strip_path(scope["path"], prefix)
        await self._app(scope, receive, send)

    def _apply(self, scope: Scope, headers: Headers) -> str:
        """Change client, scheme and host of a scope; return the prefix."""
        elements = _parse_forwarded(headers.get("forwarded", ""))
        hops = [element["for"] for element in elements if "for" in element]
        first = elements[0] if elements else {}
        if not elements:
            hops = _split(headers.get("x-forwarded-for", ""))
            for name in ("proto", "host", "port"):
                if values := _split(headers.get(f"x-forwarded-{name}", "")):
                    first[name] = values[0]
        if (address := self._client_of(hops)) is not None:
            scope["client"] = (address, 0)
        if (scheme := first.get("proto", "").lower()) in DEFAULT_PORTS:
            scope["scheme"] = scheme
        host, port = first.get("host", headers.get("host", "")), first.get("port", "")
        if port.isdigit() and port != DEFAULT_PORTS.get(scope["scheme"]) and not re.search(r":\d+$", host):
            host = f"{host}:{port}"
        if HOST.fullmatch(host):
            others = [(name, value) for name, value in scope["headers"] if name != b"host"]
            scope["headers"] = [*others, (b"host", host.encode())]
        prefix = headers.get("x-forwarded-prefix", "").rstrip("/")
        return prefix if PREFIX.fullmatch(prefix) else ""

    def _client_of(self, hops: Sequence[str]) -> str | None:
        """Return the last hop that is no trusted proxy, else the first; None: there is no address."""
        address = None
        for hop in reversed(hops):
            text = re.sub(r"^\[(.*)\](:\d+)?$|^([^:]*):\d+$", r"\1\3", hop)
            if _parse_address(text) is None:
                break
            address = text
            if not self._is_trusted(text):
                break
        return address

    def _is_trusted(self, text: str) -> bool:
        address = _parse_address(text)
        return address is not None and any(
            address in network for network in self._trusted if network.version == address.version
        )


def _parse_address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _split(header: str) -> list[str]:
    return [part.strip() for part in header.split(",") if part.strip()]


def _parse_forwarded(header: str) -> list[dict[str, str]]:
    """Parse a Forwarded header into one dictionary per proxy, the client's side first."""
    elements: list[dict[str, Any]] = []
    for element in re.findall(r'(?:"[^"]*"|[^,"])+', header):
        pairs = {name.lower(): value.strip('"') for name, value in FORWARDED_PAIR.findall(element)}
        if pairs:
            elements.append(pairs)
    return elements


def _strip_path(path: str, prefix: str) -> str:
    if prefix and (path == prefix or path.startswith(f"{prefix}/")):
        path = path.removeprefix(prefix) or "/"
    is_slip = len(path) > 1 and path.endswith("/") and not path.startswith(KEPT_SLASHES)
    return path[:-1] if is_slip else path
