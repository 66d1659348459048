"""Progress of long work: stage, units done, speed, time left. Nothing here draws or logs."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")


class Stage(StrEnum):
    """Stages of a job, in order."""

    MOTION = "motion"  # of a portrait only
    FACES = "faces"
    AUDIO = "audio"
    RENDER = "render"
    ASSEMBLE = "assemble"


@dataclass(frozen=True, slots=True)
class RenderedSegment:
    """A finished segment that can be previewed while the rest is rendered.

    Attributes:
        index: of the segment, from 0.
        video: its file, without audio.
        audio: the audio of the whole result. Both files exist until the ASSEMBLE stage has ended.
        start_s, stop_s: position of the segment in the result.
    """

    index: int
    video: Path
    audio: Path
    start_s: float
    stop_s: float


@dataclass(frozen=True, slots=True)
class Progress:
    """One progress report.

    Attributes:
        stage: the current stage.
        done: finished units (frames; for AUDIO chunks of 30 s; for generated motion first the model's steps,
            then frames).
        total: number of units; 0 if unknown.
        elapsed_s: since the stage began.
        resumed: units of `done` that an earlier run had finished.
        segment: the segment that has just been finished, or None.
    """

    stage: Stage
    done: int
    total: int
    elapsed_s: float
    resumed: int = 0
    segment: RenderedSegment | None = None

    @property
    def per_second(self) -> float:
        """Units finished per second in this run."""
        return (self.done - self.resumed) / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end of the stage at the present speed; None if unknown."""
        if self.total <= 0 or self.per_second <= 0:
            return None
        return max(0, self.total - self.done) / self.per_second


class Meter:
    """Creates the progress reports of one stage; tests pass their own clock."""

    def __init__(
        self, stage: Stage, total: int, *, resumed: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stage, self._total, self._resumed = stage, total, resumed
        self._clock = clock
        self._start_s = clock()

    def at(self, done: int) -> Progress:
        """Return the report after `done` units."""
        return Progress(self._stage, done, self._total, self.elapsed_s, self._resumed)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the meter was created."""
        return self._clock() - self._start_s


def meter_steps(
    stage: Stage, steps: Generator[tuple[int, int], None, Result]
) -> Generator[Progress, None, Result]:
    """Turn (done, total) steps into progress reports of a stage and return the steps' result."""
    meter: Meter | None = None
    with closing(steps):
        while True:
            try:
                done, total = next(steps)
            except StopIteration as end:
                result: Result = end.value
                return result
            meter = meter or Meter(stage, total)
            yield meter.at(done)
