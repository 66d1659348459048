"""What a media child may touch, and whether the fence around it holds on this machine.

`launch` builds the fence; here is decided what lies inside it: the files of one command, and what a program
needs to run at all.
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

SYSTEM = (
    "/usr", "/lib", "/lib32", "/lib64", "/bin", "/opt", "/nix/store", "/snap", "/etc/ld.so.cache",
    "/etc/alternatives", "/sys/devices/system/cpu", "/dev/urandom",
)  # fmt: skip
"""Where programs and their libraries lie; no user's files do."""

LAUNCHER = Path(__file__).with_name("sandbox_exec.py")

TRY = """
import json, socket, sys
def can(what):
    try:
        what()
    except OSError:
        return False
    return True
print(json.dumps({
    "sockets": can(lambda: socket.socket(socket.AF_INET)),
    "inside": can(lambda: open(sys.argv[1]).close()),
    "outside": can(lambda: open(sys.argv[2]).close()),
    "written": can(lambda: open(sys.argv[2] + ".new", "w").close()),
}))
"""


def launched(command: list[str], files: list[str], *, memory_bytes: int = 0, cpu_s: int = 0) -> list[str]:
    """The command line that starts `command` inside limits and, with `files`, a fence.

    Args:
        files: from `fence`; none: files are not fenced.
        memory_bytes, cpu_s: 0 for none.
    """
    numbers = [str(number) for number in (os.getpid(), memory_bytes, cpu_s, len(files))]
    return [sys.executable, "-I", "-S", str(LAUNCHER), *numbers, *files, *command]


def fence(command: list[str]) -> list[str]:
    """What an FFmpeg command may touch, for `launch`: inputs are read, outputs written, all by name.

    A list of segments (`-f concat`) may read what lies beside it, or is linked there.
    """
    files = [f"r{path}" for path in (*SYSTEM, *_programs_own(Path(command[0])))] + ["w/dev/null"]
    options: list[str] = []
    for word, following in zip(command, [*command[1:], ""], strict=True):
        options.append(word)
        if word == "-i":
            if following.startswith("file:"):
                path = Path(following.removeprefix("file:"))
                inputs = path.parent.iterdir() if "concat" in options else (path,)
                files += [f"r{one}" for one in inputs]
            options = []
        elif word.startswith("file:") and len(options) > 1:
            files.append(f"w{word.removeprefix('file:')}")
    return files


def _programs_own(program: Path) -> Iterator[Path]:
    """Its folder, and those where it looks for libraries."""
    yield program.parent
    yield program.resolve().parent
    yield program.resolve().parents[1] / "lib"
    for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":"):
        if folder:
            yield Path(folder)


@dataclass(frozen=True, slots=True)
class Isolation:
    """What holds on this machine, each with the reason where it does not.

    Attributes:
        no_network: children open no sockets.
        only_own_files: children open nothing but their inputs and outputs.
    """

    no_network: bool
    only_own_files: bool

    def describe(self) -> str:
        if not sys.platform.startswith("linux"):
            return "media children have limits only: the fence needs Linux"
        network = (
            "no network" if self.no_network else "NETWORK IS OPEN (this kernel or container has no seccomp)"
        )
        files = (
            "no other files"
            if self.only_own_files
            else "OTHER FILES ARE OPEN (Landlock needs Linux 5.13 and to be on)"
        )
        return f"media children: {network}, {files}"


def isolation_here() -> Isolation:
    """Try it: a child that wants more than it may."""
    with tempfile.TemporaryDirectory() as name:
        inside, outside = Path(name) / "inside", Path(name) / "outside"
        inside.touch()
        outside.touch()
        python = Path(sys.executable)
        rules = [f"r{path}" for path in (*SYSTEM, *_programs_own(python), sys.base_prefix, inside)]
        command = [str(python), "-I", "-S", "-c", TRY, str(inside), str(outside)]
        done = subprocess.run(
            launched(command, rules), capture_output=True, text=True, timeout=30, check=False
        )
    try:
        could = json.loads(done.stdout)
    except ValueError:
        return Isolation(no_network=False, only_own_files=False)
    return Isolation(
        no_network=not could["sockets"],
        only_own_files=could["inside"] and not could["outside"] and not could["written"],
    )
