"""Run FFmpeg as a child process with resource limits and stall detection.

Every file from outside is opened with a list of allowed protocols and formats and a pixel limit. The process
has resource limits, a session of its own and a stall timer, and it never outlives its parent. This module
does not interpret media.
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
from lipsync_engine.media.sandbox import file_rules, sandboxed
from lipsync_engine.media.sandbox_exec import EXIT_NOT_STARTED


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """Resources that reading one file from outside may take.

    Attributes:
        max_pixels: pixels of one frame (8K).
        max_duration_s: length of video or audio.
        memory_bytes: address space of the FFmpeg process that reads the file.
        probe_cpu_s, probe_wall_s: CPU and wall-clock time of one probe.
        stall_s: a process that neither reads nor writes data for this long is killed.
    """

    max_pixels: int = 7680 * 4320
    max_duration_s: float = 6 * 3600.0
    memory_bytes: int = 6 * 2**30
    probe_cpu_s: int = 20
    probe_wall_s: float = 30.0
    stall_s: float = 60.0

    def work_cpu_s(self, duration_s: float) -> int:
        """Return the CPU seconds for reading a whole file: far above the slowest legitimate decode."""
        return round(600 + 300 * min(duration_s, self.max_duration_s))


DEFAULT_LIMITS = MediaLimits()

VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm"
IMAGE_FORMATS = "png_pipe,jpeg_pipe,webp_pipe,bmp_pipe"
AUDIO_FORMATS = f"{VIDEO_FORMATS},wav,w64,aiff,caf,mp3,aac,flac,ogg,amr"

VIDEO_CODECS: dict[str, tuple[str, ...]] = {
    "H.264": ("h264",),
    "HEVC": ("hevc",),
    "AV1": ("libdav1d", "av1", "libaom-av1"),
    "VP9": ("vp9", "libvpx-vp9"),
    "VP8": ("vp8", "libvpx"),
    "MPEG-4": ("mpeg4",),
    "MPEG-2": ("mpeg2video",),
    "ProRes": ("prores",),
    "DNxHD": ("dnxhd",),
    "FFV1": ("ffv1",),
    "QuickTime Animation": ("qtrle",),
    "uncompressed video": ("rawvideo",),
}
"""Codecs of input videos: documented name, FFmpeg's decoders. No other decoder runs."""

IMAGE_DECODERS = ("png", "mjpeg", "webp", "bmp")

_PCM = ("u8", "s8", "s16le", "s16be", "s24le", "s24be", "s32le", "s32be", "f32le", "f32be", "f64le", "f64be")
AUDIO_DECODERS = (
    "aac", "alac", "mp3float", "mp3", "flac", "opus", "libopus", "vorbis", "libvorbis", "ac3", "eac3",
    "amrnb", "amrwb", "libopencore_amrnb", "libopencore_amrwb", "pcm_alaw", "pcm_mulaw",
    *(f"pcm_{name}" for name in _PCM),
)  # fmt: skip

