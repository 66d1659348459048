"""The locks name every pinned library with its hashes, and nothing else."""

from __future__ import annotations

import re

import pytest

from lipsync_engine.cli import licences
from tests.support.paths import ROOT

LOCKS = {name: (ROOT / name).read_text() for name in ("requirements.lock", "requirements-dev.lock")}
TORCH_PACKAGES = re.compile(r"torch|cuda-.*|nvidia-.*")


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    matches = re.findall(r"^([A-Za-z0-9._-]+)(?:\[\w+\])?==([^\s;\\]+)", text, re.MULTILINE)
    return {plain(name): version for name, version in matches}


CONSTRAINTS = pins((ROOT / "constraints.txt").read_text())


@pytest.mark.parametrize("text", LOCKS.values(), ids=LOCKS.keys())
def test_every_locked_package_has_hashes_and_no_url(text: str) -> None:
    entries = re.split(r"\n(?! )", text.strip())
    for entry in entries:
        assert re.fullmatch(r"\S+==[^\\]+(\\\n +--hash=sha256:[0-9a-f]{64}\s*)+", entry), entry[:100]
    assert len(entries) == len(pins(text))
    assert "://" not in text


def test_locks_equal_the_constraints() -> None:
    """Broken after a change of constraints.txt or pyproject.toml: `make lock`."""
    locked = pins(LOCKS["requirements-dev.lock"]) | pins(LOCKS["requirements.lock"])
    assert locked == CONSTRAINTS


def test_server_lock_holds_dependencies_and_no_tools() -> None:
    server, everything = pins(LOCKS["requirements.lock"]), pins(LOCKS["requirements-dev.lock"])
    needed = {plain(one.name) for one in licences.list_library_licences()} - {plain(licences.PACKAGE)}
    assert needed <= set(server)
    assert {"psycopg-binary", "nvidia-cudnn-cu13", "torch"} <= set(server)
    assert not {"pytest", "ruff", "uv"} & set(server)
    assert all(TORCH_PACKAGES.fullmatch(name) for name in set(server) - set(everything))
    assert not any(TORCH_PACKAGES.fullmatch(name) for name in everything)
