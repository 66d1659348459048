"""Batches: jobs that are put into the queue together or not at all, and their progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from server.jobs.request import Request
from server.jobs.state import Batch, Job, StageProgress, State
from server.store import audit
from server.store.jobs import UNLIMITED, JobStore, QueueLimits, read_progress
from server.store.outbox import read_batch
from server.store.tables import BATCHES, JOBS


@dataclass(slots=True)
class BatchCounts:
    """Progress of a batch's jobs; deleted jobs are not counted.

    Attributes:
        counts: jobs per state.
        cancelling: running jobs that were requested to stop.
        started_at: first start of a job, in seconds since 1970; None: none has started.
        running: progress of the unfinished jobs that have reported it.
    """

    counts: Counter[State] = field(default_factory=Counter)
    cancelling: int = 0
    started_at: float | None = None
    running: list[StageProgress] = field(default_factory=list)


class BatchStore(JobStore):
    """Part of `Store`: batches."""

    def submit_batch(
        self,
        batch: Batch,
        entries: Sequence[tuple[Job, Request]],
        *,
        idempotency_key: str | None = None,
        limits: QueueLimits = UNLIMITED,
    ) -> tuple[Batch, bool]:
        """Put all jobs of a batch into the queue, in one commit.

        Args:
            entries: at least one, all with the batch's key.
            idempotency_key: chosen by the tenant; a second batch with it is the first.

        Returns:
            The stored batch, and whether it is new.

        Raises:
            QueueFullError, QuotaError: nothing was stored.
        """

        def insert(connection: Connection) -> Batch:
            self._require_room(connection, batch.key_id, batch.tenant, batch.created_at, len(entries), limits)
            values = {name: getattr(batch, name) for name in Batch.__dataclass_fields__}
            connection.execute(sa.insert(BATCHES).values(**values, idempotency_key=idempotency_key))
            audit.batch_submitted(connection, batch)
            self._insert(connection, entries)
            return batch

        return self.insert_idempotent(BATCHES, batch.tenant, idempotency_key, read_batch, insert)

    def get_batch(self, batch_id: str, tenant: str | None = None) -> Batch | None:
        """Read a batch; None where there is none, or where it is another tenant's."""
        query = sa.select(BATCHES).where(BATCHES.c.id == batch_id)
        with self.read_only() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None or tenant not in (None, row.tenant) else read_batch(row)

    def get_batch_by_idempotency_key(self, tenant: str, idempotency_key: str) -> Batch | None:
        """Read the batch that a tenant has submitted with a key."""
        same_key = (BATCHES.c.tenant == tenant) & (BATCHES.c.idempotency_key == idempotency_key)
        with self.read_only() as connection:
            row = connection.execute(sa.select(BATCHES).where(same_key)).one_or_none()
        return None if row is None else read_batch(row)

    def page_batches(self, tenant: str | None, *, offset: int, limit: int) -> tuple[list[Batch], int]:
        """Read one page of a tenant's batches (None: of all tenants), newest first, and count them all."""
        conditions = [] if tenant is None else [BATCHES.c.tenant == tenant]
        newest_first = BATCHES.c.created_at.desc(), BATCHES.c.id
        page = sa.select(BATCHES).where(*conditions).order_by(*newest_first).offset(offset).limit(limit)
        total = sa.select(sa.func.count()).select_from(BATCHES).where(*conditions)
        with self.read_only() as connection:
            rows = connection.execute(page).all()
            return [read_batch(row) for row in rows], int(connection.execute(total).scalar_one())

    def count_batch_jobs(self, batch_ids: Sequence[str]) -> dict[str, BatchCounts]:
        """Count the jobs of each of these batches."""
        batches = {batch_id: BatchCounts() for batch_id in batch_ids}
        is_unfinished = JOBS.c.state.in_([State.WAITING, State.RUNNING])
        progress = sa.case((is_unfinished, JOBS.c.progress))  # few have any
        groups = JOBS.c.batch_id, JOBS.c.state, JOBS.c.cancel_requested, progress
        counts = sa.select(*groups, sa.func.count(), sa.func.min(JOBS.c.started_at))
        query = counts.where(JOBS.c.batch_id.in_(batch_ids)).group_by(*groups)
        with self.read_only() as connection:  # one statement: a job is counted in one state
            for batch_id, state, cancel_requested, text, jobs, first_start in connection.execute(query):
                batch = batches[batch_id]
                batch.counts[State(state)] += jobs
                batch.cancelling += jobs if state == State.RUNNING and cancel_requested else 0
                starts = [at for at in (batch.started_at, first_start) if at is not None]
                batch.started_at = min(starts, default=None)
                if (latest := read_progress(text)) is not None:
                    batch.running += [latest] * jobs
        return batches

    def unfinished_job_ids(self, batch_id: str) -> list[str]:
        """Read ids of a batch's jobs that have not ended, those that would run last first."""
        unfinished = JOBS.c.state.in_([State.WAITING, State.RUNNING])
        query = sa.select(JOBS.c.id).where(JOBS.c.batch_id == batch_id, unfinished)
        with self.read_only() as connection:
            return list(connection.execute(query.order_by(JOBS.c.batch_row.desc())).scalars())
