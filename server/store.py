"""The database: jobs, which are the queue and the truth, and the outbox of notifications.

The only owner of SQL. Every public method is one transaction; when it returns, what it says is on disk. What
may happen to a job is decided in `jobs`; this module finds the row, lets the pure transition change it, and
writes the row and what has to follow in the same commit. It knows no HTTP, no dialect and no clock.

SQLite by default, opened by exactly one process (a lock file guards that); PostgreSQL through its URL.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from filelock import FileLock, Timeout
from sqlalchemy.engine import URL, Connection, Engine, make_url

from server import audit, jobs
from server.jobs import Effect, Failure, Job, Output, Policy, Progress, State
from server.messages import Request
from server.recent import Recent

MIGRATIONS = Path(__file__).parent / "migrations"

RECENT_JOBS = 4096
"""So many jobs are not read again while nothing changes them; a few kB each."""

metadata = sa.MetaData()

JOBS = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("label", sa.String(200), nullable=False),
    sa.Column("key_id", sa.String(16), nullable=False),
    sa.Column("idempotency_key", sa.String(200)),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("fence", sa.Integer, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("lease_until", sa.Float),
    sa.Column("started_at", sa.Float),
    sa.Column("finished_at", sa.Float),
    sa.Column("cancel_asked", sa.Boolean, nullable=False),
    sa.Column("progress", sa.Text),
    sa.Column("output", sa.Text),
    sa.Column("failure", sa.Text),
    sa.UniqueConstraint("tenant", "idempotency_key", name="one_job_per_key"),
    sa.Index("by_turn", "state", "tenant", "priority", "created_at"),
    sa.Index("by_tenant", "tenant", "created_at"),
    sa.Index("by_key", "key_id", "created_at"),
)

OUTBOX = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("job_id", sa.String(32), nullable=False),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("due_at", sa.Float),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("delivered_at", sa.Float),
    sa.Column("last_error", sa.Text),
    sa.Index("by_due", "due_at"),
)

KEYS = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("scopes", sa.String(100), nullable=False),
    sa.Column("webhook_secret", sa.String(100), nullable=False),
    sa.Column("requests_per_minute", sa.Integer),
    sa.Column("max_active_jobs", sa.Integer),
    sa.Column("max_jobs_per_day", sa.Integer),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float),
    sa.Column("revoked_at", sa.Float),
    sa.Column("last_used_at", sa.Float),
)


# Asked hundreds of times a second by polling clients, so they are made once.
_JOB_BY_ID = sa.select(JOBS).where(JOBS.c.id == sa.bindparam("wanted"))
_KEY_BY_DIGEST = sa.select(KEYS).where(KEYS.c.digest == sa.bindparam("wanted"))

_DEAD = OUTBOX.c.due_at.is_(None) & OUTBOX.c.delivered_at.is_(None)
DAY_S = 86400.0


class QueueFullError(Exception):
    """As many jobs wait as may wait."""


class QuotaError(Exception):
    """The key has used up what it may; `message` says what, `wait_s` when it may help to come again."""

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.message, self.wait_s = message, wait_s


class AlreadyOpenError(Exception):
    """Another process has this SQLite file."""


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


@dataclass(frozen=True, slots=True)
class Notice:
    """A notification to deliver.

    Attributes:
        id: stable over all tries.
        due_at: next try; None: delivered, or given up.
    """

    id: str
    job_id: str
    tenant: str
    url: str
    created_at: float
    due_at: float | None
    tries: int
    delivered_at: float | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Who may call; the key itself is nowhere, only its digest.

    Attributes:
        id: public name of the key.
        scopes: space-separated, see `auth`.
        webhook_secret: signs this key's webhooks.
        requests_per_minute: None: as the server's setting.
        max_active_jobs: how many may wait or run at once; None: no limit.
        max_jobs_per_day: how many may be submitted in any 24 hours; None: no limit.
    """

    id: str
    tenant: str
    name: str
    digest: str
    scopes: str
    webhook_secret: str
    created_at: float
    requests_per_minute: int | None = None
    max_active_jobs: int | None = None
    max_jobs_per_day: int | None = None
    expires_at: float | None = None
    revoked_at: float | None = None
    last_used_at: float | None = None


