"""The list of models, `weights/manifest.toml`, as validated immutable values.

This module knows names, addresses, hashes and licences. It does not know whether the files are present.
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
"""Family of entries that only serve other models."""

_STRICT = ConfigDict(extra="forbid")

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Commercial(StrEnum):
    """Whether the publisher's licence permits commercial use of the weights."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, config=_STRICT)
class FileEntry:
    """One file of a model, from exactly one source: hub repository, plain URL, or bundled.

    Attributes:
        role: its name in the model family: `unet`, `unet_config`, `vae`, `vae_config`, `whisper`,
            `whisper_config`, `model_config`, `detector`, `landmarks`, `sync`, `sync_config`. A model in
            diffusers' layout is loaded from the folder that contains `model_index`; its other roles only need
            to be unique.
        path: inside the hub repository; under the manifest's folder for bundled files; the file name for a
            plain URL.
        repo, revision: hub repository and commit.
        url: plain URL; needs `sha256`, because nothing else identifies the content.
        size: bytes; None if it is not published.
        sha256: hex; None if it is not published. It is then recorded at the first pull, and every later use
            must match the record.
    """

    role: Name
    path: str
    repo: str | None = None
    revision: str | None = None
    url: str | None = None
    size: int | None = Field(default=None, ge=1)
    sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _check_source(self) -> Self:
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
    def is_bundled(self) -> bool:
        """Whether the file ships with the package."""
        return self.repo is None and self.url is None

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


@dataclass(frozen=True, slots=True, config=_STRICT)
class ModelEntry:
    """A model, or a component that models use.

    Attributes:
        name: as users type it.
        title: one line of description.
        family: of `lipsync_engine.models`, `image-to-video`, `sync-score`, `content`, or `component`.
        licence: SPDX identifier if there is one.
        commercial: whether commercial use is permitted.
        source: the publisher's page.
        resolution: side of the face crop in pixels; 0 for components.
        detector: face detector for the faces that the model was trained on.
        uses: components whose files it also needs.
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


def bundled_weights_dir() -> Path:
    """Return the project's `weights` folder: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parents[1]
    checkout = package.parent / "weights"
    return checkout if (checkout / "manifest.toml").is_file() else package / "bundled_weights"


def read_model_manifest(path: Path) -> dict[str, ModelEntry]:
    """Read and validate the list of models.

    Returns:
        Name → entry, in the file's order.

    Raises:
        WeightsError: WEIGHTS_ARCHITECTURE; the message names the entry and the field that is unknown,
            missing or malformed.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(
            ErrorCode.WEIGHTS_MISSING, f"The list of models {path} does not exist: reinstall the package."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _manifest_error(path, str(error)) from error
    if unknown := sorted(document.keys() - {"models"}):
        raise _manifest_error(path, f"unknown top-level key {', '.join(unknown)}")

    adapter = TypeAdapter(ModelEntry)
    entries: dict[str, ModelEntry] = {}
    for name, table in document.get("models", {}).items():
        try:
            entries[name] = adapter.validate_python(
                {"name": name, **table} if isinstance(table, dict) else table
            )
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(step) for step in ("models", name, *first["loc"]))
            raise _manifest_error(path, f"{field}: {first['msg']}") from error
    for entry in entries.values():
        if missing := [component for component in entry.uses if component not in entries]:
            raise _manifest_error(
                path, f"models.{entry.name}.uses names {', '.join(missing)}, which is not listed"
            )
        files = [
            file
            for owner in (entry, *(entries[component] for component in entry.uses))
            for file in owner.files
        ]
        roles = [file.role for file in files]
        if duplicates := sorted({role for role in roles if roles.count(role) > 1}):
            raise _manifest_error(
                path, f"models.{entry.name} has two files for the role {', '.join(duplicates)}"
            )
    return entries


def _manifest_error(path: Path, problem: str) -> WeightsError:
    return WeightsError(
        ErrorCode.WEIGHTS_ARCHITECTURE,
        f"The list of models {path} is invalid: {problem}. Correct that entry.",
    )
