"""Makes `harness` importable, finds the pack, prints the table of worst differences at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.parity.harness import Measure, pack_dir

PARITY = "parity"


@pytest.fixture(scope="session")
def pack() -> Path:
    folder = pack_dir()
    if not (folder / "pack.json").exists():
        pytest.skip(f"no parity pack at {folder}: set PARITY_DIR")
    return folder


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Callable[[str, list[Measure]], None]:
    """Keeps measures with the report, which goes from where the test ran to where the table is printed."""

    def keep(kind: str, measures: list[Measure]) -> None:
        for measure in measures:
            record_property(PARITY, (kind, measure.name, float(measure.value), float(measure.limit)))

    return keep


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    rows = [row for report in reports for name, row in report.user_properties if name == PARITY]
    if rows:
        terminalreporter.section("parity: worst differences")
        for kind, name, value, limit in rows:
            line = f"{kind:<9}{name:<44}{value:>12.3e}   limit {limit:.1e}"
            line += "" if value <= limit else "   BROKEN"
            terminalreporter.write_line(line)
