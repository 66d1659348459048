"""What a file is, found out with one decoded frame before any heavy work; and why it cannot be used.

The FFmpeg program alone is enough (no ffprobe): its listing names the streams, `showinfo` describes the first
decoded frame, and the copied packets' times give the frame rate.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import re
import stat
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import ffmpeg

from lipsync_engine.errors import ErrorCode, InputError, MediaError
from lipsync_engine.media.process import (
    AUDIO_FORMATS,
    CUT_OFF,
    LIMITS,
    VIDEO_FORMATS,
    Child,
    ask,
    last_words,
    untrusted,
)
from lipsync_engine.media.rates import snap_rate
from lipsync_engine.media.yuv import Chroma, FrameFormat, Matrix


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """The first sound track of a file.

    Attributes:
        path: of the file.
        codec: FFmpeg's name.
        sample_rate: Hz.
        channels: count.
        duration_s: of the file, to 10 ms, as the header says or the packets show.
    """

    path: Path
    codec: str
    sample_rate: int
    channels: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """The first picture track of a file.

    Attributes:
        path: of the file.
        codec, container: FFmpeg's names.
        format: of frames as this package decodes them: displayed (rotation applied), planar YUV, at most
            10 bits. RGB becomes BT.709 4:4:4. Untagged colour is taken as BT.601 below 720 lines, BT.709 from
            there, limited range.
        sample_aspect_ratio: width of a pixel over its height.
        frame_rate: nominal; the usual distance of frames where it varies.
        duration_s: of the file, to 10 ms, as the header says or the packets show.
        rotation_deg: that the file asks for, counter-clockwise; applied on decoding.
        color_space, color_primaries, color_transfer, color_range: FFmpeg's names of the tags, None where
            there are none.
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


_SCRIPTS = (
    b"ffconcat",
    b"#EXTM3U",
    b"<?xml",
    b"<MPD",
    b"<smil",
    b"<asx",
    b"v=0",
    b"[playlist]",
    b"[Reference]",
)
"""How files begin that only name other files; opening them would read what they point to."""

_IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")

_MP4_ATOMS = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid")

_HDR_TRANSFERS = {"smpte2084": "PQ", "arib-std-b67": "HLG"}

_MATRICES = {
    "bt709": Matrix.BT709,
    "smpte240m": Matrix.BT709,
    "bt470bg": Matrix.BT601,
    "smpte170m": Matrix.BT601,
    "fcc": Matrix.BT601,
    "bt2020nc": Matrix.BT2020,
    "bt2020c": Matrix.BT2020,
}

_RGB = re.compile(r"(gbr|rgb|bgr|0rgb|0bgr|x2rgb|x2bgr|pal8|mono)")

_RATE_PACKETS = 120
"""So many packets' times tell 29.97 from 30 fps even where a container rounds times to milliseconds."""


def check_input(path: Path) -> None:
    """That a path names a readable file with something in it, and not a script that names other files.

    Raises:
        InputError, MediaError: with a code for each of these.
    """
    name = path.name
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(ErrorCode.INPUT_IS_DIRECTORY, f"{name!r} is a folder: name a file in it.")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its other end
            raise InputError(
                ErrorCode.INPUT_UNREADABLE, f"{name!r} is a pipe or a device: copy the data to a file first."
            )
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise InputError(ErrorCode.INPUT_NOT_FOUND, f"{name!r} does not exist: check the path.") from None
        raise InputError(
            ErrorCode.INPUT_UNREADABLE, f"{name!r} cannot be read ({error.strerror}): check its permissions."
        ) from error
    if not head:
        raise InputError(ErrorCode.INPUT_EMPTY, f"{name!r} is empty: it was probably not copied completely.")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(_SCRIPTS):
        raise MediaError(
            ErrorCode.MEDIA_FORMAT_REFUSED,
            f"{name!r} is a playlist or script that names other files: give the media file itself.",
        )


