"""A job's segments: rendered here one after the other, or shared with helpers; told in their order.

Helpers are whoever else can render a segment of a whole plan: other processes, other machines. Who they are
and how files reach them is the caller's (`Helpers`). It knows neither inputs nor the film made of segments.
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
from lipsync_engine.progress import Progress, Stage, Watchable
from lipsync_engine.rendering.render import render

WORTH_SHARING = 2
"""With fewer segments left to render there is nothing to share."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A whole plan whose segments anybody may render.

    Attributes:
        key: names everything that decides the pixels; segments of equal keys are equal.
        files: what a helper needs, by its name in the helper's folder; see `Plan.carried`.
        segments: of each segment the file that it becomes here, and its number of frames.
    """

    key: str
    files: dict[str, Path]
    segments: tuple[tuple[Path, int], ...]


class Helpers(Protocol):
    """Who renders segments besides this process."""

    def left(self, key: str) -> Mapping[str, Path]:
        """Plan and finished segments that another process has left of the same work, by name; to be moved."""

    def offer(self, offer: Offer) -> None:
        """The plan is whole; segments whose file is there are finished."""

    def next(self) -> int | None:
        """The segment to render here; None: look again at which files are there, or whether to stop."""

    def rendered(self, index: int) -> None:
        """A segment that `next` gave is finished; its file is there."""


class Segments:
    """The segments of one job.

    Args:
        folder: the job's work folder.
        sound: is heard over the whole result.
        key: see `Offer`.
        helpers: None: there are none.

    Attributes:
        files: of the segments told so far, in order.
        resumed: how many of them an earlier run has left.
        seconds: that rendering took.
    """

    def __init__(
        self, model: LipSyncModel, folder: Path, sound: Path, key: str, helpers: Helpers | None
    ) -> None:
        self._model, self._folder, self._sound = model, folder, sound
        self._key, self._helpers = key, helpers
        self.files: list[Path] = []
        self.resumed = 0
        self.seconds = 0.0
        self._frames: dict[int, int] = {}  # of each segment that is there
        self._frames_resumed = 0

    def render(self, plan: Plan) -> Generator[Progress, None, None]:
        """Render what is ready and not there yet; a later plan goes on where this one ends.

        With helpers, of a draft only the first segment is, which somebody may wait to see: the whole plan,
        which alone can be shared, must come soon.
        """
        if self._helpers is None:
            yield from self._in_order(plan, plan.ready)
        elif not plan.is_complete:
            yield from self._in_order(plan, plan.ready[:1])
        else:
            yield from self._shared(plan, self._helpers)

    def _in_order(self, plan: Plan, ready: Iterable[Segment]) -> Generator[Progress, None, None]:
        for segment in [*ready][len(self.files) :]:
            self._resume([segment])
            if segment.index not in self._frames:
                yield from self._make(plan, segment)
            yield from self._tell(plan)

    def _shared(self, plan: Plan, helpers: Helpers) -> Generator[Progress, None, None]:
        self._resume(plan.segments)
        if len(plan.segments) - len(self._frames) < WORTH_SHARING:
            yield from self._in_order(plan, plan.segments)
            return
        places = tuple((self._file(segment), segment.stop - segment.start) for segment in plan.segments)
        helpers.offer(Offer(self._key, plan.carried(), places))
        yield from self._tell(plan)
        while len(self._frames) < len(plan.segments):
            began = time.monotonic()
            index = helpers.next()
            self.seconds += time.monotonic() - began
            if index is not None:
                yield from self._make(plan, plan.segments[index])
                helpers.rendered(index)
            self._look(plan.segments)
            yield from self._tell(plan)
            yield self._at(plan, 0)

    def _make(self, plan: Plan, segment: Segment) -> Generator[Progress, None, None]:
        began, start_s = time.monotonic(), self.seconds
        yield self._at(plan, 0)  # a first window can take long: say what is being done
        with closing(render(plan, segment, self._model, self._file(segment))) as frames:
            for count in frames:
                self.seconds = start_s + time.monotonic() - began
                yield self._at(plan, count)
        self.seconds = start_s + time.monotonic() - began
        self._look([segment])

    def _tell(self, plan: Plan) -> Generator[Progress, None, None]:
        """Each finished segment can be watched once all before it can."""
        for segment in plan.segments[len(self.files) :]:
            if segment.index not in self._frames:
                return
            self.files.append(self._file(segment))
            place_s = (float(frame / plan.header.fps) for frame in (segment.start, segment.stop))
            watchable = Watchable(segment.index, self._file(segment), self._sound, *place_s)
            yield dataclasses.replace(self._at(plan, 0), watchable=watchable)

    def _resume(self, segments: Iterable[Segment]) -> None:
        """What is there before anything was rendered for it in this run."""
        for segment in self._look(segments):
            self.resumed += 1
            self._frames_resumed += segment.stop - segment.start

    def _look(self, segments: Iterable[Segment]) -> list[Segment]:
        """Note what has come; returns it."""
        came = [s for s in segments if s.index not in self._frames and self._file(s).exists()]
        self._frames |= {segment.index: segment.stop - segment.start for segment in came}
        return came

    def _file(self, segment: Segment) -> Path:
        return self._folder / f"segment-{segment.index:05d}.mp4"

    def _at(self, plan: Plan, count: int) -> Progress:
        done = sum(self._frames.values()) + count
        return Progress(Stage.RENDER, done, plan.n_expected, self.seconds, self._frames_resumed)
