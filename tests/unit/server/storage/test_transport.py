"""Nothing gets out to where it must not: odd spellings, lying names, redirects, bombs. Real sockets."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from server.storage.transport import (
    MediaKind,
    Transport,
    TransportCode,
    TransportError,
    TransportPolicy,
    is_public,
    sniff,
)

WAV = b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(100)
MP4 = b"\x00\x00\x00\x20ftypisom" + bytes(100)
PUBLIC = "93.184.216.34"


def fetch(
    url: str, folder: Path, policy: TransportPolicy, kind: MediaKind = MediaKind.AUDIO, resolve: object = None
) -> bytes:
    """What a fetch leaves; and that it leaves nothing else."""

    async def go() -> bytes:
        inputs = {} if resolve is None else {"resolve": resolve}
        async with Transport(policy, **inputs) as transport:  # type: ignore[arg-type]
            await transport.fetch(url, folder / "file", kind)
        return (folder / "file").read_bytes()

    try:
        return asyncio.run(go())
    except TransportError:
        assert list(folder.iterdir()) == []
        raise


def names(
    table: dict[str, list[str]], asked: list[str] | None = None
) -> Callable[[str, int], Awaitable[list[str]]]:
    """A resolver that knows a table; a second question gets the name's second answer, and so on."""

    async def resolve(host: str, port: int) -> list[str]:
        if asked is not None:
            asked.append(host)
        if host not in table:
            raise socket.gaierror
        return table[host]

    return resolve


# --- what is never connected to ---

BAD_ADDRESSES = [
    "127.0.0.1", "127.1.2.3", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.5.5", "172.31.255.255", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "100.127.255.254", "192.0.0.8", "192.0.2.1", "198.18.0.1",
    "198.51.100.7",
    "203.0.113.9", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1",
    "fc00::1", "fd12:3456::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1",
    "fec0::1", "168.63.129.16", "192.175.48.1", "192.31.196.1", "3fff::1", "4000::1", "100::1", "5f00::1",
    "::ffff:0:7f00:1", "64:ff9b:1::7f00:1", "2620:4f:8000::1", "100.100.100.200", "fd00:ec2::254",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::", "2001::80ff:fffe",
]  # fmt: skip
GOOD_ADDRESSES = [
    PUBLIC,
    "8.8.8.8",
    "100.63.255.255",
    "100.128.0.1",
    "172.32.0.1",
    "2606:4700::1111",
    "::ffff:8.8.8.8",
]


