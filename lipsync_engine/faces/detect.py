"""Finding faces in one picture: the protocol and what a detector answers.

A detector sees single RGB pictures in whatever size it is given; it does not know time, tracks or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


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
