"""Tests of compositing: a face out of a frame and back in, with our numerics and with the reference's."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from lipsync_engine.faces import align
from lipsync_engine.faces.align import square_matrix
from lipsync_engine.faces.compositor import (
    MAX_COLOUR_OFFSET,
    Compositor,
    Crop,
    ReferenceCompositor,
    SoftCompositor,
    match_colour,
    paste_face,
    reference_paste,
    soft_mask,
)
from lipsync_engine.media.yuv import Chroma, Frame, FrameFormat, Matrix
from lipsync_engine.models.latentsync.mask import load_fixed_mask
from tests.support.crops import face_points, keep_mask, natural_picture, psnr

Array = npt.NDArray[np.float32]
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


def test_paste_changes_only_the_face(compositor: Compositor) -> None:
    source = frame()
    crop = compositor.crop(source, compositor.matrices(POINTS)[0])
    output = compositor.paste(source, crop, np.full_like(crop.face, 20.0), 1.0, None)
    assert np.array_equal(output.y[:40], source.y[:40])
    assert np.array_equal(output.y[:, :60], source.y[:, :60])
    assert np.array_equal(output.u[:, 140:], source.u[:, 140:])
    assert np.abs(output.y[145:165, 145:175].astype(int) - source.y[145:165, 145:175]).min() > 20


def test_zero_weight_and_full_matte_leave_every_sample(compositor: Compositor) -> None:
    source = frame()
    crop = compositor.crop(source, compositor.matrices(POINTS)[0])
    white = np.full_like(crop.face, 255.0)
    covered = np.ones((FORM.height, FORM.width), np.float32)
    for output in (
        compositor.paste(source, crop, white, 0.0, None),
        compositor.paste(source, crop, white, 1.0, covered),
    ):
        for ours, theirs in zip(output.planes(), source.planes(), strict=True):
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


def test_unknown_points_give_unknown_matrices(compositor: Compositor) -> None:
    points = np.concatenate([POINTS, np.full((1, 3, 2), np.nan, np.float32)])
    matrices = compositor.matrices(points)
    assert np.isfinite(matrices[0]).all()
    assert np.isnan(matrices[1]).all()


def test_crop_is_undistorted_for_wide_pixels() -> None:
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


# --- paste ---


def test_unchanged_face_is_pasted_back_unchanged(subtests: pytest.Subtests) -> None:
    """Faces of at most the model's resolution; a larger one loses what the model cannot hold."""
    for resolution in [256, 512]:
        for face_width in [48, 125, 230]:
            for turn in [0.0, 0.35]:
                with subtests.test(resolution=resolution, face_width=face_width, turn=turn):
                    size = face_width * 4
                    picture = natural_picture(size, size, seed=face_width)
                    centre = (size / 2 + 0.37, size / 2.3 + 0.81)
                    matrix = align.solve_matrix(face_points(centre, face_width / 2.2, turn), resolution)
                    crop = align.crop_face(picture, matrix, resolution)
                    weight = soft_mask(keep_mask(resolution))
                    rgb, alpha = paste_face((size, size), crop, weight, matrix)
                    assert rgb.dtype == alpha.dtype == np.float32
                    inside = alpha > 0.99
                    assert inside.sum() > 400
                    assert psnr(rgb[inside], picture[inside]) > 40

                    u, v = np.meshgrid(np.arange(size, dtype=np.float64), np.arange(size, dtype=np.float64))
                    landed = np.stack([u, v, np.ones_like(u)], axis=-1) @ matrix.astype(np.float64).T
                    width, height = align.crop_size(resolution)
                    outside = ((landed < -0.5) | (landed > (width - 0.5, height - 0.5))).any(axis=-1)
                    assert (alpha[outside] == 0).all()
                    assert alpha.min() >= 0
                    assert alpha.max() <= 1


def test_paste_does_not_alias_fine_detail() -> None:
    """A small face in the frame: stripes of the square between the frame's pixels become even grey."""
    stripes = np.tile(np.array([0.0, 255.0], dtype=np.float32).repeat(2), 128)
    face = np.broadcast_to(stripes[None, :, None], (512, 512, 3)).copy()
    matrix = align.solve_matrix(face_points((60.2, 50.1), 30), 512)
    weight = soft_mask(keep_mask(512))
    rgb, alpha = paste_face((120, 120), face, weight, matrix)
    inside = cv2.erode(alpha, np.ones((7, 7))) > 0.99
    assert rgb[inside].std() < 5
    assert rgb[inside].mean() == pytest.approx(127.5, abs=2)


