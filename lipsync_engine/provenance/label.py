"""A visible label in the lower left corner of every picture that says how it was made. Pure."""

from __future__ import annotations

import cv2
import numpy as np

from lipsync_engine.media.yuv import Frame, FrameFormat, blend_region

TEXT = "AI-generated"

HEIGHT = 1 / 28
"""Of the letters, in the picture's shorter side, and at least `MIN_HEIGHT_PX`."""

MIN_HEIGHT_PX = 8
FONT = cv2.FONT_HERSHEY_DUPLEX
OUTLINE = 2
"""Of the dark edge, in thicknesses of the letters: white on dark is read before any picture."""


class Label:
    """The same label for all frames of a format.

    Args:
        form: of the frames; in a picture too small for the text what fits is shown.
        aspect: width of one stored pixel over its height.
    """

    def __init__(self, form: FrameFormat, aspect: float) -> None:
        letters = max(MIN_HEIGHT_PX, HEIGHT * min(form.width, form.height))
        thickness = max(1, round(letters / 12))
        scale = cv2.getFontScaleFromHeight(FONT, round(letters), thickness)
        outlined = (1 + OUTLINE) * thickness + 1
        (width, height), below = cv2.getTextSize(TEXT, FONT, scale, thickness)
        shape = (height + below + 2 * outlined, width + 2 * outlined)
        light, dark = (
            _drawn(shape, (outlined, outlined + height), scale, thick) for thick in (thickness, outlined)
        )
        size = (max(2, round(shape[1] / aspect)), shape[0])
        self._rgb = cv2.resize(np.repeat(255 * light[..., None], 3, axis=-1), size)
        self._weight = cv2.resize(np.maximum(light, dark), size)
        margin = round(letters / 2)
        x0, y0 = margin // 2 * 2, max(0, form.height - size[1] - margin) // 2 * 2
        x1, y1 = min(form.width, x0 + size[0]), min(form.height, y0 + size[1])
        self._box = (x0, y0, x1, y1)
        self._rgb, self._weight = self._rgb[: y1 - y0, : x1 - x0], self._weight[: y1 - y0, : x1 - x0]

    def put(self, frame: Frame) -> Frame:
        """The frame with the label; everything outside it stays to the bit."""
        return blend_region(frame, self._box, self._rgb, self._weight)


def _drawn(
    shape: tuple[int, int], origin: tuple[int, int], scale: float, thickness: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    canvas = np.zeros(shape, np.uint8)
    cv2.putText(canvas, TEXT, origin, FONT, scale, 255, thickness, cv2.LINE_AA)
    return canvas.astype(np.float32) / np.float32(255)
