"""The only outgoing HTTP: inputs are downloaded and webhooks are sent through one SSRF-safe client.

A host is resolved once, all of its addresses must be public (or allowed by the operator), and the connection
goes to the address that was checked, so DNS rebinding has no effect. Redirects are followed here, each hop
checked in the same way. Bytes, time and hops are limited. A file's type is detected from its first bytes,
never from its name or the Content-Type header. The module knows neither jobs nor dialects.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import SplitResult, urljoin, urlsplit

import httpx2

from server.hosts import Address, HostPattern
from server.storage.disk import DiskSpace

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""(host, port) → textual addresses."""

NAT64 = IPv6Network("64:ff9b::/96")
GLOBAL_UNICAST = IPv6Network("2000::/3")
NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8",
            "100.64.0.0/10",
            "168.63.129.16/32",  # Azure's metadata and name server, on every one of its machines
            "192.0.0.0/24",
            "192.31.196.0/24",
            "192.52.193.0/24",
            "192.88.99.0/24",
            "192.175.48.0/24",
            "198.18.0.0/15",
            "2001::/23",
            "2620:4f:8000::/48",
            "3fff::/20",
        ),
    )
)
"""In addition to what Python calls private, reserved or multicast."""

MAX_URL_LENGTH = 8192
LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
REDIRECTS = (301, 302, 303, 307, 308)
HEAD_BYTES = 4096
WEBHOOK_RESPONSE_BYTES = 64 * 1024
USER_AGENT = "lipsync-server"
"""Without versions, which would tell other servers what to attack."""


class MediaKind(StrEnum):
    """Use of a media file."""

    VIDEO = "video"
    AUDIO = "audio"
    IMAGE = "image"


class TransportCode(StrEnum):
    """Stable error codes."""

    URL_INVALID = "url_invalid"
    URL_NOT_ALLOWED = "url_not_allowed"
    URL_UNREACHABLE = "url_unreachable"
    URL_TIMEOUT = "url_timeout"
    URL_TOO_LARGE = "url_too_large"
    URL_BAD_STATUS = "url_bad_status"
    URL_WRONG_TYPE = "url_wrong_type"
    URL_TOO_MANY_REDIRECTS = "url_too_many_redirects"


