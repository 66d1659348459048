"""Mouths that must never be published are refused; plausible ones, however plain or grainy, are not."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from lipsync_engine.errors import ErrorCode, OutputError
from lipsync_engine.faces import align, compositor
from lipsync_engine.rendering.output_check import MAX_RUN, FaceCheck, OutputCheck
from tests.support.paths import SHARED

Array = npt.NDArray[np.float32]
Change = Callable[[Array], Array]


def keep_mask(resolution: int) -> Array:
    """A mask of the model's kind: cheeks and mouth generated, nose and all borders kept."""
    mask = np.ones((resolution, resolution), dtype=np.float32)
    side, top, nose, bottom = (round(share * resolution) for share in (0.036, 0.37, 0.5, 0.94))
    mask[top:bottom, side : resolution - side] = 0
    mask[top:nose, round(0.3 * resolution) : round(0.7 * resolution)] = 1
    return mask


@functools.cache
def drawn_face(resolution: int, opening: float, *, flat: bool = False, skin: float = 1.0) -> Array:
    """An aligned face crop; `opening` of the mouth 0..1, `flat` like a cartoon, `skin` its brightness."""
    n = max(1024, resolution)
    unit = n / 100

    def at(x: float, y: float) -> tuple[int, int]:
        return round(x * unit), round(y * unit)

    base = np.array([205, 160, 135]) * skin
    picture = np.full((n, n, 3), (70, 90, 110), dtype=np.float32)
    cv2.ellipse(picture, at(50, 45), at(46, 52), 0, 0, 360, base.tolist(), -1)
    for x in (30, 70):
        cv2.ellipse(picture, at(x, 12), at(9, 2), 0, 0, 360, (60, 40, 30), -1)
        cv2.ellipse(picture, at(x, 22), at(7, 4), 0, 0, 360, (240, 240, 240), -1)
        cv2.ellipse(picture, at(x, 22), at(3, 3), 0, 0, 360, (50, 70, 60), -1)
    cv2.line(picture, at(50, 22), at(47, 42), (base * 0.75).tolist(), round(1.5 * unit))
    cv2.ellipse(
        picture, at(50, 66), at(17, 3 + 8 * opening), 0, 0, 360, (base * (0.8, 0.45, 0.5)).tolist(), -1
    )
    cv2.ellipse(picture, at(50, 66), at(14, 0.7 + 6 * opening), 0, 0, 360, (60, 20, 25), -1)
    if opening > 0.3:
        cv2.ellipse(picture, at(50, 63), at(11, 2), 0, 0, 360, (235, 230, 220), -1)
    if not flat:
        light = np.linspace(1.1, 0.75, n, dtype=np.float32)[None, :, None]
        rng = np.random.default_rng(3)
        pores = cv2.resize(rng.normal(0, 6, (resolution, resolution)).astype(np.float32), (n, n))
        picture = cv2.GaussianBlur(picture, (0, 0), 0.5 * unit) * light + pores[..., None]
    small = cv2.resize(picture, (resolution, resolution), interpolation=cv2.INTER_AREA)
    face = np.clip(small, 0, 255).astype(np.float32)
    face.flags.writeable = False
    return face


def bearded(face: Array) -> Array:
    rng = np.random.default_rng(5)
    size = len(face)
    hair = cv2.GaussianBlur(rng.normal(0, 1, (size, size)).astype(np.float32), (0, 0), 0.7, sigmaY=2.5)
    lower = np.clip((np.arange(size) / size - 0.55) * 8, 0, 1)[:, None, None]
    return np.clip(face * (1 - 0.6 * lower) + 60 * lower * hair[..., None], 0, 255).astype(np.float32)


def grainy(sigma: float) -> Change:
    rng = np.random.default_rng(7)
    return lambda face: np.clip(face + rng.normal(0, sigma, face.shape), 0, 255).astype(np.float32)


def small_original(pixels: int) -> Change:
    def change(face: Array) -> Array:
        tiny = cv2.resize(face, (pixels, pixels), interpolation=cv2.INTER_AREA)
        return cv2.resize(tiny, face.shape[:2], interpolation=cv2.INTER_CUBIC)

    return change


