"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
Run = Callable[..., subprocess.CompletedProcess[str]]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_python_example_runs(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    (example,) = blocks("python")
    command = [sys.executable, "-c", example]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out.mp4").stat().st_size > 10_000
    assert "out.mp4 169 0" in done.stdout
    assert re.search(r"^render 169 169 ", done.stdout, re.MULTILINE)


COMMANDS = [
    line.partition("#")[0] for block in blocks("bash") for line in block.splitlines() if "lipsync " in line
]


@pytest.mark.parametrize("line", sorted(set(COMMANDS)))
def test_every_command_line_names_real_options(line: str, lipsync: Run) -> None:
    program, command, *rest = shlex.split(line)
    assert Path(program).name == "lipsync"
    words = [command, *rest[:1]] if command == "weights" else [command]
    shown = lipsync(*words, "--help")
    assert shown.returncode == 0, shown.stderr
    for option in (word for word in rest if word.startswith("-")):
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", shown.stdout), option
    for path in re.findall(r"demo/\S+", line):
        assert (ROOT / path).exists()
