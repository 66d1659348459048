"""`lipsync doctor`: device, FFmpeg, weights and effective settings."""

from __future__ import annotations

import platform
from typing import Annotated

import typer

from lipsync_engine.cli import licences
from lipsync_engine.cli.terminal import create_facts_table, out
from lipsync_engine.errors import ResourceError


def show_environment(
    show_licences: Annotated[
        bool, typer.Option("--licenses", help="List the licences of libraries and weights instead.")
    ] = False,
    card_gb: Annotated[
        float | None, typer.Option(help="Show memory plans for a GPU of that size [this machine's GPU].")
    ] = None,
) -> None:
    """Show device, FFmpeg, weights and effective settings, and how to get what is missing."""
    from importlib.metadata import version

    if show_licences:
        licences.print_licences()
        return

    from lipsync_engine import media
    from lipsync_engine.cli.memory import describe_memory_plans
    from lipsync_engine.device import choose_compile, choose_device, choose_fp8
    from lipsync_engine.provenance import ManifestSigner
    from lipsync_engine.utils import default_cache_dir, package_version
    from lipsync_engine.weights import WeightsStore

    table = create_facts_table()
    table.add_row("lipsync", f"{package_version()}, Python {platform.python_version()}")
    for library in ("torch", "diffusers", "openai-whisper", "opencv-python-headless"):
        table.add_row(library, version(library))
    target = choose_device(None, None)
    table.add_row("device", f"{target.device} {str(target.dtype).removeprefix('torch.')} ({target.reason})")
    table.add_row("compiled", f"{'on' if choose_compile(None) else 'off'} (LIPSYNC_COMPILE)")
    try:
        fp8 = "on" if choose_fp8(None, target.device) else "off"
    except ResourceError as error:
        fp8 = str(error)
    table.add_row("fp8", f"{fp8} (LIPSYNC_FP8)")
    table.add_row("ffmpeg", f"{media.find_ffmpeg()} ({media.ffmpeg_version()})")
    table.add_row("isolation", media.check_sandbox().describe())
    signer = ManifestSigner.from_environment()
    table.add_row("marking", f"{signer.policy}, {signer.describe_signer()} (LIPSYNC_MARKING)")
    store = WeightsStore()
    table.add_row("cache", f"{default_cache_dir()} (LIPSYNC_CACHE_DIR)")
    table.add_row("weights", f"{store.root} (LIPSYNC_WEIGHTS_DIR)")
    for entry in store.entries():
        table.add_row(f"  {entry.name}", store.describe_status(entry.name))
    for name, plan in describe_memory_plans(store, target.device, target.dtype, card_gb):
        table.add_row(f"plan {name}", plan)
    out.print(table)
