"""The record cache never returns a value that a change has overtaken."""

from __future__ import annotations

from server.store.jobs import RecordCache


def test_value_is_cached_until_it_is_invalidated() -> None:
    rows = {"a": "first"}
    reads: list[str] = []

    def read(name: str) -> str | None:
        reads.append(name)
        return rows.get(name)

    cache = RecordCache[str](80, len)
    assert [cache.get("a", read), cache.get("a", read)] == ["first", "first"]
    assert reads == ["a"]
    rows["a"] = "second"
    cache.invalidate(["b"])
    assert cache.get("a", read) == "first"
    cache.invalidate(["a"])
    assert cache.get("a", read) == "second"
    assert (cache.get("c", read), cache.get("c", read)) == (None, None)
    assert reads == ["a", "a", "c", "c"]


def test_read_that_a_change_overtakes_is_not_cached() -> None:
    cache = RecordCache[str](80, len)

    def overtaken(name: str) -> str:
        cache.invalidate([name])
        return "before the change"

    assert cache.get("a", overtaken) == "before the change"
    assert cache.get("a", lambda name: "after it") == "after it"


def test_least_recently_used_entry_is_dropped_first() -> None:
    cache = RecordCache[str](2, len)
    for name in ("a", "b", "a", "c"):
        cache.get(name, str.upper)
    assert cache.get("a", lambda name: "read again") == "A"
    assert cache.get("b", lambda name: "read again") == "read again"
