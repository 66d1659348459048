"""Tests of alignment: geometry, resampling, the reference's numbers."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from lipsync_engine.errors import ErrorCode, FaceError
from lipsync_engine.faces import align
from tests.support.crops import face_points, natural_picture, psnr

Array = npt.NDArray[np.float32]


def place_in_picture(matrix: Array, resolution: int) -> Array:
    """(R, R, 2): where each pixel of the square lies in the picture, by the documented convention."""
    width, height = align.crop_size(resolution)
    u = (np.arange(resolution) + 0.5) * width / resolution - 0.5
    v = (np.arange(resolution) + 0.5) * height / resolution - 0.5
    crop = np.stack([*np.meshgrid(u, v), np.ones((resolution, resolution))], axis=-1)
    return crop @ cv2.invertAffineTransform(matrix.astype(np.float64)).T


# --- geometry ---


def test_matrix_maps_moved_template_to_its_place(subtests: pytest.Subtests) -> None:
    for resolution in [64, 128, 256, 512]:
        for turn in [-2.0, -0.3, 0.0, 0.7]:
            with subtests.test(resolution=resolution, turn=turn):
                template = align.template_points(resolution)
                points = face_points((731.3, 402.8), 97.2, turn)
                matrix = align.solve_matrix(points, resolution)
                landed = points @ matrix[:, :2].T + matrix[:, 2]
                np.testing.assert_allclose(landed, template, atol=2e-3)


def test_mirrored_face_is_not_mirrored_back() -> None:
    points = face_points((100, 100), 40)[[1, 0, 2]]
    assert np.linalg.det(align.solve_matrix(points, 256)[:, :2]) > 0


def test_matrix_keeps_fractions_of_a_pixel() -> None:
    points = face_points((300, 200), 80)
    here, there = (align.solve_matrix(points + shift, 256) for shift in (0.0, 0.25))
    np.testing.assert_allclose(there[:, :2], here[:, :2], atol=1e-6)
    np.testing.assert_allclose(here[:, 2] - there[:, 2], here[:, :2] @ (0.25, 0.25), atol=1e-3)


def test_coinciding_points_are_an_error() -> None:
    with pytest.raises(FaceError) as error:
        align.solve_matrix(np.full((3, 2), 12.0), 256)
    assert error.value.code is ErrorCode.FACE_NOT_FOUND


@pytest.mark.parametrize("turn", [0.0, 0.4])
def test_crop_pixels_come_from_their_documented_places(turn: float) -> None:
    """A picture whose values are its own coordinates: the crop's values are then places."""
    x, y = np.meshgrid(np.arange(220.0), np.arange(220.0))
    picture = np.dstack([x, y, x]).astype(np.float32)
    for brow_distance in (40.0, 75.0):
        matrix = align.solve_matrix(face_points((110.4, 90.7), brow_distance * 0.9, turn), 128)
        places = place_in_picture(matrix, 128)
        inside = ((places > 4) & (places < 215)).all(axis=-1)
        assert inside.mean() > 0.6
        crop = align.crop_face(picture, matrix, 128)[..., :2]
        assert np.abs(crop - places)[inside].max() < 0.1  # OpenCV rounds places to 1/32 pixel
        reference = align.reference_crop(picture.astype(np.uint8), matrix, 128)[..., :2] + 0.5
        assert np.abs(reference - places)[inside].max() < 2.0
        assert np.abs((reference - places)[inside].mean(axis=0)).max() < 0.1


@pytest.mark.parametrize("brow_distance", [20.0, 60.0, 180.0])
def test_crop_equals_reference_crop_on_smooth_images(brow_distance: float) -> None:
    size = int(brow_distance * 6)
    picture = cv2.GaussianBlur(natural_picture(size, size), (0, 0), brow_distance / 12)
    eight_bit = np.rint(picture).astype(np.uint8)
    matrix = align.solve_matrix(face_points((size / 2 + 0.3, size / 2.4), brow_distance, 0.1), 256)
    ours = align.crop_face(eight_bit.astype(np.float32), matrix, 256)
    theirs = align.reference_crop(eight_bit, matrix, 256) + np.float32(0.5)  # it truncates
    assert psnr(ours, theirs) > 45
    assert np.abs((ours - theirs).mean()) < 0.2


