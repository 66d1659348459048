"""The command that says how well a film's lips and voice belong together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from lipsync_engine.cli.jobs import Device
from lipsync_engine.cli.terminal import out, sentence
from lipsync_engine.errors import ErrorCode, WeightsError
from lipsync_engine.params import FaceChoice

NOT_IN_SYNC = 1
"""Exit status of a film whose lips do not belong to its voice; no error's."""


def score(
    video: Annotated[Path, typer.Argument(help="Film with the person, and with the voice, or else --audio.")],
    audio: Annotated[Path | None, typer.Option(help="Another file with the voice.")] = None,
    detector: Annotated[
        str, typer.Option(help="yunet (photographed people) or drawn (our drawn presenters).")
    ] = "yunet",
    face: Annotated[
        str | None, typer.Option(help="Who speaks: largest, left, right, 0, 1, … from the left.")
    ] = None,
    min_confidence: Annotated[
        float | None,
        typer.Option(help="End with status 1 below this, or with lips off by over a frame."),
    ] = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Say how well the lips of VIDEO belong to its voice.

    Ends with 0; with 1 where --min-confidence is given and missed.
    """
    from lipsync_engine import media
    from lipsync_engine.device import choose_device
    from lipsync_engine.faces.registry import load_detector
    from lipsync_engine.sync_score import find_installed_scorer, score_video
    from lipsync_engine.weights import WeightsStore

    store = WeightsStore()
    scorer = find_installed_scorer(detector, store, choose_device(device, None).device)
    if scorer is None:
        raise WeightsError(
            ErrorCode.WEIGHTS_MISSING,
            f"No sync score for faces of {detector} is here: run `lipsync weights pull syncnet-v2`, or "
            "`lipsync weights import PATH` if you have the file; --detector drawn is for drawn presenters.",
        )
    media.probe_audio(audio or video)
    choice = None if face is None else FaceChoice.parse(face)
    found = score_video(video, audio or video, scorer, load_detector(detector, store), choice)
    if as_json:
        out.print_json(json.dumps(dataclasses.asdict(found)), indent=None, highlight=False)
    else:
        out.print(f"{video.name}: {sentence(found)}", soft_wrap=True)
    if min_confidence is not None and (found.confidence < min_confidence or abs(found.offset_frames) > 1):
        raise typer.Exit(NOT_IN_SYNC)
