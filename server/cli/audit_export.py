"""`lipsync audit`: export the audit log while no server runs; a running server has /admin/audit."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from server.settings import SettingsError, load_settings
from server.store import AlreadyOpenError, DatabaseUnavailableError, Store
from server.store.audit import AuditLog


def main(argv: list[str] | None = None) -> int:
    """Run the command; `argv` replaces the arguments of the process. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="lipsync audit", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    export = actions.add_parser("export", help="print the log, one JSON object per line")
    export.add_argument(
        "--since", type=_parse_time, help="first time, such as 2026-11-01 or 2026-11-01T08:00"
    )
    export.add_argument("--until", type=_parse_time, help="time before which it ends; both are UTC")
    export.add_argument("--output", "-o", type=Path, help="file to write; default: standard output")
    actions.add_parser("verify", help="check that no entry was changed or deleted")
    arguments = parser.parse_args(argv)
    try:
        store = Store(load_settings().effective_database_url)
    except SettingsError as error:
        return _fail(str(error))
    except DatabaseUnavailableError as error:
        return _fail(f"cannot open the database: {error}")
    except AlreadyOpenError:
        return _fail("the server is running: use its /admin/audit (see docs/trust.md), or stop it first")
    try:
        while store.audit.seal(lambda entries: None):
            pass
        report = store.audit.verify()
        if arguments.action == "verify":
            if report.problem is None:
                _print(f"{report.intact} entries are intact; the last hash is {report.last_hash}")
        elif arguments.output is None:
            _write(store.audit, arguments.since, arguments.until, sys.stdout)
        else:
            with arguments.output.open("w", encoding="utf-8") as file:
                _write(store.audit, arguments.since, arguments.until, file)
    except OSError as error:
        return _fail(f"cannot write {arguments.output or 'standard output'}: {error.strerror}")
    finally:
        store.close()
    if report.problem is None:
        return 0
    problem = f"{report.problem} after {report.intact} intact entries: restore a backup"
    print(f"error: the audit log was tampered with: {problem}", file=sys.stderr)  # noqa: T201
    return 1


def _write(log: AuditLog, since: float | None, until: float | None, file: IO[str]) -> None:
    after = 0
    while entries := log.page(after=after, since=since, until=until):
        file.writelines(f"{entry.to_json()}\n" for entry in entries)
        after = entries[-1].id


def _parse_time(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def _print(text: str) -> None:
    print(text)  # noqa: T201  (a command line's answer)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)  # noqa: T201  (a command line's answer)
    return 2


if __name__ == "__main__":
    sys.exit(main())
