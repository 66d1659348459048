"""A still portrait that seems alive: the head sways and nods with the voice, breathes and blinks.

Each picture is the still under one smooth warp: a head moves as a whole and the warp fades out around it, so
nothing tears and the background stays. All is decided by the voice's loudness and a seed. It knows no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

FPS = 25

SWAY = 0.035
NOD = 0.03
ROLL_DEG = 1.8
BREATH = 0.010
"""Largest movements; lengths in distances between the brows' centres, which are about 70 mm apart."""

SWAY_HZ = (0.071, 0.127, 0.223)
BREATH_HZ = 0.23

BLINK_EVERY_S = (2.2, 5.5)
BLINK = (0.45, 1.0, 1.0, 0.7, 0.4, 0.15)
"""How far the lids are closed in each picture of a blink."""


DRAWN_EYES = (0.35, 0.30, 0.18, 0.11)
"""Of drawn presenters, in that unit: from a brow's centre down to the eye's, half width and half height of
its opening, height of the lid above.
"""

EYE_DOWN = 0.264
"""About so far below its brow's centre lies an eye of a photographed person."""

EYE_LEVELS = (2, 4, 6, 9, 12, 16, 20)
"""Dark is what belongs to so many percent of the surroundings: how dark hair and brows are differs."""

EYE_AREA = (0.006, 0.09)
EYE_ASIDE = 0.32
EYES_APART = (0.7, 1.2)
EYES_TILT_DEG = 25.0
"""What is dark near there is an eye when its area, in units squared, and its distance are within these, and
both eyes lie about one unit apart and level with the brows.
"""

EYE_HALF_WIDTH, EYE_HALF_HEIGHT = 0.23, (0.05, 0.13)
LID_HEIGHT = 1.4
"""Half axes of an opening in distances between the eyes; the lid above it in half heights."""

LASHES, DRAWN_LASHES = 0.3, 0.42
"""Height of the upper lashes, in half heights of an opening."""

HEAD = (1.35, 1.75)
HEAD_FADE = 2.1
"""Half axes of what moves as a whole, around the nose, in that unit; at so many times them the warp ends."""

EASE = 12
"""Pictures in which a clip that is shown to and fro slows down before a turn; even."""

GRID = 8
"""The warp is computed on every eighth pixel and interpolated between."""


@dataclass(frozen=True, slots=True)
class Moves:
    """What a head does in each of N pictures.

    Attributes:
        shift: float32 (N, 2) right and down, in distances between the brows.
        roll_deg: float32 (N,) clockwise.
        breath: float32 (N,) how far the shoulders are up, same unit.
        lids: float32 (N,) 0 open, 1 closed.
    """

    shift: FloatArray
    roll_deg: FloatArray
    breath: FloatArray
    lids: FloatArray


def moves(loudness: FloatArray, seed: int) -> Moves:
    """The movements of one person.

    Args:
        loudness: (N,) 0 silent … 1 loud, of each picture's 40 ms.
        seed: another one moves differently.
    """
    rng, n = np.random.default_rng(seed), len(loudness)
    time_s = np.arange(n) / FPS
    lively = 0.55 + 0.45 * smoothed(loudness, 1.2)
    sway = np.stack([_wander(time_s, rng) for _ in range(3)]) * lively
    beat = smoothed(loudness, 0.16) - smoothed(loudness, 0.9)  # stressed syllables pull the head down
    phase = rng.uniform(0, 2 * np.pi)
    breath = BREATH * 0.5 * (1 - np.cos(2 * np.pi * BREATH_HZ * time_s + phase))
    shift = np.stack([SWAY * sway[0], 0.5 * SWAY * sway[1] + NOD * np.clip(beat, -0.5, 1.0)], axis=1)
    return Moves(
        shift.astype(np.float32),
        (ROLL_DEG * sway[2]).astype(np.float32),
        breath.astype(np.float32),
        _blinks(loudness, rng),
    )


