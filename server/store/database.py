"""The open database: connections, transactions, its clock, and what other processes commit.

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
from filelock import FileLock, Timeout
from sqlalchemy.engine import URL, Connection, Engine, make_url

from server.store.notifications import News, listen

T = TypeVar("T")

MIGRATIONS = Path(__file__).with_name("migrations")

ANSWER_WITHIN_S = 5
"""A statement of ours takes milliseconds; what takes longer is given up, for requests wait for it."""

CONNECT_WITHIN_S = 2
LIMITS = {
    "connect_timeout": CONNECT_WITHIN_S,
    "tcp_user_timeout": 1000 * ANSWER_WITHIN_S,  # a host that vanished without a word
}
"""libpq's words."""

CLOCK_EVERY_S = 10.0
"""So often the database is asked what time it is; between, this machine's steady clock counts on."""

TRUSTED_S = 1.0
"""A connection that rested longer is asked whether it still holds before it is used."""

START_LOCK = 7215
"""PostgreSQL's advisory lock under which one process after the other brings the tables up to date."""


class AlreadyOpenError(Exception):
    """Another process has this SQLite file."""


class DatabaseAwayError(Exception):
    """The database does not answer, or cannot write; nothing was stored, unless only its answer was lost."""


class Database:
    """Connections to one database.

    Args:
        url: SQLAlchemy's, such as `sqlite:////var/lib/lipsync/jobs.sqlite` or `postgresql+psycopg://…`.

    Raises:
        AlreadyOpenError: another process has the SQLite file.
        DatabaseAwayError: it cannot be opened.
    """

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._file_lock = _lock_file(self._url)
        self._engine = _engine(self._url)
        self._writer = self._engine.execution_options(writing=True)
        # SQLite's transactions are begun by hand: without that each statement is one already.
        self._single = (
            self._engine.execution_options(isolation_level="AUTOCOMMIT") if self.is_shared else self._engine
        )
        self._is_away = False
        self._ahead_s, self._clock_read_at = 0.0, float("-inf")
        self._migrate()

    @property
    def is_ours_alone(self) -> bool:
        """No other process can have this database open."""
        return self._file_lock is not None

    @property
    def is_shared(self) -> bool:
        """Other processes may have it open, and tell each other what they commit."""
        return self._url.get_backend_name() == "postgresql"

    def now(self) -> float:
        """Seconds since 1970 by the clock that all processes of this database share, to some milliseconds."""
        if not self.is_shared:
            return time.time()
        began = time.monotonic()
        if began - self._clock_read_at >= CLOCK_EVERY_S:
            with self.reading() as connection:
                answer = connection.execute(sa.select(sa.extract("epoch", sa.func.clock_timestamp())))
                shared_s = float(answer.scalar_one())
            self._ahead_s = shared_s - (began + time.monotonic()) / 2
            self._clock_read_at = began
        return time.monotonic() + self._ahead_s

    async def news(self) -> AsyncGenerator[News | None, None]:
        """What any process commits, for as long as the connection holds; None once when it stands.

        Where it does not, every call here fails at once instead of waiting for an answer.

        Raises:
            DatabaseAwayError: it broke, or could not be made.
        """
        try:
            async with contextlib.aclosing(listen(self._url, LIMITS, CONNECT_WITHIN_S)) as heard:
                async for news in heard:
                    self._is_away = False
                    yield news
        except OSError as error:
            self._is_away = True
            raise DatabaseAwayError(str(error)) from error

    def close(self) -> None:
        self._engine.dispose()
        if self._file_lock is not None:
            self._file_lock.release()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """For statements that change nothing; each sees one state.

        Raises:
            DatabaseAwayError.
        """
        with self.alone() as connection:
            yield connection

    @contextlib.contextmanager
    def alone(self) -> Iterator[Connection]:
        """For statements each of which is a transaction, without the way there and back that two more words
        would take; on disk when it has been executed.

        Raises:
            DatabaseAwayError.
        """
        with self._translated(), self._single.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction; on disk when this returns.

        Raises:
            DatabaseAwayError.
        """
        with self._translated(), self._writer.begin() as connection:
            yield connection

    def once(
        self,
        table: sa.Table,
        tenant: str,
        idempotency_key: str | None,
        read: Callable[[Any], T],
        insert: Callable[[Connection], T],
    ) -> tuple[T, bool]:
        """What `insert` makes in a transaction; where the tenant's key has a row of `table`, that, as `read`.

        Returns:
            What is stored, and whether it is new.

        Raises:
            DatabaseAwayError.
        """
        same = (table.c.tenant == tenant) & (table.c.idempotency_key == idempotency_key)

        def known(connection: Connection) -> T | None:
            if idempotency_key is None:
                return None
            row = connection.execute(sa.select(table).where(same)).one_or_none()
            return None if row is None else read(row)

        try:
            with self.writing() as connection:
                found = known(connection)
                return (insert(connection), True) if found is None else (found, False)
        except sa.exc.IntegrityError:
            # PostgreSQL lets another process put the same key in between the look and the write.
            with self.reading() as connection:
                found = known(connection)
            if found is None:
                raise
            return found, False

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        if self._is_away:
            raise DatabaseAwayError("it was not there a moment ago")
        try:
            yield
        except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
            raise DatabaseAwayError(str(error).splitlines()[0]) from error

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        with self.writing() as connection:
            if self.is_shared:
                connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(START_LOCK)))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def _lock_file(url: URL) -> FileLock | None:
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    lock = FileLock(f"{url.database}.lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise AlreadyOpenError(f"{url.database} is open in another process: is a server running?") from None
    return lock


def _engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        arguments = LIMITS | {"options": f"-c statement_timeout={ANSWER_WITHIN_S}s"}
        engine = sa.create_engine(url, connect_args=arguments, pool_timeout=ANSWER_WITHIN_S)
        _ask_rested_connections(engine)
        return engine
    engine = sa.create_engine(url)

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


def _ask_rested_connections(engine: Engine) -> None:
    """As SQLAlchemy's own `pool_pre_ping`, which would ask before every use."""

    @sa.event.listens_for(engine, "checkin")
    def rests(_: object, record: Any) -> None:
        record.info["rests_since"] = time.monotonic()

    @sa.event.listens_for(engine, "checkout")
    def used(connection: Any, record: Any, _: object) -> None:
        if time.monotonic() - record.info.get("rests_since", float("inf")) < TRUSTED_S:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise sa.exc.DisconnectionError from error
