"""Segments of running jobs: who renders which, until when, and what is done.

A job's owner offers the segments of its plan; from then on the owner and helpers take one after the other,
each under a lease. A row says that a segment's file is stored, never where. Rows go with their job's end.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from server.jobs import state as job_state
from server.jobs.state import State
from server.store.database import Database
from server.store.notifications import tell_help_wanted, telling_segment_done
from server.store.tables import JOBS, SEGMENTS

LEASE_S = 30.0
"""Three beats; a segment that nobody renders any more is soon rendered by somebody else."""

CLAIMS_OF_HELPERS = 3
"""A segment that was taken that often and is not done is left to the job's owner, whose attempts count."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A segment that somebody has taken.

    Attributes:
        number: of the segment, from 0.
        key: of the plan; files of equal keys are equal.
        frames: in it.
        claim: how often it was taken, this time included: names the claim.
    """

    job_id: str
    number: int
    key: str
    frames: int
    claim: int


@dataclass(frozen=True, slots=True)
class Share:
    """Where a segment is: done, or so many frames of it."""

    number: int
    is_done: bool
    frames_done: int


class Segments(Database):
    """Part of `Store`."""

    def offer_segments(
        self, job_id: str, fence: int, key: str, fits: str, frames: Sequence[int], done: Collection[int]
    ) -> bool:
        """Let everybody who `fits` render a running job's segments; whether the claim still holds.

        What was done of the same plan stays done; another plan's segments are forgotten.

        Args:
            frames: of each segment.
            done: numbers of those whose files are stored already.
        """
        with self.writing() as connection:
            held = (JOBS.c.id == job_id) & (JOBS.c.state == State.RUNNING) & (JOBS.c.fence == fence)
            if connection.execute(sa.select(JOBS.c.id).where(held).with_for_update()).one_or_none() is None:
                return False
            mine = SEGMENTS.c.job_id == job_id
            connection.execute(sa.delete(SEGMENTS).where(mine & (SEGMENTS.c.key != key)))
            known = set(connection.execute(sa.select(SEGMENTS.c.number).where(mine)).scalars())
            rows = [
                {
                    "job_id": job_id,
                    "number": number,
                    "key": key,
                    "fits": fits,
                    "frames": count,
                    "frames_done": 0,
                    "is_done": number in done,
                    "claims": 0,
                    "helper_s": 0.0,
                }
                for number, count in enumerate(frames)
                if number not in known
            ]
            if rows:
                connection.execute(sa.insert(SEGMENTS), rows)
            again = mine & SEGMENTS.c.number.in_(done)
            connection.execute(sa.update(SEGMENTS).where(again).values(is_done=True))
            tell_help_wanted(connection, job_id)
        return True

    def take_segment(self, job_id: str, key: str, now: float, have: Collection[int]) -> Piece | None:
        """The owner's next segment: the first that nobody renders, of those that are not in `have`."""
        wanted = (SEGMENTS.c.job_id == job_id) & (SEGMENTS.c.key == key) & SEGMENTS.c.number.not_in(have)
        with self.alone() as connection:
            return _take(connection, wanted, now)

    def help_with_segment(self, fits: str, now: float) -> Piece | None:
        """A segment of somebody's running job, for a worker that has nothing else to do.

        Fair between tenants as jobs are: the tenant of whom the fewest segments are rendered comes first; in
        one, the job that began first.
        """
        open_ = (SEGMENTS.c.fits == fits) & _is_free(now) & (SEGMENTS.c.claims < CLAIMS_OF_HELPERS)
        mine = SEGMENTS.c.job_id == JOBS.c.id
        needy = (JOBS.c.state == State.RUNNING) & ~JOBS.c.cancel_asked & sa.exists().where(mine, open_)
        tenants = sa.select(JOBS.c.tenant, sa.func.min(JOBS.c.started_at)).where(needy)
        leased = sa.select(JOBS.c.tenant, sa.func.count()).where(mine, SEGMENTS.c.lease_until >= now)
        with self.alone() as connection:
            found = connection.execute(tenants.group_by(JOBS.c.tenant)).all()
            if not found:
                return None
            tenant = found[0].tenant
            if len(found) > 1:
                busy = {row[0]: row[1] for row in connection.execute(leased.group_by(JOBS.c.tenant))}
                tenant = job_state.next_tenant(
                    [job_state.Tenant(name, busy.get(name, 0), at) for name, at in found]
                )
            first = sa.select(JOBS.c.id).where(needy, JOBS.c.tenant == tenant)
            first = first.order_by(JOBS.c.started_at, JOBS.c.id).limit(1)
            # None where others were faster.
            return _take(connection, open_ & (SEGMENTS.c.job_id == first.scalar_subquery()), now)

    def beat_segment(self, piece: Piece, now: float, frames_done: int | None = None) -> bool:
        """It is being rendered still; whether the claim holds and its job goes on."""
        values: dict[str, float] = {"lease_until": now + LEASE_S}
        if frames_done is not None:
            values["frames_done"] = frames_done
        stopping = sa.select(JOBS.c.cancel_asked).where(JOBS.c.id == piece.job_id).scalar_subquery()
        beat = sa.update(SEGMENTS).where(_claim(piece)).values(**values).returning(stopping)
        with self.alone() as connection:
            return connection.execute(beat).scalar_one_or_none() is False

    def free_segment(self, piece: Piece) -> None:
        """Whoever took it does not render it any more."""
        with self.writing() as connection:
            values = {"lease_until": None, "frames_done": 0}
            connection.execute(sa.update(SEGMENTS).where(_claim(piece)).values(**values))
            tell_help_wanted(connection, piece.job_id)

    def finish_segment(self, job_id: str, key: str, number: int, helper_s: float | None = None) -> bool:
        """Its file is stored; whether anybody wants it. Who rendered it does not matter: all are equal.

        Args:
            helper_s: seconds of a helper's device; None: the owner rendered it, which counts its own, and
                nobody has to be told.
        """
        mine = (SEGMENTS.c.job_id == job_id) & (SEGMENTS.c.key == key) & (SEGMENTS.c.number == number)
        values = {"is_done": True, "lease_until": None, "helper_s": helper_s or 0.0}
        with self.alone() as connection:
            told = sa.null() if helper_s is None else telling_segment_done(connection, job_id)
            done = sa.update(SEGMENTS).where(mine).values(**values).returning(told)
            return connection.execute(done).one_or_none() is not None

    def lose_segment(self, job_id: str, key: str, number: int) -> None:
        """Its file is not where it was: it has to be rendered again."""
        mine = (SEGMENTS.c.job_id == job_id) & (SEGMENTS.c.key == key) & (SEGMENTS.c.number == number)
        with self.alone() as connection:
            values = {"is_done": False, "lease_until": None, "frames_done": 0}
            connection.execute(sa.update(SEGMENTS).where(mine).values(**values))

    def shares(self, job_id: str) -> tuple[str, list[Share]]:
        """The key of the plan that is shared, and its segments; ('', []) where none is."""
        query = sa.select(SEGMENTS).where(SEGMENTS.c.job_id == job_id).order_by(SEGMENTS.c.number)
        with self.reading() as connection:
            rows = connection.execute(query).all()
        found = [
            Share(row.number, row.is_done, row.frames if row.is_done else row.frames_done) for row in rows
        ]
        return (rows[0].key if rows else "", found)

    def helper_s(self, job_id: str) -> float:
        """Seconds that helpers' devices spent on a job."""
        query = sa.select(sa.func.coalesce(sa.func.sum(SEGMENTS.c.helper_s), 0.0))
        with self.reading() as connection:
            return float(connection.execute(query.where(SEGMENTS.c.job_id == job_id)).scalar_one())

    def count_free_segments(self, now: float) -> int:
        """Segments of running jobs that nobody has begun."""
        query = sa.select(sa.func.count()).select_from(SEGMENTS).where(_is_free(now))
        with self.reading() as connection:
            return int(connection.execute(query).scalar_one())

    def free_all_segments(self) -> None:
        """Nobody renders any: for the start of the only process of a database."""
        with self.writing() as connection:
            connection.execute(sa.update(SEGMENTS).values(lease_until=None))


