"""Geometry, resampling, soft paste, colour: the reference's piece of the picture, back without loss."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from lipsync_engine.errors import ErrorCode, FaceError
from lipsync_engine.faces import align, compositor

Array = npt.NDArray[np.float32]


def natural_picture(height: int, width: int, seed: int = 0) -> Array:
    """Noise with the spectrum of photographs (amplitude ~ 1 / frequency) behind a lens of 1 pixel blur."""
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    radius = np.maximum(np.hypot(fy, fx), 1 / max(height, width))
    planes = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(height, width))) / radius).real for _ in range(3)]
    picture = np.stack([plane / plane.std() for plane in planes], axis=-1)
    return cv2.GaussianBlur(np.clip(128 + 45 * picture, 0, 255), (0, 0), 1.0).astype(np.float32)


def face_points(centre: tuple[float, float], brow_distance: float, turn: float = 0.0) -> Array:
    """Brows and nose of an upright face of template proportions, turned about the brows' middle."""
    across = np.array([math.cos(turn), math.sin(turn)])
    down = np.array([-across[1], across[0]])
    middle, half = np.array(centre), brow_distance / 2
    nose = middle + down * brow_distance * 20 / 41
    return np.stack([middle - across * half, middle + across * half, nose]).astype(np.float32)


def keep_mask(resolution: int) -> Array:
    """A mask of the model's kind: cheeks and mouth generated, nose and all borders kept."""
    mask = np.ones((resolution, resolution), dtype=np.float32)
    side, top, nose, bottom = (round(share * resolution) for share in (0.036, 0.37, 0.5, 0.94))
    mask[top:bottom, side : resolution - side] = 0
    mask[top:nose, round(0.3 * resolution) : round(0.7 * resolution)] = 1
    return mask


def place_in_picture(matrix: Array, resolution: int) -> Array:
    """(R, R, 2): where each pixel of the square lies in the picture, by the documented convention."""
    width, height = align.crop_size(resolution)
    u = (np.arange(resolution) + 0.5) * width / resolution - 0.5
    v = (np.arange(resolution) + 0.5) * height / resolution - 0.5
    crop = np.stack([*np.meshgrid(u, v), np.ones((resolution, resolution))], axis=-1)
    return crop @ cv2.invertAffineTransform(matrix.astype(np.float64)).T


def psnr(a: Array, b: Array) -> float:
    return 10 * math.log10(255**2 / float(np.mean((a - b) ** 2)))


# --- geometry ---


def test_a_moved_template_comes_back_to_its_place(subtests: pytest.Subtests) -> None:
    for resolution in [64, 128, 256, 512]:
        for turn in [-2.0, -0.3, 0.0, 0.7]:
            with subtests.test(resolution=resolution, turn=turn):
                template = align.template_points(resolution)
                points = face_points((731.3, 402.8), 97.2, turn)
                matrix = align.solve_matrix(points, resolution)
                landed = points @ matrix[:, :2].T + matrix[:, 2]
                np.testing.assert_allclose(landed, template, atol=2e-3)


def test_a_mirrored_face_is_not_mirrored_back() -> None:
    points = face_points((100, 100), 40)[[1, 0, 2]]
    assert np.linalg.det(align.solve_matrix(points, 256)[:, :2]) > 0


def test_fractions_of_a_pixel_count() -> None:
    points = face_points((300, 200), 80)
    here, there = (align.solve_matrix(points + shift, 256) for shift in (0.0, 0.25))
    np.testing.assert_allclose(there[:, :2], here[:, :2], atol=1e-6)
    np.testing.assert_allclose(here[:, 2] - there[:, 2], here[:, :2] @ (0.25, 0.25), atol=1e-3)


def test_coinciding_points_are_refused() -> None:
    with pytest.raises(FaceError) as caught:
        align.solve_matrix(np.full((3, 2), 12.0), 256)
    assert caught.value.code is ErrorCode.FACE_NOT_FOUND


@pytest.mark.parametrize("turn", [0.0, 0.4])
def test_every_pixel_of_the_square_comes_from_its_documented_place(turn: float) -> None:
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
def test_the_crop_is_the_references_on_smooth_pictures(brow_distance: float) -> None:
    size = int(brow_distance * 6)
    picture = cv2.GaussianBlur(natural_picture(size, size), (0, 0), brow_distance / 12)
    eight_bit = np.rint(picture).astype(np.uint8)
    matrix = align.solve_matrix(face_points((size / 2 + 0.3, size / 2.4), brow_distance, 0.1), 256)
    ours = align.crop_face(eight_bit.astype(np.float32), matrix, 256)
    theirs = align.reference_crop(eight_bit, matrix, 256) + np.float32(0.5)  # it truncates
    assert psnr(ours, theirs) > 45
    assert np.abs((ours - theirs).mean()) < 0.2


