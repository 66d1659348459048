"""Workers of all processes of a database, as each process says now and then how its own are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from server.store.database import Database
from server.store.tables import WORKERS

SEEN_WITHIN_S = 35.0
"""Three beats and some: a worker of which nothing was heard for longer is gone."""


@dataclass(frozen=True, slots=True)
class SeenWorker:
    """One worker.

    Attributes:
        process: of its server, by an id that each start makes anew.
        number: among that process' workers.
        condition: of `scaling.Condition`.
        starts: worker processes started for its device.
        seen_at: by the database's clock.
    """

    process: str
    number: int
    machine: str
    device: str
    model: str
    condition: str
    starts: int
    seen_at: float


class Workers(Database):
    """Part of `Store`."""

    def note_workers(self, workers: Sequence[SeenWorker]) -> None:
        """Write down how a process' workers are now."""
        with self.alone() as connection:
            for worker in workers:
                values = dataclasses.asdict(worker)
                mine = (WORKERS.c.process == worker.process) & (WORKERS.c.number == worker.number)
                if connection.execute(sa.update(WORKERS).where(mine).values(**values)).rowcount == 0:
                    connection.execute(sa.insert(WORKERS).values(**values))

    def workers(self, now: float) -> list[SeenWorker]:
        """All that are there, by machine and device."""
        query = sa.select(WORKERS).where(WORKERS.c.seen_at >= now - SEEN_WITHIN_S)
        order = WORKERS.c.machine, WORKERS.c.device, WORKERS.c.process, WORKERS.c.number
        with self.reading() as connection:
            return [SeenWorker(**row._mapping) for row in connection.execute(query.order_by(*order))]

    def forget_workers(self, process: str, now: float) -> None:
        """A process has no more workers; those of which nothing is heard go as well."""
        gone = (WORKERS.c.process == process) | (WORKERS.c.seen_at < now - SEEN_WITHIN_S)
        with self.alone() as connection:
            connection.execute(sa.delete(WORKERS).where(gone))
