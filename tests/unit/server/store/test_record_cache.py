"""What is kept of readings: never what a change has overtaken."""

from __future__ import annotations

from server.store.record_cache import Recent


def test_a_reading_is_kept_until_it_changes() -> None:
    rows = {"a": "first"}
    asked: list[str] = []

    def read(name: str) -> str | None:
        asked.append(name)
        return rows.get(name)

    recent = Recent[str](8)
    assert [recent.get("a", read), recent.get("a", read)] == ["first", "first"]
    assert asked == ["a"]
    rows["a"] = "second"
    recent.changed(["b"])
    assert recent.get("a", read) == "first"
    recent.changed(["a"])
    assert recent.get("a", read) == "second"
    assert (recent.get("c", read), recent.get("c", read)) == (None, None)
    assert asked == ["a", "a", "c", "c"]


def test_a_reading_that_a_change_overtakes_is_not_kept() -> None:
    recent = Recent[str](8)

    def overtaken(name: str) -> str:
        recent.changed([name])
        return "before the change"

    assert recent.get("a", overtaken) == "before the change"
    assert recent.get("a", lambda name: "after it") == "after it"


def test_the_ones_asked_for_longest_ago_go_first() -> None:
    recent = Recent[str](2)
    for name in ("a", "b", "a", "c"):
        recent.get(name, str.upper)
    assert recent.get("a", lambda name: "read again") == "A"
    assert recent.get("b", lambda name: "read again") == "read again"
