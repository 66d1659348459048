"""What can be seen of a job before it is done: a finished segment with its part of the sound, and a still.

Fragments are MP4 files that a browser's media source appends one after the other; each begins at its own zero
and is told its place by whoever plays it. The picture is copied packet for packet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ffmpeg

from lipsync_engine.media.probe import probe_audio
from lipsync_engine.media.process import AUDIO_FORMATS, file_url, untrusted, write_file

AUDIO_RATE = 48000
AUDIO_BITRATE = 128_000
NO_SOUND_S = 0.05
"""A slice that begins so close to the end of the sound holds none: decoders may find no sample there."""

STILL_SIDE = 480


def write_fragment(pictures: Path, sound: Path, start_s: float, stop_s: float, output: Path) -> None:
    """Put a segment and its slice of the sound into a fragmented MP4.

    Args:
        pictures: file of a `SegmentWriter`.
        sound: file that is heard over the whole result; silence follows its end.
        start_s, stop_s: the segment's place in the result.
        output: .mp4 to write: H.264 as it is, AAC at 48 kHz, stereo; pictures and sound begin at 0.

    Raises:
        MediaError: MEDIA_FAILED, MEDIA_TIMEOUT. ResourceError: DISK_FULL, OUTPUT_NOT_WRITABLE.
    """
    made = ffmpeg.output(
        ffmpeg.input(file_url(pictures))["v:0"],
        _slice(sound, start_s, stop_s - start_s),
        file_url(output),
        format="mp4",
        # The header waits for the first packets: it then says (one edit, which media sources must heed) that
        # the picture decoded first is not shown first.
        movflags="+frag_keyframe+delay_moov+default_base_moof",
        map_metadata=-1,
        **{
            "c:v": "copy",
            "c:a": "aac",
            "b:a": AUDIO_BITRATE,
            "ac": 2,
            # The encoder's run-in lies before 0; kept, it would move everything else.
            "bsf:a": r"noise=drop=lt(pts\,0)",
        },
    )
    write_file(made, output, "The preview could not be made ({reason}).")


def write_still(video: Path, at_s: float, output: Path) -> None:
    """Write a small JPEG of the picture at a moment.

    Args:
        video: file of a `SegmentWriter`.

    Raises:
        MediaError: MEDIA_FAILED, MEDIA_TIMEOUT. ResourceError: DISK_FULL, OUTPUT_NOT_WRITABLE.
    """
    picture = ffmpeg.input(file_url(video), ss=at_s)["v:0"]
    picture = picture.filter("scale", STILL_SIDE, STILL_SIDE, force_original_aspect_ratio="decrease")
    options = {"frames:v": 1, "q:v": 4, "update": 1, "strict": "unofficial"}
    made = ffmpeg.output(picture, file_url(output), format="image2", vcodec="mjpeg", **options)
    write_file(made, output, "The still could not be made ({reason}).")


def _slice(sound: Path, start_s: float, length_s: float) -> Any:
    if start_s >= probe_audio(sound).duration_s - NO_SOUND_S:
        track = ffmpeg.input(f"anullsrc=r={AUDIO_RATE}:cl=stereo", format="lavfi")["a:0"]
    else:
        track = untrusted(sound, AUDIO_FORMATS, ss=start_s)["a:0"]
        track = track.filter("aresample", AUDIO_RATE, **{"async": 1, "first_pts": 0}).filter("apad")
    return track.filter("atrim", end=length_s)
