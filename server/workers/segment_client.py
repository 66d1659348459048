"""The worker's side of segment sharing: requests segments of its own job, renders segments of others.

It is part of `main` and exchanges messages with the parent only; the parent's side is `segment_sharing`.
"""

from __future__ import annotations

import hashlib
import queue
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

from lipsync_engine import LipSyncPipeline
from lipsync_engine.models import LipSyncModel
from lipsync_engine.planning.plan import Plan
from lipsync_engine.progress import Meter, Progress, Stage
from lipsync_engine.rendering.render import render_segment as render_planned_segment
from lipsync_engine.rendering.segment_renderer import SharedPlan
from server.workers.messages import (
    Event,
    NextSegment,
    RenderSegment,
    RunJob,
    SegmentAssigned,
    SegmentRendered,
    SegmentsPublished,
)


class SegmentClient:
    """Remote renderers of one job (the engine's `RemoteRenderers`), reached through the parent.

    Args:
        send: sends an event to the parent.
    """

    def __init__(self, command: RunJob, send: Callable[[Event], None]) -> None:
        self._command, self._send = command, send
        self._answers: queue.Queue[int | None] = queue.Queue()
        self._paths: tuple[Path, ...] = ()

    def deliver(self, command: SegmentAssigned) -> None:
        """Deliver the parent's answer; called from the thread that reads commands."""
        self._answers.put(command.index)

    def previous_segments(self, key: str) -> Mapping[str, Path]:
        """Return the files of an earlier attempt with the same plan, by name."""
        if key != self._command.plan_key:
            return {}
        return {name: Path(path) for name, path in self._command.previous_files.items()}

    def publish(self, plan: SharedPlan) -> None:
        """Publish the complete plan."""
        self._paths = tuple(path for path, _ in plan.segments)
        files = {name: str(path) for name, path in plan.files.items()}
        segments = tuple((str(path), frames) for path, frames in plan.segments)
        self._send(SegmentsPublished(self._command.job_id, plan.key, files, segments))

    def next_segment(self) -> int | None:
        """Request the next segment to render here; None: check for new files and for cancellation."""
        self._send(NextSegment(self._command.job_id))
        return self._answers.get()  # the parent answers, or kills this process

    def segment_rendered(self, index: int) -> None:
        """Report that a segment's file exists."""
        self._send(SegmentRendered(self._command.job_id, index, str(self._paths[index])))


def compatibility_key(pipeline: LipSyncPipeline) -> str:
    """Compute the key of `WorkerReady`."""
    info, model = pipeline.model.info, pipeline.model
    parts = (info.name, info.weights_sha256, model.device.type, model.precision, version("lipsync-engine"))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]


def render_segment(command: RenderSegment, model: LipSyncModel) -> Generator[Progress, None, SegmentRendered]:
    """Render a segment of another worker's job.

    Yields:
        Progress in frames.

    Raises:
        LipSyncError.
    """
    folder = Path(command.folder)
    plan = Plan.load_portable(folder)
    segment, file = plan.segments[command.index], folder / f"segment-{command.index:05d}.mp4"
    meter = Meter(Stage.RENDER, segment.stop - segment.start)
    yield meter.at(0)
    with closing(render_planned_segment(plan, segment, model, file)) as frames:
        for done in frames:
            yield meter.at(done)
    return SegmentRendered(command.job_id, command.index, str(file))
