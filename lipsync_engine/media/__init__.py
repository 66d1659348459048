"""Reading and writing media. The only package that runs FFmpeg.

    process       FFmpeg as a child process: resource limits, stall detection
    sandbox       files that an FFmpeg process may open; `sandbox_exec` enforces it in the child
    probe         properties of a file, or the reason why it cannot be used
    hdr           tone mapping of HDR video to SDR
    decode        frames, audio samples and images, in bounded memory
    encode        segments, joining, audio mix, comparison
    legacy        AVI, WMV and FLV to MP4
    preview       fragmented MP4 of a finished segment, stills
    yuv           planar frames, conversion of a region to RGB and back
    rates         exact frame rates

It does not depend on faces or models.
"""

from lipsync_engine.media.decode import (
    FrameReader,
    read_audio,
    read_image,
    read_mask,
    sample_frames,
    scan_frames,
)
from lipsync_engine.media.encode import (
    OUTPUT_SUFFIXES,
    AudioClip,
    RgbVideoWriter,
    SegmentWriter,
    assemble,
    check_output,
    mix_audio,
    output_size,
    write_comparison,
)
from lipsync_engine.media.legacy import convert_legacy_video
from lipsync_engine.media.preview import write_fragment, write_still
from lipsync_engine.media.probe import (
    AudioInfo,
    VideoInfo,
    check_hdr,
    content_hash,
    measure_video_track,
    probe_audio,
    probe_video,
)
from lipsync_engine.media.process import ffmpeg_version, find_ffmpeg
from lipsync_engine.media.sandbox import check_sandbox

__all__ = [
    "OUTPUT_SUFFIXES",
    "AudioClip",
    "AudioInfo",
    "FrameReader",
    "RgbVideoWriter",
    "SegmentWriter",
    "VideoInfo",
    "assemble",
    "check_hdr",
    "check_output",
    "check_sandbox",
    "content_hash",
    "convert_legacy_video",
    "ffmpeg_version",
    "find_ffmpeg",
    "measure_video_track",
    "mix_audio",
    "output_size",
    "probe_audio",
    "probe_video",
    "read_audio",
    "read_image",
    "read_mask",
    "sample_frames",
    "scan_frames",
    "write_comparison",
    "write_fragment",
    "write_still",
]
