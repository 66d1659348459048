"""Runs, drained generators, caches of limited size."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipsync_engine.utils import drain, drop_oldest, file_sha256, runs_of


@given(flags=st.lists(st.booleans(), max_size=20), data=st.data())
def test_runs_cover_all_true_flags_and_end_at_breaks(flags: list[bool], data: st.DataObject) -> None:
    n_breaks = max(0, len(flags) - 1)
    breaks = data.draw(st.lists(st.booleans(), min_size=n_breaks, max_size=n_breaks))
    runs = runs_of(np.array(flags, dtype=bool), np.array(breaks, dtype=bool))
    assert [i for start, stop in runs for i in range(start, stop)] == [i for i, f in enumerate(flags) if f]
    for start, stop in runs:
        assert start < stop
        assert not any(breaks[start : stop - 1])
        assert start == 0 or not flags[start - 1] or breaks[start - 1]


def test_drain_returns_the_result_and_closes_after_an_error() -> None:
    closed = []

    def steps() -> Generator[int, None, str]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)
        return "result"

    values: list[int] = []
    assert drain(steps(), values.append) == "result"
    assert values == [1, 2]

    def refuse(step: int) -> None:
        raise ValueError(step)

    with pytest.raises(ValueError, match="1"):
        drain(steps(), refuse)
    assert closed == [True, True]


def test_drop_oldest_keeps_the_newest_file(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "middle", "old")):
        (tmp_path / name).write_bytes(b"x" * 100)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    drop_oldest(tmp_path, 200)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "middle"}
    drop_oldest(tmp_path, 0)
    assert {path.name for path in tmp_path.iterdir()} == {"new"}


def test_file_sha256(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
