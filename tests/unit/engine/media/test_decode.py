"""Decoding: every frame once and in order, any frame again exactly, audio aligned with the video."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from lipsync_engine import media
from lipsync_engine.errors import ErrorCode, LipSyncError

Ffmpeg = Callable[..., None]
FloatArray = npt.NDArray[np.float64]

MOVING = "testsrc2=s=96x64:r=25"


def decoded_straight(path: Path, pix_fmt: str, frame_bytes: int) -> list[bytes]:
    """All frames by one plain run of FFmpeg, the measure for everything here."""
    command = [str(media.find_ffmpeg()), "-v", "error", "-i", str(path), "-map", "0:V:0"]
    command += ["-fps_mode", "passthrough", "-pix_fmt", pix_fmt, "-f", "rawvideo", "-"]
    data = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    assert len(data) % frame_bytes == 0
    return [data[start : start + frame_bytes] for start in range(0, len(data), frame_bytes)]


def times(info: media.VideoInfo) -> FloatArray:
    return np.array([pts_s for pts_s, _ in media.scan_frames(info, 32)])


def read(info: media.VideoInfo, pts_s: FloatArray, indices: Sequence[int]) -> list[bytes]:
    with media.FrameReader(info, pts_s) as reader:
        return [frame.to_bytes() for frame in reader.read(indices)]


def make(kind: str, folder: Path, ffmpeg: Ffmpeg) -> Path:
    """A video of one of the kinds that make seeking hard."""
    source = ("-f", "lavfi", "-i", MOVING, "-t", 4)
    tone = ("-f", "lavfi", "-i", "sine=r=44100", "-t", 4)
    path = folder / f"clip.{'webm' if kind in ('vp9', 'av1') else 'mkv' if 'mkv' in kind else 'mp4'}"
    h264 = ("-c:v", "libx264", "-g", 40, "-bf", 3)
    match kind:
        case "h264 b-frames":
            ffmpeg(*source, *h264, "-b_strategy", 0, path)
        case "h264 open gop":
            ffmpeg(*source, *h264, "-x264-params", "open-gop=1:keyint=20:min-keyint=10:b-adapt=0", path)
        case "hevc open gop" | "hevc open gop mkv":
            ffmpeg(*source, "-c:v", "libx265", "-x265-params",
                   "log-level=error:open-gop=1:keyint=20:bframes=6:b-adapt=0", path)  # fmt: skip
        case "vp9":
            ffmpeg(*source, "-c:v", "libvpx-vp9", "-cpu-used", 8, "-auto-alt-ref", 1, "-g", 40, path)
        case "av1":
            ffmpeg(*source, "-c:v", "libsvtav1", "-preset", 12, "-g", 40, path)
        case "vfr mkv":
            holes = "select='gt(random(3)\\,0.4)',setpts=PTS+random(5)*0.015/TB"
            ffmpeg(*source, "-vf", holes, "-fps_mode", "vfr", *h264, path)
        case "picture starts late":
            whole = folder / "whole.mp4"
            ffmpeg(*source, *tone, *h264, whole)
            ffmpeg(
                "-itsoffset", 0.73, "-i", whole, "-i", whole, "-map", "0:v", "-map", "1:a", "-c", "copy", path
            )
        case "edit list":
            whole = folder / "whole.mp4"
            ffmpeg(*source, *tone, *h264, whole)
            ffmpeg("-ss", 0.9, "-i", whole, "-c", "copy", path)
        case "5 fps":
            ffmpeg("-f", "lavfi", "-i", "testsrc2=s=96x64:r=5", "-t", 12, *h264, path)
        case "rotated":
            whole = folder / "whole.mp4"
            ffmpeg(*source, *h264, whole)
            ffmpeg("-display_rotation", 270, "-i", whole, "-c", "copy", path)
        case "mpeg2 open gop":  # here FFmpeg's own seek comes out too late at some frames
            ffmpeg(*source, "-c:v", "mpeg2video", "-bf", 4, "-g", 20, "-flags", "-cgop", path)
        case "intra refresh":
            ffmpeg(*source, "-c:v", "libx264", "-x264-params", "intra-refresh=1:keyint=30", path)
        case "fragmented":
            ffmpeg(*source, *h264, "-movflags", "frag_keyframe+empty_moov", path)
        case "long gop of 30000/1001 mkv":
            ffmpeg("-f", "lavfi", "-i", "testsrc2=s=96x64:r=30000/1001", "-t", 4, "-c:v", "libx264", path)
    return path


KINDS = [
    "h264 b-frames",
    "h264 open gop",
    "hevc open gop",
    "hevc open gop mkv",
    "vp9",
    "av1",
    "vfr mkv",
    "picture starts late",
    "edit list",
    "5 fps",
    "rotated",
    "fragmented",
    "mpeg2 open gop",
    "intra refresh",
    "long gop of 30000/1001 mkv",
]


@pytest.mark.parametrize("kind", KINDS)
def test_random_access_equals_sequential_decode(kind: str, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    path = make(kind, tmp_path, ffmpeg)
    info = media.probe_video(path)
    straight = decoded_straight(path, info.format.pix_fmt, info.format.frame_bytes)
    assert len(set(straight)) == len(straight) > 40, "the frames should all differ"
    pts_s = times(info)
    assert len(pts_s) == len(straight)
    assert all(before < after for before, after in pairwise(pts_s))

    last = len(straight) - 1
    random = np.random.default_rng(len(kind))
    for k in {0, 1, last, *(int(k) for k in random.integers(0, last, 5))}:
        assert read(info, pts_s, [k]) == [straight[k]]
    order = [
        *range(last - 30, last + 1),
        last,
        *range(last, 9, -1),
        10,
        10,
        *range(10, 17),
        30,
        20,
        40,
        0,
        last,
    ]
    assert read(info, pts_s, order) == [straight[k] for k in order]


def test_times_are_those_of_the_file(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    late = media.probe_video(make("picture starts late", tmp_path, ffmpeg))
    assert np.allclose(times(late), 0.73 + np.arange(100) / 25, atol=1e-3)
    varying = tmp_path / "vfr"
    varying.mkdir()
    gaps = np.diff(times(media.probe_video(make("vfr mkv", varying, ffmpeg))))
    assert gaps.min() < 0.045
    assert gaps.max() > 0.075


@pytest.fixture
def starts(tmp_path: Path, replace_ffmpeg: Callable[[Path], None]) -> Callable[[], int]:
    """Counts how often FFmpeg is started."""
    log, wrapper = tmp_path / "starts.log", tmp_path / "counting-ffmpeg"
    log.touch()
    wrapper.write_text(f'#!/bin/sh\necho started >> "{log}"\nexec "{media.find_ffmpeg()}" "$@"\n')
    wrapper.chmod(0o755)
    replace_ffmpeg(wrapper)
    return lambda: len(log.read_text().splitlines())


def test_consecutive_reads_use_one_decoder(tmp_path: Path, ffmpeg: Ffmpeg, starts: Callable[[], int]) -> None:
    path = make("h264 b-frames", tmp_path, ffmpeg)
    info = media.probe_video(path)
    pts_s = times(info)
    before = starts()
    with media.FrameReader(info, pts_s) as reader:
        for indices in (range(10), range(10, 20), [20, 20, 25, 26]):
            assert len(list(reader.read(indices))) == len(indices)
        assert starts() == before + 1
        repeated = list(reader.read([30, 30, 30]))
        assert repeated[0] is repeated[1] is repeated[2]
        assert starts() == before + 1
        list(reader.read([99]))  # far ahead
        assert starts() == before + 2
    # Backward in three blocks, each decoded forward.
    with media.FrameReader(info, pts_s, backward_bytes=20 * info.format.frame_bytes) as reader:
        list(reader.read(range(59, -1, -1)))
        assert starts() == before + 5


def test_backward_read_in_small_blocks_is_exact(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    path = make("h264 b-frames", tmp_path, ffmpeg)
    info = media.probe_video(path)
    pts_s = times(info)
    straight = decoded_straight(path, info.format.pix_fmt, info.format.frame_bytes)
    with media.FrameReader(info, pts_s, backward_bytes=1) as reader:
        frames = [frame.to_bytes() for frame in reader.read(range(99, -1, -1))]
    assert frames == straight[::-1]


def test_indices_outside_the_video_are_refused(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    info = media.probe_video(make("h264 b-frames", tmp_path, ffmpeg))
    with media.FrameReader(info, np.arange(100) / 25) as reader:
        for indices in ([100], [-1], [3, 200]):
            with pytest.raises(IndexError):
                next(reader.read(indices))
        assert list(reader.read([])) == []


def test_wrong_times_do_not_give_wrong_frames(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    """Wrong times lead to a read from the start, not to wrong frames."""
    path = make("h264 b-frames", tmp_path, ffmpeg)
    info = media.probe_video(path)
    straight = decoded_straight(path, info.format.pix_fmt, info.format.frame_bytes)
    shifted = np.arange(100) / 25 + 0.013
    assert read(info, shifted, [70, 71]) == straight[70:72]


# --- frames ---


@pytest.mark.parametrize(
    ("codec", "pixels"),
    [
        ("libx264", "yuvj420p"),
        ("libx264", "yuv422p10le"),
        ("libx264", "yuv444p"),
        ("prores_ks", "yuv422p10le"),
        ("rawvideo", "yuv420p"),
        ("mjpeg", "yuvj422p"),
        ("ffv1", "yuv420p"),
    ],
)
def test_planes_equal_the_decoder_output(codec: str, pixels: str, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    path = tmp_path / "clip.mkv"
    noise = f"{MOVING},noise=alls=60:allf=t"
    ffmpeg("-f", "lavfi", "-i", noise, "-frames:v", 3, "-c:v", codec, "-pix_fmt", pixels, path)
    info = media.probe_video(path)
    assert info.format.pix_fmt == pixels.replace("yuvj", "yuv")
    straight = decoded_straight(path, pixels, info.format.frame_bytes)
    assert read(info, times(info), range(3)) == straight


@pytest.mark.parametrize("size", ["97x65", "96x65", "97x64"])
def test_odd_sizes(size: str, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    path = tmp_path / "clip.webm"
    scale = f"scale={size.replace('x', ':')},format=yuv420p"
    vp9 = ("-c:v", "libvpx-vp9", "-cpu-used", 8)
    ffmpeg("-f", "lavfi", "-i", MOVING, "-frames:v", 30, "-vf", scale, *vp9, path)
    info = media.probe_video(path)
    assert f"{info.format.width}x{info.format.height}" == size
    straight = decoded_straight(path, "yuv420p", info.format.frame_bytes)
    assert read(info, times(info), [20, 3]) == [straight[20], straight[3]]


@pytest.mark.parametrize("pixels", ["gray", "bgr0", "yuvj420p", "yuv420p"])
def test_colours_of_the_scan_and_of_the_frames_agree(pixels: str, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    """Red, white and black come out as such, however they were stored."""
    from lipsync_engine.media.yuv import region_to_rgb

    colours = {"white": (255, 255, 255), "black": (0, 0, 0)}
    if pixels != "gray":
        colours["red"] = (255, 0, 0)
    for name, rgb in colours.items():
        path = tmp_path / f"{name}.mkv"
        codec = ("-c:v", "ffv1") if pixels != "yuvj420p" else ("-c:v", "libx264", "-qp", 0)
        source = ("-f", "lavfi", "-i", f"color={name}:s=64x64:r=25,format=rgb24", "-frames:v", 2)
        ffmpeg(*source, "-pix_fmt", pixels, *codec, path)
        info = media.probe_video(path)
        pictures = list(media.scan_frames(info, 32))
        assert pictures[0][1].shape == (32, 32, 3)
        assert np.abs(pictures[0][1].astype(int) - rgb).max() <= 4
        with media.FrameReader(info, times(info)) as reader:
            frame = next(reader.read([1]))
        assert np.abs(region_to_rgb(frame, (0, 0, 64, 64)) - rgb).max() <= 4


def test_video_whose_size_changes_keeps_the_first_size(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    raw = tmp_path / "both.h264"
    for number, size in enumerate(("96x64", "128x96")):
        source = ("-f", "lavfi", "-i", f"testsrc2=s={size}:r=25", "-frames:v", 20)
        ffmpeg(*source, "-bf", 0, tmp_path / f"{number}.h264")
    raw.write_bytes((tmp_path / "0.h264").read_bytes() + (tmp_path / "1.h264").read_bytes())
    path = tmp_path / "clip.mp4"
    ffmpeg("-framerate", 25, "-i", raw, "-c", "copy", path)
    info = media.probe_video(path)
    pts_s = times(info)
    assert len(pts_s) == 40
    assert len(read(info, pts_s, [5, 25, 39])) == 3


def test_scan_scales_down_but_never_up(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    path = make("rotated", tmp_path, ffmpeg)
    info = media.probe_video(path)
    assert next(iter(media.scan_frames(info, 48)))[1].shape == (48, 32, 3)
    assert next(iter(media.scan_frames(info, 500)))[1].shape == (96, 64, 3)


def test_one_frame(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    path = tmp_path / "one.mp4"
    ffmpeg("-f", "lavfi", "-i", MOVING, "-frames:v", 1, path)
    info = media.probe_video(path)
    pts_s = times(info)
    assert pts_s.tolist() == [0.0]
    assert len(read(info, pts_s, [0, 0, 0])) == 3


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_truncated_file_is_refused(suffix: str, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    ffmpeg("-f", "lavfi", "-i", f"{MOVING},noise=alls=20:allf=t", "-t", 4, "-movflags", "+faststart", whole)
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    seen: list[float] = []
    with pytest.raises(LipSyncError, match="ends after") as error:
        seen.extend(pts_s for pts_s, _ in media.scan_frames(media.probe_video(cut), 32))
    assert error.value.code is ErrorCode.MEDIA_TRUNCATED
    assert 10 < len(seen) < 90
    assert len(times(media.probe_video(whole))) == 100


def test_audio_longer_than_video_is_not_a_truncation(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    path = tmp_path / "long_sound.mp4"
    ffmpeg("-f", "lavfi", "-i", f"{MOVING}:d=1", "-f", "lavfi", "-i", "sine=d=6", path)
    info = media.probe_video(path)
    assert info.duration_s > 5
    assert len(times(info)) == 25


# --- audio ---


def samples(path: Path, rate: int = 16000) -> npt.NDArray[np.int16]:
    chunks = list(media.read_audio(path, rate))
    assert all(chunk.dtype == np.int16 and chunk.ndim == 1 for chunk in chunks)
    return np.concatenate(chunks)


def tone(path: Path, ffmpeg: Ffmpeg, *options: object, seconds: float = 2.0, rate: int = 16000) -> Path:
    ffmpeg("-f", "lavfi", "-i", f"aevalsrc=0.4*sin(880*t+20*t*t):s={rate}:d={seconds}", *options, path)
    return path


def test_pcm_samples_are_unchanged(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    import wave

    path = tone(tmp_path / "a.wav", ffmpeg, seconds=11.7)
    with wave.open(str(path)) as file:
        stored = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    assert np.array_equal(samples(path), stored)


@pytest.mark.parametrize("name", ["a.mp3", "a.m4a", "a.flac", "a.opus", "a.mka", "a.aac"])
def test_any_codec_rate_and_channels_become_the_same_mono(name: str, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    expected = samples(tone(tmp_path / "a.wav", ffmpeg)).astype(float)
    path = tone(tmp_path / name, ffmpeg, "-ac", 2, "-ar", 48000, "-b:a", "192k", rate=48000)
    result = samples(path).astype(float)
    assert abs(len(result) - len(expected)) < 0.08 * 16000
    # Encoders may delay by some milliseconds; the wave itself is the same.
    spectrum = np.fft.rfft(result[:30000], 65536) * np.conj(np.fft.rfft(expected[:30000], 65536))
    correlation = np.fft.irfft(spectrum)
    shift = int(np.argmax(correlation))
    shift -= 65536 if shift > 32768 else 0
    norm = np.linalg.norm(result[:30000]) * np.linalg.norm(expected[:30000])
    assert correlation.max() / norm > 0.95
    assert abs(shift) < 0.07 * 16000


def test_late_audio_track_begins_with_silence(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    sound, clip = tone(tmp_path / "a.m4a", ffmpeg, rate=44100), tmp_path / "late.mkv"
    ffmpeg("-f", "lavfi", "-i", f"{MOVING}:d=3", "-itsoffset", 0.8, "-i", sound, "-c:a", "copy", clip)
    result = samples(clip)
    assert abs(len(result) / 16000 - 2.8) < 0.08
    assert np.abs(result[: int(0.7 * 16000)]).max() < 50
    assert np.abs(result[int(0.9 * 16000) :]).max() > 5000


def test_audio_that_does_not_decode_is_refused(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    empty = tmp_path / "empty.wav"
    ffmpeg("-f", "lavfi", "-i", "anullsrc=r=16000", "-t", 0, empty)
    with pytest.raises(LipSyncError) as error:
        next(media.read_audio(empty))
    assert error.value.code is ErrorCode.MEDIA_NO_AUDIO


# --- images ---


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_mask_is_scaled_to_the_frame(suffix: str, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    path = tmp_path / f"mask.{suffix}"
    ffmpeg("-f", "lavfi", "-i", "color=black:s=80x40,format=rgb24,drawbox=0:0:40:40:white:fill",
           "-frames:v", 1, "-q:v", 2, path)  # fmt: skip
    mask = media.read_mask(path, 160, 120)
    assert mask.shape == (120, 160)
    assert mask.dtype == np.uint8
    assert mask[:, :70].min() > 245
    assert mask[:, 90:].max() < 10


@pytest.mark.parametrize(
    "name", ["face.jpg", "face.jpeg", "face.png", "face.webp", "face.bmp", "face", "face.mp4"]
)
def test_image_format_follows_its_bytes_whatever_its_name(name: str, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    """Of a camera's size: small ones FFmpeg would tell by itself."""
    suffix = name.partition(".")[2]
    drawn = tmp_path / f"drawn.{suffix if suffix in ('jpg', 'png', 'webp', 'bmp') else 'jpg'}"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=640x480", "-frames:v", 1, drawn)
    assert drawn.stat().st_size > 4096
    drawn.rename(tmp_path / name)
    assert media.read_image(tmp_path / name).shape == (480, 640, 3)
    assert media.read_mask(tmp_path / name, 64, 48).std() > 10


def test_files_that_are_no_image_are_refused(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    text, video, script = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"
    text.write_text("no image at all")
    ffmpeg("-f", "lavfi", "-i", MOVING, "-frames:v", 2, tmp_path / "clip.mp4")
    (tmp_path / "clip.mp4").rename(video)
    script.write_text(f"ffconcat version 1.0\nfile {video.name}\n")
    expected = {
        text: ErrorCode.MEDIA_NOT_RECOGNISED,
        video: ErrorCode.MEDIA_NOT_RECOGNISED,
        script: ErrorCode.MEDIA_FORMAT_REFUSED,
        tmp_path / "none.png": ErrorCode.INPUT_NOT_FOUND,
    }
    for path, code in expected.items():
        with pytest.raises(LipSyncError) as error:
            media.read_mask(path, 10, 10)
        assert error.value.code is code
