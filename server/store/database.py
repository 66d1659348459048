"""The open database: connections, transactions, its clock, and notifications of other processes.

What differs between SQLite and PostgreSQL is here and nowhere else.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from filelock import FileLock, Timeout
from sqlalchemy.engine import URL, Connection, Engine, make_url

from server.store.notifications import Notification, listen

T = TypeVar("T")

MIGRATIONS = Path(__file__).with_name("migrations")

STATEMENT_TIMEOUT_S = 5
"""Our statements take milliseconds. Requests wait for them, so a longer one is aborted."""

CONNECT_TIMEOUT_S = 2
LIBPQ_OPTIONS = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "tcp_user_timeout": 1000 * STATEMENT_TIMEOUT_S,  # in ms, for a host that vanished
}

DRIVERS = {"sqlite", "postgresql+psycopg"}

MIGRATION_LOCK = 7215
"""PostgreSQL's advisory lock under which one process after the other brings the tables up to date."""


class AlreadyOpenError(Exception):
    """Another process has this SQLite file."""


class DatabaseUnavailableError(Exception):
    """The database does not answer or cannot write. Nothing was stored, unless only the answer was lost."""


class Database:
    """Connections to one database.

    Args:
        url: SQLAlchemy's, such as `sqlite:////var/lib/lipsync/jobs.sqlite` or `postgresql+psycopg://…`.
        clock_interval_s: how often PostgreSQL's clock is read; in between, the monotonic clock is used.
        ping_after_s: a PostgreSQL connection that was idle for longer is tested before it is used.

    Raises:
        AlreadyOpenError: another process has the SQLite file.
        DatabaseUnavailableError: it cannot be opened.
    """

    def __init__(self, url: str, *, clock_interval_s: float = 10.0, ping_after_s: float = 1.0) -> None:
        self._url = _parse_url(url)
        self._file_lock = _lock_file(self._url)
        self._engine = _create_engine(self._url, ping_after_s)
        self._writer = self._engine.execution_options(writing=True)
        # SQLite's transactions are begun by hand: without that each statement is one already.
        self._single = (
            self._engine.execution_options(isolation_level="AUTOCOMMIT") if self.is_shared else self._engine
        )
        self._is_unavailable = False
        self._clock_interval_s = clock_interval_s
        self._clock_offset_s, self._clock_read_at = 0.0, float("-inf")
        self._migrate()

    @property
    def is_exclusive(self) -> bool:
        """No other process can have this database open."""
        return self._file_lock is not None

    @property
    def is_shared(self) -> bool:
        """Other processes may have it open; they notify each other of their commits."""
        return self._url.get_backend_name() == "postgresql"

    def now(self) -> float:
        """Return seconds since 1970 by the clock that all processes of this database share, to some ms."""
        if not self.is_shared:
            return time.time()
        before = time.monotonic()
        if before - self._clock_read_at >= self._clock_interval_s:
            with self.read_only() as connection:
                query = sa.select(sa.extract("epoch", sa.func.clock_timestamp()))
                database_s = float(connection.execute(query).scalar_one())
            self._clock_offset_s = database_s - (before + time.monotonic()) / 2
            self._clock_read_at = before
        return time.monotonic() + self._clock_offset_s

    async def notifications(self) -> AsyncGenerator[Notification | None, None]:
        """Yield what any process commits while the connection holds, and None whenever it was tested.

        While it does not hold, every call of this object fails at once instead of waiting for an answer.

        Raises:
            DatabaseUnavailableError: the connection broke, or could not be made.
        """
        try:
            async with contextlib.aclosing(
                listen(self._url, LIBPQ_OPTIONS, CONNECT_TIMEOUT_S)
            ) as notifications:
                async for notification in notifications:
                    self._is_unavailable = False
                    yield notification
        except OSError as error:
            self._is_unavailable = True
            raise DatabaseUnavailableError(str(error)) from error

    def close(self) -> None:
        self._engine.dispose()
        if self._file_lock is not None:
            self._file_lock.release()

    @contextlib.contextmanager
    def read_only(self) -> Iterator[Connection]:
        """Open a connection for statements that change nothing; each sees one state.

        Raises:
            DatabaseUnavailableError.
        """
        with self.autocommit() as connection:
            yield connection

    @contextlib.contextmanager
    def autocommit(self) -> Iterator[Connection]:
        """Open a connection on which each statement is a transaction, on disk when it has been executed.

        It saves the two round trips of BEGIN and COMMIT.

        Raises:
            DatabaseUnavailableError.
        """
        with self._translate_errors(), self._single.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Open a transaction; it is on disk when this returns.

        Raises:
            DatabaseUnavailableError.
        """
        with self._translate_errors(), self._writer.begin() as connection:
            yield connection

    def insert_idempotent(
        self,
        table: sa.Table,
        tenant: str,
        idempotency_key: str | None,
        read: Callable[[Any], T],
        insert: Callable[[Connection], T],
    ) -> tuple[T, bool]:
        """Run `insert` in a transaction, unless the tenant's key has a row of `table` already.

        Args:
            read: converts that row.

        Returns:
            The stored value, and whether it is new.

        Raises:
            DatabaseUnavailableError.
        """
        same_key = (table.c.tenant == tenant) & (table.c.idempotency_key == idempotency_key)

        def read_existing(connection: Connection) -> T | None:
            if idempotency_key is None:
                return None
            row = connection.execute(sa.select(table).where(same_key)).one_or_none()
            return None if row is None else read(row)

        try:
            with self.transaction() as connection:
                existing = read_existing(connection)
                return (insert(connection), True) if existing is None else (existing, False)
        except sa.exc.IntegrityError:
            # PostgreSQL lets another process insert the same key between our read and our insert.
            with self.read_only() as connection:
                existing = read_existing(connection)
            if existing is None:
                raise
            return existing, False

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        if self._is_unavailable:
            raise DatabaseUnavailableError("the connection for notifications is lost")
        try:
            yield
        except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
            raise DatabaseUnavailableError(str(error).splitlines()[0]) from error

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        with self.transaction() as connection:
            if self.is_shared:
                connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            config.attributes["connection"] = connection
            known = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
            if (revision := MigrationContext.configure(connection).get_current_revision()) in (None, *known):
                command.upgrade(config, "head")
            else:
                raise DatabaseUnavailableError(
                    f"a newer version of this program wrote it (schema {revision}, and this one knows "
                    f"{known[0]}): install that version again, or restore the backup from before the upgrade"
                )


def _parse_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except sa.exc.ArgumentError:
        parsed = None
    if parsed is None or parsed.drivername not in DRIVERS:
        raise DatabaseUnavailableError(
            "database_url is not one of SQLite or PostgreSQL: write sqlite:////PATH/FILE or "
            "postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"
        )
    return parsed


def _lock_file(url: URL) -> FileLock | None:
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    lock = FileLock(f"{url.database}.lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise AlreadyOpenError(f"{url.database} is open in another process: is a server running?") from None
    return lock


def _create_engine(url: URL, ping_after_s: float) -> Engine:
    if url.get_backend_name() != "sqlite":
        arguments = LIBPQ_OPTIONS | {"options": f"-c statement_timeout={STATEMENT_TIMEOUT_S}s"}
        engine = sa.create_engine(url, connect_args=arguments, pool_timeout=STATEMENT_TIMEOUT_S)
        _ping_idle_connections(engine, ping_after_s)
        return engine
    engine = sa.create_engine(url)

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions are begun below, by us
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA busy_timeout = 10000")

    @sa.event.listens_for(engine, "begin")
    def begin_immediate(connection: Connection) -> None:
        # A transaction that reads first and writes later could not get the lock any more. What only reads
        # needs none: each of its statements sees one state.
        if connection.get_execution_options().get("writing", False):
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _ping_idle_connections(engine: Engine, ping_after_s: float) -> None:
    """Do what SQLAlchemy's `pool_pre_ping` does, but not before every use."""

    @sa.event.listens_for(engine, "checkin")
    def mark_idle(_: object, record: Any) -> None:
        record.info["idle_since"] = time.monotonic()

    @sa.event.listens_for(engine, "checkout")
    def ping(connection: Any, record: Any, _: object) -> None:
        if time.monotonic() - record.info.get("idle_since", float("inf")) < ping_after_s:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise sa.exc.DisconnectionError from error
