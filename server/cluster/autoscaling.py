"""How many workers a cluster should have: pure decisions from what waits and what its workers do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

USUAL_RUN_S = 60.0
"""Taken for a job while nobody knows how long one takes."""


class Condition(StrEnum):
    """What a worker is doing."""

    STARTING = "starting"  # waits for a machine with a free device, or loads the model
    IDLE = "idle"
    BUSY = "busy"
    QUARANTINED = "quarantined"  # lost again and again; it keeps its device, so that nobody else gets it
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Worker:
    """Attributes: `idle_s` is how long it has had nothing to do."""

    name: str
    condition: Condition
    idle_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Limits:
    """As in `Settings`, without the prefix."""

    min: int
    max: int
    backlog_s: float
    idle_s: float


def backlog_s(
    waiting_jobs: int,
    free_segments: int,
    usual_run_s: float | None,
    usual_segment_s: float,
    jobs_per_worker: int = 1,
) -> float:
    """Seconds of one worker that would bring everything to its end that nobody has begun.

    Args:
        usual_run_s: of a job among as many others as its worker makes.
    """
    usual = USUAL_RUN_S if usual_run_s is None else usual_run_s
    return waiting_jobs * usual / jobs_per_worker + free_segments * usual_segment_s


def decide(workers: Sequence[Worker], backlog: float, limits: Limits) -> tuple[int, list[str]]:
    """How many workers to start, and the names of those to stop.

    Workers of quarantined devices do not count, so that others take their place. Never both at once, and none
    is stopped that has work: those that were idle longest go first.
    """
    used = [w for w in workers if w.condition not in (Condition.QUARANTINED, Condition.DRAINING)]
    needed = sum(w.condition is Condition.BUSY for w in used) + math.ceil(backlog / limits.backlog_s)
    wanted = min(limits.max, max(limits.min, needed))
    if wanted >= len(used):
        return wanted - len(used), []
    tired = [w for w in used if w.condition is Condition.IDLE and w.idle_s >= limits.idle_s]
    tired.sort(key=lambda worker: -worker.idle_s)
    return 0, [worker.name for worker in tired[: len(used) - wanted]]
