"""Visible "AI-generated" label in the lower left corner of every frame; pure."""

from __future__ import annotations

import cv2
import numpy as np

from lipsync_engine.media.yuv import Frame, FrameFormat, blend_region

TEXT = "AI-generated"

HEIGHT_FRACTION = 1 / 28
"""Text height as a fraction of the frame's shorter side (at least `MIN_HEIGHT_PX`)."""

MIN_HEIGHT_PX = 8
FONT = cv2.FONT_HERSHEY_DUPLEX
OUTLINE_THICKNESS = 2
"""Width of the dark outline in multiples of the stroke width, for contrast with any background."""


class Label:
    """The label for all frames of one format.

    Args:
        form: format of the frames; the text is cropped if they are too small.
        aspect: sample aspect ratio.
    """

    def __init__(self, form: FrameFormat, aspect: float) -> None:
        text_height = max(MIN_HEIGHT_PX, HEIGHT_FRACTION * min(form.width, form.height))
        thickness = max(1, round(text_height / 12))
        scale = cv2.getFontScaleFromHeight(FONT, round(text_height), thickness)
        outlined = (1 + OUTLINE_THICKNESS) * thickness + 1
        (width, height), baseline = cv2.getTextSize(TEXT, FONT, scale, thickness)
        shape = (height + baseline + 2 * outlined, width + 2 * outlined)
        text, outline = (
            _draw_text(shape, (outlined, outlined + height), scale, stroke)
            for stroke in (thickness, outlined)
        )
        size = (max(2, round(shape[1] / aspect)), shape[0])
        self._rgb = cv2.resize(np.repeat(255 * text[..., None], 3, axis=-1), size)
        self._weight = cv2.resize(np.maximum(text, outline), size)
        margin = round(text_height / 2)
        x0, y0 = margin // 2 * 2, max(0, form.height - size[1] - margin) // 2 * 2
        x1, y1 = min(form.width, x0 + size[0]), min(form.height, y0 + size[1])
        self._box = (x0, y0, x1, y1)
        self._rgb, self._weight = self._rgb[: y1 - y0, : x1 - x0], self._weight[: y1 - y0, : x1 - x0]

    def draw(self, frame: Frame) -> Frame:
        """Return the frame with the label; pixels outside the label are bit-identical."""
        return blend_region(frame, self._box, self._rgb, self._weight)


def _draw_text(
    shape: tuple[int, int], origin: tuple[int, int], scale: float, thickness: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    canvas = np.zeros(shape, np.uint8)
    cv2.putText(canvas, TEXT, origin, FONT, scale, 255, thickness, cv2.LINE_AA)
    return canvas.astype(np.float32) / np.float32(255)
