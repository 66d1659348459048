"""Tracking: every face in every frame of a clip, linked over time, and where shots begin.

Tracks never cross a cut. Only detections are stored, so memory does not grow with the frames. The module does
not decide which person speaks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsync_engine.faces.detect import Detection, FaceDetector

FORMAT = 2
MAX_MISSING_S = 1.0
"""A face that returns near its last place within this time is the same person."""

MIN_FACE_PX = 24.0
"""Smaller faces, in full-size pixels, are ignored."""

MAX_COST = 1.2
CUT_BINS = 16
CUT_MIN = 0.30
CUT_RATIO = 4.0
"""A cut: the histogram's distance to the last frame is above CUT_MIN and CUT_RATIO times the usual one."""


@dataclass(frozen=True, slots=True)
class Track:
    """One face through one shot, unsmoothed, in full-size pixels.

    Attributes:
        track_id: unique in the clip.
        frames: int64 (K,) decoded frame numbers, ascending, gaps allowed.
        boxes: float32 (K, 4); points: float32 (K, 3, 2); scores, yaw_deg: float32 (K,).
    """

    track_id: int
    frames: NDArray[np.int64]
    boxes: NDArray[np.float32]
    points: NDArray[np.float32]
    scores: NDArray[np.float32]
    yaw_deg: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FaceTracks:
    """All faces of a clip, or of its beginning.

    Attributes:
        width, height: full size, pixels.
        pts_s: float64 (N,) frame times.
        shots: int64 (N,) shot number of each frame.
        is_complete: the clip has no further frames.
    """

    width: int
    height: int
    pts_s: NDArray[np.float64]
    shots: NDArray[np.int64]
    tracks: tuple[Track, ...]
    is_complete: bool

    def save(self, path: Path) -> None:
        """Write an .npz file. It appears complete or not at all."""
        lengths = np.array([len(track.frames) for track in self.tracks], dtype=np.int64)
        part = path.with_name(f"{path.name}.part")
        with part.open("wb") as file:
            np.savez_compressed(
                file,
                format=np.array(FORMAT),
                size=np.array([self.width, self.height]),
                pts_s=self.pts_s,
                shots=self.shots,
                ended=np.array(self.is_complete),
                ids=np.array([track.track_id for track in self.tracks], dtype=np.int64),
                lengths=lengths,
                frames=_joined(self.tracks, "frames"),
                boxes=_joined(self.tracks, "boxes"),
                points=_joined(self.tracks, "points"),
                scores=_joined(self.tracks, "scores"),
                yaw_deg=_joined(self.tracks, "yaw_deg"),
            )
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> FaceTracks:
        """Read a file that `save` wrote.

        Raises:
            ValueError: not such a file, or of another format.
        """
        with np.load(path, allow_pickle=False) as stored:
            if int(stored["format"]) != FORMAT:
                raise ValueError("face tracks of another format")
            cuts = np.cumsum(stored["lengths"])[:-1]
            parts = {name: np.split(stored[name], cuts) for name in _SHAPES}
            tracks = tuple(
                Track(int(track_id), *(parts[name][i] for name in _SHAPES))
                for i, track_id in enumerate(stored["ids"])
            )
            width, height = (int(side) for side in stored["size"])
            return cls(width, height, stored["pts_s"], stored["shots"], tracks, bool(stored["ended"]))


_SHAPES = {"frames": (), "boxes": (4,), "points": (3, 2), "scores": (), "yaw_deg": ()}


def _joined(tracks: Sequence[Track], name: str) -> NDArray[np.generic]:
    dtype = np.int64 if name == "frames" else np.float32
    if not tracks:
        return np.zeros((0, *_SHAPES[name]), dtype)
    return np.concatenate([getattr(track, name) for track in tracks])


@dataclass(slots=True)
class _OpenTrack:
    """A track that may still grow."""

    track_id: int
    last_s: float
    box: NDArray[np.float32]
    velocity: NDArray[np.float32] = field(default_factory=lambda: np.zeros(2, np.float32))
    detections: list[tuple[int, Detection]] = field(default_factory=list)


