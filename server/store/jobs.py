"""Jobs: the queue, and the state of every job."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from server.jobs import state as job_state
from server.jobs.request import VERSION, Request, UnreadableError, load_versioned
from server.jobs.state import Effect, Failure, Job, JobPolicy, Output, StageProgress, State, SyncConfidence
from server.storage.blobs import result_blob
from server.store import audit
from server.store.database import Database
from server.store.notifications import notify
from server.store.outbox import insert_webhooks
from server.store.segments import delete_segments
from server.store.tables import BATCHES, JOBS, KEYS, OUTBOX
from server.store.usage import insert_usage

T = TypeVar("T")

MAX_CACHE_BYTES = 32 << 20
"""Size of the record cache: some ten thousand usual jobs, or a few hundred of the largest inputs."""

RECORD_BYTES = 3000
"""Of a record, without its texts."""

# Executed hundreds of times a second for polling clients, so it is built once.
_JOB_BY_ID = sa.select(JOBS).where(JOBS.c.id == sa.bindparam("job_id"))

QUEUE_ORDER = JOBS.c.priority.desc(), JOBS.c.created_at, JOBS.c.batch_row, JOBS.c.id
"""Order of a tenant's waiting jobs."""

DAY_S = 86400.0


class QueueFullError(Exception):
    """The queue has no room for that many jobs."""


class QuotaError(Exception):
    """The key's quota is used up.

    Attributes:
        message: which quota.
        wait_s: when a retry may succeed; 0: never, the submission exceeds the quota.
    """

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.message, self.wait_s = message, wait_s


@dataclass(frozen=True, slots=True)
class Record:
    """A job and its request.

    Attributes:
        is_readable: else the job has the failure `UNREADABLE`, and the request only what could be read of it.
    """

    job: Job
    request: Request
    is_readable: bool = True

    @property
    def tags(self) -> dict[str, str]:
        """Fields of a log line about the job besides its text."""
        return {"job": self.job.id, "tenant": self.job.tenant, "request_id": self.request.request_id}


