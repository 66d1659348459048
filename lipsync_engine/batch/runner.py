"""A batch at work: rows are looked at, given to workers, and their results noted.

It does not know where workers run.
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
from lipsync_engine.batch.manifest import Input, Manifest, Problem, Row
from lipsync_engine.batch.messages import Done, Failed, Ready, Start, Unable, Working
from lipsync_engine.batch.output_dir import LOG_NAME, log_of
from lipsync_engine.batch.report import write_report
from lipsync_engine.batch.results import (
    InputFile,
    Ledger,
    Made,
    Result,
    Status,
    options_sha256,
    thumbnail,
)
from lipsync_engine.batch.worker_process import Loading, Machines, Pool, Worker
from lipsync_engine.errors import ErrorCode, LipSyncError, ParameterError, ResourceError
from lipsync_engine.progress import Stage
from lipsync_engine.provenance import ManifestSigner

ATTEMPTS = 2
"""So often is a clip tried whose worker dies; another death is taken for the clip's doing."""

STARTS = 3
"""So often in a row may workers die before they are ready; those that die then are not replaced."""

REPORT_EVERY_S = 30.0

NO_MORE = frozenset(
    {
        ErrorCode.DISK_FULL,
        ErrorCode.DEVICE_UNAVAILABLE,
        ErrorCode.FFMPEG_MISSING,
        ErrorCode.SIGNING_FAILED,
    }
)
"""Every other clip would fail with these: a worker that says so is let go, and its clips are given to others.
With the last the batch ends, and goes on when they are put right."""

REPORT_NAME = "report.html"


@dataclass(frozen=True, slots=True)
class Running:
    """A clip that is being made; `stage` is None before it begins, `total` 0 where it is not known."""

    output: str
    stage: Stage | None = None
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """One report.

    Attributes:
        checked, rows: rows looked at, and all there are; work begins when all are.
        done: clips that are complete; `resumed` of them were before this run.
        failed: rows that cannot be made, refused ones among them.
        running: what the workers make, in order of workers.
        left_s: seconds to go at this run's speed; None when nothing can be said yet.
    """

    checked: int
    rows: int
    done: int = 0
    resumed: int = 0
    failed: int = 0
    running: tuple[Running, ...] = ()
    left_s: float | None = None


@dataclass(slots=True, eq=False)
class _Task:
    """A row that a worker has or waits for; `after`: rows of which one must end first."""

    row: Row
    options: str
    attempts: int = 0
    after: frozenset[int] = frozenset()
    seen: Running = field(init=False)

    def __post_init__(self) -> None:
        self.seen = Running(self.row.output)

    @property
    def work(self) -> object:
        """Equal for rows that the engine would do in one work folder, and so not at once."""
        return sorted(self.row.inputs.items()), self.row.params