def test_region_is_all_that_crop_and_paste_need(subtests: pytest.Subtests) -> None:
    """Cropping and pasting through the region equals doing it on the whole picture, at borders too."""
    for resolution, brow_distance in [(64, 9.0), (64, 40.0), (64, 160.0), (16, 60.0)]:
        for centre in [(150.0, 110.0), (10.0, 30.0), (295.0, 215.0), (150.0, -20.0)]:
            with subtests.test(resolution=resolution, brow_distance=brow_distance, centre=centre):
                picture = natural_picture(221, 301)
                matrix = align.solve_matrix(face_points(centre, brow_distance, 0.3), resolution)
                box = align.face_region(matrix, resolution, 301, 221)
                x0, y0, x1, y1 = box
                local = align.shift_matrix(matrix, box)
                whole = align.crop_face(picture, matrix, resolution)
                part = align.crop_face(np.ascontiguousarray(picture[y0:y1, x0:x1]), local, resolution)
                np.testing.assert_allclose(part, whole, atol=1.0)  # positions round to 1/32 pixel differently
                assert np.abs(part - whole).mean() < 0.05

                weight = soft_mask(keep_mask(resolution))
                _, alpha = paste_face((221, 301), whole, weight, matrix)
                _, local_alpha = paste_face((y1 - y0, x1 - x0), whole, weight, local)
                np.testing.assert_allclose(local_alpha, alpha[y0:y1, x0:x1], atol=0.05)
                alpha[y0:y1, x0:x1] = 0
                assert (alpha == 0).all()


# --- the soft edge ---


def test_soft_mask_covers_generated_part_and_fades_before_the_border(
    subtests: pytest.Subtests,
) -> None:
    for resolution in [64, 128, 256, 512]:
        with subtests.test(resolution=resolution):
            mask = keep_mask(resolution)
            weight = soft_mask(mask)
            assert weight.dtype == np.float32
            assert (weight[mask < 0.5] == 1).all()
            border = np.concatenate([weight[0], weight[-1], weight[:, 0], weight[:, -1]])
            assert (border == 0).all()
            distance = cv2.distanceTransform(
                (mask >= 0.5).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
            )
            assert (weight[distance > 0.04 * resolution] == 0).all()  # nowhere further out than a few percent


def test_soft_mask_has_no_kink() -> None:
    weight = soft_mask(keep_mask(512))
    assert np.abs(np.diff(weight, axis=0)).max() < 0.12
    assert weight[1].max() < 0.01
    assert weight[:, [1, -2]].max() < 0.05


# --- colour ---


def border_step(picture: Array, mask: Array, source: Array) -> float:
    """Mean step across the edge of the generated part beyond the one that the source has there, levels."""
    generated = (mask < 0.5).astype(np.uint8)
    inner = (generated == 1) & (cv2.erode(generated, np.ones((9, 9), np.uint8)) == 0)
    outer = (generated == 0) & (cv2.dilate(generated, np.ones((9, 9), np.uint8)) == 1)
    return float(np.abs((picture - source)[inner].mean(0) - (picture - source)[outer].mean(0)).mean())


def worst_jump(picture: Array) -> float:
    return float(max(np.abs(np.diff(picture, axis=axis)).max() for axis in (0, 1)))


@pytest.mark.parametrize("resolution", [64, 256, 512])
def test_colour_cast_of_the_decoder_leaves_no_step(resolution: int) -> None:
    """On a constant-colour face, the mean border step is under 1 level after pasting into the frame."""
    frame = np.full((300, 260, 3), (180.0, 140.0, 120.0), dtype=np.float32)
    mask = keep_mask(resolution)
    matrix = align.solve_matrix(face_points((130.3, 110.6), 60, 0.1), resolution)
    source = align.crop_face(frame, matrix, resolution)
    decoded = source + np.array([5.0, -4.0, 6.0], dtype=np.float32)

    def composite(face: Array) -> Array:
        rgb, alpha = paste_face((300, 260), face, soft_mask(mask), matrix)
        return frame + alpha[..., None] * (rgb - frame)

    assert np.abs(composite(decoded) - frame).max() > 3.9  # the cast would be seen
    matched = composite(match_colour(decoded, source, mask))
    assert np.abs(matched - frame).mean() < 0.05
    assert np.abs(matched - frame).max() < 0.5
    assert worst_jump(matched) < 0.2


