"""Still portraits that speak: pictures of any kind in, a head that moves without tearing anything out."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lipsync_engine import LipSyncPipeline, Motion, Stage, SyncParams, media
from lipsync_engine.audio import vad
from lipsync_engine.errors import ErrorCode, LipSyncError
from lipsync_engine.faces import YuNetDetector
from lipsync_engine.portrait import animation
from tests.support import mouth_score
from tests.support.mouth_score import Truth
from tests.support.paths import DEMO

Ffmpeg = Callable[..., None]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory, ffmpeg: Ffmpeg) -> Path:
    """The demo's presenter, 384 x 384."""
    path = tmp_path_factory.mktemp("face") / "face.png"
    ffmpeg("-i", DEMO / "presenter.mp4", "-frames:v", 1, path)
    return path


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth.load(DEMO / "truth.json")


def test_the_command_makes_a_picture_speak(
    face: Path, truth: Truth, tmp_path: Path, ffmpeg: Ffmpeg, lipsync: Run, cache_dir: Path
) -> None:
    voice = tmp_path / "voice.wav"
    ffmpeg("-i", DEMO / "voice.wav", "-t", 3, voice)
    made = tmp_path / "made.mp4"
    done = lipsync("portrait", face, voice, "-o", made, "--motion", "still")
    assert done.returncode == 0, done.stderr[-2000:]
    info = media.probe_video(made)
    assert (info.format.width, info.format.height, info.frame_rate) == (384, 384, 25)
    still = Truth(truth.identity, truth.poses[:1] * 75, truth.openness, truth.events)
    read = mouth_score.read_video(made, still)
    assert len(read) == 75
    assert mouth_score.correlation(read, truth.openness[:75]) > 0.7
    assert list((cache_dir / "jobs").iterdir()) == []


def test_a_portrait_moves_and_nothing_tears(face: Path, voice: Path, tmp_path: Path) -> None:
    pipeline = LipSyncPipeline.from_pretrained("tiny", device="cpu", cache_dir=tmp_path / "cache")
    params = SyncParams(num_inference_steps=1, guidance_scale=1.0, max_short_side=256)
    reports = list(pipeline.run_portrait(face, voice, tmp_path / "made.mp4", params))
    assert [stage for stage, _ in itertools.groupby(report.stage for report in reports)] == [
        Stage.MOTION, Stage.AUDIO, Stage.FACES, Stage.RENDER, Stage.ASSEMBLE,
    ]  # fmt: skip
    pictures = [p.astype(int) for _, p in media.scan_frames(media.probe_video(tmp_path / "made.mp4"), 256)]
    assert len(pictures) == 38
    assert pictures[0].shape == (256, 256, 3)
    first = pictures[0]
    for picture in pictures[1:]:
        for corner in (np.s_[:24, :24], np.s_[:24, -24:]):  # the background behind the head
            assert np.abs(picture[corner] - first[corner]).max() < 12
    eyes = np.s_[80:110, 80:170]
    assert max(np.abs(picture[eyes] - first[eyes]).mean() for picture in pictures) > 2


def test_movements_are_smooth_and_follow_the_voice() -> None:
    vad = np.concatenate([np.zeros(75), np.tile([1, 1, 1, 0.2, 0.2, 0.8], 25), np.zeros(75)])
    moves = animation.generate_head_motion(vad.astype(np.float32), seed=3)
    assert np.abs(np.diff(moves.shift, axis=0)).max() < 0.012
    assert np.abs(np.diff(moves.roll_deg)).max() < 0.25
    assert np.abs(moves.shift[80:225]).mean() > np.abs(moves.shift[:70]).mean()
    blinks = np.flatnonzero(np.diff((moves.lids > 0.9).astype(int)) == 1)
    assert 2 <= len(blinks) <= 6
    again, other = (
        animation.generate_head_motion(vad.astype(np.float32), seed=3),
        animation.generate_head_motion(vad.astype(np.float32), 4),
    )
    assert np.array_equal(moves.shift, again.shift)
    assert not np.array_equal(moves.shift, other.shift)


def test_a_closed_lid_hides_the_eye(face: Path) -> None:
    picture = media.read_image(face)
    points = np.array([[165.4, 144.0], [231.4, 141.7], [203.2, 202.5]], dtype=np.float32)
    still = animation.HeadMotion(
        *(np.zeros(shape, np.float32) for shape in ((2, 2), 2, 2)), np.array([0, 1], np.float32)
    )
    opened, closed = animation.animate_image(picture, [points], [still], [animation.drawn_eyes(points)])
    assert np.abs(opened.astype(int) - picture).max() <= 1
    eye = np.s_[158:172, 160:176]
    skin = picture[190:200, 150:165].mean(axis=(0, 1))
    off = np.abs(closed[eye].astype(float) - skin).mean(), np.abs(opened[eye].astype(float) - skin).mean()
    assert off[0] < 0.5 * off[1]
    changed = np.abs(closed.astype(int) - opened).max(axis=2) > 8
    rows = np.flatnonzero(changed.any(axis=1))
    assert rows.min() > 146  # the brows stay
    assert rows.max() < 182


