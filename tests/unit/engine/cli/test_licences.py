"""Everything that runs here says under which licence."""

from __future__ import annotations

import tomllib

import pytest
from packaging.requirements import Requirement

from lipsync_engine.cli import licences
from tests.support.paths import ROOT


def test_every_library_names_its_licence() -> None:
    found = {one.name.lower().replace("_", "-"): one for one in licences.list_library_licences()}
    expected = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [Requirement(line).name.lower().replace("_", "-") for line in expected]
    assert set(names) <= set(found)
    assert len(found) > len(names)
    assert {one.name for one in found.values() if one.licence == "unknown"} == set()


def test_licences_command_lists_libraries_and_weights(capsys: pytest.CaptureFixture[str]) -> None:
    licences.print_licences()
    shown = capsys.readouterr().out
    for words in (("torch ", "BSD-3-Clause"), ("latentsync-1.6", "OpenRAIL++"), ("c2pa-python", "MIT")):
        assert any(all(word in line for word in words) for line in shown.splitlines()), words
    assert "schemathesis" not in shown, "only what runs"