_VIDEO_DECODERS = tuple(decoder for decoders in VIDEO_CODECS.values() for decoder in decoders)
_DECODERS = ",".join((*_VIDEO_DECODERS, *IMAGE_DECODERS, *AUDIO_DECODERS))

ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""Variables that an FFmpeg process gets; others may be secrets, which a taken-over decoder could publish."""

PIPE_BYTES = 1 << 20
"""Pipe size on Linux: a frame crosses in a few system calls instead of dozens."""

_MAX_STDERR_LINES, _MAX_LINE_BYTES = 40, 4096

_DISK_FULL_MESSAGES = ("No space left on device", "Disk quota exceeded", "File too large")
_NOT_WRITABLE_MESSAGES = ("Permission denied", "Read-only file system", "Is a directory", "No such file")
_FOLLOW_UP_ERRORS = (
    "Error opening",
    "Error submitting",
    "Error sending",
    "Task finished",
    "Terminating",
    "Conversion",
)


def find_ffmpeg() -> Path:
    """Locate the program: LIPSYNC_FFMPEG, else `ffmpeg` on PATH, else the binary of imageio-ffmpeg.

    Raises:
        ResourceError: FFMPEG_MISSING.
    """
    if setting := os.environ.get("LIPSYNC_FFMPEG"):
        if (program := shutil.which(setting)) is None:
            raise ResourceError(
                ErrorCode.FFMPEG_MISSING,
                "LIPSYNC_FFMPEG does not name an executable program: correct the path.",
            )
        return Path(program).absolute()
    if (program := shutil.which("ffmpeg")) is not None:
        return Path(program).absolute()
    import imageio_ffmpeg

    try:
        return Path(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise ResourceError(
            ErrorCode.FFMPEG_MISSING,
            "FFmpeg is not installed: install it, or set LIPSYNC_FFMPEG to its path.",
        ) from error


def ffmpeg_version() -> str:
    """Return the first line of `ffmpeg -version`, without the copyright."""
    return run_query("-version").split(" Copyright")[0].strip()


@functools.cache
def run_query(option: str) -> str:
    """Return what FFmpeg prints for an option about itself, e.g. `-pix_fmts`."""
    completed = subprocess.run(
        [find_ffmpeg(), "-hide_banner", "-nostdin", option],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return completed.stdout


def untrusted_input(path: Path, formats: str, *, decoders: str = _DECODERS, **options: Any) -> Any:
    """Build an ffmpeg-python input for a file from outside."""
    return ffmpeg.input(
        file_url(path),
        protocol_whitelist="file",
        format_whitelist=formats,
        codec_whitelist=decoders,
        max_pixels=DEFAULT_LIMITS.max_pixels,
        **options,
    )


def file_url(path: Path) -> str:
    """Return an absolute `file:` URL, so that no name can be read as an option or a protocol."""
    return f"file:{path.absolute()}"


TRUNCATION_MESSAGES = (
    "partial file",
    "File ended prematurely",
    "Truncating packet",
    "moov atom not found",
)
"""Messages of FFmpeg's demuxers when a file ends before its own index or element does."""