@pytest.mark.parametrize("resolution", [128, 256])
def test_varying_colour_cast_leaves_no_step(resolution: int) -> None:
    mask = keep_mask(resolution)
    source = np.full((resolution, resolution, 3), (190.0, 150.0, 130.0), dtype=np.float32)
    down, across = np.meshgrid(*[np.linspace(-8, 8, resolution, dtype=np.float32)] * 2, indexing="ij")
    cast = np.dstack([across, 0.5 * down - across, down + 4])
    matched = match_colour(source + cast, source, mask)
    assert border_step(source + cast * (mask < 0.5)[..., None], mask, source) > 1
    shown = source + soft_mask(mask)[..., None] * (matched - source)
    ring = cv2.dilate((mask < 0.5).astype(np.uint8), np.ones((5, 5), np.uint8)) - (mask < 0.5)
    assert np.abs(shown - source)[ring > 0].mean() < 1
    assert border_step(shown, mask, source) < 1


def test_generated_mouth_is_not_recoloured() -> None:
    """What the model generates differs from the source inside; only the ring around it may tell of a cast."""
    mask = keep_mask(256)
    source = natural_picture(256, 256)
    face = np.where(mask[..., None] < 0.5, 20.0, source).astype(np.float32)
    np.testing.assert_allclose(match_colour(face, source, mask), face, atol=1e-3)


def test_movement_in_the_ring_does_not_tint_the_face() -> None:
    mask = keep_mask(256)
    source = np.full((256, 256, 3), 150.0, dtype=np.float32)
    decoded = source + np.array([3.0, -3.0, 2.0], dtype=np.float32)
    decoded[60:94, 20:60] += 70  # a hand at the cheek
    correction = match_colour(decoded, source, mask) - decoded
    assert np.abs(correction[mask < 0.5] - (-3.0, 3.0, -2.0)).mean() < 1
    assert np.abs(correction[mask < 0.5] - (-3.0, 3.0, -2.0)).max() < 3


def test_colour_correction_is_bounded() -> None:
    mask = keep_mask(128)
    source = np.full((128, 128, 3), 200.0, dtype=np.float32)
    correction = match_colour(source - 120, source, mask) - (source - 120)
    assert np.abs(correction).max() <= MAX_COLOUR_OFFSET + 1e-3


def test_reconstruction_noise_moves_no_colours() -> None:
    mask, rng = keep_mask(256), np.random.default_rng(0)
    source = natural_picture(256, 256)
    noisy = source + rng.normal(0, 4, source.shape).astype(np.float32)
    correction = match_colour(noisy, source, mask) - noisy
    assert np.abs(correction[soft_mask(mask) > 0]).max() < 0.6
    assert np.abs(correction[mask < 0.5]).mean() < 0.15


@pytest.mark.parametrize("centre", [(200.0, 150.0), (15.0, 150.0), (390.0, 290.0)])
def test_reference_paste_changes_only_the_crop(centre: tuple[float, float]) -> None:
    frame = np.rint(natural_picture(300, 400)).astype(np.uint8)
    before = frame.copy()
    matrix = align.solve_matrix(np.rint(face_points(centre, 60)), 128)
    pasted = reference_paste(frame, np.full((3, 128, 128), 1.0, np.float32), matrix)
    np.testing.assert_array_equal(frame, before)
    u, v = np.meshgrid(np.arange(400.0), np.arange(300.0))
    landed = np.stack([u, v, np.ones_like(u)], axis=-1) @ matrix.astype(np.float64).T
    width, height = align.crop_size(128)
    outside = ((landed < -3) | (landed > (width + 2, height + 2))).any(axis=-1)
    np.testing.assert_array_equal(pasted[outside], frame[outside])
    deep = ((landed > 20) & (landed < (width - 21, height - 21))).all(axis=-1)
    assert (pasted[deep] >= 254).all()
