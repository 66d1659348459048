"""FFmpeg processes: resource limits, stall detection, no orphans. Real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import ffmpeg as builder
import numpy as np
import pytest

from lipsync_engine import media
from lipsync_engine.errors import ErrorCode, LipSyncError
from lipsync_engine.media import process
from lipsync_engine.media.yuv import Frame
from lipsync_engine.params import Quality

Ffmpeg = Callable[..., None]

ENDLESS = "testsrc2=s=320x240:r=25"


@pytest.fixture
def clip(tmp_path: Path, ffmpeg: Ffmpeg) -> Path:
    """Large enough that a decoder cannot run to its end into a pipe's buffer."""
    path = tmp_path / "clip.mp4"
    ffmpeg("-f", "lavfi", "-i", ENDLESS, "-t", 4, "-preset", "ultrafast", path)
    return path


def children_of(text: Path) -> list[int]:
    """Return the running FFmpeg processes whose command line contains `text`."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
                zombie = b") Z " in (entry / "stat").read_bytes()
            except OSError:
                continue
            if str(text).encode() in command and b"ffmpeg" in command.split(b"\0")[0] and not zombie:
                pids.append(int(entry.name))
    return pids


def wait_until(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    limit = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < limit, f"condition not met within {limit_s} s"
        os.sched_yield()


@pytest.fixture
def fake_ffmpeg(tmp_path: Path, replace_ffmpeg: Callable[[Path], None]) -> Callable[[str], None]:
    """A program in the place of FFmpeg; `$REAL` is the real one."""

    def fake(body: str) -> None:
        program = tmp_path / "fake-ffmpeg"
        program.write_text(f'#!/bin/sh\nREAL="{media.find_ffmpeg()}"\n{body}\n')
        program.chmod(0o755)
        replace_ffmpeg(program)

    return fake


# --- no orphans ---


def test_close_ends_the_decoder(clip: Path, tmp_path: Path) -> None:
    info = media.probe_video(clip)
    scan = media.scan_frames(info, 320)
    next(scan)
    assert len(children_of(tmp_path)) == 1
    scan.close()
    assert children_of(tmp_path) == []

    with media.FrameReader(info, np.arange(100) / 25) as reader:
        frames = reader.read(range(100))
        next(frames)
        frames.close()
        assert len(children_of(tmp_path)) == 1  # kept for a later read
    assert children_of(tmp_path) == []

    def interrupted() -> None:
        with media.FrameReader(info, np.arange(100) / 25) as reader:
            next(reader.read(range(100)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert children_of(tmp_path) == []


def test_exception_ends_the_encoder_and_removes_its_file(clip: Path, tmp_path: Path) -> None:
    info = media.probe_video(clip)
    path = tmp_path / "segment.mp4"
    frame = Frame.from_bytes(info.format, bytes(info.format.frame_bytes))

    def interrupted() -> None:
        with media.SegmentWriter(path, info, Fraction(25), Quality.DEFAULT) as writer:
            for _ in range(60):
                writer.write(frame)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not path.exists()
    assert children_of(tmp_path) == []


PARENT = """
import signal, sys, numpy as np, ffmpeg, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits "ignore"
from fractions import Fraction
from pathlib import Path
from lipsync_engine import media
from lipsync_engine.media.yuv import Frame
from lipsync_engine.media import process
from lipsync_engine.params import Quality
clip, folder, role = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
info = media.probe_video(clip)
if role == "decoder":
    frames = media.FrameReader(info, np.arange(100) / 25).read(range(100))
    next(frames)
elif role == "encoder":
    writer = media.SegmentWriter(folder / "segment.mp4", info, Fraction(25), Quality.DEFAULT)
    writer.write(Frame.from_bytes(info.format, bytes(info.format.frame_bytes)))
