"""API keys."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from server.store.database import Database
from server.store.tables import KEYS

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


class KeyStore(Database):
    """Part of `Store`: API keys."""

    def add_key(self, key: ApiKey) -> None:
        with self.transaction() as connection:
            values = {name: getattr(key, name) for name in key.__dataclass_fields__}
            connection.execute(sa.insert(KEYS).values(**values))

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

    def revoke_key(self, key_id: str, now: float) -> bool:
        """Revoke a key; returns whether there was one that was not revoked yet."""
        active = (KEYS.c.id == key_id) & KEYS.c.revoked_at.is_(None)
        with self.transaction() as connection:
            return connection.execute(sa.update(KEYS).where(active).values(revoked_at=now)).rowcount == 1

    def record_key_use(self, key_id: str, now: float) -> None:
        with self.transaction() as connection:
            connection.execute(sa.update(KEYS).where(KEYS.c.id == key_id).values(last_used_at=now))
