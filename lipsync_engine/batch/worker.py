"""A worker process of a batch: it loads the model once and lip-syncs clip after clip, or a few at once.

    python -m lipsync_engine.batch.worker --model tiny

Commands arrive as lines on standard input, events leave on standard output (`messages`). Whatever libraries
print goes to standard error. The worker exits when its parent does. A bug ends it with a traceback, and the
parent notices the exit.
"""

from __future__ import annotations

import argparse
import logging
import os
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import torch

from lipsync_engine import media
from lipsync_engine.batch.manifest import InputRole
from lipsync_engine.batch.messages import (
    FromWorker,
    JobFailed,
    JobProgress,
    JobSucceeded,
    RunJob,
    Shutdown,
    WorkerReady,
    WorkerUnusable,
    line_from_worker,
    read_to_worker,
)
from lipsync_engine.batch.results import ClipStats, InputFile, SyncSummary
from lipsync_engine.errors import Cancelled, ErrorCode, InputError, LipSyncError
from lipsync_engine.faces import FaceDetector
from lipsync_engine.faces.registry import load_detector
from lipsync_engine.params import Provenance
from lipsync_engine.pipeline import LipSyncPipeline
from lipsync_engine.progress import Progress
from lipsync_engine.result import SyncResult
from lipsync_engine.utils import drain
from lipsync_engine.weights import WeightsStore

REPORT_INTERVAL_S = 0.25


class ClipWorker:
    """Reads commands, runs jobs, sends events.

    Args:
        commands, events: binary streams from and to the parent.
    """

    def __init__(self, commands: BinaryIO, events: BinaryIO) -> None:
        self._commands, self._events = commands, events
        self._jobs: queue.Queue[RunJob | None] = queue.Queue()
        self._is_stopping = threading.Event()
        self._write_lock = threading.Lock()

    def read_commands(self) -> None:
        """Read commands until the parent closes the pipe, then exit; for a thread of its own."""
        for line in self._commands:
            match read_to_worker(line):
                case RunJob() as job:
                    self._jobs.put(job)
                case Shutdown():
                    self._is_stopping.set()
                    self._jobs.put(None)
        os._exit(0)  # the parent is gone, so the results of the other threads are not needed

    def run(self, pipelines: Sequence[LipSyncPipeline]) -> None:
        """Run jobs until `Shutdown`, each pipeline in a thread of its own.

        Raises:
            Exception: a bug in any of the threads; the others were stopped.
        """
        self.send(WorkerReady(str(pipelines[0].model.device)))
        with ThreadPoolExecutor(len(pipelines), thread_name_prefix="clips") as threads:
            futures = [threads.submit(self._run_jobs, pipeline) for pipeline in pipelines]
            wait(futures, return_when=FIRST_EXCEPTION)
            self._is_stopping.set()
            self._jobs.put(None)
        for future in futures:
            future.result()

    def _run_jobs(self, pipeline: LipSyncPipeline) -> None:
        while (job := self._jobs.get()) is not None and not self._is_stopping.is_set():
            try:
                self.send(self._run_job(job, pipeline))
            except Cancelled:
                break
            except LipSyncError as error:
                self.send(JobFailed(job.row.number, error.code, error.message))
        self._jobs.put(None)  # wake the next thread

    def _run_job(self, job: RunJob, pipeline: LipSyncPipeline) -> JobSucceeded:
        """Run one job.

        Raises:
            Cancelled: the worker is shutting down.
            LipSyncError: the clip failed.
        """
        row = job.row
        inputs = {str(role): _describe_input(path) for role, path in row.inputs.items()}
        source, audio = row.inputs[row.source_role], row.inputs[InputRole.AUDIO]
        output_audio, provenance = row.inputs.get(InputRole.OUTPUT_AUDIO), Provenance(consent=row.consent)
        if row.source_role is InputRole.IMAGE:
            steps = pipeline.run_portrait(
                source,
                audio,
                job.output,
                row.params,
                motion=row.motion,
                prompt=row.prompt,
                output_audio=output_audio,
                provenance=provenance,
            )
        else:
            steps = pipeline.run(
                source, audio, job.output, row.params, output_audio=output_audio, provenance=provenance
            )
        reported_at, stage = 0.0, None

        def report(progress: Progress) -> None:
            nonlocal reported_at, stage
            if self._is_stopping.is_set():
                raise Cancelled
            now = time.monotonic()
            if progress.stage is not stage or now - reported_at >= REPORT_INTERVAL_S:
                reported_at, stage = now, progress.stage
                self.send(JobProgress(row.number, progress.stage, progress.done, progress.total))

        result = drain(steps, report)
        return JobSucceeded(row.number, _clip_stats(result, job.thumbnail), inputs)

    def send(self, message: FromWorker) -> None:
        """Send an event; may be called from any thread."""
        with self._write_lock:
            self._events.write(line_from_worker(message))
            self._events.flush()