# --- resampling ---


def test_crop_does_not_alias_fine_detail(subtests: pytest.Subtests) -> None:
    """A large face: stripes between the square's pixels fade to grey, most where the square is coarse."""
    for upright, limit in [(True, 15), (False, 6)]:
        for turn in [0.0, math.pi / 2]:
            with subtests.test(upright=upright, limit=limit, turn=turn):
                stripes = np.tile(np.array([0.0, 255.0], dtype=np.float32).repeat(2), 300)
                picture = np.broadcast_to(stripes[None, :, None], (1200, 1200, 3))
                if upright != (turn == 0):  # upright in the face's own directions
                    picture = picture.transpose(1, 0, 2)
                matrix = align.solve_matrix(face_points((600, 600), 250, turn), 128)
                crop = align.crop_face(np.ascontiguousarray(picture), matrix, 128)
                assert crop.std() < limit  # unfiltered: 127


def test_regions_are_even_and_inside_the_image(subtests: pytest.Subtests) -> None:
    for centre in [(50, 50), (-900, 20), (5000, 40), (60, -700), (33, 9000)]:
        for size in [(101, 67), (100, 66), (3, 2)]:
            with subtests.test(centre=centre, size=size):
                matrix = align.solve_matrix(face_points(centre, 20), 64)
                x0, y0, x1, y1 = align.face_region(matrix, 64, *size)
                assert 0 <= x0 < x1 <= size[0]
                assert 0 <= y0 < y1 <= size[1]
                assert x0 % 2 == y0 % 2 == 0
                assert x1 % 2 == 0 or x1 == size[0]
                assert y1 % 2 == 0 or y1 == size[1]


def test_crop_repeats_border_pixels_outside_the_image() -> None:
    picture = np.full((200, 200, 3), 200.0, dtype=np.float32)
    crop = align.crop_face(picture, align.solve_matrix(face_points((5, 100), 60), 128), 128)
    assert crop.shape == (128, 128, 3)
    np.testing.assert_allclose(crop, 200, atol=0.01)


# --- the reference's numbers, beyond the parity pack ---


def test_reference_points_round_half_to_even() -> None:
    marks = np.zeros((1, 106, 2), dtype=np.int32)
    marks[0, list(align.NOSE), 0] = 1, 2, 3, 4  # mean 2.5
    marks[0, list(align.NOSE), 1] = 3, 3, 4, 4  # mean 3.5
    assert align.reference_points(marks)[0, 2].tolist() == [2.0, 4.0]


def test_reference_matrices_carry_their_bias_in_frame_order() -> None:
    points = np.stack(
        [face_points((200, 150), 70) + np.array([[0, 0], [0, 0], [0, lift]]) for lift in (0, 9, -6)]
    )
    matrices = align.reference_matrices(points, 256)
    single = np.stack([align.solve_matrix(three, 256) for three in points])
    first = np.concatenate([align.reference_matrices(three[None], 256) for three in points])
    bias, alone = (matrices - single)[..., 2], (first - single)[..., 2]
    np.testing.assert_allclose(bias[1], 0.2 * bias[0] + 0.8 * alone[1], atol=1e-4)
    np.testing.assert_allclose(bias[2], 0.2 * bias[1] + 0.8 * alone[2], atol=1e-4)
    assert np.abs(bias[2] - alone[2]).max() > 1e-3
    np.testing.assert_array_equal(matrices[..., :2], single[..., :2])


def test_reference_crop_is_grey_outside_the_image() -> None:
    matrix = align.solve_matrix(face_points((0, 50), 60), 128)
    crop = align.reference_crop(np.full((120, 160, 3), 30, np.uint8), matrix, 128)
    assert (crop[:, :50] == 127).all()
    assert (crop[20:60, 80:] == 30).all()