def forget_segments(connection: Connection, job_id: str) -> None:
    """In the transaction that ends a job."""
    connection.execute(sa.delete(SEGMENTS).where(SEGMENTS.c.job_id == job_id))


def _is_free(now: float) -> sa.ColumnElement[bool]:
    return ~SEGMENTS.c.is_done & (SEGMENTS.c.lease_until.is_(None) | (SEGMENTS.c.lease_until < now))


def _claim(piece: Piece) -> sa.ColumnElement[bool]:
    mine = (SEGMENTS.c.job_id == piece.job_id) & (SEGMENTS.c.number == piece.number)
    return mine & (SEGMENTS.c.key == piece.key) & (SEGMENTS.c.claims == piece.claim) & ~SEGMENTS.c.is_done


def _take(connection: Connection, wanted: sa.ColumnElement[bool], now: float) -> Piece | None:
    place = SEGMENTS.c.job_id, SEGMENTS.c.number
    first = sa.select(*place).where(wanted, _is_free(now)).order_by(SEGMENTS.c.number).limit(1)
    # A plain subquery may be run again for every row, and would lock another segment each time.
    once = first.with_for_update(skip_locked=True).cte("first_free")
    taken = (
        sa.update(SEGMENTS)
        .where(sa.tuple_(*place).in_(sa.select(once)))
        .values(claims=SEGMENTS.c.claims + 1, lease_until=now + LEASE_S, frames_done=0)
        .returning(*place, SEGMENTS.c.key, SEGMENTS.c.frames, SEGMENTS.c.claims)
    )
    row = connection.execute(taken).one_or_none()
    return None if row is None else Piece(*row)
