"""Model files: the manifest that lists them, where they lie, how they get there, and strict loading.

`weights/manifest.toml` is the only list of models. Files are verified before use: against the manifest's SHA-256
where public knowledge gives one, otherwise against the hash recorded when the file was first taken. It does not know
what the tensors mean.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import platformdirs
import torch
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from lipsync_engine.errors import ErrorCode, WeightsError

HASH_BLOCK = 1 << 20
STATE_FILE = "verified.json"

OnBytes = Callable[[str, int, int], None]
"""Called with (file, bytes done, bytes in all)."""


# --- manifest ---


class FileEntry(BaseModel):
    """One file of a model.

    Attributes:
        role: what the family calls it (`unet`, `vae`, `vae_config`, `whisper`, `detector` …).
        path: inside the hub repository, or the bundled folder.
        repo, revision: hub repository; or
        url: a plain address.
        size: bytes; sha256: hex. Absent where public knowledge does not give them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: str
    path: str
    repo: str | None = None
    revision: str = "main"
    url: str | None = None
    size: int | None = None
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")

    @property
    def bundled(self) -> bool:
        return self.repo is None and self.url is None

    @property
    def name(self) -> str:
        return Path(self.path).name


class ModelEntry(BaseModel):
    """A model, or a component that models use.

    Attributes:
        family: of `lipsync_engine.models`, or `component`.
        resolution: side of the face crop; 0 for components.
        uses: components whose files it needs too.
        detector: face detector that suits its domain.
        licence: SPDX name or a short phrase; commercial: yes, no or unknown.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    family: str
    resolution: int = 0
    uses: tuple[str, ...] = ()
    detector: str = "yunet"
    licence: str
    commercial: str = Field(pattern="^(yes|no|unknown)$")
    source: str
    files: tuple[FileEntry, ...] = ()


def bundled_folder() -> Path:
    """The repository's `weights` folder: next to the package in a checkout, inside it once installed."""
    package = Path(__file__).parent
    checkout = package.parent / "weights"
    return checkout if (checkout / "manifest.toml").exists() else package / "bundled_weights"


def read_manifest(path: Path) -> dict[str, ModelEntry]:
    """Parse and check the list of models.

    Raises:
        WeightsError: a field is unknown, missing or malformed; the message names it.
    """
    try:
        with path.open("rb") as file:
            tables = tomllib.load(file).get("models", {})
        entries = {name: ModelEntry(name=name, **table) for name, table in tables.items()}
    except (tomllib.TOMLDecodeError, ValidationError, TypeError) as error:
        raise WeightsError(
            ErrorCode.WEIGHTS_ARCHITECTURE, f"The manifest {path.name} is malformed: {error}"
        ) from error
    for entry in entries.values():
        if missing := [used for used in entry.uses if used not in entries]:
            raise WeightsError(
                ErrorCode.WEIGHTS_ARCHITECTURE, f"The manifest entry {entry.name} uses unknown {missing}."
            )
    return entries


# --- store ---


class FileState(StrEnum):
    MISSING = "missing"
    VERIFIED = "verified"
    CHANGED = "does not match its hash"
    TRUNCATED = "has the wrong size"


@dataclass(frozen=True, slots=True)
class FileReport:
    """State of one file."""

    path: Path
    state: FileState
    sha256: str | None


