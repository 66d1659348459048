"""Batches: jobs that are put into the queue together or not at all, and how far they are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from server.jobs.request import Request
from server.jobs.state import Batch, Job, Progress, State
from server.store import audit
from server.store.jobs import Queue
from server.store.outbox import batch_of
from server.store.tables import BATCHES, JOBS


@dataclass(slots=True)
class Tally:
    """How the jobs of a batch are; of those that were deleted nothing is known.

    Attributes:
        counts: jobs per state.
        stopping: how many of the running ones were told to stop.
        began_at: when the first that is not waiting was begun, in seconds since 1970; None: none was.
        running: where those are that said so.
    """

    counts: Counter[State] = field(default_factory=Counter)
    stopping: int = 0
    began_at: float | None = None
    running: list[Progress] = field(default_factory=list)


class Batches(Queue):
    """Part of `Store`."""

    def submit_batch(
        self,
        batch: Batch,
        entries: Sequence[tuple[Job, Request]],
        *,
        idempotency_key: str | None = None,
        max_waiting: int | None = None,
    ) -> tuple[Batch, bool]:
        """Put all jobs of a batch into the queue, in one commit.

        Args:
            entries: at least one, all by the batch's key.
            idempotency_key: of the tenant's choice; a second batch with it is the first.
            max_waiting: how many jobs of all tenants may wait.

        Returns:
            The stored batch, and whether it is new.

        Raises:
            QueueFullError, QuotaError: nothing was stored.
        """

        def insert(connection: Connection) -> Batch:
            self._require_room(connection, batch.key_id, batch.created_at, len(entries), max_waiting)
            values = {name: getattr(batch, name) for name in Batch.__dataclass_fields__}
            connection.execute(sa.insert(BATCHES).values(**values, idempotency_key=idempotency_key))
            audit.batch_submitted(connection, batch)
            self._insert(connection, entries)
            return batch

        return self.once(BATCHES, batch.tenant, idempotency_key, batch_of, insert)

    def batch(self, batch_id: str, tenant: str | None = None) -> Batch | None:
        """A batch; None where there is none, or where it is another tenant's."""
        query = sa.select(BATCHES).where(BATCHES.c.id == batch_id)
        with self.reading() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None or tenant not in (None, row.tenant) else batch_of(row)

    def batches(self, tenant: str | None, *, offset: int, limit: int) -> tuple[list[Batch], int]:
        """A tenant's batches (None: everybody's), newest first: one page, and how many there are in all."""
        wanted = [] if tenant is None else [BATCHES.c.tenant == tenant]
        newest = BATCHES.c.created_at.desc(), BATCHES.c.id
        page = sa.select(BATCHES).where(*wanted).order_by(*newest).offset(offset).limit(limit)
        total = sa.select(sa.func.count()).select_from(BATCHES).where(*wanted)
        with self.reading() as connection:
            rows = connection.execute(page).all()
            return [batch_of(row) for row in rows], int(connection.execute(total).scalar_one())

    def tallies(self, batch_ids: Sequence[str]) -> dict[str, Tally]:
        """How the jobs of each of these batches are."""
        found = {batch_id: Tally() for batch_id in batch_ids}
        kinds = JOBS.c.batch_id, JOBS.c.state, JOBS.c.cancel_asked
        mine = JOBS.c.batch_id.in_(batch_ids)
        counts = sa.select(
            *kinds, sa.func.count().label("jobs"), sa.func.min(JOBS.c.started_at).label("first")
        )
        said = sa.select(JOBS.c.batch_id, JOBS.c.progress).where(mine, JOBS.c.state == State.RUNNING)
        with self.reading() as connection:
            for row in connection.execute(counts.where(mine).group_by(*kinds)):
                tally = found[row.batch_id]
                tally.counts[State(row.state)] += row.jobs
                tally.stopping += row.jobs if row.state == State.RUNNING and row.cancel_asked else 0
                begun = [at for at in (tally.began_at, row.first) if at is not None]
                tally.began_at = min(begun, default=None)
            for row in connection.execute(said.where(JOBS.c.progress.is_not(None))):
                found[row.batch_id].running.append(Progress(**json.loads(row.progress)))
        return found

    def unfinished_jobs(self, batch_id: str) -> list[str]:
        """Ids of a batch's jobs that have not ended, those that would run last first."""
        going = JOBS.c.state.in_([State.WAITING, State.RUNNING])
        query = sa.select(JOBS.c.id).where(JOBS.c.batch_id == batch_id, going)
        with self.reading() as connection:
            return list(connection.execute(query.order_by(JOBS.c.batch_row.desc())).scalars())
