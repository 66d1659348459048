"""Terminal output of the commands: consoles, progress bars, results, warnings."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from lipsync_engine.progress import Progress, Stage

if TYPE_CHECKING:
    from lipsync_engine.result import SyncResult
    from lipsync_engine.sync_score import SyncScore

# File names are printed as they are: [x] and :x: in them are neither markup nor emoji.
out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)

STAGE_TEXT = {
    Stage.MOTION: "animating",
    Stage.FACES: "tracking faces",
    Stage.AUDIO: "encoding audio",
    Stage.RENDER: "rendering",
    Stage.ASSEMBLE: "assembling",
}

UNIT = {Stage.AUDIO: "chunks", Stage.MOTION: "", Stage.ASSEMBLE: ""}
"""Unit of a stage's progress if it is not frames; MOTION counts a model's steps, then frames."""


def print_warning(message: str) -> None:
    """Print a warning to standard error."""
    err.print(Text.assemble(("warning", "yellow"), f": {message}"), soft_wrap=True)


def print_error(code: str, message: str) -> None:
    """Print an error with its code to standard error."""
    err.print(Text.assemble(("error", "bold red"), f" [{code}]: {message}"), soft_wrap=True)


def print_file(path: Path, note: str = "") -> None:
    """Print the path of a file that was written."""
    out.print(Text.assemble((str(path), "bold"), note), soft_wrap=True)


def create_facts_table() -> Table:
    """Create a table of two columns, name and value; long paths are wrapped, not truncated."""
    table = Table(show_header=False, box=None)
    table.add_column()
    table.add_column(overflow="fold")
    return table


@contextmanager
def download_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Show progress bars of downloads; the yielded function takes (file name, bytes done, total or 0)."""
    with _create_bars() as bars:
        tasks: dict[str, TaskID] = {}

        def update(file: str, done: int, total: int) -> None:
            if file not in tasks:
                tasks[file] = bars.add_task(file, total=None, unit="bytes", speed="")
            bars.update(tasks[file], completed=done, total=total or None)

        yield update


def run_with_bars(steps: Generator[Progress, None, SyncResult]) -> SyncResult:
    """Run a job to its end with progress bars on the terminal."""
    from lipsync_engine.utils import drain

    tasks: dict[Stage, TaskID] = {}
    with _create_bars() as bars:
        return drain(steps, lambda progress: _update_bar(bars, tasks, progress))


def _create_bars() -> Bars:
    return Bars(
        TextColumn("{task.description:<14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        console=err,
    )


def _update_bar(bars: Bars, tasks: dict[Stage, TaskID], progress: Progress) -> None:
    if progress.stage not in tasks:
        tasks[progress.stage] = bars.add_task(STAGE_TEXT[progress.stage], unit="", speed="")
    eta = f", {progress.eta_s:.0f} s left" if progress.eta_s is not None else ""
    bars.update(
        tasks[progress.stage],
        completed=progress.done,
        total=max(progress.total, progress.done),
        unit=UNIT.get(progress.stage, "frames"),
        speed=f"{progress.per_second:.1f}/s{eta}" if progress.total > 1 else "",
    )


def print_result(result: SyncResult) -> None:
    """Print a result's warnings, file and properties."""
    for warning in result.warnings:
        print_warning(warning)
    seconds, cache_note = result.seconds, " (cached)" if result.analysis_cached else ""
    print_file(result.output)
    out.print(
        f"  {result.width}x{result.height}, {format_number(result.fps)} fps, {result.frames} frames "
        f"({result.frames / float(result.fps):.2f} s), {result.frames_without_face} without a usable face"
    )
    out.print(
        f"  model {result.model} ({result.weights_sha256[:12]}), {result.num_inference_steps} steps, "
        f"guidance {result.guidance_scale:g}, seed {result.seed}, {result.device} {result.dtype}"
    )
    out.print(
        f"  faces {seconds.faces:.1f} s{cache_note}, audio {seconds.audio:.1f} s, render "
        f"{seconds.render:.1f} s, assemble {seconds.assemble:.1f} s"
    )
    if result.sync is not None:
        out.print(f"  lips and voice: {describe_sync_score(result.sync)}", soft_wrap=True)
    if result.is_signed:
        out.print("  signed as generated; `lipsync verify` shows its content credentials")
    if result.segments_resumed:
        out.print(f"  {result.segments_resumed} of {result.segments} segments came from the interrupted run")


def describe_sync_score(score: SyncScore) -> str:
    """Describe a sync score in one line."""
    offset = abs(score.offset_frames)
    frames = "1 frame" if offset == 1 else f"{offset} frames"
    timing = "at the same time"
    if offset:
        timing = f"{frames} of 40 ms {'late' if score.offset_frames > 0 else 'early'}"
    return (
        f"confidence {score.confidence:.2f}, lips {timing} "
        f"(distance {score.distance:.2f}, {score.frames} frames compared, {score.network})"
    )


def format_number(value: Fraction) -> str:
    """Format a fraction as a decimal number with at most six digits."""
    return f"{float(value):.6g}"
