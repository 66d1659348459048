"""Detection: faces and their alignment points in single images.

A detector receives RGB images in whatever size they have. Time, tracks and videos are the tracker's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsync_engine.errors import ErrorCode, WeightsError
from lipsync_engine.faces.align import alignment_points
from lipsync_engine.faces.face_mesh import REGION_SIZE, FaceMeshNet, Mesh, Region, measure_lip_contrast
from lipsync_engine.utils import FloatArray

MIN_PRESENCE = 0.5
"""Faces of a lower presence are left untouched. Too much of them is hidden, or there is no face."""


@dataclass(frozen=True, slots=True)
class Detection:
    """One face in one image, in that image's own pixels.

    Attributes:
        box: float32 (4,), x0, y0, x1, y1 with exclusive right and bottom; may reach outside the image.
        score: confidence of the search, 0..1.
        points: float32 (3, 2), centre of the left brow, centre of the right brow, nose: the three points that
            the crop is aligned by. "Left" is the image's left of an upright face.
        yaw_deg: head turn, 0 towards the camera, positive towards the image's right if upright.
        roll_deg: head tilt, positive clockwise in the image; NaN where it is not measured.
        presence: 0..1, how surely the points lie on a visible face; 1 where it is not measured.
        mouth_opening: gap between the inner lips in distances between the eyes; NaN where it is not measured.
        eye_opening: gap between the lids in widths of the eye; NaN where it is not measured.
        lip_contrast: how much redder the lips are than the skin around them; NaN where it is not measured.
        mesh: the points of the whole face, where the detector measures them.
    """

    box: FloatArray
    score: float
    points: FloatArray
    yaw_deg: float
    roll_deg: float = math.nan
    presence: float = 1.0
    mouth_opening: float = math.nan
    eye_opening: float = math.nan
    lip_contrast: float = math.nan
    mesh: Mesh | None = None

    @classmethod
    def from_mesh(cls, mesh: Mesh, score: float, image: NDArray[np.uint8]) -> Detection:
        """Make a detection from a face that was measured in an image, uint8 (H, W, 3) RGB."""
        return cls(
            box=mesh.box,
            score=score,
            points=mesh.alignment_points,
            yaw_deg=math.degrees(mesh.yaw),
            roll_deg=math.degrees(mesh.roll),
            presence=mesh.presence,
            mouth_opening=mesh.mouth_opening,
            eye_opening=mesh.eye_opening,
            lip_contrast=measure_lip_contrast(image, mesh),
            mesh=mesh,
        )


class FaceDetector(Protocol):
    """Finds faces in images.

    Attributes:
        name: part of the key of cached analyses: change it whenever the results may change.
        smooth_s: width of the fit that smooths the points over time, seconds. It suits the detector's noise.
    """

    @property
    def name(self) -> str: ...

    @property
    def smooth_s(self) -> float: ...

    def detect(
        self, image: NDArray[np.uint8], previous: Sequence[Detection] = (), *, search: bool = True
    ) -> list[Detection]:
        """Detect the faces in an RGB image, uint8 (H, W, 3), in no particular order.

        Args:
            previous: the detections in the frame before, in pixels of images of this size. A detector may
                follow them instead of searching.
            search: look for further faces. A detector that does not follow always searches.
        """
        ...


# --- photographed people: YuNet and the face mesh ---

SEARCH_SIDE = 640
"""Faces are searched with the image scaled down to this longest side."""

MIN_SCORE = 0.6
NMS_OVERLAP = 0.3

MAX_FACES = 12
"""Only the largest faces are measured, which bounds the cost of a crowd."""

CERTAIN_PRESENCE = 0.88
"""From this presence on no other quarter turn is tried."""

QUARTER_TURNS = (0, 1, 3, 2)
"""Clockwise quarter turns of a face in the order in which they are tried."""

MAX_RUNS = 2
"""Runs of the mesh for one region, before its presence decides."""

SAME_FACE = 0.4
"""Boxes whose centres are nearer than this, in sizes of the larger box, show the same face."""


class FaceMeshDetector:
    """YuNet finds faces, MediaPipe's face mesh measures and follows them.

    A face is followed by measuring the mesh where it was in the frame before. The search finds new faces. It
    also runs when the presence of a followed face falls. YuNet finds upright faces and few others: where the
    mesh is not certain of one, the other three quarter turns are tried. Where no face is known, the search is
    repeated in the turned image.

    Args:
        search_model: `face_detection_yunet_2023mar.onnx`.
        mesh_model: `face_landmark.tflite`.
    """

    name = "yunet-2023mar-mesh-2"
    smooth_s = 0.04

    def __init__(self, search_model: Path, mesh_model: Path) -> None:
        self._search_net: Any = cv2.FaceDetectorYN.create(
            str(search_model), "", (SEARCH_SIDE, SEARCH_SIDE), MIN_SCORE, NMS_OVERLAP
        )
        self._mesh_net = FaceMeshNet(mesh_model)

    def detect(
        self, image: NDArray[np.uint8], previous: Sequence[Detection] = (), *, search: bool = True
    ) -> list[Detection]:
        faces, is_lost = self._follow(image, previous)
        if search or is_lost:
            # A turned search costs as much as the upright one, so it runs only where nothing is known.
            turns = QUARTER_TURNS if is_lost or not faces else QUARTER_TURNS[:1]
            faces = self._search(image, faces, turns)
        return faces

    def _follow(
        self, image: NDArray[np.uint8], previous: Sequence[Detection]
    ) -> tuple[list[Detection], bool]:
        """Return the faces of the frame before in this one, and whether one of them was lost just now."""
        faces: list[Detection] = []
        is_lost = False
        for face in previous:
            if face.mesh is None:
                continue
            mesh = self._mesh_net.fit(image, face.mesh.region, MAX_RUNS)
            if mesh.presence < MIN_PRESENCE:
                # The new points are meaningless, so the last certain ones stay until the next search.
                faces.append(dataclasses.replace(face, presence=mesh.presence))
                is_lost = is_lost or face.presence >= MIN_PRESENCE
            else:
                faces.append(Detection.from_mesh(mesh, face.score, image))
        return _without_duplicates(faces), is_lost

    def _search(
        self, image: NDArray[np.uint8], known_faces: Sequence[Detection], turns: Sequence[int]
    ) -> list[Detection]:
        """Return the known faces that are still present, and the others in the image.

        Args:
            turns: clockwise quarter turns of the faces to search for, until one is found.
        """
        faces = [face for face in known_faces if face.presence >= MIN_PRESENCE]
        for turn in turns:
            for box, score in self._boxes(image, turn):
                near = next((i for i, face in enumerate(faces) if _is_same_face(face.box, box)), None)
                if near is None or faces[near].presence < MIN_PRESENCE:
                    faces.append(self._measure(image, box, score, turn))
                else:
                    faces[near] = dataclasses.replace(faces[near], score=score)
            if any(face.presence >= MIN_PRESENCE for face in faces):
                break
        return _without_duplicates(faces)[:MAX_FACES]

    def _boxes(self, image: NDArray[np.uint8], turn: int) -> Iterator[tuple[FloatArray, float]]:
        """Yield box and score of the faces that YuNet finds, the largest first.

        Args:
            turn: clockwise quarter turns of the faces that are searched for.
        """
        height, width = image.shape[:2]
        scale = min(1.0, SEARCH_SIDE / max(height, width))
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        upright = np.ascontiguousarray(np.rot90(small, turn))
        self._search_net.setInputSize((upright.shape[1], upright.shape[0]))
        rows = self._search_net.detect(cv2.cvtColor(upright, cv2.COLOR_RGB2BGR))[1]
        if rows is None:
            return
        # On images a few pixels wide the network returns infinite and empty boxes.
        usable = rows[np.isfinite(rows).all(axis=1) & (rows[:, 2:4] >= 1).all(axis=1)]
        for row in sorted(usable, key=lambda row: float(row[2] * row[3]), reverse=True)[:MAX_FACES]:
            box = _turned_box(row[:4], turn, small.shape[1], small.shape[0]) / scale
            yield box.astype(np.float32), float(row[14])

    def _measure(self, image: NDArray[np.uint8], box: FloatArray, score: float, turn: int) -> Detection:
        """Measure a face that was searched for at one quarter turn, if need be at the others."""
        centre = ((box[:2] + box[2:]) / 2).astype(np.float64)
        size = REGION_SIZE * float((box[2:] - box[:2]).max())
        meshes: list[Mesh] = []
        for further in QUARTER_TURNS:
            region = Region(centre, size, (turn + further) * math.pi / 2)
            meshes.append(self._mesh_net.fit(image, region, MAX_RUNS))
            if meshes[-1].presence >= CERTAIN_PRESENCE:
                break
        best = max(meshes, key=lambda mesh: mesh.presence)
        # A wrong turn does not stand up to a measurement in its own region.
        face = Detection.from_mesh(self._mesh_net.fit(image, best.region, MAX_RUNS), score, image)
        return face if face.presence >= MIN_PRESENCE else dataclasses.replace(face, box=box)


def _turned_box(row: FloatArray, turn: int, width: int, height: int) -> FloatArray:
    """Map a box x, y, w, h of `np.rot90(image, turn)` to x0, y0, x1, y1 of the image of this size."""
    x0, y0, x1, y1 = row[0], row[1], row[0] + row[2], row[1] + row[3]
    match turn:
        case 1:
            x0, y0, x1, y1 = width - y1, x0, width - y0, x1
        case 2:
            x0, y0, x1, y1 = width - x1, height - y1, width - x0, height - y0
        case 3:
            x0, y0, x1, y1 = y0, height - x1, y1, height - x0
    return np.array([x0, y0, x1, y1])


def _is_same_face(one: FloatArray, other: FloatArray) -> bool:
    size = max(float((box[2:] - box[:2]).max()) for box in (one, other))
    distance = float(np.hypot(*((one[:2] + one[2:]) / 2 - (other[:2] + other[2:]) / 2)))
    return distance <= SAME_FACE * size


def _without_duplicates(faces: Sequence[Detection]) -> list[Detection]:
    """Keep the more present of two detections of one face."""
    kept: list[Detection] = []
    for face in sorted(faces, key=lambda face: face.presence, reverse=True):
        if not any(_is_same_face(face.box, other.box) for other in kept):
            kept.append(face)
    return kept


# --- 106 landmarks, for those who hold the licence ---

LANDMARK_SIDE = 192
LANDMARK_MARGIN = 1.5


class Landmark106Detector:
    """Refines another detector's faces with a 106-point ONNX model (insightface `2d106det` form).

    Args:
        boxes: finds the faces.
        model: ONNX file, input (1, 3, 192, 192) RGB 0..255, output (1, 212) in [-1, 1].

    Raises:
        WeightsError: onnxruntime is not installed, or the file is not such a model.
    """

    smooth_s = 0.12

    def __init__(self, boxes: FaceDetector, model: Path) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise WeightsError(
                ErrorCode.WEIGHTS_MISSING,
                "The 106-point detector needs onnxruntime: pip install 'lipsync-engine[landmarks106]'.",
            ) from None
        try:
            self._session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own errors have no common base
            raise WeightsError(
                ErrorCode.WEIGHTS_ARCHITECTURE, f"{model.name} is not an ONNX model that can be read."
            ) from error
        self._boxes = boxes
        digest = hashlib.sha256(model.read_bytes()).hexdigest()[:12]
        self.name = f"landmarks106-{digest}-{boxes.name}"

    def detect(
        self, image: NDArray[np.uint8], previous: Sequence[Detection] = (), *, search: bool = True
    ) -> list[Detection]:
        return [self._refine(image, face) for face in self._boxes.detect(image, previous, search=search)]

    def _refine(self, image: NDArray[np.uint8], face: Detection) -> Detection:
        side = float(np.max(face.box[2:] - face.box[:2])) * LANDMARK_MARGIN
        scale = LANDMARK_SIDE / max(side, 1.0)
        centre = (face.box[:2] + face.box[2:]) / 2
        shift = LANDMARK_SIDE / 2 - centre * scale
        crop = cv2.warpAffine(
            image, np.array([[scale, 0, shift[0]], [0, scale, shift[1]]]), (LANDMARK_SIDE, LANDMARK_SIDE)
        )
        feed = {self._session.get_inputs()[0].name: crop.transpose(2, 0, 1)[None].astype(np.float32)}
        landmarks = np.asarray(self._session.run(None, feed)[0], dtype=np.float32).reshape(1, -1, 2)
        if landmarks.shape[1] != 106:
            raise WeightsError(
                ErrorCode.WEIGHTS_ARCHITECTURE,
                f"The landmark model gives {landmarks.shape[1]} points, not 106.",
            )
        full = ((landmarks + 1) * (LANDMARK_SIDE / 2) - shift) / scale
        return dataclasses.replace(face, points=alignment_points(full)[0])
