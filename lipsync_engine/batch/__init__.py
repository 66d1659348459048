"""Many clips from one command: checked as a whole, made by workers that load the model once, resumed.

    manifest  rows of a file or a folder, and what is wrong with them
    results   OUT/results.jsonl: what is done
    folder    OUT belongs to one batch; OUT/workers.log
    making    rows are looked at, given to workers, their results noted
    messages  what the batch and its workers say to each other
    pool      workers: processes here
    ray_pool  workers on a Ray cluster
    worker    the process that makes clips
    report    OUT/report.html

`run_batch` is a generator that yields where it is; closing it stops the workers between two frames. It knows
neither terminals nor HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from lipsync_engine.batch.manifest import Manifest, ManifestError, Problem, Row, read_manifest
from lipsync_engine.batch.output_dir import LOCK_NAME, only_batch
from lipsync_engine.batch.report import write_report
from lipsync_engine.batch.results import Ledger, Result, Status
from lipsync_engine.batch.runner import REPORT_NAME, Batch, BatchProgress, Running
from lipsync_engine.batch.worker_process import Loading, Machines, ThisMachine
from lipsync_engine.errors import ErrorCode, ParameterError, ResourceError
from lipsync_engine.params import BatchEngine, SyncParams
from lipsync_engine.provenance import ManifestSigner
from lipsync_engine.weights import WeightsStore

__all__ = [
    "BatchProgress",
    "BatchResult",
    "Loading",
    "ManifestError",
    "Problem",
    "Result",
    "Row",
    "Running",
    "Status",
    "run_batch",
]

MAX_WORKERS = 64
MAX_JOBS = 16


@dataclass(frozen=True, slots=True)
class BatchResult:
    """How it ended.

    Attributes:
        results: of every row, in the manifest's order.
        resumed: how many of them an earlier run had done.
        elapsed_s: of this run.
        report: the HTML file.
        warnings: why workers were let go, while others went on.
    """

    results: tuple[Result, ...]
    resumed: int
    elapsed_s: float
    report: Path
    warnings: tuple[str, ...] = ()

    def count(self, status: Status) -> int:
        return sum(result.status is status for result in self.results)


def run_batch(
    source: Path | str,
    output: Path | str,
    params: SyncParams | None = None,
    *,
    loading: Loading | None = None,
    engine: BatchEngine = BatchEngine.LOCAL,
    workers: int | None = None,
    skip_bad: bool = False,
    consent: str | None = None,
) -> Generator[BatchProgress, None, BatchResult]:
    """Make every clip of a manifest or folder that is not made yet.

    Args:
        source: .csv, .jsonl or a folder with pairs such as talk.mp4 and talk.wav.
        output: folder for the results, results.jsonl, report.html and thumbnails; made where there is none.
        params: options of rows that have none of their own; None: the default preset.
        loading: the model, and how it is loaded.
        engine: where workers run. All machines of a Ray cluster must see inputs and output under one path.
        workers: 1-64; None: one, on a Ray cluster as many as have a free device.
        skip_bad: make the good rows where others are bad.
        consent: reference to the consent of the people shown, of rows that have none of their own.

    Yields:
        Where it is.

    Returns:
        The result of every row; one bad clip does not stop the others.

    Raises:
        ManifestError: rows are bad, and `skip_bad` is not given; nothing was started.
        InputError: the manifest cannot be read.
        ResourceError: JOB_BUSY, another batch writes to the folder; OUTPUT_NOT_WRITABLE; WORKER_LOST, workers
            do not start; CLUSTER_AWAY; DISK_FULL, DEVICE_UNAVAILABLE, FFMPEG_MISSING or SIGNING_FAILED,
            which no clip would survive.
        ParameterError: workers, or `loading.jobs`.
        LipSyncError: the model cannot be loaded, with the code that says why.
    """
    if workers is not None and not 1 <= workers <= MAX_WORKERS:
        raise ParameterError(f"workers={workers} is out of range: it must lie between 1 and {MAX_WORKERS}.")
    loading = loading or Loading()
    if not 1 <= loading.jobs <= MAX_JOBS:
        raise ParameterError(f"jobs={loading.jobs} is out of range: it must lie between 1 and {MAX_JOBS}.")
    folder = Path(output)
    began = time.monotonic()
    # 1. Read: what is wrong with the manifest itself is known before anything is written.
    WeightsStore().entry(loading.model)
    manifest = read_manifest(Path(source), params or SyncParams(), folder, consent)
    signer = ManifestSigner.from_environment(loading.marking)
    signer.check_can_sign(Path("result.mp4"))
    with (
        _machines(engine, loading, manifest, folder) as machines,
        only_batch(folder),
        Ledger(folder) as ledger,
    ):
        # 2. Look at every row: is it done, and if not, can its files be used?
        batch = Batch(manifest, folder, ledger, loading, signer)
        yield from batch.check()
        if batch.problems and not skip_bad:
            raise ManifestError(batch.problems, manifest.n_rows)
        batch.refuse()
        # 3. Make the rest. The report is true whatever ends this.
        try:
            if batch.waiting:
                yield from batch.make(machines, workers or min(machines.usual_size(), MAX_WORKERS))
        finally:
            report = folder / REPORT_NAME
            write_report(report, batch.rows, batch.results, manifest.n_rows, time.monotonic() - began)
        results = tuple(batch.results[number] for number in sorted(batch.results))
        elapsed_s = time.monotonic() - began
        return BatchResult(results, batch.resumed, elapsed_s, report, tuple(batch.warnings))


def _machines(engine: BatchEngine, loading: Loading, manifest: Manifest, folder: Path) -> Machines:
    if engine is BatchEngine.LOCAL:
        return ThisMachine(loading)
    try:
        from lipsync_engine.batch import ray_backend  # Ray comes with an extra
    except ModuleNotFoundError as error:
        raise ResourceError(
            ErrorCode.CLUSTER_AWAY, "Ray is not installed: pip install 'lipsync-engine[ray]'."
        ) from error
    inputs = {path.absolute().parent for row in manifest.rows for path in row.inputs.values()}
    folders = ray_backend.Folders(folder.absolute(), LOCK_NAME, inputs)
    return ray_backend.Cluster(loading, folders)