def smoothed(values: FloatArray, seconds: float) -> FloatArray:
    """(N,) under a Gaussian of that width."""
    sigma = max(1e-3, seconds * FPS / 2)
    row = values.reshape(1, -1)
    return np.asarray(cv2.GaussianBlur(row, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)[0], np.float32)


def to_and_fro(length: int, n: int) -> npt.NDArray[np.float64]:
    """Which frame of a clip each of n pictures shows, (n,): forwards, backwards, forwards …

    Starts at rest on the first frame. At a turn it stands still; before and after, speed changes evenly up to
    a frame per picture. Between the turns the numbers are whole, so nothing is blended there.

    Args:
        length: frames in the clip.
    """
    ramp = 2 * min(
        EASE // 2, (length - 1) // 2
    )  # pictures that a ramp takes; even: it covers half as many frames
    way = length - 1 + ramp  # pictures from turn to turn
    since = np.arange(n) % max(1, 2 * way)
    since = np.minimum(since, 2 * way - since)
    near = np.minimum(since, way - since)  # pictures to the nearer turn
    gone = np.where(near < ramp, near**2 / max(1, 2 * ramp), near - ramp / 2)
    return np.where(since == near, gone, length - 1 - gone)


def swinging(clip: Sequence[npt.NDArray[np.uint8]], n: int) -> Iterator[npt.NDArray[np.uint8]]:
    """n pictures uint8 (H, W, 3) from a clip of such, see `to_and_fro`; between two frames they are mixed."""
    for at in to_and_fro(len(clip), n):
        before = int(at)
        share = float(at - before)
        if share == 0.0:
            yield clip[before]
        else:
            mixed = cv2.addWeighted(clip[before], 1.0 - share, clip[before + 1], share, 0.0)
            yield np.asarray(mixed, dtype=np.uint8)


