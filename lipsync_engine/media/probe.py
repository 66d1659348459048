"""What a file is, found out with one decoded frame, before any heavy work; and why it cannot be used."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import ffmpeg

from lipsync_engine.errors import ErrorCode, InputError, MediaError
from lipsync_engine.frames import Chroma, FrameFormat, Matrix
from lipsync_engine.media.run import AUDIO_FORMATS, LIMITS, VIDEO_FORMATS, Child, last_words, untrusted


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """The sound of a file.

    Attributes:
        path: of the file.
        codec: FFmpeg's name.
        sample_rate: Hz.
        channels: count.
        duration_s: as the header says; 0 when it does not.
    """

    path: Path
    codec: str
    sample_rate: int
    channels: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """The picture of a file.

    Attributes:
        path: of the file.
        codec, container: FFmpeg's names.
        format: of decoded frames, as displayed (rotation applied).
        sample_aspect_ratio: width of a pixel over its height.
        frame_rate: nominal.
        duration_s: as the header says.
        rotation_deg: that the file asks for; applied on decoding.
        color_space, color_primaries, color_transfer, color_range: FFmpeg's names of the tags, None where untagged.
        audio: its sound, if any.
    """

    path: Path
    codec: str
    container: str
    format: FrameFormat
    sample_aspect_ratio: Fraction
    frame_rate: Fraction
    duration_s: float
    rotation_deg: int
    color_space: str | None
    color_primaries: str | None
    color_transfer: str | None
    color_range: str | None
    audio: AudioInfo | None


_SCRIPTS = (b"ffconcat", b"#EXTM3U", b"<?xml", b"<MPD", b"v=0", b"[playlist]", b"#EXT-X")
"""Files that only name other files; opening them would read what they point to."""

_HDR_TRANSFERS = {"smpte2084": "PQ", "arib-std-b67": "HLG"}

_COMMON_RATES = (Fraction(24000, 1001), Fraction(30000, 1001), Fraction(60000, 1001), Fraction(120000, 1001))


def check_input(path: Path) -> None:
    """That a path names a readable file with something in it, and not a script that names other files."""
    name = path.name
    try:
        status = path.stat()
    except FileNotFoundError:
        raise InputError(ErrorCode.INPUT_NOT_FOUND, f"{name!r} does not exist: check the path.") from None
    except OSError as error:
        raise InputError(
            ErrorCode.INPUT_UNREADABLE, f"{name!r} cannot be opened ({error.strerror}): check its permissions."
        ) from error
    if stat.S_ISDIR(status.st_mode):
        raise InputError(ErrorCode.INPUT_IS_DIRECTORY, f"{name!r} is a folder: name a file in it.")
    if not stat.S_ISREG(status.st_mode) or not os.access(path, os.R_OK):
        raise InputError(
            ErrorCode.INPUT_UNREADABLE, f"{name!r} is not a readable file: pipes and devices are not accepted."
        )
    if status.st_size == 0:
        raise InputError(ErrorCode.INPUT_EMPTY, f"{name!r} is empty: it was probably not copied completely.")
    with path.open("rb") as file:
        head = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(_SCRIPTS):
        raise MediaError(
            ErrorCode.MEDIA_FORMAT_REFUSED,
            f"{name!r} is a playlist or script that names other files, not media: give the media file itself.",
        )


def content_hash(path: Path) -> str:
    """SHA-256 of the file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def probe_video(path: Path) -> VideoInfo:
    """Look at a video.

    Raises:
        InputError, MediaError: with the code of what is wrong and what to do.
    """
    check_input(path)
    source = untrusted(path, VIDEO_FORMATS)
    look = ffmpeg.output(source["V:0"], "-", format="null", vf="showinfo=checksum=0", **{"frames:v": 1})
    messages, lines = _look(look)
    _refuse(path, messages, "video")
    streams = _streams(lines)
    picture = next((s for s in streams if ": Video: " in s and "(attached pic)" not in s), None)
    if picture is None:
        raise MediaError(
            ErrorCode.MEDIA_NO_VIDEO, f"{path.name!r} has no picture, only sound: give a file with video."
        )
    shown = next((line for line in lines if "pts_time:" in line and "showinfo" in line), None)
    if shown is None:
        raise MediaError(
            ErrorCode.MEDIA_TRUNCATED,
            f"No picture of {path.name!r} can be decoded ({last_words(messages)}): the file is cut off or damaged.",
        )
    tags = _tags(lines)
    duration_s = _duration(lines)
    if duration_s > LIMITS.max_duration_s:
        raise _too_long(path, duration_s)
    width, height = (int(n) for n in _found(r" s:(\d+)x(\d+)", shown))
    pixels = _found(r" fmt:(\S+)", shown)[0]
    _refuse_pixels(path, pixels, tags, lines)
    sar = Fraction(*(int(n) for n in _found(r" sar:(\d+)/(\d+)", shown, ("1", "1")))) if " sar:0/" not in shown else 0
    rate = _frame_rate(picture)
    return VideoInfo(
        path=path,
        codec=_found(r": Video: (\w+)", picture)[0],
        container=_found(r"^Input #0, (.+), from ", next(line for line in lines if line.startswith("Input #0")))[0],
        format=_frame_format(width, height, pixels, tags),
        sample_aspect_ratio=Fraction(sar or 1),
        frame_rate=rate,
        duration_s=duration_s,
        rotation_deg=_rotation(lines),
        color_space=tags.get("color_space"),
        color_primaries=tags.get("color_primaries"),
        color_transfer=tags.get("color_trc"),
        color_range=tags.get("color_range"),
        audio=_audio(path, streams, duration_s),
    )