class Store:
    """Open database.

    Args:
        url: SQLAlchemy's, such as `sqlite:////var/lib/lipsync/jobs.sqlite` or `postgresql+psycopg://…`.

    Raises:
        AlreadyOpenError: another process has the SQLite file.
    """

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        self._file_lock = _lock_file(parsed)
        self._engine = _engine(parsed)
        self._writer = self._engine.execution_options(writing=True)
        self.audit = audit.AuditLog(self._writer)
        self._recent = Recent[Record](RECENT_JOBS) if self._file_lock is not None else None
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        with self._writer.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    @property
    def is_ours_alone(self) -> bool:
        """No other process can have this database open."""
        return self._file_lock is not None

    def close(self) -> None:
        self._engine.dispose()
        if self._file_lock is not None:
            self._file_lock.release()

    # --- jobs ---

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
        values = _values(job) | {
            "request": request.to_json(),
            "label": request.label,
            "key_id": request.key_id,
            "idempotency_key": idempotency_key,
        }
        try:
            with self._writer.begin() as connection:
                if (known := self._known(connection, job.tenant, idempotency_key)) is not None:
                    return known, False
                waiting = sa.select(sa.func.count()).where(JOBS.c.state == State.WAITING)
                if max_waiting is not None and connection.execute(waiting).scalar_one() >= max_waiting:
                    raise QueueFullError
                self._require_quota(connection, request.key_id, job.created_at)
                connection.execute(sa.insert(JOBS).values(id=job.id, **values))
                audit.job_submitted(connection, job, request)
        except sa.exc.IntegrityError:
            # PostgreSQL lets another process put the same key in between the look and the write.
            with self._engine.connect() as connection:
                known = self._known(connection, job.tenant, idempotency_key)
            if known is None:
                raise
            return known, False
        return Record(job, request), True

    def get(self, job_id: str, tenant: str | None = None) -> Record | None:
        """A job; None where there is none, or where it is another tenant's."""
        record = self._read(job_id) if self._recent is None else self._recent.get(job_id, self._read)
        return None if record is None or tenant not in (None, record.job.tenant) else record

    def _read(self, job_id: str) -> Record | None:
        with self._engine.connect() as connection:
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
        text: str | None = None,
        created_from: float | None = None,
        created_to: float | None = None,
    ) -> tuple[list[Record], int]:
        """A tenant's jobs (None: everybody's), newest first: one page, and how many there are in all.

        Args:
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
        newest = JOBS.c.created_at.desc(), JOBS.c.id
        page = sa.select(JOBS).where(*wanted).order_by(*newest).offset(offset).limit(limit)
        with self._engine.connect() as connection:
            rows = connection.execute(page).all()
            total = connection.execute(
                sa.select(sa.func.count()).select_from(JOBS).where(*wanted)
            ).scalar_one()
        return [_record(row) for row in rows], total

    def waiting(self) -> list[tuple[str, str]]:
        """(id, tenant) of all waiting jobs, within a tenant in the order of their turns."""
        turn = JOBS.c.priority.desc(), JOBS.c.created_at, JOBS.c.id
        query = sa.select(JOBS.c.id, JOBS.c.tenant).where(JOBS.c.state == State.WAITING).order_by(*turn)
        with self._engine.connect() as connection:
            return [(row.id, row.tenant) for row in connection.execute(query)]

    def oldest_waiting(self) -> float | None:
        """When the oldest waiting job was submitted."""
        query = sa.select(sa.func.min(JOBS.c.created_at)).where(JOBS.c.state == State.WAITING)
        with self._engine.connect() as connection:
            created_at: float | None = connection.execute(query).scalar_one()
        return created_at

    def count_in_state(self, state: State) -> int:
        query = sa.select(sa.func.count()).select_from(JOBS).where(JOBS.c.state == state)
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def in_state(self, state: State) -> list[Record]:
        """All jobs of a state, oldest first."""
        query = sa.select(JOBS).where(JOBS.c.state == state).order_by(JOBS.c.created_at)
        with self._engine.connect() as connection:
            return [_record(row) for row in connection.execute(query)]

    def claim(self, now: float, policy: Policy) -> Record | None:
        """Take the job whose turn it is: fair between tenants; in one, by priority, then by age."""
        with self._writer.begin() as connection:
            name = self._next_tenant(connection)
            if name is None:
                return None
            turn = JOBS.c.priority.desc(), JOBS.c.created_at, JOBS.c.id
            query = (
                sa.select(JOBS).where(JOBS.c.state == State.WAITING, JOBS.c.tenant == name).order_by(*turn)
            )
            row = connection.execute(query.limit(1).with_for_update(skip_locked=True)).one_or_none()
            if row is None:
                return None
            record = _record(row)
            claimed = self._write(connection, record, jobs.claim(record.job, now, policy), now).record
        self._changed([claimed])
        return claimed

    def change(self, job_id: str, now: float, transition: Callable[[Job], Job]) -> Change:
        """Apply a transition of `jobs` to a job, with everything that follows from it.

        Raises:
            KeyError: there is no such job.
            NotAllowedError: from the transition; nothing is changed.
        """
        with self._writer.begin() as connection:
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
        with self._writer.begin() as connection:
            found = connection.execute(
                sa.select(JOBS).where(late | over).with_for_update(skip_locked=True)
            ).all()
            records = [_record(row) for row in found]
            changes = [
                self._write(connection, record, jobs.expire(record.job, now, policy), now)
                for record in records
            ]
        self._changed([change.record for change in changes])
        return changes

    def delete(self, ids: Sequence[str], tenant: str) -> list[Record]:
        """Forget ended jobs of a tenant; returns those that were there. Their blobs are the caller's task."""
        ended = [state for state in State if state.is_final]
        with self._writer.begin() as connection:
            wanted = JOBS.c.id.in_(ids) & (JOBS.c.tenant == tenant) & JOBS.c.state.in_(ended)
            rows = connection.execute(sa.select(JOBS).where(wanted)).all()
            connection.execute(sa.delete(JOBS).where(wanted))
        return self._changed([_record(row) for row in rows])

    def delete_older(self, before: float) -> list[Record]:
        """Forget jobs that ended before a moment; returns them, for their blobs."""
        with self._writer.begin() as connection:
            wanted = JOBS.c.finished_at < before
            rows = connection.execute(sa.select(JOBS).where(wanted)).all()
            connection.execute(sa.delete(JOBS).where(wanted))
            connection.execute(sa.delete(OUTBOX).where(OUTBOX.c.created_at < before))
        return self._changed([_record(row) for row in rows])

    # --- outbox ---

    def due_notices(self, now: float, limit: int) -> list[Notice]:
        query = sa.select(OUTBOX).where(OUTBOX.c.due_at <= now).order_by(OUTBOX.c.due_at).limit(limit)
        with self._engine.connect() as connection:
            return [Notice(**row._mapping) for row in connection.execute(query)]

    def next_notice_at(self) -> float | None:
        """When the next notice is due; None where none waits."""
        with self._engine.connect() as connection:
            due_at: float | None = connection.execute(sa.select(sa.func.min(OUTBOX.c.due_at))).scalar_one()
        return due_at

    def delivered(self, notice_id: str, now: float) -> None:
        self._tried(notice_id, delivered_at=now, due_at=None, last_error=None)

    def not_delivered(self, notice_id: str, error: str, due_at: float | None) -> None:
        """One more try went wrong; None gives up."""
        self._tried(notice_id, due_at=due_at, last_error=error)

    def dead_notices(self, limit: int) -> list[Notice]:
        """What could not be delivered, newest first."""
        query = sa.select(OUTBOX).where(_DEAD).order_by(OUTBOX.c.created_at.desc()).limit(limit)
        with self._engine.connect() as connection:
            return [Notice(**row._mapping) for row in connection.execute(query)]

    def count_notices(self) -> tuple[int, int]:
        """How many wait for a try, and how many were given up."""
        waiting, dead = (
            sa.select(sa.func.count()).select_from(OUTBOX).where(kind)
            for kind in (OUTBOX.c.due_at.is_not(None), _DEAD)
        )
        with self._engine.connect() as connection:
            return int(connection.execute(waiting).scalar_one()), int(connection.execute(dead).scalar_one())

    def try_again(self, notice_id: str, now: float) -> bool:
        """Deliver a given-up notice after all; whether there was such a one."""
        with self._writer.begin() as connection:
            revived = sa.update(OUTBOX).where(_DEAD, OUTBOX.c.id == notice_id).values(due_at=now, tries=0)
            return connection.execute(revived).rowcount == 1

    def _tried(self, notice_id: str, **values: Any) -> None:
        with self._writer.begin() as connection:
            changed = sa.update(OUTBOX).where(OUTBOX.c.id == notice_id)
            connection.execute(changed.values(tries=OUTBOX.c.tries + 1, **values))

    # --- keys ---

    def add_key(self, key: ApiKey) -> None:
        with self._writer.begin() as connection:
            values = {name: getattr(key, name) for name in key.__dataclass_fields__}
            connection.execute(sa.insert(KEYS).values(**values))

    def key_by_digest(self, digest: str) -> ApiKey | None:
        with self._engine.connect() as connection:
            row = connection.execute(_KEY_BY_DIGEST, {"wanted": digest}).one_or_none()
        return None if row is None else ApiKey(**row._mapping)

    def key(self, key_id: str) -> ApiKey | None:
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(KEYS).where(KEYS.c.id == key_id)).one_or_none()
        return None if row is None else ApiKey(**row._mapping)

    def all_keys(self) -> list[ApiKey]:
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(KEYS).order_by(KEYS.c.created_at)).all()
        return [ApiKey(**row._mapping) for row in rows]

    def revoke_key(self, key_id: str, now: float) -> bool:
        """Whether there was such a key that still worked."""
        working = (KEYS.c.id == key_id) & KEYS.c.revoked_at.is_(None)
        with self._writer.begin() as connection:
            return connection.execute(sa.update(KEYS).where(working).values(revoked_at=now)).rowcount == 1

    def key_used(self, key_id: str, now: float) -> None:
        with self._writer.begin() as connection:
            connection.execute(sa.update(KEYS).where(KEYS.c.id == key_id).values(last_used_at=now))

    # --- inside a transaction ---

    def _known(self, connection: Connection, tenant: str, idempotency_key: str | None) -> Record | None:
        if idempotency_key is None:
            return None
        same = (JOBS.c.tenant == tenant) & (JOBS.c.idempotency_key == idempotency_key)
        row = connection.execute(sa.select(JOBS).where(same)).one_or_none()
        return None if row is None else _record(row)

    def _require_quota(self, connection: Connection, key_id: str, now: float) -> None:
        row = connection.execute(sa.select(KEYS).where(KEYS.c.id == key_id).with_for_update()).one_or_none()
        if row is None:
            return
        mine = sa.select(sa.func.count(), sa.func.min(JOBS.c.created_at)).where(JOBS.c.key_id == key_id)
        if row.max_active_jobs is not None:
            active = mine.where(JOBS.c.state.in_([State.WAITING, State.RUNNING]))
            if connection.execute(active).one()[0] >= row.max_active_jobs:
                raise QuotaError(
                    f"This key may have {row.max_active_jobs} unfinished jobs: wait until one has ended.",
                    30.0,
                )
        if row.max_jobs_per_day is not None:
            count, first = connection.execute(mine.where(JOBS.c.created_at > now - DAY_S)).one()
            if count >= row.max_jobs_per_day:
                raise QuotaError(
                    f"This key may submit {row.max_jobs_per_day} jobs in 24 hours, and has.",
                    max(1.0, first + DAY_S - now) if count else DAY_S,
                )

    def _next_tenant(self, connection: Connection) -> str | None:
        waits = sa.select(JOBS.c.tenant).where(JOBS.c.state == State.WAITING).distinct()
        names = connection.execute(waits).scalars().all()
        if not names:
            return None
        running = sa.func.sum(sa.case((JOBS.c.state == State.RUNNING, 1), else_=0))
        counts = (
            sa.select(JOBS.c.tenant, running, sa.func.coalesce(sa.func.max(JOBS.c.started_at), 0.0))
            .where(JOBS.c.tenant.in_(names))
            .group_by(JOBS.c.tenant)
        )
        return jobs.next_tenant([jobs.Tenant(*row) for row in connection.execute(counts)])

    def _changed(self, records: list[Record]) -> list[Record]:
        """After the commit that changed or deleted them."""
        if self._recent is not None:
            self._recent.changed(record.job.id for record in records)
        return records

    def _write(self, connection: Connection, record: Record, after: Job, now: float) -> Change:
        found = jobs.effects(record.job, after)
        connection.execute(sa.update(JOBS).where(JOBS.c.id == after.id).values(**_values(after)))
        if Effect.NOTIFY in found:
            audit.job_ended(connection, after, record.request, now)
        if Effect.NOTIFY in found and record.request.webhook_url is not None:
            notice = {
                "id": after.id,
                "job_id": after.id,
                "tenant": after.tenant,
                "url": record.request.webhook_url,
                "created_at": now,
                "due_at": now,
                "tries": 0,
            }
            connection.execute(sa.insert(OUTBOX).values(**notice))
        return Change(record.job, Record(after, record.request), found)


# --- rows ---


def _values(job: Job) -> dict[str, Any]:
    """A job's columns, without its id."""
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
    return Output(**stored | {"warnings": tuple(stored.get("warnings", ()))})


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
    )
    return Record(job, Request.from_json(row.request))


def _text(value: Progress | Output | Failure | None) -> str | None:
    if value is None:
        return None
    return json.dumps({name: getattr(value, name) for name in value.__dataclass_fields__})


# --- the engine ---


def _lock_file(url: URL) -> FileLock | None:
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    lock = FileLock(f"{url.database}.lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise AlreadyOpenError(f"{url.database} is open in another process") from None
    return lock


def _engine(url: URL) -> Engine:
    engine = sa.create_engine(url)
    if url.get_backend_name() == "sqlite":

        @sa.event.listens_for(engine, "connect")
        def durable(connection: Any, _: object) -> None:
            connection.isolation_level = None  # transactions are begun below, by us
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA busy_timeout = 10000")

        @sa.event.listens_for(engine, "begin")
        def at_once(connection: Connection) -> None:
            # A transaction that reads first and writes later could not get the lock any more. What only reads
            # needs none: each of its statements sees one state.
            if connection.get_execution_options().get("writing", False):
                connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
