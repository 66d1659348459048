"""Scores a finished video of a drawn presenter: how well the mouth follows the articulation of the voice."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lipsync_engine import media
from lipsync_engine.media.yuv import region_to_rgb
from tests.support import speech
from tests.support.mouth_reader import read_openness
from tests.support.presenter import Identity, Pose

CLOSED, OPEN = 0.15, 0.30
"""A mouth open less than CLOSED shows no gap; one open further than OPEN shows teeth and tongue."""

MAX_OFFSET = 8

HELD_S = 0.12

VOWELS = ("a", "e", "i", "o", "u", "central")


@dataclass(frozen=True)
class Truth:
    """What a finished video should show.

    Attributes:
        identity: seed of the presenter.
        poses: of the source's frames.
        openness: (N,) of the mouth that belongs to the voice, per frame at 25 fps.
        events: the voice's visemes.
    """

    identity: int
    poses: list[Pose]
    openness: np.ndarray
    events: list[speech.Event]

    @classmethod
    def load(cls, path: Path) -> Truth:
        data = json.loads(path.read_text())
        poses = [Pose(**pose) for pose in data["poses"]]
        return cls(data["identity"], poses, np.array(data["openness"]), [tuple(e) for e in data["events"]])

    def save(self, path: Path) -> None:
        head = ("x", "y", "scale", "roll_deg", "turn", "blink")
        poses = [{name: round(getattr(pose, name), 5) for name in head} for pose in self.poses]
        data = {
            "identity": self.identity,
            "poses": poses,
            "openness": [round(float(value), 4) for value in self.openness],
            "events": [[round(start, 3), viseme] for start, viseme in self.events],
        }
        path.write_text(json.dumps(data) + "\n")


@dataclass(frozen=True)
class Score:
    """Attributes: how the read openness follows the truth.

    correlation: at offset 0.
    offset: frames by which the lips come late, where the correlation is best.
    closed: share of the centre frames of /p b m/ with closed lips; opened: of open vowels' with open ones.
    jitter: mean second difference of the openness inside held vowels.
    """

    correlation: float
    offset: int
    closed: float
    opened: float
    jitter: float


def score(read: np.ndarray, truth: Truth) -> Score:
    """Compare (N,) read openness with the truth."""
    n = min(len(read), len(truth.openness))
    read, expected = read[:n], truth.openness[:n]
    reach = range(-MAX_OFFSET, MAX_OFFSET + 1)
    lags = {lag: correlation(shifted(read, lag), shifted(expected, -lag)) for lag in reach}
    lips, mouth = centres(truth.events, ("closed",), n), centres(truth.events, ("a",), n)
    held = list(inside_held_vowels(truth.events, n))
    second = np.abs(np.diff(read, 2))
    return Score(
        correlation=lags[0],
        offset=max(lags, key=lambda lag: lags[lag]),
        closed=float(np.mean(read[lips] <= CLOSED)) if lips else math.nan,
        opened=float(np.mean(read[mouth] >= OPEN)) if mouth else math.nan,
        jitter=float(np.mean(second[[f - 1 for f in held]])) if held else math.nan,
    )


def shifted(values: np.ndarray, lag: int) -> np.ndarray:
    """What is left when the first `lag` values are dropped, or the last -lag."""
    return values[lag:] if lag >= 0 else values[:lag]


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    if a.std() < 1e-6 or b.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def spans(events: list[speech.Event], names: tuple[str, ...]) -> Iterator[tuple[float, float]]:
    for (start, viseme), (stop, _) in itertools.pairwise(events):
        if viseme in names:
            yield start, stop


def centres(events: list[speech.Event], names: tuple[str, ...], n: int) -> list[int]:
    frames = [int((start + stop) / 2 * speech.FPS) for start, stop in spans(events, names)]
    return [frame for frame in frames if frame < n]


def inside_held_vowels(events: list[speech.Event], n: int) -> Iterator[int]:
    """Frames that have both neighbours in the same long vowel."""
    for start, stop in spans(events, VOWELS):
        if stop - start >= HELD_S:
            first, last = math.ceil(start * speech.FPS) + 1, int(stop * speech.FPS) - 1
            yield from range(max(1, first), min(last, n - 2) + 1)


def read_video(path: Path, truth: Truth) -> np.ndarray:
    """(N,) openness of every frame of a finished video."""
    identity, openness = Identity.from_seed(truth.identity), []
    for picture, pose in zip(pictures(path), truth.poses, strict=False):
        openness.append(read_openness(picture, identity, pose))
    return np.array(openness)


def pictures(path: Path) -> Iterator[np.ndarray]:
    """uint8 (H, W, 3) RGB, frame by frame."""
    info = media.probe_video(path)
    box = (0, 0, info.format.width, info.format.height)
    pts_s = np.array([pts for pts, _ in media.scan_frames(info, 64)])
    with media.FrameReader(info, pts_s) as reader:
        for frame in reader.read(range(len(pts_s))):
            yield np.rint(region_to_rgb(frame, box)).astype(np.uint8)
