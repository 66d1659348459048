"""The table of transitions: a job ends exactly once, whoever comes late changes nothing."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server import jobs
from server.jobs import Effect, Failure, Job, NotAllowedError, Output, Policy, StaleClaimError, State, Tenant

POLICY = Policy(lease_s=60, max_attempts=3, max_wait_s=1000, max_run_s=500)
OUTPUT = Output(blob="out.mp4", device_s=3.5)
NO_FACE = Failure("no_face", "No face was found.")


def waiting() -> Job:
    return Job(id="a" * 32, tenant="studio", created_at=100.0)


def running(now: float = 110.0) -> Job:
    return jobs.claim(waiting(), now, POLICY)


def test_the_usual_way() -> None:
    job = running()
    assert (job.state, job.fence, job.attempts, job.lease_until) == (State.RUNNING, 1, 1, 170.0)
    job = jobs.beat(job, 1, 150.0, POLICY, jobs.Progress("render", 3, 10, 2.0))
    assert job.lease_until == 210.0
    done = jobs.succeed(job, 1, 200.0, OUTPUT)
    assert (done.state, done.output, done.finished_at, done.lease_until) == (
        State.SUCCEEDED,
        OUTPUT,
        200.0,
        None,
    )
    assert jobs.effects(job, done) == {Effect.NOTIFY}


def test_a_claim_that_is_over_changes_nothing() -> None:
    lost = jobs.expire(running(), 171.0, POLICY)
    assert lost.state is State.WAITING
    again = jobs.claim(lost, 180.0, POLICY)
    for late in (
        lambda: jobs.beat(again, 1, 181.0, POLICY),
        lambda: jobs.succeed(again, 1, 181.0, OUTPUT),
        lambda: jobs.fail(again, 1, 181.0, NO_FACE, POLICY),
        lambda: jobs.hand_back(again, 1, 181.0),
        lambda: jobs.confirm_cancel(again, 1, 181.0),
    ):
        with pytest.raises(StaleClaimError):
            late()


def test_what_may_help_is_tried_again_and_the_rest_is_not() -> None:
    assert jobs.fail(running(), 1, 120.0, NO_FACE, POLICY).state is State.FAILED
    job = waiting()
    attempts = 0
    while job.state is State.WAITING:
        attempts += 1
        job = jobs.claim(job, 110.0, POLICY)
        job = jobs.fail(job, job.fence, 120.0, jobs.WORKER_LOST, POLICY)
    assert attempts == POLICY.max_attempts
    assert job.failure == jobs.WORKER_LOST


def test_handing_back_costs_no_attempt() -> None:
    job = jobs.hand_back(running(), 1, 120.0)
    assert (job.state, job.attempts, job.fence) == (State.WAITING, 0, 1)


def test_cancelling() -> None:
    assert jobs.cancel(waiting(), 105.0).state is State.CANCELLED
    asked = jobs.cancel(running(), 115.0)
    assert asked.state is State.RUNNING
    assert jobs.effects(running(), asked) == {Effect.STOP_WORK}
    assert jobs.effects(asked, jobs.cancel(asked, 116.0)) == set()
    assert jobs.confirm_cancel(asked, 1, 117.0).state is State.CANCELLED
    with pytest.raises(NotAllowedError):
        jobs.confirm_cancel(running(), 1, 117.0)
    # However its worker ends, an asked-for cancellation is what comes of it; a finished output stays one.
    assert jobs.fail(asked, 1, 117.0, jobs.WORKER_LOST, POLICY).state is State.CANCELLED
    assert jobs.hand_back(asked, 1, 117.0).state is State.CANCELLED
    assert jobs.expire(asked, 171.0, POLICY).state is State.CANCELLED
    assert jobs.succeed(asked, 1, 117.0, OUTPUT).state is State.SUCCEEDED


def test_limits() -> None:
    assert jobs.expire(waiting(), 1100.0, POLICY) == waiting()
    assert jobs.expire(waiting(), 1100.1, POLICY).failure == jobs.WAITED_TOO_LONG
    assert jobs.expire(running(), 170.0, POLICY) == running()
    beaten = jobs.beat(running(), 1, 600.0, POLICY)
    late = jobs.expire(beaten, 610.1, POLICY)
    assert late.failure == jobs.RAN_TOO_LONG
    assert jobs.effects(beaten, late) == {Effect.NOTIFY, Effect.STOP_WORK}


def test_turns_are_fair() -> None:
    busy, idle, new = Tenant("a", 2, 5.0), Tenant("b", 1, 9.0), Tenant("c", 1, 3.0)
    assert jobs.next_tenant([busy, idle, new]) == "c"
    assert jobs.next_tenant([busy, idle]) == "b"
    with pytest.raises(ValueError):
        jobs.next_tenant([])


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
        self.notified += Effect.NOTIFY in jobs.effects(self.job, after)
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
        self.to(jobs.expire(self.job, self.now, POLICY))

    @rule()
    def claim(self) -> None:
        if self.attempt(jobs.claim, self.now, POLICY):
            assert self.job.fence > max(self.fences)
            self.fences.append(self.job.fence)

    @rule()
    def cancel(self) -> None:
        self.to(jobs.cancel(self.job, self.now))

    @rule(data=st.data(), what=st.sampled_from(["beat", "succeed", "fail", "lose", "hand_back", "confirm"]))
    @precondition(lambda self: len(self.fences) > 1)
    def worker_speaks(self, data: st.DataObject, what: str) -> None:
        fence = data.draw(st.sampled_from(self.fences))
        held = self.job.state is State.RUNNING and self.job.fence == fence
        done = {
            "beat": lambda: self.attempt(jobs.beat, fence, self.now, POLICY),
            "succeed": lambda: self.attempt(jobs.succeed, fence, self.now, OUTPUT),
            "fail": lambda: self.attempt(jobs.fail, fence, self.now, NO_FACE, POLICY),
            "lose": lambda: self.attempt(jobs.fail, fence, self.now, jobs.WORKER_LOST, POLICY),
            "hand_back": lambda: self.attempt(jobs.hand_back, fence, self.now),
            "confirm": lambda: self.attempt(jobs.confirm_cancel, fence, self.now),
        }[what]()
        assert held or not done

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
