"""`lipsync verify`: verify content credentials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lipsync_engine.cli.terminal import out

if TYPE_CHECKING:
    from lipsync_engine.provenance import Verification
    from lipsync_engine.provenance.watermark import WatermarkResult

STATUS = {"trusted": 0, "invalid": 1, "unknown_signer": 4, "none": 5}
"""Exit status of each verdict; distinct from those of errors."""

VERDICT_TEXT = {
    "trusted": "valid, and signed under a trusted certificate",
    "unknown_signer": "valid, but the signer's certificate is not trusted here",
    "invalid": "INVALID: changed after signing, or never validly signed",
    "none": "no content credentials",
}


def verify_file(
    file: Annotated[Path, typer.Argument(help="Video or image.")],
    detector: Annotated[
        str | None,
        typer.Option(help="Also detect the watermark, in faces detected by yunet (people) or drawn."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Verify the content credentials of FILE.

    Exit status: 0 valid and trusted; 1 invalid; 4 valid, but the signer is not trusted here; 5 no
    credentials. The watermark does not affect it.
    """
    from lipsync_engine.provenance import ManifestSigner, verify_credentials

    verification = verify_credentials(file, ManifestSigner.from_environment().trusted_roots())
    watermark = None if detector is None else _read_watermark(file, detector)
    if as_json:
        report = verification.to_json() | ({} if watermark is None else {"watermark": watermark.to_json()})
        out.print_json(json.dumps(report), indent=None, highlight=False)
    else:
        _print_verification(file, verification)
        if watermark is not None:
            verdict_text = "detected: a face was generated" if watermark.is_detected else "not detected"
            out.print(
                f"  {'watermark':<20} {verdict_text} (score {watermark.score:g}, {watermark.frames} faces)",
                soft_wrap=True,
            )
    raise typer.Exit(STATUS[verification.verdict])


def _read_watermark(file: Path, detector: str) -> WatermarkResult:
    from lipsync_engine.faces.registry import load_detector
    from lipsync_engine.provenance.watermark import read_watermark
    from lipsync_engine.weights import WeightsStore

    return read_watermark(file, load_detector(detector, WeightsStore()))


def _print_verification(file: Path, verification: Verification) -> None:
    out.print(f"{file.name}: {VERDICT_TEXT[verification.verdict]}", soft_wrap=True)

    def print_row(name: str, value: object) -> None:
        # The text comes from the file: it must not contain control characters of the terminal.
        text = "".join(filter(str.isprintable, f"{name:<20} {value}"))
        out.print(f"  {text}", soft_wrap=True)

    if verification.signer is not None:
        note = " (development certificate)" if verification.is_development else ""
        print_row("signed by", f"{verification.signer}{note}")
    if verification.generator is not None:
        print_row("written by", verification.generator)
        print_row("generated", "entirely or partly by a model" if verification.is_generated else "not stated")
    for name, value in (verification.generation or {}).items():
        print_row(name, value)
    for ingredient in verification.ingredients:
        signer = ingredient.signer
        print_row("source", "without credentials" if signer is None else f"with credentials of {signer}")
    for problem in verification.problems:
        print_row("problem", problem)
