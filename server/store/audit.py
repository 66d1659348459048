"""The audit log: who submitted what, when, from which inputs, with whose consent, and what was signed.

Append-only: entries are written in the commit of the event that they record and never changed (the database
refuses that). They are deleted only when they are older than the operator's retention. The module handles
hashes, not files, and knows no HTTP.
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
KEY_CREATED: Final = "key_created"
KEY_CHANGED: Final = "key_changed"
KEY_REVOKED: Final = "key_revoked"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One entry of the log.

    Attributes:
        at: seconds since 1970.
        event: one of this module's constants.
        facts: details of such an event; plain JSON.
        tenant, key_id, job_id, request_id: origin; None for the server itself, job_id also for batches.
        id: increases with time; 0 until stored.
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
    """Insert one entry per job."""
    _insert(connection, *(_submission(job, request) for job, request in entries))


def _submission(job: Job, request: Request) -> AuditEntry:
    facts = {
        "model": request.endpoint,
        "consent": request.consent,
        "options": request.options.chosen(),
        "inputs": {source.name: source.role for source in request.sources},
    }
    if job.batch_id is not None:
        facts["batch"] = job.batch_id
    return _job_entry(JOB_SUBMITTED, job, request, job.created_at, facts)


def count_submitted(connection: Connection, key_id: str, since: float) -> tuple[int, float]:
    """Count the jobs that a key has submitted; returns also when the first of them was.

    The log also has the jobs that were deleted since.
    """
    of_key = AUDIT.c.event == JOB_SUBMITTED, AUDIT.c.key_id == key_id, AUDIT.c.at > since
    query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.min(AUDIT.c.at), 0.0)).where(*of_key)
    count, first_at = connection.execute(query).one()
    return int(count), float(first_at)


def job_ended(connection: Connection, job: Job, request: Request, now: float) -> None:
    output = job.output
    facts = {
        "state": job.state,
        "code": None if job.failure is None else job.failure.code,
        "consent": request.consent,
        "output_sha256": None if output is None else output.sha256,
        "is_marked": None if output is None else output.is_signed,
    }
    _insert(connection, _job_entry(JOB_ENDED, job, request, now, facts))


def batch_submitted(connection: Connection, batch: Batch) -> None:
    _insert(connection, _batch_entry(BATCH_SUBMITTED, batch, batch.created_at))


def batch_ended(connection: Connection, batch: Batch, now: float) -> None:
    """Insert the batch's entry; each of its jobs has one of its own."""
    _insert(connection, _batch_entry(BATCH_ENDED, batch, now))


def _batch_entry(event: str, batch: Batch, at: float) -> AuditEntry:
    facts = {"batch": batch.id, "jobs": batch.total}
    return AuditEntry(at, event, facts, batch.tenant, batch.key_id, None, batch.request_id)


def job_inputs(job: Job, request: Request, now: float, sha256: Mapping[str, str]) -> AuditEntry:
    """Build the entry of an attempt's inputs.

    Args:
        sha256: hashes by the inputs' names.
    """
    return _job_entry(JOB_INPUTS, job, request, now, {"sha256": dict(sha256)})


def _job_entry(event: str, job: Job, request: Request, at: float, facts: Mapping[str, Any]) -> AuditEntry:
    return AuditEntry(at, event, facts, job.tenant, request.key_id, job.id, request.request_id)


# --- in the commit of a key's change ---


def key_event(
    connection: Connection, event: str, tenant: str, key_id: str, now: float, facts: Mapping[str, Any]
) -> None:
    """Insert an entry about a key; `facts` have who changed it and the new values."""
    _insert(connection, AuditEntry(now, event, facts, tenant, key_id))


def _insert(connection: Connection, *entries: AuditEntry) -> None:
    names = [name for name in AuditEntry.__dataclass_fields__ if name != "id"]
    rows = [
        {name: getattr(entry, name) for name in names} | {"facts": json.dumps(entry.facts)}
        for entry in entries
    ]
    connection.execute(sa.insert(AUDIT), rows)


class AuditLog:
    """Part of `Store`: the audit log.

    Args:
        database: open.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, entry: AuditEntry) -> None:
        with self._database.transaction() as connection:
            _insert(connection, entry)

    def page(
        self, *, after: int = 0, since: float | None = None, until: float | None = None, limit: int = 1000
    ) -> list[AuditEntry]:
        """Read entries in order, starting after the id `after`.

        Args:
            since, until: seconds since 1970; `until` is exclusive.
        """
        query = sa.select(AUDIT).where(AUDIT.c.id > after)
        if since is not None:
            query = query.where(AUDIT.c.at >= since)
        if until is not None:
            query = query.where(AUDIT.c.at < until)
        with self._database.read_only() as connection:
            rows = connection.execute(query.order_by(AUDIT.c.id).limit(limit)).all()
        return [AuditEntry(**dict(row._mapping) | {"facts": json.loads(row.facts)}) for row in rows]

    def delete_older(self, before: float) -> None:
        with self._database.transaction() as connection:
            connection.execute(sa.delete(AUDIT).where(AUDIT.c.at < before))
