"""Describe a file before any heavy work, or refuse it with the reason.

The FFmpeg program alone is enough (no ffprobe): its listing names the streams, `showinfo` describes the first
decoded frame, and the timestamps of copied packets give the frame rate.
"""

from __future__ import annotations

import errno
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
from lipsync_engine.media.hdr import HdrColor, can_tone_map, hdr_color
from lipsync_engine.media.process import (
    AUDIO_FORMATS,
    DEFAULT_LIMITS,
    TRUNCATION_MESSAGES,
    VIDEO_FORMATS,
    FfmpegProcess,
    MediaLimits,
    run_query,
    stderr_tail,
    untrusted_input,
)
from lipsync_engine.media.rates import snap_rate
from lipsync_engine.media.yuv import Chroma, FrameFormat, Matrix
from lipsync_engine.params import HdrMode
from lipsync_engine.utils import file_sha256


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """Properties of the first audio track of a file.

    Attributes:
        path: the file.
        codec: FFmpeg's name.
        sample_rate: Hz.
        channels: number of channels.
        duration_s: length of the file to 10 ms, from its header or its packets.
    """

    path: Path
    codec: str
    sample_rate: int
    channels: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """Properties of the first video track of a file.

    Attributes:
        path: the file.
        codec, container: FFmpeg's names.
        format: frames as this package decodes them: displayed (rotation applied), planar YUV, at most 10
            bits. RGB becomes BT.709 4:4:4, HDR is tone-mapped to BT.709 4:2:0 of 10 bits. Untagged colour is
            taken as BT.601 below 720 lines, else as BT.709, limited range.
        sample_aspect_ratio: width of a pixel divided by its height.
        frame_rate: nominal; the usual rate where it varies.
        duration_s: length of the file to 10 ms, from its header or its packets.
        rotation_deg: rotation that the file requests, counter-clockwise; applied on decoding.
        color_space, color_primaries, color_transfer, color_range: FFmpeg's names of the colour tags of
            these frames, None where a tag is missing.
        audio: the first audio track, if any.
        hdr: colour of the source where it is HDR.
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
    hdr: HdrColor | None = None


_PLAYLIST_SIGNATURES = (
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
"""First bytes of files that only name other files; opening them would read what they point to."""

_IMAGE_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")

_REFUSED_FORMATS = (
    (rb"RIFF....AVI ", "an AVI file"),
    (rb"FLV", "an FLV file"),
    (rb"\x30\x26\xb2\x75", "a Windows Media file"),
    (rb"\x47", "an MPEG transport stream"),
    (rb"\x00\x00\x01\xba", "an MPEG program stream"),
)
"""First bytes of video formats that are not accepted, and their names."""

_EXAMPLE_COMMANDS = {"video": "`ffmpeg -i IN OUT.mp4`", "audio": "`ffmpeg -i IN OUT.wav`"}

_MP4_ATOMS = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid")

_MATRICES = {
    "bt709": Matrix.BT709,
    "smpte240m": Matrix.BT709,
    "bt470bg": Matrix.BT601,
    "smpte170m": Matrix.BT601,
    "fcc": Matrix.BT601,
    "bt2020nc": Matrix.BT2020,
    "bt2020c": Matrix.BT2020,
}

_RGB_FORMAT = re.compile(r"(gbr|rgb|bgr|0rgb|0bgr|x2rgb|x2bgr|pal8|mono)")

_RATE_PACKETS = 120
"""Packets whose timestamps are read: enough to tell 29.97 from 30 fps in milliseconds."""


def check_input(path: Path) -> None:
    """Require a readable, non-empty file that is no playlist of other files.

    Raises:
        InputError, MediaError: with a code for each violation.
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
        raise InputError(ErrorCode.INPUT_EMPTY, f"{name!r} is empty: copy it again completely.")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(_PLAYLIST_SIGNATURES):
        raise MediaError(
            ErrorCode.MEDIA_FORMAT_REFUSED,
            f"{name!r} is a playlist or script that names other files: give the media file itself.",
        )


def content_hash(path: Path) -> str:
    """Compute the SHA-256 of the file's bytes, in hex.

    Raises:
        InputError, MediaError: as `check_input`.
    """
    check_input(path)
    return file_sha256(path)


