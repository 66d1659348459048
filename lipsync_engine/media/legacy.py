"""Conversion of AVI, WMV and FLV video to MP4.

These formats have many codecs, whose decoders are attacked more often than they are used. This module alone
opens them, with its own list of codecs, and the rest of the engine reads its output.
"""

from __future__ import annotations

from pathlib import Path

import ffmpeg

from lipsync_engine.errors import ErrorCode, MediaError
from lipsync_engine.media.process import (
    FfmpegProcess,
    file_url,
    remove_on_error,
    to_output_error,
    untrusted_input,
)

FORMATS = "avi,asf,flv"
DECODERS = (
    "h264,mpeg4,mpeg2video,mjpeg,msmpeg4v1,msmpeg4v2,msmpeg4,wmv1,wmv2,wmv3,vc1,flv,vp6f,"
    "aac,mp3,mp3float,ac3,pcm_s16le,pcm_u8,adpcm_ms,adpcm_ima_wav,adpcm_swf,wmav1,wmav2,nellymoser"
)
"""FFmpeg's decoders of those formats that are in use."""

SIGNATURES = (b"0&\xb2u\x8ef\xcf\x11", b"FLV\x01")
MAX_WALL_S = 240.0
"""A worker that reports nothing for longer is replaced, and a conversion reports nothing."""

MAX_CPU_S = 3600
QUALITY = {"vcodec": "libx264", "crf": 12, "preset": "veryfast", "pix_fmt": "yuv420p"}
AUDIO = {"acodec": "aac", "audio_bitrate": "192k"}


def is_legacy_video(head: bytes) -> bool:
    """Return whether a file with these first bytes is AVI, WMV or FLV."""
    return head.startswith(SIGNATURES) or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")


def convert_legacy_video(path: Path, output: Path) -> Path:
    """Convert an AVI, WMV or FLV file to MP4 at high quality; any other file is left alone.

    Args:
        output: .mp4 to write.

    Returns:
        The file to use: `output`, or `path`.

    Raises:
        MediaError: the file cannot be decoded, or takes longer than `MAX_WALL_S`.
        ResourceError: DISK_FULL, OUTPUT_NOT_WRITABLE.
    """
    with path.open("rb") as file:
        if not is_legacy_video(file.read(16)):
            return path
    source = untrusted_input(path, FORMATS, decoders=DECODERS)
    even = source["V:0"].filter("crop", "trunc(iw/2)*2", "trunc(ih/2)*2")
    stream = ffmpeg.output(even, source["a:0?"], file_url(output), **QUALITY, **AUDIO, map_metadata=-1)
    message = f"{path.name!r} cannot be decoded ({{reason}}): convert it to mp4."
    with remove_on_error(output), FfmpegProcess(stream, cpu_s=MAX_CPU_S) as process:
        try:
            status = process.finish(MAX_WALL_S)
        except MediaError as error:
            sentence = f"{path.name!r} takes too long to convert: convert it to mp4 yourself."
            raise MediaError(ErrorCode.MEDIA_TIMEOUT, sentence) from error
        if (failure := to_output_error(process, status, output, message)) is not None:
            raise failure
    return output