class WeightsStore:
    """Model files on this machine.

    Args:
        root: where downloaded files lie; None: LIPSYNC_WEIGHTS_DIR, else the user's cache folder.
        manifest: list of models; None: the one that ships with the package. Bundled files lie next to it.
    """

    def __init__(self, root: Path | None = None, manifest: Path | None = None) -> None:
        given = os.environ.get("LIPSYNC_WEIGHTS_DIR")
        self.root = root or (Path(given) if given else Path(platformdirs.user_cache_dir("lipsync")) / "weights")
        self._manifest = manifest or bundled_folder() / "manifest.toml"
        self._entries = read_manifest(self._manifest)

    def entries(self) -> tuple[ModelEntry, ...]:
        return tuple(self._entries.values())

    def entry(self, name: str) -> ModelEntry:
        """
        Raises:
            WeightsError: MODEL_UNKNOWN, listing what there is.
        """
        if name not in self._entries:
            known = ", ".join(self._entries)
            raise WeightsError(ErrorCode.MODEL_UNKNOWN, f"There is no model {name!r}: known are {known}.")
        return self._entries[name]

    def files(self, name: str) -> dict[str, Path]:
        """Role → path of every file of a model and its components, verified.

        Raises:
            WeightsError: a file is missing (the message names the command that gets it), truncated or changed.
        """
        found = {}
        for owner, file in self._all_files(name):
            report = self._report(owner, file)
            if report.state is not FileState.VERIFIED:
                raise _unusable(name, file, report)
            found[file.role] = report.path
        return found

    def weights_sha256(self, name: str) -> str:
        """One hash over the hashes of all files of a model."""
        digest = hashlib.sha256()
        for owner, file in self._all_files(name):
            digest.update(f"{file.role} {self._report(owner, file).sha256}\n".encode())
        return digest.hexdigest()

    def summary(self, name: str) -> str:
        """`ready`, or what is missing, in a few words; without hashing."""
        missing = [file.name for owner, file in self._all_files(name) if not self._path(owner, file).exists()]
        return f"missing {', '.join(missing)}" if missing else "ready"

    def verify(self, name: str) -> list[FileReport]:
        """Hash every file of a model again."""
        return [self._report(owner, file, again=True) for owner, file in self._all_files(name)]

    def pull(self, name: str, on_bytes: OnBytes | None = None) -> None:
        """Download what is missing; an interrupted download goes on where it stopped.

        HF_ENDPOINT names a mirror of the hub, HF_HUB_OFFLINE forbids the network.

        Raises:
            WeightsError: WEIGHTS_DOWNLOAD_FAILED, WEIGHTS_HASH_MISMATCH, WEIGHTS_TRUNCATED.
        """
        from lipsync_engine.weights_download import download

        for owner, file in self._all_files(name):
            path = self._path(owner, file)
            if file.bundled or self._report(owner, file).state is FileState.VERIFIED:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_name(f"{path.name}.lock")):
                if not path.exists() or self._report(owner, file, again=True).state is not FileState.VERIFIED:
                    part = download(file, path, on_bytes or (lambda name, done, total: None))
                    self._take(owner, file, part)

    def import_path(self, source: Path) -> list[FileReport]:
        """Take files of known models from a file or folder; each is recognised by hash, else by its name's path.

        Raises:
            WeightsError: nothing recognised, or a recognised file is not what the manifest says.
        """
        candidates = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
        taken = []
        for path in candidates:
            for owner, file in self._recognise(path, source):
                target = self._path(owner, file)
                target.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(target.with_name(f"{target.name}.lock")):
                    part = target.with_name(f"{target.name}.part")
                    shutil.copyfile(path, part)
                    taken.append(self._take(owner, file, part))
        if not taken:
            wanted = sorted({file.path for e in self.entries() for file in e.files if not file.bundled})
            raise WeightsError(
                ErrorCode.WEIGHTS_MISSING,
                f"{source.name!r} holds no known model file: expected names are {', '.join(wanted)}.",
            )
        return taken

    def _recognise(self, path: Path, source: Path) -> Iterator[tuple[str, FileEntry]]:
        """By hash where the manifest has one; else by name, in a folder that names the repository or alone."""
        owned = [(entry.name, file) for entry in self.entries() for file in entry.files if not file.bundled]
        named = [(owner, file) for owner, file in owned if file.name == path.name]
        if len(named) > 1:
            text = str(path.relative_to(source.parent)).lower()
            told = [
                (owner, file)
                for owner, file in named
                if owner in text or (file.repo and file.repo.split("/")[-1].lower() in text)
            ]
            named = told if len(told) == 1 else []
        if named:
            yield from named
            return
        known = [(owner, file) for owner, file in owned if file.sha256 and file.size in (None, path.stat().st_size)]
        if known:
            digest = file_sha256(path)
            yield from ((owner, file) for owner, file in known if file.sha256 == digest)

    def _take(self, owner: str, file: FileEntry, part: Path) -> FileReport:
        """Verify a new file and move it to its place."""
        digest = file_sha256(part)
        size = part.stat().st_size
        if file.size is not None and size != file.size:
            part.unlink()
            raise WeightsError(
                ErrorCode.WEIGHTS_TRUNCATED,
                f"{file.name} has {size} bytes, {file.size} were expected: get the file again.",
            )
        if file.sha256 is not None and digest != file.sha256:
            part.unlink()
            raise WeightsError(
                ErrorCode.WEIGHTS_HASH_MISMATCH,
                f"{file.name} is not the published file (SHA-256 {digest[:12]}…, expected {file.sha256[:12]}…); "
                "it was not kept. Get it again, from another mirror if this repeats.",
            )
        path = self._path(owner, file)
        part.replace(path)
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
        self._remember(path, digest)
        return FileReport(path, FileState.VERIFIED, digest)

    def _all_files(self, name: str) -> list[tuple[str, FileEntry]]:
        entry = self.entry(name)
        owners = [entry, *(self.entry(used) for used in entry.uses)]
        return [(owner.name, file) for owner in owners for file in owner.files]

    def _path(self, owner: str, file: FileEntry) -> Path:
        base = self._manifest.parent if file.bundled else self.root / owner
        return base / file.path

    def _report(self, owner: str, file: FileEntry, *, again: bool = False) -> FileReport:
        path = self._path(owner, file)
        if not path.exists():
            return FileReport(path, FileState.MISSING, None)
        if file.size is not None and path.stat().st_size != file.size:
            return FileReport(path, FileState.TRUNCATED, None)
        known = self._known(path)
        expected = file.sha256 or known.get("first")
        digest = known.get("sha256") if not again and known.get("stamp") == _stamp(path) else None
        if digest is None:
            digest = file_sha256(path)
            if expected in (None, digest) and not file.bundled:
                self._remember(path, digest)
        state = FileState.VERIFIED if expected in (None, digest) else FileState.CHANGED
        return FileReport(path, state, digest)

    def _known(self, path: Path) -> dict[str, str]:
        found: dict[str, dict[str, str]] = _read_json(self.root / STATE_FILE)
        return found.get(str(path), {})

    def _remember(self, path: Path, digest: str) -> None:
        """Note a verified hash, so that loading need not hash gigabytes each time; any change of the file voids it."""
        self.root.mkdir(parents=True, exist_ok=True)
        state = self.root / STATE_FILE
        with FileLock(state.with_suffix(".lock")):
            all_known = _read_json(state)
            all_known[str(path)] = {"sha256": digest, "stamp": _stamp(path), "first": digest}
            part = state.with_suffix(".part")
            part.write_text(json.dumps(all_known, indent=1))
            part.replace(state)


