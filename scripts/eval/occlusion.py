"""Are covered mouths detected? Measured on the real clip with objects drawn over it.

    python -m scripts.eval.occlusion --output occlusion.json --sheet occlusion.png

A hand in the colour of the skin, a microphone and strands of hair come and go over the mouth. Frames are
grouped by the share of their lips that is covered. The result counts those marked by presence alone
and by `Track.is_covered`, which adds the colour of the lips. False marks are in frames without an object.
The PSNR compares the object's pixels in the generated part with the source, where a perfect model paints the
free face over them: a matte has to improve it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lipsync_engine.faces import FaceDetector, FaceTracker, Track, covered_intervals
from lipsync_engine.faces.align import solve_matrix, square_matrix
from lipsync_engine.faces.detect import CERTAIN_PRESENCE
from lipsync_engine.faces.face_mesh import OUTER_LIPS
from lipsync_engine.faces.registry import load_detector
from lipsync_engine.models.latentsync.mask import load_fixed_mask
from lipsync_engine.weights import WeightsStore
from tests.support import real_clip

SIDE = 256
MOUTH = (295.0, 383.0)
"""About where the mouth is in frames as the analysis receives them; the crop is 102 px wide there."""

UNIT = 0.4
"""Pixels of these frames per pixel of the crop."""

SHARES = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.9), (0.9, 1.0))
Mask = np.ndarray
Draw = Callable[[Mask, float], None]


def _ramp(time_s: float, start_s: float, stop_s: float, rise_s: float) -> float:
    """Return 0 outside [start_s, stop_s] and 1 inside, with smooth edges."""
    x = float(np.clip(min(time_s - start_s, stop_s - time_s) / rise_s, 0, 1))
    return x * x * (3 - 2 * x)


def _point(x: float, y: float) -> tuple[int, int]:
    return round(MOUTH[0] + x * UNIT), round(MOUTH[1] + y * UNIT)


def draw_hand(mask: Mask, time_s: float) -> None:
    near = _ramp(time_s, 2.0, 6.5, 1.0)
    if near == 0:
        return
    x, y = (1 - near) * 260 + 8 * np.sin(3 * time_s), (1 - near) * 120 + 5 * np.cos(2 * time_s)
    axes = (round(75 * UNIT), round(55 * UNIT))
    cv2.ellipse(mask, _point(x + 70, y + 50), axes, 30, 0, 360, 255, -1, cv2.LINE_AA)
    for finger in range(4):
        tip = _point(x - 62 + 9 * finger, y - 22 + 21 * finger)
        cv2.line(mask, tip, _point(x + 60, y + 20 + 18 * finger), 255, round(20 * UNIT), cv2.LINE_AA)


def draw_microphone(mask: Mask, time_s: float) -> None:
    near = _ramp(time_s, 1.5, 7.2, 0.6)
    if near == 0:
        return
    x, y = 20 * np.sin(1.7 * time_s), 6 + (1 - near) * 200 + 14 * np.sin(2.3 * time_s)
    cv2.line(mask, _point(x, y), _point(x + 80, y + 260), 255, round(22 * UNIT), cv2.LINE_AA)
    cv2.circle(mask, _point(x, y), round(30 * UNIT), 255, -1, cv2.LINE_AA)


def draw_hair(mask: Mask, time_s: float) -> None:
    near = _ramp(time_s, 2.5, 6.5, 0.7)
    if near == 0:
        return
    for strand in range(5):
        x = -90 + (near - 1) * 160 + 14 * strand
        sway = 0.4 * np.sin(2 * time_s) + 0.3 * strand
        line = [
            _point(x + 60 * np.sin(2.2 * v + sway) + 40 * v, -140 + 230 * v) for v in np.linspace(0, 1, 24)
        ]
        cv2.polylines(mask, [np.array(line)], False, 255, max(2, round(4.5 * UNIT)), cv2.LINE_AA)


OBJECTS: dict[str, tuple[Draw, tuple[float, float, float] | None, float]] = {
    "hand": (draw_hand, None, 0.92),
    "hand as bright as the face": (draw_hand, None, 1.0),
    "microphone": (draw_microphone, (45.0, 45.0, 48.0), 1.0),
    "hair": (draw_hair, (60.0, 42.0, 30.0), 1.0),
}
"""Shape, colour (None: that of the cheek in the first frame) and brightness."""


def follow(detector: FaceDetector, images: list[np.ndarray]) -> tuple[Track, np.ndarray]:
    """Return the longest track and the mesh (N, 468, 2) of every frame, NaN without one."""
    height, width = images[0].shape[:2]
    tracker = FaceTracker(detector, width, height)
    meshes = np.full((len(images), 468, 2), np.nan)
    previous: list[Any] = []
    for number, image in enumerate(images):
        tracker.add(number / real_clip.FPS, image)
        previous = detector.detect(image, previous, search=number % 5 == 0)
        if best := max((one for one in previous if one.mesh), key=lambda one: one.presence, default=None):
            meshes[number] = best.mesh.points[:, :2]
    tracks = tracker.snapshot(is_complete=True).tracks
    return max(tracks, key=lambda track: len(track.frames)), meshes


def share_of_lips(mask: Mask, mesh: np.ndarray) -> float:
    """Return the share of the lips' outline that an object covers."""
    if not np.isfinite(mesh).all():
        return 0.0
    lips = np.zeros_like(mask)
    cv2.fillPoly(lips, [np.rint(mesh[list(OUTER_LIPS)]).astype(np.int32)], 1)
    return float((mask[lips > 0] > 127).mean()) if lips.any() else 0.0


