"""Makes `harness` importable, finds the pack, prints the table of worst differences at the end."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

MEASURES: list[tuple[str, object]] = []


def pack_dir() -> Path:
    default = Path(__file__).parents[3] / "shared" / "parity"
    return Path(os.environ.get("PARITY_DIR", default))


@pytest.fixture(scope="session")
def pack() -> Path:
    folder = pack_dir()
    if not (folder / "pack.json").exists():
        pytest.skip(f"no parity pack at {folder}: set PARITY_DIR")
    return folder


@pytest.fixture(scope="session")
def record():
    return lambda kind, measures: MEASURES.extend((kind, measure) for measure in measures)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if MEASURES:
        terminalreporter.section("parity: worst differences")
        for kind, measure in MEASURES:
            line = f"{kind:<9}{measure.name:<44}{measure.value:>12.3e}   limit {measure.limit:.1e}"
            terminalreporter.write_line(line)
