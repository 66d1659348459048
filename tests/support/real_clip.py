"""The real clip beside the repository, variants of it, and where its face is by two independent instruments.

`real_clip_points.npz` has the three alignment points of every frame, full-size pixels: means of seven shifted
runs of MediaPipe's attention mesh, and of dlib's 68 points. They differ by a constant of up to 3 px of the
256 crop, and agree on roll within 0.6 degrees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from lipsync_engine import media
from lipsync_engine.faces import align
from tests.support.paths import SHARED

Image = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float64]

CLIP = SHARED / "media" / "talking_person_1080x1920_25fps.mp4"
POINTS = Path(__file__).with_name("real_clip_points.npz")
WIDTH, HEIGHT, FPS = 1080, 1920, 25.0
FACE = (580.0, 680.0)
"""About where the face is."""

MAX_SIDE = 960
"""Longest side of the frames that the analysis receives."""


@dataclass(frozen=True)
class Variant:
    """Frames made from the clip.

    Attributes:
        sources: number of the clip's frame behind each frame, ascending.
        maps: for each frame float64 (2, 3), from the clip's full-size pixels to the variant's.
        size: width and height, full size.
        change: what else happens to a frame, with its number.
    """

    sources: tuple[int, ...]
    maps: tuple[Array, ...]
    size: tuple[int, int] = (WIDTH, HEIGHT)
    change: Callable[[Image, int], Image] = lambda image, number: image

    def frames(self) -> Iterator[tuple[float, Image]]:
        """Yield time and image of every frame, as the analysis receives them."""
        clip_scale, scale = MAX_SIDE / HEIGHT, MAX_SIDE / max(self.size)
        side = [round(length * scale) for length in self.size]
        first = 0.5 / clip_scale - 0.5  # the centre of the scaled clip's first pixel, in the clip
        with closing(media.scan_frames(media.probe_video(CLIP), MAX_SIDE)) as clip:
            frames = enumerate(image for _, image in clip)
            for number, (source, to_variant) in enumerate(zip(self.sources, self.maps, strict=True)):
                image = next(image for index, image in frames if index == source)
                linear = to_variant[:, :2] * (scale / clip_scale)
                shift = (to_variant @ (first, first, 1) + 0.5) * scale - 0.5
                warped = cv2.warpAffine(
                    image,
                    np.column_stack([linear, shift]),
                    side,
                    flags=cv2.INTER_CUBIC,
                    borderMode=cv2.BORDER_REFLECT,
                )
                yield number / FPS, self.change(warped, number)

    def points(self, instrument: str) -> Array:
        """Return (N, 3, 2): where the three alignment points are, by `mediapipe` or `dlib`."""
        with np.load(POINTS) as stored:
            points = stored[instrument].astype(np.float64)
        return np.stack(
            [points[i] @ m[:, :2].T + m[:, 2] for i, m in zip(self.sources, self.maps, strict=True)]
        )


def turned(degrees: float, zoom: float = 1.0) -> Array:
    """Return the rotation counter-clockwise about the face."""
    return np.asarray(cv2.getRotationMatrix2D(FACE, degrees, zoom))


def upright(n: int) -> Variant:
    return Variant(tuple(range(n)), (turned(0),) * n)


def rolling(n: int, most_deg: float) -> Variant:
    """The camera rolls from side to side."""
    return Variant(tuple(range(n)), tuple(turned(most_deg * math.sin(i / FPS * 1.6)) for i in range(n)))


def tilted(n: int, degrees: float) -> Variant:
    return Variant(tuple(range(n)), (turned(degrees),) * n)


def lying(n: int) -> Variant:
    quarter = np.array([[0, -1, HEIGHT - 1], [1, 0, 0]], dtype=np.float64)
    return Variant(tuple(range(n)), (quarter,) * n, (HEIGHT, WIDTH))


def upside_down(n: int) -> Variant:
    half = np.array([[-1, 0, WIDTH - 1], [0, -1, HEIGHT - 1]], dtype=np.float64)
    return Variant(tuple(range(n)), (half,) * n)


def dark(n: int) -> Variant:
    """Twelve percent of the light, with noise."""

    def darken(image: Image, number: int) -> Image:
        noise = np.random.default_rng(number).normal(0, 3, image.shape)
        return np.clip(image * 0.12 + noise, 0, 255).astype(np.uint8)

    return Variant(tuple(range(n)), (turned(0),) * n, change=darken)


def cut_in_one_room(n_takes: int, zoom: float, take: int = 20, gap: int = 37) -> Variant:
    """Takes from the same camera, every second one punched in."""
    sources = [first + i for first in range(0, gap * n_takes, gap) for i in range(take)]
    maps = [turned(0, zoom if i // take % 2 else 1.0) for i in range(len(sources))]
    return Variant(tuple(sources), tuple(maps))


def zoomed(n: int) -> Variant:
    """The camera zooms in to 2.6 times the size within half a second, and out again."""
    times_s = np.arange(n) / FPS % 2
    zooms = 1 + 1.6 * np.interp(times_s, [0.5, 1.0, 1.25, 1.75], [0, 1, 1, 0])
    return Variant(tuple(range(n)), tuple(turned(0, float(zoom)) for zoom in zooms))


def leaving(n: int) -> Variant:
    """The face moves out of the image to the right, within half a second."""
    maps = []
    for number in range(n):
        to_variant = turned(0).copy()
        to_variant[0, 2] += 760 * max(0.0, math.sin(min(1.5, (number / FPS - 0.6) * 1.2)))
        maps.append(to_variant)
    return Variant(tuple(range(n)), tuple(maps))


def covered(n: int, start: int, stop: int) -> Variant:
    """A board is held before the face, from the nose down, in frames [start, stop)."""

    def cover(image: Image, number: int) -> Image:
        if start <= number < stop:
            image = image.copy()
            image[345:460, 210:380] = (60, 70, 65)
        return image

    return Variant(tuple(range(n)), (turned(0),) * n, change=cover)


def hand(n: int) -> Variant:
    """A hand-coloured shape crosses the face from left to right, around 2 s."""

    def cover(image: Image, number: int) -> Image:
        time_s = number / FPS
        x, y = round(15 + 131 * time_s), round(372 + 20 * math.sin(3 * time_s))
        image = image.copy()
        for offset, width, height in ((0, 31, 19), (-29, 17, 23), (29, 17, 23)):
            cv2.ellipse(image, (x + offset, y), (width, height), 0, 0, 360, (205, 160, 128), -1, cv2.LINE_AA)
        for offset in (-22, -7, 8, 23):
            cv2.ellipse(image, (x + offset, y - 21), (6, 20), 0, 0, 360, (198, 152, 120), -1, cv2.LINE_AA)
        return image

    return Variant(tuple(range(n)), (turned(0),) * n, change=cover)


def microphone(n: int) -> Variant:
    """A dark microphone on a stand moves before nose and lips."""

    def cover(image: Image, number: int) -> Image:
        time_s = number / FPS
        x, y = round(275 + 15 * math.sin(1.7 * time_s)), round(380 + 12 * math.sin(2.3 * time_s))
        image = image.copy()
        cv2.line(image, (x, y), (x + 80, 580), (30, 30, 30), 17, cv2.LINE_AA)
        cv2.circle(image, (x, y), 23, (45, 45, 45), -1, cv2.LINE_AA)
        return image

    return Variant(tuple(range(n)), (turned(0),) * n, change=cover)


def colour_of_skin(image: Image, number: int) -> Array:
    """Return the colour of the cheek in a frame of the clip as the analysis receives it."""
    with np.load(POINTS) as stored:
        left, right, nose = stored["mediapipe"][number].astype(np.float64) * (MAX_SIDE / HEIGHT)
    x, y = np.rint(left + nose - (left + right) / 2).astype(int)
    return np.asarray(np.median(image[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3), axis=0))


def palm(n: int, start: int, stop: int) -> Variant:
    """A palm in the colour of the skin lies over the lips in frames [start, stop)."""

    def cover(image: Image, number: int) -> Image:
        if start <= number < stop:
            image = image.copy()
            skin = colour_of_skin(image, number).tolist()
            cv2.ellipse(image, (300, 386), (62, 26), 0, 0, 360, skin, -1, cv2.LINE_AA)
        return image

    return Variant(tuple(range(n)), (turned(0),) * n, change=cover)


def alignment_errors(true_points: Array, points: Array, resolution: int = 256) -> tuple[Array, Array]:
    """Compare the crops that two sets of points give.

    Args:
        true_points, points: (N, 3, 2).

    Returns:
        (N,) roll error in degrees; (N,) how far the mouth is off, pixels of the crop.
    """
    width, height = align.crop_size(resolution)
    mouth = np.array([width / 2, 0.66 * height])
    rolls, distances = [], []
    for reference, measured in zip(true_points, points, strict=True):
        true_matrix, matrix = (
            align.solve_matrix(three, resolution).astype(np.float64) for three in (reference, measured)
        )
        linear = matrix[:, :2] @ np.linalg.inv(true_matrix[:, :2])
        shift = matrix[:, 2] - linear @ true_matrix[:, 2]
        off = (linear @ mouth + shift - mouth) * resolution / np.array([width, height])
        rolls.append(math.degrees(math.atan2(linear[1, 0], linear[0, 0])))
        distances.append(float(np.hypot(*off)))
    return np.abs(rolls), np.array(distances)
