"""How many workers a cluster should have: pure decisions from the backlog and the workers' states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

DEFAULT_RUN_S = 60.0
"""Assumed duration of a job until one has succeeded."""


class WorkerState(StrEnum):
    """State of a worker."""

    STARTING = "starting"  # waits for a machine with a free device, or loads the model
    IDLE = "idle"
    BUSY = "busy"
    QUARANTINED = "quarantined"  # died repeatedly; it keeps its device, so that no other worker gets it
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class WorkerActivity:
    """State of one worker of a cluster; `idle_s` is how long it has been idle."""

    name: str
    state: WorkerState
    idle_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ScalingLimits:
    """Limits of a cluster, as the settings `cluster_…`."""

    min: int
    max: int
    backlog_s: float
    idle_s: float


def backlog_s(
    waiting_jobs: int,
    free_segments: int,
    typical_run_s: float | None,
    typical_segment_s: float,
    jobs_per_worker: int = 1,
) -> float:
    """Estimate the seconds that one worker needs for all jobs and segments that have not started.

    Args:
        typical_run_s: duration of a job beside as many others as its worker runs; None: unknown.
    """
    run_s = DEFAULT_RUN_S if typical_run_s is None else typical_run_s
    return waiting_jobs * run_s / jobs_per_worker + free_segments * typical_segment_s


def decide(workers: Sequence[WorkerActivity], backlog: float, limits: ScalingLimits) -> tuple[int, list[str]]:
    """Return how many workers to start, and the names of those to stop; never both at once.

    Workers of quarantined devices do not count, so others replace them. Only idle workers are stopped, those
    that were idle longest first.
    """
    active = [w for w in workers if w.state not in (WorkerState.QUARANTINED, WorkerState.DRAINING)]
    busy = sum(worker.state is WorkerState.BUSY for worker in active)
    target = min(limits.max, max(limits.min, busy + math.ceil(backlog / limits.backlog_s)))
    if target >= len(active):
        return target - len(active), []
    stoppable = [w for w in active if w.state is WorkerState.IDLE and w.idle_s >= limits.idle_s]
    stoppable.sort(key=lambda worker: -worker.idle_s)
    return 0, [worker.name for worker in stoppable[: len(active) - target]]
