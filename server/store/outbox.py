"""Outbox: webhooks to deliver, inserted in the commit that ends a job, or the last job of a batch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from server.jobs.state import Batch, Job
from server.store import audit
from server.store.database import Database
from server.store.tables import BATCHES, OUTBOX, row_values

_DEAD = OUTBOX.c.due_at.is_(None) & OUTBOX.c.delivered_at.is_(None)


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """A webhook to deliver.

    Attributes:
        id: stable over all attempts.
        job_id, batch_id: what has ended, one of the two.
        due_at: next attempt; None: delivered, or no more attempts.
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
    def subject(self) -> str:
        """Job or batch, for log lines."""
        return f"job {self.job_id}" if self.job_id is not None else f"batch {self.batch_id}"


def insert_webhooks(connection: Connection, job: Job, url: str | None, now: float) -> None:
    """Insert the webhook of a job that ends in this transaction, and its batch's if it was the last.

    Decrementing the counter locks the batch's row, so of two jobs that end at once exactly one is the last.
    """
    if url is not None:
        _insert(connection, job.id, job.tenant, url, now, job_id=job.id)
    if job.batch_id is None:
        return
    of_batch = BATCHES.c.id == job.batch_id
    decrement = sa.update(BATCHES).where(of_batch).values(unfinished=BATCHES.c.unfinished - 1)
    row = connection.execute(decrement.returning(BATCHES)).one()
    if row.unfinished > 0:
        return
    connection.execute(sa.update(BATCHES).where(of_batch).values(finished_at=now))
    batch = read_batch(row)
    audit.batch_ended(connection, batch, now)
    if batch.webhook_url is not None:
        _insert(connection, batch.id, batch.tenant, batch.webhook_url, now, batch_id=batch.id)


def read_batch(row: sa.Row[Any]) -> Batch:
    values = row_values(BATCHES, row)
    return Batch(**{name: values[name] for name in Batch.__dataclass_fields__})


def _insert(connection: Connection, entry_id: str, tenant: str, url: str, now: float, **subject: str) -> None:
    values = {"id": entry_id, "tenant": tenant, "url": url, "created_at": now, "due_at": now, "tries": 0}
    connection.execute(sa.insert(OUTBOX).values(**values, **subject))


class OutboxStore(Database):
    """Part of `Store`: webhooks to deliver."""

    def claim_webhooks(
        self, now: float, limit: int, hold_s: float, busy_tenants: Collection[str] = ()
    ) -> list[OutboxEntry]:
        """Claim webhooks that are due; no other process gets them until `hold_s` later.

        Each tenant gets at most one: the one that has been due longest.

        Args:
            busy_tenants: tenants that get none now.
        """
        turn = sa.func.row_number().over(partition_by=OUTBOX.c.tenant, order_by=OUTBOX.c.due_at)
        condition = (OUTBOX.c.due_at <= now) & OUTBOX.c.tenant.not_in(busy_tenants)
        turns = sa.select(OUTBOX.c.id, OUTBOX.c.due_at, turn.label("turn")).where(condition).subquery()
        next_ids = sa.select(turns.c.id).where(turns.c.turn == 1).order_by(turns.c.due_at).limit(limit)
        # PostgreSQL checks only this condition again after another process has claimed the row meanwhile.
        due = sa.select(OUTBOX.c.id).where(
            OUTBOX.c.id.in_(next_ids.scalar_subquery()), OUTBOX.c.due_at <= now
        )
        first_due = OUTBOX.c.id.in_(due.with_for_update(skip_locked=True).scalar_subquery())
        claim = sa.update(OUTBOX).where(first_due).values(due_at=now + hold_s).returning(OUTBOX)
        with self.transaction() as connection:
            return [OutboxEntry(**row._mapping) for row in connection.execute(claim)]

    def next_webhook_at(self, busy_tenants: Collection[str] = ()) -> float | None:
        """Read when the next webhook of a tenant that is not busy is due; None where none waits."""
        query = sa.select(sa.func.min(OUTBOX.c.due_at)).where(OUTBOX.c.tenant.not_in(busy_tenants))
        with self.read_only() as connection:
            due_at: float | None = connection.execute(query).scalar_one()
        return due_at

    def webhook_delivered(self, entry_id: str, now: float) -> None:
        """Record a delivery."""
        self._record_attempt(entry_id, delivered_at=now, due_at=None, last_error=None)

    def webhook_failed(self, entry_id: str, error: str, due_at: float | None) -> None:
        """Record a failed attempt; without `due_at` there is no further one."""
        self._record_attempt(entry_id, due_at=due_at, last_error=error)

    def dead_webhooks(self, limit: int) -> list[OutboxEntry]:
        """Read webhooks without further attempts, newest first."""
        query = sa.select(OUTBOX).where(_DEAD).order_by(OUTBOX.c.created_at.desc()).limit(limit)
        with self.read_only() as connection:
            return [OutboxEntry(**row._mapping) for row in connection.execute(query)]

    def count_webhooks(self) -> tuple[int, int]:
        """Count webhooks that wait for an attempt, and dead ones."""
        waiting, dead = (
            sa.select(sa.func.count()).select_from(OUTBOX).where(condition)
            for condition in (OUTBOX.c.due_at.is_not(None), _DEAD)
        )
        with self.read_only() as connection:
            return int(connection.execute(waiting).scalar_one()), int(connection.execute(dead).scalar_one())

    def retry_webhook(self, entry_id: str, now: float) -> bool:
        """Schedule a dead webhook again; returns whether there was one."""
        retry = sa.update(OUTBOX).where(_DEAD, OUTBOX.c.id == entry_id).values(due_at=now, tries=0)
        with self.transaction() as connection:
            return connection.execute(retry).rowcount == 1

    def _record_attempt(self, entry_id: str, **values: Any) -> None:
        update = sa.update(OUTBOX).where(OUTBOX.c.id == entry_id)
        with self.transaction() as connection:
            connection.execute(update.values(tries=OUTBOX.c.tries + 1, **values))