class FaceTracker:
    """Receives frames in order and returns tracks at any time.

    Args:
        detector: None where the user provides the faces: then only times and shots are recorded.
        width, height: full size of the video; frames may be scaled down.
    """

    def __init__(self, detector: FaceDetector | None, width: int, height: int) -> None:
        self._detector, self._width, self._height = detector, width, height
        self._pts_s: list[float] = []
        self._shots: list[int] = []
        self._open: list[_OpenTrack] = []
        self._closed: list[_OpenTrack] = []
        self._next_id = 0
        self._histogram: NDArray[np.float32] | None = None
        self._usual_distance = 0.05

    def add(self, pts_s: float, image: NDArray[np.uint8]) -> None:
        """Add the next frame, uint8 (h, w, 3) RGB."""
        number = len(self._pts_s)
        if self._is_cut(image):
            self._close(self._open)
            self._shots.append(self._shots[-1] + 1)
        else:
            self._shots.append(self._shots[-1] if self._shots else 0)
        self._pts_s.append(pts_s)
        if self._detector is None:
            return
        scale = np.float32(self._width / image.shape[1])
        detections = [
            Detection(d.box * scale, d.score, d.points * scale, d.yaw_deg)
            for d in self._detector.detect(image)
        ]
        detections = [d for d in detections if min(d.box[2] - d.box[0], d.box[3] - d.box[1]) >= MIN_FACE_PX]
        self._match(number, pts_s, detections)

    def snapshot(self, *, is_complete: bool) -> FaceTracks:
        """Return the tracks of all frames added.

        Args:
            is_complete: no further frames follow.
        """
        tracks = []
        for open_track in sorted(self._closed + self._open, key=lambda track: track.track_id):
            numbers, detections = zip(*open_track.detections, strict=True)
            tracks.append(
                Track(
                    open_track.track_id,
                    np.array(numbers, dtype=np.int64),
                    np.array([d.box for d in detections], dtype=np.float32),
                    np.array([d.points for d in detections], dtype=np.float32),
                    np.array([d.score for d in detections], dtype=np.float32),
                    np.array([d.yaw_deg for d in detections], dtype=np.float32),
                )
            )
        return FaceTracks(
            self._width,
            self._height,
            np.array(self._pts_s, dtype=np.float64),
            np.array(self._shots, dtype=np.int64),
            tuple(tracks),
            is_complete,
        )

    def _match(self, number: int, pts_s: float, detections: list[Detection]) -> None:
        """Pair detections with tracks, cheapest pair first."""
        self._close([track for track in self._open if pts_s - track.last_s > MAX_MISSING_S])
        pairs = sorted(
            (cost, i, j)
            for i, track in enumerate(self._open)
            for j, detection in enumerate(detections)
            if (cost := _cost(track, detection, pts_s)) <= MAX_COST
        )
        used_tracks: set[int] = set()
        used_detections: set[int] = set()
        for _, i, j in pairs:
            if i not in used_tracks and j not in used_detections:
                used_tracks.add(i)
                used_detections.add(j)
                _extend(self._open[i], number, pts_s, detections[j])
        for j, detection in enumerate(detections):
            if j not in used_detections:
                track = _OpenTrack(self._next_id, pts_s, detection.box)
                track.detections.append((number, detection))
                self._next_id += 1
                self._open.append(track)

    def _close(self, tracks: list[_OpenTrack]) -> None:
        self._closed += tracks
        self._open = (
            [track for track in self._open if track not in tracks] if tracks is not self._open else []
        )

    def _is_cut(self, image: NDArray[np.uint8]) -> bool:
        small = cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)
        cells = small.reshape(2, 32, 2, 32, 3).transpose(0, 2, 1, 3, 4).reshape(4, -1, 3) // (256 // CUT_BINS)
        histogram = np.stack(
            [np.bincount(cell[:, c], minlength=CUT_BINS) for cell in cells for c in range(3)]
        ).astype(np.float32)
        histogram /= histogram.sum(axis=1, keepdims=True)
        previous, self._histogram = self._histogram, histogram
        if previous is None:
            return False
        distance = float(0.5 * np.abs(histogram - previous).sum(axis=1).mean())
        is_cut = distance > max(CUT_MIN, CUT_RATIO * self._usual_distance)
        if not is_cut:
            self._usual_distance = 0.9 * self._usual_distance + 0.1 * distance
        return is_cut


def _centre(box: NDArray[np.float32]) -> NDArray[np.float32]:
    return (box[:2] + box[2:]) * np.float32(0.5)


def _cost(track: _OpenTrack, detection: Detection, pts_s: float) -> float:
    """Return the distance to the track's expected place, in face sizes, plus the change of size."""
    size = float(np.sqrt(np.prod(np.maximum(track.box[2:] - track.box[:2], 1.0))))
    new_size = float(np.sqrt(np.prod(np.maximum(detection.box[2:] - detection.box[:2], 1.0))))
    expected = _centre(track.box) + track.velocity * np.float32(pts_s - track.last_s)
    distance = float(np.linalg.norm(_centre(detection.box) - expected)) / size
    return distance + abs(math.log(new_size / size))


def _extend(track: _OpenTrack, number: int, pts_s: float, detection: Detection) -> None:
    elapsed_s = max(pts_s - track.last_s, 1e-3)
    velocity = (_centre(detection.box) - _centre(track.box)) / np.float32(elapsed_s)
    track.velocity = np.float32(0.7) * track.velocity + np.float32(0.3) * velocity
    track.box, track.last_s = detection.box, pts_s
    track.detections.append((number, detection))
