"""`lipsync backup`, `restore` and `db copy`: all that a server stores, in another folder or database."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sqlite3
import sys
import time
from importlib.metadata import version
from pathlib import Path

from server.settings import Settings, SettingsError, load_settings
from server.storage.private_files import create_private_files, make_private
from server.store import AlreadyOpenError, DatabaseUnavailableError, Store
from server.store.copies import NotEmptyError, copy_sqlite_file, copy_to_postgresql, sqlite_file

DATABASE = "lipsync.sqlite"
MANIFEST = "backup.json"
"""Written last: a folder without it is no complete backup."""


class BackupError(Exception):
    """The sentence has the remedy."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="lipsync", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    backup = commands.add_parser("backup", help="copy database, files and keys; the server may run")
    restore = commands.add_parser("restore", help="copy a backup into a data_dir without a database")
    for command in (backup, restore):
        command.add_argument("folder", type=Path, metavar="DIR")
    copy = commands.add_parser("db", help="copy: move a SQLite database to PostgreSQL")
    copy.add_argument("action", choices=["copy"])
    copy.add_argument("--to", help="postgresql://USER:PASSWORD@HOST/DATABASE [default: database_url]")
    arguments = parser.parse_args()
    try:
        settings = load_settings()
        create_private_files()
        if arguments.command == "db":
            text = copy_database(settings, arguments.to)
        else:
            run = back_up if arguments.command == "backup" else restore_backup
            text = run(settings, arguments.folder)
    except (BackupError, SettingsError) as error:
        return _fail(str(error))
    except DatabaseUnavailableError as error:
        return _fail(f"cannot open the database: {error}")
    except AlreadyOpenError:
        return _fail("the server is running: stop it first")
    except (OSError, sqlite3.Error) as error:
        return _fail(f"{error}: nothing was changed at the source. Mend the cause and start again")
    print(text)  # noqa: T201  (a command line's answer)
    return 0


def back_up(settings: Settings, folder: Path) -> str:
    """Copy database, blobs and keys into an empty folder.

    The database comes first. So every blob that it names was stored before the blobs are copied.

    Raises:
        BackupError: the folder has files, or the database is not a SQLite file.
    """
    database = _require_sqlite(settings, "back it up with pg_dump")
    if not database.exists():
        raise BackupError(f"{database} does not exist: name the server's data folder in LIPSYNC_DATA_DIR")
    make_private(folder)
    if any(folder.iterdir()):
        raise BackupError(f"{folder} is not empty: name a new folder")
    copy_sqlite_file(database, folder / DATABASE)
    for source, name in _files(settings):
        if source.is_dir():
            _copy_folder(source, folder / name)
        elif source.exists():
            _copy_file(source, folder / name)
    facts = {"version": version("lipsync-engine"), "at": time.time()}
    (folder / MANIFEST).write_text(json.dumps(facts))
    blobs = isinstance(settings.blob_location, Path)
    return f"backup: {folder}" + ("" if blobs else f"   not in it: {settings.blob_location}")


def restore_backup(settings: Settings, folder: Path) -> str:
    """Copy a backup to where this server's settings expect its files; the database comes last.

    Raises:
        BackupError: it is no complete backup, or there is a database already.
    """
    if not (folder / MANIFEST).exists():
        raise BackupError(
            f"{folder} has no {MANIFEST}: it is no backup, or one that was cut off. Name another"
        )
    database = _require_sqlite(settings, "restore it with pg_restore")
    for suffix in ("", "-wal", "-shm"):  # SQLite would apply a log that lies beside the restored file
        if (file := database.with_name(database.name + suffix)).exists():
            raise BackupError(
                f"{file} exists: name another data folder in LIPSYNC_DATA_DIR, or move the whole folder away"
            )
    make_private(settings.data_dir)
    for target, name in _files(settings):
        if (folder / name).is_dir():
            _copy_folder(folder / name, target)
        elif (folder / name).exists():
            _copy_file(folder / name, target)
    part = database.with_name(f"{database.name}.part")
    shutil.copyfile(folder / DATABASE, part)
    part.replace(database)
    return f"restored: {settings.data_dir}"


def copy_database(settings: Settings, target_url: str | None) -> str:
    """Copy the SQLite file of `data_dir` to an empty PostgreSQL database.

    Raises:
        BackupError: there is no file, or no PostgreSQL database, or it has rows.
    """
    database = settings.data_dir / DATABASE
    url = (target_url or settings.database_url or "").replace("postgresql://", "postgresql+psycopg://", 1)
    if not url.startswith("postgresql+psycopg://"):
        raise BackupError("no database to copy to: write --to postgresql://USER:PASSWORD@HOST/DATABASE")
    if not database.exists():
        raise BackupError(f"{database} does not exist: name the server's data folder in LIPSYNC_DATA_DIR")
    with (
        contextlib.closing(Store(f"sqlite:///{database}")) as source,
        contextlib.closing(Store(url)) as target,
    ):
        try:
            counts = copy_to_postgresql(source, target)
        except NotEmptyError as error:
            raise BackupError(f"the table {error} has rows already: copy to an empty database") from None
    rows = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    return f"copied: {rows}   Now set LIPSYNC_DATABASE_URL to it and start the server."


def _files(settings: Settings) -> list[tuple[Path, str]]:
    """Where this server has its files and folders, and their names in a backup."""
    credentials = Path(settings.signing_environment["LIPSYNC_CREDENTIALS_DIR"])
    files = [(settings.link_secret_path, "signing.key"), (credentials, "credentials")]
    blobs = settings.blob_location
    return [*files, (blobs, "blobs")] if isinstance(blobs, Path) else files


def _require_sqlite(settings: Settings, remedy: str) -> Path:
    path = sqlite_file(settings.effective_database_url)
    if path is None:
        raise BackupError(f"the database is PostgreSQL: {remedy}, and copy data_dir (see docs/deploy.md)")
    return path


def _copy_folder(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file() and "#" not in path.name:  # the storage is still writing such a file
            with contextlib.suppress(FileNotFoundError):  # the server has deleted it meanwhile
                _copy_file(path, target / path.relative_to(source), link=source.name == "blobs")


def _copy_file(source: Path, target: Path, *, link: bool = False) -> None:
    """Copy a file with its times; blobs, which are never written to again, share their bytes if possible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if link:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    sys.exit(main())
