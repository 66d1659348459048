"""Encode frames to segments, join them with the user's own audio, and write a comparison.

Video is encoded once. Segments are joined by copying their packets. The number of threads is fixed and
nothing of the machine enters the files, so the same frames give the same bytes everywhere. The exception is
x264 itself, which differs once in some hundred files (dev/log.md).
"""

from __future__ import annotations

import errno
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ffmpeg
import numpy as np
import numpy.typing as npt

from lipsync_engine.errors import ErrorCode, MediaError, ParameterError, ResourceError
from lipsync_engine.media.hdr import tone_map
from lipsync_engine.media.probe import AudioInfo, VideoInfo, probe_audio, probe_video
from lipsync_engine.media.process import (
    AUDIO_FORMATS,
    VIDEO_FORMATS,
    FfmpegProcess,
    file_url,
    remove_on_error,
    to_output_error,
    untrusted_input,
    write_file,
)
from lipsync_engine.media.yuv import Chroma, Frame, FrameFormat
from lipsync_engine.params import Quality, VideoCodec
from lipsync_engine.utils import ImageArray

OUTPUT_SUFFIXES = frozenset({".mp4", ".mov", ".mkv"})

X264: dict[Quality, dict[str, Any]] = {
    Quality.DEFAULT: {"crf": 10, "preset": "veryfast", "tune": "psnr"},
    Quality.LOSSLESS: {"qp": 0, "preset": "veryfast"},
}
"""libx264 settings. The default stays above 45 dB in every plane, also with camera grain. Psychovisual
tuning, which trades fidelity for perceived sharpness, would cost bits and 1 dB there."""

X265: dict[Quality, str] = {Quality.DEFAULT: "crf=6", Quality.LOSSLESS: "lossless=1"}
X265_PARAMS = "log-level=error:info=0:open-gop=0:pools=4:frame-threads=1"
"""libx265 settings: no text about the encoder in the file, and the same bytes on any number of cores."""

INTERMEDIATE_CRF = 6
"""For videos that will be encoded again: its loss is far below that of the second encode."""

ENCODER_THREADS = 4

KEY_FRAME_S = 2.0
"""Distance of key frames, to which players seek."""

REORDERED_FRAMES = 2
"""Frames by which libx264 and libx265 (with their pyramids of B-frames) reorder frames."""

MIN_TIMESCALE = 10_000
"""Least number of ticks per second of a track: finer than any player rounds."""

_MP4_AUDIO = {"aac", "mp3", "ac3", "eac3", "alac"}
_PCM = {"pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le"}

COPIED_AUDIO = {
    ".mp4": _MP4_AUDIO | {"opus", "flac"},
    ".mov": _MP4_AUDIO | _PCM,
    ".mkv": _MP4_AUDIO | _PCM | {"opus", "flac", "vorbis"},
}
"""Audio codecs that each container takes unchanged."""

AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
AAC_BITRATE = 256_000
AAC_MAX_BITS_PER_SAMPLE = 5
"""Per channel; the format's own limit is 6."""

COMPARISON_WIDTH, COMPARISON_GAP = 1280, 8


class _Encoder:
    """A running encoder and the file that it writes. A context manager; on exit the file is complete.

    Args:
        path: .mp4 to write; removed again when the block ends with an exception.
        stream: built by ffmpeg-python, reading raw frames from its standard input.
    """

    def __init__(self, path: Path, stream: Any) -> None:
        self._path = path
        self._process = FfmpegProcess(stream, pipe_stdin=True, memory_bytes=0)

    def _write_planes(self, *planes: npt.NDArray[Any]) -> None:
        """Write one frame.

        Raises:
            ResourceError: DISK_FULL, OUTPUT_NOT_WRITABLE. MediaError: MEDIA_FAILED, MEDIA_TIMEOUT.
        """
        try:
            for plane in planes:
                self._process.write(np.ascontiguousarray(plane).data)
        except BrokenPipeError:
            self._raise_for_status(self._process.finish() or 1)

    def _raise_for_status(self, status: int) -> None:
        error = to_output_error(
            self._process, status, self._path, "The result could not be encoded ({reason}): run again."
        )
        if error is not None:
            raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._process:
            if error is None:
                with remove_on_error(self._path):
                    self._raise_for_status(self._process.finish(watch=self._path))
                return
        self._path.unlink(missing_ok=True)


