"""Frames and samples out of files, in bounded memory.

A frame is named by its place among the frames that decode; one pass (`scan_frames`) finds their exact times.
A later read starts the decoder between two of these times and checks by its own report that the first picture
out is the one asked for, whatever the frame rate, the edit list or the group of pictures do.
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
from lipsync_engine.media.probe import VideoInfo, check_input, image_refused
from lipsync_engine.media.process import (
    AUDIO_FORMATS,
    CUT_OFF,
    IMAGE_FORMATS,
    LIMITS,
    VIDEO_FORMATS,
    Child,
    last_words,
    untrusted,
)
from lipsync_engine.media.yuv import Frame

SAMPLE_CHUNK_BYTES = 1 << 17

BACKWARD_BYTES = 192 << 20
"""Frames that are wanted in reverse are decoded forward in pieces of this size: the larger the piece, the
less often a group of pictures is decoded again."""

SKIP_FORWARD = 48
"""A gap up to this many frames is decoded and dropped; beyond it the decoder starts anew."""

LEAD_S = (0.0, 3.0, 30.0)
"""How long before the wanted frame the decoder starts, tried in turn; then it starts with the file."""

MISSING_S, MISSING_SHARE = 0.5, 0.02
"""A file that says itself that it is cut off is refused where more than this much of it is missing."""


def scan_frames(info: VideoInfo, max_side: int) -> Generator[tuple[float, npt.NDArray[np.uint8]], None, None]:
    """Every frame that decodes, once and in order.

    Args:
        info: from `probe_video`.
        max_side: the pictures are scaled down to this longest side.

    Yields:
        (seconds from the file's start, never falling; uint8 (h, w, 3) RGB).

    Raises:
        MediaError: MEDIA_TRUNCATED when the file ends long before its stated duration, MEDIA_TOO_LARGE,
            MEDIA_TIMEOUT, MEDIA_FAILED.
    """
    form = info.format
    scale = min(1.0, max_side / max(form.width, form.height))
    width, height = (max(2, round(side * scale)) for side in (form.width, form.height))
    picture = (
        _timed_picture(info)
        .filter("scale", width, height, flags="bilinear", in_color_matrix=form.matrix, in_range=_range(info))
        .filter("format", "rgb24")
    )
    last_s, count = 0.0, 0
    with _FrameChild(info, picture, width * height * 3) as child:
        while (got := child.next()) is not None:
            pts_s, data = got
            last_s = max(last_s, pts_s) if pts_s is not None else last_s + float(1 / info.frame_rate)
            if last_s > LIMITS.max_duration_s:
                raise MediaError(
                    ErrorCode.MEDIA_TOO_LARGE,
                    f"{info.path.name!r} is longer than {LIMITS.max_duration_s / 3600:.0f} hours: cut it.",
                )
            count += 1
            yield last_s, np.frombuffer(data, np.uint8).reshape(height, width, 3)
        child.end()
        messages = child.messages
    ended_s = last_s + float(1 / info.frame_rate)
    missing_s = info.duration_s - ended_s
    cut_off = any(text in messages for text in CUT_OFF)
    if not count or (cut_off and missing_s > max(MISSING_S, MISSING_SHARE * info.duration_s)):
        raise MediaError(
            ErrorCode.MEDIA_TRUNCATED,
            f"{info.path.name!r} breaks off after {ended_s if count else 0:.1f} of {info.duration_s:.1f} s: "
            "it was probably not copied completely; copy it again.",
        )


def sample_pictures(info: VideoInfo, count: int, max_side: int) -> list[npt.NDArray[np.uint8]]:
    """Pictures evenly over a video, uint8 (h, w, 3) RGB; fewer where it does not decode that far.

    Args:
        info: from `probe_video`.
        count: how many, each by a decoder of its own, so that the cost does not grow with the length.
        max_side: they are scaled down to this longest side.

    Raises:
        MediaError: no picture could be decoded.
    """
    form, found = info.format, []
    scale = min(1.0, max_side / max(form.width, form.height))
    width, height = (max(2, round(side * scale)) for side in (form.width, form.height))
    for number in range(count):
        picture = untrusted(info.path, VIDEO_FORMATS, ss=info.duration_s * number / count)["V:0"]
        picture = picture.filter("scale", width, height, in_color_matrix=form.matrix, in_range=_range(info))
        picture = picture.filter("format", "rgb24")
        stream = ffmpeg.output(picture, "pipe:1", format="rawvideo", **{"frames:v": 1})
        with Child(stream, reads=True, cpu_s=LIMITS.probe_cpu_s) as child:
            data = child.read(width * height * 3)
            child.finish(LIMITS.probe_wall_s)
        if data is not None:
            found.append(np.frombuffer(data, np.uint8).reshape(height, width, 3))
    if not found:
        raise MediaError(
            ErrorCode.MEDIA_FAILED, f"No picture of {info.path.name!r} can be decoded: re-encode it as mp4."
        )
    return found


class FrameReader:
    """Frames by number, in any order. A context manager.

    Args:
        info: from `probe_video`.
        pts_s: (N,) times of all frames, as `scan_frames` gave them.
    """

    def __init__(self, info: VideoInfo, pts_s: npt.NDArray[np.float64]) -> None:
        self._info = info
        self._pts_s = np.asarray(pts_s, dtype=np.float64)
        self._child: _FrameChild | None = None
        self._next = 0  # number of the frame that the child gives next
        self._checked = True  # by its time

    def read(self, indices: Sequence[int]) -> Generator[Frame, None, None]:
        """Exactly these frames; neighbours that are the same frame are the same object.

        Runs that go backward are decoded forward in pieces of bounded size.

        Raises:
            IndexError: no such frame.
            MediaError: MEDIA_FAILED when a frame that was there before does not decode again.
        """
        if indices and not 0 <= min(indices) <= max(indices) < len(self._pts_s):
            raise IndexError(f"frame numbers must lie in 0..{len(self._pts_s) - 1}")
        piece = max(8, BACKWARD_BYTES // self._info.format.frame_bytes)
        for backward, numbers in _monotone(indices):
            if not backward:
                yield from self._forward(numbers)
                continue
            for start in range(0, len(numbers), piece):
                frames = list(self._forward(numbers[start : start + piece][::-1]))
                while frames:
                    yield frames.pop()

    def close(self) -> None:
        """End the decoder."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def _forward(self, numbers: Sequence[int]) -> Iterator[Frame]:
        for number, same in itertools.groupby(numbers):
            frame = Frame.from_bytes(self._info.format, self._decode(number))
            for _ in same:
                yield frame

    def _decode(self, number: int) -> bytearray:
        if self._child is not None and self._next <= number <= self._next + SKIP_FORWARD:
            data = self._advance(self._child, number)
            if data is not None:
                return data
        for lead_s in (*LEAD_S, None):
            self.close()
            self._child = child = self._start(number, lead_s)
            data = self._advance(child, number)
            if data is not None:
                return data
        reason = last_words(child.messages)
        raise MediaError(
            ErrorCode.MEDIA_FAILED,
            f"Frame {number} of {self._info.path.name!r} did not decode a second time ({reason}): re-encode "
            "the video as mp4.",
        )

    def _start(self, number: int, lead_s: float | None) -> _FrameChild:
        """A decoder whose first picture is frame `number`, or one at most `lead_s` before it."""
        form, pts_s = self._info.format, self._pts_s
        first = 0 if lead_s is None else int(np.searchsorted(pts_s, pts_s[number] - lead_s))
        seek = {} if first == 0 else {"ss": f"{(pts_s[first - 1] + pts_s[first]) / 2:.9f}"}
        self._next, self._checked = first, lead_s is not None
        same = {
            f"{side}_{what}": value
            for side in ("in", "out")
            for what, value in (("range", _range(self._info)), ("color_matrix", form.matrix))
        }
        # Leaves planes that have this format already as they are, and holds the size where a file changes it.
        picture = (
            _timed_picture(self._info, **seek)
            .filter("scale", form.width, form.height, flags="bicubic+accurate_rnd+full_chroma_int", **same)
            .filter("format", form.pix_fmt)
        )
        return _FrameChild(self._info, picture, form.frame_bytes)

    def _advance(self, child: _FrameChild, number: int) -> bytearray | None:
        """Frame `number` from a decoder that stands at or before it; None where it gives other frames."""
        while (got := child.next()) is not None:
            pts_s, data = got
            if self._checked and (pts_s is None or abs(pts_s - self._pts_s[self._next]) > 1e-6):
                return None
            self._next += 1
            if self._next == number + 1:
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
    """Mono samples of a file's first sound track, in chunks.

    Time runs from the file's start: where the track begins later or pauses, there is silence, so that the
    samples stay level with the same track copied into a result.

    Raises:
        MediaError: MEDIA_NO_AUDIO when nothing can be decoded, MEDIA_TOO_LARGE, MEDIA_TIMEOUT, MEDIA_FAILED.
    """
    limit_bytes = round(LIMITS.max_duration_s * sample_rate) * 2
    stream = ffmpeg.output(
        untrusted(path, AUDIO_FORMATS)["a:0"].filter(
            "aresample", sample_rate, **{"async": 1, "first_pts": 0}
        ),
        "pipe:1",
        format="s16le",
        ac=1,
    )
    rest, total = b"", 0
    with Child(stream, reads=True, cpu_s=LIMITS.work_cpu_s(LIMITS.max_duration_s)) as child:
        while data := child.read_some(SAMPLE_CHUNK_BYTES):
            total += len(data)
            if total > limit_bytes:
                raise MediaError(
                    ErrorCode.MEDIA_TOO_LARGE,
                    f"{path.name!r} is longer than {LIMITS.max_duration_s / 3600:.0f} hours: cut it.",
                )
            data = rest + data
            whole = len(data) // 2 * 2
            rest = data[whole:]
            if whole:
                yield np.frombuffer(data[:whole], "<i2")
        error = child.failure(child.finish(), f"The sound of {path.name!r} cannot be decoded ({{reason}}).")
        reason = last_words(child.messages)
    if total < 2:
        raise MediaError(
            ErrorCode.MEDIA_NO_AUDIO,
            f"No sound of {path.name!r} can be decoded ({reason}): give another file.",
        )
    if error is not None:
        raise error


def read_picture(path: Path, max_short_side: int | None = None) -> npt.NDArray[np.uint8]:
    """A picture as uint8 (H, W, 3) RGB with even sides, upright, on white where it is transparent.

    Args:
        max_short_side: a larger picture is scaled down to it.

    Raises:
        InputError, MediaError: it is no PNG, JPEG, WebP or BMP image, or too large.
    """
    check_input(path)
    limit = max_short_side or 8192
    shrink = f"min(1,{limit}/min(iw,ih))"
    width, height = (f"2*max(1,round({side}*{shrink}/2))" for side in ("iw", "ih"))
    picture = _image(path).filter("format", "rgba")
    layers = picture.filter_multi_output("split")
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
    with Child(stream, reads=True, cpu_s=LIMITS.probe_cpu_s) as child:
        while chunk := child.read_some(1 << 20):
            data += chunk
        child.finish(LIMITS.probe_wall_s)
        messages = child.messages
    head = data[:64].split(maxsplit=4)
    if len(head) < 5 or head[0] != b"P6":
        raise image_refused(path, messages)
    columns, rows = int(head[1]), int(head[2])
    return np.frombuffer(data, np.uint8, offset=len(data) - 3 * columns * rows).reshape(rows, columns, 3)


_IMAGE_READERS = (
    (b"\x89PNG", "png_pipe"),
    (b"\xff\xd8\xff", "jpeg_pipe"),
    (b"RIFF", "webp_pipe"),
    (b"BM", "bmp_pipe"),
)
"""FFmpeg's readers by how files begin."""


def _image(path: Path) -> Any:
    """An image's picture, read as what its bytes say.

    FFmpeg left alone takes a JPEG of more than 2 KiB named *.jpg for one of a numbered series, and
    the reader of those is not allowed here.
    """
    with path.open("rb") as file:
        head = file.read(8)
    reader = next((name for magic, name in _IMAGE_READERS if head.startswith(magic)), None)
    return untrusted(path, IMAGE_FORMATS, **({} if reader is None else {"format": reader}))["v:0"]


def read_mask(path: Path, width: int, height: int) -> npt.NDArray[np.uint8]:
    """A mask image as uint8 (height, width), scaled to that size.

    Raises:
        InputError, MediaError: it is no image, or too large.
    """
    check_input(path)
    stream = ffmpeg.output(
        _image(path)
        .filter("scale", width, height, flags="bilinear", out_range="pc")
        .filter("format", "gray"),
        "pipe:1",
        format="rawvideo",
        **{"frames:v": 1},
    )
    with Child(stream, reads=True, cpu_s=LIMITS.probe_cpu_s) as child:
        data = child.read(width * height)
        child.finish(LIMITS.probe_wall_s)
        messages = child.messages
    if data is None:
        raise image_refused(path, messages)
    return np.frombuffer(data, np.uint8).reshape(height, width)


class _FrameChild:
    """A decoder that gives (time, picture) pairs: pictures on its output, their times among its messages."""

    def __init__(self, info: VideoInfo, picture: ffmpeg.nodes.FilterableStream, frame_bytes: int) -> None:
        self._path, self._frame_bytes = info.path, frame_bytes
        self._times: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        self._base = Fraction(1)
        stream = ffmpeg.output(picture, "pipe:1", format="rawvideo", fps_mode="passthrough")
        stream = stream.global_args("-copyts", "-start_at_zero")
        cpu_s = LIMITS.work_cpu_s(info.duration_s)
        self._child = Child(stream, reads=True, cpu_s=cpu_s, loglevel="info", on_line=self._note)

    def next(self) -> tuple[float | None, bytearray] | None:
        """The next picture and its time in seconds from the file's start (None where the file tells no time);
        None at the end.

        Raises:
            MediaError: MEDIA_TIMEOUT.
        """
        data = self._child.read(self._frame_bytes)
        if data is None:
            return None
        try:
            return self._times.get(timeout=LIMITS.stall_s), data  # it was said before the picture was written
        except queue.Empty:
            raise MediaError(
                ErrorCode.MEDIA_FAILED,
                "FFmpeg did not tell the frames' times: version 5.1 or later is needed.",
            ) from None

    def end(self) -> None:
        """Wait for the end after the last picture.

        Raises:
            MediaError, ResourceError: it ended with an error.
        """
        sentence = f"{self._path.name!r} cannot be decoded ({{reason}}): re-encode it as mp4."
        error = self._child.failure(self._child.finish(), sentence)
        if error is not None:
            raise error

    @property
    def messages(self) -> str:
        return self._child.messages

    def close(self) -> None:
        self._child.kill()

    def _note(self, line: str) -> None:
        if found := re.match(r"\[Parsed_showinfo_\d+ @ \w+\] \[info\] (.*)", line):
            if base := re.match(r"config in time_base: (\d+)/(\d+)", found[1]):
                self._base = Fraction(int(base[1]), int(base[2]))
            elif frame := re.match(r"n: *\d+ pts: *(-?\d+|NOPTS)", found[1]):
                self._times.put(None if frame[1] == "NOPTS" else float(int(frame[1]) * self._base))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _timed_picture(info: VideoInfo, **options: str) -> ffmpeg.nodes.FilterableStream:
    """The picture track, upright, with every frame's time among the messages."""
    picture = untrusted(info.path, VIDEO_FORMATS, **options)["V:0"]
    return picture.filter("sidedata", mode="delete").filter("showinfo", checksum=0)


def _range(info: VideoInfo) -> str:
    return "pc" if info.format.full_range else "tv"


def _monotone(indices: Sequence[int]) -> Iterator[tuple[bool, list[int]]]:
    """Split into runs that never fall (False) or never rise (True)."""
    run: list[int] = []
    direction = 0
    for index in indices:
        turn = (index > run[-1]) - (index < run[-1]) if run else 0
        if turn and direction and turn != direction:
            yield direction < 0, run
            run, direction = [], 0
        direction = direction or turn
        run.append(index)
    if run:
        yield direction < 0, run
