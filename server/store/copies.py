"""Copies of a whole database: of an open SQLite file into a file, and of a SQLite file into PostgreSQL."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from server.store import audit, tables
from server.store.database import Database

BATCH_ROWS = 1000


class NotEmptyError(Exception):
    """The database to copy into has rows already."""


def sqlite_file(url: str) -> Path | None:
    """Return the file of a SQLite database; None: it is PostgreSQL."""
    parsed = make_url(url)
    return Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None


def copy_sqlite_file(source: Path, target: Path) -> None:
    """Copy a SQLite file as it is at one moment, also while a server writes to it.

    Raises:
        sqlite3.Error: the source is no database, or the target cannot be written.
    """
    with (
        contextlib.closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True)) as from_file,
        contextlib.closing(sqlite3.connect(target)) as to_file,
    ):
        from_file.backup(to_file)
        to_file.execute("PRAGMA journal_mode = DELETE")  # one file, without a -wal beside it


def copy_to_postgresql(source: Database, target: Database) -> dict[str, int]:
    """Copy all rows in one transaction and let the target's sequences go on after them.

    Returns:
        The number of rows by table.

    Raises:
        NotEmptyError.
        DatabaseUnavailableError.
    """
    counts = {}
    with source.read_only() as reader, target.transaction() as writer:
        writer.exec_driver_sql("SET LOCAL statement_timeout = 0")
        for table in [*tables.metadata.tables.values(), *audit.metadata.tables.values()]:
            if writer.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first():
                raise NotEmptyError(table.name)
            counts[table.name] = 0
            for rows in reader.execute(sa.select(table)).partitions(BATCH_ROWS):
                keys = table.c.keys()
                writer.execute(table.insert(), [dict(zip(keys, row, strict=True)) for row in rows])
                counts[table.name] += len(rows)
            number = table.autoincrement_column
            if number is not None and counts[table.name] and isinstance(number.type, sa.Integer):
                sequence = sa.func.pg_get_serial_sequence(table.name, number.name)
                last = sa.select(sa.func.max(number)).scalar_subquery()
                writer.execute(sa.select(sa.func.setval(sequence, last)))
    return counts