class TransportError(Exception):
    """A failed request; the message is for the user and reveals no private address."""

    def __init__(self, code: TransportCode, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message

    @property
    def is_permanent(self) -> bool:
        """Whether the policy rejects the URL, so that a retry cannot succeed."""
        return self.code in (TransportCode.URL_INVALID, TransportCode.URL_NOT_ALLOWED)


@dataclass(frozen=True, slots=True)
class TransportPolicy:
    """Limits, and addresses that are allowed although they are not public.

    Attributes:
        allow: entries of `server.hosts`.
        media_hosts: the only hosts that downloads may come from, as such entries; none: any.
        media_ports, webhook_ports: the only ports, except at hosts that `allow` names; none: any.
        max_bytes: size of a download.
        total_s, idle_s, connect_s: time limits of a download, of a pause in it, and of a connection attempt.
        min_bytes_per_s, speed_interval_s: least speed of a download, on average over each such interval.
        webhook_s: time limit of a webhook.
        check_s: time limit of a host's resolution while a client waits.
    """

    allow: tuple[str, ...] = ()
    media_hosts: tuple[str, ...] = ()
    media_ports: tuple[int, ...] = ()
    webhook_ports: tuple[int, ...] = ()
    max_bytes: int = 2 * 1024**3
    total_s: float = 1800.0
    idle_s: float = 30.0
    connect_s: float = 10.0
    min_bytes_per_s: int = 0
    speed_interval_s: float = 30.0
    webhook_s: float = 10.0
    check_s: float = 2.0
    max_redirects: int = 5


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """A complete download: size in bytes and usual suffix of its type."""

    size: int
    suffix: str


@dataclass(frozen=True, slots=True)
class WebhookResponse:
    """Response to a webhook; the body is cut off at a limit."""

    status: int
    body: bytes = b""


# --- media types ---


@dataclass(frozen=True, slots=True)
class MediaType:
    """Type of a file: possible uses and usual suffix."""

    kinds: frozenset[MediaKind]
    suffix: str


VIDEO_ONLY = frozenset({MediaKind.VIDEO})
VIDEO_OR_AUDIO = frozenset({MediaKind.VIDEO, MediaKind.AUDIO})
AUDIO_ONLY = frozenset({MediaKind.AUDIO})
IMAGE_ONLY = frozenset({MediaKind.IMAGE})


def sniff(head: bytes) -> MediaType | None:
    """Detect the type of a file from its first bytes (4 KiB are enough); None: not a known media type."""
    box, brand = head[4:8], head[8:12]
    if box == b"ftyp":
        match brand:
            case b"M4A " | b"M4B ":
                return MediaType(AUDIO_ONLY, "m4a")
            case b"qt  ":
                return MediaType(VIDEO_OR_AUDIO, "mov")
            case b"heic" | b"heix" | b"mif1" | b"avif" | b"avis":
                return None
        return MediaType(VIDEO_OR_AUDIO, "mp4")
    if box in (b"moov", b"mdat", b"wide"):
        return MediaType(VIDEO_OR_AUDIO, "mov")
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return MediaType(VIDEO_OR_AUDIO, "webm" if b"webm" in head[:64] else "mkv")
    if head[:4] in (b"RIFF", b"RF64"):
        return {
            b"WAVE": MediaType(AUDIO_ONLY, "wav"),
            b"WEBP": MediaType(IMAGE_ONLY, "webp"),
            b"AVI ": MediaType(VIDEO_ONLY, "avi"),
        }.get(brand)
    if head.startswith(b"FORM") and brand in (b"AIFF", b"AIFC"):
        return MediaType(AUDIO_ONLY, "aiff")
    for magic, media_type in (
        (b"\x89PNG\r\n\x1a\n", MediaType(IMAGE_ONLY, "png")),
        (b"\xff\xd8\xff", MediaType(IMAGE_ONLY, "jpg")),
        (b"ID3", MediaType(AUDIO_ONLY, "mp3")),
        (b"OggS", MediaType(AUDIO_ONLY, "ogg")),
        (b"fLaC", MediaType(AUDIO_ONLY, "flac")),
        (b"0&\xb2u\x8ef\xcf\x11", MediaType(VIDEO_ONLY, "wmv")),
        (b"FLV\x01", MediaType(VIDEO_ONLY, "flv")),
    ):
        if head.startswith(magic):
            return media_type
    if len(head) > 4 and head[0] == 0xFF:
        if head[1] & 0xF6 == 0xF0:
            return MediaType(AUDIO_ONLY, "aac")
        if head[1] & 0xE0 == 0xE0 and head[1] & 0x06 and head[2] & 0xF0 != 0xF0:
            return MediaType(AUDIO_ONLY, "mp3")
    return None


# --- addresses ---


@dataclass(frozen=True, slots=True)
class _Target:
    """A checked target: connect to `address`, request `host`."""

    url: SplitResult
    host: str
    port: int
    address: Address


def _parse_url(url: str) -> tuple[SplitResult, str, int]:
    """Return (parts, host in ASCII, port) of a valid URL."""

    def invalid(reason: str) -> TransportError:
        return TransportError(TransportCode.URL_INVALID, f"The URL cannot be used: {reason}.")

    if len(url) > MAX_URL_LENGTH or re.search(r"[\x00-\x20\x7f\\]", url):
        raise invalid("it is too long, or contains spaces, control characters or backslashes")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise invalid("host or port is malformed") from None
    if parts.scheme not in ("http", "https"):
        raise invalid("only http and https are supported")
    if not host or "@" in parts.netloc:
        raise invalid("it has no host, or contains a user name")
    if port == 0:
        raise invalid("port 0 does not exist")
    port = port or (443 if parts.scheme == "https" else 80)
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        if "%" in host:
            raise invalid("an address with a zone is not supported")
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
    """Check that an address, and any address embedded in it, belongs to the public internet."""
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
    if isinstance(address, IPv6Address) and address not in GLOBAL_UNICAST:
        return address in NAT64
    if address.is_multicast or address.is_reserved or address.is_unspecified or not address.is_global:
        return False
    return not any(address in network for network in NOT_PUBLIC if network.version == address.version)


def _covers(patterns: list[HostPattern], host: str, port: int, address: Address) -> bool:
    return any(pattern.covers(host, port, address) for pattern in patterns)


async def _system_resolve(host: str, port: int) -> list[str]:
    entries = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in entries]