class SegmentWriter(_Encoder):
    """An encoder of frames to one segment file. A context manager, as `_Encoder`.

    Args:
        path: .mp4 to write; removed again when the block ends with an exception.
        info: source, whose size, pixel shape and colour tags the segment has.
        fps: frame rate.
        quality: of the encode.
        codec: H264 encodes sources of more than 8 bits with 8, dithered, unless `quality` is LOSSLESS.
        max_short_side: see `output_size`.
    """

    def __init__(
        self,
        path: Path,
        info: VideoInfo,
        fps: Fraction,
        quality: Quality,
        *,
        codec: VideoCodec = VideoCodec.H264,
        max_short_side: int | None = None,
    ) -> None:
        fmt = info.format
        width, height = output_size(fmt, max_short_side)
        pix_fmt = encoded_format(fmt, width, height, quality, codec)
        frames = ffmpeg.input(
            "pipe:0",
            format="rawvideo",
            pix_fmt=fmt.pix_fmt,
            video_size=(fmt.width, fmt.height),
            framerate=_rate_text(fps),
        )
        if (width, height) != (fmt.width, fmt.height):
            frames = frames.filter("scale", width, height, flags="bicubic")
        if fmt.bit_depth > 8 and not pix_fmt.endswith("10le"):
            # An ordered pattern: what a sample becomes depends on itself and its place alone.
            frames = frames.filter("scale", flags="bicubic+accurate_rnd+full_chroma_int", sws_dither="bayer")
            frames = frames.filter("format", pix_fmt)
        encoder: dict[str, Any]
        if codec is VideoCodec.HEVC10:
            encoder = {
                "vcodec": "libx265",
                "preset": "veryfast",
                "tune": "psnr",
                "tag:v": "hvc1",
                "x265-params": f"{X265_PARAMS}:{X265[quality]}",
            }
        else:
            encoder = {"vcodec": "libx264", "threads": ENCODER_THREADS, "flags": "+cgop", **X264[quality]}
        stream = ffmpeg.output(
            _with_tags(frames, info),
            file_url(path),
            format="mp4",
            pix_fmt=pix_fmt,
            g=round(KEY_FRAME_S * fps),
            fflags="+bitexact",
            map_metadata=-1,
            video_track_timescale=_timescale(fps),
            **encoder,
        )
        super().__init__(path, stream)

    def write(self, frame: Frame) -> None:
        """Append a frame.

        Raises:
            ResourceError: DISK_FULL, OUTPUT_NOT_WRITABLE. MediaError: MEDIA_FAILED, MEDIA_TIMEOUT.
        """
        self._write_planes(*frame.planes())


def encoded_format(fmt: FrameFormat, width: int, height: int, quality: Quality, codec: VideoCodec) -> str:
    """Return FFmpeg's name of the pixel format that is encoded.

    8-bit sources keep their format. Sources of more bits become 8-bit 4:2:0, which every player decodes; with
    HEVC10 all become 10-bit 4:2:0 (Main 10). LOSSLESS keeps the source's samples instead.

    Args:
        fmt: of the source.
        width, height: of the result.
    """
    step_x, step_y = fmt.steps
    chroma = fmt.chroma
    if quality is not Quality.LOSSLESS and (fmt.bit_depth > 8 or codec is VideoCodec.HEVC10):
        chroma, step_x, step_y = Chroma.C420, 2, 2
    if width % step_x or height % step_y:  # neither encoder takes odd sizes with subsampled colour
        chroma = Chroma.C444
    is_deep = codec is VideoCodec.HEVC10 or (quality is Quality.LOSSLESS and fmt.bit_depth > 8)
    return f"yuv{chroma}p10le" if is_deep else f"yuv{chroma}p"


def output_size(fmt: FrameFormat, max_short_side: int | None) -> tuple[int, int]:
    """Return width and height of the result: the source's, or scaled down to that short side, then even."""
    short_side = min(fmt.width, fmt.height)
    if max_short_side is None or short_side <= max_short_side:
        return fmt.width, fmt.height
    width, height = (
        2 * max(1, round(side * max_short_side / short_side / 2)) for side in (fmt.width, fmt.height)
    )
    return width, height


