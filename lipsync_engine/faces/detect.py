"""Finding faces in one picture: the protocol and what a detector answers.

A detector sees single RGB pictures in whatever size it is given; it does not know time, tracks or videos.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsync_engine.errors import ErrorCode, WeightsError
from lipsync_engine.faces.align import alignment_points


@dataclass(frozen=True, slots=True)
class Detection:
    """One face in one picture, in that picture's own pixels.

    Attributes:
        box: float32 (4,), x0, y0, x1, y1 with exclusive right and bottom; may reach outside the picture.
        score: confidence, 0..1.
        points: float32 (3, 2), centre of the left brow, centre of the right brow, nose; "left" is the
            picture's left. These are the three points that the crop is aligned by.
        yaw_deg: head turn, 0 towards the camera, positive towards the picture's right.
    """

    box: NDArray[np.float32]
    score: float
    points: NDArray[np.float32]
    yaw_deg: float


class FaceDetector(Protocol):
    """Anything that finds faces in a picture.

    `name` goes into the key of cached analyses: change it whenever the answers may change.
    """

    @property
    def name(self) -> str: ...

    def detect(self, image: NDArray[np.uint8]) -> list[Detection]:
        """Faces in an RGB picture, uint8 (H, W, 3), in no particular order; empty if there are none."""
        ...


# --- photographed people: YuNet ---

MIN_SCORE = 0.6
NMS_OVERLAP = 0.3

BROW_UP = 0.29
BROW_OUT = 0.05
"""From an eye to its brow's centre, in distances between the eyes: up along the face, and outward."""

NOSE_DEPTH = 0.48
"""How far the nose tip stands before the eyes' plane, in distances between the eyes (30 of 63 mm)."""


SEARCH_SIDE = 640
"""Faces are searched with the picture scaled down to this longest side."""

LOOKS = ((128, 1.6), (160, 1.6), (192, 1.6), (192, 2.0))
"""Each face found is looked at again in crops of these sides, this many face sizes wide. YuNet's points
depend on where a face falls on its grid by some percent of the face; the mean of several looks is steadier
and less biased.
"""

MAX_LOOKED_AT = 6


class YuNetDetector:
    """OpenCV's FaceDetectorYN with the YuNet model (MIT licence).

    Its five points become the three that crops are aligned by: the brow centres lie over the eyes by fixed
        shares of the distance between the eyes, along the face's own axes; the nose is the nose tip.

    Args:
        model: `face_detection_yunet_2023mar.onnx`.
    """

    name = "yunet-2023mar-2"

    def __init__(self, model: Path) -> None:
        self._model = str(model)
        self._nets: dict[int, Any] = {}

    def detect(self, image: NDArray[np.uint8]) -> list[Detection]:
        scale = min(1.0, SEARCH_SIDE / max(image.shape[:2]))
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        found = [
            _from_yunet(np.append(row[:14] / np.float32(scale), row[14])) for row in self._rows(small, 0)
        ]
        found.sort(key=lambda d: float(d.box[2] - d.box[0]), reverse=True)
        return [self._look_again(image, d) for d in found[:MAX_LOOKED_AT]] + found[MAX_LOOKED_AT:]

    def _rows(self, image: NDArray[np.uint8], net: int) -> NDArray[np.float32]:
        """(faces, 15); nets are kept by side, because changing a net's size is slow."""
        if net not in self._nets:
            self._nets[net] = cv2.FaceDetectorYN.create(
                self._model, "", (net or 320,) * 2, MIN_SCORE, NMS_OVERLAP
            )
        if net == 0:
            self._nets[net].setInputSize((image.shape[1], image.shape[0]))
        rows = self._nets[net].detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
        return np.zeros((0, 15), np.float32) if rows is None else rows.astype(np.float32)

    def _look_again(self, image: NDArray[np.uint8], found: Detection) -> Detection:
        centre = (found.box[:2] + found.box[2:]) / 2
        size = float(np.max(found.box[2:] - found.box[:2]))
        looks = []
        for side, margin in LOOKS:
            scale = side / (margin * size)
            shift = side / 2 - centre * scale
            crop = cv2.warpAffine(image, np.array([[scale, 0, shift[0]], [0, scale, shift[1]]]), (side, side))
            near = [_from_yunet(row) for row in self._rows(crop, side)]
            middle = [d for d in near if np.abs((d.box[:2] + d.box[2:]) / 2 - side / 2).max() < side / 4]
            if middle:
                best = max(middle, key=lambda d: d.score)
                looks.append(((best.points - shift) / scale, best.yaw_deg))
        if not looks:
            return found
        points = np.mean([points for points, _ in looks], axis=0).astype(np.float32)
        return Detection(found.box, found.score, points, float(np.mean([yaw for _, yaw in looks])))


