"""All segments of a job: rendered here in order, or shared with remote renderers; announced in order.

`RemoteRenderers` are other processes, on this or other machines, that can render segments of a complete plan.
Who they are and how files reach them is up to the caller. The module knows neither the job's inputs nor how
segments are joined.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lipsync_engine.models import LipSyncModel
from lipsync_engine.planning.plan import Plan
from lipsync_engine.planning.timeline import Segment
from lipsync_engine.progress import Progress, RenderedSegment, Stage
from lipsync_engine.rendering.render import LatentCache, render_segment

MIN_SHARED_SEGMENTS = 2
"""With fewer segments left to render, sharing costs more than it gains."""


@dataclass(frozen=True, slots=True)
class SharedPlan:
    """A complete plan whose segments any process may render.

    Attributes:
        key: identifies everything that decides the pixels; segments of equal keys are equal.
        files: what a remote renderer needs, by file name in its folder; see `Plan.portable_files`.
        segments: (local file, number of frames) of each segment.
    """

    key: str
    files: dict[str, Path]
    segments: tuple[tuple[Path, int], ...]


class RemoteRenderers(Protocol):
    """Other processes that render segments of a job."""

    def previous_segments(self, key: str) -> Mapping[str, Path]:
        """Return plan and segments that an earlier attempt at the same work has left, by file name.

        The caller moves the files.
        """

    def publish(self, plan: SharedPlan) -> None:
        """Publish a complete plan; segments whose file exists are finished."""

    def next_segment(self) -> int | None:
        """Return the segment to render here.

        None: check for new files and for cancellation, then call again.
        """

    def segment_rendered(self, index: int) -> None:
        """Report that a segment from `next_segment` is finished and its file exists."""


class SegmentRenderer:
    """Renders the segments of one job.

    Args:
        folder: the job's work folder.
        audio: of the whole result, for previews.
        key: see `SharedPlan`.
        remote: None: all segments are rendered here.

    Attributes:
        files: of the announced segments, in order.
        n_resumed: how many of them an earlier run had rendered.
        elapsed_s: time spent on rendering.
    """

    def __init__(
        self, model: LipSyncModel, folder: Path, audio: Path, key: str, remote: RemoteRenderers | None
    ) -> None:
        self._model, self._folder, self._audio = model, folder, audio
        self._key, self._remote = key, remote
        self.files: list[Path] = []
        self.n_resumed = 0
        self.elapsed_s = 0.0
        self._latents: LatentCache = {}
        self._finished_frames: dict[int, int] = {}  # by segment
        self._n_frames_resumed = 0

    def render_ready(self, plan: Plan) -> Generator[Progress, None, None]:
        """Render the segments that are ready and not rendered yet.

        May be called with draft after draft and at last with the complete plan. With remote renderers only
        the first segment of a draft is rendered, because a viewer may wait for it; only a complete plan can
        be shared, so reading must continue.
        """
        if self._remote is None:
            yield from self._render_in_order(plan, plan.ready_segments)
        elif not plan.is_complete:
            yield from self._render_in_order(plan, plan.ready_segments[:1])
        else:
            yield from self._render_shared(plan, self._remote)

    def _render_in_order(self, plan: Plan, segments: Iterable[Segment]) -> Generator[Progress, None, None]:
        for segment in [*segments][len(self.files) :]:
            self._count_resumed([segment])
            if segment.index not in self._finished_frames:
                yield from self._render_one(plan, segment)
            yield from self._announce_finished(plan)

    def _render_shared(self, plan: Plan, remote: RemoteRenderers) -> Generator[Progress, None, None]:
        self._count_resumed(plan.segments)
        if len(plan.segments) - len(self._finished_frames) < MIN_SHARED_SEGMENTS:
            yield from self._render_in_order(plan, plan.segments)
            return
        files = tuple(
            (self._segment_file(segment), segment.stop - segment.start) for segment in plan.segments
        )
        remote.publish(SharedPlan(self._key, plan.portable_files(), files))
        yield from self._announce_finished(plan)
        while len(self._finished_frames) < len(plan.segments):
            start_s = time.monotonic()
            index = remote.next_segment()
            self.elapsed_s += time.monotonic() - start_s
            if index is not None:
                yield from self._render_one(plan, plan.segments[index])
                remote.segment_rendered(index)
            self._scan_finished(plan.segments)
            yield from self._announce_finished(plan)
            yield self._report_progress(plan, 0)

    def _render_one(self, plan: Plan, segment: Segment) -> Generator[Progress, None, None]:
        start_s, before_s = time.monotonic(), self.elapsed_s
        yield self._report_progress(plan, 0)  # report the stage first, because the first window can take long
        with closing(
            render_segment(plan, segment, self._model, self._segment_file(segment), self._latents)
        ) as frames:
            for count in frames:
                self.elapsed_s = before_s + time.monotonic() - start_s
                yield self._report_progress(plan, count)
        self.elapsed_s = before_s + time.monotonic() - start_s
        self._scan_finished([segment])

    def _announce_finished(self, plan: Plan) -> Generator[Progress, None, None]:
        """Report finished segments in order: each one once all before it are finished."""
        for segment in plan.segments[len(self.files) :]:
            if segment.index not in self._finished_frames:
                return
            self.files.append(self._segment_file(segment))
            span_s = (float(frame / plan.header.fps) for frame in (segment.start, segment.stop))
            rendered_segment = RenderedSegment(
                segment.index, self._segment_file(segment), self._audio, *span_s
            )
            yield dataclasses.replace(self._report_progress(plan, 0), segment=rendered_segment)

    def _count_resumed(self, segments: Iterable[Segment]) -> None:
        """Count the segments that were finished before this run rendered anything for them."""
        for segment in self._scan_finished(segments):
            self.n_resumed += 1
            self._n_frames_resumed += segment.stop - segment.start

    def _scan_finished(self, segments: Iterable[Segment]) -> list[Segment]:
        """Record and return segments whose file has appeared since the last scan."""
        new = [s for s in segments if s.index not in self._finished_frames and self._segment_file(s).exists()]
        self._finished_frames |= {segment.index: segment.stop - segment.start for segment in new}
        return new

    def _segment_file(self, segment: Segment) -> Path:
        return self._folder / f"segment-{segment.index:05d}.mp4"

    def _report_progress(self, plan: Plan, count: int) -> Progress:
        """Return the stage's progress with `count` more frames than those of finished segments."""
        done = sum(self._finished_frames.values()) + count
        return Progress(Stage.RENDER, done, plan.n_frames_expected, self.elapsed_s, self._n_frames_resumed)
