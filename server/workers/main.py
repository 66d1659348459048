"""The process that owns a device: it loads the model once and does one job after the other, or a few at once.

    python -m server.workers.main --model tiny --device cpu --work-dir DIR

Orders come as lines on standard input, answers go out on standard output (`messages`); whatever libraries
print goes to standard error. It opens no socket and no database. When its parent goes away, so does it.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Final, Self

from lipsync_engine import (
    LipSyncPipeline,
    LoopMode,
    Motion,
    Provenance,
    Speaker,
    SpeakerOrder,
    SyncParams,
    SyncResult,
    make_dialogue,
    media,
)
from lipsync_engine.errors import ErrorCode, LipSyncError, MediaError, ParameterError
from lipsync_engine.faces import FaceDetector
from lipsync_engine.faces.registry import load_detector
from lipsync_engine.params import FaceChoice
from lipsync_engine.progress import Progress, RenderedSegment, Stage
from lipsync_engine.weights import WeightsStore
from server import logs
from server.jobs.request import MediaLimits, Role
from server.jobs.state import SyncConfidence
from server.workers.messages import (
    CancelJob,
    FromWorker,
    JobCancelled,
    JobDuplicate,
    JobFailed,
    JobProgress,
    JobSucceeded,
    PreviewReady,
    RenderSegment,
    RunJob,
    SegmentAssigned,
    SegmentRendered,
    WorkerReady,
    line_from_worker,
    read_to_worker,
)
from server.workers.segment_client import Lender, fits, lend

log = logging.getLogger("lipsync.worker")

PR_SET_PDEATHSIG = 1  # linux/prctl.h
REPORT_EVERY_S = 1.0
"""Each report of a job is a write to the database, which hundreds of workers may share; news come at once."""
PROMPT_UNUSED = "prompt was not used: the lip-sync model hears the voice and sees the video, nothing else."
WORTH_ANOTHER_TRY: Final = {ErrorCode.DEVICE_UNAVAILABLE, ErrorCode.DISK_FULL}


class _Current:
    """An order that waits or is carried out."""

    def __init__(self, order: RunJob | RenderSegment, say: Callable[[FromWorker], None]) -> None:
        self.order, self.stop = order, threading.Event()
        self.lender = Lender(order, say) if isinstance(order, RunJob) and order.may_share else None


class Worker:
    """See the module.

    Args:
        pipelines: with one model; each makes one job at a time.
        answers: binary stream to the parent.
        label, watermark: every result shows that it is generated; carries the unseen mark.
    """

    def __init__(
        self,
        pipelines: Sequence[LipSyncPipeline],
        answers: BinaryIO,
        *,
        label: bool = False,
        watermark: bool = False,
    ) -> None:
        self._pipelines, self._answers = pipelines, answers
        self._label, self._watermark = label, watermark
        self._orders: queue.Queue[_Current] = queue.Queue()
        self._current: dict[str, _Current] = {}  # by their jobs
        self._mouth = threading.Lock()

    def listen(self, orders: BinaryIO) -> None:
        """Read orders until the parent goes away; to be run in a thread of its own."""
        for line in orders:
            match read_to_worker(line):
                case RunJob() | RenderSegment() as order:
                    self._current[order.job_id] = _Current(order, self._say)
                    self._orders.put(self._current[order.job_id])
                case SegmentAssigned() as assigned:
                    current = self._current.get(assigned.job_id)
                    if current is not None and current.lender is not None:
                        current.lender.hear(assigned)
                case CancelJob(job_id=job_id):
                    if (current := self._current.get(job_id)) is not None:
                        current.stop.set()
        os._exit(0)  # whatever the other threads are in the middle of: nobody wants it any more

    def run(self) -> None:
        """Warm up, say so, and work, with each pipeline in a thread of its own; never returns."""
        first, *others = self._pipelines
        first.model.warm_up()
        self._say(WorkerReady(str(first.model.device), first.model.info.name, fits(first)))
        for pipeline in others:
            threading.Thread(target=self._work_or_end, args=(pipeline,), daemon=True).start()
        self._work(first)

    def _work_or_end(self, pipeline: LipSyncPipeline) -> None:
        try:
            self._work(pipeline)
        except Exception:
            log.exception("a mistake of ours ends this worker")
            os._exit(1)

    def _work(self, pipeline: LipSyncPipeline) -> None:
        while True:
            current = self._orders.get()
            job_id = current.order.job_id
            try:
                match current.order:
                    case RunJob() as start:
                        last = self._do(current, start, pipeline)
                    case render:
                        last = self._lend(current, render, pipeline)
            except LipSyncError as error:
                again = error.code in WORTH_ANOTHER_TRY
                last = JobFailed(job_id, error.code, error.message, again)
                if error.code is ErrorCode.JOB_BUSY:
                    last = JobDuplicate(job_id)
            del self._current[job_id]  # before the parent hears that it can order the same again
            self._say(last)

    def _lend(self, current: _Current, order: RenderSegment, pipeline: LipSyncPipeline) -> FromWorker:
        reported = 0.0
        with closing(lend(order, pipeline.model)) as steps:
            while True:
                try:
                    progress = next(steps)
                except StopIteration as finished:
                    rendered: SegmentRendered = finished.value
                    return rendered
                if current.stop.is_set():
                    return JobCancelled(order.job_id)
                if (now := time.monotonic()) - reported >= REPORT_EVERY_S:
                    reported = now
                    self._say(_working(order.job_id, progress))

    def _do(self, current: _Current, start: RunJob, pipeline: LipSyncPipeline) -> FromWorker:
        files, output = {name: Path(path) for name, path in start.inputs.items()}, Path(start.output)
        for name in files.keys() - {Role.VIDEO, Role.IMAGE, Role.MASK}:
            _require_length("audio", media.probe_audio(files[name]).duration_s, start.limits[name])
        voices = _voices(start, files)
        params = _params(start, files, label=self._label, watermark=self._watermark)
        provenance = Provenance(start.consent, start.job_id)
        warnings: tuple[str, ...] = ()
        if Role.IMAGE in files:
            motion = Motion(start.options.motion or Motion.NATURAL)
            steps = pipeline.run_portrait(
                files[Role.IMAGE],
                voices,
                output,
                params,
                motion=motion,
                prompt=start.options.prompt,
                provenance=provenance,
                remote=current.lender,
            )
        else:
            _require_picture(files[Role.VIDEO], start.limits[Role.VIDEO])
            steps = pipeline.run(
                files[Role.VIDEO], voices, output, params, provenance=provenance, remote=current.lender
            )
            warnings = (PROMPT_UNUSED,) if start.options.prompt else ()
        reported, stage, rendering_s = 0.0, None, 0.0
        with closing(steps), _Previews(start, self._say) as previews:
            while True:
                try:
                    progress = next(steps)
                except StopIteration as finished:
                    result: SyncResult = finished.value
                    break
                if current.stop.is_set():
                    return JobCancelled(start.job_id)
                if progress.stage is Stage.RENDER:
                    rendering_s = progress.elapsed_s
                if progress.segment is not None:
                    previews.add(progress.segment)
                if progress.stage is Stage.ASSEMBLE:
                    previews.wait()  # what they read goes with that stage
                now = time.monotonic()
                is_news = progress.stage is not stage or progress.segment is not None
                if is_news or now - reported >= REPORT_EVERY_S:
                    reported, stage = now, progress.stage
                    self._say(_working(start.job_id, progress))
        media_s = result.frames / float(result.fps)
        warnings += result.warnings
        return JobSucceeded(
            start.job_id, rendering_s, media_s, warnings, result.is_signed, _sync(result), result.is_nsfw
        )

    def _say(self, message: FromWorker) -> None:
        with self._mouth:
            self._answers.write(line_from_worker(message))
            self._answers.flush()


class _Previews:
    """Makes finished segments watchable beside the rendering, in a thread; a context manager.

    Args:
        start: the job's order; its output's folder takes the files.
        say: tells the parent; called from the thread.
    """

    def __init__(self, start: RunJob, say: Callable[[FromWorker], None]) -> None:
        self._job_id, self._folder, self._say = start.job_id, Path(start.output).parent, say
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="previews")
        self._pending: list[Future[None]] = []

    def add(self, segment: RenderedSegment) -> None:
        self._pending.append(self._thread.submit(self._make, segment, is_first=not self._pending))

    def wait(self) -> None:
        for made in self._pending:
            made.result()

    def _make(self, segment: RenderedSegment, *, is_first: bool) -> None:
        file, still = self._folder / f"preview-{segment.index}.mp4", self._folder / "still.jpg"
        try:
            media.write_fragment(segment.video, segment.audio, segment.start_s, segment.stop_s, file)
            if is_first:
                media.write_still(segment.video, (segment.stop_s - segment.start_s) / 2, still)
        except LipSyncError as error:  # nobody is to lose a result for want of its preview
            log.warning("job %s: segment %d has no preview: %s", self._job_id, segment.index, error)
            return
        self._say(
            PreviewReady(
                self._job_id,
                str(file),
                segment.index,
                segment.start_s,
                segment.stop_s,
                str(still) if is_first else None,
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)


def _sync(result: SyncResult) -> SyncConfidence | None:
    if result.sync is None:
        return None
    return SyncConfidence(round(result.sync.confidence, 3), result.sync.offset_frames, result.sync.curve)


def _working(job_id: str, progress: Progress) -> JobProgress:
    speed = round(progress.per_second, 2)
    return JobProgress(job_id, progress.stage.value, progress.done, progress.total, speed)


def _voices(start: RunJob, files: dict[str, Path]) -> Path | tuple[Speaker, ...]:
    if start.segments:
        return tuple(
            Speaker(FaceChoice.parse(part.face), files[part.voice], part.start_s, part.length_s)
            for part in start.segments
        )
    if Role.AUDIO in files:
        return files[Role.AUDIO]
    order = SpeakerOrder(start.options.order or SpeakerOrder.TOGETHER)
    return make_dialogue(files[Role.LEFT_AUDIO], files[Role.RIGHT_AUDIO], order)


def _params(
    start: RunJob, files: dict[str, Path], *, label: bool = False, watermark: bool = False
) -> SyncParams:
    options = start.options
    try:
        return SyncParams.preset(
            options.preset or "default",
            num_inference_steps=options.num_inference_steps,
            guidance_scale=options.guidance_scale,
            seed=options.seed,
            fps=None if options.fps is None else Fraction(options.fps),
            mask_image=files.get(Role.MASK),
            max_short_side=options.max_short_side,
            loop_mode=LoopMode(options.loop_mode) if options.loop_mode else None,
            face=FaceChoice.parse(options.face) if options.face else None,
            label=label,
            watermark=watermark,
        )
    except (ValueError, ZeroDivisionError) as error:
        raise ParameterError(f"An option cannot be used: {error}.") from error


def _require_picture(path: Path, limits: MediaLimits) -> None:
    info = media.probe_video(path)
    _require_length("video", info.duration_s, limits)
    sides = info.format.width, info.format.height
    low, high = limits.min_side_px or 0, limits.max_side_px or sys.maxsize
    if not low <= min(sides) <= max(sides) <= high:
        raise MediaError(
            ErrorCode.MEDIA_TOO_LARGE,
            f"The video has {sides[0]}x{sides[1]} pixels; "
            f"for this model both sides must be from {low} to {high} pixels.",
        )


def _require_length(what: str, duration_s: float, limits: MediaLimits) -> None:
    low, high = limits.min_s or 0.0, limits.max_s or float("inf")
    if not low <= duration_s <= high:
        raise MediaError(
            ErrorCode.MEDIA_TOO_LARGE,
            f"The {what} lasts {duration_s:.1f} s; for this model it must last from {low:g} to {high:g} s.",
        )


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, even while it is stopped and hears nothing.

    Elsewhere than on Linux the end of standard input does it.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _detector(model: str) -> FaceDetector:
    store = WeightsStore()
    return load_detector(store.entry(model).detector, store)


def main() -> None:
    _die_with_parent()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--log-format", default="text")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--no-sync-score", action="store_true")
    parser.add_argument("--label", action="store_true")
    parser.add_argument("--watermark", action="store_true")
    arguments = parser.parse_args()
    logs.configure_logging(arguments.log_format)

    # Standard output belongs to the protocol: whatever prints from now on prints to standard error.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    pipeline = LipSyncPipeline.from_pretrained(
        arguments.model,
        device=arguments.device,
        cache_dir=arguments.work_dir,
        sync_score=not arguments.no_sync_score,
    )
    try:
        pipeline.signer.check_can_sign(Path("out.mp4"))
    except LipSyncError as error:
        log.error("jobs will fail until this is put right: %s", error)
    detectors = (_detector(arguments.model) for _ in range(1, arguments.jobs))
    pipelines = [pipeline, *(pipeline.clone_for_thread(detector) for detector in detectors)]
    worker = Worker(pipelines, answers, label=arguments.label, watermark=arguments.watermark)
    threading.Thread(target=worker.listen, args=(sys.stdin.buffer,), name="orders", daemon=True).start()
    worker.run()


if __name__ == "__main__":
    main()
