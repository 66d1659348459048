"""Many clips from one command: checked as a whole, rendered by workers that load the model once, resumable.

    manifest        rows of a file or a folder, and their problems
    results         OUT/results.jsonl
    output_dir      the lock of OUT; OUT/workers.log
    messages        commands and events between the batch and its workers
    worker_process  handles of workers, the pool, processes on this machine
    ray_backend     workers on a Ray cluster
    worker          the worker process
    report          OUT/report.html
    runner          checks rows, assigns them to workers, records results

`run_batch` is a generator that yields progress; closing it stops the workers between two frames. The package
knows neither terminals nor HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from lipsync_engine.batch.manifest import (
    Manifest,
    ManifestError,
    ManifestProblem,
    ManifestRow,
    read_manifest,
)
from lipsync_engine.batch.output_dir import LOCK_NAME, locked_output_dir
from lipsync_engine.batch.report import write_report
from lipsync_engine.batch.results import ResultLog, RowResult, RowStatus
from lipsync_engine.batch.runner import REPORT_NAME, BatchProgress, BatchRunner, RunningClip
from lipsync_engine.batch.worker_process import LocalBackend, ModelOptions, WorkerBackend
from lipsync_engine.errors import ErrorCode, ParameterError, ResourceError
from lipsync_engine.params import BatchEngine, SyncParams
from lipsync_engine.provenance import ManifestSigner
from lipsync_engine.weights import WeightsStore

__all__ = [
    "BatchProgress",
    "BatchResult",
    "ManifestError",
    "ManifestProblem",
    "ManifestRow",
    "ModelOptions",
    "RowResult",
    "RowStatus",
    "RunningClip",
    "run_batch",
]

MAX_WORKERS = 64
MAX_JOBS = 16


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The outcome of a batch.

    Attributes:
        results: of every row, in the manifest's order.
        resumed: number of rows that an earlier run had done.
        elapsed_s: of this run.
        report: the HTML file.
        warnings: reasons why workers were retired while others continued.
    """

    results: tuple[RowResult, ...]
    resumed: int
    elapsed_s: float
    report: Path
    warnings: tuple[str, ...] = ()

    def count(self, status: RowStatus) -> int:
        """Return the number of rows with that status."""
        return sum(result.status is status for result in self.results)


def run_batch(
    source: Path | str,
    output: Path | str,
    params: SyncParams | None = None,
    *,
    model_options: ModelOptions | None = None,
    engine: BatchEngine = BatchEngine.LOCAL,
    workers: int | None = None,
    skip_bad: bool = False,
    consent: str | None = None,
) -> Generator[BatchProgress, None, BatchResult]:
    """Lip-sync every clip of a manifest or folder that is not done yet.

    Args:
        source: .csv, .jsonl or a folder with pairs such as talk.mp4 and talk.wav.
        output: folder for the results, results.jsonl, report.html and thumbnails; created if missing.
        params: options of rows that do not set their own; None: the default preset.
        model_options: the model, and how it is loaded.
        engine: where workers run. All machines of a Ray cluster must see inputs and output under one path.
        workers: 1-64; None: one, on a Ray cluster as many as there are free devices.
        skip_bad: render the valid rows although others are invalid.
        consent: reference to the consent of the people shown, of rows that do not set their own.

    Yields:
        Progress.

    Returns:
        The result of every row; a failed clip does not stop the others.

    Raises:
        ManifestError: rows are invalid and `skip_bad` is not set; nothing was started.
        InputError: the manifest is not readable.
        ResourceError: JOB_BUSY, another batch writes to the folder; OUTPUT_NOT_WRITABLE; WORKER_LOST, workers
            do not start; CLUSTER_AWAY; DISK_FULL, DEVICE_UNAVAILABLE, FFMPEG_MISSING or SIGNING_FAILED, with
            which every clip would fail.
        ParameterError: `workers` or `model_options.jobs` is out of range.
        LipSyncError: the model cannot be loaded; the code names the reason.
    """
    if workers is not None and not 1 <= workers <= MAX_WORKERS:
        raise ParameterError(f"workers={workers} is out of range: use a value between 1 and {MAX_WORKERS}.")
    options = model_options or ModelOptions()
    if not 1 <= options.jobs <= MAX_JOBS:
        raise ParameterError(f"jobs={options.jobs} is out of range: use a value between 1 and {MAX_JOBS}.")
    folder = Path(output)
    start_s = time.monotonic()
    # 1. Read the manifest. Problems in it are raised before anything is written.
    WeightsStore().entry(options.model)
    manifest = read_manifest(Path(source), params or SyncParams(), folder, consent)
    signer = ManifestSigner.from_environment(options.marking)
    signer.check_can_sign(Path("result.mp4"))
    with (
        _open_backend(engine, options, manifest, folder) as backend,
        locked_output_dir(folder),
        ResultLog(folder) as log,
    ):
        # 2. Check every row: whether it is done, and if not, whether its files are usable.
        runner = BatchRunner(manifest, folder, log, options, signer)
        yield from runner.check_rows()
        if runner.problems and not skip_bad:
            raise ManifestError(runner.problems, manifest.n_rows)
        runner.refuse_invalid_rows()
        # 3. Render the rest. The report is written however this ends.
        try:
            if runner.waiting:
                yield from runner.run_jobs(backend, workers or min(backend.default_size(), MAX_WORKERS))
        finally:
            report = folder / REPORT_NAME
            write_report(report, runner.rows, runner.results, manifest.n_rows, time.monotonic() - start_s)
        results = tuple(runner.results[number] for number in sorted(runner.results))
        elapsed_s = time.monotonic() - start_s
        return BatchResult(results, runner.n_resumed, elapsed_s, report, tuple(runner.warnings))


def _open_backend(
    engine: BatchEngine, options: ModelOptions, manifest: Manifest, folder: Path
) -> WorkerBackend:
    if engine is BatchEngine.LOCAL:
        return LocalBackend(options)
    try:
        from lipsync_engine.batch import ray_backend  # Ray comes with an extra
    except ModuleNotFoundError as error:
        raise ResourceError(
            ErrorCode.CLUSTER_AWAY, "Ray is not installed: run `pip install 'lipsync-engine[ray]'`."
        ) from error
    inputs = {path.absolute().parent for row in manifest.rows for path in row.inputs.values()}
    paths = ray_backend.SharedPaths(folder.absolute(), LOCK_NAME, inputs)
    return ray_backend.RayBackend(options, paths)
