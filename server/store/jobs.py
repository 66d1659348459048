"""Jobs: the queue and the truth about each of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from server.jobs import state as job_state
from server.jobs.request import Request
from server.jobs.state import Effect, Failure, Job, Output, Policy, Progress, State, Sync
from server.store import audit
from server.store.database import Database
from server.store.notifications import tell
from server.store.outbox import job_ended
from server.store.record_cache import Recent
from server.store.segments import forget_segments
from server.store.tables import BATCHES, JOBS, KEYS, OUTBOX

RECENT_JOBS = 4096
"""So many jobs are not read again while nothing changes them; a few kB each."""

# Asked hundreds of times a second by polling clients, so it is made once.
_JOB_BY_ID = sa.select(JOBS).where(JOBS.c.id == sa.bindparam("wanted"))

TURN = JOBS.c.priority.desc(), JOBS.c.created_at, JOBS.c.batch_row, JOBS.c.id
"""The order of a tenant's waiting jobs."""

DAY_S = 86400.0


class QueueFullError(Exception):
    """As many jobs wait as may wait."""


class QuotaError(Exception):
    """The key has used up what it may.

    Attributes:
        message: what.
        wait_s: when it may help to come again; 0: never, for so much was asked for.
    """

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.message, self.wait_s = message, wait_s


@dataclass(frozen=True, slots=True)
class Record:
    """A job and what was asked for."""

    job: Job
    request: Request

    @property
    def tags(self) -> dict[str, str]:
        """What a log line about the job carries besides its text."""
        return {"job": self.job.id, "tenant": self.job.tenant, "request_id": self.request.request_id}


@dataclass(frozen=True, slots=True)
class Change:
    """What a transition did."""

    before: Job
    record: Record
    effects: frozenset[Effect]


