"""Claims on the segments of running jobs."""

from __future__ import annotations

import dataclasses
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from server.jobs import state as job_state
from server.jobs.request import Request
from server.jobs.state import Job, JobPolicy, Output
from server.store import SegmentClaim, SegmentRecord, Store
from server.store.segments import LEASE_S, MAX_HELPER_CLAIMS

POLICY = JobPolicy()
REQUEST = Request(dialect="wavespeed", dialect_state="{}", endpoint="a/b", sources=(), key_id="0" * 16)
PLAN_KEY, COMPATIBILITY_KEY = "k" * 32, "f" * 32
numbers = itertools.count(1)


def submit_running_job(
    store: Store, tenant: str = "studio", *, frames: tuple[int, ...] = (50, 150), at: float = 1
) -> Job:
    """A job whose segments are offered."""
    store.submit(Job(id=f"{next(numbers):032x}", tenant=tenant, created_at=at), REQUEST)
    record = store.claim(at, POLICY)
    assert record is not None
    assert store.publish_segments(record.job.id, record.job.fence, PLAN_KEY, COMPATIBILITY_KEY, frames, set())
    return record.job


def test_each_segment_is_claimed_once_in_order(store: Store) -> None:
    job = submit_running_job(store, frames=(50, 150, 150))
    own = store.claim_own_segment(job.id, PLAN_KEY, 10, have=set())
    shared_claims = [store.claim_shared_segment(COMPATIBILITY_KEY, 10) for _ in range(3)]
    assert own == SegmentClaim(job.id, 0, PLAN_KEY, 50, 1)
    assert shared_claims == [
        SegmentClaim(job.id, 1, PLAN_KEY, 150, 1),
        SegmentClaim(job.id, 2, PLAN_KEY, 150, 1),
        None,
    ]
    assert store.claim_own_segment(job.id, PLAN_KEY, 10, have=set()) is None
    assert store.renew_segment_lease(shared_claims[0], 11, frames_done=70)
    assert store.complete_segment(job.id, PLAN_KEY, 2)
    assert store.get_segments(job.id) == (
        PLAN_KEY,
        [SegmentRecord(0, False, 0), SegmentRecord(1, False, 70), SegmentRecord(2, True, 150)],
    )
    assert store.complete_segment(job.id, PLAN_KEY, 1, helper_s=2.5)
    assert store.helper_s(job.id) == 2.5


def test_concurrent_claims_never_share_a_segment(postgres_url: str) -> None:
    stores = [Store(postgres_url) for _ in range(4)]
    for at in range(3):
        submit_running_job(stores[0], at=at, frames=(150,) * 20)

    def take(store: Store) -> list[tuple[str, int]]:
        claimed = []
        while (claim := store.claim_shared_segment(COMPATIBILITY_KEY, 10)) is not None:
            claimed.append((claim.job_id, claim.index))
        return claimed

    with ThreadPoolExecutor(len(stores)) as at_once:
        claimed = [key for keys in at_once.map(take, stores) for key in keys]
    assert len(claimed) == len(set(claimed)) == 60
    for store in stores:
        store.close()


def test_claim_and_renewal_take_few_statements(store: Store) -> None:
    statements: list[str] = []
    sa.event.listen(
        store._engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2])
    )
    submit_running_job(store)
    statements.clear()
    claim = store.claim_shared_segment(COMPATIBILITY_KEY, 10.0)
    assert claim is not None
    assert len(statements) == 2, "whose turn it is, and the segment"
    statements.clear()
    assert store.renew_segment_lease(claim, 11.0, 5)
    assert store.complete_segment(claim.job_id, claim.plan_key, claim.index)
    assert store.claim_own_segment(claim.job_id, claim.plan_key, 12.0, set()) is not None
    assert len(statements) == 3


def test_claim_needs_an_equal_compatibility_key(store: Store) -> None:
    submit_running_job(store)
    assert store.claim_shared_segment("other weights", 10) is None


