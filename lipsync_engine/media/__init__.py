"""The only owner of FFmpeg: what a file is, frames and samples out of it, finished frames into a file.

    run        the child process: limits, timers, never left behind
    isolation  what a child may touch; `launch` is the program that sees to it
    probe      a look at a file, and why it cannot be used
    decode     frames and samples, in bounded memory
    encode     segments, joining, comparison
    preview    a finished segment with its sound, a still

It knows neither faces nor models.
"""

from lipsync_engine.media.decode import (
    FrameReader,
    read_audio,
    read_mask,
    read_picture,
    sample_pictures,
    scan_frames,
)
from lipsync_engine.media.encode import (
    OUTPUT_SUFFIXES,
    PictureWriter,
    PlacedSound,
    SegmentWriter,
    assemble,
    check_output,
    mix_audio,
    output_size,
    side_by_side,
)
from lipsync_engine.media.preview import write_fragment, write_still
from lipsync_engine.media.probe import AudioInfo, VideoInfo, content_hash, probe_audio, probe_video
from lipsync_engine.media.process import ffmpeg_version, find_ffmpeg
from lipsync_engine.media.sandbox import isolation_here

__all__ = [
    "OUTPUT_SUFFIXES",
    "AudioInfo",
    "FrameReader",
    "PictureWriter",
    "PlacedSound",
    "SegmentWriter",
    "VideoInfo",
    "assemble",
    "check_output",
    "content_hash",
    "ffmpeg_version",
    "find_ffmpeg",
    "isolation_here",
    "mix_audio",
    "output_size",
    "probe_audio",
    "probe_video",
    "read_audio",
    "read_mask",
    "read_picture",
    "sample_pictures",
    "scan_frames",
    "side_by_side",
    "write_fragment",
    "write_still",
]