@dataclass(frozen=True, slots=True)
class JobChange:
    """Outcome of a transition: the job before it, the record after it, and what has to follow."""

    before: Job
    record: Record
    effects: frozenset[Effect]


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How many jobs may wait: of all tenants, and of one tenant; None: any number."""

    max_waiting: int | None = None
    max_waiting_per_tenant: int | None = None


UNLIMITED = QueueLimits()


class RecordCache(Generic[T]):
    """Read-through cache of a database that no other process writes; threads may share it.

    A read that a change overtakes is not cached.

    Args:
        max_bytes: of all entries together; the least recently used are dropped first.
        measure: returns the size of an entry in bytes.
    """

    def __init__(self, max_bytes: int, measure: Callable[[T], int]) -> None:
        self._max_bytes, self._measure = max_bytes, measure
        self._bytes = 0
        self._entries: OrderedDict[str, T] = OrderedDict()
        self._changes = 0
        self._lock = threading.Lock()

    def get(self, name: str, read: Callable[[str], T | None]) -> T | None:
        """Return the cached value, else what `read` returns. None is not cached."""
        with self._lock:
            changes = self._changes
            if (entry := self._entries.get(name)) is not None:
                self._entries.move_to_end(name)
                return entry
        entry = read(name)
        with self._lock:
            if entry is not None and changes == self._changes:
                self._drop(name)
                self._entries[name] = entry
                self._bytes += self._measure(entry)
                while self._bytes > self._max_bytes:
                    self._drop(next(iter(self._entries)))
        return entry

    def _drop(self, name: str) -> None:
        if (entry := self._entries.pop(name, None)) is not None:
            self._bytes -= self._measure(entry)

    def invalidate(self, names: Iterable[str]) -> None:
        """Drop entries whose change has been committed."""
        with self._lock:
            self._changes += 1
            for name in names:
                self._drop(name)


class JobStore(Database):
    """Part of `Store`: jobs."""

    def __init__(self, url: str, *, clock_interval_s: float = 10.0, ping_after_s: float = 1.0) -> None:
        super().__init__(url, clock_interval_s=clock_interval_s, ping_after_s=ping_after_s)
        self.audit = audit.AuditLog(self)
        self._cache = RecordCache(MAX_CACHE_BYTES, _record_bytes) if self.is_exclusive else None

    def submit(
        self,
        job: Job,
        request: Request,
        *,
        idempotency_key: str | None = None,
        limits: QueueLimits = UNLIMITED,
    ) -> tuple[Record, bool]:
        """Put a waiting job into the queue.

        Args:
            idempotency_key: chosen by the tenant; a second job with it is the first.

        Returns:
            The stored job, and whether it is new.

        Raises:
            QueueFullError, QuotaError: nothing was stored.
        """

        def insert(connection: Connection) -> Record:
            self._require_room(connection, request.key_id, job.tenant, job.created_at, 1, limits)
            self._insert(connection, [(job, request)], idempotency_key)
            return Record(job, request)

        return self.insert_idempotent(JOBS, job.tenant, idempotency_key, _read_record, insert)

    def get_by_idempotency_key(self, tenant: str, idempotency_key: str) -> Record | None:
        """Read the job that a tenant has submitted with a key."""
        same_key = (JOBS.c.tenant == tenant) & (JOBS.c.idempotency_key == idempotency_key)
        with self.read_only() as connection:
            row = connection.execute(sa.select(JOBS).where(same_key)).one_or_none()
        return None if row is None else _read_record(row)

    def get(self, job_id: str, tenant: str | None = None) -> Record | None:
        """Read a job; None where there is none, or where it is another tenant's."""
        record = self._read(job_id) if self._cache is None else self._cache.get(job_id, self._read)
        return None if record is None or tenant not in (None, record.job.tenant) else record

    def _read(self, job_id: str) -> Record | None:
        with self.read_only() as connection:
            row = connection.execute(_JOB_BY_ID, {"job_id": job_id}).one_or_none()
        return None if row is None else _read_record(row)

    def page(
        self,
        tenant: str | None,
        *,
        offset: int,
        limit: int,
        states: Sequence[State] = (),
        endpoint: str | None = None,
        batch_id: str | None = None,
        text: str | None = None,
        created_from: float | None = None,
        created_to: float | None = None,
    ) -> tuple[list[Record], int]:
        """Read one page of a tenant's jobs (None: of all tenants), newest first, and count them all.

        Args:
            batch_id: jobs of a batch, in its order.
            text: substring of the id or of the client's request, case-insensitive.
        """
        conditions = [] if tenant is None else [JOBS.c.tenant == tenant]
        if states:
            conditions.append(JOBS.c.state.in_(states))
        if endpoint is not None:
            conditions.append(JOBS.c.endpoint == endpoint)
        if text is not None:
            # The client's request is JSON in the stored request's JSON.
            escaped = json.dumps(json.dumps(text)[1:-1])[1:-1].lower()
            in_request = sa.func.lower(JOBS.c.request).contains(escaped, autoescape=True)
            conditions.append(in_request | JOBS.c.id.contains(text.lower(), autoescape=True))
        if created_from is not None:
            conditions.append(JOBS.c.created_at >= created_from)
        if created_to is not None:
            conditions.append(JOBS.c.created_at <= created_to)
        if batch_id is not None:
            conditions.append(JOBS.c.batch_id == batch_id)
        newest_first = JOBS.c.created_at.desc(), JOBS.c.batch_row, JOBS.c.id
        page = sa.select(JOBS).where(*conditions).order_by(*newest_first).offset(offset).limit(limit)
        with self.read_only() as connection:
            rows = connection.execute(page).all()
            total = connection.execute(
                sa.select(sa.func.count()).select_from(JOBS).where(*conditions)
            ).scalar_one()
        return [_read_record(row) for row in rows], total

    def waiting_jobs(self) -> list[tuple[str, str]]:
        """Read (id, tenant) of all waiting jobs, within a tenant in the order in which they will start."""
        query = (
            sa.select(JOBS.c.id, JOBS.c.tenant).where(JOBS.c.state == State.WAITING).order_by(*QUEUE_ORDER)
        )
        with self.read_only() as connection:
            return [(row.id, row.tenant) for row in connection.execute(query.order_by(*QUEUE_ORDER))]

    def oldest_waiting_at(self) -> float | None:
        """Read when the oldest waiting job was submitted."""
        query = sa.select(sa.func.min(JOBS.c.created_at)).where(JOBS.c.state == State.WAITING)
        with self.read_only() as connection:
            created_at: float | None = connection.execute(query).scalar_one()
        return created_at

    def count_in_state(self, state: State) -> int:
        query = sa.select(sa.func.count()).select_from(JOBS).where(JOBS.c.state == state)
        with self.read_only() as connection:
            return int(connection.execute(query).scalar_one())

    def jobs_in_state(self, state: State) -> list[Record]:
        """Read all jobs in a state, oldest first."""
        query = sa.select(JOBS).where(JOBS.c.state == state).order_by(JOBS.c.created_at)
        with self.read_only() as connection:
            return [_read_record(row) for row in connection.execute(query)]

    def claim(
        self, now: float, policy: JobPolicy, accept: Callable[[Job], bool] = lambda job: True
    ) -> Record | None:
        """Claim the next job: tenants take turns; within a tenant by priority, then by age.

        Args:
            accept: whether to claim that job; where it returns False, no other job is tried.
        """
        with self.transaction() as connection:
            tenant = self._next_tenant(connection)
            if tenant is None:
                return None
            of_tenant = JOBS.c.state == State.WAITING, JOBS.c.tenant == tenant, JOBS.c.inputs_ready
            query = sa.select(JOBS).where(*of_tenant).order_by(*QUEUE_ORDER).limit(1)
            row = connection.execute(query.with_for_update(skip_locked=True)).one_or_none()
            if row is None:
                return None
            record = _read_record(row)
            if not record.is_readable:  # it was changed after the start
                after = job_state.end_unreadable(record.job, now)
            elif not accept(record.job):
                return None
            else:
                after = job_state.claim(record.job, now, policy)
            change = self._write(connection, record, after, now)
        self._invalidate([change.record])
        return change.record if record.is_readable else None

    def end_unreadable(self, now: float) -> list[JobChange]:
        """End the unfinished jobs whose rows cannot be read, but those that another process may run."""
        states = [State.WAITING, State.RUNNING] if self.is_exclusive else [State.WAITING]
        with self.transaction() as connection:
            query = sa.select(JOBS).where(JOBS.c.state.in_(states)).with_for_update(skip_locked=True)
            records = [_read_record(row) for row in connection.execute(query)]
            changes = [
                self._write(connection, record, job_state.end_unreadable(record.job, now), now)
                for record in records
                if not record.is_readable
            ]
        self._invalidate([change.record for change in changes])
        return changes

    def claim_downloads(
        self, now: float, limit: int, hold_s: float, ahead: int, busy_tenants: Collection[str] = ()
    ) -> list[Record]:
        """Claim jobs whose inputs have to be downloaded, at most one of each tenant.

        Args:
            hold_s: no other process gets them until then; `renew_download` extends it.
            ahead: only a tenant's first so many waiting jobs, so that a batch does not fill the disk.
            busy_tenants: tenants that get none now.
        """
        rank = sa.func.row_number().over(partition_by=JOBS.c.tenant, order_by=QUEUE_ORDER)
        columns = JOBS.c.id, JOBS.c.tenant, JOBS.c.inputs_ready, JOBS.c.download_until, rank.label("rank")
        queue = (
            sa.select(*columns)
            .where(JOBS.c.state == State.WAITING, JOBS.c.tenant.not_in(busy_tenants))
            .subquery()
        )
        first = sa.select(queue.c.id, queue.c.tenant).where(queue.c.rank <= ahead, *_is_due(queue.c, now))
        with self.transaction() as connection:
            by_tenant = dict[str, str]()
            for row in connection.execute(first.order_by(queue.c.rank)):
                by_tenant.setdefault(row.tenant, row.id)
            ids = list(by_tenant.values())[:limit]
            if not ids:
                return []
            still_due = JOBS.c.id.in_(ids), JOBS.c.state == State.WAITING, *_is_due(JOBS.c, now)
            claim = sa.update(JOBS).where(*still_due).values(download_until=now + hold_s).returning(JOBS)
            return [_read_record(row) for row in connection.execute(claim)]

    def renew_download(self, job_id: str, until: float) -> bool:
        """Hold a job's downloads for longer; returns False where the job no longer waits for them."""
        waits = JOBS.c.id == job_id, JOBS.c.state == State.WAITING, ~JOBS.c.inputs_ready
        with self.transaction() as connection:
            update = sa.update(JOBS).where(*waits).values(download_until=until)
            return connection.execute(update).rowcount == 1

    def change(self, job_id: str, now: float, transition: Callable[[Job], Job]) -> JobChange:
        """Apply a transition of `jobs.state` to a job, with everything that has to follow.

        Raises:
            KeyError: there is no such job.
            NotAllowedError: from the transition; nothing is changed.
        """
        with self.transaction() as connection:
            query = sa.select(JOBS).where(JOBS.c.id == job_id).with_for_update()
            row = connection.execute(query).one_or_none()
            if row is None:
                raise KeyError(job_id)
            record = _read_record(row)
            change = self._write(connection, record, transition(record.job), now)
        self._invalidate([change.record])
        return change

    def expire(self, now: float, policy: JobPolicy) -> list[JobChange]:
        """Apply all limits that have passed."""
        waited_too_long = (JOBS.c.state == State.WAITING) & (JOBS.c.created_at < now - policy.max_wait_s)
        ran_too_long = (JOBS.c.lease_until < now) | (JOBS.c.started_at < now - policy.max_run_s)
        expired = waited_too_long | ((JOBS.c.state == State.RUNNING) & ran_too_long)
        with self.transaction() as connection:
            query = sa.select(JOBS).where(expired).with_for_update(skip_locked=True)
            records = [_read_record(row) for row in connection.execute(query).all()]
            # Jobs that end lock the rows of their batches: in one order, or two processes could deadlock.
            records.sort(key=lambda record: record.job.batch_id or "")
            changes = [
                self._write(connection, record, job_state.expire(record.job, now, policy), now)
                for record in records
            ]
        self._invalidate([change.record for change in changes])
        return changes

    def delete(self, ids: Sequence[str], tenant: str, by: str = "", now: float = 0.0) -> list[Record]:
        """Delete ended jobs of a tenant; returns those that existed. Their blobs are the caller's task.

        Args:
            by: id of the key that deletes them, for the audit log.
        """
        ended = [state for state in State if state.is_final]
        condition = JOBS.c.id.in_(ids) & (JOBS.c.tenant == tenant) & JOBS.c.state.in_(ended)
        with self.transaction() as connection:
            rows = connection.execute(sa.select(JOBS).where(condition)).all()
            connection.execute(sa.delete(JOBS).where(condition))
            if by:
                audit.jobs_deleted(connection, [row.id for row in rows], tenant, by, now)
        return self._invalidate([_read_record(row) for row in rows])

    def delete_older(self, before: float, now: float | None = None) -> list[Record]:
        """Delete jobs and batches that ended before a time, and old webhooks; returns the jobs."""
        condition = JOBS.c.finished_at < before
        with self.transaction() as connection:
            rows = connection.execute(sa.select(JOBS).where(condition)).all()
            connection.execute(sa.delete(JOBS).where(condition))
            connection.execute(sa.delete(OUTBOX).where(OUTBOX.c.created_at < before))
            connection.execute(sa.delete(BATCHES).where(BATCHES.c.finished_at < before))
            if rows and now is not None:
                audit.data_expired(connection, len(rows), before, now)
        return self._invalidate([_read_record(row) for row in rows])

    # --- inside a transaction ---

    def _insert(
        self,
        connection: Connection,
        entries: Sequence[tuple[Job, Request]],
        idempotency_key: str | None = None,
    ) -> None:
        """Insert new jobs; one notification stands for all."""
        rows = [
            _columns(job)
            | {
                "id": job.id,
                "request": request.to_json(),
                "endpoint": request.endpoint,
                "key_id": request.key_id,
                "idempotency_key": idempotency_key,
                "batch_id": job.batch_id,
                "batch_row": job.batch_row,
            }
            for job, request in entries
        ]
        connection.execute(sa.insert(JOBS), rows)
        audit.jobs_submitted(connection, entries)
        notify(connection, entries[0][0])

    def require_room(self, key_id: str, tenant: str, now: float, count: int, limits: QueueLimits) -> None:
        """Check limits before a submission is read; `submit` checks them again.

        Raises:
            QueueFullError, QuotaError.
        """
        with self.read_only() as connection:
            self._require_room(connection, key_id, tenant, now, count, limits)

    def _require_room(
        self, connection: Connection, key_id: str, tenant: str, now: float, count: int, limits: QueueLimits
    ) -> None:
        """Check that the queue, the tenant's share and the key's quota have room for that many more jobs."""
        waiting = sa.select(sa.func.count()).where(JOBS.c.state == State.WAITING)
        total, share = limits.max_waiting, limits.max_waiting_per_tenant
        if total is not None and connection.execute(waiting).scalar_one() + count > total:
            raise QueueFullError
        if share is not None:
            before = connection.execute(waiting.where(JOBS.c.tenant == tenant)).scalar_one()
            if before + count > share:
                raise QuotaError(
                    f"Your jobs may fill {share} places of the queue, fill {before}, and would fill {count} "
                    "more: wait until some have started.",
                    30.0 if count <= share else 0.0,
                )
        of_key = sa.select(KEYS).where(KEYS.c.id == key_id)
        row = connection.execute(of_key.with_for_update()).one_or_none()
        if row is None:
            return
        if row.max_active_jobs is not None:
            unfinished = JOBS.c.key_id == key_id, JOBS.c.state.in_([State.WAITING, State.RUNNING])
            active = sa.select(sa.func.count()).where(*unfinished)
            if (before := connection.execute(active).scalar_one()) + count > row.max_active_jobs:
                raise QuotaError(
                    f"This key may have {row.max_active_jobs} unfinished jobs, has {before}, and would get "
                    f"{count} more: wait until some have ended.",
                    30.0 if count <= row.max_active_jobs else 0.0,
                )
        if row.max_jobs_per_day is not None:
            before, first = audit.count_submitted(connection, key_id, now - DAY_S)
            if before + count > row.max_jobs_per_day:
                wait_s = max(1.0, first + DAY_S - now) if before else DAY_S
                raise QuotaError(
                    f"This key may submit {row.max_jobs_per_day} jobs in 24 hours, has submitted {before}, "
                    f"and would submit {count} more.",
                    wait_s if count <= row.max_jobs_per_day else 0.0,
                )

    def _next_tenant(self, connection: Connection) -> str | None:
        ready = JOBS.c.state == State.WAITING, JOBS.c.inputs_ready
        waiting = sa.select(JOBS.c.tenant).where(*ready).distinct().subquery("waiting")
        # For each tenant by the indexes: neither reads the many jobs that have ended.
        of_tenant = JOBS.c.tenant == waiting.c.tenant
        running = sa.select(sa.func.count()).where(of_tenant, JOBS.c.state == State.RUNNING).scalar_subquery()
        latest = sa.select(sa.func.max(JOBS.c.started_at)).where(of_tenant).scalar_subquery()
        query = sa.select(waiting.c.tenant, running, sa.func.coalesce(latest, 0.0))
        loads = [job_state.TenantLoad(*row) for row in connection.execute(query)]
        return job_state.next_tenant(loads) if loads else None

    def _write(self, connection: Connection, record: Record, after: Job, now: float) -> JobChange:
        effects = job_state.effects(record.job, after)
        connection.execute(sa.update(JOBS).where(JOBS.c.id == after.id).values(**_columns(after)))
        if _visible(after) != _visible(record.job):
            notify(connection, after)
        if Effect.NOTIFY in effects:
            delete_segments(connection, after.id)
            audit.job_ended(connection, after, record.request, now)
            insert_usage(connection, after, record.request.endpoint, now)
            insert_webhooks(connection, after, record.request.webhook_url, now)
        return JobChange(record.job, dataclasses.replace(record, job=after), effects)

    def _invalidate(self, records: list[Record]) -> list[Record]:
        """Drop records from the cache after the commit that changed or deleted them."""
        if self._cache is not None:
            self._cache.invalidate(record.job.id for record in records)
        return records