def probe_video(path: Path, limits: MediaLimits = DEFAULT_LIMITS) -> VideoInfo:
    """Read the properties of a video.

    Raises:
        InputError, MediaError: with the code of the problem and a remedy.
    """
    check_input(path)
    source = untrusted_input(path, AUDIO_FORMATS)
    result = _probe_raw(
        ffmpeg.merge_outputs(
            ffmpeg.output(source["V:0"], "-", format="null", vf="showinfo=checksum=0", **{"frames:v": 1}),
            ffmpeg.output(
                source["V:0"], "pipe:1", format="framecrc", **{"c:v": "copy", "frames:v": _RATE_PACKETS}
            ),
        ),
        limits,
    )
    _check_opened(path, result, "video")
    stream = next((s for s in result.streams if ": Video: " in s and "(attached pic)" not in s), None)
    if stream is None:
        raise MediaError(
            ErrorCode.MEDIA_NO_VIDEO,
            f"{path.name!r} has audio only, no video track: give a file with a video track.",
        )
    if result.container not in VIDEO_FORMATS:
        raise _format_error(path, "video")
    frame = result.match_filter(r"pts: *(?:-?\d+|NOPTS) .* fmt:(\S+) .*?sar:(\d+)/(\d+) s:(\d+)x(\d+)")
    if frame is None:
        _check_codec(path, result, "video")
        raise MediaError(
            ErrorCode.MEDIA_TRUNCATED if result.is_truncated else ErrorCode.MEDIA_FAILED,
            f"No frame of {path.name!r} can be decoded ({stderr_tail(result.messages)}): the file is "
            "truncated or damaged, or its codec is not supported. Re-encode it as mp4.",
        )
    pix_fmt, sar, width, height = frame[0], (int(frame[1]), int(frame[2])), int(frame[3]), int(frame[4])
    tags = _color_tags(result)
    _check_pixels(path, pix_fmt, tags, result)
    hdr = hdr_color(tags)
    frame_format = _frame_format(width, height, pix_fmt, tags)
    if hdr is not None:
        frame_format = FrameFormat(width, height, Chroma.C420, 10, Matrix.BT709, full_range=False)
        tags = dict.fromkeys(("color_space", "color_primaries", "color_trc"), "bt709") | {"color_range": "tv"}
    elif _RGB_FORMAT.match(pix_fmt):  # the decoder's output is converted
        tags |= {"color_space": "bt709", "color_range": "tv"}
        frame_format = _frame_format(width, height, pix_fmt, tags)
    duration_s = _read_duration(path, result, limits)
    has_audio = any(": Audio: " in s for s in result.streams)
    return VideoInfo(
        path=path,
        codec=re.findall(r": Video: (\w+)", stream)[0],
        container=result.container,
        format=frame_format,
        sample_aspect_ratio=Fraction(*sar) if all(sar) else Fraction(1),
        frame_rate=_frame_rate(result),
        duration_s=duration_s,
        rotation_deg=_read_rotation(result),
        color_space=tags.get("color_space"),
        color_primaries=tags.get("color_primaries"),
        color_transfer=tags.get("color_trc"),
        color_range=tags.get("color_range"),
        audio=_probe_audio_track(path, limits, duration_s) if has_audio else None,
        hdr=hdr,
    )


def measure_video_track(path: Path) -> float:
    """Return the length of the first video track in seconds; the file's other tracks may be longer.

    Raises:
        MediaError: as `probe_video`, which comes first.
    """
    return _measure_duration(untrusted_input(path, AUDIO_FORMATS)["V:0"])


def check_hdr(info: VideoInfo, mode: HdrMode) -> None:
    """Refuse HDR video if the mode is REFUSE.

    Raises:
        MediaError: MEDIA_UNSUPPORTED_PIXELS.
    """
    if info.hdr is not None and mode is HdrMode.REFUSE:
        raise MediaError(
            ErrorCode.MEDIA_UNSUPPORTED_PIXELS,
            f"{info.path.name!r} is HDR video ({info.hdr.name}), and hdr=refuse: use hdr=tonemap, or convert "
            "the video to SDR (BT.709) first.",
        )


