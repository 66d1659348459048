"""Job states and their transitions: pure functions with time as an argument.

A job waits, runs under a lease, and ends exactly once. Every claim increments the fence. A worker that
returns late holds an old fence, and its changes are refused. `effects` names what has to follow from a
change, which the store does in the same commit. The module does no I/O and reads no clock.

    WAITING ── inputs_ready ──> WAITING     (its downloads are stored; only then it can be claimed)
    WAITING ── reject_inputs ──> FAILED
    WAITING ── claim ──> RUNNING ── succeed ──> SUCCEEDED
       │                  │  │ └─── fail ─────> FAILED        (or WAITING again while attempts are left)
       │                  │  └─ requeue ──────> WAITING       (drain: the attempt does not count)
       └── cancel ──> CANCELLED <── confirm_cancel ──┘
    expire: a lease that ran out, or a wait or run over its limit
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """State of a job."""

    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class Effect(StrEnum):
    """Consequence of a change."""

    NOTIFY = "notify"  # deliver the webhook, where there is one
    STOP_WORK = "stop_work"  # stop the worker that runs the job


@dataclass(frozen=True, slots=True)
class Failure:
    """Reason why a job did not succeed.

    Attributes:
        code: stable, as in `lipsync_engine.errors` or one of this module's.
        message: a sentence that the user can act on.
        retryable: another attempt may succeed (a crash, a device that went away).
    """

    code: str
    message: str
    retryable: bool = False


WORKER_LOST = Failure(
    "worker_lost", "The worker stopped before the job was done; submit it again.", retryable=True
)
WAIT_TIMEOUT = Failure(
    "queue_timeout", "The job waited longer than this server allows; submit it again later."
)
RUN_TIMEOUT = Failure("run_timeout", "The job ran longer than this server allows; use a shorter video.")
STORAGE_UNAVAILABLE = Failure(
    "storage_away", "The storage of this server did not answer; submit it again later.", retryable=True
)


UNREADABLE = Failure(
    "job_unreadable",
    "The stored job is damaged, or another version of this server wrote it; submit it again.",
)


@dataclass(frozen=True, slots=True)
class StageProgress:
    """Progress of a running job: name of the stage, steps done, steps in total, steps per second."""

    stage: str
    done: int
    total: int
    per_s: float

    @property
    def rendered_share(self) -> float:
        """Share of the frames that are rendered."""
        if self.stage == "assemble":
            return 1.0
        return min(1.0, self.done / self.total) if self.stage == "render" and self.total > 0 else 0.0


@dataclass(frozen=True, slots=True)
class SyncConfidence:
    """Measured agreement of a result's lips with its voice.

    Attributes:
        confidence: how far the best offset stands out; near 0 where lips and voice do not match.
        offset_frames: delay of the lips in frames of 40 ms; negative: early.
        curve: (seconds of the video, confidence there), wherever it was measured.
    """

    confidence: float
    offset_frames: int
    curve: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Output:
    """Result of a job.

    Attributes:
        blob: name of the result's blob.
        device_s: seconds spent on devices.
        media_s: length of the result.
        warnings: sentences on deviations from the request, and on what needs attention.
        is_signed: carries content credentials; None: not recorded.
        sha256: of the file, in hex; None: not recorded.
        sync: None: not measured.
        is_nsfw: the source is not safe for work; None: not checked.
        warning_codes: one per warning; fewer where they are not recorded.
        pauses_s: (start, stop) of the output where the voice gate is closed.
    """

    blob: str
    device_s: float
    media_s: float = 0.0
    warnings: tuple[str, ...] = ()
    is_signed: bool | None = None
    sha256: str | None = None
    sync: SyncConfidence | None = None
    is_nsfw: bool | None = None
    warning_codes: tuple[str, ...] = ()
    pauses_s: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class JobPolicy:
    """Time limits and the number of attempts of a job."""

    lease_s: float = 60.0
    max_attempts: int = 3
    max_wait_s: float = 24 * 3600.0
    max_run_s: float = 6 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One row of the queue. Times are seconds since 1970.

    Attributes:
        id: 32 hex digits.
        tenant: owner of the job.
        priority: higher runs earlier within a tenant.
        fence: number of claims so far; names the current one.
        attempts: claims that count against `JobPolicy.max_attempts`.
        lease_until: while running, when the claim lapses unless it is renewed.
        started_at: of the current or last attempt.
        cancel_requested: the worker has to stop.
        batch_id, batch_row: `Batch` of the job, and its row there from 0; None: no batch.
        inputs_ready: all inputs are stored; else they have to be downloaded first.
    """

    id: str
    tenant: str
    created_at: float
    priority: int = 0
    state: State = State.WAITING
    fence: int = 0
    attempts: int = 0
    lease_until: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    cancel_requested: bool = False
    progress: StageProgress | None = None
    output: Output | None = None
    failure: Failure | None = None
    batch_id: str | None = None
    batch_row: int | None = None
    inputs_ready: bool = True

    @property
    def run_s(self) -> float | None:
        """Seconds from start to end of a job that succeeded; else None."""
        if self.state is not State.SUCCEEDED or self.started_at is None or self.finished_at is None:
            return None
        return self.finished_at - self.started_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Jobs that were submitted together and share one webhook at their end.

    Attributes:
        id: 32 hex digits.
        key_id: of the API key that submitted it; the key's secret signs the webhook.
        request_id: of the HTTP request that submitted it.
        dialect_state: JSON text for the answers of the dialect that accepted it.
        total: number of jobs at submission.
        unfinished: number of jobs that have not ended.
        webhook_url: called when the last job has ended.
        finished_at: end of the last job; None: not yet.
    """

    id: str
    tenant: str
    key_id: str
    request_id: str
    dialect_state: str
    created_at: float
    total: int
    unfinished: int
    webhook_url: str | None = None
    finished_at: float | None = None


class NotAllowedError(Exception):
    """The transition is not allowed in the job's state."""


