"""A detector whose answers a test writes, and the tracks of its faces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lipsync_engine.faces import Detection, FaceTracker, FaceTracks
from lipsync_engine.params import FaceChoice

LARGEST = FaceChoice()
FPS = 25.0
WIDTH, HEIGHT = 640, 360


def face(
    x: float, y: float, size: float = 80.0, score: float = 0.9, yaw_deg: float = 0.0, presence: float = 1.0
) -> Detection:
    box = np.array([x - size / 2, y - size / 2, x + size / 2, y + size / 2], dtype=np.float32)
    points = np.array(
        [[x - 0.2 * size, y - 0.2 * size], [x + 0.2 * size, y - 0.2 * size], [x, y]], np.float32
    )
    return Detection(box, score, points, yaw_deg, presence=presence)


class ScriptedDetector:
    """Returns the scripted detections of each frame in turn."""

    name = "scripted"
    smooth_s = 0.12

    def __init__(self, script: list[list[Detection]]) -> None:
        self._script = iter(script)

    def detect(
        self, image: np.ndarray, previous: Sequence[Detection] = (), *, search: bool = True
    ) -> list[Detection]:
        return next(self._script)


def image(shade: int = 100) -> np.ndarray:
    ramp = np.linspace(0, 60, WIDTH, dtype=np.float32)[None, :, None] * np.ones((HEIGHT, 1, 3), np.float32)
    return (ramp + shade).astype(np.uint8)


def track(
    script: list[list[Detection]], images: list[np.ndarray] | None = None, fps: float = FPS
) -> FaceTracks:
    tracker = FaceTracker(ScriptedDetector(script), WIDTH, HEIGHT)
    for i in range(len(script)):
        tracker.add(i / fps, images[i] if images else image())
    return tracker.snapshot(is_complete=True)