def _is_due(columns: Any, now: float) -> tuple[sa.ColumnElement[bool], ...]:
    """Build the conditions of a job whose downloads nobody holds."""
    until = columns.download_until
    return ~columns.inputs_ready, until.is_(None) | (until < now)


def _visible(job: Job) -> tuple[State, bool, bool]:
    """Return what other processes wait for."""
    return job.state, job.cancel_requested, job.inputs_ready


# --- rows ---


def _record_bytes(record: Record) -> int:
    request, output = record.request, record.job.output
    points = 0 if output is None or output.sync is None else len(output.sync.curve)
    urls = sum(len(source.url or "") for source in request.sources)
    return RECORD_BYTES + len(request.dialect_state) + urls + 100 * points + 500 * len(request.segments)


def _columns(job: Job) -> dict[str, Any]:
    """Return a job's columns without its id and its batch, which never change."""
    failure = job.failure
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
        "cancel_requested": job.cancel_requested,
        "inputs_ready": job.inputs_ready,
        "progress": None if job.progress is None else _versioned(dataclasses.asdict(job.progress)),
        "output": None if job.output is None else _output_to_json(job.output),
        "failure": None if failure is None else _failure_to_json(failure),
    }


def _versioned(values: dict[str, Any]) -> str:
    return json.dumps({"version": VERSION, **values})


