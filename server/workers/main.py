"""The worker process: owns a device, loads the model once, and runs one job after the other or a few at once.

    python -m server.workers.main --model tiny --device cpu --work-dir DIR

Commands arrive as lines on standard input, events leave on standard output (`messages`); output of libraries
goes to standard error. The process opens no socket and no database, and ends with its parent.
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
from pathlib import Path
from typing import BinaryIO, Final, Self

from lipsync_engine import (
    HdrMode,
    JobWarning,
    LipSyncPipeline,
    LoopMode,
    Motion,
    Provenance,
    Speaker,
    SpeakerOrder,
    SyncParams,
    SyncResult,
    VideoCodec,
    WarningCode,
    make_dialogue,
    media,
)
from lipsync_engine.errors import ErrorCode, LipSyncError, MediaError, ParameterError
from lipsync_engine.faces import FaceDetector
from lipsync_engine.faces.registry import load_detector
from lipsync_engine.media.rates import parse_rate
from lipsync_engine.params import FaceChoice
from lipsync_engine.progress import Progress, RenderedSegment, Stage
from lipsync_engine.provenance.signing import UNSIGNED_WARNING
from lipsync_engine.weights import WeightsStore
from server import logs
from server.jobs.request import MediaLimits, Role
from server.jobs.state import SyncConfidence
from server.workers.caches import tenant_cache_dir
from server.workers.messages import (
    CancelJob,
    Event,
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
    WorkerFailed,
    WorkerReady,
    decode_command,
    encode_event,
)
from server.workers.segment_client import SegmentClient, compatibility_key, render_segment

log = logging.getLogger("lipsync.worker")

PR_SET_PDEATHSIG = 1  # linux/prctl.h
REPORT_INTERVAL_S = 1.0
"""Each report is a write to the database, which hundreds of workers share; a new stage is sent at once."""

DURATION_TOLERANCE_S = 0.5
"""Cameras and generators call 241 frames at 24 fps ten seconds."""

SIDE_TOLERANCE_PX = 8
"""Codecs round sides up to whole blocks, such as 1080 lines to 1088."""

PROMPT_UNUSED = "prompt was not used: the lip-sync model takes only audio and video."
RETRYABLE: Final = {ErrorCode.DEVICE_UNAVAILABLE, ErrorCode.DISK_FULL}

UNSIGNED: Final = "The result carries no content credentials: "


OUTPUT_REJECTED = (
    "The generated faces are not usable, and nothing was published: try more inference_steps, or ask the "
    "operator of this server to check the model's weights."
)
ASK_OPERATOR = "The server {}: contact its operator, whose log has the reason."
WEIGHTS_DAMAGED = ASK_OPERATOR.format("has damaged weights for this job")
CLIENT_MESSAGES: Final = {
    ErrorCode.DISK_FULL: "The disk of this server is full: retry later, or ask its operator.",
    ErrorCode.OUT_OF_MEMORY: "This server has too little memory for the job: send a shorter or smaller "
    "video, or ask its operator.",
    ErrorCode.OUTPUT_NOT_FINITE: OUTPUT_REJECTED,
    ErrorCode.OUTPUT_FLAT: OUTPUT_REJECTED,
    ErrorCode.OUTPUT_NOISE: OUTPUT_REJECTED,
    ErrorCode.OUTPUT_MASK_COLOURED: OUTPUT_REJECTED,
    ErrorCode.OUTPUT_MISCOLOURED: OUTPUT_REJECTED,
    ErrorCode.SIGNING_FAILED: ASK_OPERATOR.format("cannot sign the result"),
    ErrorCode.FFMPEG_MISSING: ASK_OPERATOR.format("lacks FFmpeg"),
    ErrorCode.OUTPUT_NOT_WRITABLE: ASK_OPERATOR.format("cannot write the result"),
    ErrorCode.WEIGHTS_MISSING: ASK_OPERATOR.format("lacks the weights that this job needs"),
    ErrorCode.WEIGHTS_HASH_MISMATCH: WEIGHTS_DAMAGED,
    ErrorCode.WEIGHTS_TRUNCATED: WEIGHTS_DAMAGED,
    ErrorCode.WEIGHTS_UNSAFE: WEIGHTS_DAMAGED,
    ErrorCode.WEIGHTS_ARCHITECTURE: WEIGHTS_DAMAGED,
}
"""Errors whose sentence in the engine advises whoever runs its command line, and may name its paths."""


class _RunningJob:
    """A command that waits or runs."""

    def __init__(self, command: RunJob | RenderSegment, send: Callable[[Event], None]) -> None:
        self.command, self.cancelled = command, threading.Event()
        self.segment_client: SegmentClient | None = None
        if isinstance(command, RunJob) and command.shareable:
            self.segment_client = SegmentClient(command, send)


class WorkerLoop:
    """Reads commands, runs jobs, and sends events.

    Args:
        pipelines: with one model; each runs one job at a time.
        events: binary stream to the parent.
        label, watermark: draw the visible label, embed the invisible watermark in every result.
    """

    def __init__(
        self,
        pipelines: Sequence[LipSyncPipeline],
        events: BinaryIO,
        *,
        label: bool = False,
        watermark: bool = False,
    ) -> None:
        self._pipelines, self._events = pipelines, events
        self._label, self._watermark = label, watermark
        self._queue: queue.Queue[_RunningJob] = queue.Queue()
        self._jobs: dict[str, _RunningJob] = {}  # by job id
        self._write_lock = threading.Lock()

    def read_commands(self, commands: BinaryIO) -> None:
        """Read commands until the parent ends, then end this process; to be run in a thread of its own."""
        for line in commands:
            match decode_command(line):
                case RunJob() | RenderSegment() as command:
                    self._jobs[command.job_id] = _RunningJob(command, self._send)
                    self._queue.put(self._jobs[command.job_id])
                case SegmentAssigned() as answer:
                    job = self._jobs.get(answer.job_id)
                    if job is not None and job.segment_client is not None:
                        job.segment_client.deliver(answer)
                case CancelJob(job_id=job_id):
                    if (job := self._jobs.get(job_id)) is not None:
                        job.cancelled.set()
        os._exit(0)  # without waiting for the other threads: no process needs their results any more

    def run(self) -> None:
        """Warm up, report readiness, and run jobs, each pipeline in a thread of its own; never returns."""
        first, *others = self._pipelines
        first.model.warm_up()
        self._send(WorkerReady(str(first.model.device), first.model.info.name, compatibility_key(first)))
        for pipeline in others:
            threading.Thread(target=self._run_or_exit, args=(pipeline,), daemon=True).start()
        self._run_jobs(first)

    def _run_or_exit(self, pipeline: LipSyncPipeline) -> None:
        try:
            self._run_jobs(pipeline)
        except Exception:
            log.exception("internal error, the worker exits")
            os._exit(1)

    def _run_jobs(self, pipeline: LipSyncPipeline) -> None:
        while True:
            job = self._queue.get()
            job_id = job.command.job_id
            try:
                match job.command:
                    case RunJob() as command:
                        folder = tenant_cache_dir(pipeline.cache_dir, command.tenant)
                        outcome = self._run_job(job, command, pipeline.with_cache_dir(folder))
                    case command:
                        outcome = self._render_segment(job, command, pipeline)
            except LipSyncError as error:
                if error.code is ErrorCode.JOB_BUSY:
                    outcome = JobDuplicate(job_id)
                else:
                    message = _client_message(error, job.command)
                    if message != error.message:
                        log.warning("job %s: failed: %s", job_id, error.message)
                    outcome = JobFailed(job_id, error.code, message, error.code in RETRYABLE)
            del self._jobs[job_id]  # before the parent can send a command for the same job again
            self._send(outcome)

    def _render_segment(self, job: _RunningJob, command: RenderSegment, pipeline: LipSyncPipeline) -> Event:
        reported_at = 0.0
        with closing(render_segment(command, pipeline.model)) as steps:
            while True:
                try:
                    progress = next(steps)
                except StopIteration as end:
                    event: SegmentRendered = end.value
                    return event
                if job.cancelled.is_set():
                    return JobCancelled(command.job_id)
                if (now := time.monotonic()) - reported_at >= REPORT_INTERVAL_S:
                    reported_at = now
                    self._send(_progress_event(command.job_id, progress))

    def _run_job(self, job: _RunningJob, command: RunJob, pipeline: LipSyncPipeline) -> Event:
        files, output = {name: Path(path) for name, path in command.inputs.items()}, Path(command.output)
        if Role.VIDEO in files:
            converted = output.with_name("converted.mp4")
            files[Role.VIDEO] = media.convert_legacy_video(files[Role.VIDEO], converted)
        for name in files.keys() - {Role.VIDEO, Role.IMAGE, Role.MASK}:
            _require_duration("audio", media.probe_audio(files[name]).duration_s, command.limits[name])
        voices = _voices(command, files)
        params = _params(command, files, label=self._label, watermark=self._watermark)
        provenance = Provenance(command.consent, command.job_id)
        warnings: tuple[JobWarning, ...] = ()
        if Role.IMAGE in files:
            motion = Motion(command.options.motion or Motion.NATURAL)
            steps = pipeline.run_portrait(
                files[Role.IMAGE],
                voices,
                output,
                params,
                motion=motion,
                prompt=command.options.prompt,
                provenance=provenance,
                remote=job.segment_client,
            )
        else:
            _require_video(files[Role.VIDEO], command.limits[Role.VIDEO])
            steps = pipeline.run(
                files[Role.VIDEO],
                voices,
                output,
                params,
                provenance=provenance,
                remote=job.segment_client,
            )
            warnings = (JobWarning(WarningCode.NOT_DONE, PROMPT_UNUSED),) if command.options.prompt else ()
        reported_at, stage, render_s = 0.0, None, 0.0
        with closing(steps), _Previews(command, self._send) as previews:
            while True:
                try:
                    progress = next(steps)
                except StopIteration as end:
                    result: SyncResult = end.value
                    break
                if job.cancelled.is_set():
                    return JobCancelled(command.job_id)
                if progress.stage is Stage.RENDER:
                    render_s = progress.elapsed_s
                if progress.segment is not None:
                    previews.add(progress.segment)
                if progress.stage is Stage.ASSEMBLE:
                    previews.wait()  # that stage deletes the files that they read
                now = time.monotonic()
                is_new = progress.stage is not stage or progress.segment is not None
                if is_new or now - reported_at >= REPORT_INTERVAL_S:
                    reported_at, stage = now, progress.stage
                    self._send(_progress_event(command.job_id, progress))
        warnings += tuple(map(_client_warning, result.warnings))
        return JobSucceeded(
            command.job_id,
            render_s,
            result.frames / float(result.fps),
            tuple(map(str, warnings)),
            result.is_signed,
            _sync_confidence(result),
            result.is_nsfw,
            tuple(warning.code for warning in warnings),
            result.pauses_s,
        )

    def _send(self, event: Event) -> None:
        with self._write_lock:
            self._events.write(encode_event(event))
            self._events.flush()


class _Previews:
    """Creates previews of finished segments in a thread; a context manager.

    Args:
        command: the files are written to the folder of its output.
        send: sends an event to the parent; called from the thread.
    """

    def __init__(self, command: RunJob, send: Callable[[Event], None]) -> None:
        self._job_id, self._folder, self._send = command.job_id, Path(command.output).parent, send
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="previews")
        self._pending: list[Future[None]] = []

    def add(self, segment: RenderedSegment) -> None:
        self._pending.append(self._thread.submit(self._create, segment, is_first=not self._pending))

    def wait(self) -> None:
        """Wait for all previews."""
        for preview in self._pending:
            preview.result()

    def _create(self, segment: RenderedSegment, *, is_first: bool) -> None:
        file, still = self._folder / f"preview-{segment.index}.mp4", self._folder / "still.jpg"
        try:
            media.write_fragment(segment.video, segment.audio, segment.start_s, segment.stop_s, file)
            if is_first:
                media.write_still(segment.video, (segment.stop_s - segment.start_s) / 2, still)
        except LipSyncError as error:  # a job must not fail because of its preview
            log.warning("job %s: segment %d has no preview: %s", self._job_id, segment.index, error)
            return
        self._send(
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


def _sync_confidence(result: SyncResult) -> SyncConfidence | None:
    if result.sync is None:
        return None
    return SyncConfidence(round(result.sync.confidence, 3), result.sync.offset_frames, result.sync.curve)


def _progress_event(job_id: str, progress: Progress) -> JobProgress:
    speed = round(progress.per_second, 2)
    return JobProgress(job_id, progress.stage.value, progress.done, progress.total, speed)


def _voices(command: RunJob, files: dict[str, Path]) -> Path | tuple[Speaker, ...]:
    if command.segments:
        return tuple(
            Speaker(FaceChoice.parse(part.face), files[part.voice], part.start_s, part.length_s)
            for part in command.segments
        )
    if Role.AUDIO in files:
        return files[Role.AUDIO]
    order = SpeakerOrder(command.options.order or SpeakerOrder.TOGETHER)
    return make_dialogue(files[Role.LEFT_AUDIO], files[Role.RIGHT_AUDIO], order)


def _client_warning(warning: JobWarning) -> JobWarning:
    """Return a warning without the paths and programs of the signer."""
    if not warning.startswith(UNSIGNED) or warning == UNSIGNED_WARNING:
        return warning
    return JobWarning(warning.code, f"{UNSIGNED}the server could not sign it.")


def _params(
    command: RunJob, files: dict[str, Path], *, label: bool = False, watermark: bool = False
) -> SyncParams:
    options = command.options
    try:
        return SyncParams.preset(
            options.preset or "default",
            num_inference_steps=options.num_inference_steps,
            guidance_scale=options.guidance_scale,
            seed=options.seed,
            fps=None if options.fps is None else parse_rate(options.fps),
            mask_image=files.get(Role.MASK),
            max_short_side=options.max_short_side,
            loop_mode=LoopMode(options.loop_mode) if options.loop_mode else None,
            video_codec=VideoCodec(options.video_codec) if options.video_codec else None,
            hdr=HdrMode(options.hdr) if options.hdr else None,
            face=FaceChoice.parse(options.face) if options.face else None,
            label=label,
            watermark=watermark,
        )
    except (ValueError, ZeroDivisionError) as error:
        raise ParameterError(f"Invalid option: {error}.") from error


def _client_message(error: LipSyncError, command: RunJob | RenderSegment) -> str:
    """Return an error for a client of the API, who has neither our files nor our command line."""
    if (message := CLIENT_MESSAGES.get(error.code)) is not None:
        return message
    message = error.message
    if isinstance(command, RunJob):
        for name, path in command.inputs.items():
            message = message.replace(repr(Path(path).name), f"the input {name}")
    return message[:1].upper() + message[1:]


def _require_video(path: Path, limits: MediaLimits) -> None:
    info = media.probe_video(path)
    if limits.max_s is not None:  # the file lasts longer where its sound does
        _require_duration("video", media.measure_video_track(path), limits)
    width, height = info.format.width, info.format.height
    sides = sorted((width, height))
    low, high = limits.min_side_px or 0, limits.max_side_px or sys.maxsize
    if not low <= sides[0] <= sides[1] <= high:
        raise MediaError(
            ErrorCode.MEDIA_TOO_LARGE,
            f"The video has {width}x{height} pixels; "
            f"for this model both sides must be from {low} to {high} pixels.",
        )
    allowed = limits.short_sides_px
    if allowed and not any(abs(sides[0] - side) <= SIDE_TOLERANCE_PX for side in allowed):
        names = " or ".join(f"{side}p" for side in allowed)
        raise MediaError(
            ErrorCode.MEDIA_TOO_LARGE,
            f"The video has {width}x{height} pixels; for this model it must be {names}: scale it to that.",
        )


def _require_duration(kind: str, duration_s: float, limits: MediaLimits) -> None:
    low, high = limits.min_s or 0.0, limits.max_s or float("inf")
    if not low - DURATION_TOLERANCE_S <= duration_s <= high + DURATION_TOLERANCE_S:
        raise MediaError(
            ErrorCode.MEDIA_TOO_LARGE,
            f"The {kind} lasts {duration_s:.2f} s; for this model it must last from {low:g} to {high:g} s.",
        )


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, even while it is stopped.

    Without Linux, the end of standard input ends it.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _load_detector(model: str) -> FaceDetector:
    store = WeightsStore()
    return load_detector(store.entry(model).detector, store)


def _load_pipelines(arguments: argparse.Namespace) -> list[LipSyncPipeline]:
    """Load the model, once for every job that runs at the same time."""
    pipeline = LipSyncPipeline.from_pretrained(
        arguments.model,
        device=arguments.device,
        cache_dir=arguments.work_dir,
        sync_score=not arguments.no_sync_score,
    )
    try:
        pipeline.signer.check_can_sign(Path("out.mp4"))
    except LipSyncError as error:
        log.error("content credentials cannot be signed; all jobs will fail: %s", error)
    detectors = (_load_detector(arguments.model) for _ in range(1, arguments.jobs))
    return [pipeline, *(pipeline.clone_for_thread(detector) for detector in detectors)]


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

    # Standard output is for events: from now on prints go to standard error.
    events = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    try:
        pipelines = _load_pipelines(arguments)
    except LipSyncError as error:
        events.write(encode_event(WorkerFailed(error.message)))
        events.flush()
        sys.exit(1)
    loop = WorkerLoop(pipelines, events, label=arguments.label, watermark=arguments.watermark)
    reader = threading.Thread(
        target=loop.read_commands, args=(sys.stdin.buffer,), name="commands", daemon=True
    )
    reader.start()
    loop.run()


if __name__ == "__main__":
    main()
