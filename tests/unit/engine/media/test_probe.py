"""Probing: properties of a file, and the error code of each kind of unusable file."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import ffmpeg as builder
import imageio_ffmpeg
import pytest

from lipsync_engine import media
from lipsync_engine.errors import ErrorCode, LipSyncError
from lipsync_engine.media import process
from lipsync_engine.media.process import VIDEO_CODECS
from lipsync_engine.media.yuv import Chroma, Matrix
from tests.support.paths import ROOT

Ffmpeg = Callable[..., None]

SMALL = "testsrc2=s=64x48:r=25"
TONE = "sine=f=440:r=44100"


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory, ffmpeg: Ffmpeg) -> Path:
    """Two seconds with sound; the index stands at the end."""
    path = tmp_path_factory.mktemp("good") / "good.mp4"
    ffmpeg("-f", "lavfi", "-i", SMALL, "-f", "lavfi", "-i", TONE, "-t", 2, "-g", 10, path)
    return path


def code_of(call: Callable[[Path], object], path: Path) -> ErrorCode:
    with pytest.raises(LipSyncError) as error:
        call(path)
    assert str(path.parent) not in error.value.message
    assert path.name in error.value.message or repr(path.name)[1:-1] in error.value.message
    return error.value.code


# --- bad input ---


def test_unreadable_inputs_have_their_own_codes(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "empty.mp4").touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "device.mp4").symlink_to("/dev/zero")
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nothing")
    for call in (media.probe_video, media.probe_audio):
        assert code_of(call, tmp_path / "missing.mp4") is ErrorCode.INPUT_NOT_FOUND
        assert code_of(call, tmp_path / "dangling.mp4") is ErrorCode.INPUT_NOT_FOUND
        assert code_of(call, tmp_path / "empty.mp4" / "x") is ErrorCode.INPUT_NOT_FOUND
        assert code_of(call, tmp_path / "folder.mp4") is ErrorCode.INPUT_IS_DIRECTORY
        assert code_of(call, tmp_path / "empty.mp4") is ErrorCode.INPUT_EMPTY
        assert code_of(call, tmp_path / "pipe.mp4") is ErrorCode.INPUT_UNREADABLE
        assert code_of(call, tmp_path / "device.mp4") is ErrorCode.INPUT_UNREADABLE


def test_file_without_permission_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "secret.mp4"
    path.write_bytes(b"x" * 100)
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # root may read everything
        os.seteuid(65534)
    try:
        assert code_of(media.probe_video, path) is ErrorCode.INPUT_UNREADABLE
    finally:
        os.seteuid(user)


def test_content_that_is_no_video_is_refused(tmp_path: Path, good: Path, ffmpeg: Ffmpeg) -> None:
    whole = good.read_bytes()
    for name, content in {
        "text": b"This is a text, whatever its name says.\n" * 50,
        "noise": bytes(range(256)) * 40,
        "cut": whole[: len(whole) // 2],
        "stub": whole[:40],
    }.items():
        (tmp_path / f"{name}.mp4").write_bytes(content)
    for suffix, options in {"png": (), "jpg": (), "avi": ("-c:v", "mpeg4"), "ts": (), "flv": ()}.items():
        original = tmp_path / f"made.{suffix}"
        ffmpeg("-i", good, "-frames:v", 1, "-an", *options, original)
        original.rename(tmp_path / f"{suffix}.mp4")
    expected = {
        "text": ErrorCode.MEDIA_NOT_RECOGNISED,
        "noise": ErrorCode.MEDIA_NOT_RECOGNISED,
        "cut": ErrorCode.MEDIA_TRUNCATED,
        "stub": ErrorCode.MEDIA_TRUNCATED,
        "png": ErrorCode.MEDIA_NOT_RECOGNISED,
        "jpg": ErrorCode.MEDIA_NOT_RECOGNISED,
        "avi": ErrorCode.MEDIA_FORMAT_REFUSED,
        "ts": ErrorCode.MEDIA_FORMAT_REFUSED,
        "flv": ErrorCode.MEDIA_FORMAT_REFUSED,
    }
    for call in (media.probe_video, media.probe_audio):
        assert {name: code_of(call, tmp_path / f"{name}.mp4") for name in expected} == expected


@pytest.mark.parametrize(
    ("suffix", "options", "message"),
    [
        (
            "avi",
            ("-c:v", "mpeg4"),
            "'clip.avi' is an AVI file, which is not accepted for video: convert it",
        ),
        ("flv", (), "'clip.flv' is an FLV file"),
        ("ts", (), "'clip.ts' is an MPEG transport stream"),
        ("gif", ("-an",), "'clip.gif' is a GIF image, not video: convert it to mp4"),
    ],
)
def test_refused_format_is_named_with_a_remedy(
    suffix: str, options: tuple[str, ...], message: str, tmp_path: Path, good: Path, ffmpeg: Ffmpeg
) -> None:
    path = tmp_path / f"clip.{suffix}"
    ffmpeg("-i", good, "-t", 0.5, *options, path)
    with pytest.raises(LipSyncError) as error:
        media.probe_video(path)
    assert error.value.message.startswith(message)
    assert "`ffmpeg -i IN OUT.mp4`" in error.value.message


def test_missing_track_is_refused(tmp_path: Path, good: Path, ffmpeg: Ffmpeg) -> None:
    wav, silent, cover, no_sound = (tmp_path / n for n in ("a.wav", "v.mp4", "cover.m4a", "none.wav"))
    ffmpeg("-i", good, "-vn", wav)
    ffmpeg("-i", good, "-an", "-c", "copy", silent)
    ffmpeg("-i", good, "-frames:v", 1, tmp_path / "cover.png")
    ffmpeg("-i", good, "-i", tmp_path / "cover.png", "-map", "0:a", "-map", 1, "-c", "copy",
           "-disposition:v", "attached_pic", cover)  # fmt: skip
    ffmpeg("-f", "lavfi", "-i", TONE, "-t", 0, no_sound)
    assert code_of(media.probe_video, wav) is ErrorCode.MEDIA_NO_VIDEO
    assert code_of(media.probe_video, cover) is ErrorCode.MEDIA_NO_VIDEO
    assert media.probe_audio(cover).codec == "aac"
    assert code_of(media.probe_audio, silent) is ErrorCode.MEDIA_NO_AUDIO
    assert code_of(media.probe_audio, no_sound) is ErrorCode.MEDIA_NO_AUDIO
    assert media.probe_video(silent).audio is None


def test_decompression_bomb_is_refused_fast(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    for name, size in {"bomb.mp4": "8192x8192", "large.mp4": "8192x4320"}.items():
        ffmpeg("-f", "lavfi", "-i", f"color=black:s={size}:r=1", "-frames:v", 1, "-preset", "ultrafast",
               "-x264-params", "threads=1", tmp_path / name)  # fmt: skip
        began = time.monotonic()
        assert code_of(media.probe_video, tmp_path / name) is ErrorCode.MEDIA_TOO_LARGE
        assert time.monotonic() - began < 5


def test_file_over_the_duration_limit_is_refused(good: Path) -> None:
    limits = process.MediaLimits(max_duration_s=1.5)
    for call in (media.probe_video, media.probe_audio):
        assert code_of(partial(call, limits=limits), good) is ErrorCode.MEDIA_TOO_LARGE


SCRIPTS = {
    "ffconcat": "ffconcat version 1.0\nfile {target}\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{target}\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "dash": '<?xml version="1.0"?><MPD><Period><AdaptationSet><Representation><BaseURL>{target}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
}


@pytest.mark.parametrize("kind", SCRIPTS)
def test_playlists_are_refused(kind: str, tmp_path: Path) -> None:
    script = tmp_path / "script.mp4"
    script.write_text(SCRIPTS[kind].format(target="target.mp4"))
    assert code_of(media.probe_video, script) is ErrorCode.MEDIA_FORMAT_REFUSED
    assert code_of(media.probe_audio, script) is ErrorCode.MEDIA_FORMAT_REFUSED


def test_ffmpeg_never_opens_what_a_playlist_names(tmp_path: Path, good: Path) -> None:
    """The format whitelist holds by itself, where the check of the first bytes is not consulted."""
    script = tmp_path / "script.mp4"
    script.write_text("ffconcat version 1.0\nfile target.mp4\n")
    (tmp_path / "target.mp4").write_bytes(good.read_bytes())
    plain = [str(media.find_ffmpeg()), "-v", "error", "-protocol_whitelist", "file", "-i", str(script)]
    works = subprocess.run([*plain, "-f", "null", "-"], capture_output=True, timeout=30, check=False)
    assert works.returncode == 0, "the script should be one that FFmpeg follows without a whitelist"

    (tmp_path / "target.mp4").unlink()
    os.mkfifo(tmp_path / "target.mp4")
    trap = os.open(tmp_path / "target.mp4", os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(trap, b"bait")
        source = process.untrusted_input(script, process.AUDIO_FORMATS)
        with process.FfmpegProcess(builder.output(source, "-", format="null")) as child:
            assert child.finish() != 0
            assert "not on whitelist" in child.messages
        assert os.read(trap, 100) == b"bait"
    finally:
        os.close(trap)


def test_missing_ffmpeg_is_reported(good: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIPSYNC_FFMPEG", str(tmp_path / "no-ffmpeg"))
    with pytest.raises(LipSyncError) as error:
        media.probe_video(good)
    assert error.value.code is ErrorCode.FFMPEG_MISSING


# --- pixel formats ---


@pytest.mark.parametrize(
    "options",
    [
        ("-vf", "format=yuva420p", "-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p"),
        ("-c:v", "ffv1", "-pix_fmt", "yuva444p"),
        ("-c:v", "prores_ks", "-pix_fmt", "yuva444p10le"),
        ("-c:v", "qtrle", "-pix_fmt", "argb"),
    ],
    ids=["vp9-alpha", "ffv1-alpha", "prores-alpha", "argb"],
)
def test_alpha_is_refused_with_a_remedy(options: tuple[str, ...], tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    path = tmp_path / ("clip.mov" if {"prores_ks", "qtrle"} & set(options) else "clip.mkv")
    ffmpeg("-f", "lavfi", "-i", SMALL, "-frames:v", 3, *options, path)
    with pytest.raises(LipSyncError, match="put it over") as error:
        media.probe_video(path)
    assert error.value.code is ErrorCode.MEDIA_UNSUPPORTED_PIXELS


@pytest.mark.parametrize(
    ("codec", "pixels", "chroma", "depth", "full"),
    [
        ("libx264", "yuv420p", "420", 8, False),
        ("libx264", "yuvj420p", "420", 8, True),
        ("libx264", "nv12", "420", 8, False),
        ("libx264", "yuv422p10le", "422", 10, False),
        ("libx264", "yuv444p", "444", 8, False),
        ("libx264", "gray", "420", 8, True),
        ("libx264rgb", "bgr0", "444", 8, False),
        ("ffv1", "yuv420p12le", "420", 10, False),
        ("ffv1", "gbrp10le", "444", 10, False),
        ("ffv1", "gray16le", "420", 10, True),
        ("rawvideo", "uyvy422", "422", 8, False),
        ("rawvideo", "yuv411p", "444", 8, False),
    ],
)
def test_nearest_planar_format(
    codec: str, pixels: str, chroma: str, depth: int, full: bool, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    path = tmp_path / "clip.mkv"
    ffmpeg("-f", "lavfi", "-i", SMALL, "-frames:v", 2, "-pix_fmt", pixels, "-c:v", codec, path)
    form = media.probe_video(path).format
    assert (form.chroma, form.bit_depth, form.full_range) == (Chroma(chroma), depth, full)


@pytest.mark.parametrize(
    ("size", "tags", "matrix"),
    [
        ("64x48", (), Matrix.BT601),
        ("1280x720", (), Matrix.BT709),
        ("480x854", (), Matrix.BT601),
        ("64x48", ("bt709", "bt709", "bt709"), Matrix.BT709),
        ("64x48", ("bt2020nc", "bt2020", "bt2020-10"), Matrix.BT2020),
        ("1280x720", ("smpte170m", "smpte170m", "smpte170m"), Matrix.BT601),
    ],
)
def test_colour_tags(
    size: str, tags: tuple[str, ...], matrix: Matrix, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    path = tmp_path / "clip.mp4"
    tag = f",setparams=colorspace={tags[0]}:color_primaries={tags[1]}:color_trc={tags[2]}" if tags else ""
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=s={size}:r=25", "-frames:v", 1, "-vf", f"null{tag}", path)
    info = media.probe_video(path)
    assert info.format.matrix is matrix
    assert (info.color_space, info.color_primaries, info.color_transfer) == (tags or (None, None, None))


def test_rotation_and_pixel_shape(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    upright, turned = tmp_path / "upright.mp4", tmp_path / "turned.mp4"
    ffmpeg("-f", "lavfi", "-i", SMALL, "-frames:v", 2, "-vf", "setsar=4/3", upright)
    ffmpeg("-display_rotation", 90, "-i", upright, "-c", "copy", turned)
    info, rotated = media.probe_video(upright), media.probe_video(turned)
    assert (info.format.width, info.format.height, info.rotation_deg) == (64, 48, 0)
    assert info.sample_aspect_ratio == Fraction(4, 3)
    assert (rotated.format.width, rotated.format.height, rotated.rotation_deg) == (48, 64, 90)
    assert rotated.sample_aspect_ratio == Fraction(3, 4)


# --- rates and lengths ---


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("rate", ["24000/1001", "25", "30000/1001", "30", "60000/1001", "12", "15"])
def test_exact_frame_rates(rate: str, suffix: str, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    path = tmp_path / f"clip.{suffix}"
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=s=32x32:r={rate}", "-frames:v", 40, "-c:v", "mpeg4", path)
    assert media.probe_video(path).frame_rate == Fraction(rate)


def test_nominal_rate_of_a_varying_one(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    path = tmp_path / "phone.mp4"
    holes = "select='not(eq(mod(n\\,17)\\,5))'"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=30", "-t", 6, "-vf", holes, "-fps_mode", "vfr", path)
    assert media.probe_video(path).frame_rate == 30


def test_length_where_the_header_has_none(tmp_path: Path, good: Path, ffmpeg: Ffmpeg) -> None:
    live = tmp_path / "live.webm"
    ffmpeg("-i", good, "-c:v", "libvpx", "-c:a", "libopus", "-live", 1, live)
    assert abs(media.probe_video(live).duration_s - 2.0) < 0.1
    assert abs(media.probe_audio(live).duration_s - 2.0) < 0.1


def test_one_frame(tmp_path: Path, good: Path, ffmpeg: Ffmpeg) -> None:
    path = tmp_path / "one.mp4"
    ffmpeg("-i", good, "-frames:v", 1, "-an", path)
    assert media.probe_video(path).frame_rate == 25


@pytest.mark.parametrize(
    ("name", "options", "codec", "rate", "channels"),
    [
        ("a.wav", ("-ac", 1, "-ar", 16000), "pcm_s16le", 16000, 1),
        ("a.w64", ("-ac", 2), "pcm_s16le", 44100, 2),
        ("a.aiff", ("-ac", 2), "pcm_s16be", 44100, 2),
        ("a.caf", ("-ac", 1), "pcm_s16be", 44100, 1),
        ("a.mp3", ("-ac", 2, "-ar", 22050), "mp3", 22050, 2),
        ("a.aac", ("-ac", 2), "aac", 44100, 2),
        ("a.m4a", ("-ac", 6, "-ar", 48000), "aac", 48000, 6),
        ("a.flac", ("-ac", 2, "-ar", 96000), "flac", 96000, 2),
        ("a.ogg", ("-ac", 2, "-c:a", "libvorbis"), "vorbis", 44100, 2),
        ("a.opus", ("-ac", 1, "-c:a", "libopus"), "opus", 48000, 1),
        ("a.amr", ("-ac", 1, "-ar", 8000, "-c:a", "libopencore_amrnb"), "amr_nb", 8000, 1),
        ("a.mka", ("-ac", 2, "-c:a", "flac"), "flac", 44100, 2),
    ],
)
def test_audio_of_every_accepted_format(
    name: str,
    options: tuple[object, ...],
    codec: str,
    rate: int,
    channels: int,
    tmp_path: Path,
    ffmpeg: Ffmpeg,
) -> None:
    path = tmp_path / name
    ffmpeg("-f", "lavfi", "-i", TONE, "-t", 1, *options, path)
    info = media.probe_audio(path)
    assert (info.codec.removesuffix("nb").rstrip("_"), info.sample_rate, info.channels) == (
        codec.removesuffix("_nb"),
        rate,
        channels,
    )
    assert abs(info.duration_s - 1.0) < 0.15


def test_any_file_name(tmp_path: Path, good: Path) -> None:
    folder = tmp_path / 'it\'s a "folder"\n%d: ünï 中文'
    folder.mkdir()
    for name in ("-i.mp4", "file:x.mp4", "a|b;$(c).mp4", "%03d.mp4", "line\nbreak.mp4"):
        path = folder / name
        path.write_bytes(good.read_bytes())
        assert media.probe_video(path).audio == media.probe_audio(path)
        path.write_bytes(good.read_bytes()[:5000])
        assert code_of(media.probe_video, path) is ErrorCode.MEDIA_TRUNCATED


def test_relative_names_that_look_like_options(tmp_path: Path, good: Path) -> None:
    (tmp_path / "-version").write_bytes(good.read_bytes())
    code = (
        "from pathlib import Path; from lipsync_engine import media; "
        "print(media.probe_video(Path('-version')).codec)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout == "h264\n"


def test_content_hash(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert media.content_hash(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("program", ["ffmpeg on PATH", "imageio-ffmpeg"])
def test_probe_reads_the_listing_of_every_ffmpeg_here(
    good: Path, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian 12's FFmpeg 5.1 leaves out a field that later versions print."""
    binary = shutil.which("ffmpeg") if program == "ffmpeg on PATH" else imageio_ffmpeg.get_ffmpeg_exe()
    if binary is None:
        pytest.skip("no ffmpeg on PATH")
    monkeypatch.setenv("LIPSYNC_FFMPEG", binary)
    info = media.probe_video(good)
    assert (info.format.width, info.format.height, info.frame_rate) == (64, 48, 25)
    assert info.audio is not None
    assert info.audio.sample_rate == 44100