else:  # reads and writes files only: no pipe closes when the parent dies
    endless = ffmpeg.input("testsrc2=s=320x240:r=25", format="lavfi", re=None)
    stream = ffmpeg.output(endless, process.file_url(folder / "long.mp4"), t=600)
    threading.Thread(target=process.write_file, args=(stream, folder / "long.mp4", ""), daemon=True).start()
    while not (folder / "long.mp4").exists():
        pass
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG exists on Linux only")
@pytest.mark.parametrize("role", ["decoder", "encoder", "file to file"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_ffmpeg_dies_with_its_parent(role: str, number: signal.Signals, clip: Path, tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(clip), str(tmp_path), role],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        wait_until(lambda: len(children_of(tmp_path)) == 1)
        parent.send_signal(number)
        parent.wait(10)
        wait_until(lambda: children_of(tmp_path) == [])


def test_ffmpeg_outlives_the_thread_that_started_it(clip: Path) -> None:
    """Linux ends children with the thread that started them: that must not be the caller's."""
    frames = media.scan_frames(media.probe_video(clip), 320)
    thread = threading.Thread(target=next, args=(frames,))
    thread.start()
    thread.join()
    assert len(list(frames)) == 99


# --- limits ---


def test_resource_limits_apply_to_ffmpeg(clip: Path) -> None:
    stream = process.untrusted_input(clip, process.VIDEO_FORMATS)["V:0"]
    raw = builder.output(stream, "pipe:1", format="rawvideo")
    with process.FfmpegProcess(raw, pipe_stdout=True, memory_bytes=3 << 30, cpu_s=77) as child:
        child.read(100)
        limits = Path(f"/proc/{child._process.pid}/limits").read_text()
        assert os.getsid(child._process.pid) == child._process.pid
    rows = {line[:26].strip(): line[26:].split()[:2] for line in limits.splitlines()}
    assert rows["Max address space"] == [str(3 << 30)] * 2
    assert rows["Max cpu time"] == ["77", "77"]
    assert rows["Max core file size"] == ["0", "0"]


def test_every_untrusted_input_has_whitelists(
    clip: Path, tmp_path: Path, fake_ffmpeg: Callable[[str], None]
) -> None:
    """All commands of a whole job, as the child sees them."""
    log = tmp_path / "log"
    fake_ffmpeg(f'printf "%s\\n" "$@" END >> "{log}"\nexec "$REAL" "$@"')
    info = media.probe_video(clip)
    pts_s = np.array([pts for pts, _ in media.scan_frames(info, 32)])
    part = tmp_path / "part.mp4"
    with (
        media.FrameReader(info, pts_s) as reader,
        media.SegmentWriter(part, info, Fraction(25), Quality.DEFAULT) as writer,
    ):
        for frame in reader.read(range(10, 14)):
            writer.write(frame)
    media.assemble([part], tmp_path / "out.mp4", info, Fraction(25), Quality.DEFAULT, audio=None)
    media.write_comparison(clip, tmp_path / "out.mp4", tmp_path / "both.mp4", 4)
    commands = [text.split("\n") for text in log.read_text().split("\nEND\n")[:-1]]
    inputs = 0
    for words in commands:
        assert "-nostdin" in words
        start = 0
        for position, word in enumerate(words):
            if word == "-i" and words[position + 1].startswith("file:"):
                options = words[start:position]
                assert options[options.index("-protocol_whitelist") + 1] == "file"
                allowed = options[options.index("-format_whitelist") + 1].split(",")
                assert set(allowed) <= {*process.AUDIO_FORMATS.split(","), "concat"}
                if "concat" not in allowed:
                    assert options[options.index("-max_pixels") + 1] == str(process.DEFAULT_LIMITS.max_pixels)
                inputs += 1
            if word == "-i":
                start = position + 2
    assert inputs >= 7


@pytest.mark.parametrize("operation", ["read", "write", "finish"])
def test_stalled_ffmpeg_is_killed(operation: str, tmp_path: Path, fake_ffmpeg: Callable[[str], None]) -> None:
    fake_ffmpeg(f"# {tmp_path}\nexec sleep 60")
    output = tmp_path / "output.mp4"
    stream = builder.output(builder.input("x"), process.file_url(output))
    limits = process.MediaLimits(stall_s=0.3)
    pipes = {"pipe_stdout": operation == "read", "pipe_stdin": operation == "write"}
    with process.FfmpegProcess(stream, **pipes, limits=limits) as child:
        call = {
            "read": lambda: child.read(1),
            "write": lambda: child.write(memoryview(bytes(1 << 22))),
            "finish": lambda: child.finish(watch=output),
        }[operation]
        with pytest.raises(LipSyncError) as error:
            call()
    assert error.value.code is ErrorCode.MEDIA_TIMEOUT
    assert children_of(tmp_path) == []


def test_endless_stderr_takes_bounded_memory(clip: Path, fake_ffmpeg: Callable[[str], None]) -> None:
    line = 'echo "[error] line $i of many, all of them long enough" >&2'
    chatter = f"i=0; while [ $i -lt 3000 ]; do {line}; i=$((i+1)); done"
    fake_ffmpeg(f"{chatter}\nhead -c 300000 /dev/zero | tr '\\0' x >&2\nexit 3")
    with process.FfmpegProcess(builder.output(builder.input("x"), "-", format="null")) as child:
        error = child.to_error(child.finish(), "It failed ({reason}).")
        assert len(child.messages) < 200_000
    assert error is not None
    assert error.code is ErrorCode.MEDIA_FAILED
    assert error.message == "It failed (line 0 of many, all of them long enough)."


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (
            'echo "[error] av_interleaved_write_frame(): No space left on device" >&2; exit 1',
            ErrorCode.DISK_FULL,
        ),
        ("kill -XCPU $$", ErrorCode.MEDIA_TIMEOUT),
        ("kill -KILL $$", ErrorCode.OUT_OF_MEMORY),
        ('echo "[error] Cannot allocate memory" >&2; exit 1', ErrorCode.OUT_OF_MEMORY),
        ("exit 1", ErrorCode.MEDIA_FAILED),
    ],
)
def test_exit_status_maps_to_error_code(
    body: str, code: ErrorCode, tmp_path: Path, fake_ffmpeg: Callable[[str], None]
) -> None:
    fake_ffmpeg(body)
    output = tmp_path / "x.mp4"
    output.touch()
    with pytest.raises(LipSyncError) as error:
        process.write_file(
            builder.output(builder.input("x"), process.file_url(output)), output, "No ({reason})."
        )
    assert error.value.code is code
    assert not output.exists()