FOOTAGE: dict[str, Change] = {
    "plain": lambda face: face,
    "dark": lambda face: face * np.float32(0.12),
    "night": lambda face: face * np.float32(0.03),
    "overexposed": lambda face: np.clip(face * 1.5, 0, 255),
    "bearded": bearded,
    "out of focus": lambda face: cv2.GaussianBlur(face, (0, 0), len(face) / 40),
    "64 pixels": small_original(64),
    "grainy": grainy(15),
    "black and white": lambda face: (
        np.repeat(face.mean(axis=-1, keepdims=True), 3, axis=-1) * np.float32(0.8)
    ),
}
"""What may have happened to a source, and so to a good result made from it."""


def decoded(face: Array, sigma: float = 1.5) -> Array:
    """What a good decoder makes of it: a little soft, a little noise, a little off in colour."""
    rng = np.random.default_rng(11)
    noise = rng.normal(0, sigma, face.shape).astype(np.float32)
    return cv2.GaussianBlur(face, (0, 0), 0.8) + noise + np.array([2, -2, 3], dtype=np.float32)


def test_plausible_mouths_pass_in_every_footage(subtests: pytest.Subtests) -> None:
    for resolution, footage, flat in itertools.product((64, 128, 256, 512), FOOTAGE, (False, True)):
        with subtests.test(resolution=resolution, footage=footage, flat=flat):
            judge, change = FaceCheck(keep_mask(resolution)), FOOTAGE[footage]
            faces = [drawn_face(resolution, opening, flat=flat) for opening in (0.0, 0.4, 1.0)]
            sources = [change(face) for face in faces]
            results = [decoded(change(face)) for face in faces]
            verdicts = [judge.verdict_of(result, source) for source in sources for result in results]
            assert verdicts == [None] * 9


def test_every_skin_passes(subtests: pytest.Subtests) -> None:
    for skin in [0.2, 0.5, 1.2]:
        with subtests.test(skin=skin):
            judge = FaceCheck(keep_mask(256))
            closed, opened = (drawn_face(256, opening, skin=skin) for opening in (0.0, 1.0))
            assert judge.verdict_of(decoded(closed), opened) is None
            assert judge.verdict_of(decoded(opened), closed) is None


def test_sharp_result_of_poor_footage_passes() -> None:
    judge = FaceCheck(keep_mask(256))
    face = drawn_face(256, 0.6)
    for poor in (grainy(20)(face), FOOTAGE["out of focus"](face), small_original(32)(face)):
        assert judge.verdict_of(face, poor) is None


def inside(area: npt.NDArray[np.bool_], paint: Callable[[Array], Array | float]) -> Change:
    return lambda face: np.where(area[..., None], paint(face), face).astype(np.float32)


def bad_mouths(resolution: int) -> dict[str, tuple[Change, ErrorCode]]:
    rng = np.random.default_rng(13)
    generated = keep_mask(resolution) < 0.5
    mouth = np.zeros_like(generated)
    mouth[int(0.53 * resolution) : int(0.8 * resolution), int(0.3 * resolution) : int(0.7 * resolution)] = (
        True
    )
    found: dict[str, tuple[Change, ErrorCode]] = {}
    for name, area in (("generated part", generated), ("mouth", mouth)):
        found |= {
            f"noise, {name}": (
                inside(area, lambda f: rng.uniform(0, 255, f.shape)),
                ErrorCode.OUTPUT_NOISE,
            ),
            f"constant, {name}": (
                inside(area, lambda f: np.array([190, 140, 120])),
                ErrorCode.OUTPUT_FLAT,
            ),
            f"average, {name}": (
                inside(area, lambda f, area=area: f[area].mean(axis=0)),
                ErrorCode.OUTPUT_FLAT,
            ),
            f"beyond white, {name}": (
                inside(area, lambda f: rng.normal(900, 100, f.shape)),
                ErrorCode.OUTPUT_FLAT,
            ),
            f"mid-grey, {name}": (
                inside(area, lambda f: 127.5 + rng.normal(0, 2, f.shape)),
                ErrorCode.OUTPUT_MASK_COLOURED,
            ),
        }
    return found