@pytest.mark.parametrize(
    ("option", "codec", "suffix"), [("-c:v", "huffyuv", "mkv"), ("-c:a", "wavpack", "mkv")]
)
def test_codec_that_is_not_documented_is_refused(
    option: str, codec: str, suffix: str, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    """FFmpeg has hundreds of decoders; no other than the documented ones runs on a stranger's file."""
    path = tmp_path / f"clip.{suffix}"
    source = "testsrc=size=64x64:rate=5:duration=1" if option == "-c:v" else "sine=duration=1"
    ffmpeg("-f", "lavfi", "-i", source, option, codec, path)
    with pytest.raises(LipSyncError) as error:
        media.probe_video(path) if option == "-c:v" else media.probe_audio(path)
    assert error.value.code is ErrorCode.MEDIA_FORMAT_REFUSED
    assert codec in error.value.message


def test_documented_codecs_are_the_decoders_that_run() -> None:
    readme = " ".join((ROOT / "README.md").read_text().split())
    *names, last = VIDEO_CODECS
    assert f"mp4, mov, mkv or webm with {', '.join(names)} or {last}, 8 to 12 bit" in readme
    assert {"magicyuv", "cinepak", "smackvid"}.isdisjoint(
        itertools.chain.from_iterable(VIDEO_CODECS.values())
    )
