"""Prints the table of worst differences at the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.parity.harness import Measure

PARITY = "parity"


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Callable[[str, list[Measure]], None]:
    """Attach measures to the test's report, from which the table is printed, also with several processes."""

    def attach(kind: str, measures: list[Measure]) -> None:
        for measure in measures:
            record_property(PARITY, (kind, measure.name, float(measure.value), float(measure.limit)))

    return attach


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    rows = [row for report in reports for name, row in report.user_properties if name == PARITY]
    if rows:
        terminalreporter.section("parity: worst differences")
        for kind, name, value, limit in rows:
            line = f"{kind:<11}{name:<44}{value:>12.3e}   limit {limit:.1e}"
            line += "" if value <= limit else "   BROKEN"
            terminalreporter.write_line(line)
