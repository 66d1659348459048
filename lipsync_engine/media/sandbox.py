"""Decide which files an FFmpeg process may open, and check that this machine enforces it.

`sandbox_exec` builds the sandbox. This module lists what lies inside: the files of one command, and what a
program needs to run at all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SANDBOX_EXEC = Path(__file__).with_name("sandbox_exec.py")

CHECK_SCRIPT = """
import json, socket, sys
def succeeds(call):
    try:
        call()
    except OSError:
        return False
    return True
print(json.dumps({
    "opens_sockets": succeeds(lambda: socket.socket(socket.AF_INET)),
    "reads_inside": succeeds(lambda: open(sys.argv[1]).close()),
    "reads_outside": succeeds(lambda: open(sys.argv[2]).close()),
    "writes_outside": succeeds(lambda: open(sys.argv[2] + ".new", "w").close()),
}))
"""


def sandboxed(command: list[str], rules: list[str], *, memory_bytes: int = 0, cpu_s: int = 0) -> list[str]:
    """Return the command line that runs `command` with resource limits, without network and other files.

    Args:
        rules: from `file_rules`; empty: files are not restricted.
        memory_bytes, cpu_s: limits, 0 for none.
    """
    numbers = [str(number) for number in (os.getpid(), memory_bytes, cpu_s, len(rules))]
    return [sys.executable, "-I", "-S", str(SANDBOX_EXEC), *numbers, *rules, *command]


def file_rules(command: list[str]) -> list[str]:
    """List what an FFmpeg command may open, as rules of `sandbox_exec`.

    Inputs are read and outputs written, all by name. The list of a join (`-f concat`) may read what lies
    beside it or is linked there.
    """
    rules = ["s", *(f"r{path}" for path in _library_dirs(Path(command[0]))), "w/dev/null"]
    options: list[str] = []
    for word, following in zip(command, [*command[1:], ""], strict=True):
        options.append(word)
        if word == "-i":
            if following.startswith("file:"):
                path = Path(following.removeprefix("file:"))
                inputs = path.parent.iterdir() if "concat" in options else (path,)
                rules += [f"r{input_path}" for input_path in inputs]
            options = []
        elif word.startswith("file:") and len(options) > 1:
            rules.append(f"w{word.removeprefix('file:')}")
    return rules


def _library_dirs(program: Path) -> Iterator[Path]:
    """List the program's folder and those where it looks for libraries."""
    yield program.parent
    yield program.resolve().parent
    yield program.resolve().parents[1] / "lib"
    for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":"):
        if folder:
            yield Path(folder)


@dataclass(frozen=True, slots=True)
class SandboxStatus:
    """Restrictions that this machine enforces on FFmpeg processes.

    Attributes:
        blocks_network: they open no sockets.
        blocks_files: they open nothing but their inputs and outputs.
    """

    blocks_network: bool
    blocks_files: bool

    def describe(self) -> str:
        """Return one line for an operator, with the reason for each restriction that is missing."""
        if not sys.platform.startswith("linux"):
            return "FFmpeg processes have resource limits only: the sandbox needs Linux"
        network = (
            "no network"
            if self.blocks_network
            else "NETWORK IS OPEN (this kernel or container has no seccomp)"
        )
        files = (
            "no other files"
            if self.blocks_files
            else "OTHER FILES ARE OPEN (Landlock needs Linux 5.13 and must be enabled)"
        )
        return f"FFmpeg processes: {network}, {files}"


def check_sandbox() -> SandboxStatus:
    """Run a process that tries to leave the sandbox, and return what was blocked."""
    with tempfile.TemporaryDirectory() as name:
        inside, outside = Path(name) / "inside", Path(name) / "outside"
        inside.touch()
        outside.touch()
        python = Path(sys.executable)
        rules = ["s", *(f"r{path}" for path in (*_library_dirs(python), sys.base_prefix, inside))]
        command = [str(python), "-I", "-S", "-c", CHECK_SCRIPT, str(inside), str(outside)]
        completed = subprocess.run(
            sandboxed(command, rules), capture_output=True, text=True, timeout=30, check=False
        )
    try:
        report = json.loads(completed.stdout)
    except ValueError:
        return SandboxStatus(blocks_network=False, blocks_files=False)
    return SandboxStatus(
        blocks_network=not report["opens_sockets"],
        blocks_files=report["reads_inside"] and not report["reads_outside"] and not report["writes_outside"],
    )
