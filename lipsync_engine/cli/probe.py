"""`lipsync probe`: properties of a media file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipsync_engine.cli.terminal import create_facts_table, format_number, out
from lipsync_engine.errors import ErrorCode, LipSyncError


def probe_file(path: Annotated[Path, typer.Argument(help="Video or audio file.")]) -> None:
    """Show the properties of a media file as this program reads them."""
    from lipsync_engine import media

    table = create_facts_table()
    audio: media.AudioInfo | None
    try:
        video = media.probe_video(path)
    except LipSyncError as error:
        if error.code is not ErrorCode.MEDIA_NO_VIDEO:
            raise
        audio = media.probe_audio(path)
    else:
        audio = video.audio
        pixels = video.format
        table.add_row("video", f"{video.codec} in {video.container}")
        aspect = format_number(video.sample_aspect_ratio)
        table.add_row("size", f"{pixels.width}x{pixels.height}, pixels {aspect}:1")
        rotation = f"{video.rotation_deg}° in the file, applied" if video.rotation_deg else "none"
        table.add_row("rotation", rotation)
        table.add_row("frame rate", f"{format_number(video.frame_rate)} fps")
        table.add_row("duration", f"{video.duration_s:.3f} s")
        tags = (video.color_space, video.color_primaries, video.color_transfer, video.color_range)
        if video.hdr is not None:
            table.add_row("HDR", f"{video.hdr.name}, tone-mapped to SDR")
        table.add_row("pixels", f"{pixels.pix_fmt}, {' '.join(tag or 'untagged' for tag in tags)}")
    if audio is None:
        table.add_row("audio", "none")
    else:
        table.add_row(
            "audio",
            f"{audio.codec}, {audio.sample_rate} Hz, {audio.channels} channels, {audio.duration_s:.3f} s",
        )
    out.print(table)
