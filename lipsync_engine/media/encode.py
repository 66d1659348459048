"""Finished frames into files: segments, the joined result with the user's own sound, and a comparison.

The picture is encoded once. Segments are joined by copying their packets. Threads are fixed and nothing of the machine
enters the files, so the same frames give the same bytes everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ffmpeg

from lipsync_engine.errors import ErrorCode, MediaError, ResourceError
from lipsync_engine.frames import Frame
from lipsync_engine.media.probe import VideoInfo, probe_audio
from lipsync_engine.media.run import (
    AUDIO_FORMATS,
    LIMITS,
    VIDEO_FORMATS,
    Child,
    file_url,
    full_disk,
    last_words,
    run,
    untrusted,
)
from lipsync_engine.params import Quality

OUTPUT_SUFFIXES = frozenset({".mp4", ".mov", ".mkv"})

ENCODER: dict[Quality, dict[str, Any]] = {
    Quality.DEFAULT: {"crf": 12, "preset": "veryfast"},
    Quality.LOSSLESS: {"qp": 0, "preset": "veryfast"},
}
"""libx264 settings; both are measured in docs/log.md."""

ENCODER_THREADS = 4

COPIED_AUDIO = {
    ".mp4": {"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"},
    ".mov": {"aac", "mp3", "ac3", "eac3", "alac", "pcm_s16le", "pcm_s24le", "pcm_f32le"},
    ".mkv": {"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac", "vorbis", "pcm_s16le", "pcm_s24le", "pcm_f32le"},
}
"""Sound that each container takes as it is."""

AAC_MAX_RATE = 96000
AAC_BITRATE_PER_CHANNEL = 128_000

COMPARISON_WIDTH = 640


class SegmentWriter:
    """Encodes frames to one segment file.

    Args:
        path: .mp4 to write; removed again when the block is left by an error.
        info: source, whose size, pixel shape and colour tags the segment has.
        fps: frame rate.
        quality: of the encode.
    """

    def __init__(self, path: Path, info: VideoInfo, fps: Fraction, quality: Quality) -> None:
        self._path = path
        form = info.format
        picture = ffmpeg.input(
            "pipe:",
            format="rawvideo",
            pix_fmt=form.pix_fmt,
            video_size=(form.width, form.height),
            framerate=_rate(fps),
        )
        sx, sy = form.steps
        odd = form.width % sx or form.height % sy  # H.264 has no odd sizes with subsampled colour
        pixels = form.pix_fmt if not odd else f"yuv444p{'' if form.bit_depth == 8 else '10le'}"
        if form.bit_depth > 10:
            pixels = pixels.replace("12le", "10le")
        stream = ffmpeg.output(
            picture,
            file_url(path),
            vcodec="libx264",
            pix_fmt=pixels,
            threads=ENCODER_THREADS,
            vf=_meaning(info),
            flags="+bitexact+cgop",
            fflags="+bitexact",
            map_metadata=-1,
            video_track_timescale=fps.numerator,
            **ENCODER[quality],
        )
        self._child = Child(stream, writes=True, loglevel="error")

    def write(self, frame: Frame) -> None:
        """Append a frame.

        Raises:
            ResourceError: DISK_FULL. MediaError: MEDIA_FAILED.
        """
        try:
            for plane in frame.planes():
                self._child.write(memoryview(plane if plane.flags.c_contiguous else plane.copy()))
        except BrokenPipeError:
            self._child.finish(LIMITS.stall_s)
            raise self._failure() from None

    def _failure(self) -> Exception:
        messages = self._child.messages
        return full_disk(messages) or MediaError(
            ErrorCode.MEDIA_FAILED, f"The result could not be encoded ({last_words(messages)})."
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None and self._child.finish(LIMITS.stall_s) != 0:
                error = self._failure()
                raise error
        except BaseException:
            error = error or MediaError(ErrorCode.MEDIA_FAILED, "The result could not be encoded.")
            raise
        finally:
            self._child.kill()
            if error is not None:
                self._path.unlink(missing_ok=True)


def assemble(
    segments: Sequence[Path],
    output: Path,
    info: VideoInfo,
    fps: Fraction,
    quality: Quality,
    *,
    audio: Path | None,
) -> None:
    """Join segments and add the sound.

    Args:
        segments: files of `SegmentWriter`, in order.
        output: file to write; its suffix names the container.
        info: the source.
        fps: of the segments.
        quality: LOSSLESS keeps sound that must be re-encoded lossless as well.
        audio: file whose sound is heard, copied packet for packet where the container allows; None: silent.

    Raises:
        ResourceError: DISK_FULL. MediaError: MEDIA_FAILED.
    """
    listing = segments[0].with_name("segments.txt")
    listing.write_text("".join(f"file 'file:{path.resolve()}'\n".replace("\\", "") for path in segments))
    joined = ffmpeg.input(file_url(listing), format="concat", safe=0, protocol_whitelist="file")
    options: dict[str, Any] = {
        "c:v": "copy",
        # Containers round times; here every frame lasts the same number of ticks again.
        "bsf:v": f"setts=pts=round(PTS*TB*{_rate(fps)})*{fps.denominator}"
        f":dts=round(DTS*TB*{_rate(fps)})*{fps.denominator}"
        f":duration={fps.denominator}:time_base=1/{fps.numerator}",
        "map_metadata": -1,
        "map_chapters": -1,
        "fflags": "+bitexact",
    }
    if output.suffix.lower() in (".mp4", ".mov"):
        options |= {"movflags": "+faststart", "video_track_timescale": fps.numerator}
    streams = [joined["v:0"]]
    if audio is not None:
        sound = untrusted(audio, AUDIO_FORMATS)
        streams.append(sound["a:0"])
        options |= _audio_options(audio, output.suffix.lower(), quality)
    try:
        run(
            ffmpeg.output(*streams, file_url(output), **options),
            failed=lambda messages: MediaError(
                ErrorCode.MEDIA_FAILED, f"The result could not be put together ({last_words(messages)})."
            ),
        )
    except (MediaError, ResourceError):
        output.unlink(missing_ok=True)
        raise
    finally:
        listing.unlink(missing_ok=True)


def _audio_options(audio: Path, suffix: str, quality: Quality) -> dict[str, Any]:
    info = probe_audio(audio)
    if info.codec in COPIED_AUDIO[suffix]:
        return {"c:a": "copy"}
    if quality is Quality.LOSSLESS:
        return {"c:a": "alac" if suffix != ".mkv" else "flac"}
    options: dict[str, Any] = {"c:a": "aac", "b:a": AAC_BITRATE_PER_CHANNEL * max(1, info.channels)}
    if info.sample_rate > AAC_MAX_RATE:
        options["ar"] = AAC_MAX_RATE
    return options


def side_by_side(before: Path, after: Path, output: Path, n_frames: int) -> None:
    """Source and result next to each other, with the result's sound.

    Args:
        before: the source, shown from its start; its last frame stays when it is shorter.
        after: the result.
        output: file to write.
        n_frames: length of the result.
    """
    left = untrusted(before, VIDEO_FORMATS)["V:0"]
    result = untrusted(after, VIDEO_FORMATS)
    shown = (
        _small(left).filter("tpad", stop=-1, stop_mode="clone"),
        _small(result["V:0"]).filter("pad", "iw+8", "ih", 8, 0, color="white"),
    )
    stacked = ffmpeg.filter(shown, "hstack", inputs=2, shortest=1)
    run(
        ffmpeg.output(
            stacked,
            result["a:0"],
            file_url(output),
            vcodec="libx264",
            crf=18,
            preset="veryfast",
            pix_fmt="yuv420p",
            **{"c:a": "copy", "frames:v": n_frames, "movflags": "+faststart"},
        ),
        failed=lambda messages: ResourceError(
            ErrorCode.OUTPUT_NOT_WRITABLE,
            f"The comparison {output.name!r} could not be written ({last_words(messages)}).",
        ),
    )


def _small(picture: Any) -> Any:
    return picture.filter("scale", f"min(iw,{COMPARISON_WIDTH})", -2).filter("setsar", 1)


def _rate(fps: Fraction) -> str:
    return f"{fps.numerator}/{fps.denominator}"


def _meaning(info: VideoInfo) -> str:
    """Filters that tell the encoder what the raw samples mean: pixel shape and colour tags."""
    named = {
        "colorspace": info.color_space,
        "color_primaries": info.color_primaries,
        "color_trc": info.color_transfer,
        "range": "pc" if info.format.full_range else info.color_range,
    }
    tags = ":".join(f"{k}={v}" for k, v in named.items() if v is not None and v != "gbr")
    shape = f"setsar={info.sample_aspect_ratio.numerator}/{info.sample_aspect_ratio.denominator}"
    return f"{shape},setparams={tags}" if tags else shape
