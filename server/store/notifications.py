"""Notifications between processes that share a PostgreSQL database: one per change that others wait for.

A notification is sent in the transaction that makes the change, so it arrives when the change is on disk, or
not at all. While a connection is lost, notifications are lost, so listeners also poll now and then. The
payload keeps its form between versions: processes of two versions may run at the same time.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection

from server.jobs.state import Job, State

CHANNEL = "lipsync_jobs"
PING_INTERVAL_S = 2.0
"""A silent connection is tested this often."""


@dataclass(frozen=True, slots=True)
class Notification:
    """A job was submitted, started, cancelled or ended, or a segment of it changed.

    Attributes:
        run_s: of a job that succeeded, seconds from start to end.
        segments_available: other workers can render segments of it.
    """

    job_id: str
    state: State
    cancel_requested: bool
    run_s: float | None
    segments_available: bool = False

    def to_json(self) -> str:
        payload = {
            "job_id": self.job_id,
            "state": self.state,
            "cancel_asked": self.cancel_requested,
            "ran_s": self.run_s,
            "help_wanted": self.segments_available,
        }
        return json.dumps(payload)

    @classmethod
    def from_json(cls, text: str) -> Notification:
        payload = json.loads(text)
        return cls(
            payload["job_id"],
            State(payload["state"]),
            payload["cancel_asked"],
            payload["ran_s"],
            payload.get("help_wanted", False),
        )


def notify(connection: Connection, job: Job) -> None:
    """Notify about a job's change when the transaction commits; on SQLite there is no other process."""
    _notify(connection, Notification(job.id, job.state, job.cancel_requested, job.run_s))


def notify_segments_available(connection: Connection, job_id: str) -> None:
    """Notify like `notify` that a running job has segments for other workers."""
    _notify(connection, Notification(job_id, State.RUNNING, False, None, segments_available=True))


def segment_done_expression(connection: Connection, job_id: str) -> sa.ColumnElement[Any]:
    """Build an expression that notifies about a finished segment for each row that a statement returns."""
    return _expression(connection, Notification(job_id, State.RUNNING, False, None))


def _notify(connection: Connection, notification: Notification) -> None:
    connection.execute(sa.select(_expression(connection, notification)))


def _expression(connection: Connection, notification: Notification) -> sa.ColumnElement[Any]:
    if connection.dialect.name == "postgresql":
        return sa.func.pg_notify(CHANNEL, notification.to_json())
    return sa.null()


async def listen(
    url: URL, libpq_options: dict[str, int], ping_timeout_s: float
) -> AsyncGenerator[Notification | None, None]:
    """Yield notifications as they arrive; None first, and whenever the connection was tested and holds.

    Args:
        url: of a PostgreSQL database.

    Raises:
        OSError: the connection could not be made, or is lost.
    """
    import psycopg  # comes with an extra

    address = url.set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        connection = await psycopg.AsyncConnection.connect(address, autocommit=True, **libpq_options)  # type: ignore[arg-type]
        async with connection:
            await connection.execute(f"LISTEN {CHANNEL}")
            while True:
                yield None
                async for notification in connection.notifies(timeout=PING_INTERVAL_S):
                    yield Notification.from_json(notification.payload)
                async with asyncio.timeout(ping_timeout_s):
                    await connection.execute("SELECT 1")
    except psycopg.Error as error:
        raise OSError(str(error).splitlines()[0]) from error
