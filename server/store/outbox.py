"""Notifications that are to be delivered; written in the commit that ends a job, or the last of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from server.jobs.state import Batch, Job
from server.store import audit
from server.store.database import Database
from server.store.tables import BATCHES, OUTBOX

_DEAD = OUTBOX.c.due_at.is_(None) & OUTBOX.c.delivered_at.is_(None)


@dataclass(frozen=True, slots=True)
class Notice:
    """A notification to deliver.

    Attributes:
        id: stable over all tries.
        job_id, batch_id: whose end it tells of, one of the two.
        due_at: next try; None: delivered, or given up.
    """

    id: str
    job_id: str | None
    batch_id: str | None
    tenant: str
    url: str
    created_at: float
    due_at: float | None
    tries: int
    delivered_at: float | None
    last_error: str | None

    @property
    def about(self) -> str:
        """For log lines."""
        return f"job {self.job_id}" if self.job_id is not None else f"batch {self.batch_id}"


def job_ended(connection: Connection, job: Job, url: str | None, now: float) -> None:
    """Inside the transaction that ends a job: what is to be told of it, and of its batch if it was the last.

    Counting down locks the batch's row, so of two jobs that end at once one is the last.
    """
    if url is not None:
        _put(connection, job.id, job.tenant, url, now, job_id=job.id)
    if job.batch_id is None:
        return
    mine = BATCHES.c.id == job.batch_id
    less = sa.update(BATCHES).where(mine).values(unfinished=BATCHES.c.unfinished - 1)
    row = connection.execute(less.returning(BATCHES)).one()
    if row.unfinished > 0:
        return
    connection.execute(sa.update(BATCHES).where(mine).values(finished_at=now))
    batch = batch_of(row)
    audit.batch_ended(connection, batch, now)
    if batch.webhook_url is not None:
        _put(connection, batch.id, batch.tenant, batch.webhook_url, now, batch_id=batch.id)


def batch_of(row: sa.Row[Any]) -> Batch:
    return Batch(**{name: getattr(row, name) for name in Batch.__dataclass_fields__})


def _put(connection: Connection, notice_id: str, tenant: str, url: str, now: float, **about: str) -> None:
    notice = {"id": notice_id, "tenant": tenant, "url": url, "created_at": now, "due_at": now, "tries": 0}
    connection.execute(sa.insert(OUTBOX).values(**notice, **about))


class Outbox(Database):
    """Part of `Store`."""

    def claim_notices(self, now: float, limit: int, hold_s: float) -> list[Notice]:
        """Take notices that are due; nobody else gets them until `hold_s` later."""
        due = sa.select(OUTBOX.c.id).where(OUTBOX.c.due_at <= now).order_by(OUTBOX.c.due_at).limit(limit)
        mine = OUTBOX.c.id.in_(due.with_for_update(skip_locked=True).scalar_subquery())
        taken = sa.update(OUTBOX).where(mine).values(due_at=now + hold_s).returning(OUTBOX)
        with self.writing() as connection:
            return [Notice(**row._mapping) for row in connection.execute(taken)]

    def next_notice_at(self) -> float | None:
        """When the next notice is due; None where none waits."""
        with self.reading() as connection:
            due_at: float | None = connection.execute(sa.select(sa.func.min(OUTBOX.c.due_at))).scalar_one()
        return due_at

    def delivered(self, notice_id: str, now: float) -> None:
        self._tried(notice_id, delivered_at=now, due_at=None, last_error=None)

    def not_delivered(self, notice_id: str, error: str, due_at: float | None) -> None:
        """One more try went wrong; None gives up."""
        self._tried(notice_id, due_at=due_at, last_error=error)

    def dead_notices(self, limit: int) -> list[Notice]:
        """What could not be delivered, newest first."""
        query = sa.select(OUTBOX).where(_DEAD).order_by(OUTBOX.c.created_at.desc()).limit(limit)
        with self.reading() as connection:
            return [Notice(**row._mapping) for row in connection.execute(query)]

    def count_notices(self) -> tuple[int, int]:
        """How many wait for a try, and how many were given up."""
        waiting, dead = (
            sa.select(sa.func.count()).select_from(OUTBOX).where(kind)
            for kind in (OUTBOX.c.due_at.is_not(None), _DEAD)
        )
        with self.reading() as connection:
            return int(connection.execute(waiting).scalar_one()), int(connection.execute(dead).scalar_one())

    def try_again(self, notice_id: str, now: float) -> bool:
        """Deliver a given-up notice after all; whether there was such a one."""
        with self.writing() as connection:
            revived = sa.update(OUTBOX).where(_DEAD, OUTBOX.c.id == notice_id).values(due_at=now, tries=0)
            return connection.execute(revived).rowcount == 1

    def _tried(self, notice_id: str, **values: Any) -> None:
        with self.writing() as connection:
            changed = sa.update(OUTBOX).where(OUTBOX.c.id == notice_id)
            connection.execute(changed.values(tries=OUTBOX.c.tries + 1, **values))
