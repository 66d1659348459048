"""Processes of this machine, read from /proc."""

from __future__ import annotations

import os
from pathlib import Path


def descendant_pids(pid: int) -> list[int]:
    """Return the ids of all children of a process, and of theirs."""
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if parent == pid:
            child = int(stat.parent.name)
            pids += [child, *descendant_pids(child)]
    return pids


def command_line(pid: int) -> bytes:
    """Return the arguments of a process, separated by NUL; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def pids_naming(text: str) -> list[int]:
    """Return the ids of all processes but this one whose command line contains a text."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if pid != os.getpid() and text.encode() in command_line(pid)]
