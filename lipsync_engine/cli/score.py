"""`lipsync score`: measure how well lips and voice match."""

from __future__ import annotations

import dataclasses
import json
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from lipsync_engine.cli.options import Device
from lipsync_engine.cli.terminal import describe_sync_score, out
from lipsync_engine.errors import ErrorCode, WeightsError
from lipsync_engine.params import FaceChoice

NOT_IN_SYNC = 1
"""Exit status of a video that misses --min-confidence; distinct from those of errors."""

MAX_OFFSET_FRAMES = 1


def score_video_file(
    video: Annotated[Path, typer.Argument(help="Video with the person, and with the voice unless --audio.")],
    audio: Annotated[Path | None, typer.Option(help="Another file with the voice.")] = None,
    detector: Annotated[
        str, typer.Option(help="yunet (photographed people) or drawn (our drawn presenters).")
    ] = "yunet",
    face: Annotated[
        str | None, typer.Option(help="Who speaks: largest, left, right, 0, 1, … from the left.")
    ] = None,
    min_confidence: Annotated[
        float | None,
        typer.Option(help="Exit with status 1 below this, or with lips off by over a frame."),
    ] = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Measure how well the lips in VIDEO match its voice, and where the voice pauses.

    Exit status: 0; 1 if the video misses --min-confidence.
    """
    from lipsync_engine import media
    from lipsync_engine.audio.silero import load_silero
    from lipsync_engine.audio.vad import find_pauses
    from lipsync_engine.device import choose_device
    from lipsync_engine.faces.registry import load_detector
    from lipsync_engine.sync_score import find_installed_scorer, score_video
    from lipsync_engine.weights import WeightsStore

    store = WeightsStore()
    scorer = find_installed_scorer(detector, store, choose_device(device, None).device)
    if scorer is None:
        raise WeightsError(
            ErrorCode.WEIGHTS_MISSING,
            f"No sync score is installed for the faces of {detector}: run `lipsync weights pull syncnet-v2`, "
            "or `lipsync weights import PATH` if you have the file. For drawn presenters use --detector "
            "drawn.",
        )
    media.probe_audio(audio or video)
    choice = None if face is None else FaceChoice.parse(face)
    score = score_video(video, audio or video, scorer, load_detector(detector, store), choice)
    with closing(media.read_audio(audio or video)) as samples:
        pauses_s = find_pauses(samples, load_silero())
    if as_json:
        text = json.dumps({**dataclasses.asdict(score), "pauses_s": pauses_s})
        out.print_json(text, indent=None, highlight=False)
    else:
        out.print(f"{video.name}: {describe_sync_score(score)}", soft_wrap=True)
        if pauses_s:
            times = ", ".join(f"{start_s:.1f}-{stop_s:.1f}" for start_s, stop_s in pauses_s)
            out.print(f"  voice gate closed at {times} s", soft_wrap=True, highlight=False)
    is_off = abs(score.offset_frames) > MAX_OFFSET_FRAMES
    if min_confidence is not None and (score.confidence < min_confidence or is_off):
        raise typer.Exit(NOT_IN_SYNC)