class RgbVideoWriter(_Encoder):
    """An encoder of RGB frames to a video that will be processed further. A context manager, as `_Encoder`.

    Args:
        path: .mp4 to write; removed again when the block ends with an exception.
        width, height: of the frames, even.
        fps: frame rate.
    """

    def __init__(self, path: Path, width: int, height: int, fps: Fraction) -> None:
        frames = ffmpeg.input(
            "pipe:0",
            format="rawvideo",
            pix_fmt="rgb24",
            video_size=(width, height),
            framerate=_rate_text(fps),
        ).filter("scale", out_color_matrix="bt709", out_range="tv")
        tags = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709", "color_range": "tv"}
        stream = ffmpeg.output(
            frames,
            file_url(path),
            format="mp4",
            vcodec="libx264",
            pix_fmt="yuv420p",
            threads=ENCODER_THREADS,
            fflags="+bitexact",
            **(X264[Quality.DEFAULT] | {"crf": INTERMEDIATE_CRF}),
            **tags,
        )
        super().__init__(path, stream)

    def write(self, frame: ImageArray) -> None:
        """Append uint8 (H, W, 3).

        Raises:
            ResourceError: DISK_FULL, OUTPUT_NOT_WRITABLE. MediaError: MEDIA_FAILED, MEDIA_TIMEOUT.
        """
        self._write_planes(frame)


def check_output(output: Path, inputs: Sequence[Path]) -> None:
    """Require that a video can be written to `output`, before any costly work.

    Args:
        output: file to write, its suffix one of `OUTPUT_SUFFIXES`.
        inputs: files that it must not be.

    Raises:
        ParameterError: its name. ResourceError: OUTPUT_NOT_WRITABLE, DISK_FULL.
    """
    if output.suffix.lower() not in OUTPUT_SUFFIXES:
        suffixes = ", ".join(sorted(OUTPUT_SUFFIXES))
        raise ParameterError(f"The output's name must end in one of {suffixes}; got {output.name!r}.")
    if output.is_dir() or not output.parent.is_dir():
        raise ResourceError(
            ErrorCode.OUTPUT_NOT_WRITABLE,
            f"{output.name!r} is a folder, or its folder does not exist: name a file in an existing folder.",
        )
    if output.exists() and any(path.exists() and output.samefile(path) for path in inputs):
        raise ParameterError(f"{output.name!r} is one of the inputs: choose another name.")
    try:
        with tempfile.NamedTemporaryFile(dir=output.parent, prefix=".lipsync-"):
            pass
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise ResourceError(
            ErrorCode.DISK_FULL if is_full else ErrorCode.OUTPUT_NOT_WRITABLE,
            f"The folder of {output.name!r} is not writable ({error.strerror}): choose another folder.",
        ) from error


