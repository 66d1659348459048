"""Pictures and sound of a few seconds out of files, as `measure` takes them.

What is looked at is bounded: so many stretches of so many seconds, wherever they lie in however long a film.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from lipsync_engine import media
from lipsync_engine.sync_score.cepstrum import SAMPLE_RATE
from lipsync_engine.sync_score.measure import FPS, Stretch

STRETCHES = 3
STRETCH_S = 4.0
MIN_STRETCH_S = 1.0
"""Shorter ones say too little."""

MAX_SIDE = 960
"""Pictures are looked at scaled down to this longest side."""

MARGIN_FRAMES = 25
"""Of sound to either side: 15 frames of offset and a clip of five need 20."""

FRAME_SAMPLES = SAMPLE_RATE // FPS

Picture = npt.NDArray[np.uint8]
T = TypeVar("T")


def at_25_fps(frames: Iterable[tuple[float, T]], frame_rate: Fraction, start_s: float) -> Iterator[T]:
    """The frame nearest to each 25th of a second from `start_s` on.

    Args:
        frames: (seconds, frame), in order.
        frame_rate: their usual rate.
    """
    reach_s, tick = 0.5 / float(frame_rate), 0
    for pts_s, frame in frames:
        while pts_s >= start_s + tick / FPS - reach_s:
            yield frame
            tick += 1


def longest_run(usable: npt.NDArray[np.bool_], shots: npt.NDArray[np.int64]) -> tuple[int, int]:
    """[start, stop) of the longest run of usable frames in one shot; empty where there is none."""
    edges = np.flatnonzero(np.diff(usable.astype(np.int64)) | np.diff(shots)) + 1
    bounds = [0, *edges.tolist(), len(usable)]
    runs = [(start, stop) for start, stop in itertools.pairwise(bounds) if start < stop and usable[start]]
    return max(runs, key=lambda run: run[1] - run[0], default=(0, 0))


def with_sound(faces: Sequence[tuple[float, Picture]], sound: Path) -> list[Stretch]:
    """Stretches from the faces, with the sound around them.

    Args:
        faces: in order: when each stretch starts, seconds; uint8 (n, side, side, 3).
        sound: any file with sound; its time 0 is the film's.

    Raises:
        MediaError: it has no sound, or none that can be decoded.
    """
    spans = []
    for start_s, pictures in faces:
        start = round(start_s * SAMPLE_RATE)
        lead = min(MARGIN_FRAMES, start // FRAME_SAMPLES) * FRAME_SAMPLES
        spans.append((start - lead, start + (len(pictures) + MARGIN_FRAMES) * FRAME_SAMPLES, lead))
    heard: list[list[npt.NDArray[np.int16]]] = [[] for _ in spans]
    at = 0
    with closing(media.read_audio(sound)) as chunks:
        for chunk in chunks:
            for pieces, (start, stop, _) in zip(heard, spans, strict=True):
                pieces.append(chunk[max(0, start - at) : max(0, stop - at)])
            at += len(chunk)
            if at >= max(stop for _, stop, _ in spans):
                break
    return [
        Stretch(pictures, np.concatenate(pieces), lead, start_s)
        for (start_s, pictures), pieces, (_, _, lead) in zip(faces, heard, spans, strict=True)
    ]


def spread(count: int) -> list[int]:
    """At most STRETCHES of `count` places, evenly."""
    n = min(STRETCHES, count)
    return [int((i + 0.5) * count / n) for i in range(n)]
