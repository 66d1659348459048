"""Drawn presenters: parametric 2-D faces that talk, with their ground truth.

One seed is one identity. A pose says where the head is, whether the eyes are open and what the mouth does;
`draw` turns both into a picture. `make_clip` speaks a text (`speech.py`) and drives the mouth with it.

    python -m tests.support.presenter --seed 3 --text "Hello, and welcome." clip.mp4
"""

from __future__ import annotations

import argparse
import copy
import math
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from tests.support.speech import FPS, articulation, speak, write_wav

SUPERSAMPLE = 2

SKINS = [(255, 224, 196), (241, 194, 160), (224, 172, 128), (198, 134, 92), (141, 92, 60), (98, 62, 44)]
HAIRS = [(44, 30, 24), (86, 56, 34), (150, 104, 58), (206, 166, 98), (120, 44, 28), (150, 150, 156)]
IRISES = [(84, 56, 32), (58, 110, 150), (86, 128, 74), (110, 92, 60)]
CLOTHES = [(46, 82, 122), (150, 60, 66), (60, 104, 84), (70, 66, 90), (196, 148, 70), (90, 94, 100)]
WALLS = [(206, 220, 230), (232, 222, 206), (198, 214, 200), (222, 206, 214), (180, 192, 206), (238, 234, 226)]


@dataclass(frozen=True, slots=True)
class Identity:
    """What does not change over a clip. Sizes are factors, `light` where it comes from (-1 left, 1 right),
    `beard` how dense it is."""

    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    clothes: np.ndarray
    wall: np.ndarray
    lips: np.ndarray
    jaw: float
    brow: float
    eye: float
    nose: float
    mouth: float
    style: int
    glasses: bool
    light: float
    beard: float

    @classmethod
    def from_seed(cls, seed: int) -> Identity:
        rng = np.random.default_rng(seed)

        def pick(colours: list[tuple[int, int, int]], spread: float = 10.0) -> np.ndarray:
            return np.clip(np.array(colours[rng.integers(len(colours))]) + rng.normal(0, spread, 3), 8, 250)

        skin = pick(SKINS, 6)
        lips = np.clip(skin * (0.82, 0.58, 0.58) + rng.normal(0, 6, 3), 20, 240)
        style = int(rng.integers(4))
        return cls(
            skin=skin,
            hair=pick(HAIRS, 6),
            iris=pick(IRISES),
            clothes=pick(CLOTHES),
            wall=pick(WALLS),
            lips=lips,
            jaw=rng.uniform(0.86, 1.06),
            brow=rng.uniform(0.020, 0.034),
            eye=rng.uniform(0.9, 1.12),
            nose=rng.uniform(0.85, 1.15),
            mouth=rng.uniform(0.88, 1.12),
            style=style,
            glasses=bool(rng.random() < 0.22),
            light=float(rng.uniform(-1, 1)),
            beard=float(rng.choice([0.0, 0.3, 0.9], p=[0.6, 0.15, 0.25])) if style in (0, 2) else 0.0,
        )


@dataclass(frozen=True, slots=True)
class Pose:
    """One moment. Lengths are in face widths; the mouth's values run from 0 to 1, rest is (0, 0.5, 0)."""

    x: float = 0.5
    y: float = 0.46
    scale: float = 0.42
    roll_deg: float = 0.0
    turn: float = 0.0
    blink: float = 0.0
    openness: float = 0.0
    width: float = 0.5
    rounding: float = 0.0


