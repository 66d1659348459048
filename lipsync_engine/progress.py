"""What long work reports while it runs: stage, how far, how fast, how long still. It draws nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Stage(StrEnum):
    """Stages of a job, in order."""

    MOTION = "motion"  # of a portrait only
    FACES = "faces"
    AUDIO = "audio"
    RENDER = "render"
    ASSEMBLE = "assemble"


@dataclass(frozen=True, slots=True)
class Watchable:
    """A finished segment: it can be seen while the rest is made.

    Attributes:
        index: of the segment, from 0.
        pictures: its file, without sound.
        sound: file that is heard over the whole result. Both are there until the ASSEMBLE stage has ended.
        start_s, stop_s: the segment's place in the result.
    """

    index: int
    pictures: Path
    sound: Path
    start_s: float
    stop_s: float


@dataclass(frozen=True, slots=True)
class Progress:
    """One report.

    Attributes:
        stage: what is being done.
        done: units finished (frames; for AUDIO pieces of 30 s; for motion that is generated first the model's
            steps, then frames).
        total: units in all; 0 when not known.
        elapsed_s: since the stage began.
        resumed: units of `done` that an earlier run had finished.
        watchable: the segment that this report says is finished.
    """

    stage: Stage
    done: int
    total: int
    elapsed_s: float
    resumed: int = 0
    watchable: Watchable | None = None

    @property
    def per_second(self) -> float:
        return (self.done - self.resumed) / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds to go at the present speed; None when nothing can be said yet."""
        if self.total <= 0 or self.per_second <= 0:
            return None
        return max(0, self.total - self.done) / self.per_second


class Meter:
    """Makes the reports of one stage; the clock can be given."""

    def __init__(
        self, stage: Stage, total: int, *, resumed: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stage, self._total, self._resumed = stage, total, resumed
        self._clock = clock
        self._began = clock()

    def at(self, done: int) -> Progress:
        return Progress(self._stage, done, self._total, self.elapsed_s, self._resumed)

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._began