def test_private_addresses_are_rejected(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for address in BAD_ADDRESSES:
        with subtests.test(address=address):
            assert not is_public(ipaddress.ip_address(address))
            literal = f"[{address}]" if ":" in address else address
            for url, resolve in (
                (f"http://{literal}/a.wav", None),
                ("http://innocent.example/a.wav", names({"innocent.example": [address]})),
                ("http://mixed.example/a.wav", names({"mixed.example": [PUBLIC, address]})),
            ):
                with pytest.raises(TransportError) as error:
                    fetch(url, tmp_path, TransportPolicy(), resolve=resolve)
                assert error.value.code is TransportCode.URL_NOT_ALLOWED
                assert address not in error.value.message


def test_public_addresses_are_accepted(subtests: pytest.Subtests) -> None:
    for address in GOOD_ADDRESSES:
        with subtests.test(address=address):
            assert is_public(ipaddress.ip_address(address))


def test_invalid_urls_are_rejected_before_name_resolution(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for url in [
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://127.0.0.1./",
        "http://127.0.0.0x1/",
        "http://①②⑦.0.0.1/",
        "http://127。0。0。1/",
        "file:///etc/passwd",
        "gopher://h/",
        "ftp://h/a.mp4",
        "data:audio/wav;base64,AAAA",
        "//h/a",
        "/a",
        "",
        "http:///a",
        "http://user@h/",
        "http://user:pw@h/",
        "http://h@127.0.0.1/",
        "http://h\\@127.0.0.1/",
        "http://h/a b",
        "http://h/\n",
        "http://h\t/",
        "http://h:0/",
        "http://h:99999/",
        "http://h:x/",
        "http://[::1/",
        "http://[fe80::1%25eth0]/",
        "http://-h/",
        "http://h..x/",
        f"http://{'a' * 64}.x/",
        "http://" + "a." * 200 + "x/",
        "http://h/" + "a" * 9000,
        "jar:http://h!/",
        "http://h%00.x/",
    ]:
        with subtests.test(url=url):
            requests: list[str] = []
            with pytest.raises(TransportError) as error:
                fetch(url, tmp_path, TransportPolicy(), resolve=names({}, requests))
            assert error.value.code in (TransportCode.URL_INVALID, TransportCode.URL_NOT_ALLOWED)
            assert requests == []


def test_names_of_this_machine_are_rejected(tmp_path: Path) -> None:
    for host in ("localhost", "LOCALHOST", "localhost."):
        with pytest.raises(TransportError):
            fetch(f"http://{host}/a.wav", tmp_path, TransportPolicy())


# --- a server to talk to ---


class Site:
    """Answers each path from a table of functions; remembers what was asked."""

    def __init__(self) -> None:
        self.pages: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: list[tuple[str, str]] = []
        self.release = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.asked.append((self.path, self.headers["Host"]))
                self.close_connection = True
                site.pages[self.path](self)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients hang up here
        self.port = self.server.server_address[1]
        self.policy = TransportPolicy(
            allow=(f"127.0.0.1:{self.port}",), max_bytes=5000, total_s=5, idle_s=0.5
        )
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def answer(self, path: str, content: bytes, status: int = 200, **headers: str) -> None:
        def page(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            inputs = {"Content-Length": str(len(content))} | {
                k.replace("_", "-"): v for k, v in headers.items()
            }
            for name, value in inputs.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(content)

        self.pages[path] = page


@pytest.fixture
def site() -> Iterator[Site]:
    output = Site()
    yield output
    output.release.set()
    output.server.shutdown()


def refusal(site: Site, path: str, folder: Path, kind: MediaKind = MediaKind.AUDIO) -> TransportCode:
    with pytest.raises(TransportError) as error:
        fetch(site.url(path), folder, site.policy, kind)
    return error.value.code


def test_file_is_downloaded(site: Site, tmp_path: Path) -> None:
    site.answer("/a", WAV)
    assert fetch(site.url("/a"), tmp_path, site.policy) == WAV
    assert site.asked == [("/a", f"127.0.0.1:{site.port}")]


def test_allow_list_matches_exactly(site: Site, tmp_path: Path) -> None:
    site.answer("/a", WAV)
    table = names({"files.local": ["127.0.0.1"], "other.local": ["127.0.0.1"]})
    for allow, host, works in (
        (("files.local",), "files.local", True),
        ((f"files.local:{site.port}",), "FILES.local", True),
        (("files.local:1",), "files.local", False),
        (("files.local",), "other.local", False),
        (("127.0.0.0/30",), "other.local", True),
        (("127.0.0.2/32",), "127.0.0.1", False),
        (("local",), "files.local", False),
    ):
        policy = TransportPolicy(allow=allow)
        url = f"http://{host}:{site.port}/a"
        if works:
            assert fetch(url, tmp_path, policy, resolve=table) == WAV
            (tmp_path / "file").unlink()
        else:
            with pytest.raises(TransportError, match="not public"):
                fetch(url, tmp_path, policy, resolve=table)


def test_downloads_come_from_media_hosts_only(site: Site, tmp_path: Path) -> None:
    site.answer("/a", WAV)
    site.answer("/away", b"", status=302, location=f"http://other.local:{site.port}/a")
    table = names({"cdn.files.local": ["127.0.0.1"], "other.local": ["127.0.0.1"]})
    for media_hosts, path, works in (
        (("*.files.local",), "/a", True),
        (("files.local",), "/a", False),
        (("*.files.local",), "/away", False),
        (("127.0.0.0/8",), "/away", True),
    ):
        policy = TransportPolicy(allow=("127.0.0.1",), media_hosts=media_hosts)
        url = f"http://cdn.files.local:{site.port}{path}"
        if works:
            assert fetch(url, tmp_path, policy, resolve=table) == WAV
            (tmp_path / "file").unlink()
        else:
            with pytest.raises(TransportError, match="does not download from") as error:
                fetch(url, tmp_path, policy, resolve=table)
            assert error.value.is_permanent


def test_only_allowed_ports_are_connected_to(tmp_path: Path) -> None:
    policy = TransportPolicy(media_ports=(80, 443), webhook_ports=(443,))
    with pytest.raises(TransportError, match="port 25: use one of 80, 443"):
        fetch(f"http://{PUBLIC}:25/a", tmp_path, policy)

    async def check(url: str) -> None:
        async with Transport(policy) as transport:
            await transport.check_allowed(url)

    asyncio.run(check(f"https://{PUBLIC}/hook"))
    with pytest.raises(TransportError, match="port 80: use one of 443"):
        asyncio.run(check(f"http://{PUBLIC}/hook"))


def test_checked_address_is_the_one_connected_to(site: Site, tmp_path: Path) -> None:
    """A name that changes its meaning after the check gains nothing: nobody asks again."""
    site.answer("/a", WAV)
    requests: list[str] = []
    table = {"files.local": ["127.0.0.1"]}
    resolve = names(table, requests)

    async def once(host: str, port: int) -> list[str]:
        result = list(await resolve(host, port))
        table["files.local"] = ["10.9.9.9"]
        return result

    policy = TransportPolicy(allow=(f"127.0.0.1:{site.port}",))
    assert fetch(f"http://files.local:{site.port}/a", tmp_path, policy, resolve=once) == WAV
    assert requests == ["files.local"]
    assert site.asked[0][1] == f"files.local:{site.port}"


def test_redirects_are_checked_like_the_first_url(
    subtests: pytest.Subtests, site: Site, tmp_path: Path
) -> None:
    for location, code in [
        ("http://169.254.169.254/latest/meta-data/", TransportCode.URL_NOT_ALLOWED),
        ("http://[::ffff:10.0.0.1]/", TransportCode.URL_NOT_ALLOWED),
        ("//0.0.0.0/x", TransportCode.URL_NOT_ALLOWED),
        ("file:///etc/passwd", TransportCode.URL_INVALID),
        ("http://2130706433/", TransportCode.URL_INVALID),
        ("/loop", TransportCode.URL_TOO_MANY_REDIRECTS),
    ]:
        with subtests.test(location=location, code=code):
            site.answer("/go", b"", 302, Location=location)
            site.answer("/loop", b"", 307, Location="/loop")
            assert refusal(site, "/go", tmp_path) is code


def test_allowed_redirect_is_followed(site: Site, tmp_path: Path) -> None:
    site.answer("/go", b"", 301, Location="/there/../a")
    site.answer("/a", WAV)
    assert fetch(site.url("/go"), tmp_path, site.policy) == WAV


def test_error_status_is_rejected(subtests: pytest.Subtests, site: Site, tmp_path: Path) -> None:
    for status in [204, 206, 401, 404, 500, 503]:
        with subtests.test(status=status):
            site.answer("/a", b"" if status == 204 else WAV, status)
            assert refusal(site, "/a", tmp_path) is TransportCode.URL_BAD_STATUS


def test_too_large_file_is_rejected(site: Site, tmp_path: Path) -> None:
    site.answer("/announced", WAV, Content_Length="9999999")
    site.answer("/honest", WAV + bytes(6000))
    assert refusal(site, "/announced", tmp_path) is TransportCode.URL_TOO_LARGE
    assert refusal(site, "/honest", tmp_path) is TransportCode.URL_TOO_LARGE

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(WAV)
        while True:
            handler.wfile.write(bytes(1000))

    site.pages["/endless"] = endless
    assert refusal(site, "/endless", tmp_path) is TransportCode.URL_TOO_LARGE


def test_compressed_response_is_not_unpacked(site: Site, tmp_path: Path) -> None:
    site.answer("/bomb", gzip.compress(WAV + bytes(10**6)), Content_Encoding="gzip")
    assert refusal(site, "/bomb", tmp_path) is TransportCode.URL_WRONG_TYPE


def test_slow_and_broken_servers_are_given_up(site: Site, tmp_path: Path) -> None:
    def stalls(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "4000")
        handler.end_headers()
        handler.wfile.write(WAV)
        handler.wfile.flush()
        site.release.wait(30)

    def stops(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "4000")
        handler.end_headers()
        handler.wfile.write(WAV)

    site.pages |= {"/stalls": stalls, "/stops": stops}
    assert refusal(site, "/stalls", tmp_path) is TransportCode.URL_TIMEOUT
    assert refusal(site, "/stops", tmp_path) is TransportCode.URL_UNREACHABLE
    site.answer("/headers", WAV, **{f"X_{number}": "x" * 1000 for number in range(200)})
    assert refusal(site, "/headers", tmp_path) is TransportCode.URL_UNREACHABLE
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(TransportError) as error:
            fetch(f"http://127.0.0.1:{port}/a", tmp_path, TransportPolicy(allow=("127.0.0.1",)))
    assert error.value.code is TransportCode.URL_UNREACHABLE
    with pytest.raises(TransportError) as unknown:
        fetch("http://nobody.example/a", tmp_path, TransportPolicy(), resolve=names({}))
    assert unknown.value.code is TransportCode.URL_UNREACHABLE


def test_content_that_is_no_media_is_rejected(subtests: pytest.Subtests, site: Site, tmp_path: Path) -> None:
    for content in [
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"#EXTM3U\nhttp://10.0.0.1/\n",
        b"<html></html>",
        b"",
        b"<?xml version='1.0'?><svg/>",
        b"\x7fELF" + bytes(99),
        b"PK\x03\x04" + bytes(99),
        MP4[:6],
        b"\xff",
    ]:
        with subtests.test(content=content):
            site.answer("/a.mp4", content, Content_Type="video/mp4")
            assert refusal(site, "/a.mp4", tmp_path, MediaKind.VIDEO) is TransportCode.URL_WRONG_TYPE


def test_audio_is_rejected_as_image(site: Site, tmp_path: Path) -> None:
    site.answer("/a", WAV)
    assert refusal(site, "/a", tmp_path, MediaKind.VIDEO) is TransportCode.URL_WRONG_TYPE
    assert refusal(site, "/a", tmp_path, MediaKind.IMAGE) is TransportCode.URL_WRONG_TYPE


def test_real_media_files_are_recognised(ffmpeg: Callable[..., None], tmp_path: Path) -> None:
    tone = ("-f", "lavfi", "-i", "sine=d=0.2")
    bars = ("-f", "lavfi", "-i", "testsrc2=s=64x64:d=0.2")
    for suffix, source in {
        "mp4": bars, "mov": bars, "mkv": bars, "wav": tone, "m4a": tone, "flac": tone, "mp3": tone,
        "aac": tone, "aiff": tone, "avi": bars, "wmv": bars, "flv": bars,
        "ogg": (*tone, "-c:a", "flac"), "png": (*bars, "-frames:v", 1), "jpg": (*bars, "-frames:v", 1),
    }.items():  # fmt: skip
        path = tmp_path / f"a.{suffix}"
        ffmpeg(*source, path)
        result = sniff(path.read_bytes()[:4096])
        assert result is not None, suffix
        assert result.suffix == suffix
    raw = tmp_path / "bare.mp3"
    ffmpeg(*tone, "-write_id3v2", 0, "-id3v2_version", 0, "-write_xing", 0, raw)
    assert sniff(raw.read_bytes()) is not None


# --- webhooks ---


def test_webhooks_follow_no_redirect_and_read_little(site: Site) -> None:
    site.answer("/moved", b"", 302, Location=site.url("/elsewhere"))
    site.answer("/chatty", bytes(10**6))

    async def send(url: str) -> int:
        async with Transport(site.policy) as transport:
            return (await transport.post_webhook(url, b"{}", {"webhook-id": "1"})).status

    assert asyncio.run(send(site.url("/moved"))) == 302
    assert asyncio.run(send(site.url("/chatty"))) == 200
    assert [path for path, _ in site.asked] == ["/moved", "/chatty"]
    with pytest.raises(TransportError, match="not public"):
        asyncio.run(send("http://127.0.0.1:1/"))