class Canvas:
    """Antialiased shapes in face coordinates: origin between the eyes, unit the face's width, y down."""

    def __init__(self, side: int, pose: Pose) -> None:
        self.side = side * SUPERSAMPLE
        self.image = np.zeros((self.side, self.side, 3), np.float32)
        angle, size = math.radians(pose.roll_deg), pose.scale * self.side
        self.matrix = size * np.array(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        self.origin = np.array([pose.x, pose.y]) * self.side

    def part(self, x0: int, y0: int, x1: int, y1: int) -> Canvas:
        """A copy of a part that is drawn on in the same face coordinates; finished pixels."""
        part = copy.copy(self)
        part.image = self.image[
            y0 * SUPERSAMPLE : y1 * SUPERSAMPLE, x0 * SUPERSAMPLE : x1 * SUPERSAMPLE
        ].copy()
        part.origin = self.origin - SUPERSAMPLE * np.array([x0, y0])
        return part

    def shown(self) -> np.ndarray:
        """float32 (height, width, 3): finished pixels."""
        size = self.image.shape[1] // SUPERSAMPLE, self.image.shape[0] // SUPERSAMPLE
        return cv2.resize(self.image, size, interpolation=cv2.INTER_AREA)

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        return np.asarray(points, float) @ self.matrix.T + self.origin

    def fill(self, points: np.ndarray, colour: np.ndarray, alpha: float = 1.0, soft: float = 0.0) -> None:
        mask = np.zeros(self.image.shape[:2], np.uint8)
        pixels = np.rint(self.to_pixels(points) * 16).astype(np.int32)
        cv2.fillPoly(mask, [pixels], 255, cv2.LINE_AA, 4)
        self._blend(mask, colour, alpha, soft)

    def line(self, points: np.ndarray, colour: np.ndarray, thickness: float, alpha: float = 1.0) -> None:
        mask = np.zeros(self.image.shape[:2], np.uint8)
        pixels = np.rint(self.to_pixels(points) * 16).astype(np.int32)
        width = max(1, round(thickness * float(np.hypot(*self.matrix[0]))))
        cv2.polylines(mask, [pixels], False, 255, width, cv2.LINE_AA, 4)
        self._blend(mask, colour, alpha, 0.0)

    def _blend(self, mask: np.ndarray, colour: np.ndarray, alpha: float, soft: float) -> None:
        x, y, w, h = cv2.boundingRect(mask)
        reach = round(3 * soft * self.side)
        x0, y0 = max(0, x - reach), max(0, y - reach)
        x1, y1 = x + w + reach, y + h + reach
        if not w or not h:
            return
        part = mask[y0:y1, x0:x1].astype(np.float32) * np.float32(alpha / 255)
        if soft:
            part = cv2.GaussianBlur(part, (0, 0), soft * self.side)
        region = self.image[y0:y1, x0:x1]
        region += part[..., None] * (np.asarray(colour, np.float32) - region)


def ellipse(cx: float, cy: float, rx: float, ry: float, start: float = 0, stop: float = 360) -> np.ndarray:
    t = np.radians(np.linspace(start, stop, 48))
    return np.column_stack([cx + rx * np.cos(t), cy + ry * np.sin(t)])


def curve(points: list[tuple[float, float]], n: int = 24) -> np.ndarray:
    """A smooth line through points (Catmull-Rom)."""
    p = np.array([points[0], *points, points[-1]], float)
    t = np.linspace(0, 1, n, endpoint=False)[:, None]
    parts = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    return np.concatenate([*parts, p[-1:]])


def draw(who: Identity, pose: Pose, side: int) -> np.ndarray:
    """The picture, uint8 (side, side, 3) RGB."""
    canvas = Canvas(side, pose)
    paint(canvas, who, pose)
    return np.clip(np.rint(canvas.shown()), 0, 255).astype(np.uint8)


def paint(canvas: Canvas, who: Identity, pose: Pose, *, with_mouth: bool = True) -> None:
    _background(canvas, who)
    shadow, light = who.skin * 0.78, np.clip(who.skin * 1.07, 0, 255)
    turn = pose.turn * 0.12

    # Hair behind, neck, clothes.
    if who.style in (1, 3):
        back = curve([(-0.56, -0.1), (-0.6, 0.5), (-0.5, 0.92), (0.5, 0.92), (0.6, 0.5), (0.56, -0.1)])
        canvas.fill(np.vstack([back, ellipse(0, -0.14, 0.58, 0.58, 0, -180)]), who.hair * 0.8)
    canvas.fill(ellipse(0, -0.1, 0.56, 0.52, 0, -180), who.hair * 0.8)
    canvas.fill(np.array([(-0.19, 0.5), (0.19, 0.5), (0.23, 1.15), (-0.23, 1.15)]), shadow)
    torso = curve([(-1.15, 1.9), (-0.98, 1.22), (-0.4, 1.0), (-0.2, 0.96), (0, 1.12)])
    torso = np.vstack([torso, torso[::-1] * (-1, 1)])
    canvas.fill(torso, who.clothes)
    canvas.line(curve([(-0.2, 0.96), (0, 1.14), (0.2, 0.96)]), who.clothes * 0.7, 0.03)
    for s in (-1, 1):
        canvas.fill(ellipse(s * 0.5, 0.1, 0.07, 0.12), shadow)

    # The face, lit from one side.
    j = who.jaw
    half = curve(
        [(0, -0.6), (0.36, -0.5), (0.5, -0.12), (0.48, 0.25), (0.36 * j, 0.58), (0.16 * j, 0.75), (0, 0.78)]
    )
    outline = np.vstack([half, half[::-1] * (-1, 1)])
    jaw_drop = np.clip((outline[:, 1] - 0.35) / 0.4, 0, 1) * 0.055 * pose.openness
    outline = outline + np.column_stack([np.zeros(len(outline)), jaw_drop])
    canvas.fill(outline, who.skin)
    canvas.fill(outline * (0.55, 0.9) + (0.17 * who.light, 0.02), light, 0.55, 0.025)
    canvas.fill(outline * (0.16, 0.7) - (0.40 * who.light, 0.0), shadow, 0.30, 0.02)
    for s in (-1, 1):
        canvas.fill(ellipse(s * 0.28 + turn, 0.27, 0.1, 0.07), who.skin * (1.0, 0.72, 0.70), 0.35, 0.02)
    _eyes(canvas, who, pose, turn)
    nose = curve([(0.02 + turn, 0.02), (0.06 * who.nose + 1.6 * turn, 0.2), (0.0 + 1.6 * turn, 0.255)])
    canvas.line(nose, shadow, 0.014, 0.8)
    for s in (-1, 1):
        canvas.fill(ellipse(s * 0.045 * who.nose + 1.5 * turn, 0.25, 0.02, 0.011), who.skin * 0.5, 0.8)
    canvas.fill(ellipse(1.5 * turn, 0.2, 0.035, 0.03), light, 0.7, 0.008)
    if who.beard:
        _beard(canvas, who, jaw_drop, outline, turn)
    if with_mouth:
        paint_mouth(canvas, who, pose)

    # Hair in front.
    fringe = {
        0: [(-0.53, 0.02), (-0.5, -0.28), (-0.2, -0.4), (0.2, -0.36), (0.5, -0.26), (0.53, 0.02)],
        1: [(-0.55, 0.2), (-0.47, -0.2), (-0.1, -0.46), (0.3, -0.34), (0.5, -0.1), (0.55, 0.2)],
        2: [(-0.5, -0.1), (-0.44, -0.36), (0, -0.47), (0.44, -0.36), (0.5, -0.1)],
        3: [(-0.55, 0.3), (-0.45, -0.1), (-0.02, -0.5), (0.02, -0.5), (0.45, -0.1), (0.55, 0.3)],
    }[who.style]
    top = ellipse(0, -0.14, 0.57, 0.56, 0, -180)
    canvas.fill(np.vstack([curve(fringe), top]), who.hair)
    canvas.fill(
        ellipse(0.18 * who.light, -0.52, 0.22, 0.05), np.clip(who.hair * 1.35 + 10, 0, 255), 0.5, 0.02
    )


def _background(canvas: Canvas, who: Identity) -> None:
    ramp = np.linspace(1.05, 0.86, canvas.side, dtype=np.float32)[:, None, None]
    canvas.image[:] = np.clip(who.wall.astype(np.float32) * ramp, 0, 255)
    still = np.array([[0.30, 0.0], [0.0, 0.30]]) * canvas.side
    moving, origin = canvas.matrix, canvas.origin
    canvas.matrix, canvas.origin = still, np.array([0.5, 0.4]) * canvas.side
    canvas.fill(
        np.array([(-1.5, -1.0), (-0.75, -1.0), (-0.75, 0.4), (-1.5, 0.4)]), who.wall * 0.8, 0.8, 0.004
    )
    canvas.fill(
        np.array([(-1.42, -0.92), (-0.83, -0.92), (-0.83, 0.32), (-1.42, 0.32)]), who.wall * 1.1, 0.7, 0.004
    )
    canvas.fill(ellipse(1.35, 0.9, 0.35, 0.5), who.clothes * 0.9 + 20, 0.25, 0.02)
    canvas.matrix, canvas.origin = moving, origin


def _eyes(canvas: Canvas, who: Identity, pose: Pose, turn: float) -> None:
    for s in (-1, 1):
        cx, open_ = s * 0.2 + turn, (1 - pose.blink) * 0.062 * who.eye
        canvas.fill(ellipse(cx, 0, 0.10, 0.062 * who.eye + 0.02), who.skin * 0.86, 0.6, 0.006)
        if open_ > 0.006:
            canvas.fill(ellipse(cx, 0, 0.088, open_), np.array([246, 246, 244]))
            r = min(0.045, open_)
            canvas.fill(ellipse(cx + 0.3 * turn, 0, r, r), who.iris)
            canvas.fill(ellipse(cx + 0.3 * turn, 0, 0.5 * r, 0.5 * r), np.array([18, 16, 16]))
            canvas.fill(ellipse(cx + 0.3 * turn - 0.014, -0.014, 0.010, 0.010), np.array([255, 255, 255]))
        lid = ellipse(cx, 0, 0.092, open_ + 0.006, 190, 350)
        canvas.line(lid, who.hair * 0.5, 0.016)
        brow = curve([(cx - 0.1, -0.125 - 0.005 * s), (cx, -0.155), (cx + 0.1, -0.125 + 0.005 * s)])
        canvas.line(brow, who.hair * 0.75, who.brow)
        if who.glasses:
            canvas.line(ellipse(cx, 0.01, 0.135, 0.115), np.array([40, 40, 46]), 0.014)
    if who.glasses:
        canvas.line(np.array([(-0.07 + turn, -0.01), (0.07 + turn, -0.01)]), np.array([40, 40, 46]), 0.014)


def _beard(canvas: Canvas, who: Identity, jaw_drop: np.ndarray, outline: np.ndarray, turn: float) -> None:
    """Along the jaw from ear to ear, and around the mouth; the cheeks stay free."""
    dark = who.hair * 0.85
    drop = float(jaw_drop.max())
    low = outline[outline[:, 1] > 0.1]
    low = low[np.argsort(np.arctan2(low[:, 0], low[:, 1] - 0.1))]  # left ear, chin, right ear
    shift = 1.2 * turn
    inner = curve(
        [(0.44, 0.1), (0.38, 0.33), (0.25 + shift, 0.4), (0.2 + shift, 0.345), (0.05 + shift, 0.315)]
        + [(-0.05 + shift, 0.315), (-0.2 + shift, 0.345), (-0.25 + shift, 0.4), (-0.38, 0.33), (-0.44, 0.1)]
    )
    lower = np.column_stack([low[:, 0], low[:, 1] + 0.02 * (low[:, 1] > 0.5)])
    canvas.fill(np.vstack([lower, inner]), dark, who.beard, 0.004)
    bare = ellipse(shift, 0.455 + 0.5 * drop, 0.17, 0.085 + drop)
    canvas.fill(bare, who.skin * 0.93, 0.35 * who.beard, 0.008)


def paint_mouth(canvas: Canvas, who: Identity, pose: Pose) -> None:
    cx = 0.144 * pose.turn
    half = who.mouth * (0.115 + 0.075 * pose.width - 0.06 * pose.rounding)
    gap = 0.15 * pose.openness
    cy, top = 0.455, 0.028 + 0.012 * pose.rounding
    bottom = 0.036 + 0.014 * pose.rounding
    upper_in = [(-half * 0.86, cy), (0, cy - 0.22 * gap), (half * 0.86, cy)]
    lower_in = [(-half * 0.86, cy), (0, cy + 0.9 * gap), (half * 0.86, cy)]
    y_up, y_low = cy - 0.22 * gap - top, cy + 0.9 * gap + bottom
    upper_out = [
        (-half, cy),
        (-0.35 * half, y_up - 0.006),
        (0, y_up + 0.008),
        (0.35 * half, y_up - 0.006),
        (half, cy),
    ]
    lower_out = [
        (-half, cy),
        (-0.45 * half, y_low - 0.012),
        (0, y_low),
        (0.45 * half, y_low - 0.012),
        (half, cy),
    ]

    def shape(a: list[tuple[float, float]], b: list[tuple[float, float]]) -> np.ndarray:
        return np.vstack([curve(a), curve(b)[::-1]]) + (cx, 0)

    canvas.fill(shape(upper_out, lower_out), who.lips)
    canvas.fill(shape([(-half, cy), (0, y_up + 0.01), (half, cy)], upper_in), who.lips * 0.85, 0.7)
    if gap > 0.006:
        inside = shape(upper_in, lower_in)
        canvas.fill(inside, np.array([58, 18, 22]))
        tongue = ellipse(cx, cy + 0.95 * gap, 0.6 * half, 0.42 * gap, 180, 360)
        canvas.fill(tongue, np.array([196, 92, 96]), min(1.0, gap * 14))
        depth = min(0.03, 0.45 * gap)
        teeth = [(-half * 0.7, cy - 0.05 * gap + 0.3 * depth), (0, cy - 0.22 * gap + depth), (half * 0.7, cy)]
        canvas.fill(shape(upper_in, teeth), np.array([240, 238, 232]))
    else:
        canvas.line(
            curve([(cx - half * 0.95, cy), (cx, cy + 0.004), (cx + half * 0.95, cy)]), who.lips * 0.55, 0.011
        )


# --- ground truth ---


def alignment(pose: Pose, side: int) -> np.ndarray:
    """float32 (3, 2): left brow, right brow, nose in pixels."""
    turn = pose.turn * 0.12
    local = np.array([(-0.2 + turn, -0.14), (0.2 + turn, -0.14), (1.6 * turn, 0.225)])
    return (Canvas(side, pose).to_pixels(local) / SUPERSAMPLE).astype(np.float32)


def face_box(pose: Pose, side: int) -> np.ndarray:
    """float32 (4,): x0, y0, x1, y1 from brows to chin."""
    corners = Canvas(side, pose).to_pixels(ellipse(0, 0.14, 0.48, 0.64)) / SUPERSAMPLE
    return np.concatenate([corners.min(axis=0), corners.max(axis=0)]).astype(np.float32)


# --- motion ---


def poses(mouth: np.ndarray, seed: int, scale: float = 0.42) -> list[Pose]:
    """Head sway and blinks around an articulation track."""
    rng = np.random.default_rng(seed)
    t = np.arange(len(mouth)) / FPS
    f, p = rng.uniform(0.12, 0.4, 6), rng.uniform(0, 2 * np.pi, 6)
    sway = [np.sin(2 * np.pi * f[i] * t + p[i]) for i in range(6)]
    blink = np.zeros(len(t))
    at = rng.uniform(0.4, 2.5)
    while at < t[-1]:
        blink = np.maximum(blink, np.clip(1 - np.abs(t - at) / 0.11, 0, 1))
        at += rng.uniform(1.8, 4.5)
    return [
        Pose(
            x=0.5 + 0.012 * sway[0][i],
            y=0.44 + 0.008 * sway[1][i],
            scale=scale * (1 + 0.012 * sway[2][i]),
            roll_deg=2.4 * sway[3][i],
            turn=0.35 * sway[4][i],
            blink=float(blink[i]),
            openness=float(m[0]),
            width=float(m[1]),
            rounding=float(m[2]),
        )
        for i, m in enumerate(mouth)
    ]


def encode(frames: list[np.ndarray], wav: Path | None, output: Path) -> None:
    """Frames (and sound) to H.264."""
    from lipsync_engine import media

    side = frames[0].shape[0]
    sound = ["-i", str(wav)] if wav else []
    command = [str(media.find_ffmpeg()), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{side}x{side}", "-r", str(FPS), "-i", "-", *sound, "-c:v", "libx264", "-crf", "18"]
    command += ["-preset", "slow", "-pix_fmt", "yuv420p", "-colorspace", "bt709", "-color_primaries", "bt709"]
    command += [
        "-color_trc",
        "bt709",
        "-vf",
        "scale=out_color_matrix=bt709",
        "-c:a",
        "aac",
        "-b:a",
        "64k",
        str(output),
    ]
    subprocess.run(command, input=b"".join(f.tobytes() for f in frames), check=True)


def make_clip(seed: int, text: str, output: Path, *, voice: str = "en-us", side: int = 512) -> None:
    """A presenter who says `text`."""
    speech = speak(text, voice)
    mouth = articulation(speech.events, math.ceil((speech.duration_s + 0.2) * FPS))
    who = Identity.from_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "speech.wav"
        write_wav(speech.samples, speech.sample_rate, wav)
        encode([draw(who, pose, side) for pose in poses(mouth, seed)], wav, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text", default="Hello, and welcome to the studio.")
    parser.add_argument("--voice", default="en-us")
    parser.add_argument("--side", type=int, default=512)
    arguments = parser.parse_args()
    make_clip(arguments.seed, arguments.text, arguments.output, voice=arguments.voice, side=arguments.side)


if __name__ == "__main__":
    main()
