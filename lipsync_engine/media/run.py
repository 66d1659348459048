"""FFmpeg as a child process: found, limited, watched, and never left behind.

Every file from outside is opened with a list of allowed protocols and formats, a pixel limit, resource limits on the
process, a session of its own, and a timer for the moment when it no longer moves. It knows no video.
"""

from __future__ import annotations

import errno
import os
import resource
import selectors
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ffmpeg

from lipsync_engine.errors import ErrorCode, MediaError, ResourceError


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """What a file from outside may cost.

    Attributes:
        max_pixels: of one picture (8K).
        max_duration_s: of video or audio.
        memory_bytes: address space of an FFmpeg child.
        probe_cpu_s, probe_wall_s: of a look at a file.
        stall_s: a child that neither takes nor gives data this long is stopped.
    """

    max_pixels: int = 7680 * 4320
    max_duration_s: float = 6 * 3600.0
    memory_bytes: int = 6 * 2**30
    probe_cpu_s: int = 20
    probe_wall_s: float = 30.0
    stall_s: float = 60.0


LIMITS = MediaLimits()

VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm"
AUDIO_FORMATS = f"{VIDEO_FORMATS},wav,w64,aiff,caf,mp3,aac,flac,ogg,amr"

TAIL_LINES = 60


def find_ffmpeg() -> Path:
    """The program: LIPSYNC_FFMPEG, else `ffmpeg` on PATH, else the one that imageio-ffmpeg ships.

    Raises:
        ResourceError: FFMPEG_MISSING.
    """
    given = os.environ.get("LIPSYNC_FFMPEG")
    if given is None and (found := shutil.which("ffmpeg")) is not None:
        return Path(found)
    if given is None:
        import imageio_ffmpeg

        try:
            return Path(imageio_ffmpeg.get_ffmpeg_exe())
        except RuntimeError as error:
            raise ResourceError(
                ErrorCode.FFMPEG_MISSING, "No FFmpeg was found: install it, or set LIPSYNC_FFMPEG to its path."
            ) from error
    if not os.access(given, os.X_OK):
        raise ResourceError(ErrorCode.FFMPEG_MISSING, "LIPSYNC_FFMPEG does not name a program that can be run.")
    return Path(given)


