"""Tests of the visible label: legible, in its corner, and no other pixel changes."""

from __future__ import annotations

import numpy as np
import pytest

from lipsync_engine.media.yuv import Chroma, Frame, FrameFormat, Matrix, region_to_rgb
from lipsync_engine.provenance.label import HEIGHT_FRACTION, Label


def grey_frame(width: int, height: int, level: int, chroma: Chroma = Chroma.C420) -> Frame:
    form = FrameFormat(width, height, chroma, 8, Matrix.BT709, full_range=False)
    step_x, step_y = form.steps
    colour = (-(-height // step_y), -(-width // step_x))
    return Frame(
        form, np.full((height, width), level, np.uint8), *(np.full(colour, 128, np.uint8) for _ in "uv")
    )


def test_label_is_legible_in_the_lower_left_corner(subtests: pytest.Subtests) -> None:
    for level in [20, 120, 230]:
        for width, height in [(640, 360), (1080, 1920), (321, 181)]:
            with subtests.test(level=level, width=width, height=height):
                frame = grey_frame(width, height, level, Chroma.C444 if width % 2 else Chroma.C420)
                labelled = Label(frame.format, 1.0).draw(frame)
                changed = np.argwhere(labelled.y != frame.y)
                (top, left), (bottom, right) = changed.min(axis=0), changed.max(axis=0)
                short = min(width, height)
                assert 0 < left < short / 12
                assert height - short / 6 < top < bottom < height
                assert right - left < 0.7 * short
                assert HEIGHT_FRACTION * short * 0.8 < bottom - top < HEIGHT_FRACTION * short * 2.5
                text = region_to_rgb(labelled, (0, 0, width, height))[
                    top : bottom + 1, left : right + 1
                ].mean(axis=-1)
                assert (text > 200).mean() > 0.08
                assert (text < 60).mean() > 0.1
                assert np.array_equal(labelled.u, frame.u)


def test_label_is_cropped_in_a_small_frame() -> None:
    frame = grey_frame(34, 20, 120)
    labelled = Label(frame.format, 1.0).draw(frame)
    assert labelled.y.shape == (20, 34)
    assert not np.array_equal(labelled.y, frame.y)
