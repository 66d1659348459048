"""What several packages share and none owns: array types, generators with a result, hashes, cache folders."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Callable, Generator
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import platformdirs

Step = TypeVar("Step")
Result = TypeVar("Result")

FloatArray = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
ImageArray = npt.NDArray[np.uint8]
"""Pixels 0..255; a whole image is (H, W, 3) RGB."""


def package_version() -> str:
    """Return this package's version; "0+checkout" where only a checkout is on the path."""
    try:
        return version("lipsync-engine")
    except PackageNotFoundError:
        return "0+checkout"


def drain(
    steps: Generator[Step, None, Result], on_step: Callable[[Step], object] = lambda step: None
) -> Result:
    """Run a generator to its end and return its result.

    Args:
        steps: closed in any case.
        on_step: called with each value that the generator yields; an exception in it stops the generator.
    """
    with closing(steps):
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                result: Result = end.value
                return result
            on_step(step)


def runs_of(flags: BoolArray, breaks: BoolArray | None = None) -> list[tuple[int, int]]:
    """Return [start, stop) of every run of True.

    Args:
        flags: (N,).
        breaks: (N - 1,) True where a run ends between two neighbours although both are True.
    """
    edges = flags[1:] != flags[:-1]
    if breaks is not None:
        edges = edges | breaks
    bounds = [0, *(np.flatnonzero(edges) + 1).tolist(), len(flags)]
    return [(start, stop) for start, stop in itertools.pairwise(bounds) if start < stop and flags[start]]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def drop_oldest(folder: Path, max_bytes: int) -> None:
    """Remove the least recently used files until the rest fits; the newest one stays in any case.

    Several processes may do this at once. A file was last used at its modification time.
    """
    files = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            files.append((stat.st_mtime, stat.st_size, path))
    files.sort()
    total_bytes = sum(size for _, size, _ in files)
    for _, size, path in files[:-1]:
        if total_bytes <= max_bytes:
            break
        path.unlink(missing_ok=True)
        total_bytes -= size


def default_cache_dir() -> Path:
    """Return LIPSYNC_CACHE_DIR, else the user's cache folder."""
    setting = os.environ.get("LIPSYNC_CACHE_DIR")
    return Path(setting) if setting else Path(platformdirs.user_cache_dir("lipsync"))
