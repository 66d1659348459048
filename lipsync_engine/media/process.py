"""FFmpeg as a child process: found, limited, watched, and never left behind.

Every file from outside is opened with a list of allowed protocols and formats, a pixel limit, resource limits
on the process, a session of its own, and a timer for the moment when it no longer moves. It knows no video.
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import ffmpeg

from lipsync_engine.errors import ErrorCode, LipSyncError, MediaError, ResourceError
from lipsync_engine.media.sandbox import fence, launched
from lipsync_engine.media.sandbox_exec import NOT_STARTED


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """What a file from outside may cost.

    Attributes:
        max_pixels: of one picture (8K).
        max_duration_s: of video or audio.
        memory_bytes: address space of a child that reads it.
        probe_cpu_s, probe_wall_s: of a look at it.
        stall_s: a child that neither takes nor gives data this long is stopped.
    """

    max_pixels: int = 7680 * 4320
    max_duration_s: float = 6 * 3600.0
    memory_bytes: int = 6 * 2**30
    probe_cpu_s: int = 20
    probe_wall_s: float = 30.0
    stall_s: float = 60.0

    def work_cpu_s(self, duration_s: float) -> int:
        """CPU seconds for reading a whole file: far above the slowest honest decode, but not for ever."""
        return round(600 + 300 * min(duration_s, self.max_duration_s))


LIMITS = MediaLimits()

VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm"
IMAGE_FORMATS = "png_pipe,jpeg_pipe,webp_pipe,bmp_pipe"
AUDIO_FORMATS = f"{VIDEO_FORMATS},wav,w64,aiff,caf,mp3,aac,flac,ogg,amr"

PIPE_BYTES = 1 << 20
"""A frame crosses the pipe in a few steps instead of dozens (Linux; elsewhere the system's own size)."""

_KEPT_LINES, _LINE_BYTES = 40, 4096

_NO_SPACE = ("No space left on device", "Disk quota exceeded", "File too large")
_NOT_WRITABLE = ("Permission denied", "Read-only file system", "Is a directory", "No such file")
_CONSEQUENCES = (
    "Error opening",
    "Error submitting",
    "Error sending",
    "Task finished",
    "Terminating",
    "Conversion",
)


def find_ffmpeg() -> Path:
    """The program: LIPSYNC_FFMPEG, else `ffmpeg` on PATH, else the one that imageio-ffmpeg ships.

    Raises:
        ResourceError: FFMPEG_MISSING.
    """
    if given := os.environ.get("LIPSYNC_FFMPEG"):
        if (found := shutil.which(given)) is None:
            raise ResourceError(
                ErrorCode.FFMPEG_MISSING,
                "LIPSYNC_FFMPEG does not name a program that can run: correct it.",
            )
        return Path(found).absolute()
    if (found := shutil.which("ffmpeg")) is not None:
        return Path(found).absolute()
    import imageio_ffmpeg

    try:
        return Path(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise ResourceError(
            ErrorCode.FFMPEG_MISSING, "No FFmpeg was found: install it, or set LIPSYNC_FFMPEG to its path."
        ) from error


def ffmpeg_version() -> str:
    """First line of `ffmpeg -version`, without the copyright."""
    return ask("-version").split(" Copyright")[0].strip()


@functools.cache
def ask(question: str) -> str:
    """What FFmpeg answers about itself, e.g. to `-pix_fmts`."""
    done = subprocess.run(
        [find_ffmpeg(), "-hide_banner", "-nostdin", question],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.stdout


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
    return f"file:{path.absolute()}"


CUT_OFF = ("partial file", "File ended prematurely", "Truncating packet", "moov atom not found")
"""How FFmpeg's demuxers say that a file ends before its own index or element does."""


class Child:
    """One FFmpeg process.

    Args:
        stream: built by ffmpeg-python.
        reads, writes: whether the caller takes its standard output and feeds its standard input.
        memory_bytes, cpu_s: limits; memory as LIMITS says unless given, 0 = none where its input is our own.
        on_line: called with every line of its messages, from a thread.
    """

    def __init__(
        self,
        stream: Any,
        *,
        reads: bool = False,
        writes: bool = False,
        memory_bytes: int | None = None,
        cpu_s: int = 0,
        loglevel: str = "error",
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        general = ["-hide_banner", "-nostats", "-nostdin", "-loglevel", f"level+{loglevel}"]
        arguments = ffmpeg.get_args(stream, overwrite_output=True)
        self._names = {url: Path(url).name for url in arguments if url.startswith("file:")}
        self._first: list[str] = []
        self._last: deque[str] = deque(maxlen=_KEPT_LINES)
        self._on_line = on_line
        memory_bytes = LIMITS.memory_bytes if memory_bytes is None else memory_bytes
        self._process = _spawn([str(find_ffmpeg()), *general, *arguments], reads, writes, memory_bytes, cpu_s)
        self._selector = selectors.DefaultSelector()
        self._listener = threading.Thread(target=self._listen, name="ffmpeg-messages", daemon=True)
        try:
            self._listener.start()
            if self._process.stdout is not None:
                _widen(self._process.stdout)
                self._selector.register(self._process.stdout, selectors.EVENT_READ)
            if self._process.stdin is not None:
                _widen(self._process.stdin)
                os.set_blocking(self._process.stdin.fileno(), False)
                self._selector.register(self._process.stdin, selectors.EVENT_WRITE)
        except BaseException:
            self.kill()
            raise

    def _listen(self) -> None:
        stderr = self._process.stderr
        while stderr is not None and (raw := stderr.readline(_LINE_BYTES)):
            line = raw.decode(errors="replace").rstrip()
            if self._on_line is not None:
                self._on_line(line)
            # showinfo writes its lines in pieces: another thread's complaint may stand in the middle of one.
            if "[Parsed_" not in line or any(text in line for text in CUT_OFF):
                (self._first if len(self._first) < _KEPT_LINES else self._last).append(line)

    @property
    def messages(self) -> str:
        """Its first and last lines, once it has ended; paths are reduced to names."""
        self._listener.join(timeout=5)
        text = "\n".join((*self._first, *self._last))
        for url, name in self._names.items():
            text = text.replace(url, name).replace(url.removeprefix("file:"), name)
        return text

    def read(self, size: int) -> bytearray | None:
        """Exactly `size` bytes, or None when less than that came before the end.

        Raises:
            MediaError: MEDIA_TIMEOUT when nothing comes for `stall_s`.
        """
        buffer = bytearray(size)
        view = memoryview(buffer)
        got = 0
        while got < size:
            count = os.readv(self._ready(), [view[got:]])
            if count == 0:
                return None
            got += count
        return buffer

    def read_some(self, size: int) -> bytes:
        """Up to `size` bytes; empty at the end."""
        return os.read(self._ready(), size)

    def write(self, data: memoryview) -> None:
        """All of `data`.

        Raises:
            BrokenPipeError: the child has ended; `failure` says why.
            MediaError: MEDIA_TIMEOUT when it takes nothing for `stall_s`.
        """
        view = data.cast("B")
        sent = 0
        while sent < len(view):
            with suppress(BlockingIOError):
                sent += os.write(self._ready(), view[sent:])

    def _ready(self) -> int:
        ready = self._selector.select(LIMITS.stall_s)
        if not ready:
            raise self._stalled()
        return ready[0][0].fd

    def _stalled(self) -> MediaError:
        self.kill()
        return MediaError(
            ErrorCode.MEDIA_TIMEOUT,
            f"FFmpeg stood still for {LIMITS.stall_s:.0f} s: the file is damaged, or the disk hangs.",
        )

    def finish(self, timeout_s: float | None = None, watch: Path | None = None) -> int:
        """Close its input and wait for its end.

        Args:
            timeout_s: how long it may take [stall_s]; with `watch`, how long that file may stay unchanged.
            watch: the file that it writes.

        Returns:
            Its exit status; negative: the signal that ended it.

        Raises:
            MediaError: MEDIA_TIMEOUT.
        """
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._selector.unregister(self._process.stdin)
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        timeout_s = LIMITS.stall_s if timeout_s is None else timeout_s
        limit, seen = time.monotonic() + timeout_s, _state(watch)
        while True:
            try:
                return self._process.wait(min(1.0, timeout_s))
            except subprocess.TimeoutExpired:
                if (now := _state(watch)) != seen:
                    limit, seen = time.monotonic() + timeout_s, now
                if time.monotonic() > limit:
                    raise self._stalled() from None

    def failure(self, status: int, sentence: str) -> LipSyncError | None:
        """The error that an exit status means; None for success.

        Args:
            status: from `finish`.
            sentence: for MEDIA_FAILED; "{reason}" stands for FFmpeg's own words.
        """
        if status == 0:
            return None
        messages = self.messages
        if any(text in messages for text in _NO_SPACE) or status == -signal.SIGXFSZ:
            return ResourceError(
                ErrorCode.DISK_FULL,
                "The disk of the result, or that of LIPSYNC_CACHE_DIR, is full: free some space, or name a "
                "larger one; run again then.",
            )
        if status == NOT_STARTED:
            return ResourceError(
                ErrorCode.FFMPEG_MISSING,
                f"FFmpeg could not be started ({last_words(messages)}): install it, or set LIPSYNC_FFMPEG.",
            )
        if "Cannot allocate memory" in messages or status == -signal.SIGKILL:
            return ResourceError(
                ErrorCode.OUT_OF_MEMORY, "FFmpeg ran out of memory: use a smaller video or a larger machine."
            )
        if status == -signal.SIGXCPU:
            return MediaError(
                ErrorCode.MEDIA_TIMEOUT,
                "Reading the file took far too much work: re-encode it as mp4.",
            )
        return MediaError(ErrorCode.MEDIA_FAILED, sentence.format(reason=last_words(messages)))

    def kill(self) -> None:
        """End it now, whatever it does."""
        _kill(self._process)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
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


def write_file(stream: Any, output: Path, sentence: str) -> str:
    """Run a child that makes `output` from files alone; on any error nothing is left of it.

    Args:
        sentence: as for `Child.failure`.

    Returns:
        Its messages; FFmpeg counts some losses of input as success.
    """
    with removed_on_error(output), Child(stream) as child:
        error = output_failure(child, child.finish(watch=output), output, sentence)
        if error is not None:
            raise error
        return child.messages


def output_failure(child: Child, status: int, output: Path, sentence: str) -> LipSyncError | None:
    """Like `Child.failure`, knowing that `output` may not be writable."""
    error = child.failure(status, sentence)
    if isinstance(error, MediaError) and error.code is ErrorCode.MEDIA_FAILED:
        about_output = [line for line in child.messages.splitlines() if "rror opening output" in line]
        reason = next((text for text in _NOT_WRITABLE if any(text in line for line in about_output)), None)
        if reason is not None:
            return ResourceError(
                ErrorCode.OUTPUT_NOT_WRITABLE,
                f"{output.name!r} cannot be written ({reason}): choose another folder.",
            )
    return error


@contextmanager
def removed_on_error(path: Path) -> Generator[None, None, None]:
    """Whatever ends the block early, `path` is not left half written."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def last_words(messages: str) -> str:
    """What FFmpeg named as the reason: its first error that is not a consequence of another."""
    lines = [line for line in messages.splitlines() if "[error]" in line or "[fatal]" in line]
    causes = [line for line in lines if not any(text in line for text in _CONSEQUENCES)]
    for line in causes or lines:
        return re.sub(r"^(\[[^\]]*\] )+", "", line)[:200]
    return "no reason given"


def _state(path: Path | None) -> tuple[int, int] | None:
    if path is None:
        return None
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns


# --- starting and ending processes ---


def _spawn(
    command: list[str], reads: bool, writes: bool, memory_bytes: int, cpu_s: int
) -> subprocess.Popen[bytes]:
    line = launched(command, fence(command), memory_bytes=memory_bytes, cpu_s=cpu_s)
    # Few malloc arenas, so that the limit on address space measures memory and not reservations.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "4"}
    environment.pop("FFREPORT", None)  # would write logs next to the user's files

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            line,
            stdin=subprocess.PIPE if writes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if reads else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )

    started = _starter(os.getpid()).submit(start)
    try:
        return started.result()
    except BaseException:
        started.add_done_callback(_kill_started)
        raise


def _widen(pipe: IO[bytes]) -> None:
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):  # over the user's quota of pipe memory: slower, nothing else
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


@functools.cache
def _starter(pid: int) -> ThreadPoolExecutor:
    """The thread that starts children: Linux ends a child together with the thread that started it, so that
    must not be one that comes and goes. One per process, as threads do not survive a fork."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"ffmpeg-starter-{pid}")


def _kill_started(started: Future[subprocess.Popen[bytes]]) -> None:
    if not started.cancelled() and started.exception() is None:
        _kill(started.result())


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