class StaleClaimError(NotAllowedError):
    """The caller's claim is over: another worker has the job, or it has ended."""


# --- transitions ---


def inputs_ready(job: Job) -> Job:
    """Let a waiting job start: its downloads are stored."""
    if job.state is not State.WAITING:
        raise NotAllowedError(f"a {job.state} job needs no downloads")
    return dataclasses.replace(job, inputs_ready=True)


def reject_inputs(job: Job, now: float, failure: Failure) -> Job:
    """End a waiting job whose inputs cannot be downloaded."""
    if job.state is not State.WAITING or job.inputs_ready:
        raise NotAllowedError(f"a {job.state} job needs no downloads")
    return _end(job, State.FAILED, now, failure=failure)


def end_unreadable(job: Job, now: float) -> Job:
    """End a job whose row cannot be read."""
    return job if job.state.is_final else _end(job, State.FAILED, now, failure=UNREADABLE)


def claim(job: Job, now: float, policy: JobPolicy) -> Job:
    """Start an attempt of a waiting job."""
    if job.state is not State.WAITING or not job.inputs_ready:
        raise NotAllowedError(f"a {job.state} job cannot be claimed")
    return dataclasses.replace(
        job,
        state=State.RUNNING,
        fence=job.fence + 1,
        attempts=job.attempts + 1,
        lease_until=now + policy.lease_s,
        started_at=now,
    )


def renew_lease(
    job: Job, fence: int, now: float, policy: JobPolicy, progress: StageProgress | None = None
) -> Job:
    """Extend the lease of a claim whose worker is alive."""
    _require_claim(job, fence)
    furthest = _furthest(job.progress, progress)
    return dataclasses.replace(job, lease_until=now + policy.lease_s, progress=furthest)


def succeed(job: Job, fence: int, now: float, output: Output) -> Job:
    """End a job whose output is stored. A cancellation that came too late is void."""
    _require_claim(job, fence)
    return _end(job, State.SUCCEEDED, now, output=output)


def fail(job: Job, fence: int, now: float, failure: Failure, policy: JobPolicy) -> Job:
    """End a failed attempt; the job waits again where another attempt may succeed."""
    _require_claim(job, fence)
    return _fail_attempt(job, now, failure, policy)


def requeue(job: Job, fence: int, now: float) -> Job:
    """Release a claim for reasons that are not the job's, as at shutdown: the attempt does not count."""
    _require_claim(job, fence)
    if job.cancel_requested:
        return _end(job, State.CANCELLED, now)
    return _wait_again(dataclasses.replace(job, attempts=job.attempts - 1))


