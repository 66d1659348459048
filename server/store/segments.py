"""Segments of running jobs: which worker renders which, until when, and which are done.

A job's coordinator publishes the segments of its plan. From then on its worker and helpers claim one after
the other, each under a lease. A row records that a segment's file is stored, never where. Rows are deleted at
the end of the job.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from server.jobs import state as job_state
from server.jobs.state import State
from server.store.database import Database
from server.store.notifications import notify_segments_available, segment_done_expression
from server.store.tables import JOBS, SEGMENTS

LEASE_S = 30.0
"""Three heartbeats; a segment whose worker has died is soon rendered by another one."""

MAX_HELPER_CLAIMS = 3
"""A segment claimed that often and not done is left to the job's own worker, whose attempts count."""


@dataclass(frozen=True, slots=True)
class SegmentClaim:
    """A worker's claim on one segment.

    Attributes:
        index: of the segment, from 0.
        plan_key: of the plan; files of equal keys are equal.
        frames: number of frames in it.
        claim: number of claims of this segment so far; names the current one.
    """

    job_id: str
    index: int
    plan_key: str
    frames: int
    claim: int


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """Stored state of one segment."""

    index: int
    is_done: bool
    frames_done: int


class SegmentStore(Database):
    """Part of `Store`: segments of running jobs."""

    def publish_segments(
        self,
        job_id: str,
        fence: int,
        plan_key: str,
        compatibility_key: str,
        frames: Sequence[int],
        done: Collection[int],
    ) -> bool:
        """Let compatible workers render a running job's segments; returns whether the claim still holds.

        Segments of the same plan that are done stay done; those of another plan are deleted.

        Args:
            frames: number of frames of each segment.
            done: indices of those whose files are stored already.
        """
        with self.transaction() as connection:
            claimed = (JOBS.c.id == job_id) & (JOBS.c.state == State.RUNNING) & (JOBS.c.fence == fence)
            job = sa.select(JOBS.c.id).where(claimed).with_for_update()
            if connection.execute(job).one_or_none() is None:
                return False
            of_job = SEGMENTS.c.job_id == job_id
            connection.execute(sa.delete(SEGMENTS).where(of_job & (SEGMENTS.c.plan_key != plan_key)))
            existing = set(connection.execute(sa.select(SEGMENTS.c.number).where(of_job)).scalars())
            rows = [
                {
                    "job_id": job_id,
                    "number": index,
                    "plan_key": plan_key,
                    "compatibility_key": compatibility_key,
                    "frames": count,
                    "frames_done": 0,
                    "is_done": index in done,
                    "claims": 0,
                    "helper_s": 0.0,
                }
                for index, count in enumerate(frames)
                if index not in existing
            ]
            if rows:
                connection.execute(sa.insert(SEGMENTS), rows)
            now_done = of_job & SEGMENTS.c.number.in_(done)
            connection.execute(sa.update(SEGMENTS).where(now_done).values(is_done=True))
            notify_segments_available(connection, job_id)
        return True

    def claim_own_segment(
        self, job_id: str, plan_key: str, now: float, have: Collection[int]
    ) -> SegmentClaim | None:
        """Claim the first free segment of a job for its own worker, except those in `have`."""
        of_plan = (SEGMENTS.c.job_id == job_id) & (SEGMENTS.c.plan_key == plan_key)
        with self.autocommit() as connection:
            return _claim_first(connection, of_plan & SEGMENTS.c.number.not_in(have), now)

    def claim_shared_segment(self, compatibility_key: str, now: float) -> SegmentClaim | None:
        """Claim a segment of any running job for a worker that has nothing else to do.

        Tenants take turns as with jobs: the one with the fewest segments in rendering comes first; within a
        tenant, the job that started first.
        """
        is_compatible = SEGMENTS.c.compatibility_key == compatibility_key
        claimable = is_compatible & _is_free(now) & (SEGMENTS.c.claims < MAX_HELPER_CLAIMS)
        of_job = SEGMENTS.c.job_id == JOBS.c.id
        needs_help = (
            (JOBS.c.state == State.RUNNING) & ~JOBS.c.cancel_requested & sa.exists().where(of_job, claimable)
        )
        tenants = sa.select(JOBS.c.tenant, sa.func.min(JOBS.c.started_at)).where(needs_help)
        leased = sa.select(JOBS.c.tenant, sa.func.count()).where(of_job, SEGMENTS.c.lease_until >= now)
        with self.autocommit() as connection:
            rows = connection.execute(tenants.group_by(JOBS.c.tenant)).all()
            if not rows:
                return None
            tenant = rows[0].tenant
            if len(rows) > 1:
                running = {row[0]: row[1] for row in connection.execute(leased.group_by(JOBS.c.tenant))}
                tenant = job_state.next_tenant(
                    [job_state.TenantLoad(name, running.get(name, 0), at) for name, at in rows]
                )
            job = sa.select(JOBS.c.id).where(needs_help, JOBS.c.tenant == tenant)
            first_job = job.order_by(JOBS.c.started_at, JOBS.c.id).limit(1).scalar_subquery()
            # None where other workers were faster.
            return _claim_first(connection, claimable & (SEGMENTS.c.job_id == first_job), now)

    def renew_segment_lease(self, claim: SegmentClaim, now: float, frames_done: int | None = None) -> bool:
        """Extend a segment's lease; returns whether the claim holds and its job goes on."""
        values: dict[str, float] = {"lease_until": now + LEASE_S}
        if frames_done is not None:
            values["frames_done"] = frames_done
        cancelled = sa.select(JOBS.c.cancel_requested).where(JOBS.c.id == claim.job_id).scalar_subquery()
        renew = sa.update(SEGMENTS).where(_is_claimed(claim)).values(**values).returning(cancelled)
        with self.autocommit() as connection:
            return connection.execute(renew).scalar_one_or_none() is False

    def release_segment(self, claim: SegmentClaim) -> None:
        """Release a claim whose worker does not render the segment any more."""
        with self.transaction() as connection:
            values = {"lease_until": None, "frames_done": 0}
            connection.execute(sa.update(SEGMENTS).where(_is_claimed(claim)).values(**values))
            notify_segments_available(connection, claim.job_id)

    def complete_segment(self, job_id: str, plan_key: str, index: int, helper_s: float | None = None) -> bool:
        """Record that a segment's file is stored; returns whether the segment is still needed.

        Any worker may complete it, with or without a claim: all files of one plan are equal.

        Args:
            helper_s: seconds of a helper's device; None: the job's own worker rendered it, which counts its
                time itself and needs no notification.
        """
        with self.autocommit() as connection:
            notification = sa.null() if helper_s is None else segment_done_expression(connection, job_id)
            values = {"is_done": True, "lease_until": None, "helper_s": helper_s or 0.0}
            update = sa.update(SEGMENTS).where(_is_segment(job_id, plan_key, index)).values(**values)
            return connection.execute(update.returning(notification)).one_or_none() is not None

    def reset_segment(self, job_id: str, plan_key: str, index: int) -> None:
        """Record that a segment's file is missing: it has to be rendered again."""
        with self.autocommit() as connection:
            values = {"is_done": False, "lease_until": None, "frames_done": 0}
            update = sa.update(SEGMENTS).where(_is_segment(job_id, plan_key, index))
            connection.execute(update.values(**values))

    def get_segments(self, job_id: str) -> tuple[str, list[SegmentRecord]]:
        """Read the key of a job's shared plan, and its segments in order; ('', []) where none is shared."""
        query = sa.select(SEGMENTS).where(SEGMENTS.c.job_id == job_id).order_by(SEGMENTS.c.number)
        with self.read_only() as connection:
            rows = connection.execute(query).all()
        records = [
            SegmentRecord(row.number, row.is_done, row.frames if row.is_done else row.frames_done)
            for row in rows
        ]
        return (rows[0]._mapping[SEGMENTS.c.plan_key] if rows else "", records)

    def helper_s(self, job_id: str) -> float:
        """Sum the seconds that helpers' devices spent on a job."""
        query = sa.select(sa.func.coalesce(sa.func.sum(SEGMENTS.c.helper_s), 0.0))
        with self.read_only() as connection:
            return float(connection.execute(query.where(SEGMENTS.c.job_id == job_id)).scalar_one())

    def count_free_segments(self, now: float) -> int:
        """Count segments of running jobs that no worker renders."""
        query = sa.select(sa.func.count()).select_from(SEGMENTS).where(_is_free(now))
        with self.read_only() as connection:
            return int(connection.execute(query).scalar_one())

    def release_all_segments(self) -> None:
        """Release all claims, at the start of the only process of a database."""
        with self.transaction() as connection:
            connection.execute(sa.update(SEGMENTS).values(lease_until=None))


