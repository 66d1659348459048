"""Under which licence everything here is: libraries by their own metadata, weights by the manifest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement

from lipsync_engine.cli.terminal import out

OWN = "lipsync-engine"


@dataclass(frozen=True, slots=True)
class Licensed:
    """A library, and what its metadata calls its licence."""

    name: str
    version: str
    licence: str


def show() -> None:
    """Print the lists."""
    from lipsync_engine.weights import WeightsStore

    for one in licensed():
        _line(one.name, one.version, one.licence)
    for entry in WeightsStore().entries():
        _line(entry.name, "weights", f"{entry.licence} (commercial use: {entry.commercial})")


def _line(name: str, version: str, licence: str) -> None:
    out.print(f"{name:<26} {version:<16} {licence}", soft_wrap=True)


def licensed() -> list[Licensed]:
    """All libraries that this package needs, and those that they need; extras are left out."""
    waiting, found = [OWN], dict[str, Licensed]()
    while waiting:
        name = waiting.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:
            continue
        try:
            library = distribution(name)
        except PackageNotFoundError:  # for another system or Python
            continue
        found[key] = Licensed(library.name, library.version, _licence(library))
        waiting += _required(library)
    return sorted(found.values(), key=lambda one: one.name.lower())


def _required(library: Distribution) -> Iterator[str]:
    for line in library.requires or []:
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            yield wanted.name


def _licence(library: Distribution) -> str:
    told = library.metadata
    if "License-Expression" in told:
        return str(told["License-Expression"])
    classes = [text for text in told.get_all("Classifier") or [] if text.startswith("License :: ")]
    if classes:
        return ", ".join(text.rpartition(" :: ")[2] for text in classes)
    words = str(told["License"]).strip().splitlines() if "License" in told else []
    return words[0][:80] if words else "unknown"