class Batch:
    """The state of a run.

    Attributes:
        rows: that can be named, by number.
        problems: of rows that cannot be made.
        results: by row number.
        resumed: rows that an earlier run has done.
        warnings: as of `BatchResult`.
    """

    def __init__(
        self, manifest: Manifest, folder: Path, ledger: Ledger, loading: Loading, signer: ManifestSigner
    ) -> None:
        self._manifest, self._folder, self._ledger, self._loading = manifest, folder, ledger, loading
        self._signer = signer
        self._model = (loading.model, str(loading.detector), str(loading.dtype))
        self.rows = {row.number: row for row in manifest.rows}
        self.problems = manifest.problems
        self.waiting: deque[_Task] = deque()
        self.results: dict[int, Result] = {}
        self.resumed = 0
        self.warnings: list[str] = []
        self._media_s: dict[int, float] = {}
        self._running: dict[tuple[Worker, int], _Task] = {}  # by the row's number
        self._began = time.monotonic()
        self._made_media_s = 0.0

    # --- before work ---

    def check(self) -> Generator[BatchProgress, None, None]:
        """Find rows that are done, and what is wrong with the files of others."""
        looked = bad = self._manifest.n_rows - len(self._manifest.rows)
        yield BatchProgress(looked, self._manifest.n_rows)
        found: list[Problem] = []
        with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="check") as pool:
            futures = {pool.submit(self._look, row): row for row in self._manifest.rows}
            try:
                for future in as_completed(futures):
                    row, known = futures[future], future.result()
                    if isinstance(known, Result):
                        self.results[row.number] = replace(known, row=row.number)
                        self.resumed += 1
                    elif isinstance(known, Problem):
                        found.append(known)
                    else:
                        self._media_s[row.number] = known
                    looked += 1
                    yield BatchProgress(
                        looked, self._manifest.n_rows, self.resumed, self.resumed, bad + len(found)
                    )
            finally:
                pool.shutdown(cancel_futures=True)
        self.problems = tuple(sorted([*self.problems, *found], key=lambda problem: problem.row))
        for row in self._manifest.rows:
            if row.number in self._media_s:
                self.waiting.append(_Task(row, options_sha256(row, self._model)))

    def _look(self, row: Row) -> Result | Problem | float:
        """How long the result will be, in seconds, unless it is there or cannot be."""
        done = self._ledger.done(row, options_sha256(row, self._model))
        if done is not None:
            return done
        try:
            self._signer.check_container(Path(row.output))
        except ParameterError as error:
            return Problem(row.number, "output", error.code, error.message)
        duration_s = 0.0
        for role, path in row.inputs.items():
            try:
                match role:
                    case Input.VIDEO:
                        media.probe_video(path)
                    case Input.IMAGE:
                        media.read_image(path, row.params.max_short_side)
                    case Input.MASK_IMAGE:
                        media.read_image(path)
                    case Input.AUDIO:
                        duration_s = media.probe_audio(path).duration_s
                    case Input.OUTPUT_AUDIO:
                        media.probe_audio(path)
            except LipSyncError as error:
                return Problem(row.number, str(role), error.code, error.message)
        return duration_s

    def refuse(self) -> None:
        """Note the rows that will not be tried."""
        by_row: dict[int, list[Problem]] = {}
        for problem in self.problems:
            by_row.setdefault(problem.row, []).append(problem)
        for number, problems in by_row.items():
            row = self.rows.get(number)
            sentences = [f"{p.column}: {p.message}" if p.column else p.message for p in problems]
            result = Result(
                row=number,
                status=Status.REFUSED,
                output=row.output if row else "",
                finished_at=time.time(),
                inputs=_named(row) if row else {},
                code=problems[0].code,
                message=" ".join(sentences),
                consent=row.consent if row else None,
                clip="" if row else problems[0].clip,
            )
            self._note(result)

    # --- work ---

    def make(self, machines: Machines, workers: int) -> Generator[BatchProgress, None, None]:
        """Give every waiting row to a worker."""
        began = written = time.monotonic()
        starts_lost = 0
        (self._folder / "thumbnails").mkdir(exist_ok=True)
        with (
            log_of(self._folder) as log,
            Pool(machines, min(workers, -(-len(self.waiting) // self._loading.jobs)), log) as pool,
        ):
            while self.waiting or self._running:
                worker, message = pool.hear()
                match message:
                    case Ready():
                        starts_lost = 0
                        worker.is_ready = True
                        if not self._running and not self._made_media_s:
                            self._began = time.monotonic()  # loading says nothing of a clip's speed
                        self._give(worker)
                    case Unable(code=code, message=sentence):
                        self._let_go(pool, worker, LipSyncError(code, sentence))
                    case Working(row=row, stage=stage, done=done, total=total):
                        task = self._running[worker, row]
                        task.seen = Running(task.row.output, stage, done, total)
                    case Done(row=row, made=made, inputs=inputs):
                        self._finish(worker, row, inputs, made=made)
                        self._give_all(pool)
                    case Failed(code=code, message=sentence) if code in NO_MORE:
                        self._let_go(pool, worker, ResourceError(code, sentence))
                    case Failed(row=row, code=ErrorCode.JOB_BUSY) if len(self._running) > 1:
                        self._put_off(worker, row)
                        self._give_all(pool)
                    case Failed(row=row, code=code, message=sentence):
                        self._finish(worker, row, _named(self.rows[row]), code=code, message=sentence)
                        self._give_all(pool)
                    case None:
                        starts_lost += not worker.is_ready
                        self._lose(worker)
                        pool.drop(worker)
                        self._give_all(pool)
                        if self.waiting and starts_lost < STARTS:
                            pool.add(worker.index)
                        elif self.waiting and pool.is_empty:
                            raise ResourceError(
                                ErrorCode.WORKER_LOST,
                                f"Workers end before they are ready ({worker.how_it_ended}): {LOG_NAME} in "
                                "the output folder says more; try lipsync doctor.",
                            )
                if time.monotonic() - written >= REPORT_EVERY_S:
                    written = time.monotonic()
                    report = self._folder / REPORT_NAME
                    write_report(report, self.rows, self.results, self._manifest.n_rows, written - began)
                yield self._progress()

    def _give_all(self, pool: Pool) -> None:
        """Work for everyone who has too little; a row may have waited for the end of another."""
        for worker in pool.ready():
            self._give(worker)

    def _give(self, worker: Worker) -> None:
        """As many clips as it makes at once."""
        while (task := self._next(worker)) is not None:
            self.waiting.remove(task)
            task.attempts += 1
            task.seen = Running(task.row.output)
            self._running[worker, task.row.number] = task
            place = self._folder / task.row.output
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                sentence = f"The folder of {task.row.output!r} cannot be made ({error.strerror})."
                code = ErrorCode.OUTPUT_NOT_WRITABLE
                self._finish(worker, task.row.number, _named(task.row), code=code, message=sentence)
                continue
            worker.start(Start(_absolute(task.row), place.absolute(), self._thumbnail(task.row).absolute()))

    def _next(self, worker: Worker) -> _Task | None:
        """What the worker may begin now. A clip whose worker died is tried again alone, to harm no other."""
        mine = self._of(worker)
        if len(mine) >= self._loading.jobs or any(task.attempts > 1 for task in mine):
            return None
        busy, rows = [task.work for task in self._running.values()], {row for _, row in self._running}
        free = (task for task in self.waiting if not task.after or not task.after <= rows)
        task = next((task for task in free if task.work not in busy), None)
        return None if task is None or (task.attempts and mine) else task

    def _of(self, worker: Worker) -> list[_Task]:
        return [task for (whose, _), task in self._running.items() if whose is worker]

    def _put_off(self, worker: Worker, number: int) -> None:
        """Files of another name are the same, byte for byte: their clip is being made for another row."""
        task = self._running.pop((worker, number))
        task.attempts -= 1
        task.after = frozenset(row for _, row in self._running)
        self.waiting.append(task)

    def _let_go(self, pool: Pool, worker: Worker, why: LipSyncError) -> None:
        """Go on without one that can make nothing more."""
        for task in self._of(worker):
            del self._running[worker, task.row.number]
            task.attempts -= 1
            self.waiting.appendleft(task)
        pool.drop(worker)
        if pool.is_empty:
            raise why
        self.warnings.append(why.message)
        self._give_all(pool)

    def _lose(self, worker: Worker) -> None:
        """Its clips are tried once more: only a second death is taken for the clip's doing."""
        for task in self._of(worker):
            if task.attempts < ATTEMPTS:
                del self._running[worker, task.row.number]
                self.waiting.appendleft(task)
                continue
            sentence = (
                f"The worker died twice while it made this clip ({worker.how_it_ended}); {LOG_NAME} may say "
                "why. Is there enough memory?"
            )
            code = ErrorCode.WORKER_LOST
            self._finish(worker, task.row.number, _named(task.row), code=code, message=sentence)

    def _finish(
        self,
        worker: Worker,
        number: int,
        inputs: Mapping[str, InputFile],
        *,
        made: Made | None = None,
        code: ErrorCode | None = None,
        message: str = "",
    ) -> None:
        task = self._running.pop((worker, number))
        self._made_media_s += self._media_s[task.row.number]
        self._note(
            Result(
                row=task.row.number,
                status=Status.FAILED if made is None else Status.DONE,
                output=task.row.output,
                finished_at=time.time(),
                inputs=inputs,
                options_sha256=task.options,
                code=code,
                message=message,
                attempts=task.attempts,
                made=made,
                consent=task.row.consent,
            )
        )

    def _note(self, result: Result) -> None:
        self._ledger.add(result)
        self.results[result.row] = result

    def _thumbnail(self, row: Row) -> Path:
        return self._folder / thumbnail(row.output)

    def _progress(self) -> BatchProgress:
        done = sum(result.status is Status.DONE for result in self.results.values())
        by_place = sorted(self._running.items(), key=lambda item: (item[0][0].index, item[0][1]))
        tasks = [task for _, task in by_place]
        return BatchProgress(
            checked=self._manifest.n_rows,
            rows=self._manifest.n_rows,
            done=done,
            resumed=self.resumed,
            failed=len(self.results) - done,
            running=tuple(task.seen for task in tasks),
            left_s=self._left_s(tasks),
        )

    def _left_s(self, tasks: Sequence[_Task]) -> float | None:
        """From how many seconds of film were made so far, clips in the making included."""
        made_s, left_s = self._made_media_s, 0.0
        for task in self.waiting:
            left_s += self._media_s[task.row.number]
        for task in tasks:
            seen, length_s = task.seen, self._media_s[task.row.number]
            part = seen.done / seen.total if seen.stage is Stage.RENDER and seen.total else 0.0
            part = 1.0 if seen.stage is Stage.ASSEMBLE else min(1.0, part)
            made_s += part * length_s
            left_s += (1 - part) * length_s
        if made_s <= 0:
            return None
        return (time.monotonic() - self._began) * left_s / made_s


def _named(row: Row) -> dict[str, InputFile]:
    return {str(role): InputFile(path) for role, path in row.inputs.items()}


def _absolute(row: Row) -> Row:
    return replace(row, inputs={role: path.absolute() for role, path in row.inputs.items()})