class FfmpegProcess:
    """One running FFmpeg process. A context manager that kills the process on exit.

    Args:
        stream: built by ffmpeg-python.
        pipe_stdout, pipe_stdin: whether the caller reads its standard output and writes its standard input.
        memory_bytes: limit of its address space; None: that of `limits`, 0: none (trusted input).
        cpu_s: limit of its CPU time; 0: none.
        on_line: called with every line of stderr, from a thread.
        limits: its `stall_s` and `memory_bytes` are used.
    """

    def __init__(
        self,
        stream: Any,
        *,
        pipe_stdout: bool = False,
        pipe_stdin: bool = False,
        memory_bytes: int | None = None,
        cpu_s: int = 0,
        loglevel: str = "error",
        on_line: Callable[[str], None] | None = None,
        limits: MediaLimits = DEFAULT_LIMITS,
    ) -> None:
        general = ["-hide_banner", "-nostats", "-nostdin", "-loglevel", f"level+{loglevel}"]
        arguments = ffmpeg.get_args(stream, overwrite_output=True)
        self._names = {url: Path(url).name for url in arguments if url.startswith("file:")}
        self._first_lines: list[str] = []
        self._last_lines: deque[str] = deque(maxlen=_MAX_STDERR_LINES)
        self._on_line = on_line
        self._stall_s = limits.stall_s
        memory_bytes = limits.memory_bytes if memory_bytes is None else memory_bytes
        command = [str(find_ffmpeg()), *general, *arguments]
        self._process = _spawn(command, pipe_stdout, pipe_stdin, memory_bytes, cpu_s)
        self._selector = selectors.DefaultSelector()
        self._stderr_thread = threading.Thread(target=self._read_stderr, name="ffmpeg-stderr", daemon=True)
        try:
            self._stderr_thread.start()
            if self._process.stdout is not None:
                _enlarge_pipe(self._process.stdout)
                self._selector.register(self._process.stdout, selectors.EVENT_READ)
            if self._process.stdin is not None:
                _enlarge_pipe(self._process.stdin)
                os.set_blocking(self._process.stdin.fileno(), False)
                self._selector.register(self._process.stdin, selectors.EVENT_WRITE)
        except BaseException:
            self.kill()
            raise

    def _read_stderr(self) -> None:
        stderr = self._process.stderr
        while stderr is not None and (raw := stderr.readline(_MAX_LINE_BYTES)):
            line = raw.decode(errors="replace").rstrip()
            if self._on_line is not None:
                self._on_line(line)
            # showinfo writes its lines in parts: another thread's message may interrupt one.
            if "[Parsed_" not in line or any(text in line for text in TRUNCATION_MESSAGES):
                is_first = len(self._first_lines) < _MAX_STDERR_LINES
                (self._first_lines if is_first else self._last_lines).append(line)

    @property
    def messages(self) -> str:
        """First and last lines of stderr after the process has ended; paths are reduced to file names."""
        self._stderr_thread.join(timeout=5)
        text = "\n".join((*self._first_lines, *self._last_lines))
        for url, name in self._names.items():
            text = text.replace(url, name).replace(url.removeprefix("file:"), name)
        return text

    def read(self, size: int) -> bytearray | None:
        """Read exactly `size` bytes of stdout.

        Returns:
            The bytes, or None when the output ends before.

        Raises:
            MediaError: MEDIA_TIMEOUT when nothing arrives for `stall_s`.
        """
        buffer = bytearray(size)
        view = memoryview(buffer)
        n_read = 0
        while n_read < size:
            count = os.readv(self._wait_for_pipe(), [view[n_read:]])
            if count == 0:
                return None
            n_read += count
        return buffer

    def read_some(self, size: int) -> bytes:
        """Read up to `size` bytes of stdout; empty at the end.

        Raises:
            MediaError: MEDIA_TIMEOUT when nothing arrives for `stall_s`.
        """
        return os.read(self._wait_for_pipe(), size)

    def write(self, data: memoryview) -> None:
        """Write all of `data` to stdin.

        Raises:
            BrokenPipeError: the process has ended; `to_error` returns the reason.
            MediaError: MEDIA_TIMEOUT when it reads nothing for `stall_s`.
        """
        view = data.cast("B")
        n_written = 0
        while n_written < len(view):
            with suppress(BlockingIOError):
                n_written += os.write(self._wait_for_pipe(), view[n_written:])

    def _wait_for_pipe(self) -> int:
        """Return the descriptor of the pipe once it is ready."""
        ready = self._selector.select(self._stall_s)
        if not ready:
            raise self._kill_stalled()
        return ready[0][0].fd

    def _kill_stalled(self) -> MediaError:
        self.kill()
        return MediaError(
            ErrorCode.MEDIA_TIMEOUT,
            f"FFmpeg made no progress for {self._stall_s:.0f} s: the file is damaged or the disk hangs. "
            "Re-encode the file, or use another disk.",
        )

    def finish(self, timeout_s: float | None = None, watch: Path | None = None) -> int:
        """Close stdin and wait for the process to end.

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
        timeout_s = self._stall_s if timeout_s is None else timeout_s
        deadline, last_state = time.monotonic() + timeout_s, _file_state(watch)
        while True:
            try:
                return self._process.wait(min(1.0, timeout_s))
            except subprocess.TimeoutExpired:
                if (state := _file_state(watch)) != last_state:
                    deadline, last_state = time.monotonic() + timeout_s, state
                if time.monotonic() > deadline:
                    raise self._kill_stalled() from None

    def to_error(self, status: int, message: str) -> LipSyncError | None:
        """Map an exit status to an error; None for success.

        Args:
            status: from `finish`.
            message: for MEDIA_FAILED; "{reason}" is replaced by FFmpeg's own message.
        """
        if status == 0:
            return None
        stderr = self.messages
        if any(text in stderr for text in _DISK_FULL_MESSAGES) or status == -signal.SIGXFSZ:
            return ResourceError(
                ErrorCode.DISK_FULL,
                "The disk of the result or of LIPSYNC_CACHE_DIR is full: free some space or choose a larger "
                "disk, then run again.",
            )
        if status == EXIT_NOT_STARTED:
            return ResourceError(
                ErrorCode.FFMPEG_MISSING,
                f"FFmpeg did not start ({stderr_tail(stderr)}): install it, or set LIPSYNC_FFMPEG to its "
                "path.",
            )
        if "Cannot allocate memory" in stderr or status == -signal.SIGKILL:
            return ResourceError(
                ErrorCode.OUT_OF_MEMORY, "FFmpeg ran out of memory: use a smaller video or a larger machine."
            )
        if status == -signal.SIGXCPU:
            return MediaError(
                ErrorCode.MEDIA_TIMEOUT,
                "FFmpeg exceeded its CPU limit while reading the file: re-encode it as mp4.",
            )
        return MediaError(ErrorCode.MEDIA_FAILED, message.format(reason=stderr_tail(stderr)))

    def kill(self) -> None:
        """Kill the process and close its pipes."""
        _kill_process_group(self._process)
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
        self._stderr_thread.join(timeout=5)


def write_file(stream: Any, output: Path, message: str) -> str:
    """Run FFmpeg from files to the file `output`, which is removed again on any error.

    Args:
        message: as for `FfmpegProcess.to_error`.

    Returns:
        Its messages: FFmpeg exits with 0 after some losses of input.
    """
    with remove_on_error(output), FfmpegProcess(stream) as process:
        error = to_output_error(process, process.finish(watch=output), output, message)
        if error is not None:
            raise error
        return process.messages


def to_output_error(process: FfmpegProcess, status: int, output: Path, message: str) -> LipSyncError | None:
    """Map an exit status as `FfmpegProcess.to_error`; OUTPUT_NOT_WRITABLE where `output` is the cause."""
    error = process.to_error(status, message)
    if isinstance(error, MediaError) and error.code is ErrorCode.MEDIA_FAILED:
        output_lines = [line for line in process.messages.splitlines() if "rror opening output" in line]
        reason = next(
            (text for text in _NOT_WRITABLE_MESSAGES if any(text in line for line in output_lines)), None
        )
        if reason is not None:
            return ResourceError(
                ErrorCode.OUTPUT_NOT_WRITABLE,
                f"{output.name!r} cannot be written ({reason}): choose another folder.",
            )
    return error


@contextmanager
def remove_on_error(path: Path) -> Generator[None, None, None]:
    """Remove `path` when the block ends with an exception."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def stderr_tail(messages: str) -> str:
    """Return the first error of FFmpeg's messages that is not the consequence of another."""
    lines = [line for line in messages.splitlines() if "[error]" in line or "[fatal]" in line]
    causes = [line for line in lines if not any(text in line for text in _FOLLOW_UP_ERRORS)]
    for line in causes or lines:
        return re.sub(r"^(\[[^\]]*\] )+", "", line)[:200]
    return "no reason given"


