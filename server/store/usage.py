"""What tenants have used: one row per ended job, which outlives the job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from server.jobs.state import Job, State
from server.store.database import Database
from server.store.tables import USAGE

DAY_S = 86400


@dataclass(frozen=True, slots=True)
class Usage:
    """Jobs of one tenant and model that ended on one day.

    Attributes:
        day: in UTC, since 1970.
        jobs: all, also those that failed or were cancelled.
        media_s: length of the results.
        device_s: time that devices spent on them.
        last_at: when the last one ended.
    """

    day: int
    tenant: str
    model: str
    jobs: int
    succeeded: int
    media_s: float
    device_s: float
    last_at: float


def insert_usage(connection: Connection, job: Job, model: str, now: float) -> None:
    """Record what an ended job has used."""
    output = job.output
    values = {
        "job_id": job.id,
        "day": int(now // DAY_S),
        "tenant": job.tenant,
        "model": model,
        "succeeded": int(job.state is State.SUCCEEDED),
        "media_s": 0.0 if output is None else output.media_s,
        "device_s": 0.0 if output is None else output.device_s,
        "ended_at": now,
    }
    connection.execute(sa.insert(USAGE).values(**values))


class UsageStore(Database):
    """Part of `Store`: usage by day, tenant and model."""

    def usage(self, tenant: str | None, since: float | None, until: float | None) -> list[Usage]:
        """Sum the usage of whole days, by day, tenant and model.

        Args:
            tenant: None: of all tenants.
            since, until: a time of the first day and of the last one; None: without limit.
        """
        columns = USAGE.c
        sums = sa.func.count(), *map(sa.func.sum, (columns.succeeded, columns.media_s, columns.device_s))
        group = columns.day, columns.tenant, columns.model
        totals: list[Any] = [*sums, sa.func.max(columns.ended_at)]
        query = sa.select(*group, *totals).group_by(*group).order_by(*group)
        if tenant is not None:
            query = query.where(columns.tenant == tenant)
        if since is not None:
            query = query.where(columns.day >= int(since // DAY_S))
        if until is not None:
            query = query.where(columns.day <= int(until // DAY_S))
        with self.read_only() as connection:
            return [Usage(*row) for row in connection.execute(query)]