def assemble(
    segments: Sequence[Path],
    output: Path,
    info: VideoInfo,
    fps: Fraction,
    quality: Quality,
    *,
    audio: Path | None,
    copies_audio: bool = True,
    codec: VideoCodec = VideoCodec.H264,
) -> None:
    """Join segments and add the audio.

    Every frame lasts the same number of ticks (Matroska rounds times to milliseconds). The audio is not cut,
    and no metadata of the source is copied.

    Args:
        segments: files of `SegmentWriter`, in order.
        output: file to write, none of the inputs; its suffix selects the container.
        info: the source.
        fps: of the segments.
        quality: LOSSLESS also encodes audio lossless where it must be re-encoded.
        audio: file whose first audio track is used; None: no audio.
        copies_audio: copy it packet for packet where the container allows.
        codec: of the segments.

    Raises:
        ResourceError: DISK_FULL, OUTPUT_NOT_WRITABLE. MediaError: MEDIA_FAILED, MEDIA_TIMEOUT.
    """
    check_output(output, (info.path, *segments, *([] if audio is None else [audio])))
    suffix = output.suffix.lower()
    tick = _timescale(fps) // fps.numerator * fps.denominator
    options: dict[str, Any] = {
        "c:v": "copy",
        "bsf:v": f"setts=pts=round(PTS*TB*{_rate_text(fps)})*{tick}:dts=(N-{REORDERED_FRAMES})*{tick}"
        f":duration={tick}:time_base=1/{_timescale(fps)}",
        "map_metadata": -1,
        "map_chapters": -1,
        "fflags": "+bitexact",
        "max_interleave_delta": 0,
    }
    if suffix != ".mkv":
        options |= {"movflags": "+faststart", "video_track_timescale": _timescale(fps)}
        if codec is VideoCodec.HEVC10:  # Apple's players accept HEVC with this tag only
            options["tag:v"] = "hvc1"
    # Links with plain names: the list's own syntax cannot name every file.
    with tempfile.TemporaryDirectory(prefix="lipsync-join-") as folder:
        names = [f"{number}.mp4" for number in range(len(segments))]
        for name, segment in zip(names, segments, strict=True):
            Path(folder, name).symlink_to(segment.absolute())
        listing = Path(folder, "list")
        listing.write_text("".join(f"file {name}\n" for name in names))
        video = ffmpeg.input(
            file_url(listing),
            format="concat",
            auto_convert=0,
            protocol_whitelist="file",
            format_whitelist=f"concat,{VIDEO_FORMATS}",
        )
        streams = [video["v:0"]]
        if audio is not None:
            streams.append(untrusted_input(audio, AUDIO_FORMATS)["a:0"])
            options |= _audio_options(probe_audio(audio), suffix, quality, copies=copies_audio)
        with remove_on_error(output):
            stream = ffmpeg.output(*streams, file_url(output), **options)
            messages = write_file(stream, output, "The segments could not be joined ({reason}): run again.")
            if "Impossible to open" in messages:
                raise MediaError(
                    ErrorCode.MEDIA_FAILED, "A finished segment is damaged or missing: render it again."
                )


MAX_MIX_RATE = 192_000
"""Highest sample rate of a mix, in Hz."""


@dataclass(frozen=True, slots=True)
class AudioClip:
    """A part of a file's audio and its place in a mix.

    Attributes:
        path: file whose first audio track is used.
        start_s: where in the mix it begins.
        duration_s: how much of the track is used, from its start; None: all.
    """

    path: Path
    start_s: float = 0.0
    duration_s: float | None = None


def mix_audio(clips: Sequence[AudioClip], duration_s: float, output: Path) -> None:
    """Mix clips to one track at their own levels; a limiter acts where their sum would clip.

    Args:
        clips: at least one.
        duration_s: of the track; silence fills the gaps.
        output: .flac to write: 16 bit, the highest of the inputs' sample rates up to `MAX_MIX_RATE`, stereo
            unless all are mono. Silence takes next to no space in it: a voice can begin after six hours.

    Raises:
        MediaError: a file has no audio or cannot be decoded. ResourceError: DISK_FULL, OUTPUT_NOT_WRITABLE.
    """
    infos = [probe_audio(clip.path) for clip in clips]
    rate = min(MAX_MIX_RATE, max(info.sample_rate for info in infos))
    layout = "mono" if all(info.channels == 1 for info in infos) else "stereo"
    uses = Counter(clip.path for clip in clips)
    decoded = {}  # each file once, however often it is used
    for path, count in uses.items():
        track = untrusted_input(path, AUDIO_FORMATS)["a:0"]
        track = track.filter("aresample", rate, **{"async": 1, "first_pts": 0})
        copies = track.filter_multi_output("asplit", count)
        decoded[path] = [copies[number] for number in range(count)]
    tracks = []
    for clip in clips:
        track = decoded[clip.path].pop()
        if clip.duration_s is not None:
            track = track.filter("atrim", end=clip.duration_s)
        track = track.filter("aformat", sample_fmts="flt", channel_layouts=layout)
        tracks.append(track.filter("adelay", delays=f"{round(clip.start_s * rate)}S", all=1))
    mix = tracks[0]
    if len(tracks) > 1:
        mix = ffmpeg.filter(tracks, "amix", inputs=len(tracks), normalize=0, duration="longest")
        mix = mix.filter("alimiter", limit=0.98, level=0, latency=1)
    mix = mix.filter("apad", whole_dur=duration_s).filter("atrim", end=duration_s)
    options = {"acodec": "flac", "sample_fmt": "s16", "compression_level": 0}
    stream = ffmpeg.output(mix, file_url(output), **options, ar=rate, map_metadata=-1)
    write_file(stream, output, "The audio files could not be mixed ({reason}): re-encode them as wav.")


