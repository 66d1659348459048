"""`lipsync faces`: show which faces a video has and how well they can be lip-synced."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lipsync_engine.cli.terminal import create_facts_table, out, print_file, print_warning

if TYPE_CHECKING:
    from lipsync_engine.face_report import FaceReport


def report_video_faces(
    video: Annotated[Path, typer.Argument(help="Video with the person (mp4, mov, mkv, webm).")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for thumbnails and faces.json.")
    ] = None,
    overlay: Annotated[
        Path | None, typer.Option(help="Video to write (.mp4) with points, crop and mask drawn in.")
    ] = None,
    detector: Annotated[
        str, typer.Option(help="yunet (photographed people) or drawn (our drawn presenters).")
    ] = "yunet",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Show the faces in VIDEO: when, how large, how far turned, what will be left untouched and why.

    No model weights are needed.
    """
    from lipsync_engine import media
    from lipsync_engine.face_report import report_faces
    from lipsync_engine.faces.registry import load_detector
    from lipsync_engine.weights import WeightsStore

    if overlay is not None:
        media.check_output(overlay, (video,))
    report = report_faces(video, load_detector(detector, WeightsStore()), folder=output, overlay=overlay)
    text = json.dumps(dataclasses.asdict(report), default=str)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "faces.json").write_text(text + "\n")
    if as_json:
        out.print_json(text, indent=None, highlight=False)
        return
    _print_report(report)
    if overlay is not None:
        print_file(overlay, " (overlay)")


def _print_report(report: FaceReport) -> None:
    for number, track in enumerate(report.tracks):
        table = create_facts_table()
        table.add_row("face", f"{number}")
        table.add_row("time", f"{track.start_s:.2f}-{track.stop_s:.2f} s, {track.frames} frames")
        table.add_row("size", f"{track.size_px} px")
        table.add_row("turn", f"{track.yaw_deg[0]:g} to {track.yaw_deg[1]:g} degrees")
        if track.roll_deg is not None:
            table.add_row("tilt", f"{track.roll_deg[0]:g} to {track.roll_deg[1]:g} degrees")
        for reason, count in track.untouched.items():
            table.add_row("untouched", f"{count} frames: {reason.replace('_', ' ')}")
        out.print(table)
    n_used = report.frames - sum(report.untouched.values())
    out.print(f"{n_used} of {report.frames} frames can be lip-synced.", highlight=False)
    for warning in report.warnings:
        print_warning(warning)
