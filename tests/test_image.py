"""The container image: what its Dockerfile copies exists and reaches the build."""

from __future__ import annotations

import re

from tests.support.paths import ROOT


def test_copied_files_exist_and_are_not_ignored() -> None:
    dockerfile = (ROOT / "Dockerfile.cuda").read_text()
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (.*)", dockerfile, re.M) for name in line.split()[:-1]}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
