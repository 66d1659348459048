"""Keys and upload links in both databases: what only one of two at once may do."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from server.api.auth import Scope, create_key, rotate_key
from server.store import KeyExistsError, LastAdminKeyError, Store


def at_once(*actions: Callable[[], object]) -> list[object]:
    """Run actions at the same moment; their results or exceptions."""
    barrier = Barrier(len(actions))

    def run(action: Callable[[], object]) -> object:
        barrier.wait(10)
        try:
            return action()
        except LastAdminKeyError as error:
            return error

    with ThreadPoolExecutor(len(actions)) as threads:
        return list(threads.map(run, actions))


def test_two_administrators_cannot_revoke_each_other(store: Store) -> None:
    now = time.time()
    ids = [create_key(store, now, scopes=frozenset(Scope))[1].id for _ in range(2)]
    create_key(store, now, scopes=frozenset(Scope), expires_at=now - 1)  # not one any more
    first, second = at_once(*(lambda key_id=key_id: store.revoke_key(key_id, now) for key_id in ids))
    assert sorted([first is True, second is True]) == [False, True]
    assert sum(key.revoked_at is None and key.expires_at is None for key in store.list_keys()) == 1


def test_upload_link_is_claimed_by_one(store: Store) -> None:
    claims = at_once(*(lambda: store.claim_upload("uploads/t/a.mp4", 1.0) for _ in range(4)))
    assert sorted(map(bool, claims)) == [False, False, False, True]
    store.release_upload("uploads/t/a.mp4")
    assert store.claim_upload("uploads/t/a.mp4", 2.0)


def test_imported_key_is_stored_once_and_rotation_ends_the_old_one(store: Store) -> None:
    text, key = create_key(store, 100.0, text="wsk_" + "x" * 40, expires_at=500.0)
    assert text == "wsk_" + "x" * 40
    with pytest.raises(KeyExistsError):
        create_key(store, 100.0, text=text)
    rotated = rotate_key(store, key.id, 200.0, overlap_s=1000.0)
    assert rotated is not None
    old = store.get_key(key.id)
    assert old is not None
    assert (old.expires_at, rotated[1].expires_at) == (500.0, 600.0)  # it ends no later than before
    assert rotate_key(store, key.id, 501.0, overlap_s=1.0) is None
