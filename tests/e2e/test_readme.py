"""What README and quickstart show works as it stands there."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.live_server import LiveServer
from tests.support.paths import ROOT

SDK = "wavespeed==2.0.5"
README, QUICKSTART = ROOT / "README.md", ROOT / "docs" / "quickstart.md"
Run = Callable[..., subprocess.CompletedProcess[str]]


def blocks(language: str, document: Path = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)


def put_demo(folder: Path) -> None:
    """The demo's files, of the voice the first 1.6 s: what is shown is soon done."""
    (folder / "demo").mkdir()
    (folder / "demo" / "presenter.mp4").symlink_to(ROOT / "demo" / "presenter.mp4")
    with (
        wave.open(str(ROOT / "demo" / "voice.wav")) as whole,
        wave.open(str(folder / "demo" / "voice.wav"), "wb") as part,
    ):
        part.setparams(whole.getparams())
        part.writeframes(whole.readframes(round(1.6 * whole.getframerate())))


def test_python_example_runs(tmp_path: Path, environment: dict[str, str]) -> None:
    put_demo(tmp_path)
    (example,) = blocks("python")
    command = [sys.executable, "-c", example]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "out.mp4").stat().st_size > 10_000
    assert "out.mp4 40 0" in result.stdout
    assert re.search(r"^render 40 40 ", result.stdout, re.MULTILINE)


LINES = [
    line.partition("#")[0].strip()
    for document in (README, QUICKSTART)
    for block in blocks("bash", document)
    for line in block.splitlines()
]
COMMANDS = [line for line in LINES if "lipsync " in line]


@pytest.mark.parametrize("line", sorted(set(COMMANDS)))
def test_command_lines_name_existing_options(line: str, lipsync: Run) -> None:
    program, command, *rest = shlex.split(line)
    assert Path(program).name == "lipsync"
    words = [command, *rest[:1]] if command == "weights" else [command]
    view = lipsync(*words, "--help")
    assert view.returncode == 0, view.stderr
    for option in (word for word in rest if word.startswith("-")):
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", view.stdout), option
    for path in re.findall(r"demo/\S+", line):
        assert (ROOT / path).exists()


def test_make_lines_name_existing_targets() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in LINES:
        if line and line not in COMMANDS:
            program, *rest = line.split()
            assert program == "make", line
            assert set(rest) <= set(targets), line


def test_every_block_is_run_or_checked() -> None:
    """Every fenced block is of a language that is run or checked here."""
    for document in (README, QUICKSTART):
        languages = re.findall(r"^```(\w*)\n.*?^```", document.read_text(), re.MULTILINE | re.DOTALL)
        assert set(languages) <= {"bash", "sh", "python", "py"}, document.name


# --- against a server ---


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    server = LiveServer(tmp_path_factory.mktemp("readme"), drain_s=0)
    server.start()
    server.wait_ready()
    yield server
    assert server.stop() == 0


def run_block(live: LiveServer, folder: Path, *command: str, **more: str) -> str:
    """What a block prints, run in a folder that has the demo."""
    if not (folder / "demo").exists():
        put_demo(folder)
    env = {**os.environ, "BASE": live.base, "KEY": live.key, **more}
    result = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=180, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_shell_quickstart_runs(live: LiveServer, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl on this machine")
    (block,) = blocks("sh", QUICKSTART)
    response = json.loads(run_block(live, tmp_path, "bash", "-euc", block))["data"]
    assert response["status"] == "completed", response
    assert live.request("GET", response["outputs"][0])[0] == 200


def test_python_quickstart_runs(live: LiveServer, tmp_path: Path) -> None:
    (block,) = blocks("python", QUICKSTART)
    status, link = run_block(live, tmp_path, sys.executable, "-c", block).split()
    assert status == "completed"
    assert live.request("GET", link)[0] == 200


def test_client_example_runs(live: LiveServer, tmp_path: Path) -> None:
    """The block of the README, with this server's address and key, and two files of that name."""
    (block,) = blocks("py")
    install = [sys.executable, "-m", "pip", "install", "-q", "--target", str(tmp_path / "sdk"), SDK]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    if installed.returncode != 0:
        pytest.skip(f"wavespeed cannot be installed: {installed.stderr[-200:]}")
    put_demo(tmp_path)
    for name, file in (("talk.mp4", "presenter.mp4"), ("voice.wav", "voice.wav")):
        shutil.copy(tmp_path / "demo" / file, tmp_path / name)
    assert "sk_…" in block
    assert "http://127.0.0.1:8000" in block
    block = block.replace("sk_…", live.key).replace("http://127.0.0.1:8000", live.base)
    printed = run_block(live, tmp_path, sys.executable, "-c", block, PYTHONPATH=str(tmp_path / "sdk"))
    (link,) = ast.literal_eval(printed.strip())
    assert live.request("GET", link)[0] == 200