def probe_audio(path: Path, limits: MediaLimits = DEFAULT_LIMITS) -> AudioInfo:
    """Read the properties of the first audio track of an audio or video file.

    Raises:
        InputError, MediaError: with the code of the problem and a remedy.
    """
    check_input(path)
    info = _probe_audio_track(path, limits)
    if info is None:
        raise MediaError(
            ErrorCode.MEDIA_NO_AUDIO,
            f"{path.name!r} has no audio, or only 0 s of it: give a file with a voice.",
        )
    return info


def _probe_audio_track(path: Path, limits: MediaLimits, duration_s: float | None = None) -> AudioInfo | None:
    source = untrusted_input(path, AUDIO_FORMATS)
    result = _probe_raw(
        ffmpeg.output(source["a:0"], "-", format="null", af="ashowinfo", **{"frames:a": 1}), limits
    )
    _check_opened(path, result, "audio")
    stream = next((s for s in result.streams if ": Audio: " in s), None)
    frame = result.match_filter(r"pts:.* fmt:\S+ channels:(\d+) .*rate:(\d+) nb_samples:[1-9]")
    if stream is None or frame is None:
        if duration_s is None:
            _check_codec(path, result, "audio")
        return None
    if duration_s is None:
        duration_s = _read_duration(path, result, limits)
    codec = re.findall(r": Audio: (\w+)", stream)[0]
    return AudioInfo(path, codec, sample_rate=int(frame[1]), channels=int(frame[0]), duration_s=duration_s)


# --- one short run of FFmpeg ---


@dataclass(frozen=True, slots=True)
class _ProbeResult:
    """Output of one short run of FFmpeg on a file.

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
        """Lines of the input's streams; the file's own metadata is indented deeper."""
        return [line for line in self.lines if re.match(r"\[info\]   Stream #0:\d+", line)]

    @property
    def container(self) -> str:
        return next(
            (re.findall(r"Input #0, (.*?), from ", s)[0] for s in self.lines if "] Input #0, " in s), ""
        )

    @property
    def is_truncated(self) -> bool:
        return any(text in self.messages for text in TRUNCATION_MESSAGES)

    def match_filter(self, pattern: str) -> tuple[str, ...] | None:
        """Return the groups of the first line of a showinfo filter that matches the pattern."""
        for line in self.lines:
            if line.startswith("[Parsed_") and (match := re.search(pattern, line)):
                return match.groups()
        return None


def _probe_raw(stream: Any, limits: MediaLimits) -> _ProbeResult:
    lines: list[str] = []
    with FfmpegProcess(
        stream,
        pipe_stdout=True,
        cpu_s=limits.probe_cpu_s,
        loglevel="info",
        on_line=lines.append,
        limits=limits,
    ) as process:
        listing = b""
        while data := process.read_some(1 << 16):
            listing += data
        process.finish(limits.probe_wall_s)
        messages = process.messages
    return _ProbeResult(lines, listing.decode("ascii", errors="replace").splitlines(), messages)


def _check_opened(path: Path, result: _ProbeResult, kind: str) -> None:
    """Raise for a file that FFmpeg did not open, and for frames beyond the pixel limit."""
    name = path.name
    if "exceeds specified max pixel count" in result.messages or "Picture size" in result.messages:
        raise MediaError(
            ErrorCode.MEDIA_TOO_LARGE,
            f"The frames of {name!r} have more than {DEFAULT_LIMITS.max_pixels / 1e6:.0f} million pixels "
            "(8K): scale the video down first.",
        )
    if result.container:
        return
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"GIF8") and kind == "video":
        raise MediaError(
            ErrorCode.MEDIA_NOT_RECOGNISED,
            f"{name!r} is a GIF image, not video: convert it to mp4, for example with "
            f"{_EXAMPLE_COMMANDS['video']}.",
        )
    if head.startswith(_IMAGE_SIGNATURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        raise MediaError(
            ErrorCode.MEDIA_NOT_RECOGNISED, f"{name!r} is an image, not {kind}: give {_file_of(kind)}."
        )
    if "Format not on whitelist" in result.messages:
        raise _format_error(path, kind)
    if head[4:8] in _MP4_ATOMS or head.startswith(b"\x1a\x45\xdf\xa3"):
        raise MediaError(
            ErrorCode.MEDIA_TRUNCATED,
            f"{name!r} is truncated or damaged: its index is missing. It was probably not copied or "
            "recorded to the end; copy it again.",
        )
    raise MediaError(
        ErrorCode.MEDIA_NOT_RECOGNISED,
        f"{name!r} is not {_file_of(kind)} that FFmpeg can read: its content is something else, or damaged. "
        "Give another file, or re-encode it.",
    )


def _check_codec(path: Path, result: _ProbeResult, kind: str) -> None:
    """Refuse a track that was not decoded because of its codec.

    Raises:
        MediaError: MEDIA_FORMAT_REFUSED.
    """
    if (refused := re.search(r"Codec \((\w+)\) not on whitelist", result.messages)) is not None:
        raise MediaError(
            ErrorCode.MEDIA_FORMAT_REFUSED,
            f"The {kind} of {path.name!r} has the codec {refused[1]}, which is not accepted: convert it, for "
            f"example with {_EXAMPLE_COMMANDS[kind]}.",
        )


def _file_of(kind: str) -> str:
    return "an audio file" if kind == "audio" else f"a {kind} file"


def image_error(path: Path, messages: str) -> MediaError:
    """Return the error for a file that is not a readable image, from FFmpeg's messages about it."""
    name = path.name
    if "max pixel count" in messages or "Picture size" in messages:
        return MediaError(ErrorCode.MEDIA_TOO_LARGE, f"The image {name!r} is larger than 8K: scale it down.")
    return MediaError(
        ErrorCode.MEDIA_NOT_RECOGNISED, f"{name!r} is not a png, jpeg, webp or bmp image: convert it to one."
    )


