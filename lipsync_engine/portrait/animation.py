"""Procedural motion for a still portrait: the head sways and nods with the voice, breathes and blinks.

Each frame is the still image under one smooth warp. A head moves as a whole and the warp fades out around it,
so nothing tears and the background stays. Loudness and a seed decide everything. The module reads no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from lipsync_engine.utils import Float64Array, FloatArray, ImageArray

FPS = 25

SWAY = 0.035
NOD = 0.03
ROLL_DEG = 1.8
BREATH = 0.010
"""Largest movements. The unit of length is the distance between the brows' centres, about 70 mm."""

SWAY_HZ = (0.071, 0.127, 0.223)
BREATH_HZ = 0.23

BLINK_EVERY_S = (2.2, 5.5)
BLINK = (0.45, 1.0, 1.0, 0.7, 0.4, 0.15)
"""How far the lids are closed in each frame of a blink."""

DRAWN_EYES = (0.35, 0.30, 0.18, 0.11)
"""Eyes of drawn presenters, in brow distances: from a brow's centre down to the eye, half width and half
height of the opening, height of the lid above it."""

EYE_DOWN = 0.264
"""Approximate distance of a photographed eye below its brow's centre, in brow distances."""

EYE_LEVELS = (2, 4, 6, 9, 12, 16, 20)
"""Percentiles of the surroundings' brightness that are tried as the limit of "dark", because hair and brows
differ in brightness."""

EYE_AREA = (0.006, 0.09)
EYE_ASIDE = 0.32
EYES_APART = (0.7, 1.2)
EYES_TILT_DEG = 25.0
"""A dark spot is an eye if its area (brow distances squared) and its distance from the expected position are
in these ranges, and if both eyes are about one brow distance apart and level with the brows."""

EYE_HALF_WIDTH, EYE_HALF_HEIGHT = 0.23, (0.05, 0.13)
LID_HEIGHT = 1.4
"""Half axes of an eye's opening in distances between the eyes; height of the lid above it in half heights."""

LASHES, DRAWN_LASHES = 0.3, 0.42
"""Height of the upper lashes, in half heights of an opening."""

HEAD_AXES = (1.35, 1.75)
HEAD_FADE = 2.1
"""Half axes of the ellipse around the nose that moves as a whole, in brow distances; the warp ends at
`HEAD_FADE` times them."""

EASE_FRAMES = 12
"""Frames in which a ping-pong clip slows down before a turn; even."""

GRID = 8
"""The warp is computed on every eighth pixel and interpolated between."""


@dataclass(frozen=True, slots=True)
class HeadMotion:
    """Motion of one head in N frames.

    Attributes:
        shift: float32 (N, 2) right and down, in brow distances.
        roll_deg: float32 (N,) clockwise.
        breath: float32 (N,) how far the shoulders are raised, in brow distances.
        lids: float32 (N,) 0 open, 1 closed.
    """

    shift: FloatArray
    roll_deg: FloatArray
    breath: FloatArray
    lids: FloatArray


def generate_head_motion(loudness: FloatArray, seed: int) -> HeadMotion:
    """Generate the motion of one person.

    Args:
        loudness: (N,) 0 silent … 1 loud, of each frame's 40 ms.
        seed: of the random draws.
    """
    rng, n = np.random.default_rng(seed), len(loudness)
    time_s = np.arange(n) / FPS
    liveliness = 0.55 + 0.45 * smooth_values(loudness, 1.2)
    sway = np.stack([_slow_noise(time_s, rng) for _ in range(3)]) * liveliness
    # Stressed syllables pull the head down.
    beat = smooth_values(loudness, 0.16) - smooth_values(loudness, 0.9)
    phase = rng.uniform(0, 2 * np.pi)
    breath = BREATH * 0.5 * (1 - np.cos(2 * np.pi * BREATH_HZ * time_s + phase))
    shift = np.stack([SWAY * sway[0], 0.5 * SWAY * sway[1] + NOD * np.clip(beat, -0.5, 1.0)], axis=1)
    return HeadMotion(
        shift.astype(np.float32),
        (ROLL_DEG * sway[2]).astype(np.float32),
        breath.astype(np.float32),
        _generate_blinks(loudness, rng),
    )


