"""The only list of models, `weights/manifest.toml`, as checked immutable values.

It knows names, addresses, hashes and licences; not whether the files are here.
"""

from __future__ import annotations

import tomllib
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Self

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from lipsync_engine.errors import ErrorCode, WeightsError

COMPONENT = "component"
"""Family of entries that models use but nobody runs alone."""

_STRICT = ConfigDict(extra="forbid")

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Commercial(StrEnum):
    """May the weights be used commercially? As their publisher's licence says, never as we would like it."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, config=_STRICT)
class FileEntry:
    """One file of a model, from exactly one of three places.

    Attributes:
        role: what the model family calls it: `unet`, `unet_config`, `vae`, `vae_config`, `whisper`,
            `whisper_config`, `model_config`, `detector`, `sync`, `sync_config`. A model in diffusers' layout
            is loaded as a folder, the one with `model_index`; its other roles only tell the files apart.
        path: inside the hub repository; under the manifest's folder for bundled files; the file's own name
            for a plain address.
        repo, revision: hub repository and commit.
        url: a plain address; needs `sha256`, since nothing else would tell a changed file from the old one.
        size: bytes. Absent: public knowledge does not give it.
        sha256: hex. Absent: unknown; recorded at the first pull, and every later use must match that record.
    """

    role: Name
    path: str
    repo: str | None = None
    revision: str | None = None
    url: str | None = None
    size: int | None = Field(default=None, ge=1)
    sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if PurePosixPath(self.path).is_absolute() or ".." in PurePosixPath(self.path).parts:
            raise ValueError(f"path {self.path!r} must be relative and stay inside its folder")
        if self.repo is not None and self.url is not None:
            raise ValueError("give either repo or url, not both")
        if (self.repo is None) != (self.revision is None):
            raise ValueError("repo and revision belong together: a branch may change, so name a commit")
        if self.url is not None and self.sha256 is None:
            raise ValueError("a file from a plain url needs its sha256")
        return self

    @property
    def bundled(self) -> bool:
        """Ships with the package."""
        return self.repo is None and self.url is None

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


@dataclass(frozen=True, slots=True, config=_STRICT)
class ModelEntry:
    """A model, or a component that models use.

    Attributes:
        name: what users type.
        title: one line for people.
        family: of `lipsync_engine.models`, `image-to-video`, `sync-score`, `content`, or `component`.
        licence: SPDX name where there is one.
        commercial: may the weights be used commercially.
        source: page of the publisher.
        resolution: side of the face crop in pixels; 0 for components.
        detector: face detector that suits its pictures.
        uses: components whose files it needs too.
        files: its own files.
    """

    name: Name
    title: str
    family: Name
    licence: str
    commercial: Commercial
    source: str
    resolution: int = Field(default=0, ge=0)
    detector: str = "yunet"
    uses: tuple[str, ...] = ()
    files: tuple[FileEntry, ...] = ()

    @property
    def is_component(self) -> bool:
        return self.family == COMPONENT


def bundled_folder() -> Path:
    """The project's `weights` folder: beside the package in a checkout, inside it once installed from a
    wheel.
    """
    package = Path(__file__).parents[1]
    checkout = package.parent / "weights"
    return checkout if (checkout / "manifest.toml").is_file() else package / "bundled_weights"


def read_manifest(path: Path) -> dict[str, ModelEntry]:
    """Name → entry, in the file's order.

    Raises:
        WeightsError: WEIGHTS_ARCHITECTURE; the message names the entry and the field that is unknown,
            missing or malformed.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(
            ErrorCode.WEIGHTS_MISSING, f"The list of models {path} is not there: reinstall the package."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _malformed(path, str(error)) from error
    if unknown := sorted(document.keys() - {"models"}):
        raise _malformed(path, f"unknown top-level key {', '.join(unknown)}")

    adapter = TypeAdapter(ModelEntry)
    entries: dict[str, ModelEntry] = {}
    for name, table in document.get("models", {}).items():
        try:
            entries[name] = adapter.validate_python(
                {"name": name, **table} if isinstance(table, dict) else table
            )
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(step) for step in ("models", name, *first["loc"]))
            raise _malformed(path, f"{place}: {first['msg']}") from error
    for entry in entries.values():
        if missing := [used for used in entry.uses if used not in entries]:
            raise _malformed(
                path, f"models.{entry.name}.uses names {', '.join(missing)}, which is not listed"
            )
        files = [file for owner in (entry, *(entries[used] for used in entry.uses)) for file in owner.files]
        roles = [file.role for file in files]
        if twice := sorted({role for role in roles if roles.count(role) > 1}):
            raise _malformed(path, f"models.{entry.name} has two files for the role {', '.join(twice)}")
    return entries


def _malformed(path: Path, what: str) -> WeightsError:
    return WeightsError(
        ErrorCode.WEIGHTS_ARCHITECTURE, f"The list of models {path} is malformed: {what}. Correct that line."
    )
