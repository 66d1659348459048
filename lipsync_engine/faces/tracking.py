"""Tracking: every face in every frame of a clip, linked over time, and where shots begin.

Tracks never cross a cut. Only detections are stored, so memory does not grow with the frames. The module does
not decide which person speaks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsync_engine.faces.detect import CERTAIN_PRESENCE, MIN_PRESENCE, Detection, FaceDetector
from lipsync_engine.utils import FloatArray

FORMAT = 4
MAX_MISSING_S = 1.0
"""A face that returns near its last place within this time is the same person."""

MIN_FACE_PX = 50
"""Smaller faces, by the shorter side of their box in full-size pixels, are left untouched."""

SEARCH_EVERY = 5
"""New faces are searched for in every n-th frame; between, a detector may follow those that it has."""

DEFAULT_SMOOTH_S = 0.12
"""Width of the smoothing fit for faces that the user provides, seconds."""

LIP_RATIO, LIP_QUANTILE = 0.45, 0.9
"""Lips whose contrast is below this share of the track's upper quantile are covered. On the real clip the
share of free lips is at least 0.5, wide open or turned ones included. A hand in the colour of the skin over
half of the lips brings it below 0.45, and so does a microphone. Presence does not fall under either."""

MIN_LIP_CONTRAST = 0.1
"""Faces whose lips hardly differ from the skin are judged by presence alone."""

CHANGE_SIDE = 32
"""The change inside a face box is measured at this size, pixels."""

MAX_COST = 1.2
CUT_BINS = 16
CUT_MIN = 0.30
CUT_RATIO = 4.0
"""A cut: the histogram's distance to the last frame is above CUT_MIN and CUT_RATIO times the usual one."""


_COLUMNS = {
    "frames": (),
    "boxes": (4,),
    "points": (3, 2),
    "scores": (),
    "yaw_deg": (),
    "roll_deg": (),
    "presence": (),
    "mouth_opening": (),
    "eye_opening": (),
    "lip_contrast": (),
    "change": (),
}
"""Arrays of a track and the shape of one row."""


@dataclass(frozen=True, slots=True)
class Track:
    """One face through one shot, unsmoothed, in full-size pixels.

    Attributes:
        track_id: unique in the clip.
        frames: int64 (K,) decoded frame numbers, ascending, gaps allowed.
        boxes: float32 (K, 4); points: float32 (K, 3, 2).
        scores, yaw_deg, roll_deg, presence, mouth_opening, eye_opening, lip_contrast: float32 (K,), see
            `Detection`.
        change: float32 (K,) mean difference of the image in the box to the frame before, levels; NaN in a
            shot's first frame and where it is not measured.
        min_side_px: faces of a smaller side are left untouched.
    """

    track_id: int
    frames: NDArray[np.int64]
    boxes: FloatArray
    points: FloatArray
    scores: FloatArray
    yaw_deg: FloatArray
    roll_deg: FloatArray
    presence: FloatArray
    mouth_opening: FloatArray
    eye_opening: FloatArray
    lip_contrast: FloatArray
    change: FloatArray
    min_side_px: int = MIN_FACE_PX

    @classmethod
    def from_points(
        cls, track_id: int, frames: NDArray[np.int64], boxes: FloatArray, points: FloatArray
    ) -> Track:
        """Make a track of faces that the user provides. They are used whatever their size."""
        ones, unknown = np.ones(len(frames), np.float32), np.full(len(frames), np.nan, np.float32)
        facing = np.zeros(len(frames), np.float32)
        measures = (facing, unknown, ones, unknown, unknown, unknown, unknown)
        return cls(track_id, frames, boxes, points, ones, *measures, min_side_px=0)

    @property
    def is_small(self) -> NDArray[np.bool_]:
        """bool (K,): the face is too small to be worth rendering."""
        return np.asarray((self.boxes[:, 2:] - self.boxes[:, :2]).min(axis=1) < self.min_side_px)

    @property
    def is_usable(self) -> NDArray[np.bool_]:
        """bool (K,): the face is large enough and surely visible."""
        return ~self.is_small & (self.presence >= MIN_PRESENCE)

    @property
    def is_covered(self) -> NDArray[np.bool_]:
        """bool (K,): something seems to hide the lips or another part of the face."""
        measured = self.lip_contrast[np.isfinite(self.lip_contrast)]
        usual = float(np.quantile(measured, LIP_QUANTILE)) if len(measured) else 0.0
        is_pale = self.lip_contrast < LIP_RATIO * usual
        return np.asarray((self.presence < CERTAIN_PRESENCE) | (is_pale & (usual >= MIN_LIP_CONTRAST)))

    def between(self, start: int, stop: int) -> Track | None:
        """Return the part of the track in frames [start, stop), or None where it has none."""
        a, b = np.searchsorted(self.frames, [start, stop])
        rows = {name: getattr(self, name)[a:b] for name in _COLUMNS}
        return None if a == b else dataclasses.replace(self, **rows)


