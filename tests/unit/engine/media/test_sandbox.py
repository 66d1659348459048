"""The sandbox of FFmpeg: no network, no other files, no other processes. Real processes that try."""

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
from lipsync_engine.media.sandbox import file_rules, sandboxed
from lipsync_engine.media.sandbox_exec import SYSTEM_PATHS

Ffmpeg = Callable[..., None]

STATUS = media.check_sandbox()
needs_files = pytest.mark.skipif(not STATUS.blocks_files, reason=STATUS.describe())
needs_network = pytest.mark.skipif(not STATUS.blocks_network, reason=STATUS.describe())

ESCAPE_SCRIPT = """
import ctypes, json, os, socket, sys
inside, writable, outside, victim = sys.argv[1:]
def fails(action):
    try:
        action()
    except OSError as error:
        return error.errno
    return None
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
def run_thread():
    import threading
    threading.Thread(target=int).start()
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
    "pidfd_open": fails(lambda: call(434, int(victim), 0)),
    "pidfd_getfd": fails(lambda: call(438, 0, 0, 0)),
    "clone3": fails(lambda: call(435, None, 0)),
    "clone into a namespace": fails(
        lambda: call(56 if os.uname().machine == "x86_64" else 220, 0x10000000 | 17, 0, 0, 0, 0)
    ),
    "thread": fails(run_thread),
    "namespace": fails(lambda: call(272 if os.uname().machine == "x86_64" else 97, 0x10000000)),
}))
"""


@pytest.fixture(scope="module")
def escape_errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the errno of each attempt of a process to leave the sandbox; None where it succeeded."""
    folder = tmp_path_factory.mktemp("sandbox")
    inside, writable, outside = folder / "inside", folder / "writable", folder / "outside"
    inside.write_text("own")
    outside.write_text("another's")
    outside.chmod(0o755)
    rules = [
        *(f"r{path}" for path in (*SYSTEM_PATHS, sys.base_prefix, sys.prefix, "/proc", inside)),
        f"w{writable}",
    ]
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        ESCAPE_SCRIPT,
        *map(str, (inside, writable, outside, os.getpid())),
    ]
    result = subprocess.run(
        sandboxed(command, rules), capture_output=True, text=True, timeout=30, check=False
    )
    assert result.returncode == 0, result.stderr
    assert outside.read_text() == "another's"
    return dict(json.loads(result.stdout))


@needs_files
def test_process_opens_only_its_inputs_and_output(escape_errors: dict[str, Any]) -> None:
    assert (escape_errors["read inside"], escape_errors["write output"]) == (None, None)
    rejection = (
        "write inside",
        "read outside",
        "write outside",
        "make another",
        "list",
        "delete",
        "run a program",
    )
    assert {name: escape_errors[name] for name in rejection} == dict.fromkeys(rejection, 13)


@needs_network
def test_process_opens_no_sockets_and_gains_no_privileges(escape_errors: dict[str, Any]) -> None:
    rejection = (
        "inet",
        "inet6",
        "unix",
        "pair",
        "netlink",
        "io_uring",
        "namespace",
        "pidfd_open",
        "pidfd_getfd",
    )
    rejection += ("clone into a namespace",)
    assert {name: escape_errors[name] for name in rejection} == dict.fromkeys(rejection, 13)
    assert (escape_errors["clone3"], escape_errors["thread"]) == (38, None)
    assert (escape_errors["no new privileges"], escape_errors["filter"]) == ("1", "2")


@needs_files
def test_process_cannot_signal_others(escape_errors: dict[str, Any]) -> None:
    if escape_errors["signal"] is None:
        pytest.skip("this kernel's Landlock does not scope signals (Linux 6.12 does)")
    assert escape_errors["signal"] == 1


def run_ffmpeg(stream: Any) -> tuple[int, str]:
    with process.FfmpegProcess(stream) as child:
        return child.finish(20), child.messages


@needs_files
def test_ffmpeg_opens_no_other_file(clip: Path, tmp_path: Path) -> None:
    """A filter opens it, as a hostile file could."""
    inner = builder.output(builder.input(f"movie={clip}", format="lavfi"), "-", format="null")
    status, messages = run_ffmpeg(inner)
    assert status != 0
    assert "Permission denied" in messages
    own = builder.output(process.untrusted_input(clip, process.VIDEO_FORMATS)["V:0"], "-", format="null")
    assert run_ffmpeg(own) == (0, "")


@needs_files
def test_ffmpeg_writes_no_other_file(clip: Path, tmp_path: Path) -> None:
    source = process.untrusted_input(clip, process.VIDEO_FORMATS)["V:0"]
    named, other = tmp_path / "named.mp4", tmp_path / "other.mp4"
    assert run_ffmpeg(builder.output(source, process.file_url(named), c="copy"))[0] == 0
    assert media.probe_video(named)
    status, messages = run_ffmpeg(builder.output(source, str(other), c="copy"))
    assert status != 0
    assert "Permission denied" in messages
    assert not other.exists()


@needs_network
def test_ffmpeg_reaches_no_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        status, messages = run_ffmpeg(builder.output(builder.input(url, format="mpegts"), "-", format="null"))
        assert status != 0
        assert "Permission denied" in messages
        listening.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listening.accept()


def test_file_rules_contain_the_files_of_a_command(tmp_path: Path) -> None:
    listing = tmp_path / "list"
    listing.mkdir()
    (listing / "0.mp4").symlink_to("/elsewhere/a.mp4")
    command = [
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
    rules = file_rules([*command, "-c", "copy", "file:/out/c.mp4"])
    own = [rule for rule in rules if rule[1:] not in SYSTEM_PATHS]
    assert {f"r{listing}/0.mp4", "r/in/b.mp4", "w/out/c.mp4"} <= set(own)
    assert not {f"r{listing}", "r/in", "w/out", "w/in/b.mp4", "r/"} & set(own)


VERIFICATION_ESCAPE = """
import os, socket, sys
def fails(action):
    try:
        action()
    except OSError as error:
        return error.errno
print([
    fails(lambda: open(sys.argv[1]).close()), fails(lambda: open(sys.argv[2]).close()),
    fails(lambda: open(f"/proc/{sys.argv[3]}/mem", "r+b").close()), fails(socket.socket),
    sorted(name for name in os.environ if "SECRET" in name),
])
"""


@needs_network
@needs_files
def test_verification_process_reads_its_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from server.workers.cli_child import CliChild, _limited_command, file_rules

    own, other = tmp_path / "own", tmp_path / "signing.key"
    own.touch()
    other.touch()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    result = subprocess.run(
        _limited_command(
            "-I", "-c", VERIFICATION_ESCAPE, str(own), str(other), str(os.getpid()), rules=file_rules([own])
        ),
        env=CliChild({})._environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.stdout.strip() == "[None, 13, 13, 13, []]", result.stderr
