"""HDR sources become BT.709: like FFmpeg's own tone mapping, and with the colours of the SDR original."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from lipsync_engine import media
from lipsync_engine.errors import ErrorCode, MediaError
from lipsync_engine.media.yuv import Chroma, Frame, FrameFormat, Matrix, region_to_rgb
from lipsync_engine.params import HdrMode, Quality

Ffmpeg = Callable[..., None]

TRANSFERS = {"HLG": "arib-std-b67", "PQ": "smpte2084"}

TONE_MAP = (
    "zscale=transfer=linear:npl=203,format=gbrpf32le,zscale=primaries=bt709,"
    "tonemap=mobius:peak=4.9261:desat=0,zscale=transfer=bt709:matrix=bt709:range=limited,format=yuv420p10le"
)


def write_hdr(path: Path, kind: str, ffmpeg: Ffmpeg, source: str, *, n_frames: int = 4) -> Path:
    """Encode an SDR source as HDR whose reference white (203 cd/m²) is the SDR white."""
    transfer = TRANSFERS[kind]
    to_hdr = (
        "scale=out_color_matrix=bt709:out_range=tv,format=yuv444p10le,setparams=color_trc=bt709:colorspace=bt709:color_primaries=bt709:range=tv,"
        "zscale=transfer=linear:npl=203,format=gbrpf32le,zscale=primaries=2020,"
        f"zscale=transfer={transfer}:matrix=2020_ncl:range=limited:npl=203,format=yuv420p10le"
    )
    ffmpeg(
        *("-f", "lavfi", "-i", source, "-frames:v", n_frames, "-vf", to_hdr),
        *("-c:v", "libx265", "-x265-params", "log-level=error:lossless=1", "-tag:v", "hvc1"),
        *("-color_trc", transfer, "-color_primaries", "bt2020", "-colorspace", "bt2020nc"),
        *("-color_range", "tv", path),
    )
    return path


def read_frames(path: Path) -> tuple[media.VideoInfo, list[Frame]]:
    info = media.probe_video(path)
    pts_s = np.array([pts for pts, _ in media.scan_frames(info, 32)])
    with media.FrameReader(info, pts_s) as reader:
        return info, list(reader.read(range(len(pts_s))))


@pytest.mark.parametrize("kind", TRANSFERS)
def test_hdr_is_probed_as_the_sdr_that_is_decoded(kind: str, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    info = media.probe_video(write_hdr(tmp_path / "clip.mp4", kind, ffmpeg, "testsrc2=s=96x64:r=25"))
    assert info.hdr is not None
    assert (info.hdr.name, info.hdr.transfer) == (kind, TRANSFERS[kind])
    assert info.format == FrameFormat(96, 64, Chroma.C420, 10, Matrix.BT709, full_range=False)
    tags = (info.color_space, info.color_primaries, info.color_transfer, info.color_range)
    assert tags == ("bt709", "bt709", "bt709", "tv")


@pytest.mark.parametrize("kind", TRANSFERS)
def test_frames_equal_ffmpegs_own_tone_mapping(kind: str, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    path = write_hdr(tmp_path / "clip.mp4", kind, ffmpeg, "testsrc2=s=96x64:r=25")
    command = [str(media.find_ffmpeg()), "-v", "error", "-i", str(path), "-vf", TONE_MAP]
    raw = subprocess.run(
        [*command, "-f", "rawvideo", "-"], capture_output=True, check=True, timeout=60
    ).stdout
    _, frames = read_frames(path)
    assert b"".join(frame.to_bytes() for frame in frames) == raw


COLORS = {
    "black": (0, 0, 0),
    "dark skin": (96, 62, 48),
    "skin": (150, 112, 94),
    "gray": (128, 128, 128),
    "blue": (40, 60, 140),
}
"""Below 30 % of white in linear light, where the curve is the identity."""


@pytest.mark.parametrize("kind", TRANSFERS)
def test_colors_up_to_skin_are_those_of_the_sdr_original(kind: str, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    for name, rgb in COLORS.items():
        color = "0x{:02x}{:02x}{:02x}".format(*rgb)
        path = write_hdr(tmp_path / "clip.mp4", kind, ffmpeg, f"color={color}:s=64x64:r=25", n_frames=2)
        info, frames = read_frames(path)
        _, image = next(iter(media.scan_frames(info, 64)))
        [sample] = media.sample_frames(info, [0.0], 64)
        assert np.abs(region_to_rgb(frames[0], (16, 16, 48, 48)) - rgb).max() < 4, name
        for analysed in (image, sample):  # converted to RGB with less precision, for detectors
            assert np.abs(analysed[16:48, 16:48].astype(int) - rgb).max() < 8, name


@pytest.mark.parametrize("kind", TRANSFERS)
def test_highlights_are_compressed_in_order(kind: str, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    """White of the SDR original stays light, and what is brighter than it stays brighter."""
    ramp = "nullsrc=s=256x64:r=25,format=yuv420p10le,geq=lum='64+876*X/255':cb=512:cr=512"
    tags = f"setparams=color_trc={TRANSFERS[kind]}:color_primaries=bt2020:colorspace=bt2020nc:range=tv"
    path = tmp_path / "ramp.mp4"
    ffmpeg(
        *("-f", "lavfi", "-i", f"{ramp},{tags}", "-frames:v", 2, "-c:v", "libx265"),
        *("-x265-params", "log-level=error:lossless=1", path),
    )
    _, frames = read_frames(path)
    luma = np.median(frames[0].y, axis=0).astype(int)
    assert np.all(np.diff(luma) >= -2)
    reference_white = round(255 * (0.75 if kind == "HLG" else 0.58))  # code values of 203 cd/m²
    assert 0.80 < (luma[reference_white] - 64) / 876 < 0.90
    assert luma[-1] >= 930


@pytest.mark.parametrize("size", ["97x65", "96x64"])
def test_odd_sizes(size: str, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    path = tmp_path / "clip.webm"
    tags = "setparams=color_trc=arib-std-b67:color_primaries=bt2020:colorspace=bt2020nc:range=tv"
    ffmpeg(
        *("-f", "lavfi", "-i", f"testsrc2=r=25,scale={size.replace('x', ':')},format=yuv420p10le,{tags}"),
        *("-frames:v", 3, "-c:v", "libvpx-vp9", "-cpu-used", 8, path),
    )
    info, frames = read_frames(path)
    assert info.hdr is not None
    assert f"{info.format.width}x{info.format.height}" == size
    assert len(frames) == 3


def test_tone_mapped_video_is_encoded_in_8_bits(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    path = write_hdr(tmp_path / "clip.mp4", "HLG", ffmpeg, "testsrc2=s=96x64:r=25", n_frames=8)
    info, frames = read_frames(path)
    output = tmp_path / "made.mp4"
    with media.SegmentWriter(output, info, Fraction(25), Quality.DEFAULT) as writer:
        for frame in frames:
            writer.write(frame)
    result = media.probe_video(output)
    assert (result.codec, result.format.pix_fmt, result.hdr) == ("h264", "yuv420p", None)
    media.check_hdr(result, HdrMode.REFUSE)
    media.check_hdr(info, HdrMode.TONEMAP)
    with pytest.raises(MediaError, match="HLG") as caught:
        media.check_hdr(info, HdrMode.REFUSE)
    assert caught.value.code is ErrorCode.MEDIA_UNSUPPORTED_PIXELS
    tags = (result.color_space, result.color_primaries, result.color_transfer, result.color_range)
    assert tags == ("bt709", "bt709", "bt709", "tv")


def test_comparison_shows_hdr_sources_tone_mapped(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    before, after = tmp_path / "before.mp4", tmp_path / "after.mp4"
    write_hdr(before, "HLG", ffmpeg, "color=0x603e30:s=96x64:r=25", n_frames=10)
    brown = "color=0x603e30:s=96x64:r=25,format=rgb24,scale=out_color_matrix=bt709,format=yuv420p"
    ffmpeg("-f", "lavfi", "-i", brown, "-frames:v", 10, after)
    media.write_comparison(before, after, tmp_path / "both.mp4", 10)
    _, image = next(iter(media.scan_frames(media.probe_video(tmp_path / "both.mp4"), 1000)))
    assert np.abs(image[32, 48].astype(int) - image[32, 152]).max() < 6


def test_missing_filter_is_reported_with_a_remedy(
    tmp_path: Path, ffmpeg: Ffmpeg, replace_ffmpeg: Callable[[Path], None]
) -> None:
    from lipsync_engine.media import process

    path = write_hdr(tmp_path / "clip.mp4", "PQ", ffmpeg, "testsrc2=s=96x64:r=25")
    program = tmp_path / "plain-ffmpeg"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *-filters*) exit 0;; esac\nexec "{media.find_ffmpeg()}" "$@"\n'
    )
    program.chmod(0o755)
    replace_ffmpeg(program)
    process.run_query.cache_clear()
    try:
        with pytest.raises(MediaError, match=r"no zscale filter.*LIPSYNC_FFMPEG") as error:
            media.probe_video(path)
    finally:
        process.run_query.cache_clear()
    assert error.value.code is ErrorCode.MEDIA_UNSUPPORTED_PIXELS


def test_dolby_vision_without_a_base_layer_is_refused(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    path = tmp_path / "clip.mp4"
    ffmpeg(
        *("-f", "lavfi", "-i", "testsrc2=s=96x64:r=25", "-frames:v", 3, "-pix_fmt", "yuv420p10le"),
        *("-c:v", "libx265", "-x265-params", "log-level=error", "-tag:v", "hvc1", path),
    )
    data = path.read_bytes()
    at = data.index(b"hvcC") - 4
    dvcc = (32).to_bytes(4) + b"dvcC" + bytes([1, 0, 5 << 1, 1 << 3 | 1 << 2 | 1]) + bytes(20)
    patched = bytearray(data[:at] + dvcc + data[at:])
    for box in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"hvc1"):
        start = data.rindex(box, 0, at) - 4
        size = int.from_bytes(patched[start : start + 4]) + len(dvcc)
        patched[start : start + 4] = size.to_bytes(4)
    path.write_bytes(patched)
    with pytest.raises(MediaError, match="Dolby Vision") as error:
        media.probe_video(path)
    assert error.value.code is ErrorCode.MEDIA_UNSUPPORTED_PIXELS
