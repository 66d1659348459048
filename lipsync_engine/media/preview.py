"""Previews of a running job: a finished segment with its part of the audio, and a still.

Fragments are MP4 files that a browser's media source appends one after the other. Each begins at time 0; the
player sets its offset.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ffmpeg

from lipsync_engine.media.probe import probe_audio, probe_video
from lipsync_engine.media.process import AUDIO_FORMATS, file_url, untrusted_input, write_file

AUDIO_RATE = 48000
AUDIO_BITRATE = 128_000
MIN_SLICE_S = 0.05
"""Closer to the end of the audio a slice is replaced by silence: decoders may return no sample there."""

PREVIEW_X264 = {"crf": 20, "preset": "veryfast", "threads": 4}

STILL_SIDE = 480


def write_fragment(segment: Path, audio: Path, start_s: float, stop_s: float, output: Path) -> None:
    """Write a segment and its part of the audio to a fragmented MP4.

    Args:
        segment: file of a `SegmentWriter`.
        audio: audio of the whole result; silence follows its end.
        start_s, stop_s: the segment's place in the result.
        output: .mp4 to write: H.264, AAC at 48 kHz, stereo; video and audio begin at 0. A segment in H.264 is
            copied, one in HEVC, which not every browser plays, is encoded again.

    Raises:
        MediaError: MEDIA_FAILED, MEDIA_TIMEOUT. ResourceError: DISK_FULL, OUTPUT_NOT_WRITABLE.
    """
    is_h264 = probe_video(segment).codec == "h264"
    video = {"c:v": "copy"} if is_h264 else {"c:v": "libx264", "pix_fmt": "yuv420p", **PREVIEW_X264}
    stream = ffmpeg.output(
        ffmpeg.input(file_url(segment))["v:0"],
        _audio_slice(audio, start_s, stop_s - start_s),
        file_url(output),
        format="mp4",
        # The header waits for the first packets: its edit list then states the reordering delay, which media
        # sources require.
        movflags="+frag_keyframe+delay_moov+default_base_moof",
        map_metadata=-1,
        **{
            **video,
            "c:a": "aac",
            "b:a": AUDIO_BITRATE,
            "ac": 2,
            # The encoder's priming lies before 0; if kept, it would delay everything else.
            "bsf:a": r"noise=drop=lt(pts\,0)",
        },
    )
    write_file(stream, output, "The preview could not be written ({reason}).")


def write_still(video: Path, at_s: float, output: Path) -> None:
    """Write the frame at a time as a small JPEG.

    Args:
        video: file of a `SegmentWriter`.
        at_s: seconds from its start.
        output: .jpg to write, at most 480 pixels wide and high.

    Raises:
        MediaError: MEDIA_FAILED, MEDIA_TIMEOUT. ResourceError: DISK_FULL, OUTPUT_NOT_WRITABLE.
    """
    frame = ffmpeg.input(file_url(video), ss=at_s)["v:0"]
    frame = frame.filter("scale", STILL_SIDE, STILL_SIDE, force_original_aspect_ratio="decrease")
    options = {"frames:v": 1, "q:v": 4, "update": 1, "strict": "unofficial"}
    stream = ffmpeg.output(frame, file_url(output), format="image2", vcodec="mjpeg", **options)
    write_file(stream, output, "The still could not be written ({reason}).")


def _audio_slice(audio: Path, start_s: float, length_s: float) -> Any:
    if start_s >= probe_audio(audio).duration_s - MIN_SLICE_S:
        track = ffmpeg.input(f"anullsrc=r={AUDIO_RATE}:cl=stereo", format="lavfi")["a:0"]
    else:
        track = untrusted_input(audio, AUDIO_FORMATS, ss=start_s)["a:0"]
        track = track.filter("aresample", AUDIO_RATE, **{"async": 1, "first_pts": 0}).filter("apad")
    return track.filter("atrim", end=length_s)
