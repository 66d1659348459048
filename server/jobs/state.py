"""What may happen to a job: a pure table of transitions, with time as an argument.

A job waits, runs under a lease, and ends exactly once. Every claim raises the fence; whoever ran it before
and comes back late holds an old fence and changes nothing. The module knows no database, no HTTP dialect and
no clock; `effects` says what has to follow from a change, and the store does that in the same commit.

    WAITING ── claim ──> RUNNING ── succeed ──> SUCCEEDED
       │                  │  │ └─── fail ─────> FAILED        (or WAITING again while attempts are left)
       │                  │  └─ hand_back ────> WAITING       (drain: the attempt does not count)
       └── cancel ──> CANCELLED <── confirm_cancel ──┘
    expire: a lease that ran out, a wait or a run that took too long
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class Effect(StrEnum):
    """What has to follow from a change."""

    NOTIFY = "notify"  # the webhook, where one was asked for
    STOP_WORK = "stop_work"  # tell the worker that runs it


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job did not succeed.

    Attributes:
        code: stable, as in `lipsync_engine.errors` or one of this module's.
        message: a sentence that the user can act on.
        again: another attempt may succeed (a crash, a device that went away).
    """

    code: str
    message: str
    again: bool = False


WORKER_LOST = Failure(
    "worker_lost", "The worker stopped before the job was done; submit it again.", again=True
)
WAITED_TOO_LONG = Failure(
    "queue_timeout", "The job waited longer than this server allows; submit it again later."
)
RAN_TOO_LONG = Failure("run_timeout", "The job ran longer than this server allows; use a shorter video.")
STORAGE_AWAY = Failure(
    "storage_away", "The storage of this server did not answer; submit it again later.", again=True
)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a running job is: a stage's name, done of total, per second."""

    stage: str
    done: int
    total: int
    per_s: float


@dataclass(frozen=True, slots=True)
class Sync:
    """How well a result's lips belong to its voice.

    Attributes:
        confidence: how far the best offset stands out; near 0 where the lips say something else.
        offset_frames: by how many frames of 40 ms the lips come late; negative: early.
        curve: (seconds of the film, confidence there), wherever it was measured.
    """

    confidence: float
    offset_frames: int
    curve: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Output:
    """What a job made.

    Attributes:
        blob: its name.
        device_s: seconds spent on the device.
        media_s: how long the result is.
        warnings: what was asked for and could not be done.
        is_marked: it carries content credentials; None: nobody remembers.
        sha256: of the file, in hex; None: nobody remembers.
        sync: None: not measured.
        is_nsfw: the source is not safe for work; None: nobody looked.
    """

    blob: str
    device_s: float
    media_s: float = 0.0
    warnings: tuple[str, ...] = ()
    is_marked: bool | None = None
    sha256: str | None = None
    sync: Sync | None = None
    is_nsfw: bool | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits in seconds, and how often a job may be tried."""

    lease_s: float = 60.0
    max_attempts: int = 3
    max_wait_s: float = 24 * 3600.0
    max_run_s: float = 6 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One row of the queue. Moments are seconds since 1970.

    Attributes:
        id: 32 hex digits.
        tenant: whose it is.
        priority: higher runs earlier within a tenant.
        fence: number of claims so far; names the current one.
        attempts: claims that count against `Policy.max_attempts`.
        lease_until: while running, when the claim lapses without a beat.
        started_at: of the current or last attempt.
        cancel_asked: the worker was told, or will be, to stop.
        batch_id, batch_row: which `Batch` it belongs to, and its place there from 0; None: to none.
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
    cancel_asked: bool = False
    progress: Progress | None = None
    output: Output | None = None
    failure: Failure | None = None
    batch_id: str | None = None
    batch_row: int | None = None

    @property
    def ran_s(self) -> float | None:
        """From start to end, of a job that succeeded."""
        if self.state is not State.SUCCEEDED or self.started_at is None or self.finished_at is None:
            return None
        return self.finished_at - self.started_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Jobs that were submitted together, and whose end is told once.

    Attributes:
        id: 32 hex digits.
        key_id: of the API key that asked; its secret signs the webhook.
        request_id: of the HTTP request that submitted it.
        said: JSON text, for the answers of the dialect that took it.
        total: jobs that it was submitted with.
        unfinished: of these, how many have not ended.
        webhook_url: told when the last has.
        finished_at: when the last has; None: not yet.
    """

    id: str
    tenant: str
    key_id: str
    request_id: str
    said: str
    created_at: float
    total: int
    unfinished: int
    webhook_url: str | None = None
    finished_at: float | None = None


class NotAllowedError(Exception):
    """The job is not in a state in which this can happen."""


class StaleClaimError(NotAllowedError):
    """The caller's claim is over: another worker has the job, or it has ended."""


# --- transitions ---


def claim(job: Job, now: float, policy: Policy) -> Job:
    """A worker takes a waiting job."""
    if job.state is not State.WAITING:
        raise NotAllowedError(f"a {job.state} job cannot be claimed")
    return dataclasses.replace(
        job,
        state=State.RUNNING,
        fence=job.fence + 1,
        attempts=job.attempts + 1,
        lease_until=now + policy.lease_s,
        started_at=now,
        progress=None,
    )


