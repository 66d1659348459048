"""The command that reads content credentials."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lipsync_engine.cli.terminal import out

if TYPE_CHECKING:
    from lipsync_engine.provenance import Verification
    from lipsync_engine.provenance.watermark import Watermark

STATUS = {"trusted": 0, "invalid": 1, "unknown_signer": 4, "none": 5}
"""Exit status of each verdict; no error's is among them."""

SENTENCE = {
    "trusted": "valid, and signed by somebody known here",
    "unknown_signer": "valid, but nobody here knows the signer",
    "invalid": "INVALID: changed since it was signed, or never rightly signed",
    "none": "no content credentials",
}


def verify(
    file: Annotated[Path, typer.Argument(help="Video or picture.")],
    detector: Annotated[
        str | None,
        typer.Option(help="Also look for the watermark, in faces found by yunet (people) or drawn."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Say what the content credentials of FILE are worth.

    A watermark is told of and changes nothing about how this ends.

    Ends with 0: valid and signed by somebody known here; 1: invalid; 4: valid, signer not known; 5: none.
    """
    from lipsync_engine.provenance import Marker
    from lipsync_engine.provenance import verify as check

    found = check(file, Marker.from_environment().known())
    mark = None if detector is None else _watermark(file, detector)
    if as_json:
        told = dataclasses.asdict(found) | ({} if mark is None else {"watermark": dataclasses.asdict(mark)})
        out.print_json(json.dumps(told), indent=None, highlight=False)
    else:
        _show(file, found)
        if mark is not None:
            word = "found: a face in it was generated" if mark.found else "not found, which proves nothing"
            out.print(
                f"  {'watermark':<20} {word} (score {mark.score:g}, {mark.frames} faces)", soft_wrap=True
            )
    raise typer.Exit(STATUS[found.verdict])


def _watermark(file: Path, detector: str) -> Watermark:
    from lipsync_engine.faces.registry import load_detector
    from lipsync_engine.provenance.watermark import read_watermark
    from lipsync_engine.weights import WeightsStore

    return read_watermark(file, load_detector(detector, WeightsStore()))


def _show(file: Path, found: Verification) -> None:
    out.print(f"{file.name}: {SENTENCE[found.verdict]}", soft_wrap=True)

    def say(name: str, value: object) -> None:
        # The file chose the words: neither our markup nor a terminal's commands may be among them.
        words = "".join(filter(str.isprintable, f"{name:<20} {value}"))
        out.print(f"  {words}", soft_wrap=True)

    if found.signer is not None:
        note = " (a certificate for trying things out)" if found.is_development else ""
        say("signed by", f"{found.signer}{note}")
    if found.generator is not None:
        say("written by", found.generator)
        say("generated", "by a model, in whole or part" if found.is_generated else "not said")
    for name, value in (found.made or {}).items():
        say(name, value)
    for source in found.sources:
        told = "without credentials" if source.signer is None else f"with credentials of {source.signer}"
        say("source", told)
    for problem in found.problems:
        say("problem", problem)
