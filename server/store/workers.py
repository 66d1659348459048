"""Workers of all processes of a database; each process reports its own now and then."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from server.store.database import Database
from server.store.tables import WORKERS, row_values

REPORT_EXPIRY_S = 35.0
"""Three heartbeats and some: a worker without a report for longer is gone."""


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """Last report about one worker.

    Attributes:
        process: id of its server process, new at each start.
        number: of the worker in that process.
        state: a `cluster.autoscaling.WorkerState`.
        starts: worker processes started for its device.
        reported_at: by the database's clock.
        problem: why it does not start; None: it does.
    """

    process: str
    number: int
    machine: str
    device: str
    model: str
    state: str
    starts: int
    reported_at: float
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields under the names that the API documents."""
        values = dataclasses.asdict(self)
        values["condition"], values["seen_at"] = values.pop("state"), values.pop("reported_at")
        return values


class WorkerStore(Database):
    """Part of `Store`: workers of all processes."""

    def upsert_workers(self, workers: Sequence[WorkerRecord]) -> None:
        """Write the current reports of a process' workers."""
        with self.autocommit() as connection:
            for worker in workers:
                values = dataclasses.asdict(worker)
                same = (WORKERS.c.process == worker.process) & (WORKERS.c.number == worker.number)
                if connection.execute(sa.update(WORKERS).where(same).values(**values)).rowcount == 0:
                    connection.execute(sa.insert(WORKERS).values(**values))

    def live_workers(self, now: float) -> list[WorkerRecord]:
        """Read all workers with a recent report, by machine and device."""
        query = sa.select(WORKERS).where(WORKERS.c.reported_at >= now - REPORT_EXPIRY_S)
        order = WORKERS.c.machine, WORKERS.c.device, WORKERS.c.process, WORKERS.c.number
        with self.read_only() as connection:
            return [
                WorkerRecord(**row_values(WORKERS, row)) for row in connection.execute(query.order_by(*order))
            ]

    def delete_workers(self, process: str, now: float) -> None:
        """Delete the workers of a process that ends, and those without a recent report."""
        gone = (WORKERS.c.process == process) | (WORKERS.c.reported_at < now - REPORT_EXPIRY_S)
        with self.autocommit() as connection:
            connection.execute(sa.delete(WORKERS).where(gone))
