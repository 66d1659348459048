"""Frames and samples out of files, in bounded memory.

A frame is named by its place among the frames that decode, whose exact times one pass (`scan_frames`) finds. Later
reads start the decoder at a time between two frames, so that the first picture out is exactly the one asked for,
whatever the frame rate does.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

import ffmpeg
import numpy as np
import numpy.typing as npt

from lipsync_engine.errors import ErrorCode, MediaError
from lipsync_engine.frames import Frame
from lipsync_engine.media.probe import VideoInfo, check_input
from lipsync_engine.media.run import AUDIO_FORMATS, LIMITS, VIDEO_FORMATS, Child, last_words, untrusted

SAMPLE_CHUNK = 1 << 17

BACKWARD_CHUNK = 24
"""Frames decoded at a time when they are wanted in reverse."""

SKIP_FORWARD = 48
"""A gap up to this many frames is decoded and dropped; beyond it the decoder starts anew."""

MIN_SCANNED = 0.85
"""A file whose pictures end before this share of its stated duration is cut off."""


def scan_frames(info: VideoInfo, max_side: int) -> Generator[tuple[float, npt.NDArray[np.uint8]], None, None]:
    """Every frame that decodes, once and in order.

    Args:
        info: from `probe_video`.
        max_side: the pictures are scaled down to this longest side.

    Yields:
        (time in seconds from the file's start, uint8 (h, w, 3) RGB).

    Raises:
        MediaError: MEDIA_TRUNCATED when the file ends long before its stated duration, MEDIA_FAILED.
    """
    scale = min(1.0, max_side / max(info.format.width, info.format.height))
    width, height = (max(2, round(side * scale)) for side in (info.format.width, info.format.height))
    times: deque[float] = deque()

    def note(line: str) -> None:
        if "showinfo" in line and (found := re.search(r"\] n: *\d+ pts:.* pts_time:(-?[\d.]+)", line)):
            times.append(float(found[1]))

    picture = untrusted(info.path, VIDEO_FORMATS)["V:0"]
    stream = ffmpeg.output(
        picture,
        "pipe:",
        format="rawvideo",
        pix_fmt="rgb24",
        fps_mode="passthrough",
        vf=f"showinfo=checksum=0,scale={width}:{height}:flags=area",
    )
    last_s = 0.0
    with Child(stream, reads=True, on_line=note) as child:
        # A frame's line is written before its picture, but read by another thread: keep pictures until it is there.
        waiting: deque[bytearray] = deque()
        while (data := child.read(width * height * 3)) is not None:
            waiting.append(data)
            while waiting and times:
                last_s = times.popleft()
                yield last_s, np.frombuffer(waiting.popleft(), np.uint8).reshape(height, width, 3)
        child.finish(LIMITS.stall_s)
        messages = child.messages
        while waiting and times:
            last_s = times.popleft()
            yield last_s, np.frombuffer(waiting.popleft(), np.uint8).reshape(height, width, 3)
    ended_s = last_s + float(1 / info.frame_rate)
    if "partial file" in messages or ended_s < MIN_SCANNED * info.duration_s - 1.0:
        raise MediaError(
            ErrorCode.MEDIA_TRUNCATED,
            f"{info.path.name!r} breaks off at {ended_s:.1f} s of {info.duration_s:.1f} s: it was probably not "
            "copied completely.",
        )


class FrameReader:
    """Frames by number, in any order.

    Args:
        info: from `probe_video`.
        pts_s: (N,) times of all frames, as `scan_frames` gave them.
    """

    def __init__(self, info: VideoInfo, pts_s: npt.NDArray[np.float64]) -> None:
        self._info, self._pts_s = info, pts_s
        self._child: Child | None = None
        self._next = 0

    def read(self, indices: Sequence[int]) -> Generator[Frame, None, None]:
        """Exactly these frames; a frame asked for several times in a row is decoded once.

        Raises:
            MediaError: MEDIA_FAILED when a frame that was there before does not decode again.
        """
        for backward, numbers in _monotone(indices):
            if not backward:
                yield from self._forward(numbers)
                continue
            for start in range(0, len(numbers), BACKWARD_CHUNK):
                chunk = numbers[start : start + BACKWARD_CHUNK]
                yield from reversed(list(self._forward(chunk[::-1])))

    def _forward(self, numbers: Sequence[int]) -> Iterator[Frame]:
        for number, same in groupby(numbers):
            frame = self._decode(number)
            for _ in same:
                yield frame

    def _decode(self, number: int) -> Frame:
        form = self._info.format
        if self._child is None or not self._next <= number <= self._next + SKIP_FORWARD:
            self._start(number)
        if self._child is None:
            raise AssertionError("a started reader has a child")
        data: bytearray | None = None
        while self._next <= number:
            data = self._child.read(form.frame_bytes)
            if data is None:
                self._child.finish(LIMITS.stall_s)
                reason = last_words(self._child.messages)
                raise MediaError(
                    ErrorCode.MEDIA_FAILED,
                    f"Frame {number} of {self._info.path.name!r} does not decode ({reason}): re-encode the video.",
                )
            self._next += 1
        if data is None:
            raise AssertionError("the wanted frame lies ahead of the reader")
        return Frame.from_bytes(form, data)

    def _start(self, number: int) -> None:
        """Decode from `number` on: seek to a time after the frame before and not after this one."""
        self.close()
        options = {}
        if number > 0:
            before, at = self._pts_s[number - 1], self._pts_s[number]
            options["ss"] = f"{(before + at) / 2:.6f}"
        form = self._info.format
        stream = ffmpeg.output(
            untrusted(self._info.path, VIDEO_FORMATS, **options)["V:0"],
            "pipe:",
            format="rawvideo",
            pix_fmt=form.pix_fmt,
            fps_mode="passthrough",
        )
        self._child = Child(stream, reads=True, loglevel="error")
        self._next = number

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _monotone(indices: Sequence[int]) -> Iterator[tuple[bool, list[int]]]:
    """Split into stretches that never fall (False) or never rise (True)."""
    stretch: list[int] = []
    direction = 0
    for previous, index in pairwise([*indices[:1], *indices]):
        turn = (index > previous) - (index < previous)
        if stretch and turn and direction and turn != direction:
            yield direction < 0, stretch
            stretch, direction = [], 0
        direction = direction or turn
        stretch.append(index)
    if stretch:
        yield direction < 0, stretch


def read_audio(path: Path, sample_rate: int = 16000) -> Generator[npt.NDArray[np.int16], None, None]:
    """Mono samples of a file's first sound track, in chunks.

    Raises:
        MediaError: MEDIA_NO_AUDIO when nothing can be decoded.
    """
    stream = ffmpeg.output(
        untrusted(path, AUDIO_FORMATS)["a:0"], "pipe:", format="s16le", ac=1, ar=sample_rate
    )
    rest, heard = b"", False
    with Child(stream, reads=True, loglevel="error") as child:
        while data := child.read_some(SAMPLE_CHUNK):
            data = rest + data
            rest = data[len(data) // 2 * 2 :]
            heard = True
            yield np.frombuffer(data[: len(data) // 2 * 2], np.int16)
        child.finish(LIMITS.stall_s)
        messages = child.messages
    if not heard:
        raise MediaError(
            ErrorCode.MEDIA_NO_AUDIO,
            f"No sound of {path.name!r} can be decoded ({last_words(messages)}): give another file.",
        )


def read_mask(path: Path, width: int, height: int) -> npt.NDArray[np.uint8]:
    """A mask image as uint8 (height, width), scaled to that size.

    Raises:
        MediaError: it is no image, or too large.
    """
    check_input(path)
    stream = ffmpeg.output(
        untrusted(path, "png_pipe,jpeg_pipe,webp_pipe,bmp_pipe")["v:0"],
        "pipe:",
        format="rawvideo",
        pix_fmt="gray",
        vf=f"scale={width}:{height}:flags=bilinear:out_range=full",
        **{"frames:v": 1},
    )
    with Child(stream, reads=True, cpu_s=LIMITS.probe_cpu_s, loglevel="error") as child:
        data = child.read(width * height)
        child.finish(LIMITS.probe_wall_s)
        messages = child.messages
    if data is None:
        code = ErrorCode.MEDIA_TOO_LARGE if "max pixel count" in messages else ErrorCode.MEDIA_NOT_RECOGNISED
        raise MediaError(code, f"{path.name!r} is not a png, jpeg, webp or bmp image of a usable size.")
    return np.frombuffer(data, np.uint8).reshape(height, width)