def test_segment_with_expired_lease_is_claimed_again(store: Store) -> None:
    job = submit_running_job(store, frames=(50,))
    expired = store.claim_shared_segment(COMPATIBILITY_KEY, 10)
    assert expired is not None
    assert store.claim_shared_segment(COMPATIBILITY_KEY, 10 + LEASE_S) is None
    assert store.renew_segment_lease(expired, 20)
    assert store.claim_shared_segment(COMPATIBILITY_KEY, 11 + LEASE_S) is None
    again = store.claim_own_segment(job.id, PLAN_KEY, 21 + LEASE_S, have=set())
    assert again == dataclasses.replace(expired, claim=2)
    assert not store.renew_segment_lease(expired, 22 + LEASE_S), "an old claim holds"
    store.release_segment(expired)
    assert store.claim_shared_segment(COMPATIBILITY_KEY, 22 + LEASE_S) is None, (
        "an old claim frees another's segment"
    )
    store.release_segment(again)
    assert store.claim_shared_segment(COMPATIBILITY_KEY, 22 + LEASE_S) == dataclasses.replace(
        expired, claim=3
    )


def test_segment_that_failed_often_is_left_to_its_owner(store: Store) -> None:
    job = submit_running_job(store, frames=(50,))
    for _ in range(MAX_HELPER_CLAIMS):
        claim = store.claim_shared_segment(COMPATIBILITY_KEY, 10)
        assert claim is not None
        store.release_segment(claim)
    assert store.claim_shared_segment(COMPATIBILITY_KEY, 10) is None
    assert store.claim_own_segment(job.id, PLAN_KEY, 10, have=set()) is not None


def test_shared_claims_alternate_between_tenants(store: Store) -> None:
    first, second = (
        submit_running_job(store, "a", frames=(1,) * 9),
        submit_running_job(store, "b", frames=(1,) * 3, at=2),
    )
    claims = [store.claim_shared_segment(COMPATIBILITY_KEY, 10) for _ in range(6)]
    assert [claim.job_id for claim in claims if claim] == [first.id, second.id] * 3


@pytest.mark.parametrize("end", ["cancel", "fail", "again"])
def test_job_that_ended_or_waits_offers_no_segments(end: str, store: Store) -> None:
    job = submit_running_job(store)
    claim = store.claim_shared_segment(COMPATIBILITY_KEY, 10)
    assert claim is not None
    change = {
        "cancel": lambda job: job_state.cancel(job, 11),
        "fail": lambda job: job_state.fail(job, 1, 11, job_state.RUN_TIMEOUT, POLICY),
        "again": lambda job: job_state.fail(job, 1, 11, job_state.WORKER_LOST, POLICY),
    }[end]
    store.change(job.id, 11, change)
    assert store.claim_shared_segment(COMPATIBILITY_KEY, 12) is None
    if end != "again":  # whoever renders for the next attempt's sake goes on
        assert not store.renew_segment_lease(claim, 12)


def test_segments_are_deleted_with_the_end_of_the_job(store: Store) -> None:
    job = submit_running_job(store)
    store.change(job.id, 11, lambda job: job_state.succeed(job, 1, 11, Output("results/a.mp4", 1.0)))
    assert store.get_segments(job.id) == ("", [])
    assert not store.complete_segment(job.id, PLAN_KEY, 0)


def test_later_attempt_keeps_finished_segments_of_the_same_plan(store: Store) -> None:
    job = submit_running_job(store)
    assert store.complete_segment(job.id, PLAN_KEY, 1)
    assert not store.publish_segments(job.id, 7, PLAN_KEY, COMPATIBILITY_KEY, (50, 150), set()), (
        "an old claim offers"
    )
    store.change(job.id, 11, lambda job: job_state.fail(job, 1, 11, job_state.WORKER_LOST, POLICY))
    again = store.claim(12, POLICY)
    assert again is not None
    assert store.publish_segments(job.id, again.job.fence, PLAN_KEY, COMPATIBILITY_KEY, (50, 150), {0})
    assert [share.is_done for share in store.get_segments(job.id)[1]] == [True, True]
    assert store.publish_segments(job.id, again.job.fence, "o" * 32, COMPATIBILITY_KEY, (50, 150), set())
    assert store.get_segments(job.id) == ("o" * 32, [SegmentRecord(0, False, 0), SegmentRecord(1, False, 0)])
