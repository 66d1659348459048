"""API keys: authentication, caching, rate limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.api import auth
from server.api.auth import AccessDeniedError, Authenticator, RateLimiter, Scope
from server.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(f"sqlite:///{tmp_path / 'keys.sqlite'}")
    yield opened
    opened.close()


def test_key_is_accepted_until_it_expires_or_is_revoked(store: Store, tmp_path: Path) -> None:
    text, key = auth.create_key(store, 100.0, tenant="studio", name="ci", expires_at=200.0)
    keys = Authenticator(store)
    caller = keys.authenticate(f"Bearer {text}", 150.0)
    assert (caller.tenant, caller.key_id) == ("studio", key.id)
    caller.require(Scope.RUN)
    with pytest.raises(AccessDeniedError) as error:
        caller.require(Scope.ADMIN)
    assert error.value.status == 403
    for header, now in ((f"Bearer {text}", 200.0), (f"Bearer {text}x", 150.0), (text, 150.0), (None, 150.0),
                        ("Basic x", 150.0), ("Bearer ", 150.0)):  # fmt: skip
        with pytest.raises(AccessDeniedError) as error:
            keys.authenticate(header, now)
        assert error.value.status == 401
    assert store.revoke_key(key.id, 160.0)
    assert not store.revoke_key(key.id, 161.0)
    with pytest.raises(AccessDeniedError):
        keys.authenticate(f"Bearer {text}", 170.0)
    store.close()
    assert text.encode() not in b"".join(path.read_bytes() for path in tmp_path.glob("keys.sqlite*"))


def test_key_is_cached_for_a_second_and_its_use_recorded_once_a_minute(store: Store) -> None:
    text, key = auth.create_key(store, 100.0)
    keys = Authenticator(store)
    caller = keys.authenticate(f"Bearer {text}", 150.0)
    store.revoke_key(key.id, 150.1)
    assert keys.authenticate(f"Bearer {text}", 150.9) == caller
    keys.clear_cache()
    with pytest.raises(AccessDeniedError):
        keys.authenticate(f"Bearer {text}", 150.9)
    assert [keys.should_record_use(caller, now) for now in (151.0, 152.0, 210.9, 211.0)] == [
        True,
        False,
        False,
        True,
    ]


def test_rate_limiter_refills_and_separates_callers() -> None:
    rate = RateLimiter(60)
    assert [rate.acquire("a", 0.0).remaining for _ in range(60)] == list(reversed(range(60)))
    empty = rate.acquire("a", 0.0)
    assert (empty.limit, empty.remaining, empty.reset_at) == (60, 0, 60.0)
    assert empty.wait_s == pytest.approx(1.0)
    assert rate.acquire("b", 0.0).wait_s == 0.0
    assert rate.acquire("a", 1.0).wait_s == 0.0
    assert rate.acquire("a", 1.5).wait_s == pytest.approx(0.5)
    assert [rate.acquire("slow", 0.0, 2).wait_s for _ in range(3)] == [0.0, 0.0, pytest.approx(30.0)]
