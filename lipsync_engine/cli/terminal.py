"""What commands show on a terminal: consoles, bars, results, warnings."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
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

# Names of files are shown as they are: [x] and :x: in them are no markup and no emoji.
out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)

STAGE_TEXT = {
    Stage.MOTION: "animating",
    Stage.FACES: "finding faces",
    Stage.AUDIO: "listening",
    Stage.RENDER: "rendering",
    Stage.ASSEMBLE: "assembling",
}

UNIT = {Stage.AUDIO: "pieces", Stage.MOTION: "", Stage.ASSEMBLE: ""}
"""What is counted, where it is not frames; for motion a model's steps, then frames."""


def warn(sentence: str) -> None:
    err.print(Text.assemble(("warning", "yellow"), f": {sentence}"), soft_wrap=True)


def fail(code: str, sentence: str) -> None:
    err.print(Text.assemble(("error", "bold red"), f" [{code}]: {sentence}"), soft_wrap=True)


def written(path: Path, more: str = "") -> None:
    """A file that is there now."""
    out.print(Text.assemble((str(path), "bold"), more), soft_wrap=True)


def facts() -> Table:
    """A table of two columns, name and what is so; no path is cut."""
    table = Table(show_header=False, box=None)
    table.add_column()
    table.add_column(overflow="fold")
    return table


@contextmanager
def downloads() -> Iterator[Callable[[str, int, int], None]]:
    """Bars of files, moved by what is yielded: (file name, bytes done, bytes in all or 0 where unknown)."""
    with _bars() as bars:
        tasks: dict[str, TaskID] = {}

        def show(file: str, done: int, total: int) -> None:
            if file not in tasks:
                tasks[file] = bars.add_task(file, total=None, unit="bytes", speed="")
            bars.update(tasks[file], completed=done, total=total or None)

        yield show


def _bars() -> Bars:
    return Bars(
        TextColumn("{task.description:<14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        console=err,
    )


def _show(bars: Bars, tasks: dict[Stage, TaskID], progress: Progress) -> None:
    if progress.stage not in tasks:
        tasks[progress.stage] = bars.add_task(STAGE_TEXT[progress.stage], unit="", speed="")
    left = f", {progress.eta_s:.0f} s left" if progress.eta_s is not None else ""
    bars.update(
        tasks[progress.stage],
        completed=progress.done,
        total=max(progress.total, progress.done),
        unit=UNIT.get(progress.stage, "frames"),
        speed=f"{progress.per_second:.1f}/s{left}" if progress.total > 1 else "",
    )


def report(result: SyncResult) -> None:
    for warning in result.warnings:
        warn(warning)
    took, cached = result.seconds, " (cached)" if result.analysis_cached else ""
    written(result.output)
    out.print(
        f"  {result.width}x{result.height}, {number(result.fps)} fps, {result.frames} frames "
        f"({result.frames / float(result.fps):.2f} s), {result.frames_without_face} without a usable face"
    )
    out.print(
        f"  model {result.model} ({result.weights_sha256[:12]}), {result.num_inference_steps} steps, "
        f"guidance {result.guidance_scale:g}, seed {result.seed}, {result.device} {result.dtype}"
    )
    out.print(
        f"  faces {took.faces:.1f} s{cached}, audio {took.audio:.1f} s, render {took.render:.1f} s, "
        f"assemble {took.assemble:.1f} s"
    )
    if result.sync is not None:
        out.print(f"  lips and voice: {sentence(result.sync)}", soft_wrap=True)
    if result.is_signed:
        out.print("  signed as generated; `lipsync verify` shows its content credentials")
    if result.segments_resumed:
        out.print(f"  {result.segments_resumed} of {result.segments} segments came from the interrupted run")


def sentence(score: SyncScore) -> str:
    """What a sync score says."""
    late = score.offset_frames
    frames = "1 frame" if abs(late) == 1 else f"{abs(late)} frames"
    place = f"{frames} of 40 ms {'late' if late > 0 else 'early'}" if late else "at the same time"
    return (
        f"confidence {score.confidence:.2f}, lips {place} "
        f"(distance {score.distance:.2f}, {score.frames} frames compared, {score.network})"
    )


def followed(steps: Generator[Progress, None, SyncResult]) -> SyncResult:
    """Run to the end with bars on the terminal."""
    with _bars() as bars, closing(steps):
        tasks: dict[Stage, TaskID] = {}
        while True:
            try:
                _show(bars, tasks, next(steps))
            except StopIteration as finished:
                result: SyncResult = finished.value
                return result


def number(value: Fraction) -> str:
    return f"{float(value):.6g}"
