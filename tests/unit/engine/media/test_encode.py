"""Encoding and joining keep pixels, tags, times and the user's own audio."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from lipsync_engine import media
from lipsync_engine.errors import ErrorCode, LipSyncError
from lipsync_engine.media.yuv import Frame
from lipsync_engine.params import Quality, VideoCodec
from tests.support.paths import SHARED

Ffmpeg = Callable[..., None]

MEDIA = SHARED / "media"


def times(info: media.VideoInfo) -> np.ndarray:
    return np.array([pts_s for pts_s, _ in media.scan_frames(info, 32)])


def frames_of(path: Path) -> list[Frame]:
    info = media.probe_video(path)
    pts_s = times(info)
    with media.FrameReader(info, pts_s) as reader:
        return list(reader.read(range(len(pts_s))))


def source(
    folder: Path, ffmpeg: Ffmpeg, *options: object, n: int = 12, size: str = "96x64", codec: str = "ffv1"
) -> Path:
    path = folder / "source.mkv"
    scale = f"scale={size.replace('x', ':')}"
    picture = ("-f", "lavfi", "-i", "testsrc2=s=96x64:r=25,noise=c0s=4:c0f=t", "-vf", scale)
    ffmpeg(*picture, "-frames:v", n, "-c:v", codec, "-pix_fmt", "yuv420p", *options, path)
    return path


def encode(
    path: Path,
    info: media.VideoInfo,
    frames: Sequence[Frame],
    fps: Fraction,
    quality: Quality = Quality.DEFAULT,
    codec: VideoCodec = VideoCodec.H264,
) -> Path:
    with media.SegmentWriter(path, info, fps, quality, codec=codec) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def packets(path: Path, kind: str) -> list[tuple[int, int, int, str]]:
    """(dts, pts, duration, hash) of one track's packets, in ticks of the file."""
    command = [str(media.find_ffmpeg()), "-v", "error", "-i", str(path), "-map", f"0:{kind}:0"]
    command += ["-c", "copy", "-f", "framehash", "-"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line[0] != "#"]
    return [(int(dts), int(pts), int(duration), mark) for _, dts, pts, duration, _, mark, *_ in rows]


