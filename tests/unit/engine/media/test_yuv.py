"""Planes to RGB and back: exact where nothing changes, correct colours where something does."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipsync_engine.media.yuv import Box, Chroma, Frame, FrameFormat, Matrix, blend_region, region_to_rgb

FORMATS = [
    FrameFormat(width, height, chroma, depth, matrix, full)
    for (width, height), chroma, depth, matrix, full in itertools.product(
        ((48, 32), (47, 33)), Chroma, (8, 10), (Matrix.BT601, Matrix.BT709), (False, True)
    )
]


def noise(form: FrameFormat, seed: int = 0) -> Frame:
    random = np.random.default_rng(seed)
    return Frame(
        form, *(random.integers(0, 2**form.bit_depth, s).astype(form.dtype) for s in form.plane_shapes)
    )


def flat(form: FrameFormat, y: float, u: float, v: float) -> Frame:
    """Levels given for 8 bits."""
    steps = 2 ** (form.bit_depth - 8)
    planes = (
        np.full(s, round(c * steps), form.dtype) for s, c in zip(form.plane_shapes, (y, u, v), strict=True)
    )
    return Frame(form, *planes)


def same(a: Frame, b: Frame) -> bool:
    return all(np.array_equal(p, q) for p, q in zip((a.y, a.u, a.v), (b.y, b.u, b.v), strict=True))


def whole(form: FrameFormat) -> Box:
    return (0, 0, form.width, form.height)


def test_bytes_round_trip(subtests: pytest.Subtests) -> None:
    for form in FORMATS:
        with subtests.test(form=form):
            frame = noise(form)
            data = frame.to_bytes()
            assert len(data) == form.frame_bytes
            assert same(Frame.from_bytes(form, data), frame)
            with pytest.raises(ValueError, match="bytes"):
                Frame.from_bytes(form, data[:-2])


def test_own_pixels_or_no_weight_change_nothing(subtests: pytest.Subtests) -> None:
    for form in FORMATS:
        for box in [(0, 0, 47, 32), (3, 5, 20, 22), (8, 6, 40, 30)]:
            with subtests.test(form=form, box=box):
                frame = noise(form)
                x0, y0, x1, y1 = box
                rgb = region_to_rgb(frame, box)
                assert rgb.shape == (y1 - y0, x1 - x0, 3)
                assert same(blend_region(frame, box, rgb, np.ones(rgb.shape[:2], np.float32)), frame)
                assert same(blend_region(frame, box, 255 - rgb, np.zeros(rgb.shape[:2], np.float32)), frame)


@given(
    form=st.sampled_from(FORMATS),
    corner=st.tuples(st.integers(0, 40), st.integers(0, 25)),
    size=st.tuples(st.integers(1, 48), st.integers(1, 33)),
)
@settings(max_examples=60, deadline=None)
def test_only_the_box_changes_and_the_input_never(
    form: FrameFormat, corner: tuple[int, int], size: tuple[int, int]
) -> None:
    frame = noise(form)
    kept = Frame.from_bytes(form, frame.to_bytes())
    box = (*corner, min(corner[0] + size[0], form.width), min(corner[1] + size[1], form.height))
    x0, y0, x1, y1 = box
    shape = (y1 - y0, x1 - x0)
    changed = blend_region(frame, box, np.full((*shape, 3), 200, np.float32), np.ones(shape, np.float32))
    assert same(frame, kept)
    step_x, step_y = form.steps
    for before, after, sx, sy in (
        (frame.y, changed.y, 1, 1),
        (frame.u, changed.u, step_x, step_y),
        (frame.v, changed.v, step_x, step_y),
    ):
        inside = np.zeros(before.shape, bool)
        inside[y0 // sy : -(-y1 // sy), x0 // sx : -(-x1 // sx)] = True
        assert np.array_equal(before[~inside], after[~inside])


def test_known_colours(subtests: pytest.Subtests) -> None:
    for matrix, full, yuv, rgb in [
        # Pure red, green, blue and white by the standards' own numbers.
        (Matrix.BT601, False, (81, 90, 240), (255, 0, 0)),
        (Matrix.BT601, False, (145, 54, 34), (0, 255, 0)),
        (Matrix.BT709, False, (63, 102, 240), (255, 0, 0)),
        (Matrix.BT709, False, (32, 240, 118), (0, 0, 255)),
        (Matrix.BT2020, False, (74, 97, 240), (255, 0, 0)),
        (Matrix.BT601, True, (76, 85, 255), (254, 0, 0)),
        (Matrix.BT709, False, (235, 128, 128), (255, 255, 255)),
        (Matrix.BT709, True, (255, 128, 128), (255, 255, 255)),
        (Matrix.BT709, False, (16, 128, 128), (0, 0, 0)),
    ]:
        for chroma in Chroma:
            with subtests.test(matrix=matrix, full=full, yuv=yuv, rgb=rgb, chroma=chroma):
                form = FrameFormat(16, 16, chroma, 8, matrix, full)
                assert np.abs(region_to_rgb(flat(form, *yuv), (2, 2, 14, 14)) - rgb).max() < 2.0
                # And back: painting that colour on grey gives those sample values.
                ones = np.ones((16, 16), np.float32)
                painted = blend_region(
                    flat(form, 120, 128, 128),
                    whole(form),
                    np.broadcast_to(np.array(rgb, np.float32), (16, 16, 3)),
                    ones,
                )
                for plane, level in zip((painted.y, painted.u, painted.v), yuv, strict=True):
                    assert np.abs(plane.astype(int) - level).max() <= 1


def test_ten_bits_and_all_layouts_agree_on_smooth_pictures(subtests: pytest.Subtests) -> None:
    """A slow colour gradient: what is painted is read back within rounding."""
    for form in FORMATS:
        with subtests.test(form=form):
            ramp_x = np.linspace(60, 190, form.width, dtype=np.float32)
            ramp_y = np.linspace(80, 170, form.height, dtype=np.float32)
            expected = np.stack(
                np.broadcast_arrays(ramp_x[None, :], ramp_y[:, None], np.float32(120)), axis=-1
            )
            weight = np.ones((form.height, form.width), np.float32)
            painted = blend_region(flat(form, 120, 128, 128), whole(form), expected, weight)
            error = np.abs(region_to_rgb(painted, whole(form)) - expected)
            assert error[2:-2, 2:-2].max() < (2.5 if form.bit_depth == 8 else 1.0)
            assert error.max() < 6.0


def test_chroma_sits_on_the_even_columns_and_between_rows() -> None:
    form = FrameFormat(8, 8, Chroma.C420, 8, Matrix.BT601, True)
    frame = flat(form, 128, 128, 128)
    v = frame.v.copy()
    v[1, 1] = 168  # at luma column 2, between rows 2 and 3
    red = region_to_rgb(Frame(form, frame.y, frame.u, v), whole(form))[..., 0] - 128
    share = red / (2 * (1 - 0.299) * 40)
    assert np.allclose(share[2, :5], [0, 0.375, 0.75, 0.375, 0], atol=1e-4)
    assert np.allclose(share[:6, 2], [0, 0.25, 0.75, 0.75, 0.25, 0], atol=1e-4)


def test_weight_mixes_and_results_stay_in_range() -> None:
    form = FrameFormat(16, 16, Chroma.C420, 10, Matrix.BT709, False)
    frame = flat(form, 100, 110, 150)
    white = np.full((16, 16, 3), 255, np.float32)
    half = blend_region(frame, whole(form), white, np.full((16, 16), 0.5, np.float32))
    own = region_to_rgb(frame, whole(form))
    assert np.abs(region_to_rgb(half, whole(form)) - (own + 255) / 2).max() < 1.0
    bright = blend_region(
        flat(form, 250, 128, 128),
        whole(form),
        np.full((16, 16, 3), 900, np.float32),
        np.ones((16, 16), np.float32),
    )
    assert bright.y.max() == 1023