def _wander(time_s: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Slow, without a period that one would notice; within ±1."""
    waves = [np.sin(2 * np.pi * hz * rng.uniform(0.9, 1.1) * time_s + rng.uniform(0, 7)) for hz in SWAY_HZ]
    return np.asarray(0.5 * waves[0] + 0.3 * waves[1] + 0.2 * waves[2])


def _blinks(loudness: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Every few seconds, moved to the quietest moment near."""
    lids = np.zeros(len(loudness), dtype=np.float32)
    at = rng.uniform(0.6, BLINK_EVERY_S[0]) * FPS
    while at < len(loudness) - len(BLINK):
        near = np.arange(int(at), min(int(at) + 12, len(loudness) - len(BLINK)))
        start = int(near[loudness[near].argmin()])
        lids[start : start + len(BLINK)] = BLINK
        at = start + rng.uniform(*BLINK_EVERY_S) * FPS
    return lids


@dataclass(frozen=True, slots=True)
class Eye:
    """An open eye in a still.

    Attributes:
        centre: (2,) of the opening, pixels; across: (2,) unit vector along it, to the picture's right.
        half_width, half_height: of the opening with its lashes, pixels; lid: height of the lid above it.
        lashes: height of the upper lashes, in half heights.
    """

    centre: npt.NDArray[np.float64]
    across: npt.NDArray[np.float64]
    half_width: float
    half_height: float
    lid: float
    lashes: float


def drawn_eyes(face: FloatArray) -> tuple[Eye, ...]:
    """Of a drawn presenter: her eyes always lie in the same place.

    Args:
        face: float32 (3, 2): left brow, right brow, nose in pixels.
    """
    unit, across, down = _axes(face)
    below, half_width, half_height, lid = (length * unit for length in DRAWN_EYES)
    return tuple(
        Eye(brow + below * down, across, half_width, half_height, lid, DRAWN_LASHES) for brow in face[:2]
    )


def photographed_eyes(picture: npt.NDArray[np.uint8], face: FloatArray) -> tuple[Eye, ...]:
    """Of a photographed person, by what is dark under the brows; none where that is not clear.

    A detector's points are some percent of a face away from where they should be, and do not follow a tilted
    head all the way: too far for a lid.

    Args:
        picture: uint8 (H, W, 3).
        face: as for `drawn_eyes`.
    """
    unit, across, down = _axes(face)
    places = face[:2].astype(np.float64) + EYE_DOWN * unit * down
    one, other = (_dark_spot(picture, place, unit) for place in places)
    if one is None or other is None:
        return ()
    (left, left_px), (right, right_px) = one, other
    apart = float(np.linalg.norm(right - left))
    tilt_deg = np.degrees(np.arccos(np.clip(np.dot(right - left, across) / max(apart, 1e-6), -1, 1)))
    if not EYES_APART[0] <= apart / unit <= EYES_APART[1] or tilt_deg > EYES_TILT_DEG:
        return ()
    low, high = EYE_HALF_HEIGHT
    half_height = float(np.clip(0.3 * (left_px + right_px), low * apart, high * apart))
    return tuple(
        Eye(
            centre,
            (right - left) / apart,
            EYE_HALF_WIDTH * apart,
            half_height,
            LID_HEIGHT * half_height,
            LASHES,
        )
        for centre in (left, right)
    )


def _dark_spot(
    picture: npt.NDArray[np.uint8], near: npt.NDArray[np.float64], unit: float
) -> tuple[npt.NDArray[np.float64], float] | None:
    """Centre and height of the spot that is an eye's iris and lashes; brows and hair reach the border."""
    reach = round(0.45 * unit)
    x0, y0 = (int(value) for value in np.rint(near) - reach)
    side = 2 * reach + 1
    if reach < 8 or x0 < 0 or y0 < 0 or x0 + side > picture.shape[1] or y0 + side > picture.shape[0]:
        return None
    grey = cv2.cvtColor(picture[y0 : y0 + side, x0 : x0 + side], cv2.COLOR_RGB2GRAY)
    grey = cv2.GaussianBlur(grey, (0, 0), max(0.6, 0.02 * unit))
    found = []
    for level in np.percentile(grey, EYE_LEVELS):
        count, _, stats, centres = cv2.connectedComponentsWithStats((grey <= level).astype(np.uint8))
        for number in range(1, count):
            x, y, width, height, area = (int(value) for value in stats[number])
            inside = x > 0 and y > 0 and x + width < side and y + height < side
            away = float(np.linalg.norm(centres[number] - reach)) / unit
            if inside and EYE_AREA[0] <= area / unit**2 <= EYE_AREA[1] and away <= EYE_ASIDE:
                found.append((area, centres[number] + (x0, y0), float(height)))
    if not found:
        return None
    _, centre, height_px = max(found, key=lambda spot: spot[0])
    return centre, height_px


def _axes(face: FloatArray) -> tuple[float, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Distance between the brows, and unit vectors along and down the face."""
    left, right, _ = face.astype(np.float64)
    unit = max(4.0, float(np.linalg.norm(right - left)))
    across = (right - left) / unit
    return unit, across, np.array([-across[1], across[0]])


def animated(
    picture: npt.NDArray[np.uint8],
    faces: Sequence[FloatArray],
    people: Sequence[Moves],
    eyes: Sequence[Sequence[Eye]],
) -> Iterator[npt.NDArray[np.uint8]]:
    """The pictures, uint8 (H, W, 3).

    Args:
        picture: uint8 (H, W, 3).
        faces: of each person float32 (3, 2): left brow, right brow, nose in pixels.
        people: what each one does.
        eyes: of each person those that blink.
    """
    height, width = picture.shape[:2]
    warps = [_Head(face, (height, width)) for face in faces]
    still = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)
    for number in range(len(people[0].lids)):
        offset = np.zeros((*warps[0].shape, 2), dtype=np.float32)
        for warp, moves in zip(warps, people, strict=True):
            offset += warp.offset(moves, number)
        source = still + cv2.resize(offset, (width, height), interpolation=cv2.INTER_CUBIC)
        for own, moves in zip(eyes, people, strict=True):
            for eye in own:
                _close(eye, source, float(moves.lids[number]))
        yield cv2.remap(
            picture, source[..., 0], source[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
        )


def _close(eye: Eye, source: FloatArray, closed: float) -> None:
    """Stretch the lid above an eye down over it.

    Args:
        source: (H, W, 2) where each pixel comes from; changed.
        closed: 0 … 1.
    """
    if closed <= 0:
        return
    down = np.array([-eye.across[1], eye.across[0]])
    reach = 1.5 * (eye.half_width + eye.half_height + eye.lid)
    x0, y0 = np.maximum(0, np.floor(eye.centre - reach)).astype(int)
    x1, y1 = np.ceil(eye.centre + reach).astype(int) + 1
    part = source[y0:y1, x0:x1]  # the eye has moved with the head: this says what is shown where
    x = (part - eye.centre) @ eye.across / eye.half_width
    y = (part - eye.centre) @ down / eye.half_height
    arch = np.sqrt(np.clip(1 - x**2, 0, 1))  # half height of the opening there
    top, lashes = -arch - eye.lid / eye.half_height, eye.lashes * arch
    moved = closed * (2 * arch - lashes)
    edge = moved - arch  # where the lid ends and its lashes begin, which move as they are
    stretched = top + (y - top) * (-arch - top) / (edge - top)
    shown = np.where(y < edge, stretched, y - moved)
    covered = (np.abs(x) < 1) & (y > top) & (y < edge + lashes)
    part += (np.where(covered, shown - y, 0.0)[..., None] * eye.half_height * down).astype(np.float32)


class _Head:
    """Where one head is in the still, and what moves with it."""

    def __init__(self, face: FloatArray, shape: tuple[int, int]) -> None:
        height, width = shape
        nose = face[2].astype(np.float64)
        self._unit, self._across, self._down = _axes(face)
        self._neck = nose + 1.6 * self._unit * self._down
        # Grid points lie where cv2.resize takes the centres of coarse cells to be.
        rows, columns = -(-height // GRID), -(-width // GRID)
        x = (np.arange(columns) + 0.5) * width / columns - 0.5
        y = (np.arange(rows) + 0.5) * height / rows - 0.5
        self.shape = rows, columns
        self._grid = np.stack(np.meshgrid(x, y), axis=-1)
        inside = np.minimum.reduce(
            [
                self._grid[..., 0],
                width - 1 - self._grid[..., 0],
                self._grid[..., 1],
                height - 1 - self._grid[..., 1],
            ]
        )
        self._free = _ramp(inside / (0.35 * self._unit))  # the frame's edges stay
        local = (self._grid - nose) @ np.stack([self._across, self._down], axis=1) / self._unit
        distance = np.hypot(local[..., 0] / HEAD[0], local[..., 1] / HEAD[1])
        self._with_head = _ramp((HEAD_FADE - distance) / (HEAD_FADE - 1))
        self._with_chest = _ramp((local[..., 1] - 1.3) / 1.2) * _ramp((4.5 - np.abs(local[..., 0])) / 2.5)

    def offset(self, moves: Moves, number: int) -> npt.NDArray[np.float64]:
        """(rows, columns, 2): where each grid point's picture comes from, from where it is."""
        angle = np.deg2rad(-float(moves.roll_deg[number]))
        turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        shift = float(self._unit) * (
            moves.shift[number, 0] * self._across + moves.shift[number, 1] * self._down
        )
        there = (self._grid - shift - self._neck) @ turned.T + self._neck
        head = (there - self._grid) * (self._with_head * self._free)[..., None]
        chest = float(moves.breath[number]) * self._unit * (self._with_chest * self._free)[..., None]
        return np.asarray(head + chest * self._down)


def _ramp(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """0 below 0, 1 above 1, smooth between."""
    t = np.clip(values, 0, 1)
    return np.asarray(t * t * (3 - 2 * t))