def delete_segments(connection: Connection, job_id: str) -> None:
    """Delete a job's segments in the transaction that ends it."""
    connection.execute(sa.delete(SEGMENTS).where(SEGMENTS.c.job_id == job_id))


def _is_free(now: float) -> sa.ColumnElement[bool]:
    return ~SEGMENTS.c.is_done & (SEGMENTS.c.lease_until.is_(None) | (SEGMENTS.c.lease_until < now))


def _is_segment(job_id: str, plan_key: str, index: int) -> sa.ColumnElement[bool]:
    of_plan = (SEGMENTS.c.job_id == job_id) & (SEGMENTS.c.plan_key == plan_key)
    return of_plan & (SEGMENTS.c.number == index)


def _is_claimed(claim: SegmentClaim) -> sa.ColumnElement[bool]:
    is_segment = _is_segment(claim.job_id, claim.plan_key, claim.index)
    return is_segment & (SEGMENTS.c.claims == claim.claim) & ~SEGMENTS.c.is_done


def _claim_first(
    connection: Connection, condition: sa.ColumnElement[bool], now: float
) -> SegmentClaim | None:
    key = SEGMENTS.c.job_id, SEGMENTS.c.number
    first = sa.select(*key).where(condition, _is_free(now)).order_by(SEGMENTS.c.number).limit(1)
    # A plain subquery may be run again for every row, and would lock another segment each time.
    first_free = first.with_for_update(skip_locked=True).cte("first_free")
    claim = (
        sa.update(SEGMENTS)
        .where(sa.tuple_(*key).in_(sa.select(first_free)))
        .values(claims=SEGMENTS.c.claims + 1, lease_until=now + LEASE_S, frames_done=0)
        .returning(*key, SEGMENTS.c.plan_key, SEGMENTS.c.frames, SEGMENTS.c.claims)
    )
    row = connection.execute(claim).one_or_none()
    return None if row is None else SegmentClaim(*row)