def _from_yunet(row: NDArray[np.float32]) -> Detection:
    """x, y, w, h, five points (image-left eye, image-right eye, nose, both mouth corners), score; all but the
    score scale with the picture."""
    x, y, w, h = row[:4]
    left_eye, right_eye, nose, left_mouth, right_mouth = row[4:14].reshape(5, 2)
    between = right_eye - left_eye
    distance = np.float32(max(float(np.linalg.norm(between)), 1e-3))
    across = between / distance
    up = (left_eye + right_eye - left_mouth - right_mouth) / 2
    up = up / np.float32(max(float(np.linalg.norm(up)), 1e-3))
    points = np.stack(
        [
            left_eye + distance * (BROW_UP * up - BROW_OUT * across),
            right_eye + distance * (BROW_UP * up + BROW_OUT * across),
            nose,
        ]
    ).astype(np.float32)
    aside = float(np.dot(nose - (left_eye + right_eye) / 2, across)) / float(distance)
    # The head's roll leaves the nose on the axis between eyes and mouth; only what lies beside it is yaw.
    drop = float(np.dot(nose - (left_eye + right_eye) / 2, up)) / float(distance)
    lean = aside - drop * float(np.dot(up, across))
    yaw_deg = math.degrees(math.atan2(lean, NOSE_DEPTH))
    return Detection(np.array([x, y, x + w, y + h], dtype=np.float32), float(row[14]), points, yaw_deg)


# --- 106 landmarks, for those who hold the licence ---

LANDMARK_SIDE = 192
LANDMARK_MARGIN = 1.5


class Landmark106Detector:
    """Refines another detector's boxes with a 106-point ONNX model (insightface `2d106det` form).

    Args:
        boxes: finds the faces.
        model: ONNX file, input (1, 3, 192, 192) RGB 0..255, output (1, 212) in [-1, 1].

    Raises:
        WeightsError: onnxruntime is not installed, or the file is not such a model.
    """

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

    def detect(self, image: NDArray[np.uint8]) -> list[Detection]:
        return [self._refine(image, found) for found in self._boxes.detect(image)]

    def _refine(self, image: NDArray[np.uint8], found: Detection) -> Detection:
        side = float(np.max(found.box[2:] - found.box[:2])) * LANDMARK_MARGIN
        scale = LANDMARK_SIDE / max(side, 1.0)
        centre = (found.box[:2] + found.box[2:]) / 2
        shift = LANDMARK_SIDE / 2 - centre * scale
        crop = cv2.warpAffine(
            image, np.array([[scale, 0, shift[0]], [0, scale, shift[1]]]), (LANDMARK_SIDE, LANDMARK_SIDE)
        )
        fed = {self._session.get_inputs()[0].name: crop.transpose(2, 0, 1)[None].astype(np.float32)}
        marks = np.asarray(self._session.run(None, fed)[0], dtype=np.float32).reshape(1, -1, 2)
        if marks.shape[1] != 106:
            raise WeightsError(
                ErrorCode.WEIGHTS_ARCHITECTURE, f"The landmark model gives {marks.shape[1]} points, not 106."
            )
        full = ((marks + 1) * (LANDMARK_SIDE / 2) - shift) / scale
        return Detection(found.box, found.score, alignment_points(full)[0], found.yaw_deg)
