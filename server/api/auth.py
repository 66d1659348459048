"""API keys: authentication, scopes, rate limits.

Keys are random, so an unsalted SHA-256 is as safe as a slow hash, and the time of a look-up by hash leaks
nothing. This module depends on no HTTP framework and on no dialect. The time is an argument.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import string
from dataclasses import dataclass, replace
from enum import StrEnum

from server.store import ApiKey, Store

LAST_USED_INTERVAL_S = 60.0
"""The last use of a key is stored at most this often."""

ADMIN_READ_INTERVAL_S = 600.0
"""An administrator's read is written to the audit log at most this often: the page polls."""

MAX_LAST_READS = 10_000

MAX_ADDRESSES = 100_000

KEY_CACHE_S = 1.0
"""A key is read from the database at most this often, because hundreds of clients poll."""

SECRET_ALPHABET, SECRET_LENGTH = string.ascii_letters + string.digits, 40
"""238 bits of letters and digits: no shell, URL or double click splits the key."""


class Scope(StrEnum):
    RUN = "run"  # submit, upload, cancel, delete
    READ = "read"  # read predictions, models, account
    ADMIN = "admin"  # manage keys and the server
    METRICS = "metrics"  # read /metrics where it needs a key


class AccessDeniedError(Exception):
    """A missing or invalid key, or a missing scope.

    Attributes:
        status: 401 or 403.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated owner of a key."""

    tenant: str
    key_id: str
    scopes: frozenset[Scope]
    requests_per_minute: int | None = None

    def require(self, scope: Scope) -> None:
        """Check a scope.

        Raises:
            AccessDeniedError: 403, the key lacks the scope.
        """
        if scope not in self.scopes:
            raise AccessDeniedError(403, f"This key lacks the scope {scope}: use a key that has it.")


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
    text: str | None = None,
    by: str | None = None,
) -> tuple[str, ApiKey]:
    """Create and store a key.

    Args:
        text: an existing key that clients have already; None: a new one.
        by: who creates it, for the audit log.

    Returns:
        The key's text, `sk_<id>_<secret>` if it is new, of which only a hash is stored, and the stored row.

    Raises:
        KeyExistsError: `text` is stored already.
    """
    text, key = _make_key(
        ApiKey(
            id="",
            tenant=tenant,
            name=name,
            digest="",
            scopes=" ".join(sorted(scopes)),
            webhook_secret=create_webhook_secret(),
            created_at=now,
            expires_at=expires_at,
            requests_per_minute=requests_per_minute,
            max_active_jobs=max_active_jobs,
            max_jobs_per_day=max_jobs_per_day,
        ),
        text,
    )
    store.add_key(key, by)
    return text, key


def rotate_key(
    store: Store, key_id: str, now: float, *, overlap_s: float, by: str | None = None
) -> tuple[str, ApiKey] | None:
    """Create a key with the rights, limits, lifetime and webhook secret of an active one, and end that one.

    Args:
        overlap_s: how long both are valid.

    Returns:
        As `create_key`; None: there is no such active key.
    """
    old = store.get_key(key_id)
    if old is None:
        return None
    expires_at = None if old.expires_at is None else now + old.expires_at - old.created_at
    text, key = _make_key(replace(old, created_at=now, expires_at=expires_at, last_used_at=None))
    return (text, key) if store.replace_key(key_id, key, now + overlap_s, by) else None


