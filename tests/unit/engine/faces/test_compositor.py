"""A face out of a frame and back in, with our numerics and with the reference's."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import pytest

from lipsync_engine.faces.align import square_matrix
from lipsync_engine.faces.compositor import Compositor, Crop, ReferenceCompositor, SoftCompositor
from lipsync_engine.media.yuv import Chroma, Frame, FrameFormat, Matrix
from lipsync_engine.models.latentsync.mask import load_fixed_mask

FORM = FrameFormat(320, 240, Chroma.C420, 8, Matrix.BT709, full_range=False)
POINTS = np.array([[[130, 90], [190, 92], [160, 125]]], dtype=np.float32)
MASK = load_fixed_mask(128).astype(np.float32)


def frame() -> Frame:
    rng = np.random.default_rng(0)
    planes = []
    for height, width in FORM.plane_shapes:
        y, x = np.mgrid[:height, :width]
        wave = 110 + 40 * np.sin(x / 17) * np.cos(y / 23)
        planes.append((wave + rng.normal(0, 1, wave.shape)).astype(np.uint8))
    return Frame(FORM, *planes)


@pytest.fixture(params=["soft", "reference"])
def compositor(request: pytest.FixtureRequest) -> Compositor:
    return SoftCompositor(MASK, Fraction(1)) if request.param == "soft" else ReferenceCompositor(MASK)


def test_outside_the_face_nothing_changes_and_inside_it_does(compositor: Compositor) -> None:
    source = frame()
    crop = compositor.crop(source, compositor.matrices(POINTS)[0])
    made = compositor.paste(source, crop, np.full_like(crop.face, 20.0), 1.0, None)
    assert np.array_equal(made.y[:40], source.y[:40])
    assert np.array_equal(made.y[:, :60], source.y[:, :60])
    assert np.array_equal(made.u[:, 140:], source.u[:, 140:])
    assert np.abs(made.y[145:165, 145:175].astype(int) - source.y[145:165, 145:175]).min() > 20


def test_no_weight_and_a_full_matte_leave_every_sample(compositor: Compositor) -> None:
    source = frame()
    crop = compositor.crop(source, compositor.matrices(POINTS)[0])
    white = np.full_like(crop.face, 255.0)
    covered = np.ones((FORM.height, FORM.width), np.float32)
    for made in (
        compositor.paste(source, crop, white, 0.0, None),
        compositor.paste(source, crop, white, 1.0, covered),
    ):
        for ours, theirs in zip(made.planes(), source.planes(), strict=True):
            assert np.array_equal(ours, theirs)


def grainy_frame(size: int) -> Frame:
    """A frame of a smooth shape with the grain of a camera on it, 1 to 2 pixels wide."""
    form = FrameFormat(size, size, Chroma.C420, 8, Matrix.BT709, full_range=False)
    y, x = np.mgrid[:size, :size]
    grain = cv2.GaussianBlur(np.random.default_rng(1).normal(0, 8, (size, size)), (0, 0), 0.8)
    luma = 120 + 40 * np.sin(x / size * 9) * np.cos(y / size * 7) + grain
    grey = np.full((size // 2, size // 2), 128, np.uint8)
    return Frame(form, np.clip(luma, 0, 255).astype(np.uint8), grey, grey)


def sharpness(picture: Frame, box: tuple[int, int, int, int]) -> float:
    x0, y0, x1, y1 = box
    return float(cv2.Laplacian(picture.y[y0:y1, x0:x1].astype(np.float64), cv2.CV_64F).var())


@pytest.mark.parametrize(("brow_distance", "resolution"), [(50, 512), (100, 256), (320, 512)])
def test_detail_of_the_source_returns_where_the_face_did_not_change(
    brow_distance: int, resolution: int
) -> None:
    """Faces of 127, 261 and 780 pixels: without it a third to two thirds of the sharpness is lost."""
    size = 4 * brow_distance
    source = grainy_frame(size)
    compositor = SoftCompositor(load_fixed_mask(resolution).astype(np.float32), Fraction(1))
    middle, half = size / 2, brow_distance / 2
    points = [[middle - half, middle - half], [middle + half, middle - half], [middle, middle]]
    crop = compositor.crop(source, compositor.matrices(np.array([points], dtype=np.float32))[0])
    mouth = (int(middle - half), int(middle), int(middle + half), int(middle + half))
    pasted = compositor.paste(source, crop, crop.face + 2.0, 1.0, None)  # a colour cast is no change
    assert sharpness(pasted, mouth) > 0.95 * sharpness(source, mouth)


def test_detail_of_the_source_does_not_return_where_the_face_changed() -> None:
    """Lips that moved show the generated pixels alone: no ghost of the source's lips."""
    source = grainy_frame(320)
    compositor = SoftCompositor(MASK, Fraction(1))
    crop = compositor.crop(source, compositor.matrices(POINTS * [1.0, 1.0] + [0, 40])[0])
    moved = crop.face.copy()
    moved[70:90, 40:88] = 60.0
    pasted = compositor.paste(source, crop, moved, 1.0, None)
    x, y = np.linalg.inv(np.vstack([_square(crop), [0, 0, 1]]))[:2] @ (64, 80, 1)
    x0, y0 = round(x + crop.box[0]), round(y + crop.box[1])
    assert pasted.y[y0 - 3 : y0 + 4, x0 - 8 : x0 + 9].std() < 1.0


def _square(crop: Crop) -> np.ndarray:
    return square_matrix(crop.matrix, len(crop.face))


def test_a_face_pasted_back_unchanged_leaves_every_sample() -> None:
    compositor = SoftCompositor(MASK, Fraction(1))
    source = frame()
    crop = compositor.crop(source, compositor.matrices(POINTS)[0])
    pasted = compositor.paste(source, crop, crop.face, 1.0, None)
    assert np.abs(pasted.y.astype(int) - source.y).max() <= 1


def test_unknown_points_stay_unknown(compositor: Compositor) -> None:
    points = np.concatenate([POINTS, np.full((1, 3, 2), np.nan, np.float32)])
    matrices = compositor.matrices(points)
    assert np.isfinite(matrices[0]).all()
    assert np.isnan(matrices[1]).all()


def test_a_face_in_wide_pixels_looks_the_same_to_the_model() -> None:
    """Stored at half the width with pixels twice as wide, the crop must show the same face."""
    square = SoftCompositor(MASK, Fraction(1))
    wide = SoftCompositor(MASK, Fraction(2))
    source = frame()
    half = FrameFormat(160, 240, Chroma.C444, 8, Matrix.BT709, full_range=False)
    y = source.y.reshape(240, 160, 2).mean(axis=2).astype(np.uint8)
    grey = np.full((240, 160), 128, np.uint8)
    squeezed = Frame(half, y, grey, grey)
    full = Frame(
        FrameFormat(320, 240, Chroma.C444, 8, Matrix.BT709, full_range=False),
        source.y,
        *(np.full((240, 320), 128, np.uint8),) * 2,
    )
    # The middle of a wide pixel lies half a narrow pixel beside its left one.
    points = (POINTS - (0.5, 0)) / (2, 1)
    seen = wide.crop(squeezed, wide.matrices(points.astype(np.float32))[0]).face
    expected = square.crop(full, square.matrices(POINTS)[0]).face
    assert np.abs(seen - expected).mean() < 4.0
