"""The table of transitions: a job ends exactly once, whoever comes late changes nothing."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.jobs import state as job_state
from server.jobs.state import (
    Effect,
    Failure,
    Job,
    JobPolicy,
    NotAllowedError,
    Output,
    StaleClaimError,
    State,
    TenantLoad,
)

POLICY = JobPolicy(lease_s=60, max_attempts=3, max_wait_s=1000, max_run_s=500)
OUTPUT = Output(blob="out.mp4", device_s=3.5)
NO_FACE = Failure("no_face", "No face was found.")


def waiting() -> Job:
    return Job(id="a" * 32, tenant="studio", created_at=100.0)


def running(now: float = 110.0) -> Job:
    return job_state.claim(waiting(), now, POLICY)


def test_job_succeeds_after_claim() -> None:
    job = running()
    assert (job.state, job.fence, job.attempts, job.lease_until) == (State.RUNNING, 1, 1, 170.0)
    job = job_state.renew_lease(job, 1, 150.0, POLICY, job_state.StageProgress("render", 3, 10, 2.0))
    assert job.lease_until == 210.0
    result = job_state.succeed(job, 1, 200.0, OUTPUT)
    assert (result.state, result.output, result.finished_at, result.lease_until) == (
        State.SUCCEEDED,
        OUTPUT,
        200.0,
        None,
    )
    assert job_state.effects(job, result) == {Effect.NOTIFY}


def test_stale_claim_changes_nothing() -> None:
    lost = job_state.expire(running(), 171.0, POLICY)
    assert lost.state is State.WAITING
    again = job_state.claim(lost, 180.0, POLICY)
    for late in (
        lambda: job_state.renew_lease(again, 1, 181.0, POLICY),
        lambda: job_state.succeed(again, 1, 181.0, OUTPUT),
        lambda: job_state.fail(again, 1, 181.0, NO_FACE, POLICY),
        lambda: job_state.requeue(again, 1, 181.0),
        lambda: job_state.confirm_cancel(again, 1, 181.0),
    ):
        with pytest.raises(StaleClaimError):
            late()


def test_only_retryable_failures_are_retried() -> None:
    assert job_state.fail(running(), 1, 120.0, NO_FACE, POLICY).state is State.FAILED
    job = waiting()
    attempts = 0
    while job.state is State.WAITING:
        attempts += 1
        job = job_state.claim(job, 110.0, POLICY)
        job = job_state.fail(job, job.fence, 120.0, job_state.WORKER_LOST, POLICY)
    assert attempts == POLICY.max_attempts
    assert job.failure == job_state.WORKER_LOST


def test_requeue_costs_no_attempt() -> None:
    job = job_state.requeue(running(), 1, 120.0)
    assert (job.state, job.attempts, job.fence) == (State.WAITING, 0, 1)


def test_cancel_ends_a_job_in_any_unfinished_state() -> None:
    assert job_state.cancel(waiting(), 105.0).state is State.CANCELLED
    cancelling = job_state.cancel(running(), 115.0)
    assert cancelling.state is State.RUNNING
    assert job_state.effects(running(), cancelling) == {Effect.STOP_WORK}
    assert job_state.effects(cancelling, job_state.cancel(cancelling, 116.0)) == set()
    assert job_state.confirm_cancel(cancelling, 1, 117.0).state is State.CANCELLED
    with pytest.raises(NotAllowedError):
        job_state.confirm_cancel(running(), 1, 117.0)
    # However its worker ends, an asked-for cancellation is what comes of it; a finished output stays one.
    assert job_state.fail(cancelling, 1, 117.0, job_state.WORKER_LOST, POLICY).state is State.CANCELLED
    assert job_state.requeue(cancelling, 1, 117.0).state is State.CANCELLED
    assert job_state.expire(cancelling, 171.0, POLICY).state is State.CANCELLED
    assert job_state.succeed(cancelling, 1, 117.0, OUTPUT).state is State.SUCCEEDED


def test_wait_and_run_limits_fail_a_job() -> None:
    assert job_state.expire(waiting(), 1100.0, POLICY) == waiting()
    assert job_state.expire(waiting(), 1100.1, POLICY).failure == job_state.WAIT_TIMEOUT
    assert job_state.expire(running(), 170.0, POLICY) == running()
    beaten = job_state.renew_lease(running(), 1, 600.0, POLICY)
    late = job_state.expire(beaten, 610.1, POLICY)
    assert late.failure == job_state.RUN_TIMEOUT
    assert job_state.effects(beaten, late) == {Effect.NOTIFY, Effect.STOP_WORK}


def test_tenants_take_turns() -> None:
    busy, idle, new = TenantLoad("a", 2, 5.0), TenantLoad("b", 1, 9.0), TenantLoad("c", 1, 3.0)
    assert job_state.next_tenant([busy, idle, new]) == "c"
    assert job_state.next_tenant([busy, idle]) == "b"
    with pytest.raises(ValueError):
        job_state.next_tenant([])


class Machine(RuleBasedStateMachine):
    """Any order of events, early, late and repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.job = waiting()
        self.fences: list[int] = [0]
        self.notified = 0
        self.hand_backs = 0

    def to(self, after: Job) -> None:
        self.notified += Effect.NOTIFY in job_state.effects(self.job, after)
        if self.job.state.is_final:
            assert after == self.job
        self.job = after

    def attempt(self, change: object, *arguments: object) -> bool:
        try:
            self.to(change(self.job, *arguments))  # type: ignore[operator]
        except NotAllowedError:
            return False
        return True

    @rule(seconds=st.sampled_from([0.5, 30.0, 61.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        self.to(job_state.expire(self.job, self.now, POLICY))

    @rule()
    def claim(self) -> None:
        if self.attempt(job_state.claim, self.now, POLICY):
            assert self.job.fence > max(self.fences)
            self.fences.append(self.job.fence)

    @rule()
    def cancel(self) -> None:
        self.to(job_state.cancel(self.job, self.now))

    @rule(data=st.data(), what=st.sampled_from(["beat", "succeed", "fail", "lose", "requeue", "confirm"]))
    @precondition(lambda self: len(self.fences) > 1)
    def worker_speaks(self, data: st.DataObject, what: str) -> None:
        fence = data.draw(st.sampled_from(self.fences))
        held = self.job.state is State.RUNNING and self.job.fence == fence
        result = {
            "beat": lambda: self.attempt(job_state.renew_lease, fence, self.now, POLICY),
            "succeed": lambda: self.attempt(job_state.succeed, fence, self.now, OUTPUT),
            "fail": lambda: self.attempt(job_state.fail, fence, self.now, NO_FACE, POLICY),
            "lose": lambda: self.attempt(job_state.fail, fence, self.now, job_state.WORKER_LOST, POLICY),
            "requeue": lambda: self.attempt(job_state.requeue, fence, self.now),
            "confirm": lambda: self.attempt(job_state.confirm_cancel, fence, self.now),
        }[what]()
        assert held or not result

    @invariant()
    def it_is_in_order(self) -> None:
        job = self.job
        assert 0 <= job.attempts <= POLICY.max_attempts
        assert (job.lease_until is not None) == (job.state is State.RUNNING)
        assert (job.finished_at is not None) == job.state.is_final
        assert (job.output is not None) == (job.state is State.SUCCEEDED)
        assert (job.failure is not None) == (job.state is State.FAILED)
        assert self.notified == job.state.is_final
        assert dataclasses.replace(job) == job


TestAnyOrder = Machine.TestCase


def test_progress_never_goes_back() -> None:
    reports = [("audio", 3, 3), ("faces", 1, 9), ("render", 6, 9), ("faces", 2, 9), ("render", 2, 9)]
    job, shown = running(), []
    for stage, done, total in reports:
        job = job_state.renew_lease(job, 1, 120.0, POLICY, job_state.StageProgress(stage, done, total, 1.0))
        shown.append(job.progress and (job.progress.stage, job.progress.done))
    assert shown == [("audio", 3), ("faces", 1), ("render", 6), ("render", 6), ("render", 6)]
    lost = job_state.fail(job, 1, 130.0, job_state.WORKER_LOST, POLICY)
    again = job_state.claim(lost, 140.0, POLICY)
    assert lost.progress == again.progress == job.progress