def test_broken_ffmpeg_is_reported_as_missing(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken-ffmpeg"
    broken.write_bytes(b"\x7fELF and no more")
    broken.chmod(0o755)
    monkeypatch.setenv("LIPSYNC_FFMPEG", str(broken))
    with pytest.raises(LipSyncError) as error:
        process.write_file(
            builder.output(builder.input("x"), process.file_url(tmp_path / "y.mp4")),
            tmp_path / "y.mp4",
            "{reason}",
        )
    assert error.value.code is ErrorCode.FFMPEG_MISSING


def test_find_ffmpeg_prefers_setting_then_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = media.find_ffmpeg()
    (tmp_path / "ffmpeg").symlink_to(real)
    monkeypatch.delenv("LIPSYNC_FFMPEG", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert media.find_ffmpeg() == tmp_path / "ffmpeg"
    monkeypatch.setenv("PATH", "/nowhere")
    assert "imageio_ffmpeg" in str(media.find_ffmpeg())
    monkeypatch.setenv("LIPSYNC_FFMPEG", str(tmp_path / "ffmpeg"))
    assert media.find_ffmpeg() == tmp_path / "ffmpeg"
    assert media.ffmpeg_version().startswith("ffmpeg version")


def test_ffmpeg_gets_no_secret_of_the_environment(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    stream = builder.output(process.untrusted_input(clip, process.VIDEO_FORMATS), "pipe:1", format="rawvideo")
    with process.FfmpegProcess(stream):
        wait_until(lambda: children_of(clip) != [])
        (pid,) = children_of(clip)
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    names = {entry.split(b"=")[0].decode() for entry in environment.split(b"\0") if entry}
    assert names <= {*process.ENVIRONMENT, "MALLOC_ARENA_MAX"}
    assert "PATH" in names