def probe_audio(path: Path) -> AudioInfo:
    """Look at a sound, alone or with a picture.

    Raises:
        InputError, MediaError: with the code of what is wrong and what to do.
    """
    check_input(path)
    source = untrusted(path, AUDIO_FORMATS)
    look = ffmpeg.output(source["a:0"], "-", format="null", af="ashowinfo", **{"frames:a": 1})
    messages, lines = _look(look)
    _refuse(path, messages, "audio")
    info = _audio(path, _streams(lines), _duration(lines))
    if info is None:
        raise MediaError(ErrorCode.MEDIA_NO_AUDIO, f"{path.name!r} has no sound: give a file with a voice.")
    if not any("ashowinfo" in line and "pts_time:" in line for line in lines):
        raise MediaError(
            ErrorCode.MEDIA_NO_AUDIO, f"{path.name!r} has a sound track without any sound in it: it lasts 0 s."
        )
    if info.duration_s > LIMITS.max_duration_s:
        raise _too_long(path, info.duration_s)
    return info


def _look(stream: object) -> tuple[str, list[str]]:
    lines: list[str] = []
    with Child(stream, cpu_s=LIMITS.probe_cpu_s, on_line=lines.append) as child:
        child.finish(LIMITS.probe_wall_s)
        return child.messages, lines


def _refuse(path: Path, messages: str, wanted: str) -> None:
    """Raise for what FFmpeg itself said about the file."""
    name = path.name
    if "exceeds specified max pixel count" in messages or "Picture size" in messages:
        raise MediaError(
            ErrorCode.MEDIA_TOO_LARGE,
            f"The pictures of {name!r} have more than {LIMITS.max_pixels / 1e6:.0f} million pixels (8K): scale the "
            "video down first.",
        )
    if "moov atom not found" in messages:
        raise MediaError(
            ErrorCode.MEDIA_TRUNCATED,
            f"{name!r} is cut off: its index is missing. It was probably not copied or recorded to the end.",
        )
    if "Error opening input" not in messages:
        return
    if "Invalid argument" in messages:
        raise MediaError(
            ErrorCode.MEDIA_FORMAT_REFUSED,
            f"{name!r} is of a kind that is not accepted as {wanted}: convert it to mp4, mov, mkv or webm"
            + (", wav, mp3, flac or ogg." if wanted == "audio" else "."),
        )
    raise MediaError(
        ErrorCode.MEDIA_NOT_RECOGNISED,
        f"{name!r} is not {'a video' if wanted == 'video' else 'a sound'} file that can be read: its content does "
        "not match its name, or it is damaged.",
    )


def _refuse_pixels(path: Path, pixels: str, tags: dict[str, str], lines: list[str]) -> None:
    if (transfer := _HDR_TRANSFERS.get(tags.get("color_trc", ""))) is not None:
        raise MediaError(
            ErrorCode.MEDIA_UNSUPPORTED_PIXELS,
            f"{path.name!r} is HDR video ({transfer}), which the models do not know: convert it to SDR (BT.709) "
            "with tone mapping first.",
        )
    alpha_mode = any(re.match(r"\s+alpha_mode\s*: 1", line, re.IGNORECASE) for line in lines)
    if alpha_mode or re.match(r"yuva|rgba|bgra|argb|abgr|gbrap|ya\d|pal8", pixels):
        raise MediaError(
            ErrorCode.MEDIA_UNSUPPORTED_PIXELS,
            f"{path.name!r} has an alpha channel, which would be lost: put it over a background first.",
        )