# --- there and back ---


def test_an_unchanged_face_comes_back_unchanged(subtests: pytest.Subtests) -> None:
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
                    weight = compositor.soft_mask(keep_mask(resolution))
                    rgb, alpha = compositor.paste_face((size, size), crop, weight, matrix)
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


def test_detail_too_fine_for_the_picture_does_not_alias() -> None:
    """A small face in the frame: stripes of the square between the frame's pixels become even grey."""
    stripes = np.tile(np.array([0.0, 255.0], dtype=np.float32).repeat(2), 128)
    face = np.broadcast_to(stripes[None, :, None], (512, 512, 3)).copy()
    matrix = align.solve_matrix(face_points((60.2, 50.1), 30), 512)
    weight = compositor.soft_mask(keep_mask(512))
    rgb, alpha = compositor.paste_face((120, 120), face, weight, matrix)
    inside = cv2.erode(alpha, np.ones((7, 7))) > 0.99
    assert rgb[inside].std() < 5
    assert rgb[inside].mean() == pytest.approx(127.5, abs=2)


def test_detail_too_fine_for_the_model_does_not_alias(subtests: pytest.Subtests) -> None:
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


def test_the_region_is_all_that_is_needed(subtests: pytest.Subtests) -> None:
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

                weight = compositor.soft_mask(keep_mask(resolution))
                _, alpha = compositor.paste_face((221, 301), whole, weight, matrix)
                _, local_alpha = compositor.paste_face((y1 - y0, x1 - x0), whole, weight, local)
                np.testing.assert_allclose(local_alpha, alpha[y0:y1, x0:x1], atol=0.05)
                alpha[y0:y1, x0:x1] = 0
                assert (alpha == 0).all()


def test_regions_are_even_and_inside_even_for_faces_that_are_not(subtests: pytest.Subtests) -> None:
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


def test_a_face_that_leaves_the_picture_is_continued_not_cut() -> None:
    picture = np.full((200, 200, 3), 200.0, dtype=np.float32)
    crop = align.crop_face(picture, align.solve_matrix(face_points((5, 100), 60), 128), 128)
    assert crop.shape == (128, 128, 3)
    np.testing.assert_allclose(crop, 200, atol=0.01)


# --- the soft edge ---


def test_the_soft_mask_shows_the_generated_part_and_fades_before_the_border(
    subtests: pytest.Subtests,
) -> None:
    for resolution in [64, 128, 256, 512]:
        with subtests.test(resolution=resolution):
            mask = keep_mask(resolution)
            weight = compositor.soft_mask(mask)
            assert weight.dtype == np.float32
            assert (weight[mask < 0.5] == 1).all()
            border = np.concatenate([weight[0], weight[-1], weight[:, 0], weight[:, -1]])
            assert (border == 0).all()
            distance = cv2.distanceTransform(
                (mask >= 0.5).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
            )
            assert (weight[distance > 0.04 * resolution] == 0).all()  # nowhere further out than a few percent


def test_the_soft_mask_has_no_kink() -> None:
    weight = compositor.soft_mask(keep_mask(512))
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
def test_a_decoders_colour_cast_leaves_no_step(resolution: int) -> None:
    """On a constant-colour face, the mean border step is under 1 level after pasting into the frame."""
    frame = np.full((300, 260, 3), (180.0, 140.0, 120.0), dtype=np.float32)
    mask = keep_mask(resolution)
    matrix = align.solve_matrix(face_points((130.3, 110.6), 60, 0.1), resolution)
    source = align.crop_face(frame, matrix, resolution)
    decoded = source + np.array([5.0, -4.0, 6.0], dtype=np.float32)

    def composite(face: Array) -> Array:
        rgb, alpha = compositor.paste_face((300, 260), face, compositor.soft_mask(mask), matrix)
        return frame + alpha[..., None] * (rgb - frame)

    assert np.abs(composite(decoded) - frame).max() > 3.9  # the cast would be seen
    matched = composite(compositor.match_colour(decoded, source, mask))
    assert np.abs(matched - frame).mean() < 0.05
    assert np.abs(matched - frame).max() < 0.5
    assert worst_jump(matched) < 0.2