def _format_error(path: Path, kind: str) -> MediaError:
    formats = "mp4, mov, mkv or webm" + (", wav, mp3, flac or ogg" if kind == "audio" else "")
    with path.open("rb") as file:
        head = file.read(16)
    names = (name for signature, name in _REFUSED_FORMATS if re.match(signature, head, re.DOTALL))
    return MediaError(
        ErrorCode.MEDIA_FORMAT_REFUSED,
        f"{path.name!r} is {next(names, 'of a kind')}, which is not accepted for {kind}: convert it to "
        f"{formats}, for example with {_EXAMPLE_COMMANDS[kind]}.",
    )


def _check_pixels(path: Path, pix_fmt: str, tags: dict[str, str], result: _ProbeResult) -> None:
    """Raise for HDR that cannot be tone-mapped, alpha and unknown colour spaces."""
    if any(re.search(r"DOVI configuration record: .*profile: 5\b", line) for line in result.lines):
        raise MediaError(
            ErrorCode.MEDIA_UNSUPPORTED_PIXELS,
            f"{path.name!r} is Dolby Vision (profile 5), whose colours FFmpeg cannot tone-map: convert it to "
            "SDR (BT.709) first.",
        )
    hdr = hdr_color(tags)
    if hdr is not None and not can_tone_map():
        raise MediaError(
            ErrorCode.MEDIA_UNSUPPORTED_PIXELS,
            f"{path.name!r} is HDR video ({hdr.name}), and this FFmpeg has no zscale filter for tone "
            "mapping: set LIPSYNC_FFMPEG to a build with libzimg, or convert the video to SDR first.",
        )
    components = _pixel_formats().get(pix_fmt, (3, 8, 8))[0]
    alpha_mode = any(re.match(r"\[info\] +alpha_mode +: 1", line, re.IGNORECASE) for line in result.lines)
    if alpha_mode or components in (2, 4):
        raise MediaError(
            ErrorCode.MEDIA_UNSUPPORTED_PIXELS,
            f"{path.name!r} has an alpha channel, which would be lost: put it over a background first, for "
            "example with ffmpeg's overlay filter.",
        )
    if tags.get("color_space", "bt709") not in (*_MATRICES, "gbr") or pix_fmt.startswith("xyz"):
        raise MediaError(
            ErrorCode.MEDIA_UNSUPPORTED_PIXELS,
            f"{path.name!r} has an unsupported colour space ({tags.get('color_space', pix_fmt)}): convert it "
            "to BT.709 first.",
        )


def _duration_error(path: Path, duration_s: float, limits: MediaLimits) -> MediaError:
    return MediaError(
        ErrorCode.MEDIA_TOO_LARGE,
        f"{path.name!r} lasts {duration_s / 3600:.1f} hours, {limits.max_duration_s / 3600:.0f} are allowed: "
        "cut it into parts.",
    )