def _read_record(row: sa.Row[Any]) -> Record:
    """Read a row of `JOBS`; one that cannot be read affects no other."""
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
        cancel_requested=row._mapping[JOBS.c.cancel_requested],
        batch_id=row.batch_id,
        batch_row=row.batch_row,
        inputs_ready=row.inputs_ready,
    )
    try:
        job = dataclasses.replace(
            job,
            progress=read_progress(row.progress),
            output=_output_from_json(row.output) if row.output else None,
            failure=_failure_from_json(row.failure) if row.failure else None,
        )
        return Record(job, Request.from_json(row.request))
    except (UnreadableError, ValueError, TypeError, KeyError, AttributeError):
        state = State.FAILED if job.state.is_final else job.state
        output = Output(result_blob(job.id), 0.0) if row.output else None  # it is deleted with the job
        job = dataclasses.replace(job, state=state, output=output, failure=job_state.UNREADABLE)
        return Record(job, _read_remains(row), is_readable=False)


def _read_remains(row: sa.Row[Any]) -> Request:
    """Read what answers and webhooks need from a request that cannot be read as a whole."""
    try:
        values = {name: text for name, text in json.loads(row.request).items() if isinstance(text, str)}
        state_text = values["said"]
        if not isinstance(json.loads(state_text), dict):
            raise ValueError(state_text)
    except (ValueError, TypeError, KeyError, AttributeError):
        values, state_text = {}, "{}"
    return Request(
        dialect=values.get("dialect", ""),
        dialect_state=state_text,
        endpoint=row._mapping[JOBS.c.endpoint],
        sources=(),
        key_id=row.key_id,
        webhook_url=values.get("webhook_url"),
        request_id=values.get("request_id", "-"),
    )


def read_progress(text: str | None) -> StageProgress | None:
    """Decode stored progress; None where there is none, or where it cannot be read: it is replaced soon."""
    try:
        values = load_versioned(text) if text else {}
        return StageProgress(**{name: values[name] for name in StageProgress.__dataclass_fields__})
    except (UnreadableError, KeyError):
        return None


def _output_to_json(output: Output) -> str:
    values = dataclasses.asdict(output)
    values["is_marked"] = values.pop("is_signed")
    return _versioned(values)


def _output_from_json(text: str) -> Output:
    values = load_versioned(text)
    del values["version"]
    values["is_signed"] = values.pop("is_marked", None)
    values["warnings"] = tuple(values.get("warnings", ()))
    if (sync := values.get("sync")) is not None:
        values["sync"] = SyncConfidence(**sync)
    values["warning_codes"] = tuple(values.get("warning_codes", ()))
    values["pauses_s"] = tuple(map(tuple, values.get("pauses_s", ())))
    return Output(**values)


def _failure_to_json(failure: Failure) -> str:
    return _versioned({"code": failure.code, "message": failure.message, "again": failure.retryable})


def _failure_from_json(text: str) -> Failure:
    values = load_versioned(text)
    return Failure(values["code"], values["message"], values.get("again", False))
