"""Decode frames, audio samples and images in bounded memory.

A frame is identified by its index among the frames that decode; one pass (`scan_frames`) returns their
exact times. A later read starts the decoder between two of these times and checks by the reported time that
the first frame out is the requested one, whatever the frame rate, the edit list or the group of pictures do.
"""

from __future__ import annotations

import itertools
import queue
import re
from collections.abc import Generator, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ffmpeg
import numpy as np
import numpy.typing as npt

from lipsync_engine.errors import ErrorCode, MediaError
from lipsync_engine.media.hdr import tone_map
from lipsync_engine.media.probe import VideoInfo, check_input, image_error
from lipsync_engine.media.process import (
    AUDIO_FORMATS,
    DEFAULT_LIMITS,
    IMAGE_FORMATS,
    TRUNCATION_MESSAGES,
    VIDEO_FORMATS,
    FfmpegProcess,
    stderr_tail,
    untrusted_input,
)
from lipsync_engine.media.yuv import Frame
from lipsync_engine.utils import Float64Array, ImageArray

SAMPLE_CHUNK_BYTES = 1 << 17

BACKWARD_BYTES = 192 << 20
"""Frames that are requested in reverse are decoded forward in blocks of this size: the larger the block, the
less often a group of pictures is decoded again."""

MAX_SKIPPED_FRAMES = 48
"""A gap of up to this many frames is decoded and dropped; beyond it the decoder restarts."""

SEEK_MARGINS_S = (0.0, 3.0, 30.0)
"""How long before the requested frame the decoder starts, tried in turn; then it starts with the file."""

MAX_MISSING_S, MAX_MISSING_RATIO = 0.5, 0.02
"""A file that FFmpeg reports as truncated is refused where more than the larger of the two is missing."""


def scan_frames(info: VideoInfo, max_side: int) -> Generator[tuple[float, ImageArray], None, None]:
    """Decode every frame once and in order, scaled down.

    Args:
        info: from `probe_video`.
        max_side: longest side of the frames, pixels; they are never scaled up.

    Yields:
        (seconds from the file's start, never decreasing; uint8 (h, w, 3) RGB).

    Raises:
        MediaError: MEDIA_TRUNCATED when the file ends long before its stated duration, MEDIA_TOO_LARGE,
            MEDIA_TIMEOUT, MEDIA_FAILED.
    """
    width, height = _scaled_size(info, max_side)
    stream = _to_rgb(_timed_frames(info), info, width, height, flags="bilinear")
    last_s, count = 0.0, 0
    with _FrameDecoder(info, stream, width * height * 3) as decoder:
        while (item := decoder.read_frame()) is not None:
            pts_s, data = item
            last_s = max(last_s, pts_s) if pts_s is not None else last_s + float(1 / info.frame_rate)
            if last_s > DEFAULT_LIMITS.max_duration_s:
                raise MediaError(
                    ErrorCode.MEDIA_TOO_LARGE,
                    f"{info.path.name!r} is longer than {DEFAULT_LIMITS.max_duration_s / 3600:.0f} hours: "
                    "cut it into parts.",
                )
            count += 1
            yield last_s, np.frombuffer(data, np.uint8).reshape(height, width, 3)
        decoder.finish()
        messages = decoder.messages
    end_s = last_s + float(1 / info.frame_rate)
    missing_s = info.duration_s - end_s
    is_truncated = any(text in messages for text in TRUNCATION_MESSAGES)
    if not count or (is_truncated and missing_s > max(MAX_MISSING_S, MAX_MISSING_RATIO * info.duration_s)):
        raise MediaError(
            ErrorCode.MEDIA_TRUNCATED,
            f"{info.path.name!r} ends after {end_s if count else 0:.1f} of {info.duration_s:.1f} s: "
            "it was probably not copied completely; copy it again.",
        )


def sample_frames(info: VideoInfo, times_s: Sequence[float], max_side: int) -> list[ImageArray]:
    """Decode the frames at some times, uint8 (h, w, 3) RGB.

    Args:
        info: from `probe_video`.
        times_s: from the start. Each frame has a decoder of its own, so that the cost does not grow with the
            video's length. Fewer are returned where the video does not decode that far.
        max_side: longest side of the frames, pixels.

    Raises:
        MediaError: no frame could be decoded.
    """
    frames = []
    width, height = _scaled_size(info, max_side)
    for time_s in times_s:
        stream = untrusted_input(info.path, VIDEO_FORMATS, ss=time_s)["V:0"]
        output = ffmpeg.output(
            _to_rgb(stream, info, width, height), "pipe:1", format="rawvideo", **{"frames:v": 1}
        )
        with FfmpegProcess(output, pipe_stdout=True, cpu_s=DEFAULT_LIMITS.probe_cpu_s) as process:
            data = process.read(width * height * 3)
            process.finish(DEFAULT_LIMITS.probe_wall_s)
        if data is not None:
            frames.append(np.frombuffer(data, np.uint8).reshape(height, width, 3))
    if not frames:
        raise MediaError(
            ErrorCode.MEDIA_FAILED, f"No frame of {info.path.name!r} can be decoded: re-encode it as mp4."
        )
    return frames


