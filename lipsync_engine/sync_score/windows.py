"""Windows of a few seconds of faces and audio out of files, the input of `measure`.

The number and length of windows are limited, so the cost does not depend on the length of the video.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from lipsync_engine import media
from lipsync_engine.sync_score.cepstrum import SAMPLE_RATE
from lipsync_engine.sync_score.measure import FPS, ScoreWindow
from lipsync_engine.utils import ImageArray, runs_of

MAX_WINDOWS = 3
WINDOW_S = 4.0
MIN_WINDOW_S = 1.0
"""Shorter windows are not measured, because their score is unreliable."""

MAX_SIDE = 960
"""Longest side to which frames are downscaled."""

MARGIN_FRAMES = 25
"""Audio to either side of a window: 15 frames of offset and a clip of five frames need 20."""

FRAME_SAMPLES = SAMPLE_RATE // FPS

T = TypeVar("T")


def resample_to_25_fps(
    frames: Iterable[tuple[float, T]], frame_rate: Fraction, start_s: float
) -> Iterator[T]:
    """Yield the nearest frame for each 25th of a second from `start_s` on.

    Args:
        frames: (seconds, frame), in order.
        frame_rate: nominal frame rate.
    """
    reach_s, tick = 0.5 / float(frame_rate), 0
    for pts_s, frame in frames:
        while pts_s >= start_s + tick / FPS - reach_s:
            yield frame
            tick += 1


def longest_run(usable: npt.NDArray[np.bool_], shots: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Return [start, stop) of the longest run of usable frames in one shot; empty if there is none."""
    runs = runs_of(usable, np.diff(shots) != 0)
    return max(runs, key=lambda run: run[1] - run[0], default=(0, 0))


def attach_audio(faces: Sequence[tuple[float, ImageArray]], audio: Path) -> list[ScoreWindow]:
    """Build windows from faces and the audio around them.

    Args:
        faces: in order: start of each window, seconds; uint8 (n, side, side, 3).
        audio: any file with audio; its time 0 is the video's.

    Raises:
        MediaError: the file has no audio, or it cannot be decoded.
    """
    spans = []
    for start_s, crops in faces:
        start = round(start_s * SAMPLE_RATE)
        lead = min(MARGIN_FRAMES, start // FRAME_SAMPLES) * FRAME_SAMPLES
        spans.append((start - lead, start + (len(crops) + MARGIN_FRAMES) * FRAME_SAMPLES, lead))
    parts: list[list[npt.NDArray[np.int16]]] = [[] for _ in spans]
    position = 0
    with closing(media.read_audio(audio)) as chunks:
        for chunk in chunks:
            for window_parts, (start, stop, _) in zip(parts, spans, strict=True):
                window_parts.append(chunk[max(0, start - position) : max(0, stop - position)])
            position += len(chunk)
            if position >= max(stop for _, stop, _ in spans):
                break
    return [
        ScoreWindow(crops, np.concatenate(window_parts), lead, start_s)
        for (start_s, crops), window_parts, (_, _, lead) in zip(faces, parts, spans, strict=True)
    ]


def spread_evenly(count: int) -> list[int]:
    """Return at most `MAX_WINDOWS` indices below `count`, evenly spaced."""
    n = min(MAX_WINDOWS, count)
    return [int((i + 0.5) * count / n) for i in range(n)]