def listing(path: Path) -> str:
    """What FFmpeg prints about a file."""
    command = [str(media.find_ffmpeg()), "-hide_banner", "-i", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stderr


def raw_audio(path: Path, *options: str) -> bytes:
    command = [str(media.find_ffmpeg()), "-v", "error", "-i", str(path), "-map", "0:a:0", *options]
    return subprocess.run([*command, "-f", "s32le", "-"], capture_output=True, check=True, timeout=60).stdout


# --- segments ---


@pytest.mark.parametrize(
    "pixels", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le"]
)
def test_lossless_is_lossless(pixels: str, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    path = source(tmp_path, ffmpeg, "-pix_fmt", pixels, codec="libx264")
    info, frames = media.probe_video(path), frames_of(path)
    output = encode(tmp_path / "made.mp4", info, frames, Fraction(25), Quality.LOSSLESS)
    assert media.probe_video(output).format == info.format
    assert [f.to_bytes() for f in frames_of(output)] == [f.to_bytes() for f in frames]


GRAIN = "gradients=s=320x240:r=25:n=6:speed=0.05:seed=3,format=yuv444p10le,noise=c0s=6:c0f=t"
"""Moving colours under a camera's grain."""


def psnr_db(before: Sequence[Frame], after: Sequence[Frame]) -> float:
    """Return the PSNR of the worst plane, both scaled to 0..1."""
    worst = 0.0
    for one, other in zip(before, after, strict=True):
        for p, q in zip(one.planes(), other.planes(), strict=True):
            scaled = p / 2.0**one.format.bit_depth - q / 2.0**other.format.bit_depth
            worst = max(worst, float(np.mean(scaled**2)))
    return float(-10 * np.log10(worst))


@pytest.mark.parametrize(
    ("pixels", "codec"),
    [
        ("yuv420p", VideoCodec.H264),
        ("yuv444p", VideoCodec.H264),
        ("yuv420p10le", VideoCodec.H264),
        ("yuv420p", VideoCodec.HEVC10),
        ("yuv420p10le", VideoCodec.HEVC10),
    ],
)
def test_default_quality_is_transparent(
    pixels: str, codec: VideoCodec, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    path = tmp_path / "source.mkv"
    ffmpeg("-f", "lavfi", "-i", GRAIN, "-frames:v", 12, "-c:v", "ffv1", "-pix_fmt", pixels, path)
    info, frames = media.probe_video(path), frames_of(path)
    output = encode(tmp_path / "made.mp4", info, frames, Fraction(25), codec=codec)
    expected = "yuv420p10le" if codec is VideoCodec.HEVC10 else pixels.removesuffix("10le")
    assert media.probe_video(output).format.pix_fmt == expected
    assert psnr_db(frames, frames_of(output)) > 45


@pytest.mark.parametrize("pixels", ["yuv420p10le", "yuv422p10le", "yuv444p10le", "yuv420p12le"])
def test_sources_of_more_than_8_bits_become_playable(pixels: str, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    """H.264 High, 8-bit 4:2:0: what every phone, browser and television decodes."""
    path = tmp_path / "source.mkv"
    ffmpeg("-f", "lavfi", "-i", GRAIN, "-frames:v", 4, "-c:v", "ffv1", "-pix_fmt", pixels, path)
    info, frames = media.probe_video(path), frames_of(path)
    output = encode(tmp_path / "made.mp4", info, frames, Fraction(25))
    assert re.search(r"Video: h264 \(High\) \(avc1 .*yuv420p\(", listing(output))


def test_8_bit_result_is_the_ordered_dither_of_the_source(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    """Outside the mouth nothing but FFmpeg's own conversion and the encoder changes a 10-bit source."""
    path, dithered = tmp_path / "source.mkv", tmp_path / "dithered.mkv"
    ramp = "gradients=s=320x240:r=25:c0=0x404040:c1=0x606060:n=2:x0=0:y0=0:x1=319:y1=0:speed=0.00001"
    ffmpeg("-f", "lavfi", "-i", ramp, "-frames:v", 3, "-c:v", "ffv1", "-pix_fmt", "yuv420p10le", path)
    conversion = "scale=flags=bicubic+accurate_rnd+full_chroma_int:sws_dither=bayer,format=yuv420p"
    ffmpeg("-i", path, "-vf", conversion, "-c:v", "ffv1", dithered)
    source_frames, expected = frames_of(path), frames_of(dithered)
    for before, after in zip(source_frames, expected, strict=True):
        for p, q in zip(before.planes(), after.planes(), strict=True):
            assert np.abs(p / 4.0 - q).max() < 1
    # Dithered, a slow ramp has no steps: the mean of 8 x 8 samples keeps fractions of a level.
    blocks = [f.y[:, :312].astype(float).reshape(30, 8, 39, 8).mean(axis=(1, 3)) for f in expected]
    exact = [f.y[:, :312].reshape(30, 8, 39, 8).mean(axis=(1, 3)) / 4.0 for f in source_frames]
    assert np.abs(np.stack(blocks) - np.stack(exact)).max() < 0.15
    output = encode(tmp_path / "made.mp4", media.probe_video(path), source_frames, Fraction(25))
    assert psnr_db(expected, frames_of(output)) > 52


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv420p10le", "yuv422p10le"])
def test_lossless_hevc_is_lossless(pixels: str, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    path = source(tmp_path, ffmpeg, "-pix_fmt", pixels)
    info, frames = media.probe_video(path), frames_of(path)
    output = encode(tmp_path / "made.mp4", info, frames, Fraction(25), Quality.LOSSLESS, VideoCodec.HEVC10)
    depth = 1 if info.format.bit_depth == 10 else 4
    for before, after in zip(frames, frames_of(output), strict=True):
        for p, q in zip(before.planes(), after.planes(), strict=True):
            assert np.array_equal(p.astype(int) * depth, q)


@pytest.mark.parametrize("size", ["97x65", "96x65", "97x64"])
def test_odd_sizes_keep_their_size(size: str, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    path = source(tmp_path, ffmpeg, size=size)
    info, frames = media.probe_video(path), frames_of(path)
    output = encode(tmp_path / "made.mp4", info, frames, Fraction(25), Quality.LOSSLESS)
    output_info = media.probe_video(output)
    assert f"{output_info.format.width}x{output_info.format.height}" == size
    for before, after in zip(frames, frames_of(output), strict=True):
        assert np.array_equal(before.y, after.y)


@pytest.mark.parametrize(
    ("size", "limit", "wanted"),
    [("96x64", 40, "60x40"), ("97x65", 64, "96x64"), ("64x96", 48, "48x72"), ("96x64", 64, "96x64")],
)
def test_larger_video_is_scaled_down_to_a_short_side(
    size: str, limit: int, wanted: str, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    path = source(tmp_path, ffmpeg, size=size)
    info, frames = media.probe_video(path), frames_of(path)
    output = tmp_path / "made.mp4"
    with media.SegmentWriter(output, info, Fraction(25), Quality.LOSSLESS, max_short_side=limit) as writer:
        for frame in frames:
            writer.write(frame)
    form = media.probe_video(output).format
    assert f"{form.width}x{form.height}" == wanted
    assert media.output_size(info.format, limit) == (form.width, form.height)
    for before, after in zip(frames, frames_of(output), strict=True):
        assert abs(float(before.y.mean()) - float(after.y.mean())) < 1.0


@pytest.mark.parametrize("codec", VideoCodec)
def test_tags_are_kept(codec: VideoCodec, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    tags = "setparams=colorspace=bt2020nc:color_primaries=bt2020:color_trc=bt2020-10:range=pc,setsar=8/9"
    path = source(tmp_path, ffmpeg, "-vf", tags, "-pix_fmt", "yuv420p10le", codec="libx264")
    info = media.probe_video(path)
    output = encode(tmp_path / "made.mp4", info, frames_of(path), Fraction(25), codec=codec)
    joined = tmp_path / "joined.mov"
    media.assemble([output], joined, info, Fraction(25), Quality.DEFAULT, audio=None, codec=codec)
    for result in (media.probe_video(output), media.probe_video(joined)):
        for name in (
            "sample_aspect_ratio",
            "color_space",
            "color_primaries",
            "color_transfer",
            "color_range",
        ):
            assert getattr(result, name) == getattr(info, name)
        assert (result.format.matrix, result.format.full_range) == (info.format.matrix, True)
    assert info.color_transfer == "bt2020-10"
    assert b"colr" in joined.read_bytes()


@pytest.mark.parametrize("codec", VideoCodec)
def test_same_frames_give_same_bytes_on_any_machine(
    codec: VideoCodec, tmp_path: Path, ffmpeg: Ffmpeg, replace_ffmpeg: Callable[[Path], None]
) -> None:
    path = source(tmp_path, ffmpeg, n=60)
    info, frames = media.probe_video(path), frames_of(path)
    first = encode(tmp_path / "first.mp4", info, frames, Fraction(30000, 1001), codec=codec)
    if shutil.which("taskset"):
        program = tmp_path / "one-core-ffmpeg"
        program.write_text(f'#!/bin/sh\nexec taskset -c 0 "{media.find_ffmpeg()}" "$@"\n')
        program.chmod(0o755)
        replace_ffmpeg(program)
    (tmp_path / "other").mkdir()
    second = encode(tmp_path / "other" / "second.mp4", info, frames, Fraction(30000, 1001), codec=codec)
    assert first.read_bytes() == second.read_bytes()


# --- joining ---


@pytest.mark.parametrize(
    ("rate", "suffix", "codec"),
    [
        ("25", "mp4", VideoCodec.H264),
        ("24000/1001", "mp4", VideoCodec.H264),
        ("60000/1001", "mp4", VideoCodec.H264),
        ("12", "mp4", VideoCodec.H264),
        ("2983/100", "mp4", VideoCodec.H264),
        ("30000/1001", "mov", VideoCodec.H264),
        ("30000/1001", "mkv", VideoCodec.H264),
        ("25", "mp4", VideoCodec.HEVC10),
        ("60000/1001", "mov", VideoCodec.HEVC10),
        ("30000/1001", "mkv", VideoCodec.HEVC10),
    ],
)
def test_joined_frames_and_times_are_exact(
    rate: str, suffix: str, codec: VideoCodec, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    fps = Fraction(rate)
    pixels = "yuv420p10le" if codec is VideoCodec.HEVC10 else "yuv420p"
    path = source(tmp_path, ffmpeg, "-pix_fmt", pixels, n=40)
    info, frames = media.probe_video(path), frames_of(path)
    borders = [0, 1, 3, 6, 15, 40]  # segments of one frame as well
    segments = [
        encode(tmp_path / f"it's {start}.mp4", info, frames[start:stop], fps, Quality.LOSSLESS, codec)
        for start, stop in itertools.pairwise(borders)
    ]
    output = tmp_path / f"joined.{suffix}"
    media.assemble(segments, output, info, fps, Quality.LOSSLESS, audio=None, codec=codec)
    if codec is VideoCodec.HEVC10 and suffix != "mkv":
        assert "hevc" in listing(output)
        assert "hvc1" in listing(output)
    assert [f.to_bytes() for f in frames_of(output)] == [f.to_bytes() for f in frames]

    result = packets(output, "v")
    shown = sorted(pts for _, pts, _, _ in result)
    assert len(shown) == 40
    assert shown[0] == 0
    if suffix == "mkv":  # milliseconds are all it has
        assert all(abs(pts - 1000 * k / fps) <= 1 for k, pts in enumerate(shown))
    else:
        assert len({b - a for a, b in itertools.pairwise(shown)}) == 1
        assert {duration for _, _, duration, _ in result} == {shown[1]}
        decode_order = [dts for dts, _, _, _ in result]
        assert decode_order == sorted(set(decode_order))
        assert all(dts <= pts for dts, pts, _, _ in result)
        assert media.probe_video(output).frame_rate == fps


def test_missing_or_broken_segment_fails_the_join(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    path = source(tmp_path, ffmpeg, n=30)
    info, frames = media.probe_video(path), frames_of(path)
    parts = [
        encode(tmp_path / f"{k}.mp4", info, frames[10 * k : 10 * k + 10], Fraction(25)) for k in range(3)
    ]
    whole = parts[1].read_bytes()
    output = tmp_path / "out.mp4"
    for damage in (None, whole[: len(whole) // 2], b"", b"something else entirely" * 100):
        if damage is None:
            parts[1].unlink()
        else:
            parts[1].write_bytes(damage)
        with pytest.raises(LipSyncError) as error:
            media.assemble(parts, output, info, Fraction(25), Quality.DEFAULT, audio=None)
        assert error.value.code is ErrorCode.MEDIA_FAILED
        assert not output.exists()


@pytest.fixture(scope="module")
def segment(tmp_path_factory: pytest.TempPathFactory, ffmpeg: Ffmpeg) -> tuple[Path, media.VideoInfo]:
    """One second of picture."""
    folder = tmp_path_factory.mktemp("segment")
    path = source(folder, ffmpeg, n=25)
    info = media.probe_video(path)
    return encode(folder / "segment.mp4", info, frames_of(path), Fraction(25)), info


def joined(
    segment: tuple[Path, media.VideoInfo],
    output: Path,
    audio: Path | None,
    quality: Quality = Quality.DEFAULT,
) -> Path:
    media.assemble([segment[0]], output, segment[1], Fraction(25), quality, audio=audio)
    return output


COPIES = {
    "mp4": ["m4a:aac", "mp3:mp3", "ac3:ac3", "m4a:alac", "opus:opus", "flac:flac"],
    "mov": ["m4a:aac", "mp3:mp3", "m4a:alac", "wav:pcm_s16le", "wav:pcm_s24le"],
    "mkv": ["m4a:aac", "mp3:mp3", "opus:opus", "flac:flac", "wav:pcm_s16le", "ogg:vorbis"],
}


@pytest.mark.parametrize(
    ("suffix", "kind"), [(suffix, kind) for suffix, kinds in COPIES.items() for kind in kinds]
)
def test_audio_is_copied_packet_for_packet(
    suffix: str, kind: str, segment: tuple[Path, media.VideoInfo], tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    ending, codec = kind.split(":")
    sound = tmp_path / f"voice.{'mka' if ending == 'ac3' else ending}"
    encoder = {"opus": "libopus", "vorbis": "libvorbis", "mp3": "libmp3lame"}.get(codec, codec)
    ffmpeg(
        "-f", "lavfi", "-i", "aevalsrc=0.3*sin(700*t)|0.3*sin(900*t):s=48000:d=1.7", "-c:a", encoder, sound
    )
    output = joined(segment, tmp_path / f"out.{suffix}", sound)
    info = media.probe_audio(output)
    assert (info.codec, info.sample_rate, info.channels) == (codec, 48000, 2)
    marks = [mark for _, _, _, mark in packets(sound, "a")]
    found = [mark for _, _, _, mark in packets(output, "a")]
    if codec.startswith("pcm"):  # containers cut raw samples into packets as they like
        assert raw_audio(output) == raw_audio(sound)
    else:
        assert found == marks
    assert len(times(media.probe_video(output))) == 25  # and the picture is not drawn out


@pytest.mark.parametrize(
    ("options", "rate", "channels", "expected_rate"),
    [
        (("-c:a", "pcm_s16le"), 16000, 1, 16000),
        (("-c:a", "pcm_s16le"), 44100, 2, 44100),
        (("-c:a", "pcm_s24le"), 192000, 2, 96000),
        (("-c:a", "pcm_s16le"), 48000, 6, 48000),
        (("-c:a", "pcm_s16le"), 18900, 1, 22050),
    ],
)
def test_other_audio_becomes_aac_of_the_same_rate_and_channels(
    options: tuple[str, ...],
    rate: int,
    channels: int,
    expected_rate: int,
    segment: tuple[Path, media.VideoInfo],
    tmp_path: Path,
    ffmpeg: Ffmpeg,
) -> None:
    sound = tmp_path / "voice.wav"
    ffmpeg("-f", "lavfi", "-i", f"anoisesrc=r={rate}:d=1.5:a=0.2", "-ac", channels, *options, sound)
    info = media.probe_audio(joined(segment, tmp_path / "out.mp4", sound))
    assert (info.codec, info.sample_rate, info.channels) == ("aac", expected_rate, channels)
    assert info.duration_s == pytest.approx(1.5, abs=0.08)


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "alac"), ("mov", "pcm_s16le"), ("mkv", "pcm_s16le")])
def test_lossless_keeps_audio_samples(
    suffix: str, codec: str, segment: tuple[Path, media.VideoInfo], tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    sound = tmp_path / "voice.wav"
    ffmpeg("-f", "lavfi", "-i", "anoisesrc=r=44100:d=1.2:a=0.2", "-ac", 2, sound)
    output = joined(segment, tmp_path / f"out.{suffix}", sound, Quality.LOSSLESS)
    assert media.probe_audio(output).codec == codec
    assert raw_audio(output) == raw_audio(sound)


def test_audio_that_starts_late_stays_late(
    segment: tuple[Path, media.VideoInfo], tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    sound, clip = tmp_path / "a.m4a", tmp_path / "late.mp4"
    ffmpeg("-f", "lavfi", "-i", "sine=r=44100:d=1", sound)
    ffmpeg(
        "-f", "lavfi", "-i", "testsrc2=s=64x64:r=25:d=2", "-itsoffset", 0.5, "-i", sound, "-c:a", "copy", clip
    )
    output = joined(segment, tmp_path / "out.mp4", clip)
    before, after = (np.concatenate(list(media.read_audio(path))) for path in (clip, output))
    assert np.abs(before[: int(0.45 * 16000)]).max() < 100
    assert np.array_equal(before, after)


def test_silence_before_a_late_voice_takes_no_space(
    segment: tuple[Path, media.VideoInfo], tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    voice, mix, output = tmp_path / "voice.wav", tmp_path / "mix.flac", tmp_path / "out.mp4"
    ffmpeg("-f", "lavfi", "-i", "anoisesrc=d=1:r=48000:a=0.1:seed=1", voice)
    media.mix_audio([media.AudioClip(voice, 60.0)], 61.0, mix)
    assert mix.stat().st_size < 2 * voice.stat().st_size, "as wav, it has 61 times the size"
    samples = np.concatenate(list(media.read_audio(mix)))
    assert len(samples) == 61 * 16_000
    assert not samples[: 60 * 16_000 - 100].any()
    path, info = segment
    media.assemble([path], output, info, Fraction(25), Quality.DEFAULT, audio=mix, copies_audio=False)
    assert media.probe_audio(output).codec == "aac", "players do not know flac in mp4"


def test_source_metadata_is_not_copied(
    segment: tuple[Path, media.VideoInfo], tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    sound = tmp_path / "voice.m4a"
    tags = ("title=SECRET-A", "location=+48.1+011.5/", "comment=SECRET-B")
    options = [part for tag in tags for part in ("-metadata", tag)]
    options += ["-metadata:s:a:0", "handler_name=SECRET-C"]
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", *options, sound)
    assert b"SECRET" in sound.read_bytes()
    for suffix in ("mp4", "mov", "mkv"):
        data = joined(segment, tmp_path / f"out.{suffix}", sound).read_bytes()
        assert b"SECRET" not in data
        assert b"+48.1" not in data


def test_index_precedes_the_data(segment: tuple[Path, media.VideoInfo], tmp_path: Path) -> None:
    data = joined(segment, tmp_path / "out.mp4", None).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_join_is_deterministic(segment: tuple[Path, media.VideoInfo], tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    sound = tmp_path / "voice.wav"
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", sound)
    digests = {
        hashlib.sha256(joined(segment, tmp_path / f"{name}.mp4", sound).read_bytes()).hexdigest()
        for name in ("one", "two")
    }
    assert len(digests) == 1


def test_inputs_are_never_overwritten(
    segment: tuple[Path, media.VideoInfo], tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    sound = tmp_path / "voice.mp4"
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", sound)
    link = tmp_path / "link.mp4"
    link.symlink_to(sound)
    before = sound.read_bytes()
    for output in (sound, link, segment[0]):
        with pytest.raises(LipSyncError) as error:
            joined(segment, output, sound)
        assert error.value.code is ErrorCode.PARAMETER_INVALID
    with pytest.raises(LipSyncError, match=r"\.avi"):
        joined(segment, tmp_path / "out.avi", sound)
    assert sound.read_bytes() == before


# --- write errors ---


def test_unwritable_folder_is_reported(
    segment: tuple[Path, media.VideoInfo], tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    for output in (tmp_path / "none" / "out.mp4", Path("/proc/out.mp4")):
        with pytest.raises(LipSyncError) as error:
            joined(segment, output, None)
        assert error.value.code is ErrorCode.OUTPUT_NOT_WRITABLE
        with pytest.raises(LipSyncError) as error:
            encode(output, segment[1], frames_of(segment[0]) * 20, Fraction(25))
        assert error.value.code is ErrorCode.OUTPUT_NOT_WRITABLE


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount, unmount = shutil.which("mount"), shutil.which("umount")
    if mount is None or unmount is None or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    command = [mount, "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, timeout=10, check=False).returncode != 0:
        pytest.skip("this system does not let even root mount a file system")
    yield folder
    subprocess.run([unmount, str(folder)], timeout=10, check=True)


def test_full_disk_is_reported(small_disk: Path, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    check_full_disk(small_disk, tmp_path, ffmpeg)


def test_file_size_limit_is_reported_as_full_disk(
    tmp_path: Path, ffmpeg: Ffmpeg, replace_ffmpeg: Callable[[Path], None]
) -> None:
    program = tmp_path / "limited-ffmpeg"
    program.write_text(f'#!/bin/sh\nulimit -f 500\nexec "{media.find_ffmpeg()}" "$@"\n')
    program.chmod(0o755)
    limited = tmp_path / "limited"
    limited.mkdir()
    check_full_disk(limited, tmp_path, ffmpeg, lambda: replace_ffmpeg(program))


def check_full_disk(
    disk: Path, folder: Path, ffmpeg: Ffmpeg, limit: Callable[[], None] = lambda: None
) -> None:
    """Encoding and joining more than the disk holds: the code says so, and nothing is left."""
    path = source(folder, ffmpeg, "-pix_fmt", "yuv444p", n=40, size="192x128")
    info, frames = media.probe_video(path), frames_of(path)
    large = encode(folder / "large.mp4", info, frames, Fraction(25), Quality.LOSSLESS)
    assert large.stat().st_size > 600_000
    limit()
    with pytest.raises(LipSyncError) as error:
        encode(disk / "segment.mp4", info, frames * 3, Fraction(25), Quality.LOSSLESS)
    assert error.value.code is ErrorCode.DISK_FULL
    with pytest.raises(LipSyncError) as error:
        media.assemble([large], disk / "out.mp4", info, Fraction(25), Quality.LOSSLESS, audio=None)
    assert error.value.code is ErrorCode.DISK_FULL
    assert list(disk.iterdir()) == []


# --- comparison ---


def test_comparison_shows_source_and_result(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    before, after, both = (tmp_path / f"{name}.mp4" for name in ("before", "after", "both"))
    ffmpeg("-f", "lavfi", "-i", "color=red:s=1000x400:r=25:d=0.4", before)
    ffmpeg("-f", "lavfi", "-i", "color=blue:s=1000x400:r=25:d=2", "-f", "lavfi", "-i", "sine=d=2", after)
    media.write_comparison(before, after, both, 50)
    info = media.probe_video(both)
    assert (info.format.width, info.format.height) == (1280, 254)
    assert info.frame_rate == 25
    assert info.audio is not None
    pictures = [image for _, image in media.scan_frames(info, 1280)]
    assert len(pictures) == 50
    for image in (pictures[0], pictures[-1]):  # the shorter one stays on its last picture
        assert image[100, 300, 0] > 200
        assert image[100, 300, 2] < 60
        assert image[100, 980, 2] > 200
        assert image[100, 980, 0] < 60
    with pytest.raises(LipSyncError):
        media.write_comparison(before, after, after, 50)


def test_comparison_of_small_silent_videos(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    before, after, both = tmp_path / "before.mkv", tmp_path / "after.mp4", tmp_path / "both.mov"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=96x66:r=10:d=1", before)
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=96x66:r=25:d=1", after)
    media.write_comparison(before, after, both, 25)
    info = media.probe_video(both)
    assert (info.format.width, info.format.height, info.audio) == (200, 66, None)
    assert len(times(info)) == 25


# --- the real clip ---


def test_the_real_clip(tmp_path: Path) -> None:
    clip = MEDIA / "talking_person_1080x1920_25fps.mp4"
    if not clip.exists():
        pytest.skip(f"real media not found at {MEDIA}")
    info = media.probe_video(clip)
    pts_s = times(info)
    assert len(pts_s) == 250
    path = tmp_path / "part.mp4"
    with media.FrameReader(info, pts_s) as reader:
        frames = list(reader.read(range(20, 30)))
        random = np.random.default_rng(1)
        for k in random.integers(20, 30, 3):
            again = next(reader.read([int(k)]))
            assert again.to_bytes() == frames[int(k) - 20].to_bytes()
    encode(path, info, frames, info.frame_rate)
    for before, after in zip(frames, frames_of(path), strict=True):
        for plane, other in zip(before.planes(), after.planes(), strict=True):
            assert 10 * np.log10(255**2 / np.mean((plane.astype(np.float32) - other) ** 2)) > 45
    output = tmp_path / "out.mp4"
    media.assemble([path], output, info, info.frame_rate, Quality.DEFAULT, audio=clip)
    assert [mark for *_, mark in packets(output, "a")] == [mark for *_, mark in packets(clip, "a")]
    assert re.search(r"yuv420p\(tv, bt709, progressive\), 1080x1920 \[SAR 1:1", listing(output))
