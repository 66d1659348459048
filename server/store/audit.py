"""The audit log: who submitted what, when, from which inputs, with whose consent, and what was signed.

Append-only: entries are written in the commit of the event that they record and never changed (the database
refuses that). They are deleted only when they are older than the operator's retention. A moment later each is
sealed: its hash covers the hash of the entry sealed before it, so that later changes are found. The module
handles hashes, not files, and knows no HTTP.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
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

CHAIN = sa.Table(
    "audit_chain",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("entry_id", sa.Integer, nullable=False, unique=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)
"""Seals in the order of the chain. They stay when entries are deleted by the retention."""

RETENTION = sa.Table("audit_retention", metadata, sa.Column("before", sa.Float, primary_key=True))
"""The time before which the database lets entries be deleted."""

SEAL_LOCK = 0x6C697073
LATE_COMMITS = 10_000
"""Entries that are committed later than so many with higher ids would not be sealed."""

FIRST_HASH = "0" * 64

SERVER_STARTED: Final = "server_started"
JOB_SUBMITTED: Final = "job_submitted"
JOB_INPUTS: Final = "job_inputs"
JOB_ENDED: Final = "job_ended"
BATCH_SUBMITTED: Final = "batch_submitted"
BATCH_ENDED: Final = "batch_ended"
KEY_CREATED: Final = "key_created"
KEY_CHANGED: Final = "key_changed"
KEY_REVOKED: Final = "key_revoked"
ADMIN_REQUEST: Final = "admin_request"
JOB_DELETED: Final = "job_deleted"
DATA_EXPIRED: Final = "data_expired"
AUDIT_EXPIRED: Final = "audit_expired"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One entry of the log.

    Attributes:
        at: seconds since 1970.
        event: one of this module's constants.
        facts: details of such an event; plain JSON.
        tenant, key_id, job_id, request_id: origin; None for the server itself, job_id also for batches.
        id: increases with time; 0 until stored.
        hash: of this entry and all that were sealed before it; None until sealed.
    """

    at: float
    event: str
    facts: Mapping[str, Any]
    tenant: str | None = None
    key_id: str | None = None
    job_id: str | None = None
    request_id: str | None = None
    id: int = 0
    hash: str | None = None

    def chain_hash(self, previous: str) -> str:
        """Compute the hash of this entry after the entry with the hash `previous`."""
        fields = dataclasses.asdict(self)
        del fields["hash"]
        text = json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(f"{previous}\n{text}".encode()).hexdigest()

    def to_json(self) -> str:
        fields = dataclasses.asdict(self)
        if self.hash is None:
            del fields["hash"]
        return json.dumps(fields, ensure_ascii=False)


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


def jobs_deleted(connection: Connection, ids: Sequence[str], tenant: str, by: str, now: float) -> None:
    """Insert one entry per job that the key `by` deletes."""
    if ids:
        _insert(connection, *(AuditEntry(now, JOB_DELETED, {}, tenant, by, job_id) for job_id in ids))


def data_expired(connection: Connection, jobs: int, before: float, now: float) -> None:
    """Insert an entry about the jobs that are deleted because they ended before a time."""
    _insert(connection, AuditEntry(now, DATA_EXPIRED, {"jobs": jobs, "before": before}))


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
    names = [name for name in AuditEntry.__dataclass_fields__ if name not in ("id", "hash")]
    rows = [
        {name: getattr(entry, name) for name in names} | {"facts": json.dumps(entry.facts)}
        for entry in entries
    ]
    connection.execute(sa.insert(AUDIT), rows)