def write_comparison(before: Path, after: Path, output: Path, n_frames: int) -> None:
    """Write source and result side by side, at most 1280 pixels wide, with the result's audio.

    Args:
        before: the source, from its start; its last frame is held when it is shorter.
        after: the result.
        output: file to write, none of the inputs.
        n_frames: length of the result.

    Raises:
        ResourceError: DISK_FULL, OUTPUT_NOT_WRITABLE. MediaError: an input cannot be used, MEDIA_FAILED.
    """
    check_output(output, (before, after))
    result = probe_video(after)
    shape = result.sample_aspect_ratio
    scale = min(1.0, (COMPARISON_WIDTH - COMPARISON_GAP) / 2 / float(result.format.width * shape))
    width = max(2, round(result.format.width * shape * Fraction(scale) / 2) * 2)
    height = max(2, round(result.format.height * scale / 2) * 2)
    sources = [untrusted_input(path, VIDEO_FORMATS) for path in (before, after)]
    videos = [source["V:0"] for source in sources]
    if (hdr := probe_video(before).hdr) is not None:
        videos[0] = tone_map(videos[0], hdr, width, height)
    left, right = (
        video.filter("scale", width, height, flags="bicubic")
        .filter("setsar", 1)
        .filter("fps", _rate_text(result.frame_rate))
        .filter("format", "yuv420p")
        for video in videos
    )
    left = left.filter("tpad", stop=-1, stop_mode="clone").filter(
        "pad", width + COMPARISON_GAP, height, 0, 0, color="white"
    )
    video = ffmpeg.filter((left, right), "hstack", inputs=2, shortest=1)
    options = {"frames:v": n_frames, "threads": ENCODER_THREADS, "map_metadata": -1, "movflags": "+faststart"}
    streams = [video]
    if result.audio is not None:
        streams.append(sources[1]["a:0"])
        options |= _audio_options(result.audio, output.suffix.lower(), Quality.DEFAULT)
    write_file(
        ffmpeg.output(*streams, file_url(output), vcodec="libx264", crf=18, preset="veryfast", **options),
        output,
        "The comparison could not be written ({reason}): run again without it.",
    )


def _audio_options(info: AudioInfo, suffix: str, quality: Quality, *, copies: bool = True) -> dict[str, Any]:
    if copies and info.codec in COPIED_AUDIO[suffix]:
        return {"c:a": "copy"}
    if quality is Quality.LOSSLESS:
        return {"c:a": "flac" if suffix == ".mkv" else "alac"}
    rate = next((rate for rate in AAC_RATES if rate >= info.sample_rate), AAC_RATES[-1])
    bitrate = AAC_BITRATE * max(1, info.channels // 2)
    return {
        "c:a": "aac",
        "b:a": min(bitrate, AAC_MAX_BITS_PER_SAMPLE * rate * info.channels),
        "ar": rate,
    }


def _with_tags(frames: Any, info: VideoInfo) -> Any:
    """Declare pixel shape and colour tags of raw frames to the encoder."""
    values = {
        "colorspace": info.color_space,
        "color_primaries": info.color_primaries,
        "color_trc": info.color_transfer,
        "range": info.color_range,
    }
    tags = {key: value for key, value in values.items() if value is not None}
    shape = info.sample_aspect_ratio
    frames = frames.filter("setsar", f"{shape.numerator}/{shape.denominator}")
    return frames.filter("setparams", **tags) if tags else frames


def _rate_text(fps: Fraction) -> str:
    return f"{fps.numerator}/{fps.denominator}"


def _timescale(fps: Fraction) -> int:
    """Return ticks per second, of which a frame takes a whole number."""
    return fps.numerator * -(-MIN_TIMESCALE // fps.numerator)