def cancel(job: Job, now: float) -> Job:
    """End a waiting job, or request that a running one stops. Ended jobs stay as they are."""
    match job.state:
        case State.WAITING:
            return _end(job, State.CANCELLED, now)
        case State.RUNNING:
            return dataclasses.replace(job, cancel_requested=True)
        case _:
            return job


def confirm_cancel(job: Job, fence: int, now: float) -> Job:
    """End a job whose worker has stopped on request."""
    _require_claim(job, fence)
    if not job.cancel_requested:
        raise NotAllowedError("no cancellation was requested")
    return _end(job, State.CANCELLED, now)


def expire(job: Job, now: float, policy: JobPolicy) -> Job:
    """Apply every limit that has passed by `now`; returns the job itself where none has."""
    if job.state is State.WAITING and now - job.created_at > policy.max_wait_s:
        return _end(job, State.FAILED, now, failure=WAIT_TIMEOUT)
    if job.state is not State.RUNNING or job.started_at is None or job.lease_until is None:
        return job
    if now - job.started_at > policy.max_run_s:
        return _end(job, State.FAILED, now, failure=RUN_TIMEOUT)
    if now > job.lease_until:
        return _fail_attempt(job, now, WORKER_LOST, policy)
    return job


def effects(before: Job, after: Job) -> frozenset[Effect]:
    """Compare a job before and after a transition; returns what has to follow."""
    consequences = set()
    if after.state.is_final and not before.state.is_final:
        consequences.add(Effect.NOTIFY)
    stopped = before.state is State.RUNNING and after.state is not State.RUNNING
    if (after.cancel_requested and not before.cancel_requested) or (stopped and after.failure == RUN_TIMEOUT):
        consequences.add(Effect.STOP_WORK)
    return frozenset(consequences)


def _require_claim(job: Job, fence: int) -> None:
    if job.state is not State.RUNNING or job.fence != fence:
        raise StaleClaimError(f"claim {fence} of job {job.id} is over")


def _fail_attempt(job: Job, now: float, failure: Failure, policy: JobPolicy) -> Job:
    if job.cancel_requested:
        return _end(job, State.CANCELLED, now)
    if failure.retryable and job.attempts < policy.max_attempts:
        return _wait_again(job)
    return _end(job, State.FAILED, now, failure=failure)


def _furthest(before: StageProgress | None, after: StageProgress | None) -> StageProgress | None:
    """Return the progress to show: another attempt does not set the rendered share back."""
    if before is None or after is None:
        return after or before
    return after if _rank(after) >= _rank(before) else before


def _rank(progress: StageProgress) -> float:
    return 2.0 if progress.stage == "assemble" else progress.rendered_share


def _wait_again(job: Job) -> Job:
    return dataclasses.replace(job, state=State.WAITING, lease_until=None)


def _end(
    job: Job, state: State, now: float, *, output: Output | None = None, failure: Failure | None = None
) -> Job:
    return dataclasses.replace(
        job, state=state, finished_at=now, lease_until=None, output=output, failure=failure
    )


# --- order of the queue ---


@dataclass(frozen=True, slots=True)
class TenantLoad:
    """Load of one tenant with waiting jobs: jobs that run, and the latest start of one."""

    name: str
    running: int
    last_started_at: float


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """Position of a waiting job.

    Attributes:
        position: number of jobs of its own tenant before it.
        ahead: number of jobs of all tenants that will probably start before it: tenants take turns.
    """

    position: int
    ahead: int


def queue_positions(waiting: Sequence[tuple[str, str]]) -> dict[str, QueuePosition]:
    """Compute the position of every waiting job, by its id.

    Args:
        waiting: (job id, tenant), within a tenant in the order in which they will start.
    """
    counts = Counter(tenant for _, tenant in waiting)
    before: Counter[str] = Counter()
    positions = {}
    for job_id, tenant in waiting:
        own = before[tenant]
        others = sum(min(count, own + 1) for name, count in counts.items() if name != tenant)
        positions[job_id] = QueuePosition(own, own + others)
        before[tenant] += 1
    return positions


def next_tenant(tenants: Sequence[TenantLoad]) -> str:
    """Choose the tenant with the fewest running jobs, then the one served longest ago.

    Raises:
        ValueError: `tenants` is empty.
    """
    return min(tenants, key=lambda tenant: (tenant.running, tenant.last_started_at, tenant.name)).name