def test_bad_mouth_has_its_code(subtests: pytest.Subtests) -> None:
    for resolution in [64, 256, 512]:
        for name in bad_mouths(64):
            with subtests.test(resolution=resolution, name=name):
                change, code = bad_mouths(resolution)[name]
                judge = FaceCheck(keep_mask(resolution))
                for opening in (0.4, 1.0):
                    source = drawn_face(resolution, opening)
                    assert judge.verdict_of(change(source), source) is code


def test_recoloured_skin_is_rejected(subtests: pytest.Subtests) -> None:
    for skin in [0.5, 1.0]:
        for tint in [(0.6, 1.2, 0.7), (0.7, 0.8, 1.5)]:
            with subtests.test(skin=skin, tint=tint):
                mask = keep_mask(256)
                source = drawn_face(256, 0.5, skin=skin)
                painted = inside(mask < 0.5, lambda face, tint=tint: face * np.array(tint))(source)
                assert FaceCheck(mask).verdict_of(decoded(painted), source) is ErrorCode.OUTPUT_MISCOLOURED


def test_colour_cast_of_the_whole_face_passes() -> None:
    source = drawn_face(256, 0.5)
    cast = np.array([25, -20, -15], dtype=np.float32)
    assert FaceCheck(keep_mask(256)).verdict_of(source + cast, source) is None


def test_face_of_a_model_for_other_faces_is_rejected() -> None:
    """What such a model does to a face that it was not made for: other colours, and other shapes."""
    source = drawn_face(256, 0.5)
    small = cv2.resize(source, (14, 14), interpolation=cv2.INTER_AREA)
    painted = cv2.resize(small, (256, 256), interpolation=cv2.INTER_NEAREST) + np.array([18, 6, -16])
    judge = FaceCheck(keep_mask(256))
    assert judge.verdict_of(painted.astype(np.float32), source) is ErrorCode.OUTPUT_MISCOLOURED
    assert judge.verdict_of(source + np.array([18, 6, -16], dtype=np.float32), source) is None


def test_noise_above_the_grain_of_the_source_is_rejected() -> None:
    judge = FaceCheck(keep_mask(256))
    face = drawn_face(256, 0.5)
    assert judge.verdict_of(grainy(20)(face), face) is ErrorCode.OUTPUT_NOISE
    assert judge.verdict_of(grainy(20)(face), grainy(15)(face)) is None


def test_drawing_without_a_mouth_passes() -> None:
    blank = np.full((128, 128, 3), (200, 160, 140), dtype=np.float32)
    assert FaceCheck(keep_mask(128)).verdict_of(blank, blank) is None


def test_single_nan_or_infinity_is_rejected(subtests: pytest.Subtests) -> None:
    for value in [np.nan, np.inf, -np.inf]:
        with subtests.test(value=value):
            source = drawn_face(64, 0.5)
            face = source.copy()
            face[0, 0, 0] = value
            check = OutputCheck(keep_mask(64))
            with pytest.raises(OutputError) as error:
                check.add(17, face, source)
            assert error.value.code is ErrorCode.OUTPUT_NOT_FINITE
            assert "17" in error.value.message


@pytest.mark.parametrize("smooth", [False, True], ids=["random latents", "blotches"])
def test_untrained_decoder_is_rejected(smooth: bool) -> None:
    source = drawn_face(128, 0.5)
    if smooth:
        rng = np.random.default_rng(0)
        field = cv2.GaussianBlur(rng.normal(size=(128, 128, 3)).astype(np.float32), (0, 0), 5)
        faces = [source.mean(axis=(0, 1)) + 30 * field / field.std()]
    else:
        from diffusers import AutoencoderKL

        torch.manual_seed(0)
        blocks = 4
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * blocks,
            up_block_types=["UpDecoderBlock2D"] * blocks,
            block_out_channels=(32, 32, 64, 64),
            layers_per_block=1,
            latent_channels=4,
        )
        with torch.no_grad():
            image = vae.decode(torch.randn(3, 4, 16, 16)).sample
        faces = list(((image + 1) * 127.5).permute(0, 2, 3, 1).numpy())
    judge = FaceCheck(keep_mask(128))
    assert [judge.verdict_of(face, source) for face in faces] == [ErrorCode.OUTPUT_NOISE] * len(faces)