def _scaled_size(info: VideoInfo, max_side: int) -> tuple[int, int]:
    """Return width and height, scaled down to a longest side of `max_side`."""
    scale = min(1.0, max_side / max(info.format.width, info.format.height))
    width, height = (max(2, round(side * scale)) for side in (info.format.width, info.format.height))
    return width, height


class FrameReader:
    """Random access to frames by index. A context manager.

    Args:
        info: from `probe_video`.
        pts_s: (N,) times of all frames, as `scan_frames` yields them.
        backward_bytes: memory for frames that are requested in reverse.
    """

    def __init__(self, info: VideoInfo, pts_s: Float64Array, *, backward_bytes: int = BACKWARD_BYTES) -> None:
        self._info = info
        self._pts_s = np.asarray(pts_s, dtype=np.float64)
        self._block_frames = max(8, backward_bytes // info.format.frame_bytes)
        self._decoder: _FrameDecoder | None = None
        self._next_index = 0  # of the frame that the decoder returns next
        self._checks_times = True

    def read(self, indices: Sequence[int]) -> Generator[Frame, None, None]:
        """Yield exactly these frames; neighbours with the same index are the same object.

        Runs that go backward are decoded forward in blocks of bounded size.

        Raises:
            IndexError: an index is out of range.
            MediaError: MEDIA_FAILED when a frame of the scan does not decode again.
        """
        if indices and not 0 <= min(indices) <= max(indices) < len(self._pts_s):
            raise IndexError(f"frame indices must lie in 0..{len(self._pts_s) - 1}")
        for is_backward, run in _monotone_runs(indices):
            if not is_backward:
                yield from self._read_forward(run)
                continue
            for start in range(0, len(run), self._block_frames):
                frames = list(self._read_forward(run[start : start + self._block_frames][::-1]))
                while frames:
                    yield frames.pop()

    def close(self) -> None:
        """End the decoder."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    def _read_forward(self, indices: Sequence[int]) -> Iterator[Frame]:
        for index, repeats in itertools.groupby(indices):
            frame = Frame.from_bytes(self._info.format, self._decode(index))
            for _ in repeats:
                yield frame

    def _decode(self, index: int) -> bytearray:
        can_continue = self._next_index <= index <= self._next_index + MAX_SKIPPED_FRAMES
        if self._decoder is not None and can_continue:
            data = self._decode_until(self._decoder, index)
            if data is not None:
                return data
        for margin_s in (*SEEK_MARGINS_S, None):
            self.close()
            self._decoder = decoder = self._start_decoder(index, margin_s)
            data = self._decode_until(decoder, index)
            if data is not None:
                return data
        reason = stderr_tail(decoder.messages)
        raise MediaError(
            ErrorCode.MEDIA_FAILED,
            f"Frame {index} of {self._info.path.name!r} did not decode a second time ({reason}): re-encode "
            "the video as mp4.",
        )

    def _start_decoder(self, index: int, margin_s: float | None) -> _FrameDecoder:
        """Start a decoder at frame `index`, or at most `margin_s` before it; None: at the file's start."""
        fmt, pts_s = self._info.format, self._pts_s
        first = 0 if margin_s is None else int(np.searchsorted(pts_s, pts_s[index] - margin_s))
        seek = {} if first == 0 else {"ss": f"{(pts_s[first - 1] + pts_s[first]) / 2:.9f}"}
        self._next_index, self._checks_times = first, margin_s is not None
        same_colors = {
            f"{side}_{name}": value
            for side in ("in", "out")
            for name, value in (("range", _range(self._info)), ("color_matrix", fmt.matrix))
        }
        stream = _timed_frames(self._info, **seek)
        if self._info.hdr is not None:
            stream = tone_map(stream, self._info.hdr, fmt.width, fmt.height)
        # Leaves planes that have this format already unchanged, and keeps the size where a file changes it.
        stream = stream.filter(
            "scale", fmt.width, fmt.height, flags="bicubic+accurate_rnd+full_chroma_int", **same_colors
        ).filter("format", fmt.pix_fmt)
        return _FrameDecoder(self._info, stream, fmt.frame_bytes)

    def _decode_until(self, decoder: _FrameDecoder, index: int) -> bytearray | None:
        """Return frame `index` of a decoder at or before it; None where it returns other frames."""
        while (item := decoder.read_frame()) is not None:
            pts_s, data = item
            if self._checks_times and (pts_s is None or abs(pts_s - self._pts_s[self._next_index]) > 1e-6):
                return None
            self._next_index += 1
            if self._next_index == index + 1:
                return data
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_audio(path: Path, sample_rate: int = 16000) -> Generator[npt.NDArray[np.int16], None, None]:
    """Decode a file's first audio track to mono samples, in chunks.

    Time runs from the file's start: where the track begins later or pauses, there is silence, so that the
    samples stay aligned with the same track copied into a result.

    Raises:
        MediaError: MEDIA_NO_AUDIO when nothing can be decoded, MEDIA_TOO_LARGE, MEDIA_TIMEOUT, MEDIA_FAILED.
    """
    max_duration_s = DEFAULT_LIMITS.max_duration_s
    max_bytes = round(max_duration_s * sample_rate) * 2
    stream = ffmpeg.output(
        untrusted_input(path, AUDIO_FORMATS)["a:0"].filter(
            "aresample", sample_rate, **{"async": 1, "first_pts": 0}
        ),
        "pipe:1",
        format="s16le",
        ac=1,
    )
    rest, n_bytes = b"", 0
    cpu_s = DEFAULT_LIMITS.work_cpu_s(max_duration_s)
    with FfmpegProcess(stream, pipe_stdout=True, cpu_s=cpu_s) as process:
        while data := process.read_some(SAMPLE_CHUNK_BYTES):
            n_bytes += len(data)
            if n_bytes > max_bytes:
                raise MediaError(
                    ErrorCode.MEDIA_TOO_LARGE,
                    f"{path.name!r} is longer than {max_duration_s / 3600:.0f} hours: cut it into parts.",
                )
            data = rest + data
            whole = len(data) // 2 * 2
            rest = data[whole:]
            if whole:
                yield np.frombuffer(data[:whole], "<i2")
        error = process.to_error(
            process.finish(), f"The audio of {path.name!r} cannot be decoded ({{reason}}): re-encode it."
        )
        reason = stderr_tail(process.messages)
    if n_bytes < 2:
        raise MediaError(
            ErrorCode.MEDIA_NO_AUDIO,
            f"No audio of {path.name!r} can be decoded ({reason}): give another file.",
        )
    if error is not None:
        raise error


def read_image(path: Path, max_short_side: int | None = None) -> ImageArray:
    """Decode an image as uint8 (H, W, 3) RGB with even sides, upright, on white where it is transparent.

    Args:
        max_short_side: a larger image is scaled down to this short side, pixels.

    Raises:
        InputError, MediaError: it is no PNG, JPEG, WebP or BMP image, or too large.
    """
    check_input(path)
    max_side = max_short_side or 8192
    scale = f"min(1,{max_side}/min(iw,ih))"
    width, height = (f"2*max(1,round({side}*{scale}/2))" for side in ("iw", "ih"))
    image = _image_stream(path).filter("format", "rgba")
    layers = image.filter_multi_output("split")
    white = layers[0].filter("drawbox", color="white", thickness="fill", replace=1)
    flat = ffmpeg.filter((white, layers[1]), "overlay", format="auto")
    stream = ffmpeg.output(
        flat.filter("scale", width, height, flags="bicubic").filter("format", "rgb24"),
        "pipe:1",
        format="image2pipe",
        vcodec="ppm",
        **{"frames:v": 1},
    )
    data = bytearray()
    with FfmpegProcess(stream, pipe_stdout=True, cpu_s=DEFAULT_LIMITS.probe_cpu_s) as process:
        while chunk := process.read_some(1 << 20):
            data += chunk
        process.finish(DEFAULT_LIMITS.probe_wall_s)
        messages = process.messages
    header = data[:64].split(maxsplit=4)
    if len(header) < 5 or header[0] != b"P6":
        raise image_error(path, messages)
    columns, rows = int(header[1]), int(header[2])
    return np.frombuffer(data, np.uint8, offset=len(data) - 3 * columns * rows).reshape(rows, columns, 3)


_IMAGE_DEMUXERS = (
    (b"\x89PNG", "png_pipe"),
    (b"\xff\xd8\xff", "jpeg_pipe"),
    (b"RIFF", "webp_pipe"),
    (b"BM", "bmp_pipe"),
)
"""FFmpeg's demuxers by the first bytes of a file."""


def _image_stream(path: Path) -> Any:
    """Build the input for an image, with the demuxer that its first bytes name.

    FFmpeg by itself takes a JPEG of more than 2 KiB named *.jpg for one of a numbered series, and the demuxer
    of those is not allowed here.
    """
    with path.open("rb") as file:
        head = file.read(8)
    demuxer = next((name for signature, name in _IMAGE_DEMUXERS if head.startswith(signature)), None)
    return untrusted_input(path, IMAGE_FORMATS, **({} if demuxer is None else {"format": demuxer}))["v:0"]


def read_mask(path: Path, width: int, height: int) -> ImageArray:
    """Decode a mask image as uint8 (height, width), scaled to that size.

    Raises:
        InputError, MediaError: it is no image, or too large.
    """
    check_input(path)
    stream = ffmpeg.output(
        _image_stream(path)
        .filter("scale", width, height, flags="bilinear", out_range="pc")
        .filter("format", "gray"),
        "pipe:1",
        format="rawvideo",
        **{"frames:v": 1},
    )
    with FfmpegProcess(stream, pipe_stdout=True, cpu_s=DEFAULT_LIMITS.probe_cpu_s) as process:
        data = process.read(width * height)
        process.finish(DEFAULT_LIMITS.probe_wall_s)
        messages = process.messages
    if data is None:
        raise image_error(path, messages)
    return np.frombuffer(data, np.uint8).reshape(height, width)


class _FrameDecoder:
    """A decoder of (time, frame) pairs: frames arrive on stdout, their times on stderr."""

    def __init__(self, info: VideoInfo, frames: ffmpeg.nodes.FilterableStream, frame_bytes: int) -> None:
        self._path, self._frame_bytes = info.path, frame_bytes
        self._times: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        self._time_base = Fraction(1)
        stream = ffmpeg.output(frames, "pipe:1", format="rawvideo", fps_mode="passthrough")
        stream = stream.global_args("-copyts", "-start_at_zero")
        self._process = FfmpegProcess(
            stream,
            pipe_stdout=True,
            cpu_s=DEFAULT_LIMITS.work_cpu_s(info.duration_s),
            loglevel="info",
            on_line=self._parse_line,
        )

    def read_frame(self) -> tuple[float | None, bytearray] | None:
        """Return the next frame and its time in seconds from the file's start; None at the end.

        The time is None where the file has no timestamp.

        Raises:
            MediaError: MEDIA_TIMEOUT.
        """
        data = self._process.read(self._frame_bytes)
        if data is None:
            return None
        try:
            # The time is logged before the frame is written.
            return self._times.get(timeout=DEFAULT_LIMITS.stall_s), data
        except queue.Empty:
            raise MediaError(
                ErrorCode.MEDIA_FAILED,
                "FFmpeg did not report the frames' times: install version 5.1 or later.",
            ) from None

    def finish(self) -> None:
        """Wait for the end after the last frame.

        Raises:
            MediaError, ResourceError: FFmpeg ended with an error.
        """
        message = f"{self._path.name!r} cannot be decoded ({{reason}}): re-encode it as mp4."
        error = self._process.to_error(self._process.finish(), message)
        if error is not None:
            raise error

    @property
    def messages(self) -> str:
        return self._process.messages

    def close(self) -> None:
        self._process.kill()

    def _parse_line(self, line: str) -> None:
        if showinfo := re.match(r"\[Parsed_showinfo_\d+ @ \w+\] \[info\] (.*)", line):
            if time_base := re.match(r"config in time_base: (\d+)/(\d+)", showinfo[1]):
                self._time_base = Fraction(int(time_base[1]), int(time_base[2]))
            elif frame := re.match(r"n: *\d+ pts: *(-?\d+|NOPTS)", showinfo[1]):
                self._times.put(None if frame[1] == "NOPTS" else float(int(frame[1]) * self._time_base))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _timed_frames(info: VideoInfo, **options: str) -> ffmpeg.nodes.FilterableStream:
    """Build the video track, upright, with every frame's time among the messages."""
    stream = untrusted_input(info.path, VIDEO_FORMATS, **options)["V:0"]
    return stream.filter("sidedata", mode="delete").filter("showinfo", checksum=0)


def _to_rgb(
    frames: ffmpeg.nodes.FilterableStream, info: VideoInfo, width: int, height: int, **options: str
) -> ffmpeg.nodes.FilterableStream:
    """Scale decoded frames and convert them to 8-bit RGB; HDR is tone-mapped after scaling, at less cost.

    Args:
        options: of FFmpeg's `scale` filter.
    """
    if info.hdr is not None:
        frames = tone_map(frames, info.hdr, width, height)
    options |= {"in_color_matrix": info.format.matrix, "in_range": _range(info)}
    return frames.filter("scale", width, height, **options).filter("format", "rgb24")


def _range(info: VideoInfo) -> str:
    return "pc" if info.format.full_range else "tv"


def _monotone_runs(indices: Sequence[int]) -> Iterator[tuple[bool, list[int]]]:
    """Split into runs that never decrease (False) or never increase (True)."""
    run: list[int] = []
    direction = 0
    for index in indices:
        step = (index > run[-1]) - (index < run[-1]) if run else 0
        if step and direction and step != direction:
            yield direction < 0, run
            run, direction = [], 0
        direction = direction or step
        run.append(index)
    if run:
        yield direction < 0, run
