"""`lipsync keys`: create, list and revoke API keys while no server runs; a running one has /admin/keys."""

from __future__ import annotations

import argparse
import re
import sys
import time
from datetime import UTC, datetime

from server.api.auth import Scope, create_key
from server.settings import SettingsError, load_settings
from server.store import AlreadyOpenError, DatabaseUnavailableError, Store

LIMITS = {
    "requests_per_minute": "more are answered with 429 [default: the server's setting]",
    "max_active_jobs": "waiting and running jobs together [default: no limit]",
    "max_jobs_per_day": "jobs submitted in any 24 hours [default: no limit]",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="lipsync keys", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", help="create a key and print it once")
    create.add_argument(
        "--tenant", default="default", help="tenant whose jobs the key can use [default: default]"
    )
    create.add_argument("--name", default="", help="name shown in lists")
    create.add_argument("--scopes", default="run read", help="any of run, read and admin [default: run read]")
    create.add_argument("--days", type=float, help="days until it expires [default: never]")
    for name, description in LIMITS.items():
        create.add_argument(f"--{name.replace('_', '-')}", type=_positive_int, help=description)
    actions.add_parser("list", help="list all keys")
    revoke = actions.add_parser("revoke", help="revoke a key")
    revoke.add_argument("id")
    arguments = parser.parse_args()
    try:
        settings = load_settings()
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        store = Store(settings.effective_database_url)
    except SettingsError as error:
        return _fail(str(error))
    except DatabaseUnavailableError as error:
        return _fail(f"cannot open the database: {error}")
    except AlreadyOpenError:
        return _fail("the server is running: use its /admin/keys (see docs/operations.md), or stop it first")
    try:
        return {"create": _create_key, "list": _list_keys, "revoke": _revoke_key}[arguments.action](
            store, arguments
        )
    finally:
        store.close()


def _create_key(store: Store, arguments: argparse.Namespace) -> int:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", arguments.tenant):
        return _fail(f"tenant {arguments.tenant!r} is invalid: use 1 to 64 letters, digits, - or _")
    if unknown := set(arguments.scopes.split()) - set(Scope):
        return _fail(f"scope {min(unknown)!r} is unknown: use run, read or admin")
    now = time.time()
    text, key = create_key(
        store,
        now,
        tenant=arguments.tenant,
        name=arguments.name[:100],
        scopes=frozenset(Scope(scope) for scope in arguments.scopes.split()),
        expires_at=None if arguments.days is None else now + arguments.days * 86400,
        **{name: getattr(arguments, name) for name in LIMITS},
    )
    _print(f"{key.id}  {text}")
    return 0


def _list_keys(store: Store, _: argparse.Namespace) -> int:
    for key in store.list_keys():
        state = "active"
        if key.revoked_at:
            state = "revoked"
        elif key.expires_at:
            state = f"expires {_format_date(key.expires_at)}"
        last_used = _format_date(key.last_used_at) if key.last_used_at else "never"
        columns = f"{key.id}  {key.tenant:<16} {key.name:<16} {key.scopes:<16}"
        limits = "".join(f", {name} {value}" for name in LIMITS if (value := getattr(key, name)) is not None)
        _print(f"{columns} {state}, last used {last_used}{limits}")
    return 0


def _revoke_key(store: Store, arguments: argparse.Namespace) -> int:
    if store.revoke_key(arguments.id, time.time()):
        return 0
    return _fail(f"no active key has the id {arguments.id!r}: `lipsync keys list` shows all")


def _positive_int(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _format_date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def _print(text: str) -> None:
    print(text)  # noqa: T201  (a command line's answer)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    sys.exit(main())
