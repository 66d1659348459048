"""A media child reaches no network, no other file, no other process: real children that try."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ffmpeg as builder
import pytest

from lipsync_engine import media
from lipsync_engine.media import process
from lipsync_engine.media.sandbox import SYSTEM, fence, launched

Ffmpeg = Callable[..., None]

HOLDS = media.isolation_here()
needs_files = pytest.mark.skipif(not HOLDS.only_own_files, reason=HOLDS.describe())
needs_network = pytest.mark.skipif(not HOLDS.no_network, reason=HOLDS.describe())

BURGLAR = """
import ctypes, json, os, socket, sys
inside, writable, outside, victim = sys.argv[1:]
def fails(what):
    try:
        what()
    except OSError as error:
        return error.errno
    return None
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print(json.dumps({
    "no new privileges": status["NoNewPrivs"].strip(), "filter": status["Seccomp"].strip(),
    "read inside": fails(lambda: open(inside).read()), "write inside": fails(lambda: open(inside, "w")),
    "write output": fails(lambda: open(writable, "w").write("made")),
    "read outside": fails(lambda: open(outside).read()), "write outside": fails(lambda: open(outside, "a")),
    "make another": fails(lambda: open(writable + ".more", "w")), "list": fails(lambda: os.listdir("/tmp")),
    "delete": fails(lambda: os.unlink(outside)), "run a program": fails(lambda: os.execv(outside, ["x"])),
    "inet": fails(lambda: socket.socket(socket.AF_INET)),
    "inet6": fails(lambda: socket.socket(socket.AF_INET6)),
    "unix": fails(lambda: socket.socket(socket.AF_UNIX)), "pair": fails(socket.socketpair),
    "netlink": fails(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
    "signal": fails(lambda: os.kill(int(victim), 0)),
    "io_uring": fails(lambda: call(425, 1, ctypes.create_string_buffer(200))),
    "namespace": fails(lambda: call(272 if os.uname().machine == "x86_64" else 97, 0x10000000)),
}))
"""


@pytest.fixture(scope="module")
def burgled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a child that tries everything was refused: the error's number, None where it got through."""
    folder = tmp_path_factory.mktemp("house")
    inside, writable, outside = folder / "inside", folder / "writable", folder / "outside"
    inside.write_text("own")
    outside.write_text("another's")
    outside.chmod(0o755)
    rules = [
        *(f"r{path}" for path in (*SYSTEM, sys.base_prefix, sys.prefix, "/proc", inside)),
        f"w{writable}",
    ]
    command = [sys.executable, "-I", "-S", "-c", BURGLAR, *map(str, (inside, writable, outside, os.getpid()))]
    done = subprocess.run(launched(command, rules), capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert outside.read_text() == "another's"
    return dict(json.loads(done.stdout))


@needs_files
def test_a_child_reads_its_inputs_and_writes_its_output_and_no_other_file(burgled: dict[str, Any]) -> None:
    assert (burgled["read inside"], burgled["write output"]) == (None, None)
    refused = (
        "write inside",
        "read outside",
        "write outside",
        "make another",
        "list",
        "delete",
        "run a program",
    )
    assert {name: burgled[name] for name in refused} == dict.fromkeys(refused, 13)


@needs_network
def test_a_child_opens_no_sockets_and_gains_no_privileges(burgled: dict[str, Any]) -> None:
    refused = "inet", "inet6", "unix", "pair", "netlink", "io_uring", "namespace"
    assert {name: burgled[name] for name in refused} == dict.fromkeys(refused, 13)
    assert (burgled["no new privileges"], burgled["filter"]) == ("1", "2")


@needs_files
def test_a_child_signals_nobody_outside(burgled: dict[str, Any]) -> None:
    if burgled["signal"] is None:
        pytest.skip("this kernel's Landlock knows no signals (Linux 6.12)")
    assert burgled["signal"] == 1


def words(stream: Any, **more: Any) -> tuple[int, str]:
    with process.Child(stream, **more) as child:
        return child.finish(20), child.messages


@needs_files
def test_ffmpeg_opens_no_other_film(clip: Path, tmp_path: Path) -> None:
    """As a hostile file may make it try: here a filter does."""
    inner = builder.output(builder.input(f"movie={clip}", format="lavfi"), "-", format="null")
    status, messages = words(inner)
    assert status != 0
    assert "Permission denied" in messages
    own = builder.output(process.untrusted(clip, process.VIDEO_FORMATS)["V:0"], "-", format="null")
    assert words(own) == (0, "")


@needs_files
def test_ffmpeg_writes_no_other_file(clip: Path, tmp_path: Path) -> None:
    source = process.untrusted(clip, process.VIDEO_FORMATS)["V:0"]
    named, other = tmp_path / "named.mp4", tmp_path / "other.mp4"
    assert words(builder.output(source, process.file_url(named), c="copy"))[0] == 0
    assert media.probe_video(named)
    status, messages = words(builder.output(source, str(other), c="copy"))
    assert status != 0
    assert "Permission denied" in messages
    assert not other.exists()


@needs_network
def test_ffmpeg_reaches_no_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        status, messages = words(builder.output(builder.input(url, format="mpegts"), "-", format="null"))
        assert status != 0
        assert "Permission denied" in messages
        listening.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listening.accept()


def test_the_fence_has_what_a_command_names(tmp_path: Path) -> None:
    listing = tmp_path / "list"
    listing.mkdir()
    (listing / "0.mp4").symlink_to("/elsewhere/a.mp4")
    given = [
        "/usr/bin/ffmpeg",
        "-f",
        "concat",
        "-i",
        f"file:{listing}/list.txt",
        "-f",
        "mov",
        "-i",
        "file:/in/b.mp4",
    ]
    found = fence([*given, "-c", "copy", "file:/out/c.mp4"])
    own = [rule for rule in found if rule[1:] not in SYSTEM]
    assert {f"r{listing}/0.mp4", "r/in/b.mp4", "w/out/c.mp4"} <= set(own)
    assert not {f"r{listing}", "r/in", "w/out", "w/in/b.mp4", "r/"} & set(own)


def test_a_verifying_child_opens_no_sockets() -> None:
    if not HOLDS.no_network:
        pytest.skip(HOLDS.describe())
    from server.workers.verification import _limited

    done = subprocess.run(
        _limited("-I", "-c", "import socket; socket.socket()"), capture_output=True, timeout=30, check=False
    )
    assert b"PermissionError" in done.stderr