def _clip_stats(result: SyncResult, thumbnail: Path) -> ClipStats:
    """Return a result's figures, and write its thumbnail."""
    duration_s = result.frames / float(result.fps)
    seconds = result.seconds
    sync = None
    if result.sync is not None:
        sync = SyncSummary(round(result.sync.confidence, 3), result.sync.offset_frames)
    return ClipStats(
        frames=result.frames,
        frames_without_face=result.frames_without_face,
        duration_s=duration_s,
        segments_resumed=result.segments_resumed,
        seconds={
            "motion": seconds.motion,
            "faces": seconds.faces,
            "audio": seconds.audio,
            "render": seconds.render,
            "assemble": seconds.assemble,
        },
        warnings=result.warnings,
        is_signed=result.is_signed,
        sync=sync,
        has_thumbnail=_write_thumbnail(result.output, duration_s / 2, thumbnail),
    )


def _describe_input(path: Path) -> InputFile:
    try:
        status = path.stat()
        return InputFile(path, status.st_size, status.st_mtime_ns, media.content_hash(path))
    except OSError as error:
        raise InputError(
            ErrorCode.INPUT_UNREADABLE,
            f"{path.name!r} is no longer readable ({error.strerror}): restore the file.",
        ) from error


def _write_thumbnail(video: Path, time_s: float, file: Path) -> bool:
    with suppress(LipSyncError):  # a result without a thumbnail is still a result
        media.write_still(video, time_s, file)
        return True
    return False


def _choose_device(device: str | None, index: int) -> str | None:
    """Return the device of the options; without one, spread workers over the CUDA devices."""
    n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device is not None or os.environ.get("LIPSYNC_DEVICE") or n_devices < 2:
        return device
    return f"cuda:{index % n_devices}"


def _load_detector(arguments: argparse.Namespace) -> FaceDetector:
    store = WeightsStore()
    return load_detector(arguments.detector or store.entry(arguments.model).detector, store)


def main() -> None:
    """Load the model and run jobs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--detector")
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--marking")
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")

    # Standard output belongs to the protocol, so file descriptor 1 becomes standard error for everything
    # else. Commands have a stream of their own, as Python's exit would wait for a thread that reads
    # `sys.stdin`.
    commands, events = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    worker = ClipWorker(commands, events)
    threading.Thread(target=worker.read_commands, name="commands", daemon=True).start()
    try:
        pipeline = LipSyncPipeline.from_pretrained(
            arguments.model,
            device=_choose_device(arguments.device, arguments.index),
            dtype=arguments.dtype,
            detector=arguments.detector,
            cache_dir=arguments.cache_dir,
            marking=arguments.marking,
        )
        detectors = (_load_detector(arguments) for _ in range(1, arguments.jobs))
        pipelines = [pipeline, *map(pipeline.clone_for_thread, detectors)]
    except LipSyncError as error:
        worker.send(WorkerUnusable(error.code, error.message))
        return
    worker.run(pipelines)


if __name__ == "__main__":
    main()