def smooth_values(values: FloatArray, seconds: float) -> FloatArray:
    """Smooth (N,) per-frame values with a Gaussian of that width."""
    sigma = max(1e-3, seconds * FPS / 2)
    row = values.reshape(1, -1)
    return np.asarray(cv2.GaussianBlur(row, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)[0], np.float32)


def pingpong_positions(length: int, n: int) -> Float64Array:
    """Return the clip position that each of n frames shows, (n,), forwards and backwards in turn.

    It starts at rest on the first frame and stands still at each turn. Before and after a turn the speed
    changes linearly up to one clip frame per frame. Between turns positions are whole, so no frames are
    blended there.

    Args:
        length: frames in the clip.
    """
    # Frames that a ramp takes; even, because it covers half as many clip frames.
    ramp = 2 * min(EASE_FRAMES // 2, (length - 1) // 2)
    period = length - 1 + ramp  # frames from turn to turn
    since_start = np.arange(n) % max(1, 2 * period)
    since_start = np.minimum(since_start, 2 * period - since_start)
    to_turn = np.minimum(since_start, period - since_start)  # frames to the nearer turn
    position = np.where(to_turn < ramp, to_turn**2 / max(1, 2 * ramp), to_turn - ramp / 2)
    return np.where(since_start == to_turn, position, length - 1 - position)


def pingpong_frames(clip: Sequence[ImageArray], n: int) -> Iterator[ImageArray]:
    """Yield n frames uint8 (H, W, 3) of a clip played to and fro; fractional positions are blended."""
    for position in pingpong_positions(len(clip), n):
        before = int(position)
        fraction = float(position - before)
        if fraction == 0.0:
            yield clip[before]
        else:
            blend = cv2.addWeighted(clip[before], 1.0 - fraction, clip[before + 1], fraction, 0.0)
            yield np.asarray(blend, dtype=np.uint8)


def _slow_noise(time_s: Float64Array, rng: np.random.Generator) -> Float64Array:
    """Return slow noise within ±1, a sum of sines without a noticeable common period."""
    waves = [np.sin(2 * np.pi * hz * rng.uniform(0.9, 1.1) * time_s + rng.uniform(0, 7)) for hz in SWAY_HZ]
    return np.asarray(0.5 * waves[0] + 0.3 * waves[1] + 0.2 * waves[2])


def _generate_blinks(loudness: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return (N,) lid positions with a blink every few seconds, each at the quietest moment nearby."""
    lids = np.zeros(len(loudness), dtype=np.float32)
    next_blink = rng.uniform(0.6, BLINK_EVERY_S[0]) * FPS
    while next_blink < len(loudness) - len(BLINK):
        candidates = np.arange(int(next_blink), min(int(next_blink) + 12, len(loudness) - len(BLINK)))
        start = int(candidates[loudness[candidates].argmin()])
        lids[start : start + len(BLINK)] = BLINK
        next_blink = start + rng.uniform(*BLINK_EVERY_S) * FPS
    return lids


@dataclass(frozen=True, slots=True)
class Eye:
    """An open eye in a still image.

    Attributes:
        centre: (2,) of the opening, pixels.
        across: (2,) unit vector along it, to the image's right.
        half_width, half_height: of the opening with its lashes, pixels.
        lid: height of the lid above it, pixels.
        lashes: height of the upper lashes, in half heights.
    """

    centre: Float64Array
    across: Float64Array
    half_width: float
    half_height: float
    lid: float
    lashes: float


def drawn_eyes(face: FloatArray) -> tuple[Eye, ...]:
    """Return the eyes of a drawn presenter, which have fixed positions in the face.

    Args:
        face: float32 (3, 2): left brow, right brow, nose in pixels.
    """
    unit, across, down = _face_axes(face)
    below, half_width, half_height, lid = (length * unit for length in DRAWN_EYES)
    return tuple(
        Eye(brow + below * down, across, half_width, half_height, lid, DRAWN_LASHES) for brow in face[:2]
    )


def photographed_eyes(image: ImageArray, face: FloatArray) -> tuple[Eye, ...]:
    """Return the eyes of a photographed person, located as dark spots under the brows; () if unclear.

    A detector's points are off by some percent of a face and do not follow a tilted head all the way, which
    is too inaccurate for a lid.

    Args:
        image: uint8 (H, W, 3).
        face: as for `drawn_eyes`.
    """
    unit, across, down = _face_axes(face)
    eye_positions = face[:2].astype(np.float64) + EYE_DOWN * unit * down
    one, other = (_find_dark_spot(image, position, unit) for position in eye_positions)
    if one is None or other is None:
        return ()
    (left, left_px), (right, right_px) = one, other
    distance = float(np.linalg.norm(right - left))
    cosine = np.clip(np.dot(right - left, across) / max(distance, 1e-6), -1, 1)
    tilt_deg = np.degrees(np.arccos(cosine))
    if not EYES_APART[0] <= distance / unit <= EYES_APART[1] or tilt_deg > EYES_TILT_DEG:
        return ()
    low, high = EYE_HALF_HEIGHT
    half_height = float(np.clip(0.3 * (left_px + right_px), low * distance, high * distance))
    return tuple(
        Eye(
            centre,
            (right - left) / distance,
            EYE_HALF_WIDTH * distance,
            half_height,
            LID_HEIGHT * half_height,
            LASHES,
        )
        for centre in (left, right)
    )


def _find_dark_spot(
    image: ImageArray, position: Float64Array, unit: float
) -> tuple[Float64Array, float] | None:
    """Return centre and height of an eye's iris and lashes near a position.

    Brows and hair are dark too, but reach the border of the searched square.
    """
    reach = round(0.45 * unit)
    x0, y0 = (int(value) for value in np.rint(position) - reach)
    side = 2 * reach + 1
    if reach < 8 or x0 < 0 or y0 < 0 or x0 + side > image.shape[1] or y0 + side > image.shape[0]:
        return None
    grey = cv2.cvtColor(image[y0 : y0 + side, x0 : x0 + side], cv2.COLOR_RGB2GRAY)
    grey = cv2.GaussianBlur(grey, (0, 0), max(0.6, 0.02 * unit))
    spots = []
    for level in np.percentile(grey, EYE_LEVELS):
        count, _, stats, centres = cv2.connectedComponentsWithStats((grey <= level).astype(np.uint8))
        for number in range(1, count):
            x, y, width, height, area = (int(value) for value in stats[number])
            is_inside = x > 0 and y > 0 and x + width < side and y + height < side
            offset = float(np.linalg.norm(centres[number] - reach)) / unit
            if is_inside and EYE_AREA[0] <= area / unit**2 <= EYE_AREA[1] and offset <= EYE_ASIDE:
                spots.append((area, centres[number] + (x0, y0), float(height)))
    if not spots:
        return None
    _, centre, height_px = max(spots, key=lambda spot: spot[0])
    return centre, height_px


def _face_axes(face: FloatArray) -> tuple[float, Float64Array, Float64Array]:
    """Return the distance between the brows and unit vectors along and down the face."""
    left, right, _ = face.astype(np.float64)
    unit = max(4.0, float(np.linalg.norm(right - left)))
    across = (right - left) / unit
    return unit, across, np.array([-across[1], across[0]])


def animate_image(
    image: ImageArray,
    faces: Sequence[FloatArray],
    motions: Sequence[HeadMotion],
    eyes: Sequence[Sequence[Eye]],
) -> Iterator[ImageArray]:
    """Yield the animated frames, uint8 (H, W, 3).

    Args:
        image: uint8 (H, W, 3).
        faces: of each person float32 (3, 2): left brow, right brow, nose in pixels.
        motions: of each person.
        eyes: of each person those that blink.
    """
    height, width = image.shape[:2]
    warps = [_HeadWarp(face, (height, width)) for face in faces]
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)
    for number in range(len(motions[0].lids)):
        offset = np.zeros((*warps[0].shape, 2), dtype=np.float32)
        for warp, motion in zip(warps, motions, strict=True):
            offset += warp.offset(motion, number)
        source = pixels + cv2.resize(offset, (width, height), interpolation=cv2.INTER_CUBIC)
        for person_eyes, motion in zip(eyes, motions, strict=True):
            for eye in person_eyes:
                _close_lid(eye, source, float(motion.lids[number]))
        yield cv2.remap(
            image, source[..., 0], source[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
        )


def _close_lid(eye: Eye, source: FloatArray, closure: float) -> None:
    """Stretch the lid above an eye down over it.

    Args:
        source: (H, W, 2) where each pixel is sampled; changed in place.
        closure: 0 open … 1 closed.
    """
    if closure <= 0:
        return
    down = np.array([-eye.across[1], eye.across[0]])
    reach = 1.5 * (eye.half_width + eye.half_height + eye.lid)
    x0, y0 = np.maximum(0, np.floor(eye.centre - reach)).astype(int)
    x1, y1 = np.ceil(eye.centre + reach).astype(int) + 1
    part = source[y0:y1, x0:x1]  # already holds the head's motion, so the lid moves with the head
    x = (part - eye.centre) @ eye.across / eye.half_width
    y = (part - eye.centre) @ down / eye.half_height
    arch = np.sqrt(np.clip(1 - x**2, 0, 1))  # half height of the opening at x
    top, lashes = -arch - eye.lid / eye.half_height, eye.lashes * arch
    travel = closure * (2 * arch - lashes)
    edge = travel - arch  # where the lid ends and its lashes begin; the lashes are not stretched
    lid_y = top + (y - top) * (-arch - top) / (edge - top)
    sampled_y = np.where(y < edge, lid_y, y - travel)
    is_covered = (np.abs(x) < 1) & (y > top) & (y < edge + lashes)
    part += (np.where(is_covered, sampled_y - y, 0.0)[..., None] * eye.half_height * down).astype(np.float32)


class _HeadWarp:
    """Warp of one head on a coarse grid: its position in the image and how much each point follows it."""

    def __init__(self, face: FloatArray, shape: tuple[int, int]) -> None:
        height, width = shape
        nose = face[2].astype(np.float64)
        self._unit, self._across, self._down = _face_axes(face)
        self._neck = nose + 1.6 * self._unit * self._down
        # Grid points are where cv2.resize assumes the centres of coarse cells.
        rows, columns = -(-height // GRID), -(-width // GRID)
        x = (np.arange(columns) + 0.5) * width / columns - 0.5
        y = (np.arange(rows) + 0.5) * height / rows - 0.5
        self.shape = rows, columns
        self._grid = np.stack(np.meshgrid(x, y), axis=-1)
        to_edge = np.minimum.reduce(
            [
                self._grid[..., 0],
                width - 1 - self._grid[..., 0],
                self._grid[..., 1],
                height - 1 - self._grid[..., 1],
            ]
        )
        not_edge = _smooth_step(to_edge / (0.35 * self._unit))  # the frame's edges do not move
        local = (self._grid - nose) @ np.stack([self._across, self._down], axis=1) / self._unit
        distance = np.hypot(local[..., 0] / HEAD_AXES[0], local[..., 1] / HEAD_AXES[1])
        with_head = _smooth_step((HEAD_FADE - distance) / (HEAD_FADE - 1))
        below_chin = _smooth_step((local[..., 1] - 1.3) / 1.2)
        with_chest = below_chin * _smooth_step((4.5 - np.abs(local[..., 0])) / 2.5)
        self._head_weight = (with_head * not_edge)[..., None]
        self._chest_weight = (with_chest * not_edge)[..., None]

    def offset(self, motion: HeadMotion, number: int) -> Float64Array:
        """Return (rows, columns, 2): vector from each grid point to the pixel that it shows in a frame."""
        angle = np.deg2rad(-float(motion.roll_deg[number]))
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        shift = float(self._unit) * (
            motion.shift[number, 0] * self._across + motion.shift[number, 1] * self._down
        )
        source = (self._grid - shift - self._neck) @ rotation.T + self._neck
        head = (source - self._grid) * self._head_weight
        chest = float(motion.breath[number]) * self._unit * self._chest_weight
        return np.asarray(head + chest * self._down)


def _smooth_step(values: Float64Array) -> Float64Array:
    """Return 0 below 0, 1 above 1, smooth between."""
    t = np.clip(values, 0, 1)
    return np.asarray(t * t * (3 - 2 * t))
