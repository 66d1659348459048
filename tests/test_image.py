"""The container image: no engine builds it here, so its lines are held against those that are run daily."""

from __future__ import annotations

import re
import tomllib

from tests.support.paths import ROOT

DOCKERFILE = (ROOT / "Dockerfile.cuda").read_text()


def installs(text: str) -> list[str]:
    """What pip is told to install, without the interpreter's place, editing and extras."""
    found = re.findall(r"-m pip install (.*)", text)
    return [re.sub(r"'?\.\[[\w,]+\]'?", ".", line).replace("-e ", "").strip() for line in found]


def test_it_installs_what_the_makefile_installs() -> None:
    """Both locks by their hashes, then this package; the Makefile takes a torch that is at hand first."""
    image, make = installs(DOCKERFILE), installs((ROOT / "Makefile").read_text())
    assert make[0] == "--quiet -c constraints.txt torch==2.13.0"
    assert [line.replace("-dev.lock", ".lock") for line in make[1:]] == image
    assert len(image) == 2
    assert "--require-hashes" in image[0]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (taken,) = re.findall(r"\.\[([\w,]+)\]", DOCKERFILE)
    assert set(taken.split(",")) <= set(extras)


def test_every_copied_file_is_there_and_let_through() -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (.*)", DOCKERFILE, re.M) for name in line.split()[:-1]}
    assert copied == let_through
    assert all((ROOT / name).exists() for name in copied)


def test_it_is_pinned_runs_as_nobody_special_and_fetches_nothing() -> None:
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.M) == ["nvidia/cuda:12.6.3-base-ubuntu24.04"]
    steps = re.findall(r"^([A-Z]+) ", DOCKERFILE, re.M)
    assert steps.index("USER") < steps.index("CMD")
    assert "USER root" not in DOCKERFILE
    assert "HF_HUB_OFFLINE=1" in DOCKERFILE
    assert {"VOLUME", "HEALTHCHECK"} <= set(steps)


def test_it_can_compile_networks() -> None:
    packages = re.search(r"apt-get install -y --no-install-recommends (.*) \\", DOCKERFILE)
    assert packages is not None
    assert {"g++", "python3-dev"} <= set(packages[1].split())