def content_hash(path: Path) -> str:
    """SHA-256 of the file's bytes, hex.

    Raises:
        InputError, MediaError: as `check_input`.
    """
    check_input(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def probe_video(path: Path) -> VideoInfo:
    """Look at a video.

    Raises:
        InputError, MediaError: with the code of what is wrong and what to do.
    """
    check_input(path)
    source = untrusted(path, AUDIO_FORMATS)
    look = _look(
        ffmpeg.merge_outputs(
            ffmpeg.output(source["V:0"], "-", format="null", vf="showinfo=checksum=0", **{"frames:v": 1}),
            ffmpeg.output(
                source["V:0"], "pipe:1", format="framecrc", **{"c:v": "copy", "frames:v": _RATE_PACKETS}
            ),
        )
    )
    _refuse_unopened(path, look, "video")
    picture = next((s for s in look.streams if ": Video: " in s and "(attached pic)" not in s), None)
    if picture is None:
        raise MediaError(
            ErrorCode.MEDIA_NO_VIDEO, f"{path.name!r} has no picture, only sound: give a file with video."
        )
    if look.container not in VIDEO_FORMATS:
        raise _unaccepted(path, "video")
    shown = look.first(r"pts: *(?:-?\d+|NOPTS) .* fmt:(\S+) .*?sar:(\d+)/(\d+) s:(\d+)x(\d+)")
    if shown is None:
        raise MediaError(
            ErrorCode.MEDIA_TRUNCATED if look.cut_off else ErrorCode.MEDIA_FAILED,
            f"No picture of {path.name!r} can be decoded ({last_words(look.messages)}): the file is cut off "
            "or damaged, or its codec is not supported. Re-encode it as mp4.",
        )
    pixels, sar, width, height = shown[0], (int(shown[1]), int(shown[2])), int(shown[3]), int(shown[4])
    tags = _tags(look)
    _refuse_pixels(path, pixels, tags, look)
    rgb = _RGB.match(pixels) is not None
    if rgb:  # the decoder's output is converted
        tags |= {"color_space": "bt709", "color_range": "tv"}
    duration_s = _duration(path, look)
    return VideoInfo(
        path=path,
        codec=re.findall(r": Video: (\w+)", picture)[0],
        container=look.container,
        format=_frame_format(width, height, pixels, tags),
        sample_aspect_ratio=Fraction(*sar) if all(sar) else Fraction(1),
        frame_rate=_frame_rate(look),
        duration_s=duration_s,
        rotation_deg=_rotation(look),
        color_space=tags.get("color_space"),
        color_primaries=tags.get("color_primaries"),
        color_transfer=tags.get("color_trc"),
        color_range=tags.get("color_range"),
        audio=_audio(path, duration_s) if any(": Audio: " in s for s in look.streams) else None,
    )


def probe_audio(path: Path) -> AudioInfo:
    """Look at a sound, alone or with a picture.

    Raises:
        InputError, MediaError: with the code of what is wrong and what to do.
    """
    check_input(path)
    info = _audio(path, None)
    if info is None:
        raise MediaError(
            ErrorCode.MEDIA_NO_AUDIO,
            f"{path.name!r} has no sound, or only 0 s of it: give a file with a voice.",
        )
    return info


def _audio(path: Path, duration_s: float | None) -> AudioInfo | None:
    source = untrusted(path, AUDIO_FORMATS)
    look = _look(ffmpeg.output(source["a:0"], "-", format="null", af="ashowinfo", **{"frames:a": 1}))
    _refuse_unopened(path, look, "sound")
    stream = next((s for s in look.streams if ": Audio: " in s), None)
    heard = look.first(r"pts:.* fmt:\S+ channels:(\d+) .*rate:(\d+) nb_samples:[1-9]")
    if stream is None or heard is None:
        return None
    if duration_s is None:
        duration_s = _duration(path, look)
    return AudioInfo(path, re.findall(r": Audio: (\w+)", stream)[0], int(heard[1]), int(heard[0]), duration_s)


# --- one look ---


@dataclass(frozen=True, slots=True)
class _Look:
    """What one short run of FFmpeg said about a file.

    Attributes:
        lines: its messages.
        packets: lines of the framecrc listing.
        messages: the same as `lines` without paths, for errors.
    """

    lines: list[str]
    packets: list[str]
    messages: str

    @property
    def streams(self) -> list[str]:
        """The input's streams; what a file's own tags hold is indented deeper."""
        return [line for line in self.lines if re.match(r"\[info\]   Stream #0:\d+", line)]

    @property
    def container(self) -> str:
        return next(
            (re.findall(r"Input #0, (.*?), from ", s)[0] for s in self.lines if "] Input #0, " in s), ""
        )

    @property
    def cut_off(self) -> bool:
        return any(text in self.messages for text in CUT_OFF)

    def first(self, pattern: str) -> tuple[str, ...] | None:
        """Groups of the first line of a showinfo filter that has the pattern."""
        for line in self.lines:
            if line.startswith("[Parsed_") and (found := re.search(pattern, line)):
                return found.groups()
        return None


def _look(stream: Any) -> _Look:
    lines: list[str] = []
    with Child(stream, reads=True, cpu_s=LIMITS.probe_cpu_s, loglevel="info", on_line=lines.append) as child:
        listing = b""
        while data := child.read_some(1 << 16):
            listing += data
        child.finish(LIMITS.probe_wall_s)
        messages = child.messages
    return _Look(lines, listing.decode("ascii", errors="replace").splitlines(), messages)


def _refuse_unopened(path: Path, look: _Look, wanted: str) -> None:
    """Raise for a file that FFmpeg did not open, and for pictures beyond the limit."""
    name = path.name
    if "exceeds specified max pixel count" in look.messages or "Picture size" in look.messages:
        raise MediaError(
            ErrorCode.MEDIA_TOO_LARGE,
            f"The pictures of {name!r} have more than {LIMITS.max_pixels / 1e6:.0f} million pixels (8K): "
            "scale the video down first.",
        )
    if look.container:
        return
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(_IMAGES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        raise MediaError(
            ErrorCode.MEDIA_NOT_RECOGNISED, f"{name!r} is an image, not a {wanted}: give a {wanted} file."
        )
    if "not on whitelist" in look.messages:
        raise _unaccepted(path, wanted)
    if head[4:8] in _MP4_ATOMS or head.startswith(b"\x1a\x45\xdf\xa3"):
        raise MediaError(
            ErrorCode.MEDIA_TRUNCATED,
            f"{name!r} is cut off or damaged: its index is missing. It was probably not copied or "
            "recorded to the end; copy it again.",
        )
    raise MediaError(
        ErrorCode.MEDIA_NOT_RECOGNISED,
        f"{name!r} is not a {wanted} file that can be read: its content is something else, or damaged.",
    )


def image_refused(path: Path, messages: str) -> MediaError:
    """The error for a file that was to be a mask image, from FFmpeg's messages about it."""
    name = path.name
    if "max pixel count" in messages or "Picture size" in messages:
        return MediaError(ErrorCode.MEDIA_TOO_LARGE, f"The image {name!r} is larger than 8K: scale it down.")
    return MediaError(ErrorCode.MEDIA_NOT_RECOGNISED, f"{name!r} is not a png, jpeg, webp or bmp image.")


def _unaccepted(path: Path, wanted: str) -> MediaError:
    kinds = "mp4, mov, mkv or webm" + (", wav, mp3, flac or ogg" if wanted == "sound" else "")
    return MediaError(
        ErrorCode.MEDIA_FORMAT_REFUSED,
        f"{path.name!r} is of a kind that is not accepted as {wanted}: convert it to {kinds}.",
    )


def _refuse_pixels(path: Path, pixels: str, tags: dict[str, str], look: _Look) -> None:
    hdr = _HDR_TRANSFERS.get(tags.get("color_trc", ""))
    if any(re.search(r"DOVI configuration record: .*profile: 5\b", line) for line in look.lines):
        hdr = "Dolby Vision"
    if hdr is not None:
        raise MediaError(
            ErrorCode.MEDIA_UNSUPPORTED_PIXELS,
            f"{path.name!r} is HDR video ({hdr}), which the models do not know: convert it to SDR (BT.709) "
            "with tone mapping first.",
        )
    components = _pixel_formats().get(pixels, (3, 8, 8))[0]
    alpha_mode = any(re.match(r"\[info\] +alpha_mode +: 1", line, re.IGNORECASE) for line in look.lines)
    if alpha_mode or components in (2, 4):
        raise MediaError(
            ErrorCode.MEDIA_UNSUPPORTED_PIXELS,
            f"{path.name!r} has an alpha channel, which would be lost: put it over a background first, for "
            "example with ffmpeg's overlay filter.",
        )
    if tags.get("color_space", "bt709") not in (*_MATRICES, "gbr") or pixels.startswith("xyz"):
        raise MediaError(
            ErrorCode.MEDIA_UNSUPPORTED_PIXELS,
            f"{path.name!r} has an unsupported colour space ({tags.get('color_space', pixels)}): convert it "
            "to BT.709 first.",
        )


def _too_long(path: Path, duration_s: float) -> MediaError:
    return MediaError(
        ErrorCode.MEDIA_TOO_LARGE,
        f"{path.name!r} lasts {duration_s / 3600:.1f} hours, {LIMITS.max_duration_s / 3600:.0f} are allowed: "
        "cut it into parts.",
    )


# --- single facts ---


def _tags(look: _Look) -> dict[str, str]:
    """Colour tags of the first frame, without those that say nothing."""
    for line in look.lines:
        if line.startswith("[Parsed_") and " color_range:" in line:
            pairs = dict(re.findall(r"(color_\w+):(\S+)", line))
            return {key: value for key, value in pairs.items() if value not in ("unknown", "reserved")}
    return {}


def _duration(path: Path, look: _Look) -> float:
    """Seconds; read from the packets where the header does not say, as in recordings by browsers."""
    for line in look.lines:
        if found := re.match(r"\[info\]   Duration: (\d+):(\d\d):(\d\d\.\d+)", line):
            duration_s = int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])
            break
    else:
        duration_s = _measured_duration(path)
    if duration_s > LIMITS.max_duration_s:
        raise _too_long(path, duration_s)
    return duration_s


