"""Makes `harness` importable, finds the pack, prints the table of worst differences at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import Measure, pack_dir

MEASURES: list[tuple[str, Measure]] = []


@pytest.fixture(scope="session")
def pack() -> Path:
    folder = pack_dir()
    if not (folder / "pack.json").exists():
        pytest.skip(f"no parity pack at {folder}: set PARITY_DIR")
    return folder


@pytest.fixture(scope="session")
def record() -> Callable[[str, list[Measure]], None]:
    return lambda kind, measures: MEASURES.extend((kind, measure) for measure in measures)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if MEASURES:
        terminalreporter.section("parity: worst differences")
        for kind, measure in MEASURES:
            line = f"{kind:<9}{measure.name:<44}{measure.value:>12.3e}   limit {measure.limit:.1e}"
            line += "" if measure.holds else "   BROKEN"
            terminalreporter.write_line(line)
