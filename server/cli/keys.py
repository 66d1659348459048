"""`lipsync keys`: make, list and revoke API keys while no server runs; a running one has /admin/keys."""

from __future__ import annotations

import argparse
import re
import sys
import time
from datetime import UTC, datetime

from server.api.auth import Scope, create_key
from server.settings import SettingsError, load_settings
from server.store import AlreadyOpenError, DatabaseAwayError, Store

LIMITS = {
    "requests_per_minute": "more are answered with 429 [the server's setting]",
    "max_active_jobs": "how many may wait or run at once [no limit]",
    "max_jobs_per_day": "how many may be submitted in any 24 hours [no limit]",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="lipsync keys", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", help="make a key; it is shown once")
    create.add_argument("--tenant", default="default", help="whose jobs it sees")
    create.add_argument("--name", default="", help="to tell keys apart")
    create.add_argument("--scopes", default="run read", help="any of: run read admin")
    create.add_argument("--days", type=float, help="how long it works; for ever unless given")
    for name, what in LIMITS.items():
        create.add_argument(f"--{name.replace('_', '-')}", type=_at_least_one, help=what)
    actions.add_parser("list", help="what keys there are")
    revoke = actions.add_parser("revoke", help="end a key")
    revoke.add_argument("id")
    arguments = parser.parse_args()
    try:
        settings = load_settings()
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        store = Store(settings.database)
    except SettingsError as error:
        return _stop(str(error))
    except DatabaseAwayError as error:
        return _stop(f"the database cannot be opened: {error}")
    except AlreadyOpenError:
        return _stop("the server is running: use its /admin/keys (see docs/operations.md), or stop it first")
    try:
        return {"create": _create, "list": _list, "revoke": _revoke}[arguments.action](store, arguments)
    finally:
        store.close()


def _create(store: Store, arguments: argparse.Namespace) -> int:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", arguments.tenant):
        return _stop("a tenant is 1 to 64 letters, digits, - or _")
    if unknown := set(arguments.scopes.split()) - set(Scope):
        return _stop(f"there is no scope {min(unknown)!r}: use run, read, admin")
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
    _say(f"{key.id}  {text}")
    return 0


def _list(store: Store, _: argparse.Namespace) -> int:
    for key in store.all_keys():
        state = (
            "revoked" if key.revoked_at else f"until {_day(key.expires_at)}" if key.expires_at else "works"
        )
        used = _day(key.last_used_at) if key.last_used_at else "never"
        limits = "".join(f", {name} {value}" for name in LIMITS if (value := getattr(key, name)) is not None)
        _say(f"{key.id}  {key.tenant:<16} {key.name:<16} {key.scopes:<16} {state}, last used {used}{limits}")
    return 0


def _revoke(store: Store, arguments: argparse.Namespace) -> int:
    return (
        0
        if store.revoke_key(arguments.id, time.time())
        else _stop(f"no working key is called {arguments.id!r}")
    )


def _at_least_one(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def _say(text: str) -> None:
    print(text)  # noqa: T201  (a command line's answer)


def _stop(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    sys.exit(main())