def ffmpeg_version() -> str:
    """First line of `ffmpeg -version`, without the copyright."""
    done = subprocess.run([find_ffmpeg(), "-version"], capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.split(" Copyright")[0].strip()


def untrusted(path: Path, formats: str, **options: Any) -> Any:
    """An ffmpeg-python input for a file from outside."""
    return ffmpeg.input(
        file_url(path),
        protocol_whitelist="file",
        format_whitelist=formats,
        max_pixels=LIMITS.max_pixels,
        **options,
    )


def file_url(path: Path) -> str:
    """Absolute, so that no name can look like an option or a protocol."""
    return f"file:{path.resolve()}"


class Child:
    """One FFmpeg process.

    Args:
        stream: built by ffmpeg-python.
        reads, writes: whether the caller takes its standard output and feeds its standard input.
        cpu_s: CPU seconds that it may use; None for long work, which the stall timer watches.
        on_line: called with every line of its messages, from a thread.
    """

    def __init__(
        self,
        stream: Any,
        *,
        reads: bool = False,
        writes: bool = False,
        cpu_s: int | None = None,
        loglevel: str = "info",
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        quiet = ["-hide_banner", "-nostats", "-loglevel", loglevel, *([] if writes else ["-nostdin"])]
        self._process = subprocess.Popen(
            [str(find_ffmpeg()), *quiet, *ffmpeg.get_args(stream, overwrite_output=True)],
            stdin=subprocess.PIPE if writes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if reads else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            close_fds=True,
        )
        self._limit(cpu_s)
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._on_line = on_line
        self._listener = threading.Thread(target=self._listen, name="ffmpeg-messages", daemon=True)
        self._listener.start()
        self._selector = selectors.DefaultSelector()
        if reads and self._process.stdout is not None:
            self._selector.register(self._process.stdout, selectors.EVENT_READ)
        if writes and self._process.stdin is not None:
            os.set_blocking(self._process.stdin.fileno(), False)
            self._selector.register(self._process.stdin, selectors.EVENT_WRITE)

    def _limit(self, cpu_s: int | None) -> None:
        if not hasattr(resource, "prlimit"):  # not on every system; the other guards stay
            return
        try:
            resource.prlimit(self._process.pid, resource.RLIMIT_AS, (LIMITS.memory_bytes,) * 2)
            resource.prlimit(self._process.pid, resource.RLIMIT_CORE, (0, 0))
            if cpu_s is not None:
                resource.prlimit(self._process.pid, resource.RLIMIT_CPU, (cpu_s, cpu_s))
        except ProcessLookupError:
            return

    def _listen(self) -> None:
        if self._process.stderr is None:
            return
        for raw in self._process.stderr:
            line = raw[:4096].decode(errors="replace").rstrip()
            if self._on_line is not None:
                self._on_line(line)
            if "showinfo" not in line:
                self._tail.append(line)

    @property
    def messages(self) -> str:
        """Its last lines, once it has ended."""
        self._listener.join(timeout=5)
        return "\n".join(self._tail)

    def read(self, size: int) -> bytearray | None:
        """Exactly `size` bytes, or None at a clean end (less than `size` left counts as the end).

        Raises:
            MediaError: MEDIA_TIMEOUT when nothing comes for `stall_s`.
        """
        buffer = bytearray(size)
        view = memoryview(buffer)
        got = 0
        while got < size:
            self._wait_until_ready()
            count = os.readv(self._selector_file(), [view[got:]])
            if count == 0:
                return None
            got += count
        return buffer

    def read_some(self, size: int) -> bytes:
        """Up to `size` bytes; empty at the end."""
        self._wait_until_ready()
        return os.read(self._selector_file(), size)

    def write(self, data: bytes | memoryview) -> None:
        """All of `data`.

        Raises:
            BrokenPipeError: the child has ended; `finish` says why.
        """
        view = memoryview(data).cast("B")
        sent = 0
        while sent < len(view):
            self._wait_until_ready()
            sent += os.write(self._selector_file(), view[sent:])

    def _selector_file(self) -> int:
        return next(iter(self._selector.get_map().values())).fd

    def _wait_until_ready(self) -> None:
        if not self._selector.select(LIMITS.stall_s):
            self.kill()
            raise MediaError(
                ErrorCode.MEDIA_TIMEOUT,
                f"Decoding or encoding stood still for {LIMITS.stall_s:.0f} s: the file is damaged or the disk hangs.",
            )

    def finish(self, timeout_s: float | None = None) -> int:
        """Close its input and wait for its end.

        Returns:
            Its exit status.

        Raises:
            MediaError: MEDIA_TIMEOUT.
        """
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise MediaError(
                ErrorCode.MEDIA_TIMEOUT,
                "Looking at the file took too long: it is damaged, or made to be slow. Re-encode it first.",
            ) from None

    def kill(self) -> None:
        """End it and everything that it started, now."""
        if self._process.poll() is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass
        self._selector.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        self._listener.join(timeout=5)


def run(stream: Any, *, failed: Callable[[str], Exception], loglevel: str = "error") -> None:
    """Run a child that needs no data from us to its end.

    Args:
        failed: makes the error from its messages, unless the disk was full.
    """
    with Child(stream, loglevel=loglevel) as child:
        status = child.finish()
        messages = child.messages
    if status != 0:
        raise full_disk(messages) or failed(messages)


def full_disk(messages: str) -> ResourceError | None:
    """The error for a full disk, where the messages speak of one."""
    if os.strerror(errno.ENOSPC) in messages:
        return ResourceError(
            ErrorCode.DISK_FULL,
            "The disk is full: free some space or set LIPSYNC_CACHE_DIR to a larger one; run again then.",
        )
    return None


def last_words(messages: str) -> str:
    """The end of FFmpeg's messages in one line, without paths."""
    lines = [line.split("] ", 1)[-1] for line in messages.splitlines() if "file:" not in line and line.strip()]
    return lines[-1] if lines else "no reason given"