def create_webhook_secret() -> str:
    """Return a new secret that signs the webhooks of a key."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def _make_key(template: ApiKey, text: str | None = None) -> tuple[str, ApiKey]:
    key_id = secrets.token_hex(8)
    if text is None:
        text = f"sk_{key_id}_{''.join(secrets.choice(SECRET_ALPHABET) for _ in range(SECRET_LENGTH))}"
    return text, replace(template, id=key_id, digest=_hash_key(text))


class WrongKeyLimiter:
    """Counts requests with wrong keys by client address.

    Args:
        limit: wrong keys in a row after which an address has to wait.
        wait_s: how long, from its last wrong key.
    """

    def __init__(self, limit: int = 60, wait_s: float = 60.0) -> None:
        self._limit, self._wait_s = limit, wait_s
        self._failures: dict[str, tuple[int, float]] = {}  # by address: (count, time of the last)

    def wait_s(self, address: str, now: float) -> float:
        """Return how long an address has to wait; 0: it does not."""
        count, last_at = self._failures.get(address, (0, 0.0))
        return max(0.0, last_at + self._wait_s - now) if count >= self._limit else 0.0

    def record(self, address: str, now: float, *, is_wrong: bool) -> None:
        """Count a wrong key; a right one, or a pause, ends the row."""
        if not is_wrong:
            self._failures.pop(address, None)
            return
        count, last_at = self._failures.get(address, (0, now))
        if len(self._failures) >= MAX_ADDRESSES:
            self._failures.clear()
        self._failures[address] = (1 if now - last_at >= self._wait_s else count + 1, now)


class Authenticator:
    """Finds the owner of a key; keeps keys in memory for `KEY_CACHE_S`.

    A key that another process revokes works for that long.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.wrong_keys = WrongKeyLimiter()
        self._cache: dict[str, tuple[ApiKey, float]] = {}  # by hash: (key, read at)
        self._last_recorded: dict[str, float] = {}  # by key id
        self._last_reads: dict[tuple[str, str], float] = {}  # by key id and subject

    def authenticate(self, authorization: str | None, now: float) -> Caller:
        """Return the owner of the key in an Authorization header.

        Raises:
            AccessDeniedError: 401; the sentence does not reveal whether the key ever existed.
        """
        scheme, _, text = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not text.strip():
            raise AccessDeniedError(401, "Send your API key as the header `Authorization: Bearer <key>`.")
        key = self._find_key(_hash_key(text.strip()), now)
        is_expired = key is not None and key.expires_at is not None and key.expires_at <= now
        if key is None or key.revoked_at is not None or is_expired:
            raise AccessDeniedError(
                401, "The API key is not valid: check it, or ask the operator for a new one."
            )
        scopes = frozenset(Scope(name) for name in key.scopes.split())
        return Caller(key.tenant, key.id, scopes, key.requests_per_minute)

    def should_record_use(self, caller: Caller, now: float) -> bool:
        """Return whether the use of a key is to be stored now, and assume that it is."""
        if now - self._last_recorded.get(caller.key_id, 0.0) < LAST_USED_INTERVAL_S:
            return False
        self._last_recorded[caller.key_id] = now
        return True

    def should_record_read(self, caller: Caller, subject: str, now: float) -> bool:
        """Return whether an administrator's read is to be recorded now, and assume that it is."""
        read = (caller.key_id, subject)
        if now - self._last_reads.get(read, 0.0) < ADMIN_READ_INTERVAL_S:
            return False
        if len(self._last_reads) >= MAX_LAST_READS:
            self._last_reads.clear()
        self._last_reads[read] = now
        return True

    def clear_cache(self) -> None:
        """Read every key again at its next use."""
        self._cache.clear()

    def _find_key(self, digest: str, now: float) -> ApiKey | None:
        key, read_at = self._cache.get(digest, (None, 0.0))
        if key is None or not 0 <= now - read_at < KEY_CACHE_S:
            key = self._store.get_key_by_digest(digest)
            if key is None:  # unknown keys are not cached: a client could invent millions of them
                return None
            self._cache[digest] = (key, now)
        return key


def _hash_key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A key's rate limit after a request.

    Attributes:
        limit: requests per minute.
        remaining: requests that can be sent at once.
        reset_at: when all can be sent at once again, in seconds since 1970.
        wait_s: 0 where the request is accepted, else the seconds until one is.
    """

    limit: int
    remaining: int
    reset_at: float
    wait_s: float


class RateLimiter:
    """A token bucket per key, which refills evenly and holds the requests of one minute.

    Args:
        requests_per_minute: limit of keys that have none of their own.
    """

    def __init__(self, requests_per_minute: int) -> None:
        self._requests_per_minute = requests_per_minute
        self._buckets: dict[str, tuple[float, float]] = {}  # by key id: (tokens, refilled at)

    def acquire(self, key_id: str, now: float, requests_per_minute: int | None = None) -> RateLimit:
        """Take a token, if there is one."""
        size = requests_per_minute or self._requests_per_minute
        tokens, refilled_at = self._buckets.get(key_id, (float(size), now))
        tokens = min(size, tokens + (now - refilled_at) * size / 60)
        wait_s = 0.0 if tokens >= 1 else (1 - tokens) * 60 / size
        if wait_s == 0:
            tokens -= 1
        self._buckets[key_id] = (tokens, now)
        return RateLimit(size, int(tokens), now + (size - tokens) * 60 / size, wait_s)