# --- the client ---


class Transport:
    """SSRF-safe client; an async context manager.

    Args:
        resolve: resolver of host names; by default the system's.
        disk: whose free space downloads leave; None: they do not check it.
    """

    def __init__(
        self, policy: TransportPolicy, resolve: Resolve = _system_resolve, disk: DiskSpace | None = None
    ) -> None:
        self._policy, self._resolve, self._disk = policy, resolve, disk
        self._allowed = [HostPattern.parse(entry) for entry in policy.allow]
        self._media_hosts = [HostPattern.parse(entry) for entry in policy.media_hosts]
        timeout = httpx2.Timeout(policy.idle_s, connect=policy.connect_s)
        # No connection is reused: each belongs to one checked address.
        limits = httpx2.Limits(max_keepalive_connections=0)
        self._client = httpx2.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            timeout=timeout,
            limits=limits,
            headers={"User-Agent": USER_AGENT},
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def fetch(self, url: str, destination: Path, kind: MediaKind) -> FetchedFile:
        """Download a file to `destination`, which appears only when complete.

        Raises:
            TransportError: no file is left on disk.
        """
        part = destination.with_name(destination.name + ".part")
        try:
            async with self._limit(self._policy.total_s):
                for _ in range(self._policy.max_redirects + 1):
                    async with self._request("GET", url) as response:
                        if response.status_code not in REDIRECTS or "location" not in response.headers:
                            file = await self._save(response, part, kind)
                            part.replace(destination)
                            return file
                        url = urljoin(url, response.headers["location"])
            raise TransportError(
                TransportCode.URL_TOO_MANY_REDIRECTS, "The URL redirects too often: send the final address."
            )
        finally:
            part.unlink(missing_ok=True)

    async def post_webhook(self, url: str, body: bytes, headers: dict[str, str]) -> WebhookResponse:
        """Send a body once; redirects are not followed.

        Raises:
            TransportError: there was no response.
        """
        async with (
            self._limit(self._policy.webhook_s),
            self._request("POST", url, content=body, headers=headers) as response,
        ):
            content = b""
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > WEBHOOK_RESPONSE_BYTES:
                    break
            return WebhookResponse(response.status_code, content[:WEBHOOK_RESPONSE_BYTES])

    async def check_allowed(self, url: str) -> None:
        """Check that the policy allows a URL. A host that is not resolved in `check_s` is not judged.

        Raises:
            TransportError: URL_INVALID or URL_NOT_ALLOWED.
        """
        try:
            async with asyncio.timeout(self._policy.check_s):
                await self._resolve_target(url)
        except TimeoutError:
            return
        except TransportError as error:
            if error.is_permanent:
                raise

    async def _resolve_target(self, url: str, *, is_media: bool = False) -> _Target:
        parts, host, port = _parse_url(url)
        try:
            addresses = [ipaddress.ip_address(host)]
        except ValueError:
            try:
                texts = await self._resolve(host, port)
            except OSError:
                texts = []
            if not texts:
                raise TransportError(
                    TransportCode.URL_UNREACHABLE, f"The host {host!r} does not exist: check the URL."
                ) from None
            addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in texts]
        ports = self._policy.media_ports if is_media else self._policy.webhook_ports
        for address in addresses:
            allowed = _covers(self._allowed, host, port, address)
            if is_media and self._media_hosts and not _covers(self._media_hosts, host, port, address):
                raise TransportError(
                    TransportCode.URL_NOT_ALLOWED,
                    f"This server does not download from {host!r}: ask its operator, or upload the file.",
                )
            if not allowed and ports and port not in ports:
                raise TransportError(
                    TransportCode.URL_NOT_ALLOWED,
                    f"This server does not connect to port {port}: use one of {', '.join(map(str, ports))}.",
                )
            if not allowed and not is_public(address):
                raise TransportError(
                    TransportCode.URL_NOT_ALLOWED,
                    "The URL leads to an address that is not public: ask the operator of this server to "
                    "allow its host, or upload the file instead.",
                )
        return _Target(parts, host, port, addresses[0])

    @contextlib.asynccontextmanager
    async def _request(
        self, method: str, url: str, *, content: bytes | None = None, headers: dict[str, str] | None = None
    ) -> AsyncIterator[httpx2.Response]:
        """Send one request to the checked address under the URL's host name."""
        target = await self._resolve_target(url, is_media=method == "GET")
        address = f"[{target.address}]" if target.address.version == 6 else str(target.address)
        pinned = target.url._replace(netloc=f"{address}:{target.port}", fragment="").geturl()
        all_headers = {**(headers or {}), "Host": target.url.netloc, "Accept-Encoding": "identity"}
        async with self._client.stream(
            method, pinned, content=content, headers=all_headers, extensions={"sni_hostname": target.host}
        ) as response:
            yield response

    async def _save(self, response: httpx2.Response, part: Path, kind: MediaKind) -> FetchedFile:
        if response.status_code != 200:
            raise TransportError(
                TransportCode.URL_BAD_STATUS,
                f"The URL responded with status {response.status_code}.",
            )
        if response.headers.get("content-encoding", "identity") != "identity":
            raise TransportError(
                TransportCode.URL_WRONG_TYPE,
                "The URL sends the file compressed: send a direct link to the file.",
            )
        too_large = TransportError(
            TransportCode.URL_TOO_LARGE,
            f"The file has more than {self._policy.max_bytes / 1e6:.0f} MB, which is the limit here.",
        )
        announced = response.headers.get("content-length", "")
        if announced.isascii() and announced.isdigit() and int(announced) > self._policy.max_bytes:
            raise too_large
        size, head, media_type = 0, b"", None
        interval_start, interval_bytes = time.monotonic(), 0
        with part.open("wb") as file:
            chunks = response.aiter_raw()
            async for chunk in chunks if self._disk is None else self._disk.guard(chunks):
                size += len(chunk)
                interval_bytes += len(chunk)
                if (elapsed_s := time.monotonic() - interval_start) >= self._policy.speed_interval_s:
                    if interval_bytes < self._policy.min_bytes_per_s * elapsed_s:
                        raise TimeoutError
                    interval_start, interval_bytes = time.monotonic(), 0
                if size > self._policy.max_bytes:
                    raise too_large
                if media_type is None and len(head) < HEAD_BYTES:
                    head += chunk[: HEAD_BYTES - len(head)]
                    if len(head) >= HEAD_BYTES:
                        media_type = _detect(head, kind)
                await asyncio.to_thread(partial(file.write, chunk))
        return FetchedFile(size, (media_type or _detect(head, kind)).suffix)

    @contextlib.asynccontextmanager
    async def _limit(self, total_s: float) -> AsyncIterator[None]:
        """Limit the time, and translate the client's errors."""
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


def _detect(head: bytes, kind: MediaKind) -> MediaType:
    media_type = sniff(head)
    if media_type is None or kind not in media_type.kinds:
        raise TransportError(
            TransportCode.URL_WRONG_TYPE,
            f"The URL does not lead to a supported {kind.value} file: send a direct link to one.",
        )
    return media_type
