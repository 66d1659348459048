"""The audit log: who had what made, when, from what, with whose consent, and whether it was marked.

Append-only: entries are written in the commit of what they tell, never changed (the database refuses that),
and deleted only when they are older than the operator wants to keep them. It knows hashes, not files, and no
HTTP.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from server.jobs.request import Request
from server.jobs.state import Batch, Job

if TYPE_CHECKING:
    from server.store.database import Database

metadata = sa.MetaData()

AUDIT = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("event", sa.String(32), nullable=False),
    sa.Column("tenant", sa.String(64)),
    sa.Column("key_id", sa.String(16)),
    sa.Column("job_id", sa.String(32)),
    sa.Column("request_id", sa.String(64)),
    sa.Column("facts", sa.Text, nullable=False),
    sa.Index("audit_by_time", "at"),
)

SERVER_STARTED: Final = "server_started"
JOB_SUBMITTED: Final = "job_submitted"
JOB_INPUTS: Final = "job_inputs"
JOB_ENDED: Final = "job_ended"
BATCH_SUBMITTED: Final = "batch_submitted"
BATCH_ENDED: Final = "batch_ended"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line.

    Attributes:
        id: grows with time; 0 until stored.
        at: seconds since 1970.
        event: one of this module's words.
        tenant, key_id, job_id, request_id: whose; None for the server itself, job_id for batches.
        facts: what there is to say of such an event; plain JSON.
    """

    at: float
    event: str
    facts: Mapping[str, Any]
    tenant: str | None = None
    key_id: str | None = None
    job_id: str | None = None
    request_id: str | None = None
    id: int = 0

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)


# --- in the commit of a job's change ---


def jobs_submitted(connection: Connection, entries: Sequence[tuple[Job, Request]]) -> None:
    _insert(connection, *(_submitted(job, request) for job, request in entries))


def _submitted(job: Job, request: Request) -> Entry:
    facts = {
        "model": request.label,
        "consent": request.consent,
        "options": request.options.chosen(),
        "inputs": {source.name: source.role for source in request.sources},
    }
    if job.batch_id is not None:
        facts["batch"] = job.batch_id
    return _of_job(JOB_SUBMITTED, job, request, job.created_at, facts)


def job_ended(connection: Connection, job: Job, request: Request, now: float) -> None:
    output = job.output
    facts = {
        "state": job.state,
        "code": None if job.failure is None else job.failure.code,
        "consent": request.consent,
        "output_sha256": None if output is None else output.sha256,
        "is_marked": None if output is None else output.is_marked,
    }
    _insert(connection, _of_job(JOB_ENDED, job, request, now, facts))


def batch_submitted(connection: Connection, batch: Batch) -> None:
    _insert(connection, _of_batch(BATCH_SUBMITTED, batch, batch.created_at))


def batch_ended(connection: Connection, batch: Batch, now: float) -> None:
    """Of its jobs each has an entry of its own."""
    _insert(connection, _of_batch(BATCH_ENDED, batch, now))


def _of_batch(event: str, batch: Batch, at: float) -> Entry:
    facts = {"batch": batch.id, "jobs": batch.total}
    return Entry(at, event, facts, batch.tenant, batch.key_id, None, batch.request_id)


def job_inputs(job: Job, request: Request, now: float, sha256: Mapping[str, str]) -> Entry:
    """What an attempt works on: hashes by the inputs' names."""
    return _of_job(JOB_INPUTS, job, request, now, {"sha256": dict(sha256)})


def _of_job(event: str, job: Job, request: Request, at: float, facts: Mapping[str, Any]) -> Entry:
    return Entry(at, event, facts, job.tenant, request.key_id, job.id, request.request_id)


def _insert(connection: Connection, *entries: Entry) -> None:
    names = [name for name in Entry.__dataclass_fields__ if name != "id"]
    rows = [
        {name: getattr(entry, name) for name in names} | {"facts": json.dumps(entry.facts)}
        for entry in entries
    ]
    connection.execute(sa.insert(AUDIT), rows)


class AuditLog:
    """The log as a whole.

    Args:
        database: open.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, entry: Entry) -> None:
        with self._database.writing() as connection:
            _insert(connection, entry)

    def page(
        self, *, after: int = 0, since: float | None = None, until: float | None = None, limit: int = 1000
    ) -> list[Entry]:
        """Entries in their order, from the one behind the id `after` on.

        Args:
            since, until: seconds since 1970.
        """
        query = sa.select(AUDIT).where(AUDIT.c.id > after)
        if since is not None:
            query = query.where(AUDIT.c.at >= since)
        if until is not None:
            query = query.where(AUDIT.c.at < until)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(AUDIT.c.id).limit(limit)).all()
        return [Entry(**dict(row._mapping) | {"facts": json.loads(row.facts)}) for row in rows]

    def delete_older(self, before: float) -> None:
        with self._database.writing() as connection:
            connection.execute(sa.delete(AUDIT).where(AUDIT.c.at < before))