def beat(job: Job, fence: int, now: float, policy: Policy, progress: Progress | None = None) -> Job:
    """The worker is alive; the lease runs anew."""
    _require_held(job, fence)
    return dataclasses.replace(job, lease_until=now + policy.lease_s, progress=progress or job.progress)


def succeed(job: Job, fence: int, now: float, output: Output) -> Job:
    """The output is stored. A cancellation that came too late is void."""
    _require_held(job, fence)
    return _ended(job, State.SUCCEEDED, now, output=output)


def fail(job: Job, fence: int, now: float, failure: Failure, policy: Policy) -> Job:
    """The attempt failed; the job waits again where that may help."""
    _require_held(job, fence)
    return _failed_attempt(job, now, failure, policy)


def hand_back(job: Job, fence: int, now: float) -> Job:
    """The worker stops for reasons of its own, as at shutdown: the attempt does not count."""
    _require_held(job, fence)
    if job.cancel_asked:
        return _ended(job, State.CANCELLED, now)
    return _waiting_again(dataclasses.replace(job, attempts=job.attempts - 1))


def cancel(job: Job, now: float) -> Job:
    """The user does not want it any more. Ended jobs stay as they are."""
    match job.state:
        case State.WAITING:
            return _ended(job, State.CANCELLED, now)
        case State.RUNNING:
            return dataclasses.replace(job, cancel_asked=True)
        case _:
            return job


def confirm_cancel(job: Job, fence: int, now: float) -> Job:
    """The worker has stopped as it was asked to."""
    _require_held(job, fence)
    if not job.cancel_asked:
        raise NotAllowedError("nobody asked for the cancellation")
    return _ended(job, State.CANCELLED, now)


def expire(job: Job, now: float, policy: Policy) -> Job:
    """Apply every limit that has passed by `now`; the job itself where none has."""
    if job.state is State.WAITING and now - job.created_at > policy.max_wait_s:
        return _ended(job, State.FAILED, now, failure=WAITED_TOO_LONG)
    if job.state is not State.RUNNING or job.started_at is None or job.lease_until is None:
        return job
    if now - job.started_at > policy.max_run_s:
        return _ended(job, State.FAILED, now, failure=RAN_TOO_LONG)
    if now > job.lease_until:
        return _failed_attempt(job, now, WORKER_LOST, policy)
    return job


def effects(before: Job, after: Job) -> frozenset[Effect]:
    """What has to follow from a change, whatever transition made it."""
    found = set()
    if after.state.is_final and not before.state.is_final:
        found.add(Effect.NOTIFY)
    stopped = before.state is State.RUNNING and after.state is not State.RUNNING
    if (after.cancel_asked and not before.cancel_asked) or (stopped and after.failure == RAN_TOO_LONG):
        found.add(Effect.STOP_WORK)
    return frozenset(found)


def _require_held(job: Job, fence: int) -> None:
    if job.state is not State.RUNNING or job.fence != fence:
        raise StaleClaimError(f"claim {fence} of job {job.id} is over")


def _failed_attempt(job: Job, now: float, failure: Failure, policy: Policy) -> Job:
    if job.cancel_asked:
        return _ended(job, State.CANCELLED, now)
    if failure.again and job.attempts < policy.max_attempts:
        return _waiting_again(job)
    return _ended(job, State.FAILED, now, failure=failure)


def _waiting_again(job: Job) -> Job:
    return dataclasses.replace(job, state=State.WAITING, lease_until=None, progress=None)


def _ended(
    job: Job, state: State, now: float, *, output: Output | None = None, failure: Failure | None = None
) -> Job:
    return dataclasses.replace(
        job, state=state, finished_at=now, lease_until=None, output=output, failure=failure
    )


# --- whose turn it is ---


@dataclass(frozen=True, slots=True)
class Tenant:
    """What fairness looks at: jobs that run now, and when one last began."""

    name: str
    running: int
    last_started_at: float


@dataclass(frozen=True, slots=True)
class Turn:
    """When a waiting job will run.

    Attributes:
        position: how many jobs of its own tenant come before it.
        ahead: how many jobs of anybody are likely to: tenants take turns.
    """

    position: int
    ahead: int


def turns(waiting: Sequence[tuple[str, str]]) -> dict[str, Turn]:
    """Of each waiting job.

    Args:
        waiting: (id, tenant), within a tenant in the order of their turns.
    """
    counts = Counter(tenant for _, tenant in waiting)
    seen: Counter[str] = Counter()
    found = {}
    for job_id, tenant in waiting:
        own = seen[tenant]
        others = sum(min(count, own + 1) for name, count in counts.items() if name != tenant)
        found[job_id] = Turn(own, own + others)
        seen[tenant] += 1
    return found


def next_tenant(waiting: list[Tenant]) -> str:
    """Of the tenants with waiting jobs: the one with the fewest running, then the one served longest ago.

    Raises:
        ValueError: nobody waits.
    """
    return min(waiting, key=lambda tenant: (tenant.running, tenant.last_started_at, tenant.name)).name
