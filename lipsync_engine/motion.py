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
Place = tuple[slice, slice]

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


@dataclass(frozen=True, slots=True)
class Eyes:
    """Where eyes lie, in distances between the brows' centres, for those whose brows a detector finds.

    Attributes:
        down: from a brow's centre to the eye's.
        half_width, half_height: of what a lid must cover.
    """

    down: float
    half_width: float
    half_height: float


PHOTOGRAPHED = Eyes(0.264, 0.26, 0.12)
DRAWN = Eyes(0.35, 0.30, 0.18)

LID_FROM = 1.45
"""A lid shows the skin that lies under the eye, from so many of its half heights down; what lies between
eye and brow is too narrow, and full of lashes.
"""

LID_SHADE, LASH_SHADE, LASH_WIDTH = 0.93, 0.45, 0.22
"""How dark a lid is, and the line of lashes at its edge; the line's width in half heights."""

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


def animated(
    picture: npt.NDArray[np.uint8], faces: Sequence[FloatArray], people: Sequence[Moves], eyes: Eyes
) -> Iterator[npt.NDArray[np.uint8]]:
    """The pictures, uint8 (H, W, 3).

    Args:
        picture: uint8 (H, W, 3).
        faces: of each person float32 (3, 2): left brow, right brow, nose in pixels.
        people: what each one does.
        eyes: where they lie under the brows.
    """
    height, width = picture.shape[:2]
    warps = [_Head(face, (height, width), eyes) for face in faces]
    still = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)
    for number in range(len(people[0].lids)):
        offset = np.zeros((*warps[0].shape, 2), dtype=np.float32)
        for warp, moves in zip(warps, people, strict=True):
            offset += warp.offset(moves, number)
        source = still + cv2.resize(offset, (width, height), interpolation=cv2.INTER_CUBIC)
        lids = [
            lid
            for warp, moves in zip(warps, people, strict=True)
            for lid in warp.close_lids(source, float(moves.lids[number]))
        ]
        moved = cv2.remap(
            picture, source[..., 0], source[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
        )
        for place, shade in lids:
            moved[place] = np.rint(moved[place] * shade[..., None])
        yield moved


class _Head:
    """Where one head is in the still, and what moves with it."""

    def __init__(self, face: FloatArray, shape: tuple[int, int], eyes: Eyes) -> None:
        height, width = shape
        left, right, nose = face.astype(np.float64)
        self._unit = max(4.0, float(np.linalg.norm(right - left)))
        self._across = (right - left) / self._unit
        self._down = np.array([-self._across[1], self._across[0]])
        self._neck = nose + 1.6 * self._unit * self._down
        self._size = eyes.half_width * self._unit, eyes.half_height * self._unit
        self._eyes = [brow + eyes.down * self._unit * self._down for brow in (left, right)]
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

    def close_lids(self, source: FloatArray, closed: float) -> list[tuple[Place, FloatArray]]:
        """Draw skin over each eye.

        Args:
            source: (H, W, 2) where pixels come from; changed.
            closed: 0 … 1.

        Returns:
            Where lids and lashes darken the picture, and by what factor.
        """
        if closed <= 0:
            return []
        axes = np.stack([self._across / self._size[0], self._down / self._size[1]], axis=1)
        reach = 1.5 * max(self._size)
        shades = []
        for eye in self._eyes:
            # The eye has moved with the head: look for it where the warp shows it.
            x0, y0 = np.maximum(0, np.floor(eye - reach)).astype(int)
            x1, y1 = np.ceil(eye + reach).astype(int) + 1
            place = np.s_[y0:y1, x0:x1]
            part = source[place]
            x, y = np.moveaxis((part - eye) @ axes, -1, 0)
            edge = np.sqrt(np.clip(1 - x**2, 0, 1))  # half height of the opening there
            lid = edge * (2 * closed - 1)
            covered = (np.abs(x) < 1) & (y > -edge) & (y < lid)
            move = np.where(covered, LID_FROM + 0.5 * (y + edge) - y, 0.0)
            part += (move[..., None] * self._size[1] * self._down).astype(np.float32)
            lashes = np.clip(1 - np.abs(y - lid) / LASH_WIDTH, 0, 1) * _ramp((1 - np.abs(x)) * 4)
            shade = np.where(covered, LID_SHADE, 1.0) * (1 - (1 - LASH_SHADE) * lashes * closed)
            shades.append((place, shade.astype(np.float32)))
        return shades


def _ramp(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """0 below 0, 1 above 1, smooth between."""
    t = np.clip(values, 0, 1)
    return np.asarray(t * t * (3 - 2 * t))