def to_crop(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    matrix = square_matrix(solve_matrix(points, SIDE), SIDE)
    return cv2.warpAffine(image, matrix, (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE)


def measure(detector: FaceDetector, free: list[np.ndarray], name: str) -> tuple[dict[str, Any], np.ndarray]:
    """Draw one object over the frames and measure; also return a strip of crops."""
    draw, colour, brightness = OBJECTS[name]
    rng = np.random.default_rng(3)
    grain = cv2.GaussianBlur(rng.normal(0, 1, free[0].shape[:2]).astype(np.float32), (0, 0), 2)
    skin = real_clip.colour_of_skin(free[0], 0)
    fill = np.array(colour or skin * brightness) + 6 * (grain / grain.std())[..., None]
    masks, images = [], []
    for number, image in enumerate(free):
        mask = np.zeros(image.shape[:2], np.uint8)
        draw(mask, number / real_clip.FPS)
        alpha = mask[..., None] / 255.0
        masks.append(mask)
        images.append(np.clip(image * (1 - alpha) + fill * alpha, 0, 255).astype(np.uint8))
    track, meshes = follow(detector, images)
    shares = np.array([share_of_lips(*pair) for pair in zip(masks, meshes, strict=True)])[track.frames]
    is_free = np.array([not masks[number].any() for number in track.frames])
    low_presence, covered = track.presence < CERTAIN_PRESENCE, track.is_covered
    generated = load_fixed_mask(SIDE) < 0.5
    errors = []
    for row, number in enumerate(track.frames):
        inside = (to_crop(masks[number], track.points[row]) > 127) & generated
        if inside.sum() > 30:
            crops = [to_crop(one[number], track.points[row]).astype(np.float64) for one in (free, images)]
            errors.append(np.square(crops[0] - crops[1])[inside].mean())
    false_times_s = np.flatnonzero(covered & is_free) / real_clip.FPS
    result = {
        "frames_without_object": int(is_free.sum()),
        "false_by_presence": int((low_presence & is_free).sum()),
        "false": len(false_times_s),
        "false_moments": len(covered_intervals(covered & is_free, track.frames / real_clip.FPS)),
        "psnr_without_matte_db": round(10 * float(np.log10(255**2 / np.mean(errors))), 1),
        "lips_covered": [
            {
                "share": [low, high],
                "frames": int(rows.sum()),
                "by_presence": int((low_presence & rows).sum()),
                "marked": int((covered & rows).sum()),
            }
            for low, high in SHARES
            for rows in [(shares > low) & (shares <= high)]
        ],
    }
    shown = [to_crop(images[track.frames[k]], track.points[k]) for k in range(40, len(track.frames), 15)]
    return result, np.hstack(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sheet", type=Path, help="PNG with crops of every object")
    arguments = parser.parse_args()
    detector = load_detector("yunet", WeightsStore())
    free = [image for _, image in real_clip.upright(250).frames()]
    results, strips = {}, []
    for name in OBJECTS:
        results[name], strip = measure(detector, free, name)
        strips.append(strip)
        print(name, json.dumps(results[name]))
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    if arguments.sheet is not None:
        width = min(strip.shape[1] for strip in strips)
        sheet = np.vstack([strip[:, :width] for strip in strips])
        cv2.imwrite(str(arguments.sheet), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))


if __name__ == "__main__":
    main()
