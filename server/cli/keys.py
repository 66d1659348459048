"""`lipsync keys`: API keys while no server has the database open; a running one has /admin/keys."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from server.api.auth import create_key, create_webhook_secret, rotate_key
from server.api.errors import ApiError
from server.api.keys import CHANGEABLE, CREATABLE, LIMITS, read_key_fields, read_seconds
from server.settings import SettingsError, load_settings
from server.storage.private_files import create_private_files, make_private
from server.store import (
    AlreadyOpenError,
    ApiKey,
    DatabaseUnavailableError,
    KeyExistsError,
    LastAdminKeyError,
    Store,
)

BY = "lipsync keys"
"""Who changes a key, in the audit log."""

DAY_S = 86400.0
LIMIT_HELP = {
    "requests_per_minute": "more are answered with 429 [default: the server's setting]",
    "max_active_jobs": "waiting and running jobs together [default: no limit]",
    "max_jobs_per_day": "jobs submitted in any 24 hours [default: no limit]",
}


def main() -> int:
    arguments = _create_parser().parse_args()
    try:
        settings = load_settings()
        create_private_files()
        make_private(settings.data_dir)
        store = Store(settings.effective_database_url)
    except SettingsError as error:
        return _fail(str(error))
    except DatabaseUnavailableError as error:
        return _fail(f"cannot open the database: {error}")
    except AlreadyOpenError:
        return _fail("the server is running: use its /admin/keys (see docs/operations.md), or stop it first")
    try:
        run: Callable[[Store, argparse.Namespace], int] = arguments.run
        return run(store, arguments)
    except ApiError as error:
        return _fail(error.message)
    except KeyExistsError:
        return _fail("this key exists already: import another one")
    except LastAdminKeyError:
        return _fail("this is the last key with the scope admin that does not end: create another one first")
    finally:
        store.close()


def _create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lipsync keys", description=__doc__)
    actions = parser.add_subparsers(required=True)

    def add_action(run: Callable[[Store, argparse.Namespace], int], name: str, text: str) -> Any:
        # Options that are not given stay away, so that `update` changes nothing else.
        action = actions.add_parser(name, help=text, description=text, argument_default=argparse.SUPPRESS)
        action.set_defaults(run=run)
        return action

    create = add_action(_create_key, "create", "Create a key and print it once.")
    create.add_argument("--tenant", help="tenant whose jobs the key can use [default: default]")
    create.add_argument(
        "--import-key",
        action="store_true",
        help="store the key on standard input, which clients have already",
    )
    update = add_action(_update_key, "update", "Change a key; `none` removes a limit or the end.")
    rotate = add_action(_rotate_key, "rotate", "Create a key in place of another one and print it once.")
    rotate.add_argument(
        "--overlap-hours", type=float, default=24.0, help="how long both are valid [default: 24]"
    )
    secret = add_action(_replace_secret, "rotate-secret", "Replace the secret that signs a key's webhooks.")
    revoke = add_action(_revoke_key, "revoke", "Revoke a key.")
    for action in (update, rotate, secret, revoke):
        action.add_argument("id")
    for action in (create, update):
        action.add_argument("--name", help="name shown in lists")
        action.add_argument("--scopes", help='any of run, read and admin, such as "run read" (the default)')
        action.add_argument("--days", type=_number_or_none, help="days until it expires [default: never]")
        for name, text in LIMIT_HELP.items():
            action.add_argument(f"--{name.replace('_', '-')}", type=_number_or_none, help=text)
    add_action(_list_keys, "list", "List all keys.")
    return parser


def _read_fields(arguments: argparse.Namespace, names: tuple[str, ...], now: float) -> dict[str, Any]:
    fields = {name: value for name, value in vars(arguments).items() if name in names}
    if hasattr(arguments, "days"):
        fields["expires_at"] = None if arguments.days is None else now + arguments.days * DAY_S
    return read_key_fields(fields, names, now)


def _create_key(store: Store, arguments: argparse.Namespace) -> int:
    now = time.time()
    values = _read_fields(arguments, CREATABLE, now)
    if hasattr(arguments, "import_key"):
        values |= read_key_fields({"key": sys.stdin.readline().strip()}, CREATABLE, now)
    text, key = create_key(store, now, **values, by=BY)
    _print(f"{key.id}  {text}")
    return 0


def _update_key(store: Store, arguments: argparse.Namespace) -> int:
    now = time.time()
    values = _read_fields(arguments, CHANGEABLE, now)
    if "scopes" in values:
        values["scopes"] = " ".join(sorted(values["scopes"]))
    key = store.update_key(arguments.id, values, now, BY)
    return _fail_without(arguments.id) if key is None else _print_key(key)


def _rotate_key(store: Store, arguments: argparse.Namespace) -> int:
    overlap_s = read_seconds("--overlap-hours", arguments.overlap_hours * 3600)
    rotated = rotate_key(store, arguments.id, time.time(), overlap_s=overlap_s, by=BY)
    if rotated is None:
        return _fail_without(arguments.id)
    _print(f"{rotated[1].id}  {rotated[0]}")
    return 0


def _replace_secret(store: Store, arguments: argparse.Namespace) -> int:
    values = {"webhook_secret": create_webhook_secret()}
    if store.update_key(arguments.id, values, time.time(), BY) is None:
        return _fail_without(arguments.id)
    _print(values["webhook_secret"])
    return 0


def _list_keys(store: Store, _: argparse.Namespace) -> int:
    for key in store.list_keys():
        _print_key(key)
    return 0


def _print_key(key: ApiKey) -> int:
    state = "active"
    if key.revoked_at:
        state = "revoked"
    elif key.expires_at:
        state = f"{'expired' if key.expires_at <= time.time() else 'expires'} {_format_date(key.expires_at)}"
    last_used = _format_date(key.last_used_at) if key.last_used_at else "never"
    columns = f"{key.id}  {key.tenant:<16} {key.name:<16} {key.scopes:<16}"
    limits = "".join(f", {name} {value}" for name in LIMITS if (value := getattr(key, name)) is not None)
    _print(f"{columns} {state}, last used {last_used}{limits}")
    return 0


def _revoke_key(store: Store, arguments: argparse.Namespace) -> int:
    return 0 if store.revoke_key(arguments.id, time.time(), BY) else _fail_without(arguments.id)


def _fail_without(key_id: str) -> int:
    return _fail(f"no active key has the id {key_id!r}: `lipsync keys list` shows all")


def _number_or_none(text: str) -> float | int | None:
    if text == "none":
        return None
    return int(text) if text.isdecimal() else float(text)


def _format_date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def _print(text: str) -> None:
    print(text)  # noqa: T201  (a command line's answer)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    sys.exit(main())
