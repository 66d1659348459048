"""The only way out: inputs are fetched and webhooks are sent through one guarded HTTP client.

A host is resolved once, every address that it has must be public (or allowed by the operator), and the
connection goes to the address that was checked, so that a name cannot change its meaning in between.
Redirects are followed here, each hop checked the same way. Everything has a limit: bytes, time, hops. Content
is judged by its first bytes, never by name or announced type. It knows neither jobs nor dialects.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import SplitResult, urljoin, urlsplit

import httpx2

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]
"""(host, port) → textual addresses."""

NAT64 = IPv6Network("64:ff9b::/96")
NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8",
            "100.64.0.0/10",
            "192.0.0.0/24",
            "192.88.99.0/24",
            "198.18.0.0/15",
            "::/96",
            "2001::/23",
        ),
    )
)
"""Beside what Python calls private, reserved or multicast."""

LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
REDIRECTS = (301, 302, 303, 307, 308)
HEAD_BYTES = 4096
WEBHOOK_ANSWER_BYTES = 64 * 1024


class MediaKind(StrEnum):
    VIDEO = "video"
    AUDIO = "audio"
    IMAGE = "image"


class TransportCode(StrEnum):
    """Stable names of what can go wrong."""

    URL_INVALID = "url_invalid"
    URL_NOT_ALLOWED = "url_not_allowed"
    URL_UNREACHABLE = "url_unreachable"
    URL_TIMEOUT = "url_timeout"
    URL_TOO_LARGE = "url_too_large"
    URL_BAD_STATUS = "url_bad_status"
    URL_WRONG_TYPE = "url_wrong_type"
    URL_TOO_MANY_REDIRECTS = "url_too_many_redirects"


class TransportError(Exception):
    """A sentence that the caller's user can act on; it tells nothing of inner addresses."""

    def __init__(self, code: TransportCode, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


@dataclass(frozen=True, slots=True)
class TransportPolicy:
    """Limits, and exceptions from "public addresses only".

    Attributes:
        allow: host names and networks (`files.local`, `10.1.0.0/16`), each with an optional `:port`.
        max_bytes: of a fetched file.
        total_s, idle_s, connect_s: whole fetch, pause between two pieces, connection.
        webhook_s: a whole webhook.
    """

    allow: tuple[str, ...] = ()
    max_bytes: int = 2 * 1024**3
    total_s: float = 1800.0
    idle_s: float = 30.0
    connect_s: float = 10.0
    webhook_s: float = 10.0
    max_redirects: int = 5


@dataclass(frozen=True, slots=True)
class Fetched:
    """A complete file on disk."""

    size: int
    suffix: str


@dataclass(frozen=True, slots=True)
class Delivered:
    """A webhook was answered; of the body, what came within the limit."""

    status: int
    body: bytes = b""


# --- what a file is ---


@dataclass(frozen=True, slots=True)
class Sniffed:
    """What the first bytes say: what the file may be used as, and its usual suffix."""

    kinds: frozenset[MediaKind]
    suffix: str


FILM = frozenset({MediaKind.VIDEO, MediaKind.AUDIO})
SOUND = frozenset({MediaKind.AUDIO})
PICTURE = frozenset({MediaKind.IMAGE})


def sniff(head: bytes) -> Sniffed | None:
    """What a file is by its first bytes (4 KiB are enough); None for anything that is not known media."""
    box, brand = head[4:8], head[8:12]
    if box == b"ftyp":
        match brand:
            case b"M4A " | b"M4B ":
                return Sniffed(SOUND, "m4a")
            case b"qt  ":
                return Sniffed(FILM, "mov")
            case b"heic" | b"heix" | b"mif1" | b"avif" | b"avis":
                return None
        return Sniffed(FILM, "mp4")
    if box in (b"moov", b"mdat", b"wide"):
        return Sniffed(FILM, "mov")
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return Sniffed(FILM, "webm" if b"webm" in head[:64] else "mkv")
    if head[:4] in (b"RIFF", b"RF64"):
        return {b"WAVE": Sniffed(SOUND, "wav"), b"WEBP": Sniffed(PICTURE, "webp")}.get(brand)
    for magic, found in (
        (b"\x89PNG\r\n\x1a\n", Sniffed(PICTURE, "png")),
        (b"\xff\xd8\xff", Sniffed(PICTURE, "jpg")),
        (b"ID3", Sniffed(SOUND, "mp3")),
        (b"OggS", Sniffed(SOUND, "ogg")),
        (b"fLaC", Sniffed(SOUND, "flac")),
    ):
        if head.startswith(magic):
            return found
    if len(head) > 4 and head[0] == 0xFF:
        if head[1] & 0xF6 == 0xF0:
            return Sniffed(SOUND, "aac")
        if head[1] & 0xE0 == 0xE0 and head[1] & 0x06 and head[2] & 0xF0 != 0xF0:
            return Sniffed(SOUND, "mp3")
    return None


# --- where a URL leads ---


@dataclass(frozen=True, slots=True)
class _Target:
    """A checked place: connect to `address`, speak to `host`."""

    url: SplitResult
    host: str
    port: int
    address: Address


def _parsed(url: str) -> tuple[SplitResult, str, int]:
    """(parts, host in ASCII, port) of an acceptable URL."""

    def invalid(reason: str) -> TransportError:
        return TransportError(TransportCode.URL_INVALID, f"The URL cannot be used: {reason}.")

    if len(url) > 8192 or re.search(r"[\x00-\x20\x7f\\]", url):
        raise invalid("it is too long, or holds spaces, control characters or backslashes")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise invalid("host or port is malformed") from None
    if parts.scheme not in ("http", "https"):
        raise invalid("only http and https are taken")
    if not host or "@" in parts.netloc:
        raise invalid("it names no host, or carries a user name")
    if port == 0:
        raise invalid("port 0 does not exist")
    port = port or (443 if parts.scheme == "https" else 80)
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        if "%" in host:
            raise invalid("an address with a zone is not taken")
        return parts, str(address), port
    try:
        name = host.encode("idna").decode("ascii").lower().removesuffix(".")
    except UnicodeError:
        raise invalid("the host name is malformed") from None
    labels = name.split(".")
    if len(name) > 253 or not all(LABEL.fullmatch(label) for label in labels):
        raise invalid("the host name is malformed")
    if re.fullmatch(r"\d+|0x[0-9a-f]*", labels[-1]):
        raise invalid("an address must be written as four decimal numbers")
    return parts, name, port


def is_public(address: Address) -> bool:
    """Whether an address is one of the open internet's, whatever it may be wrapped in."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if address.teredo is not None:
            inner = address.teredo[1]
        if inner is not None and not is_public(inner):
            return False
        if address.ipv4_mapped is not None:
            return True
    if address.is_multicast or address.is_reserved or address.is_unspecified or not address.is_global:
        return address in NAT64
    return not any(address in network for network in NOT_PUBLIC if network.version == address.version)


@dataclass(frozen=True, slots=True)
class _Exception:
    """One entry of the operator's list."""

    name: str | None
    network: IPv4Network | IPv6Network | None
    port: int | None

    @classmethod
    def parse(cls, text: str) -> _Exception:
        place, port = text, None
        if found := re.fullmatch(r"(\[[^\]]+\]|[^:\[\]]+):(\d{1,5})", text):
            place, port = found[1], int(found[2])
        place = place.removeprefix("[").removesuffix("]")
        try:
            return cls(None, ipaddress.ip_network(place), port)
        except ValueError:
            return cls(place.lower(), None, port)

    def covers(self, host: str, port: int, address: Address) -> bool:
        if self.port is not None and self.port != port:
            return False
        return host == self.name if self.network is None else address in self.network


async def _system_resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


# --- the client ---


class Transport:
    """Guarded client; to be used as an async context.

    Args:
        resolve: names to addresses; the system's unless given.
    """

    def __init__(self, policy: TransportPolicy, resolve: Resolve = _system_resolve) -> None:
        self._policy, self._resolve = policy, resolve
        self._exceptions = [_Exception.parse(entry) for entry in policy.allow]
        timeout = httpx2.Timeout(policy.idle_s, connect=policy.connect_s)
        # Nothing is kept between requests: a connection belongs to one checked address.
        limits = httpx2.Limits(max_keepalive_connections=0)
        self._client = httpx2.AsyncClient(
            trust_env=False, follow_redirects=False, timeout=timeout, limits=limits
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def fetch(self, url: str, destination: Path, kind: MediaKind) -> Fetched:
        """A remote file into `destination`, which appears only when complete.

        Raises:
            TransportError: with a sentence; nothing is left on disk.
        """
        part = destination.with_name(destination.name + ".part")
        try:
            async with self._limited(self._policy.total_s):
                for _ in range(self._policy.max_redirects + 1):
                    async with self._asked("GET", url) as answer:
                        if answer.status_code not in REDIRECTS or "location" not in answer.headers:
                            found = await self._save(answer, part, kind)
                            part.replace(destination)
                            return found
                        url = urljoin(url, answer.headers["location"])
            raise TransportError(
                TransportCode.URL_TOO_MANY_REDIRECTS, "The URL redirects too often: give the final address."
            )
        finally:
            part.unlink(missing_ok=True)

    async def post_webhook(self, url: str, body: bytes, headers: dict[str, str]) -> Delivered:
        """Send a body once; redirects are not followed.

        Raises:
            TransportError: it was not answered.
        """
        async with (
            self._limited(self._policy.webhook_s),
            self._asked("POST", url, content=body, headers=headers) as answer,
        ):
            body = b""
            async for chunk in answer.aiter_raw():
                body += chunk
                if len(body) > WEBHOOK_ANSWER_BYTES:
                    break
            return Delivered(answer.status_code, body[:WEBHOOK_ANSWER_BYTES])

    async def _checked(self, url: str) -> _Target:
        parts, host, port = _parsed(url)
        try:
            addresses = [ipaddress.ip_address(host)]
        except ValueError:
            try:
                found = await self._resolve(host, port)
            except OSError:
                found = []
            if not found:
                raise TransportError(
                    TransportCode.URL_UNREACHABLE, f"The host {host!r} is not known: check the URL."
                ) from None
            addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in found]
        for address in addresses:
            allowed = any(entry.covers(host, port, address) for entry in self._exceptions)
            if not allowed and not is_public(address):
                raise TransportError(
                    TransportCode.URL_NOT_ALLOWED,
                    "The URL leads to an address that is not public: ask the operator of this server to "
                    "allow its host, or upload the file instead.",
                )
        return _Target(parts, host, port, addresses[0])

    @contextlib.asynccontextmanager
    async def _asked(
        self, method: str, url: str, *, content: bytes | None = None, headers: dict[str, str] | None = None
    ) -> AsyncIterator[httpx2.Response]:
        """The answer of one hop: connected to the checked address, named as the URL names it."""
        target = await self._checked(url)
        address = f"[{target.address}]" if target.address.version == 6 else str(target.address)
        pinned = target.url._replace(netloc=f"{address}:{target.port}", fragment="").geturl()
        sent = {**(headers or {}), "Host": target.url.netloc, "Accept-Encoding": "identity"}
        async with self._client.stream(
            method, pinned, content=content, headers=sent, extensions={"sni_hostname": target.host}
        ) as answer:
            yield answer

    async def _save(self, answer: httpx2.Response, part: Path, kind: MediaKind) -> Fetched:
        if answer.status_code != 200:
            raise TransportError(
                TransportCode.URL_BAD_STATUS,
                f"The URL was answered with status {answer.status_code}.",
            )
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise TransportError(
                TransportCode.URL_WRONG_TYPE, "The file was sent compressed, which was not asked for."
            )
        too_large = TransportError(
            TransportCode.URL_TOO_LARGE,
            f"The file has more than {self._policy.max_bytes / 1e6:.0f} MB, which is the limit here.",
        )
        announced = answer.headers.get("content-length", "")
        if announced.isascii() and announced.isdigit() and int(announced) > self._policy.max_bytes:
            raise too_large
        size, head, found = 0, b"", None
        with part.open("wb") as file:
            async for chunk in answer.aiter_raw():
                size += len(chunk)
                if size > self._policy.max_bytes:
                    raise too_large
                if found is None and len(head) < HEAD_BYTES:
                    head += chunk[: HEAD_BYTES - len(head)]
                    if len(head) >= HEAD_BYTES:
                        found = _required(head, kind)
                await asyncio.to_thread(partial(file.write, chunk))
        return Fetched(size, (found or _required(head, kind)).suffix)

    @contextlib.asynccontextmanager
    async def _limited(self, total_s: float) -> AsyncIterator[None]:
        """Time, and the client's errors in our words."""
        try:
            async with asyncio.timeout(total_s):
                yield
        except (TimeoutError, httpx2.TimeoutException):
            raise TransportError(
                TransportCode.URL_TIMEOUT, "The URL was too slow: try again later, or upload the file."
            ) from None
        except (httpx2.HTTPError, httpx2.InvalidURL):
            raise TransportError(
                TransportCode.URL_UNREACHABLE, "The URL cannot be reached: check it, or upload the file."
            ) from None


def _required(head: bytes, kind: MediaKind) -> Sniffed:
    found = sniff(head)
    if found is None or kind not in found.kinds:
        raise TransportError(
            TransportCode.URL_WRONG_TYPE,
            f"What the URL gives is not {kind.value}: give a direct link to the file.",
        )
    return found
