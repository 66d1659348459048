"""The worker's half of sharing: its own job's segments given to others, and others' segments rendered here.

Like `worker`, whose part it is, it speaks only to the parent; `sharing` is the parent's half.
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
from lipsync_engine.rendering.render import render_segment
from lipsync_engine.rendering.segment_renderer import SharedPlan
from server.workers.messages import (
    FromWorker,
    NextSegment,
    RenderSegment,
    RunJob,
    SegmentAssigned,
    SegmentRendered,
    SegmentsPublished,
)


class Lender:
    """`lipsync_engine.rendering.segment_renderer.RemoteRenderers` of one job, through the parent.

    Args:
        start: the job's order.
        say: tells the parent.
    """

    def __init__(self, start: RunJob, say: Callable[[FromWorker], None]) -> None:
        self._start, self._say = start, say
        self._answers: queue.Queue[int | None] = queue.Queue()
        self._places: tuple[Path, ...] = ()

    def hear(self, take: SegmentAssigned) -> None:
        """The parent's answer; called from the thread that listens."""
        self._answers.put(take.number)

    def previous_segments(self, key: str) -> Mapping[str, Path]:
        if key != self._start.left_key:
            return {}
        return {name: Path(path) for name, path in self._start.left.items()}

    def publish(self, plan: SharedPlan) -> None:
        self._places = tuple(path for path, _ in plan.segments)
        files = {name: str(path) for name, path in plan.files.items()}
        segments = tuple((str(path), frames) for path, frames in plan.segments)
        self._say(SegmentsPublished(self._start.job_id, plan.key, files, segments))

    def next_segment(self) -> int | None:
        self._say(NextSegment(self._start.job_id))
        return self._answers.get()  # the parent answers, or ends this process

    def segment_rendered(self, index: int) -> None:
        self._say(SegmentRendered(self._start.job_id, index, str(self._places[index])))


def fits(pipeline: LipSyncPipeline) -> str:
    """See `WorkerReady`."""
    info, model = pipeline.model.info, pipeline.model
    said = (info.name, info.weights_sha256, model.device.type, model.precision, version("lipsync-engine"))
    return hashlib.sha256(" ".join(said).encode()).hexdigest()[:32]


def lend(order: RenderSegment, model: LipSyncModel) -> Generator[Progress, None, SegmentRendered]:
    """Render a segment of somebody else's job.

    Yields:
        Frames of it that are finished.

    Raises:
        LipSyncError.
    """
    folder = Path(order.folder)
    plan = Plan.load_portable(folder)
    segment, file = plan.segments[order.number], folder / f"segment-{order.number:05d}.mp4"
    meter = Meter(Stage.RENDER, segment.stop - segment.start)
    yield meter.at(0)
    with closing(render_segment(plan, segment, model, file)) as frames:
        for done in frames:
            yield meter.at(done)
    return SegmentRendered(order.job_id, order.number, str(file))