def test_a_photographed_person_blinks(real_media: Path) -> None:
    """Eyes are found although the head is tilted and the detector's points are not; nothing else moves."""
    clip = next(real_media.glob("talking_person*.mp4"))
    photo = next(itertools.islice((p for _, p in media.scan_frames(media.probe_video(clip), 1920)), 60, None))
    detector = real_media.parent / "weights" / "face_detection_yunet_2023mar.onnx"
    (found,) = YuNetDetector(detector).detect(photo)
    eyes = animation.photographed_eyes(photo, found.points)
    # As read off the picture by hand, in pixels.
    for eye, place in zip(eyes, ((531, 703), (627, 721)), strict=True):
        assert np.abs(eye.centre - place).max() < 8
        assert 18 < eye.half_width < 28
        assert 5 < eye.half_height < 11
    zeros = np.zeros(2, np.float32)
    still = animation.HeadMotion(np.zeros((2, 2), np.float32), zeros, zeros, np.array([0, 1], np.float32))
    opened, closed = animation.animate_image(photo, [found.points], [still], [eyes])
    for eye in eyes:
        x, y = np.rint(eye.centre).astype(int)
        iris = np.s_[y - 3 : y + 4, x - 3 : x + 4]
        assert closed[iris].mean() > opened[iris].mean() + 25
    changed = np.argwhere(np.abs(closed.astype(int) - opened).max(axis=2) > 3)
    away = np.min([np.abs(changed[:, ::-1] - eye.centre).max(axis=1) for eye in eyes], axis=0)
    assert away.max() < 40


def test_eyes_that_are_not_clear_do_not_blink() -> None:
    points = np.array([[130, 120], [250, 120], [190, 190]], np.float32)
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    for picture in (noise, np.full((400, 400, 3), 128, np.uint8), noise[:150, :150].copy()):
        assert animation.photographed_eyes(picture, points) == ()


def test_loudness() -> None:
    tone = (8000 * np.sin(np.arange(16000) * 0.3)).astype(np.int16)
    chunks = [tone[:700], tone[700:], np.zeros(16000, np.int16), tone[:300]]
    found = vad.loudness(chunks, 25)
    assert len(found) == 51
    assert found[:25].min() > 0.95
    assert not found[26:49].any()
    assert not vad.loudness([np.zeros(16000, np.int16)], 25).any()


# --- pictures ---


def made_picture(kind: str, folder: Path, base: Image.Image) -> Path:
    path = folder / f"picture.{kind.rpartition(' ')[2]}"
    match kind:
        case "rotated jpg":
            exif = Image.Exif()
            exif[0x0112] = 6  # shown turned right by a quarter
            base.rotate(90, expand=True).save(path, exif=exif, quality=95)
        case "cmyk jpg":
            base.convert("CMYK").save(path, quality=95)
        case "grey png":
            base.convert("L").save(path)
        case "16-bit png":
            Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257).save(path)
        case "transparent webp" | "transparent png":
            base = base.convert("RGBA")
            base.putalpha(Image.fromarray(np.full((base.height, base.width), 255, np.uint8)))
            base.paste((0, 0, 0, 0), (0, 0, 8, 8))
            base.save(path, **({"lossless": True} if "webp" in kind else {}))
        case _:
            base.save(path)
    return path


KINDS = [
    "rotated jpg",
    "cmyk jpg",
    "grey png",
    "16-bit png",
    "transparent png",
    "transparent webp",
    "plain bmp",
]


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_any_kind(kind: str, tmp_path: Path) -> None:
    y, x = np.mgrid[:31, :49]
    base = Image.fromarray(np.stack([5 * x, 8 * y, 255 - 4 * x], axis=-1).astype(np.uint8))
    read = media.read_image(made_picture(kind, tmp_path, base))
    assert read.shape in ((30, 48, 3), (32, 50, 3), (32, 48, 3), (30, 50, 3))
    small = Image.fromarray(read).resize((49, 31))
    wanted = np.asarray(base.convert("L").convert("RGB") if kind in KINDS[2:4] else base).astype(int)
    assert np.abs(np.asarray(small).astype(int)[10:, 10:] - wanted[10:, 10:]).mean() < 12
    if "transparent" in kind:
        assert read[2, 2].min() > 245


@pytest.mark.parametrize(
    "content", [b"", b"not a picture", b"GIF89a" + bytes(100)], ids=["empty", "text", "gif"]
)
def test_what_is_no_picture_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "face.png"
    path.write_bytes(content)
    with pytest.raises(LipSyncError) as refused:
        media.read_image(path)
    assert refused.value.code.startswith(("media_", "input_"))


def test_a_picture_without_a_face(voice: Path, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    grey = tmp_path / "grey.png"
    ffmpeg("-f", "lavfi", "-i", "color=gray:s=128x128", "-frames:v", 1, grey)
    pipeline = LipSyncPipeline.from_pretrained("tiny", device="cpu", cache_dir=tmp_path / "cache")
    for how in (Motion.STILL, Motion.NATURAL):
        with pytest.raises(LipSyncError) as refused:
            list(pipeline.run_portrait(grey, voice, tmp_path / "made.mp4", motion=how))
        assert refused.value.code is ErrorCode.FACE_NOT_FOUND
    assert list((tmp_path / "cache" / "jobs").iterdir()) == []
    assert not (tmp_path / "made.mp4").exists()
