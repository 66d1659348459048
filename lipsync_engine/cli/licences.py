"""Licences of the libraries, from their own metadata, and of the weights, from the manifest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement

from lipsync_engine.cli.terminal import out

PACKAGE = "lipsync-engine"


@dataclass(frozen=True, slots=True)
class LibraryLicence:
    """A library and the licence that its metadata names."""

    name: str
    version: str
    licence: str


def print_licences() -> None:
    """Print the licences of libraries and weights."""
    from lipsync_engine.weights import WeightsStore

    for library in list_library_licences():
        _print_line(library.name, library.version, library.licence)
    for entry in WeightsStore().entries():
        _print_line(entry.name, "weights", f"{entry.licence} (commercial use: {entry.commercial})")


def _print_line(name: str, version: str, licence: str) -> None:
    out.print(f"{name:<26} {version:<16} {licence}", soft_wrap=True)


def list_library_licences() -> list[LibraryLicence]:
    """Return all libraries that this package requires, directly or indirectly, without extras."""
    names, licences = [PACKAGE], dict[str, LibraryLicence]()
    while names:
        name = names.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in licences:
            continue
        try:
            library = distribution(name)
        except PackageNotFoundError:  # required by another system or Python version
            continue
        licences[key] = LibraryLicence(library.name, library.version, _read_licence(library))
        names += _required_names(library)
    return sorted(licences.values(), key=lambda library: library.name.lower())


def _required_names(library: Distribution) -> Iterator[str]:
    for line in library.requires or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name


def _read_licence(library: Distribution) -> str:
    metadata = library.metadata
    if "License-Expression" in metadata:
        return str(metadata["License-Expression"])
    classifiers = [text for text in metadata.get_all("Classifier") or [] if text.startswith("License :: ")]
    if classifiers:
        return ", ".join(text.rpartition(" :: ")[2] for text in classifiers)
    lines = str(metadata["License"]).strip().splitlines() if "License" in metadata else []
    return lines[0][:80] if lines else "unknown"