@pytest.mark.parametrize("resolution", [128, 256])
def test_a_cast_that_changes_across_the_face_leaves_no_step(resolution: int) -> None:
    mask = keep_mask(resolution)
    source = np.full((resolution, resolution, 3), (190.0, 150.0, 130.0), dtype=np.float32)
    down, across = np.meshgrid(*[np.linspace(-8, 8, resolution, dtype=np.float32)] * 2, indexing="ij")
    cast = np.dstack([across, 0.5 * down - across, down + 4])
    matched = compositor.match_colour(source + cast, source, mask)
    assert border_step(source + cast * (mask < 0.5)[..., None], mask, source) > 1
    shown = source + compositor.soft_mask(mask)[..., None] * (matched - source)
    ring = cv2.dilate((mask < 0.5).astype(np.uint8), np.ones((5, 5), np.uint8)) - (mask < 0.5)
    assert np.abs(shown - source)[ring > 0].mean() < 1
    assert border_step(shown, mask, source) < 1


def test_a_new_mouth_is_not_recoloured() -> None:
    """What the model generates differs from the source inside; only the ring around it may tell of a cast."""
    mask = keep_mask(256)
    source = natural_picture(256, 256)
    face = np.where(mask[..., None] < 0.5, 20.0, source).astype(np.float32)
    np.testing.assert_allclose(compositor.match_colour(face, source, mask), face, atol=1e-3)


def test_something_that_moved_in_the_ring_does_not_tint_the_face() -> None:
    mask = keep_mask(256)
    source = np.full((256, 256, 3), 150.0, dtype=np.float32)
    decoded = source + np.array([3.0, -3.0, 2.0], dtype=np.float32)
    decoded[60:94, 20:60] += 70  # a hand at the cheek
    correction = compositor.match_colour(decoded, source, mask) - decoded
    assert np.abs(correction[mask < 0.5] - (-3.0, 3.0, -2.0)).mean() < 1
    assert np.abs(correction[mask < 0.5] - (-3.0, 3.0, -2.0)).max() < 3


def test_the_correction_is_too_small_to_paint() -> None:
    mask = keep_mask(128)
    source = np.full((128, 128, 3), 200.0, dtype=np.float32)
    correction = compositor.match_colour(source - 120, source, mask) - (source - 120)
    assert np.abs(correction).max() <= compositor.MAX_COLOUR_OFFSET + 1e-3


def test_reconstruction_noise_moves_no_colours() -> None:
    mask, rng = keep_mask(256), np.random.default_rng(0)
    source = natural_picture(256, 256)
    noisy = source + rng.normal(0, 4, source.shape).astype(np.float32)
    correction = compositor.match_colour(noisy, source, mask) - noisy
    assert np.abs(correction[compositor.soft_mask(mask) > 0]).max() < 0.6
    assert np.abs(correction[mask < 0.5]).mean() < 0.15


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


def test_the_reference_crop_is_grey_outside_the_picture() -> None:
    matrix = align.solve_matrix(face_points((0, 50), 60), 128)
    crop = align.reference_crop(np.full((120, 160, 3), 30, np.uint8), matrix, 128)
    assert (crop[:, :50] == 127).all()
    assert (crop[20:60, 80:] == 30).all()


@pytest.mark.parametrize("centre", [(200.0, 150.0), (15.0, 150.0), (390.0, 290.0)])
def test_the_reference_paste_changes_the_crop_only(centre: tuple[float, float]) -> None:
    frame = np.rint(natural_picture(300, 400)).astype(np.uint8)
    before = frame.copy()
    matrix = align.solve_matrix(np.rint(face_points(centre, 60)), 128)
    pasted = compositor.reference_paste(frame, np.full((3, 128, 128), 1.0, np.float32), matrix)
    np.testing.assert_array_equal(frame, before)
    u, v = np.meshgrid(np.arange(400.0), np.arange(300.0))
    landed = np.stack([u, v, np.ones_like(u)], axis=-1) @ matrix.astype(np.float64).T
    width, height = align.crop_size(128)
    outside = ((landed < -3) | (landed > (width + 2, height + 2))).any(axis=-1)
    np.testing.assert_array_equal(pasted[outside], frame[outside])
    deep = ((landed > 20) & (landed < (width - 21, height - 21))).all(axis=-1)
    assert (pasted[deep] >= 254).all()