def _measured_duration(path: Path) -> float:
    """Where the last packet ends; nothing is decoded."""
    copied = ffmpeg.output(untrusted(path, AUDIO_FORMATS), "-", format="null", c="copy")
    end_s = 0.0
    with Child(copied.global_args("-progress", "pipe:1"), reads=True) as child:
        report = b""
        while data := child.read_some(1 << 16):
            report = (report + data)[-4096:]
        child.finish()
    for found in re.findall(rb"out_time_us=(\d+)", report):
        end_s = int(found) / 1e6
    return end_s


def _rotation(look: _Look) -> int:
    for line in look.lines:
        if found := re.search(r"display ?matrix: rotation of (-?\d+(?:\.\d+)?) deg", line, re.IGNORECASE):
            return round(float(found[1])) % 360
    return 0


def _frame_rate(look: _Look) -> Fraction:
    """The header's rate where the packets agree with it, else the packets' own."""
    config = look.first(r"frame_rate: (\d+)/(\d+)")
    header = (
        Fraction(int(config[0]), int(config[1])) if config and config[0] != "0" and config[1] != "0" else None
    )
    seen = _packet_rate(look.packets)
    if seen is None:
        return snap_rate(header) if header is not None and header <= 240 else Fraction(25)
    if header is not None and abs(header - seen) < seen / 100:
        return snap_rate(header)
    return snap_rate(seen)