@dataclass(frozen=True, slots=True)
class FaceTracks:
    """All faces of a clip, or of its beginning.

    Attributes:
        width, height: full size, pixels.
        pts_s: float64 (N,) frame times.
        shots: int64 (N,) shot number of each frame.
        smooth_s: the detector's, see `FaceDetector`.
        is_complete: the clip has no further frames.
    """

    width: int
    height: int
    pts_s: NDArray[np.float64]
    shots: NDArray[np.int64]
    tracks: tuple[Track, ...]
    smooth_s: float
    is_complete: bool

    def save(self, path: Path) -> None:
        """Write an .npz file. It appears complete or not at all."""
        lengths = np.array([len(track.frames) for track in self.tracks], dtype=np.int64)
        columns: dict[str, Any] = {name: _joined(self.tracks, name) for name in _COLUMNS}
        part = path.with_name(f"{path.name}.part")
        with part.open("wb") as file:
            np.savez_compressed(
                file,
                format=np.array(FORMAT),
                size=np.array([self.width, self.height]),
                pts_s=self.pts_s,
                shots=self.shots,
                smooth_s=np.array(self.smooth_s),
                ended=np.array(self.is_complete),
                ids=np.array([track.track_id for track in self.tracks], dtype=np.int64),
                lengths=lengths,
                **columns,
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
            parts = {name: np.split(stored[name], cuts) for name in _COLUMNS}
            tracks = []
            for i, track_id in enumerate(stored["ids"]):
                columns: dict[str, Any] = {name: parts[name][i] for name in _COLUMNS}
                tracks.append(Track(int(track_id), **columns))
            width, height = (int(side) for side in stored["size"])
            return cls(
                width,
                height,
                stored["pts_s"],
                stored["shots"],
                tuple(tracks),
                float(stored["smooth_s"]),
                bool(stored["ended"]),
            )


def _joined(tracks: Sequence[Track], name: str) -> NDArray[np.generic]:
    dtype = np.int64 if name == "frames" else np.float32
    if not tracks:
        return np.zeros((0, *_COLUMNS[name]), dtype)
    return np.concatenate([getattr(track, name) for track in tracks])


@dataclass(frozen=True, slots=True)
class _Row:
    """One frame of a track."""

    number: int
    detection: Detection
    change: float


@dataclass(slots=True)
class _OpenTrack:
    """A track that may still grow."""

    track_id: int
    last_s: float
    box: NDArray[np.float32]
    velocity: NDArray[np.float32] = field(default_factory=lambda: np.zeros(2, np.float32))
    rows: list[_Row] = field(default_factory=list)


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
        self._previous: list[Detection] = []
        self._previous_image: NDArray[np.uint8] | None = None
        self._n_since_search = 0
        self._histogram: NDArray[np.float32] | None = None
        self._usual_distance = 0.05

    def add(self, pts_s: float, image: NDArray[np.uint8]) -> None:
        """Add the next frame, uint8 (h, w, 3) RGB."""
        number = len(self._pts_s)
        if self._is_cut(image):
            self._close(self._open)
            self._previous, self._previous_image, self._n_since_search = [], None, 0
            self._shots.append(self._shots[-1] + 1)
        else:
            self._shots.append(self._shots[-1] if self._shots else 0)
        self._pts_s.append(pts_s)
        if self._detector is None:
            return
        search = self._n_since_search % SEARCH_EVERY == 0
        self._n_since_search += 1
        detections = self._detector.detect(image, self._previous, search=search)
        scale = np.float32(self._width / image.shape[1])
        rows = [
            _Row(number, _scaled(detection, scale), _change(self._previous_image, image, detection.box))
            for detection in detections
        ]
        self._previous, self._previous_image = detections, image
        self._match(pts_s, rows)

    def snapshot(self, *, is_complete: bool) -> FaceTracks:
        """Return the tracks of all frames added.

        Args:
            is_complete: no further frames follow.
        """
        tracks = []
        for open_track in sorted(self._closed + self._open, key=lambda track: track.track_id):
            detections = [row.detection for row in open_track.rows]
            tracks.append(
                Track(
                    open_track.track_id,
                    frames=np.array([row.number for row in open_track.rows], dtype=np.int64),
                    boxes=np.array([d.box for d in detections], dtype=np.float32),
                    points=np.array([d.points for d in detections], dtype=np.float32),
                    scores=np.array([d.score for d in detections], dtype=np.float32),
                    yaw_deg=np.array([d.yaw_deg for d in detections], dtype=np.float32),
                    roll_deg=np.array([d.roll_deg for d in detections], dtype=np.float32),
                    presence=np.array([d.presence for d in detections], dtype=np.float32),
                    mouth_opening=np.array([d.mouth_opening for d in detections], dtype=np.float32),
                    eye_opening=np.array([d.eye_opening for d in detections], dtype=np.float32),
                    lip_contrast=np.array([d.lip_contrast for d in detections], dtype=np.float32),
                    change=np.array([row.change for row in open_track.rows], dtype=np.float32),
                )
            )
        return FaceTracks(
            self._width,
            self._height,
            np.array(self._pts_s, dtype=np.float64),
            np.array(self._shots, dtype=np.int64),
            tuple(tracks),
            DEFAULT_SMOOTH_S if self._detector is None else self._detector.smooth_s,
            is_complete,
        )

    def _match(self, pts_s: float, rows: list[_Row]) -> None:
        """Pair detections with tracks, cheapest pair first."""
        self._close([track for track in self._open if pts_s - track.last_s > MAX_MISSING_S])
        pairs = sorted(
            (cost, i, j)
            for i, track in enumerate(self._open)
            for j, row in enumerate(rows)
            if (cost := _cost(track, row.detection, pts_s)) <= MAX_COST
        )
        used_tracks: set[int] = set()
        used_rows: set[int] = set()
        for _, i, j in pairs:
            if i not in used_tracks and j not in used_rows:
                used_tracks.add(i)
                used_rows.add(j)
                _extend(self._open[i], pts_s, rows[j])
        for j, row in enumerate(rows):
            if j not in used_rows:
                self._open.append(_OpenTrack(self._next_id, pts_s, row.detection.box, rows=[row]))
                self._next_id += 1

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


def _scaled(detection: Detection, scale: np.float32) -> Detection:
    """Return the detection in full-size pixels, without its mesh: a long clip would not fit in memory.

    Points are pixel centres, borders of boxes are not.
    """
    return dataclasses.replace(
        detection,
        box=detection.box * scale,
        points=(detection.points + np.float32(0.5)) * scale - np.float32(0.5),
        mesh=None,
    )


def _change(previous: NDArray[np.uint8] | None, image: NDArray[np.uint8], box: FloatArray) -> float:
    """Return the mean difference of both images in a box, levels of the green channel; NaN without both."""
    height, width = image.shape[:2]
    x0, y0 = (int(v) for v in np.clip(box[:2], 0, (width - 1, height - 1)))
    x1, y1 = (int(v) for v in np.clip(np.ceil(box[2:]), (x0 + 1, y0 + 1), (width, height)))
    if previous is None or previous.shape != image.shape:
        return math.nan
    one, other = (
        cv2.resize(
            np.ascontiguousarray(each[y0:y1, x0:x1, 1]),
            (CHANGE_SIDE, CHANGE_SIDE),
            interpolation=cv2.INTER_AREA,
        )
        for each in (previous, image)
    )
    return float(cv2.absdiff(one, other).mean())


def _centre(box: NDArray[np.float32]) -> NDArray[np.float32]:
    return (box[:2] + box[2:]) * np.float32(0.5)


def _cost(track: _OpenTrack, detection: Detection, pts_s: float) -> float:
    """Return the distance to the track's expected place, in face sizes, plus the change of size."""
    size = float(np.sqrt(np.prod(np.maximum(track.box[2:] - track.box[:2], 1.0))))
    new_size = float(np.sqrt(np.prod(np.maximum(detection.box[2:] - detection.box[:2], 1.0))))
    expected = _centre(track.box) + track.velocity * np.float32(pts_s - track.last_s)
    distance = float(np.linalg.norm(_centre(detection.box) - expected)) / size
    return distance + abs(math.log(new_size / size))


def _extend(track: _OpenTrack, pts_s: float, row: _Row) -> None:
    detection = row.detection
    elapsed_s = max(pts_s - track.last_s, 1e-3)
    velocity = (_centre(detection.box) - _centre(track.box)) / np.float32(elapsed_s)
    track.velocity = np.float32(0.7) * track.velocity + np.float32(0.3) * velocity
    track.box, track.last_s = detection.box, pts_s
    track.rows.append(row)
