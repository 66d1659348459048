"""`lipsync batch`: lip-sync many clips."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from lipsync_engine.cli.options import (
    Codec,
    Consent,
    Detector,
    Device,
    Dtype,
    Face,
    FrameRate,
    GuidanceScale,
    Hdr,
    Label,
    Looping,
    Marking,
    MaskImage,
    MaxShortSide,
    ModelName,
    Preset,
    Seed,
    Steps,
    VideoTail,
    Watermark,
)
from lipsync_engine.cli.terminal import STAGE_TEXT, err, out, print_file, print_warning
from lipsync_engine.errors import ErrorCode, LipSyncError
from lipsync_engine.params import BatchEngine, FaceChoice, SyncParams

if TYPE_CHECKING:
    from lipsync_engine.batch import BatchProgress, BatchResult

MAX_LISTED_ROWS = 50
MAX_NAME_CHARACTERS = 32


def sync_batch(
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
        typer.Option(help="Processes, 1-64; each loads the model once [1; with ray one per free device]."),
    ] = None,
    jobs_per_worker: Annotated[
        int,
        typer.Option(help="Clips that a process renders at once, 1-16: for short clips on a fast device."),
    ] = 1,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Render the valid rows although others are invalid.")
    ] = False,
    model: ModelName = "tiny",
    preset: Preset = "default",
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    seed: Seed = None,
    face: Face = None,
    mask_image: MaskImage = None,
    fps: FrameRate = None,
    max_short_side: MaxShortSide = None,
    video_codec: Codec = None,
    hdr: Hdr = None,
    loop_mode: Looping = None,
    tail: VideoTail = None,
    label: Label = False,
    watermark: Watermark = False,
    consent: Consent = None,
    marking: Marking = None,
    detector: Detector = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Lip-sync many clips: every row of the file SOURCE, or every pair of files in the folder SOURCE.

    All rows are checked before the first clip is rendered. A row's own options override these options. The
    same command resumes the batch and renders only what is missing.
    """
    from lipsync_engine.batch import ManifestError, ModelOptions, run_batch
    from lipsync_engine.media.rates import parse_rate
    from lipsync_engine.utils import drain

    params = SyncParams.preset(
        preset,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        face=None if face is None else FaceChoice.parse(face),
        mask_image=mask_image,
        fps=None if fps is None else parse_rate(fps),
        max_short_side=max_short_side,
        video_codec=video_codec,
        hdr=hdr,
        loop_mode=loop_mode,
        tail=tail,
        label=label,
        watermark=watermark,
    )
    options = ModelOptions(model, detector, device, dtype, marking=marking, jobs=jobs_per_worker)
    progress_steps = run_batch(
        source,
        output,
        params,
        model_options=options,
        engine=engine,
        workers=workers,
        skip_bad=skip_bad,
        consent=consent,
    )
    try:
        with _create_bars() as bars:
            result = drain(progress_steps, _BatchBars(bars).update)
    except ManifestError as error:
        for problem in error.problems[:MAX_LISTED_ROWS]:
            err.print(f"{problem} [{problem.code}]", soft_wrap=True)
        if len(error.problems) > MAX_LISTED_ROWS:
            err.print(f"… and {len(error.problems) - MAX_LISTED_ROWS} more.")
        raise
    _print_batch_result(result)


def _print_batch_result(result: BatchResult) -> None:
    """Print the result.

    Raises:
        LipSyncError: BATCH_INCOMPLETE, some rows are not done.
    """
    from lipsync_engine.batch import RowStatus

    n_done, n_rows = result.count(RowStatus.DONE), len(result.results)
    resumed = f", {result.resumed} of them before" if result.resumed else ""
    out.print(f"{n_done} of {n_rows} clips are done{resumed} ({result.elapsed_s:.1f} s)")
    print_file(result.report)
    for warning in result.warnings:
        print_warning(f"a worker was retired: {warning}")
    missing = [row for row in result.results if row.status is not RowStatus.DONE]
    for row in missing[:MAX_LISTED_ROWS]:
        status = "failed" if row.status is RowStatus.FAILED else "was refused"
        print_warning(f"row {row.row} {status}: {row.message}")
    if missing:
        raise LipSyncError(
            ErrorCode.BATCH_INCOMPLETE,
            f"{len(missing)} of {n_rows} clips are not done: see the report for the reasons. The same "
            "command tries them again and keeps the others.",
        )


def _create_bars() -> Bars:
    return Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=err,
    )


class _BatchBars:
    """Progress bars of a batch: checked rows, finished clips, and one for the clip of each worker."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._rows = bars.add_task("checking", total=None, note="rows")
        self._clips: TaskID | None = None
        self._running: list[TaskID] = []

    def update(self, progress: BatchProgress) -> None:
        """Show a progress report."""
        is_idle = not (progress.running or progress.failed)
        is_waiting = progress.done < progress.checked == progress.rows and is_idle and self._clips is None
        note = "rows, waiting for a worker" if is_waiting else "rows"
        self._bars.update(self._rows, completed=progress.checked, total=progress.rows, note=note)
        if self._clips is None:
            if not progress.running:
                return
            self._clips = self._bars.add_task("clips", total=progress.rows, note="")
        failure_note = f"{progress.failed} failed" if progress.failed else ""
        eta = f"{_format_clock(progress.eta_s)} left" if progress.eta_s else ""
        note = ", ".join(part for part in (failure_note, eta) if part)
        self._bars.update(
            self._clips, completed=progress.done + progress.failed, total=progress.rows, note=note
        )
        while len(self._running) < len(progress.running):
            self._running.append(self._bars.add_task("", total=None, note=""))
        for bar, clip in zip(self._running, progress.running, strict=False):
            name = clip.output
            if len(name) > MAX_NAME_CHARACTERS:
                name = f"…{name[1 - MAX_NAME_CHARACTERS :]}"
            self._bars.update(
                bar,
                description=name,
                completed=clip.done,
                total=max(clip.total, clip.done) or None,
                note=STAGE_TEXT[clip.stage] if clip.stage else "starting",
                visible=True,
            )
        for bar in self._running[len(progress.running) :]:
            self._bars.update(bar, visible=False)


def _format_clock(seconds: float) -> str:
    """Format as H:MM:SS."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