def _packet_rate(listing: Iterable[str]) -> Fraction | None:
    """One over the usual distance of frames: the mean of those distances that are near the median."""
    base, times = Fraction(1), []
    for line in listing:
        if found := re.match(r"#tb 0: (\d+)/(\d+)", line):
            base = Fraction(int(found[1]), int(found[2]))
        elif found := re.match(r"0, *-?\d+, *(-?\d+),", line):
            times.append(int(found[1]))
    times.sort()
    gaps = [after - before for before, after in itertools.pairwise(times) if after > before]
    if not gaps:
        return None
    median = statistics.median(gaps)
    usual = [gap for gap in gaps if 0.5 * median < gap < 1.5 * median]
    return 1 / (base * Fraction(sum(usual), len(usual)))


def _pixel_formats() -> dict[str, tuple[int, int, int]]:
    """FFmpeg's own table: name → (components, bits per pixel, bits of the first component)."""
    rows = re.findall(r"^[I.][O.][H.][P.][B.] (\w+) +(\d) +(\d+) +(\d+)", ask("-pix_fmts"), re.MULTILINE)
    return {name: (int(components), int(bits), int(depth)) for name, components, bits, depth in rows}


def _frame_format(width: int, height: int, pixels: str, tags: dict[str, str]) -> FrameFormat:
    """The planar format nearest to what the decoder gives."""
    components, bits, depth = _pixel_formats().get(pixels, (3, 12, 8))
    if _RGB.match(pixels):
        chroma = Chroma.C444
    elif components == 1 or (2 * bits == 3 * depth and "411" not in pixels):
        chroma = Chroma.C420
    elif bits == 2 * depth and "440" not in pixels:
        chroma = Chroma.C422
    else:
        chroma = Chroma.C444
    guess = Matrix.BT709 if min(width, height) >= 720 else Matrix.BT601
    return FrameFormat(
        width,
        height,
        chroma,
        bit_depth=8 if depth <= 8 else 10,
        matrix=_MATRICES.get(tags.get("color_space", ""), guess),
        full_range=tags.get("color_range") == "pc",
    )