def _unusable(name: str, file: FileEntry, report: FileReport) -> WeightsError:
    get = f"run `lipsync weights pull {name}`, or `lipsync weights import FOLDER` where it is already at hand"
    match report.state:
        case FileState.MISSING:
            return WeightsError(ErrorCode.WEIGHTS_MISSING, f"{name} needs {file.path}, which is not here: {get}.")
        case FileState.TRUNCATED:
            return WeightsError(
                ErrorCode.WEIGHTS_TRUNCATED, f"{file.path} has the wrong size: delete {report.path} and {get}."
            )
        case _:
            return WeightsError(
                ErrorCode.WEIGHTS_HASH_MISMATCH,
                f"{file.path} has changed since it was verified: delete {report.path} and {get}.",
            )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


# --- loading ---


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint file holds, memory mapped where its format allows.

    `.safetensors` is read as such; everything else by the weights-only unpickler, which runs no code of the file.

    Raises:
        WeightsError: WEIGHTS_TRUNCATED or WEIGHTS_UNSAFE.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if "Weights only" in str(error):
            raise WeightsError(
                ErrorCode.WEIGHTS_UNSAFE,
                f"{path.name} holds more than tensors and plain values, so it is not opened: get the weights from "
                "their publisher, or as .safetensors.",
            ) from error
        raise _damaged(path) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise _damaged(path) from error
    except Exception as error:
        if type(error).__name__ == "SafetensorError":
            raise _damaged(path) from error
        raise
    if not isinstance(loaded, dict):
        raise _damaged(path)
    return loaded


def _damaged(path: Path) -> WeightsError:
    return WeightsError(
        ErrorCode.WEIGHTS_TRUNCATED,
        f"{path.name} is cut off or damaged: delete {path} and get it again with `lipsync weights pull`.",
    )


def load_strict(
    module: nn.Module, state: Mapping[str, Tensor], *, recomputable: Mapping[str, Tensor] | None = None
) -> None:
    """Give a module (built on the meta device) its tensors, with no key or shape left open on either side.

    Args:
        module: its parameters and buffers are replaced by the state's tensors, without a copy.
        state: name → tensor.
        recomputable: tensors for keys that the state may lack.

    Raises:
        WeightsError: WEIGHTS_ARCHITECTURE, naming the missing, unexpected and misshapen keys.
    """
    wanted = module.state_dict()
    full = {**{k: v for k, v in (recomputable or {}).items() if k in wanted}, **state}
    missing = [name for name in wanted if name not in full]
    unexpected = [name for name in full if name not in wanted]
    misshapen = [
        f"{name} {tuple(full[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in full and full[name].shape != tensor.shape
    ]
    if missing or unexpected or misshapen:
        told = "; ".join(
            f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
            if names
        )
        raise WeightsError(
            ErrorCode.WEIGHTS_ARCHITECTURE,
            f"The weights do not fit {type(module).__name__}: {told}. They belong to another model or version: check "
            "the file against `lipsync weights list`.",
        )
    module.load_state_dict({name: full[name] for name in wanted}, strict=True, assign=True)
    for name, buffer in module.named_buffers():
        if buffer.is_meta:
            raise WeightsError(
                ErrorCode.WEIGHTS_ARCHITECTURE,
                f"{type(module).__name__} has a buffer {name} that no file holds and nothing computes.",
            )
