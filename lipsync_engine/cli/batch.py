"""The command for many clips."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from lipsync_engine.cli.jobs import (
    Consent,
    Detector,
    Device,
    Dtype,
    GuidanceScale,
    Label,
    Looping,
    Marking,
    MaskImage,
    MaxShortSide,
    ModelName,
    Preset,
    Seed,
    Steps,
    Unseen,
)
from lipsync_engine.cli.terminal import STAGE_TEXT, err, out, warn, written
from lipsync_engine.errors import ErrorCode, LipSyncError
from lipsync_engine.params import BatchEngine, FaceChoice, SyncParams, Tail

if TYPE_CHECKING:
    from lipsync_engine.batch import BatchProgress, BatchResult

SHOWN_PROBLEMS = 50


def batch(
    source: Annotated[
        Path, typer.Argument(help="CSV or JSONL file, or folder with pairs such as talk.mp4 and talk.wav.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for results, results.jsonl and report.html.")
    ],
    engine: Annotated[
        BatchEngine,
        typer.Option(help="local, or ray: workers on all machines of a cluster (lipsync cluster up, join)."),
    ] = BatchEngine.LOCAL,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes, 1-64; each loads the model once [1; with ray as many as have a free device]."
        ),
    ] = None,
    jobs_per_worker: Annotated[
        int, typer.Option(help="Clips that a process makes at once, 1-16: for short clips on a fast device.")
    ] = 1,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Make the good rows where others cannot be made.")
    ] = False,
    model: ModelName = "tiny",
    preset: Preset = "default",
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    seed: Seed = None,
    face: Annotated[
        str | None,
        typer.Option(help="Who speaks: largest, left, right, 0, 1, … from the left, or X,Y@SECONDS."),
    ] = None,
    mask_image: MaskImage = None,
    fps: Annotated[
        str | None, typer.Option(help="Output frame rate, e.g. 25 or 30000/1001 [source's].")
    ] = None,
    max_short_side: MaxShortSide = None,
    loop_mode: Looping = None,
    tail: Annotated[Tail | None, typer.Option(help="When the video is longer [cut].")] = None,
    label: Label = False,
    watermark: Unseen = False,
    consent: Consent = None,
    marking: Marking = None,
    detector: Detector = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Make many clips: every row of SOURCE, or every pair of files in it.

    All rows are checked before the first is begun. A row's own options go before those given here. The same
    command again makes only what is missing.
    """
    from lipsync_engine.batch import ManifestError, ModelOptions, RowStatus, run_batch
    from lipsync_engine.media.rates import parse_rate

    params = SyncParams.preset(
        preset,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        face=None if face is None else FaceChoice.parse(face),
        mask_image=mask_image,
        fps=None if fps is None else parse_rate(fps),
        max_short_side=max_short_side,
        loop_mode=loop_mode,
        tail=tail,
        label=label,
        watermark=watermark,
    )
    options = ModelOptions(model, detector, device, dtype, marking=marking, jobs=jobs_per_worker)
    try:
        result = _followed(
            run_batch(
                source,
                output,
                params,
                model_options=options,
                engine=engine,
                workers=workers,
                skip_bad=skip_bad,
                consent=consent,
            )
        )
    except ManifestError as error:
        for problem in error.problems[:SHOWN_PROBLEMS]:
            err.print(f"{problem} [{problem.code}]", soft_wrap=True)
        if len(error.problems) > SHOWN_PROBLEMS:
            err.print(f"… and {len(error.problems) - SHOWN_PROBLEMS} more.")
        raise
    done, rows = result.count(RowStatus.DONE), len(result.results)
    before = f", {result.resumed} of them before" if result.resumed else ""
    out.print(f"{done} of {rows} clips are done{before} ({result.elapsed_s:.1f} s)")
    written(result.report)
    for sentence in result.warnings:
        warn(f"a worker was let go: {sentence}")
    missing = [one for one in result.results if one.status is not RowStatus.DONE]
    for one in missing[:SHOWN_PROBLEMS]:
        how = "failed" if one.status is RowStatus.FAILED else "was refused"
        warn(f"row {one.row} {how}: {one.message}")
    if missing:
        raise LipSyncError(
            ErrorCode.BATCH_INCOMPLETE,
            f"{len(missing)} of {rows} clips were not made: the report says why. The same command tries them "
            "again and leaves the others as they are.",
        )


def _followed(steps: Generator[BatchProgress, None, BatchResult]) -> BatchResult:
    """Run to the end with bars on the terminal: the batch, and a line for every worker."""
    with (
        Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=err,
        ) as bars,
        closing(steps),
    ):
        checked, made = bars.add_task("checking", total=None, note="rows"), None
        lines: list[TaskID] = []
        while True:
            try:
                seen = next(steps)
            except StopIteration as finished:
                result: BatchResult = finished.value
                return result
            waits = seen.done < seen.checked == seen.rows and not (seen.running or seen.failed)
            note = "rows, waiting for a worker" if waits and made is None else "rows"
            bars.update(checked, completed=seen.checked, total=seen.rows, note=note)
            if made is None:
                if not seen.running:
                    continue
                made = bars.add_task("clips", total=seen.rows, note="")
            failed = f"{seen.failed} failed" if seen.failed else ""
            left = f"{_clock(seen.eta_s)} left" if seen.eta_s else ""
            note = ", ".join(part for part in (failed, left) if part)
            bars.update(made, completed=seen.done + seen.failed, total=seen.rows, note=note)
            while len(lines) < len(seen.running):
                lines.append(bars.add_task("", total=None, note=""))
            for line, running in zip(lines, seen.running, strict=False):
                stage = STAGE_TEXT[running.stage] if running.stage else "starting"
                name = running.output if len(running.output) <= 32 else f"…{running.output[-31:]}"
                total = max(running.total, running.done) or None
                bars.update(
                    line, description=name, completed=running.done, total=total, note=stage, visible=True
                )
            for line in lines[len(seen.running) :]:
                bars.update(line, visible=False)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