# --- single properties ---


def _color_tags(result: _ProbeResult) -> dict[str, str]:
    """Return the colour tags of the first frame, without unknown values."""
    for line in result.lines:
        if line.startswith("[Parsed_") and " color_range:" in line:
            pairs = dict(re.findall(r"(color_\w+):(\S+)", line))
            return {key: value for key, value in pairs.items() if value not in ("unknown", "reserved")}
    return {}


def _read_duration(path: Path, result: _ProbeResult, limits: MediaLimits) -> float:
    """Return the length in seconds; the packets are read where the header has none (browser recordings)."""
    for line in result.lines:
        if match := re.match(r"\[info\]   Duration: (\d+):(\d\d):(\d\d\.\d+)", line):
            duration_s = int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
            break
    else:
        duration_s = _measure_duration(untrusted_input(path, AUDIO_FORMATS))
    if duration_s > limits.max_duration_s:
        raise _duration_error(path, duration_s, limits)
    return duration_s


def _measure_duration(source: Any) -> float:
    """Return the end of the last packet of FFmpeg's input, or one of its tracks; nothing is decoded."""
    copy = ffmpeg.output(source, "-", format="null", c="copy")
    end_s = 0.0
    with FfmpegProcess(copy.global_args("-progress", "pipe:1"), pipe_stdout=True) as process:
        report = b""
        while data := process.read_some(1 << 16):
            report = (report + data)[-4096:]
        process.finish()
    for microseconds in re.findall(rb"out_time_us=(\d+)", report):
        end_s = int(microseconds) / 1e6
    return end_s


def _read_rotation(result: _ProbeResult) -> int:
    for line in result.lines:
        if match := re.search(r"display ?matrix: rotation of (-?\d+(?:\.\d+)?) deg", line, re.IGNORECASE):
            return round(float(match[1])) % 360
    return 0


def _frame_rate(result: _ProbeResult) -> Fraction:
    """Return the header's rate where the packets agree with it, else the rate of the packets."""
    config = result.match_filter(r"frame_rate: (\d+)/(\d+)")
    header = (
        Fraction(int(config[0]), int(config[1])) if config and config[0] != "0" and config[1] != "0" else None
    )
    measured = _packet_rate(result.packets)
    if measured is None:
        return snap_rate(header) if header is not None and header <= 240 else Fraction(25)
    if header is not None and abs(header - measured) < measured / 100:
        return snap_rate(header)
    return snap_rate(measured)


def _packet_rate(listing: Iterable[str]) -> Fraction | None:
    """Return the reciprocal of the usual frame distance: the mean of the distances near the median."""
    time_base, times = Fraction(1), []
    for line in listing:
        if match := re.match(r"#tb 0: (\d+)/(\d+)", line):
            time_base = Fraction(int(match[1]), int(match[2]))
        elif match := re.match(r"0, *-?\d+, *(-?\d+),", line):
            times.append(int(match[1]))
    times.sort()
    gaps = [after - before for before, after in itertools.pairwise(times) if after > before]
    if not gaps:
        return None
    median = statistics.median(gaps)
    usual = [gap for gap in gaps if 0.5 * median < gap < 1.5 * median]
    return 1 / (time_base * Fraction(sum(usual), len(usual)))


def _pixel_formats() -> dict[str, tuple[int, int, int]]:
    """Return FFmpeg's own table: name → (components, bits per pixel, bits of the first component)."""
    rows = re.findall(
        r"^[I.][O.][H.][P.][B.] (\w+) +(\d) +(\d+) +(\d+)", run_query("-pix_fmts"), re.MULTILINE
    )
    return {name: (int(components), int(bits), int(depth)) for name, components, bits, depth in rows}


def _frame_format(width: int, height: int, pix_fmt: str, tags: dict[str, str]) -> FrameFormat:
    """Return the planar format nearest to the decoder's output."""
    components, bits, depth = _pixel_formats().get(pix_fmt, (3, 12, 8))
    if _RGB_FORMAT.match(pix_fmt):
        chroma = Chroma.C444
    elif components == 1 or (2 * bits == 3 * depth and "411" not in pix_fmt):
        chroma = Chroma.C420
    elif bits == 2 * depth and "440" not in pix_fmt:
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
