"""API keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from server.store import audit
from server.store.database import Database
from server.store.tables import KEYS

ADMIN = "admin"
"""The scope without which nobody can manage keys."""

SECRET_COLUMNS = ("digest", "webhook_secret")

# Executed hundreds of times a second for polling clients, so it is built once.
_KEY_BY_DIGEST = sa.select(KEYS).where(KEYS.c.digest == sa.bindparam("key_digest"))


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key; the key itself is not stored, only its digest.

    Attributes:
        id: public name of the key.
        scopes: space-separated, see `auth`.
        webhook_secret: signs this key's webhooks.
        requests_per_minute: None: the server's setting.
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


class KeyExistsError(Exception):
    """The same key is stored already."""


class LastAdminKeyError(Exception):
    """Without this key nobody could manage keys any more."""


class KeyStore(Database):
    """Part of `Store`: API keys. `by` is who changes a key, for the audit log; None: no entry is written."""

    def add_key(self, key: ApiKey, by: str | None = None) -> None:
        """Store a key.

        Raises:
            KeyExistsError.
        """
        try:
            with self.transaction() as connection:
                _insert(connection, key, by)
        except sa.exc.IntegrityError:
            raise KeyExistsError from None

    def replace_key(self, old_id: str, new_key: ApiKey, old_expires_at: float, by: str | None = None) -> bool:
        """Store a key that takes the place of an active one; returns whether there was that one.

        Args:
            old_expires_at: when the old key ends at the latest.
        """
        now = new_key.created_at
        with self.transaction() as connection:
            old = connection.execute(
                sa.select(KEYS).where(_is_active(now), KEYS.c.id == old_id)
            ).one_or_none()
            if old is None:
                return False
            expires_at = min(old_expires_at, old.expires_at or old_expires_at)
            _insert(connection, new_key, by, {"replaces": old_id})
            _update(connection, ApiKey(**old._mapping), {"expires_at": expires_at}, now, by)
        return True

    def update_key(
        self, key_id: str, values: Mapping[str, Any], now: float, by: str | None = None
    ) -> ApiKey | None:
        """Change columns of a key that is not revoked; None where there is none.

        Raises:
            LastAdminKeyError: the last key of an administrator would lose the scope, or expire.
        """
        with self.transaction() as connection:
            row = connection.execute(
                sa.select(KEYS).where(KEYS.c.id == key_id, KEYS.c.revoked_at.is_(None))
            ).one_or_none()
            if row is None:
                return None
            if values.get("expires_at") is not None or ADMIN not in values.get("scopes", ADMIN).split():
                _require_other_admin(connection, row, now)
            return _update(connection, ApiKey(**row._mapping), values, now, by)

    def get_key_by_digest(self, digest: str) -> ApiKey | None:
        with self.read_only() as connection:
            row = connection.execute(_KEY_BY_DIGEST, {"key_digest": digest}).one_or_none()
        return None if row is None else ApiKey(**row._mapping)

    def get_key(self, key_id: str) -> ApiKey | None:
        with self.read_only() as connection:
            row = connection.execute(sa.select(KEYS).where(KEYS.c.id == key_id)).one_or_none()
        return None if row is None else ApiKey(**row._mapping)

    def list_keys(self) -> list[ApiKey]:
        """Read all keys, oldest first."""
        with self.read_only() as connection:
            rows = connection.execute(sa.select(KEYS).order_by(KEYS.c.created_at)).all()
        return [ApiKey(**row._mapping) for row in rows]

    def revoke_key(self, key_id: str, now: float, by: str | None = None) -> bool:
        """Revoke a key; returns whether there was one that was not revoked yet.

        Raises:
            LastAdminKeyError.
        """
        with self.transaction() as connection:
            row = connection.execute(
                sa.select(KEYS).where(KEYS.c.id == key_id, KEYS.c.revoked_at.is_(None))
            ).one_or_none()
            if row is None:
                return False
            _require_other_admin(connection, row, now)
            connection.execute(sa.update(KEYS).where(KEYS.c.id == key_id).values(revoked_at=now))
            if by is not None:
                audit.key_event(connection, audit.KEY_REVOKED, row.tenant, key_id, now, {"by": by})
        return True

    def record_key_use(self, key_id: str, now: float) -> None:
        with self.transaction() as connection:
            connection.execute(sa.update(KEYS).where(KEYS.c.id == key_id).values(last_used_at=now))


def _is_active(now: float) -> sa.ColumnElement[bool]:
    is_unexpired = KEYS.c.expires_at.is_(None) | (KEYS.c.expires_at > now)
    return KEYS.c.revoked_at.is_(None) & is_unexpired


def _require_other_admin(connection: Connection, row: sa.Row[Any], now: float) -> None:
    """Check that an active administrator's key is not the last one.

    The rows are locked, so that two keys cannot revoke each other at once.
    """
    is_admin = KEYS.c.scopes.contains(ADMIN)
    admins = sa.select(KEYS.c.id).where(_is_active(now), is_admin).order_by(KEYS.c.id).with_for_update()
    if connection.execute(admins).scalars().all() == [row.id]:
        raise LastAdminKeyError


def _insert(
    connection: Connection, key: ApiKey, by: str | None, facts: Mapping[str, Any] | None = None
) -> None:
    values = {name: getattr(key, name) for name in key.__dataclass_fields__}
    connection.execute(sa.insert(KEYS).values(**values))
    if by is not None:
        facts = {"by": by, "name": key.name, "scopes": key.scopes, **(facts or {})}
        audit.key_event(connection, audit.KEY_CREATED, key.tenant, key.id, key.created_at, facts)


def _update(
    connection: Connection, key: ApiKey, values: Mapping[str, Any], now: float, by: str | None
) -> ApiKey:
    if values:
        connection.execute(sa.update(KEYS).where(KEYS.c.id == key.id).values(**values))
    if by is not None:
        shown = {name: "changed" if name in SECRET_COLUMNS else value for name, value in values.items()}
        audit.key_event(connection, audit.KEY_CHANGED, key.tenant, key.id, now, {"by": by, **shown})
    return dataclasses.replace(key, **values)