def _file_state(path: Path | None) -> tuple[int, int] | None:
    if path is None:
        return None
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns


# --- starting and ending processes ---


def _spawn(
    command: list[str], pipe_stdout: bool, pipe_stdin: bool, memory_bytes: int, cpu_s: int
) -> subprocess.Popen[bytes]:
    arguments = sandboxed(command, file_rules(command), memory_bytes=memory_bytes, cpu_s=cpu_s)
    # Few malloc arenas, so that the limit on address space measures memory and not reservations.
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    environment["MALLOC_ARENA_MAX"] = "4"

    def start_process() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE if pipe_stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipe_stdout else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )

    future = _spawn_executor(os.getpid()).submit(start_process)
    try:
        return future.result()
    except BaseException:
        future.add_done_callback(_kill_spawned)
        raise


def _enlarge_pipe(pipe: IO[bytes]) -> None:
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):  # over the user's quota of pipe memory: slower, nothing else
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


@functools.cache
def _spawn_executor(pid: int) -> ThreadPoolExecutor:
    """Return the thread that starts processes, one per process `pid`.

    Linux ends a child together with the thread that started it, so that thread must live as long as the
    process. Threads do not survive a fork, hence the key.
    """
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"ffmpeg-starter-{pid}")


def _kill_spawned(future: Future[subprocess.Popen[bytes]]) -> None:
    if not future.cancelled() and future.exception() is None:
        _kill_process_group(future.result())


def _kill_process_group(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
