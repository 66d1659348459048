"""A process of a batch: it loads the model once and makes one clip after the other, or a few at once.

    python -m lipsync_engine.batch.worker --model tiny

Orders come as lines on standard input, answers go out on standard output (`messages`); whatever libraries
print goes to standard error. When its parent goes away, so does it; a mistake of ours ends it with a
traceback, and the parent sees that it is gone.
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
from contextlib import closing, suppress
from pathlib import Path
from typing import BinaryIO

import torch

from lipsync_engine import media
from lipsync_engine.batch.manifest import Input
from lipsync_engine.batch.messages import (
    Done,
    Failed,
    FromWorker,
    Ready,
    Start,
    Stop,
    Unable,
    Working,
    line_from_worker,
    read_to_worker,
)
from lipsync_engine.batch.results import InputFile, Made, Sync
from lipsync_engine.errors import ErrorCode, InputError, LipSyncError
from lipsync_engine.faces import FaceDetector
from lipsync_engine.faces.registry import load_detector
from lipsync_engine.params import Provenance
from lipsync_engine.pipeline import LipSyncPipeline
from lipsync_engine.result import SyncResult
from lipsync_engine.weights import WeightsStore

REPORT_EVERY_S = 0.25


class Worker:
    """See the module.

    Args:
        orders, answers: binary streams from and to the parent.
    """

    def __init__(self, orders: BinaryIO, answers: BinaryIO) -> None:
        self._orders, self._answers = orders, answers
        self._waiting: queue.Queue[Start | None] = queue.Queue()
        self._stop = threading.Event()
        self._mouth = threading.Lock()

    def listen(self) -> None:
        """Read orders until the parent goes away; to be run in a thread of its own."""
        for line in self._orders:
            match read_to_worker(line):
                case Start() as start:
                    self._waiting.put(start)
                case Stop():
                    self._stop.set()
                    self._waiting.put(None)
        os._exit(0)  # whatever the other threads are in the middle of: nobody wants it any more

    def run(self, pipelines: Sequence[LipSyncPipeline]) -> None:
        """Work until told to stop, with each pipeline in a thread of its own.

        Raises:
            Exception: a mistake of ours, in any of them; the others were stopped.
        """
        self.say(Ready(str(pipelines[0].model.device)))
        with ThreadPoolExecutor(len(pipelines), thread_name_prefix="clips") as threads:
            working = [threads.submit(self._work, pipeline) for pipeline in pipelines]
            wait(working, return_when=FIRST_EXCEPTION)
            self._stop.set()
            self._waiting.put(None)
        for one in working:
            one.result()

    def _work(self, pipeline: LipSyncPipeline) -> None:
        while (start := self._waiting.get()) is not None and not self._stop.is_set():
            try:
                answer = self._make(start, pipeline)
            except LipSyncError as error:
                answer = Failed(start.row.number, error.code, error.message)
            if answer is not None:
                self.say(answer)
        self._waiting.put(None)  # for the next thread

    def _make(self, start: Start, pipeline: LipSyncPipeline) -> FromWorker | None:
        """The answer, or None where it was told to stop."""
        row = start.row
        inputs = {str(role): _as_it_is(path) for role, path in row.inputs.items()}
        picture, audio = row.inputs[row.picture], row.inputs[Input.AUDIO]
        heard, provenance = row.inputs.get(Input.OUTPUT_AUDIO), Provenance(consent=row.consent)
        if row.picture is Input.IMAGE:
            steps = pipeline.run_portrait(
                picture,
                audio,
                start.output,
                row.params,
                motion=row.motion,
                prompt=row.prompt,
                output_audio=heard,
                provenance=provenance,
            )
        else:
            steps = pipeline.run(
                picture, audio, start.output, row.params, output_audio=heard, provenance=provenance
            )
        reported, stage = 0.0, None
        with closing(steps):
            while True:
                try:
                    progress = next(steps)
                except StopIteration as finished:
                    result: SyncResult = finished.value
                    break
                if self._stop.is_set():
                    return None
                now = time.monotonic()
                if progress.stage is not stage or now - reported >= REPORT_EVERY_S:
                    reported, stage = now, progress.stage
                    self.say(Working(row.number, progress.stage, progress.done, progress.total))
        duration_s = result.frames / float(result.fps)
        took = result.seconds
        return Done(
            row.number,
            Made(
                frames=result.frames,
                frames_without_face=result.frames_without_face,
                duration_s=duration_s,
                segments_resumed=result.segments_resumed,
                seconds={
                    "motion": took.motion,
                    "faces": took.faces,
                    "audio": took.audio,
                    "render": took.render,
                    "assemble": took.assemble,
                },
                warnings=result.warnings,
                is_marked=result.is_marked,
                sync=None
                if result.sync is None
                else Sync(round(result.sync.confidence, 3), result.sync.offset_frames),
                thumbnail=_make_thumbnail(result.output, duration_s / 2, start.thumbnail),
            ),
            inputs,
        )

    def say(self, message: FromWorker) -> None:
        with self._mouth:
            self._answers.write(line_from_worker(message))
            self._answers.flush()


def _as_it_is(path: Path) -> InputFile:
    try:
        status = path.stat()
        return InputFile(path, status.st_size, status.st_mtime_ns, media.content_hash(path))
    except OSError as error:
        raise InputError(
            ErrorCode.INPUT_UNREADABLE, f"{path.name!r} can no longer be read ({error.strerror})."
        ) from error


def _make_thumbnail(video: Path, at_s: float, file: Path) -> bool:
    with suppress(LipSyncError):  # nobody is to lose a result for want of its picture
        media.write_still(video, at_s, file)
        return True
    return False


def _device(asked: str | None, index: int) -> str | None:
    """As asked; else workers are dealt out over the CUDA devices there are."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked is not None or os.environ.get("LIPSYNC_DEVICE") or count < 2:
        return asked
    return f"cuda:{index % count}"


def _detector(arguments: argparse.Namespace) -> FaceDetector:
    store = WeightsStore()
    return load_detector(arguments.detector or store.entry(arguments.model).detector, store)


def main() -> None:
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

    # Standard output belongs to the protocol: whatever prints from now on prints to standard error. Orders
    # have a stream of their own, as Python's end would wait for a thread that reads `sys.stdin`.
    orders, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    worker = Worker(orders, answers)
    threading.Thread(target=worker.listen, name="orders", daemon=True).start()
    try:
        pipeline = LipSyncPipeline.from_pretrained(
            arguments.model,
            device=_device(arguments.device, arguments.index),
            dtype=arguments.dtype,
            detector=arguments.detector,
            cache_dir=arguments.cache_dir,
            marking=arguments.marking,
        )
        pipelines = [
            pipeline,
            *(pipeline.clone_for_thread(_detector(arguments)) for _ in range(1, arguments.jobs)),
        ]
    except LipSyncError as error:
        worker.say(Unable(error.code, error.message))
        return
    worker.run(pipelines)


if __name__ == "__main__":
    main()
