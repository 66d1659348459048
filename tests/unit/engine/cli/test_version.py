"""`lipsync --version`."""

from __future__ import annotations

import tomllib

from typer.testing import CliRunner

from lipsync_engine.cli import app
from tests.support.paths import ROOT


def test_version_is_the_one_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"lipsync {project['version']}\n")
