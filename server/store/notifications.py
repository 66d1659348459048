"""What processes that share a PostgreSQL database tell each other: a line per change that others wait for.

A line is sent in the transaction that makes the change, so it comes when that is on disk, or not at all.
While a connection is away lines are lost; whoever listens looks for itself now and then.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection

from server.jobs.state import Job, State

CHANNEL = "lipsync_jobs"
ASK_EVERY_S = 2.0
"""So often a silent connection is asked whether it still holds."""


@dataclass(frozen=True, slots=True)
class News:
    """A job came, began, was to stop, or ended; or something about its segments.

    Attributes:
        ran_s: of one that succeeded, how long it took.
        help_wanted: segments of it can be rendered by others.
    """

    job_id: str
    state: State
    cancel_asked: bool
    ran_s: float | None
    help_wanted: bool = False


def tell(connection: Connection, job: Job) -> None:
    """Send the news about a job with the transaction's commit; SQLite has nobody else to tell."""
    _tell(connection, News(job.id, job.state, job.cancel_asked, job.ran_s))


def tell_help_wanted(connection: Connection, job_id: str) -> None:
    """As `tell`: a running job has segments for others."""
    _tell(connection, News(job_id, State.RUNNING, False, None, help_wanted=True))


def telling_segment_done(connection: Connection, job_id: str) -> sa.ColumnElement[Any]:
    """As `tell`, for the owner: told by the statement that returns it, if that finds a row."""
    return _telling(connection, News(job_id, State.RUNNING, False, None))


def _tell(connection: Connection, news: News) -> None:
    connection.execute(sa.select(_telling(connection, news)))


def _telling(connection: Connection, news: News) -> sa.ColumnElement[Any]:
    if connection.dialect.name == "postgresql":
        return sa.func.pg_notify(CHANNEL, json.dumps(asdict(news)))
    return sa.null()


async def listen(
    url: URL, limits: dict[str, int], answer_within_s: float
) -> AsyncGenerator[News | None, None]:
    """News as they come; None first, and whenever the connection was asked and holds.

    Args:
        url: of a PostgreSQL database.
        limits: more of libpq's parameters.

    Raises:
        OSError: the connection could not be made, or is lost.
    """
    import psycopg  # comes with an extra

    place = url.set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        connection = await psycopg.AsyncConnection.connect(place, autocommit=True, **limits)  # type: ignore[arg-type]
        async with connection:
            await connection.execute(f"LISTEN {CHANNEL}")
            while True:
                yield None
                async for notice in connection.notifies(timeout=ASK_EVERY_S):
                    told = json.loads(notice.payload)
                    yield News(**told | {"state": State(told["state"])})
                async with asyncio.timeout(answer_within_s):
                    await connection.execute("SELECT 1")
    except psycopg.Error as error:
        raise OSError(str(error).splitlines()[0]) from error