@dataclass(frozen=True, slots=True)
class ChainReport:
    """Result of a verification: intact entries, hash of the last of them, and the first problem or None."""

    intact: int
    last_hash: str
    problem: str | None


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
        query = sa.select(AUDIT, CHAIN.c.hash).outerjoin(CHAIN, CHAIN.c.entry_id == AUDIT.c.id)
        query = query.where(AUDIT.c.id > after)
        if since is not None:
            query = query.where(AUDIT.c.at >= since)
        if until is not None:
            query = query.where(AUDIT.c.at < until)
        with self._database.read_only() as connection:
            rows = connection.execute(query.order_by(AUDIT.c.id).limit(limit)).all()
        return [_read_entry(row) for row in rows]

    def delete_older(self, before: float, now: float) -> None:
        """Delete entries that are older than the retention, and record how many."""
        old = AUDIT.c.at < before
        with self._database.transaction() as connection:
            count = connection.execute(sa.select(sa.func.count()).select_from(AUDIT).where(old)).scalar_one()
            if count == 0:
                return
            _insert(connection, AuditEntry(now, AUDIT_EXPIRED, {"entries": count, "before": before}))
            connection.execute(sa.delete(RETENTION))
            connection.execute(sa.insert(RETENTION).values(before=before))
            connection.execute(sa.delete(AUDIT).where(old))

    def seal(self, deliver: Callable[[Sequence[AuditEntry]], None], limit: int = 500) -> int:
        """Add new entries to the chain; return how many.

        Args:
            deliver: exports the entries before their seals are committed. After a crash between the two, they
                are exported again, with the same hashes.
        """
        last_id = sa.select(sa.func.coalesce(sa.func.max(CHAIN.c.entry_id), 0)).scalar_subquery()
        is_sealed = sa.exists().where(CHAIN.c.entry_id == AUDIT.c.id)
        unsealed = sa.select(AUDIT).where(AUDIT.c.id > last_id - LATE_COMMITS, ~is_sealed)
        with self._database.read_only() as connection:
            if connection.execute(unsealed.limit(1)).one_or_none() is None:
                return 0
        with self._database.transaction() as connection:
            if self._database.is_shared:  # SQLite's transactions exclude each other
                lock = sa.select(sa.func.pg_try_advisory_xact_lock(SEAL_LOCK))
                if not connection.execute(lock).scalar_one():
                    return 0
            query = sa.select(CHAIN.c.hash).order_by(CHAIN.c.number.desc()).limit(1)
            previous = connection.execute(query).scalar_one_or_none() or FIRST_HASH
            entries = []
            for row in connection.execute(unsealed.order_by(AUDIT.c.id).limit(limit)).all():
                entry = _read_entry(row)
                previous = entry.chain_hash(previous)
                entries.append(dataclasses.replace(entry, hash=previous))
            if entries:
                deliver(entries)
                values = [{"entry_id": entry.id, "at": entry.at, "hash": entry.hash} for entry in entries]
                connection.execute(sa.insert(CHAIN), values)
        return len(entries)

    def verify(self) -> ChainReport:
        """Recompute the chain.

        Returns:
            How many entries are intact, and the first problem. An entry that is missing is a problem, unless
            the retention deleted it, of which there is an entry.
        """
        previous, number, intact, expired_before = FIRST_HASH, 0, 0, self._expired_before()
        query = sa.select(
            CHAIN.c.number, CHAIN.c.entry_id, CHAIN.c.at.label("sealed_at"), CHAIN.c.hash, AUDIT
        )
        query = query.outerjoin(AUDIT, CHAIN.c.entry_id == AUDIT.c.id).order_by(CHAIN.c.number)
        while True:
            with self._database.read_only() as connection:
                rows = connection.execute(query.where(CHAIN.c.number > number).limit(1000)).all()
            if not rows:
                return ChainReport(intact, previous, None)
            for row in rows:
                number = row.number
                if row.id is not None:
                    columns = {column.name: row._mapping[column] for column in AUDIT.c}
                    entry = AuditEntry(**columns | {"facts": _read_facts(row.facts)})
                    if entry.chain_hash(previous) != row.hash:
                        return ChainReport(intact, previous, f"entry {row.entry_id} was changed")
                elif row.sealed_at >= expired_before:
                    return ChainReport(intact, previous, f"entry {row.entry_id} was deleted")
                previous, intact = row.hash, intact + 1

    def _expired_before(self) -> float:
        query = sa.select(AUDIT.c.facts).where(AUDIT.c.event == AUDIT_EXPIRED)
        with self._database.read_only() as connection:
            facts = connection.execute(query.order_by(AUDIT.c.id.desc()).limit(1)).scalar_one_or_none()
        before = None if facts is None else _read_facts(facts).get("before")
        return float(before) if isinstance(before, int | float) else float("-inf")


def _read_entry(row: sa.Row[Any]) -> AuditEntry:
    return AuditEntry(**dict(row._mapping) | {"facts": _read_facts(row.facts)})


def _read_facts(text: str) -> dict[str, Any]:
    """Read an entry's facts; those of a damaged entry are shown as they are, and its hash does not fit."""
    try:
        facts = json.loads(text)
    except ValueError:
        facts = None
    return facts if isinstance(facts, dict) else {"unreadable": text}
