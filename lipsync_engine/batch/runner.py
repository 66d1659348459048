"""The run of a batch: check rows, assign them to workers, record results.

The module does not know where workers run.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path

from lipsync_engine import media
from lipsync_engine.batch.manifest import InputRole, Manifest, ManifestProblem, ManifestRow
from lipsync_engine.batch.messages import (
    JobFailed,
    JobProgress,
    JobSucceeded,
    RunJob,
    WorkerReady,
    WorkerUnusable,
)
from lipsync_engine.batch.output_dir import LOG_NAME, open_worker_log
from lipsync_engine.batch.report import write_report
from lipsync_engine.batch.results import (
    ClipStats,
    InputFile,
    ResultLog,
    RowResult,
    RowStatus,
    options_sha256,
    thumbnail_path,
)
from lipsync_engine.batch.worker_process import ModelOptions, WorkerBackend, WorkerHandle, WorkerPool
from lipsync_engine.errors import ErrorCode, LipSyncError, ParameterError, ResourceError
from lipsync_engine.progress import Stage
from lipsync_engine.provenance import ManifestSigner

MAX_ATTEMPTS = 2
"""Attempts at a clip whose worker dies; after the last one the clip is taken for the cause."""

MAX_FAILED_STARTS = 3
"""Workers in a row that may die before they are ready; later ones are not replaced."""

REPORT_INTERVAL_S = 30.0

FATAL_CODES = frozenset(
    {
        ErrorCode.DISK_FULL,
        ErrorCode.DEVICE_UNAVAILABLE,
        ErrorCode.FFMPEG_MISSING,
        ErrorCode.SIGNING_FAILED,
    }
)
"""Every other clip would fail with these too, so the worker is retired and its clips are reassigned. When the
last worker is retired the batch ends; the same command resumes it once the cause is fixed."""

REPORT_NAME = "report.html"


@dataclass(frozen=True, slots=True)
class RunningClip:
    """A clip that a worker renders; `stage` is None before it begins, `total` 0 if unknown."""

    output: str
    stage: Stage | None = None
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """One progress report.

    Attributes:
        checked, rows: rows checked, and number of rows; rendering begins when all are checked.
        done: complete clips.
        resumed: clips of `done` that were complete before this run.
        failed: failed and refused rows.
        running: the clips that workers render, in order of workers.
        eta_s: seconds to go at this run's speed; None if unknown.
    """

    checked: int
    rows: int
    done: int = 0
    resumed: int = 0
    failed: int = 0
    running: tuple[RunningClip, ...] = ()
    eta_s: float | None = None


@dataclass(slots=True, eq=False)
class _Task:
    """A row that is waiting or running.

    Attributes:
        options_hash: see `options_sha256`.
        blocked_by: numbers of running rows; the task may start once one of them has ended.
    """

    row: ManifestRow
    options_hash: str
    attempts: int = 0
    blocked_by: frozenset[int] = frozenset()
    clip: RunningClip = field(init=False)

    def __post_init__(self) -> None:
        self.clip = RunningClip(self.row.output)

    @property
    def work_key(self) -> object:
        """Equal for rows that the engine would render in one work folder, and so not at the same time."""
        return sorted(self.row.inputs.items()), self.row.params


class BatchRunner:
    """Runs one batch.

    Attributes:
        rows: valid rows by number.
        problems: of invalid rows.
        results: by row number.
        n_resumed: rows that an earlier run has done.
        warnings: as of `BatchResult`.
    """

    def __init__(
        self, manifest: Manifest, folder: Path, log: ResultLog, options: ModelOptions, signer: ManifestSigner
    ) -> None:
        self._manifest, self._folder, self._log, self._options = manifest, folder, log, options
        self._signer = signer
        self._model = (options.model, str(options.detector), str(options.dtype))
        self.rows = {row.number: row for row in manifest.rows}
        self.problems = manifest.problems
        self.waiting: deque[_Task] = deque()
        self.results: dict[int, RowResult] = {}
        self.n_resumed = 0
        self.warnings: list[str] = []
        self._media_s: dict[int, float] = {}
        self._running: dict[tuple[WorkerHandle, int], _Task] = {}  # the int is the row's number
        self._start_s = time.monotonic()
        self._finished_media_s = 0.0

    # --- before work ---

    def check_rows(self) -> Generator[BatchProgress, None, None]:
        """Determine which rows are done, and probe the files of the others."""
        n_invalid = n_checked = self._manifest.n_rows - len(self._manifest.rows)
        yield BatchProgress(n_checked, self._manifest.n_rows)
        problems: list[ManifestProblem] = []
        with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="check") as threads:
            futures = {threads.submit(self._check_row, row): row for row in self._manifest.rows}
            try:
                for future in as_completed(futures):
                    row, outcome = futures[future], future.result()
                    if isinstance(outcome, RowResult):
                        self.results[row.number] = replace(outcome, row=row.number)
                        self.n_resumed += 1
                    elif isinstance(outcome, ManifestProblem):
                        problems.append(outcome)
                    else:
                        self._media_s[row.number] = outcome
                    n_checked += 1
                    yield BatchProgress(
                        n_checked,
                        self._manifest.n_rows,
                        self.n_resumed,
                        self.n_resumed,
                        n_invalid + len(problems),
                    )
            finally:
                threads.shutdown(cancel_futures=True)
        self.problems = tuple(sorted([*self.problems, *problems], key=lambda problem: problem.row))
        for row in self._manifest.rows:
            if row.number in self._media_s:
                self.waiting.append(_Task(row, options_sha256(row, self._model)))

    def _check_row(self, row: ManifestRow) -> RowResult | ManifestProblem | float:
        """Return an earlier result, a problem if the row is invalid, else the expected length in seconds."""
        result = self._log.find_done(row, options_sha256(row, self._model))
        if result is not None:
            return result
        try:
            self._signer.check_container(Path(row.output))
        except ParameterError as error:
            return ManifestProblem(row.number, "output", error.code, error.message)
        duration_s = 0.0
        for role, path in row.inputs.items():
            try:
                match role:
                    case InputRole.VIDEO:
                        media.check_hdr(media.probe_video(path), row.params.hdr)
                    case InputRole.IMAGE:
                        media.read_image(path, row.params.max_short_side)
                    case InputRole.MASK_IMAGE:
                        media.read_image(path)
                    case InputRole.AUDIO:
                        duration_s = media.probe_audio(path).duration_s
                    case InputRole.OUTPUT_AUDIO:
                        media.probe_audio(path)
            except LipSyncError as error:
                return ManifestProblem(row.number, str(role), error.code, error.message)
        return duration_s

    def refuse_invalid_rows(self) -> None:
        """Record the rows that are not tried."""
        by_row: dict[int, list[ManifestProblem]] = {}
        for problem in self.problems:
            by_row.setdefault(problem.row, []).append(problem)
        for number, problems in by_row.items():
            row = self.rows.get(number)
            messages = [f"{p.column}: {p.message}" if p.column else p.message for p in problems]
            result = RowResult(
                row=number,
                status=RowStatus.REFUSED,
                output=row.output if row else "",
                finished_at=time.time(),
                inputs=_input_files(row) if row else {},
                code=problems[0].code,
                message=" ".join(messages),
                consent=row.consent if row else None,
                clip="" if row else problems[0].clip,
            )
            self._record_result(result)

    # --- work ---

    def run_jobs(self, backend: WorkerBackend, n_workers: int) -> Generator[BatchProgress, None, None]:
        """Have workers render every waiting row."""
        start_s = reported_s = time.monotonic()
        failed_starts = 0
        (self._folder / "thumbnails").mkdir(exist_ok=True)
        n_useful = -(-len(self.waiting) // self._options.jobs)
        with (
            open_worker_log(self._folder) as log,
            WorkerPool(backend, min(n_workers, n_useful), log) as pool,
        ):
            while self.waiting or self._running:
                worker, event = pool.receive()
                match event:
                    case WorkerReady():
                        failed_starts = 0
                        worker.is_ready = True
                        if not self._running and not self._finished_media_s:
                            self._start_s = time.monotonic()  # loading is no part of the rendering speed
                        self._assign_jobs(worker)
                    case WorkerUnusable(code=code, message=message):
                        self._retire_worker(pool, worker, LipSyncError(code, message))
                    case JobProgress(row=number, stage=stage, done=done, total=total):
                        task = self._running[worker, number]
                        task.clip = RunningClip(task.row.output, stage, done, total)
                    case JobSucceeded(row=number, stats=stats, inputs=inputs):
                        self._finish_job(worker, number, inputs, stats=stats)
                        self._assign_all(pool)
                    case JobFailed(code=code, message=message) if code in FATAL_CODES:
                        self._retire_worker(pool, worker, ResourceError(code, message))
                    case JobFailed(row=number, code=ErrorCode.JOB_BUSY) if len(self._running) > 1:
                        self._postpone_job(worker, number)
                        self._assign_all(pool)
                    case JobFailed(row=number, code=code, message=message):
                        inputs = _input_files(self.rows[number])
                        self._finish_job(worker, number, inputs, code=code, message=message)
                        self._assign_all(pool)
                    case None:
                        failed_starts += not worker.is_ready
                        self._requeue_jobs(worker)
                        pool.retire_worker(worker)
                        self._assign_all(pool)
                        if self.waiting and failed_starts < MAX_FAILED_STARTS:
                            pool.start_worker(worker.index)
                        elif self.waiting and pool.is_empty:
                            raise ResourceError(
                                ErrorCode.WORKER_LOST,
                                f"Workers exit before they are ready ({worker.exit_description}): see "
                                f"{LOG_NAME} in the output folder, and run `lipsync doctor`.",
                            )
                if time.monotonic() - reported_s >= REPORT_INTERVAL_S:
                    reported_s = time.monotonic()
                    report = self._folder / REPORT_NAME
                    write_report(report, self.rows, self.results, self._manifest.n_rows, reported_s - start_s)
                yield self._report_progress()

    def _assign_all(self, pool: WorkerPool) -> None:
        """Assign jobs to every ready worker, because a row may have waited for the end of another."""
        for worker in pool.ready_workers():
            self._assign_jobs(worker)

    def _assign_jobs(self, worker: WorkerHandle) -> None:
        """Assign as many jobs as the worker runs at once."""
        while (task := self._next_task(worker)) is not None:
            self.waiting.remove(task)
            task.attempts += 1
            task.clip = RunningClip(task.row.output)
            self._running[worker, task.row.number] = task
            output = self._folder / task.row.output
            try:
                output.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                self._finish_job(
                    worker,
                    task.row.number,
                    _input_files(task.row),
                    code=ErrorCode.OUTPUT_NOT_WRITABLE,
                    message=f"The folder of {task.row.output!r} cannot be created ({error.strerror}): use "
                    "another output.",
                )
                continue
            thumbnail = self._folder / thumbnail_path(task.row.output)
            worker.run_job(RunJob(_with_absolute_inputs(task.row), output.absolute(), thumbnail.absolute()))

    def _next_task(self, worker: WorkerHandle) -> _Task | None:
        """Return the task that the worker may start now.

        A clip whose worker died is retried alone on its worker, so that another death harms no other clip.
        """
        own_tasks = self._tasks_of(worker)
        if len(own_tasks) >= self._options.jobs or any(task.attempts > 1 for task in own_tasks):
            return None
        running_keys = [task.work_key for task in self._running.values()]
        running_rows = {number for _, number in self._running}
        startable = (t for t in self.waiting if not t.blocked_by or not t.blocked_by <= running_rows)
        task = next((t for t in startable if t.work_key not in running_keys), None)
        return None if task is None or (task.attempts and own_tasks) else task

    def _tasks_of(self, worker: WorkerHandle) -> list[_Task]:
        return [task for (owner, _), task in self._running.items() if owner is worker]

    def _postpone_job(self, worker: WorkerHandle, number: int) -> None:
        """Requeue a job whose input files equal, byte for byte, those of a running row."""
        task = self._running.pop((worker, number))
        task.attempts -= 1
        task.blocked_by = frozenset(row for _, row in self._running)
        self.waiting.append(task)

    def _retire_worker(self, pool: WorkerPool, worker: WorkerHandle, reason: LipSyncError) -> None:
        """Continue without a worker that cannot render anything more."""
        for task in self._tasks_of(worker):
            del self._running[worker, task.row.number]
            task.attempts -= 1
            self.waiting.appendleft(task)
        pool.retire_worker(worker)
        if pool.is_empty:
            raise reason
        self.warnings.append(reason.message)
        self._assign_all(pool)

    def _requeue_jobs(self, worker: WorkerHandle) -> None:
        """Requeue the jobs of a worker that died; a job that has used up its attempts fails."""
        for task in self._tasks_of(worker):
            if task.attempts < MAX_ATTEMPTS:
                del self._running[worker, task.row.number]
                self.waiting.appendleft(task)
                continue
            self._finish_job(
                worker,
                task.row.number,
                _input_files(task.row),
                code=ErrorCode.WORKER_LOST,
                message=f"The worker died in each of {MAX_ATTEMPTS} attempts at this clip "
                f"({worker.exit_description}): see {LOG_NAME}, and check that there is enough memory.",
            )

    def _finish_job(
        self,
        worker: WorkerHandle,
        number: int,
        inputs: Mapping[str, InputFile],
        *,
        stats: ClipStats | None = None,
        code: ErrorCode | None = None,
        message: str = "",
    ) -> None:
        task = self._running.pop((worker, number))
        self._finished_media_s += self._media_s[task.row.number]
        self._record_result(
            RowResult(
                row=task.row.number,
                status=RowStatus.FAILED if stats is None else RowStatus.DONE,
                output=task.row.output,
                finished_at=time.time(),
                inputs=inputs,
                options_sha256=task.options_hash,
                code=code,
                message=message,
                attempts=task.attempts,
                stats=stats,
                consent=task.row.consent,
            )
        )

    def _record_result(self, result: RowResult) -> None:
        self._log.append(result)
        self.results[result.row] = result

    def _report_progress(self) -> BatchProgress:
        n_done = sum(result.status is RowStatus.DONE for result in self.results.values())
        by_worker = sorted(self._running.items(), key=lambda item: (item[0][0].index, item[0][1]))
        tasks = [task for _, task in by_worker]
        return BatchProgress(
            checked=self._manifest.n_rows,
            rows=self._manifest.n_rows,
            done=n_done,
            resumed=self.n_resumed,
            failed=len(self.results) - n_done,
            running=tuple(task.clip for task in tasks),
            eta_s=self._eta_s(tasks),
        )

    def _eta_s(self, tasks: Sequence[_Task]) -> float | None:
        """Return the remaining time at the rate of media seconds so far, running clips included."""
        rendered_s = self._finished_media_s
        remaining_s = sum(self._media_s[task.row.number] for task in self.waiting)
        for task in tasks:
            clip, length_s = task.clip, self._media_s[task.row.number]
            share = clip.done / clip.total if clip.stage is Stage.RENDER and clip.total else 0.0
            share = 1.0 if clip.stage is Stage.ASSEMBLE else min(1.0, share)
            rendered_s += share * length_s
            remaining_s += (1 - share) * length_s
        if rendered_s <= 0:
            return None
        return (time.monotonic() - self._start_s) * remaining_s / rendered_s


def _input_files(row: ManifestRow) -> dict[str, InputFile]:
    return {str(role): InputFile(path) for role, path in row.inputs.items()}


def _with_absolute_inputs(row: ManifestRow) -> ManifestRow:
    return replace(row, inputs={role: path.absolute() for role, path in row.inputs.items()})