class Queue(Database):
    """Part of `Store`."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.audit = audit.AuditLog(self)
        self._recent = Recent[Record](RECENT_JOBS) if self.is_ours_alone else None

    def submit(
        self,
        job: Job,
        request: Request,
        *,
        idempotency_key: str | None = None,
        max_waiting: int | None = None,
    ) -> tuple[Record, bool]:
        """Put a waiting job into the queue.

        Args:
            idempotency_key: of the tenant's choice; a second job with it is the first.
            max_waiting: how many jobs of all tenants may wait.

        Returns:
            The stored job, and whether it is new.

        Raises:
            QueueFullError, QuotaError: nothing was stored.
        """

        def insert(connection: Connection) -> Record:
            self._require_room(connection, request.key_id, job.created_at, 1, max_waiting)
            self._insert(connection, [(job, request)], idempotency_key)
            return Record(job, request)

        return self.once(JOBS, job.tenant, idempotency_key, _record, insert)

    def get(self, job_id: str, tenant: str | None = None) -> Record | None:
        """A job; None where there is none, or where it is another tenant's."""
        record = self._read(job_id) if self._recent is None else self._recent.get(job_id, self._read)
        return None if record is None or tenant not in (None, record.job.tenant) else record

    def _read(self, job_id: str) -> Record | None:
        with self.reading() as connection:
            row = connection.execute(_JOB_BY_ID, {"wanted": job_id}).one_or_none()
        return None if row is None else _record(row)

    def page(
        self,
        tenant: str | None,
        *,
        offset: int,
        limit: int,
        states: Sequence[State] = (),
        label: str | None = None,
        batch_id: str | None = None,
        text: str | None = None,
        created_from: float | None = None,
        created_to: float | None = None,
    ) -> tuple[list[Record], int]:
        """A tenant's jobs (None: everybody's), newest first: one page, and how many there are in all.

        Args:
            batch_id: those of a batch, in its order.
            text: stands, in whatever case, in the id or in what was asked for.
        """
        wanted = [] if tenant is None else [JOBS.c.tenant == tenant]
        if states:
            wanted.append(JOBS.c.state.in_(states))
        if label is not None:
            wanted.append(JOBS.c.label == label)
        if text is not None:
            # What the client said is JSON in the request's JSON.
            within = json.dumps(json.dumps(text)[1:-1])[1:-1].lower()
            asked = sa.func.lower(JOBS.c.request).contains(within, autoescape=True)
            wanted.append(asked | JOBS.c.id.contains(text.lower(), autoescape=True))
        if created_from is not None:
            wanted.append(JOBS.c.created_at >= created_from)
        if created_to is not None:
            wanted.append(JOBS.c.created_at <= created_to)
        if batch_id is not None:
            wanted.append(JOBS.c.batch_id == batch_id)
        newest = JOBS.c.created_at.desc(), JOBS.c.batch_row, JOBS.c.id
        page = sa.select(JOBS).where(*wanted).order_by(*newest).offset(offset).limit(limit)
        with self.reading() as connection:
            rows = connection.execute(page).all()
            total = connection.execute(
                sa.select(sa.func.count()).select_from(JOBS).where(*wanted)
            ).scalar_one()
        return [_record(row) for row in rows], total

    def waiting(self) -> list[tuple[str, str]]:
        """(id, tenant) of all waiting jobs, within a tenant in the order of their turns."""
        query = sa.select(JOBS.c.id, JOBS.c.tenant).where(JOBS.c.state == State.WAITING).order_by(*TURN)
        with self.reading() as connection:
            return [(row.id, row.tenant) for row in connection.execute(query)]

    def oldest_waiting(self) -> float | None:
        """When the oldest waiting job was submitted."""
        query = sa.select(sa.func.min(JOBS.c.created_at)).where(JOBS.c.state == State.WAITING)
        with self.reading() as connection:
            created_at: float | None = connection.execute(query).scalar_one()
        return created_at

    def count_in_state(self, state: State) -> int:
        query = sa.select(sa.func.count()).select_from(JOBS).where(JOBS.c.state == state)
        with self.reading() as connection:
            return int(connection.execute(query).scalar_one())

    def in_state(self, state: State) -> list[Record]:
        """All jobs of a state, oldest first."""
        query = sa.select(JOBS).where(JOBS.c.state == state).order_by(JOBS.c.created_at)
        with self.reading() as connection:
            return [_record(row) for row in connection.execute(query)]

    def claim(
        self, now: float, policy: Policy, wanted: Callable[[Job], bool] = lambda job: True
    ) -> Record | None:
        """Take the job whose turn it is: fair between tenants; in one, by priority, then by age.

        Args:
            wanted: whether it is to be that one; another is not looked for.
        """
        with self.writing() as connection:
            name = self._next_tenant(connection)
            if name is None:
                return None
            query = (
                sa.select(JOBS).where(JOBS.c.state == State.WAITING, JOBS.c.tenant == name).order_by(*TURN)
            )
            row = connection.execute(query.limit(1).with_for_update(skip_locked=True)).one_or_none()
            if row is None:
                return None
            record = _record(row)
            if not wanted(record.job):
                return None
            claimed = self._write(connection, record, job_state.claim(record.job, now, policy), now).record
        self._changed([claimed])
        return claimed

    def change(self, job_id: str, now: float, transition: Callable[[Job], Job]) -> Change:
        """Apply a transition of `jobs` to a job, with everything that follows from it.

        Raises:
            KeyError: there is no such job.
            NotAllowedError: from the transition; nothing is changed.
        """
        with self.writing() as connection:
            query = sa.select(JOBS).where(JOBS.c.id == job_id).with_for_update()
            row = connection.execute(query).one_or_none()
            if row is None:
                raise KeyError(job_id)
            record = _record(row)
            change = self._write(connection, record, transition(record.job), now)
        self._changed([change.record])
        return change

    def expire(self, now: float, policy: Policy) -> list[Change]:
        """Apply all limits that have passed."""
        late = (JOBS.c.state == State.WAITING) & (JOBS.c.created_at < now - policy.max_wait_s)
        over = (JOBS.c.state == State.RUNNING) & (
            (JOBS.c.lease_until < now) | (JOBS.c.started_at < now - policy.max_run_s)
        )
        with self.writing() as connection:
            found = connection.execute(
                sa.select(JOBS).where(late | over).with_for_update(skip_locked=True)
            ).all()
            records = [_record(row) for row in found]
            # Jobs that end lock the rows of their batches: in one order, or two processes could deadlock.
            records.sort(key=lambda record: record.job.batch_id or "")
            changes = [
                self._write(connection, record, job_state.expire(record.job, now, policy), now)
                for record in records
            ]
        self._changed([change.record for change in changes])
        return changes

    def delete(self, ids: Sequence[str], tenant: str) -> list[Record]:
        """Forget ended jobs of a tenant; returns those that were there. Their blobs are the caller's task."""
        ended = [state for state in State if state.is_final]
        with self.writing() as connection:
            wanted = JOBS.c.id.in_(ids) & (JOBS.c.tenant == tenant) & JOBS.c.state.in_(ended)
            rows = connection.execute(sa.select(JOBS).where(wanted)).all()
            connection.execute(sa.delete(JOBS).where(wanted))
        return self._changed([_record(row) for row in rows])

    def delete_older(self, before: float) -> list[Record]:
        """Forget jobs that ended before a moment; returns them, for their blobs."""
        with self.writing() as connection:
            wanted = JOBS.c.finished_at < before
            rows = connection.execute(sa.select(JOBS).where(wanted)).all()
            connection.execute(sa.delete(JOBS).where(wanted))
            connection.execute(sa.delete(OUTBOX).where(OUTBOX.c.created_at < before))
            connection.execute(sa.delete(BATCHES).where(BATCHES.c.finished_at < before))
        return self._changed([_record(row) for row in rows])

    # --- inside a transaction ---

    def _insert(
        self,
        connection: Connection,
        entries: Sequence[tuple[Job, Request]],
        idempotency_key: str | None = None,
    ) -> None:
        """New jobs; that there are some is told by the first."""
        rows = [
            _values(job)
            | {
                "id": job.id,
                "request": request.to_json(),
                "label": request.label,
                "key_id": request.key_id,
                "idempotency_key": idempotency_key,
                "batch_id": job.batch_id,
                "batch_row": job.batch_row,
            }
            for job, request in entries
        ]
        connection.execute(sa.insert(JOBS), rows)
        audit.jobs_submitted(connection, entries)
        tell(connection, entries[0][0])

    def _require_room(
        self, connection: Connection, key_id: str, now: float, count: int, max_waiting: int | None
    ) -> None:
        """Whether so many more jobs may be put into the queue."""
        waiting = sa.select(sa.func.count()).where(JOBS.c.state == State.WAITING)
        if max_waiting is not None and connection.execute(waiting).scalar_one() + count > max_waiting:
            raise QueueFullError
        row = connection.execute(sa.select(KEYS).where(KEYS.c.id == key_id).with_for_update()).one_or_none()
        if row is None:
            return
        mine = sa.select(sa.func.count(), sa.func.min(JOBS.c.created_at)).where(JOBS.c.key_id == key_id)
        if row.max_active_jobs is not None:
            active = mine.where(JOBS.c.state.in_([State.WAITING, State.RUNNING]))
            if (before := connection.execute(active).one()[0]) + count > row.max_active_jobs:
                raise QuotaError(
                    f"This key may have {row.max_active_jobs} unfinished jobs, has {before}, and asks for "
                    f"{count} more: wait until some have ended.",
                    30.0 if count <= row.max_active_jobs else 0.0,
                )
        if row.max_jobs_per_day is not None:
            before, first = connection.execute(mine.where(JOBS.c.created_at > now - DAY_S)).one()
            if before + count > row.max_jobs_per_day:
                wait_s = max(1.0, first + DAY_S - now) if before else DAY_S
                raise QuotaError(
                    f"This key may submit {row.max_jobs_per_day} jobs in 24 hours, has submitted {before}, "
                    f"and asks for {count} more.",
                    wait_s if count <= row.max_jobs_per_day else 0.0,
                )

    def _next_tenant(self, connection: Connection) -> str | None:
        waits = sa.select(JOBS.c.tenant).where(JOBS.c.state == State.WAITING).distinct().subquery("waits")
        # For each tenant by the indexes: neither is about the many jobs that have ended.
        mine = JOBS.c.tenant == waits.c.tenant
        running = sa.select(sa.func.count()).where(mine, JOBS.c.state == State.RUNNING).scalar_subquery()
        latest = sa.select(sa.func.max(JOBS.c.started_at)).where(mine).scalar_subquery()
        counts = sa.select(waits.c.tenant, running, sa.func.coalesce(latest, 0.0))
        found = [job_state.Tenant(*row) for row in connection.execute(counts)]
        return job_state.next_tenant(found) if found else None

    def _changed(self, records: list[Record]) -> list[Record]:
        """After the commit that changed or deleted them."""
        if self._recent is not None:
            self._recent.changed(record.job.id for record in records)
        return records

    def _write(self, connection: Connection, record: Record, after: Job, now: float) -> Change:
        found = job_state.effects(record.job, after)
        connection.execute(sa.update(JOBS).where(JOBS.c.id == after.id).values(**_values(after)))
        if (after.state, after.cancel_asked) != (record.job.state, record.job.cancel_asked):
            tell(connection, after)
        if Effect.NOTIFY in found:
            forget_segments(connection, after.id)
            audit.job_ended(connection, after, record.request, now)
            job_ended(connection, after, record.request.webhook_url, now)
        return Change(record.job, Record(after, record.request), found)