# --- from frames to the clip ---

GOOD, FLAT = True, False


def watch(pattern: list[bool]) -> OutputCheck:
    source = drawn_face(64, 0.5)
    flat = inside(keep_mask(64) < 0.5, lambda f: np.array([190, 140, 120]))(source)
    check = OutputCheck(keep_mask(64))
    for number, good in enumerate(pattern):
        check.add(number, source if good else flat, source)
    return check


def test_few_bad_frames_are_tolerated(subtests: pytest.Subtests) -> None:
    for pattern in [
        [],
        [GOOD],
        [*[GOOD] * 50, *[FLAT] * MAX_RUN, *[GOOD] * 50],
        [*[GOOD] * 50, *[FLAT] * MAX_RUN, GOOD, *[FLAT] * MAX_RUN, *[GOOD] * 50],
    ]:
        with subtests.test(pattern=pattern):
            watch(pattern).raise_if_unfit()


def test_large_share_of_bad_frames_is_rejected(subtests: pytest.Subtests) -> None:
    for pattern in [[FLAT], [FLAT, GOOD] * 3, [*[GOOD] * 8, FLAT] * 4]:
        with subtests.test(pattern=pattern):
            check = watch(pattern)
            with pytest.raises(OutputError) as error:
                check.raise_if_unfit()
            assert error.value.code is ErrorCode.OUTPUT_FLAT
            assert f"{pattern.count(FLAT)} of {len(pattern)} frames" in error.value.message


def test_run_of_bad_frames_is_rejected_at_once() -> None:
    with pytest.raises(OutputError) as error:
        watch([GOOD] * 200 + [FLAT] * (MAX_RUN + 1))
    assert error.value.code is ErrorCode.OUTPUT_FLAT
    assert str(200 + MAX_RUN) in error.value.message


# --- a real face ---


def real_crops(resolution: int, count: int) -> list[Array]:
    """Aligned crops of the real clip, found with the real detector, from frames half a second apart."""
    clip = SHARED / "media" / "talking_person_1080x1920_25fps.mp4"
    weights = SHARED / "weights" / "face_detection_yunet_2023mar.onnx"
    for path in (clip, weights):
        if not path.exists():
            pytest.skip(f"{path.name} is not on this machine")
    video, detector, crops = cv2.VideoCapture(str(clip)), None, []
    for number in range(12 * count):
        result, frame = video.read()
        assert result
        if number % 12:
            continue
        half = cv2.resize(frame, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        if detector is None:
            detector = cv2.FaceDetectorYN.create(str(weights), "", half.shape[1::-1], 0.6)
        row = detector.detect(half)[1][0] * 2
        left, right, nose = row[4:6], row[6:8], row[8:10]
        along = right - left
        up = np.array([along[1], -along[0]])
        points = np.stack([left - 0.08 * along + 0.26 * up, right + 0.08 * along + 0.26 * up, nose])
        rgb = frame[..., ::-1].astype(np.float32)
        crops.append(align.crop_face(rgb, align.solve_matrix(points, resolution), resolution))
    video.release()
    return crops


def test_real_person_passes_and_damage_is_detected(subtests: pytest.Subtests) -> None:
    resolution = 256
    crops, mask = real_crops(resolution, 8), keep_mask(resolution)
    judge, soft = FaceCheck(mask), compositor.soft_mask(mask)[..., None]
    for footage, change in FOOTAGE.items():
        with subtests.test("another moment's mouth", footage=footage):
            for source, other in zip(crops, crops[3:] + crops[:3], strict=True):
                result = source * (1 - soft) + other * soft
                assert judge.verdict_of(decoded(change(result)), change(source)) is None
    for name, (change, code) in bad_mouths(resolution).items():
        with subtests.test(name):
            assert [judge.verdict_of(change(source), source) for source in crops] == [code] * len(crops)
