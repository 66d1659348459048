"""Who is calling, and links that need no key: API keys, scopes, request rates, signed names.

Keys are random, so their SHA-256 is as good as a slow hash and a look-up by it tells nothing by its time. The
module knows no HTTP framework and no dialect; it reads no clock of its own.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import string
from dataclasses import dataclass
from enum import StrEnum

from server.store import ApiKey, Store

LAST_USED_EVERY_S = 60.0
"""A key's last use is written down at most this often."""

BELIEVED_FOR_S = 1.0
"""A key is looked up at most this often: clients poll, hundreds of them."""

SECRET_ALPHABET, SECRET_LENGTH = string.ascii_letters + string.digits, 40
"""238 bits, and nothing that a shell, a URL or a double click would break."""


class Scope(StrEnum):
    RUN = "run"  # submit, upload, cancel, delete
    READ = "read"  # look at predictions, models, account
    ADMIN = "admin"  # keys and the server itself


class AccessDeniedError(Exception):
    """Not let in.

    Attributes:
        status: 401 or 403.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, proved."""

    tenant: str
    key_id: str
    scopes: frozenset[Scope]
    requests_per_minute: int | None = None

    def require(self, scope: Scope) -> None:
        if scope not in self.scopes:
            raise AccessDeniedError(403, f"This key may not do that: it lacks the scope {scope}.")


def create_key(
    store: Store,
    now: float,
    *,
    tenant: str = "default",
    name: str = "",
    scopes: frozenset[Scope] = frozenset({Scope.RUN, Scope.READ}),
    expires_at: float | None = None,
    requests_per_minute: int | None = None,
    max_active_jobs: int | None = None,
    max_jobs_per_day: int | None = None,
) -> tuple[str, ApiKey]:
    """A new key: its text `sk_<id>_<secret>`, which nobody can see again, and what is stored."""
    key_id = secrets.token_hex(8)
    text = f"sk_{key_id}_{''.join(secrets.choice(SECRET_ALPHABET) for _ in range(SECRET_LENGTH))}"
    key = ApiKey(
        id=key_id,
        tenant=tenant,
        name=name,
        digest=_digest(text),
        scopes=" ".join(sorted(scopes)),
        webhook_secret="whsec_" + base64.b64encode(secrets.token_bytes(32)).decode(),
        created_at=now,
        expires_at=expires_at,
        requests_per_minute=requests_per_minute,
        max_active_jobs=max_active_jobs,
        max_jobs_per_day=max_jobs_per_day,
    )
    store.add_key(key)
    return text, key


class Authenticator:
    """The keys as a running server knows them: one that was looked up is believed for a moment.

    A key that another process revokes works for that moment longer.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, tuple[ApiKey, float]] = {}
        self._noted: dict[str, float] = {}

    def caller(self, authorization: str | None, now: float) -> Caller:
        """Who is behind an Authorization header.

        Raises:
            AccessDeniedError: 401 with a sentence that does not tell whether such a key ever existed.
        """
        scheme, _, text = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not text.strip():
            raise AccessDeniedError(401, "Send your API key as the header `Authorization: Bearer <key>`.")
        key = self._key(_digest(text.strip()), now)
        ended = key is not None and key.expires_at is not None and key.expires_at <= now
        if key is None or key.revoked_at is not None or ended:
            raise AccessDeniedError(
                401, "The API key is not valid: check it, or ask the operator for a new one."
            )
        scopes = frozenset(Scope(name) for name in key.scopes.split())
        return Caller(key.tenant, key.id, scopes, key.requests_per_minute)

    def should_note(self, caller: Caller, now: float) -> bool:
        """Whether a key's use is to be written down; the answer counts as done."""
        if now - self._noted.get(caller.key_id, 0.0) < LAST_USED_EVERY_S:
            return False
        self._noted[caller.key_id] = now
        return True

    def forget(self) -> None:
        """Look all keys up again."""
        self._known.clear()

    def _key(self, digest: str, now: float) -> ApiKey | None:
        key, since = self._known.get(digest, (None, 0.0))
        if key is None or not 0 <= now - since < BELIEVED_FOR_S:
            key = self._store.key_by_digest(digest)
            if key is None:  # nothing is kept of keys that do not exist: anybody can make those up
                return None
            self._known[digest] = (key, now)
        return key


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class RateLimiter:
    """A bucket of tokens per key that fills evenly; a minute's worth may be used at once.

    Args:
        per_minute: requests of a key that has no rate of its own.
    """

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait_s(self, key_id: str, now: float, per_minute: int | None = None) -> float:
        """Take one token; 0 where there was one, else how long until the next."""
        size = float(per_minute or self._per_minute)
        tokens, then = self._buckets.get(key_id, (size, now))
        tokens = min(size, tokens + (now - then) * size / 60)
        if tokens < 1:
            self._buckets[key_id] = (tokens, now)
            return (1 - tokens) * 60 / size
        self._buckets[key_id] = (tokens - 1, now)
        return 0.0