# --- rows ---


def _values(job: Job) -> dict[str, Any]:
    """A job's columns, without its id and what never changes of its batch."""
    return {
        "tenant": job.tenant,
        "created_at": job.created_at,
        "priority": job.priority,
        "state": job.state,
        "fence": job.fence,
        "attempts": job.attempts,
        "lease_until": job.lease_until,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "cancel_asked": job.cancel_asked,
        "progress": _text(job.progress),
        "output": _text(job.output),
        "failure": _text(job.failure),
    }


def _output(text: str) -> Output:
    stored = json.loads(text)
    sync = stored.get("sync")
    told = {"warnings": tuple(stored.get("warnings", ())), "sync": None if sync is None else Sync(**sync)}
    return Output(**stored | told)


def _record(row: sa.Row[Any]) -> Record:
    job = Job(
        id=row.id,
        tenant=row.tenant,
        created_at=row.created_at,
        priority=row.priority,
        state=State(row.state),
        fence=row.fence,
        attempts=row.attempts,
        lease_until=row.lease_until,
        started_at=row.started_at,
        finished_at=row.finished_at,
        cancel_asked=row.cancel_asked,
        progress=Progress(**json.loads(row.progress)) if row.progress else None,
        output=_output(row.output) if row.output else None,
        failure=Failure(**json.loads(row.failure)) if row.failure else None,
        batch_id=row.batch_id,
        batch_row=row.batch_row,
    )
    return Record(job, Request.from_json(row.request))


def _text(value: Progress | Output | Failure | None) -> str | None:
    if value is None:
        return None
    return json.dumps(dataclasses.asdict(value))
