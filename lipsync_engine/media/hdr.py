"""Tone-map HDR video (PQ, HLG) to SDR: BT.709, limited range.

FFmpeg does it on decoding (zscale, tonemap). HDR reference white is 203 cd/m² (ITU-R BT.2408-7). The curve
(Möbius) is the identity up to 30 % of it, where most of a face lies. Above, it compresses highlights up to
1000 cd/m²; brighter ones clip.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ffmpeg.nodes import FilterableStream

from lipsync_engine.media.process import run_query

REFERENCE_WHITE_NITS = 203
PEAK_NITS = 1000

_NAMES = {"smpte2084": "PQ", "arib-std-b67": "HLG"}


@dataclass(frozen=True, slots=True)
class HdrColor:
    """Colour of an HDR source, by FFmpeg's names.

    Attributes:
        transfer: `smpte2084` (PQ) or `arib-std-b67` (HLG).
        primaries, space: colour primaries and matrix.
        range: `tv` or `pc`.
    """

    transfer: str
    primaries: str
    space: str
    range: str

    @property
    def name(self) -> str:
        """PQ or HLG."""
        return _NAMES[self.transfer]


def hdr_color(tags: dict[str, str]) -> HdrColor | None:
    """Return the HDR colour that a frame's tags declare; None for SDR.

    Args:
        tags: by the names of `showinfo`; missing ones are taken as BT.2020, limited range.
    """
    transfer = tags.get("color_trc", "")
    if transfer not in _NAMES:
        return None
    return HdrColor(
        transfer,
        tags.get("color_primaries", "bt2020"),
        tags.get("color_space", "bt2020nc"),
        tags.get("color_range", "tv"),
    )


def can_tone_map() -> bool:
    """Return whether this machine's FFmpeg has the filters."""
    filters = run_query("-filters")
    return all(re.search(rf"^ \S+ {name} ", filters, re.MULTILINE) for name in ("zscale", "tonemap"))


def tone_map(frames: FilterableStream, color: HdrColor, width: int, height: int) -> FilterableStream:
    """Scale HDR frames and tone-map them to 10-bit BT.709, limited range: 4:2:0, for odd sizes 4:4:4."""
    frames = frames.filter("scale", width, height, flags="bicubic")
    pix_fmt = "yuv420p10le"
    if width % 2 or height % 2:  # zscale takes no odd sizes with subsampled colour
        pix_fmt = "yuv444p10le"
        frames = frames.filter("format", pix_fmt)
    return (
        frames.filter(
            "setparams",
            color_trc=color.transfer,
            color_primaries=color.primaries,
            colorspace=color.space,
            range=color.range,
        )
        .filter("zscale", transfer="linear", npl=REFERENCE_WHITE_NITS)
        .filter("format", "gbrpf32le")
        .filter("zscale", primaries="bt709")
        # The default desaturation would change the brightness of highlights, too.
        .filter("tonemap", "mobius", peak=f"{PEAK_NITS / REFERENCE_WHITE_NITS:.4f}", desat=0)
        .filter("zscale", transfer="bt709", matrix="bt709", range="limited")
        .filter("format", pix_fmt)
    )