def _too_long(path: Path, duration_s: float) -> MediaError:
    return MediaError(
        ErrorCode.MEDIA_TOO_LARGE,
        f"{path.name!r} lasts {duration_s / 3600:.1f} hours, {LIMITS.max_duration_s / 3600:.0f} are allowed: cut it "
        "into parts.",
    )


def _streams(lines: list[str]) -> list[str]:
    """The input's stream lines; metadata cannot begin a line with exactly two spaces."""
    found = []
    for line in lines:
        if line.startswith(("Output #0", "Stream mapping")):
            break
        if re.match(r"  Stream #0:\d+", line):
            found.append(line)
    return found


def _audio(path: Path, streams: list[str], duration_s: float) -> AudioInfo | None:
    for line in streams:
        if ": Audio: " in line and (rate := re.search(r", (\d+) Hz, ([^,]+)", line)):
            codec = _found(r": Audio: (\w+)", line)[0]
            return AudioInfo(path, codec, int(rate[1]), _channels(rate[2]), duration_s)
    return None


def _channels(layout: str) -> int:
    known = {"mono": 1, "stereo": 2, "quad": 4, "hexagonal": 6, "octagonal": 8, "downmix": 2}
    layout = layout.strip()
    if layout in known:
        return known[layout]
    if found := re.match(r"(\d+) channels", layout):
        return int(found[1])
    if found := re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", layout):
        return sum(int(n or 0) for n in found.groups())
    return 2


def _tags(lines: list[str]) -> dict[str, str]:
    for line in lines:
        if "color_range:" in line and "showinfo" in line:
            pairs = dict(part.split(":", 1) for part in line.split("] ", 1)[-1].split() if ":" in part)
            return {k: v for k, v in pairs.items() if v not in ("unknown", "unspecified", "reserved")}
    return {}


def _duration(lines: list[str]) -> float:
    for line in lines:
        if found := re.match(r"\s+Duration: (\d+):(\d\d):(\d\d(?:\.\d+)?)", line):
            return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])
    return 0.0


def _rotation(lines: list[str]) -> int:
    for line in lines:
        if found := re.search(r"displaymatrix: rotation of (-?\d+(?:\.\d+)?) degrees", line):
            return round(float(found[1])) % 360
    return 0


def _frame_rate(stream: str) -> Fraction:
    """The average rate, or the base rate where there is none; rounded prints become the exact rates that they mean."""
    for unit in ("fps", "tbr"):
        if found := re.search(rf", (\d+(?:\.\d+)?)(k?) {unit}\b", stream):
            value = Fraction(found[1]) * (1000 if found[2] else 1)
            if 0 < value <= 1000:
                return snap_rate(value)
    return Fraction(25)


def snap_rate(value: Fraction) -> Fraction:
    """29.97 means 30000/1001."""
    nearest = min(_COMMON_RATES, key=lambda rate: abs(rate - value))
    return nearest if abs(nearest - value) < Fraction(6, 1000) else value


def _frame_format(width: int, height: int, pixels: str, tags: dict[str, str]) -> FrameFormat:
    """The planar format nearest to what the decoder gives."""
    if re.match(r"(yuvj?444|gbr|rgb|bgr|0rgb|0bgr)", pixels):
        chroma = Chroma.C444
    elif re.match(r"yuvj?422|yuyv|uyvy|nv16", pixels):
        chroma = Chroma.C422
    else:
        chroma = Chroma.C420
    deep = re.search(r"p(10|12|14|16)(?:le|be)$|^p0?(10|12|16)", pixels)
    depth = 8 if deep is None else min(12, int(deep[1] or deep[2]))
    matrices = {"bt709": Matrix.BT709, "bt2020nc": Matrix.BT2020, "smpte170m": Matrix.BT601, "bt470bg": Matrix.BT601}
    guess = Matrix.BT709 if height >= 720 else Matrix.BT601
    full = tags.get("color_range") == "pc" or pixels.startswith("yuvj")
    rgb = re.match(r"(gbr|rgb|bgr|0rgb|0bgr)", pixels) is not None
    return FrameFormat(
        width, height, chroma, depth, matrices.get(tags.get("color_space", ""), guess), full and not rgb
    )


def _found(pattern: str, text: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
    found = re.search(pattern, text)
    if found is not None:
        return found.groups()
    if default is not None:
        return default
    raise MediaError(ErrorCode.MEDIA_FAILED, "FFmpeg's answer about the file was not understood: re-encode it first.")
