"""Model files on this machine: present, verified, pulled, imported.

A file is used only after its SHA-256 was checked, against the manifest where that knows it, otherwise
against the record made when the file was first taken (`NAME.sha256` beside it, in the format of `sha256sum
-c`). A checked file is remembered by size, times and inode, so that loading need not hash gigabytes again.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from lipsync_engine.errors import ErrorCode, WeightsError
from lipsync_engine.weights.files import OnBytes, disk_fault, file_sha256
from lipsync_engine.weights.manifest import FileEntry, ModelEntry, bundled_folder, read_manifest

log = logging.getLogger(__name__)

WEIGHT_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".safetensors", ".onnx", ".model"})


class FileState(StrEnum):
    MISSING = "missing"
    PRESENT = "present, not verified yet"
    VERIFIED = "verified"
    TRUNCATED = "wrong size"
    CHANGED = "wrong hash"


@dataclass(frozen=True, slots=True)
class FileReport:
    """State of one file.

    Attributes:
        role, path: what it is for and where it lies, or would lie.
        state: see FileState.
        sha256: of the file as it is; None where it was not hashed.
    """

    role: str
    path: Path
    state: FileState
    sha256: str | None


@dataclass(frozen=True, slots=True)
class _Owned:
    """A file together with the entry that it belongs to."""

    owner: str
    file: FileEntry


class WeightsStore:
    """Model files on this machine.

    Args:
        root: where pulled and imported files lie; None: LIPSYNC_WEIGHTS_DIR, else the user's cache folder.
        manifest: list of models; None: the one that ships with the package. Bundled files lie beside it.
    """

    def __init__(self, root: Path | None = None, manifest: Path | None = None) -> None:
        given = os.environ.get("LIPSYNC_WEIGHTS_DIR")
        cache = Path(given) if given else Path(platformdirs.user_cache_dir("lipsync")) / "weights"
        self.root = (root or cache).expanduser().absolute()
        self._manifest = manifest or bundled_folder() / "manifest.toml"
        self._entries = read_manifest(self._manifest)

    def entries(self) -> tuple[ModelEntry, ...]:
        """Models and components, in the manifest's order."""
        return tuple(self._entries.values())

    def entry(self, name: str) -> ModelEntry:
        """One entry.

        Raises:
            WeightsError: MODEL_UNKNOWN, listing the models there are.
        """
        if name not in self._entries:
            known = ", ".join(entry.name for entry in self.entries() if not entry.is_component)
            raise WeightsError(ErrorCode.MODEL_UNKNOWN, f"There is no model {name!r}: use one of {known}.")
        return self._entries[name]

    def status(self, name: str) -> tuple[FileReport, ...]:
        """State of every file of a model and its components, without hashing."""
        return tuple(self._look(owned) for owned in self._all_files(name))

    def summary(self, name: str) -> str:
        """The state of a model in a few words."""
        reports = self.status(name)
        for state in (FileState.MISSING, FileState.TRUNCATED, FileState.CHANGED, FileState.PRESENT):
            if found := [report.path.name for report in reports if report.state is state]:
                return f"{state}: {found[0] if len(found) == 1 else f'{len(found)} of {len(reports)} files'}"
        return "ready"

    def files(self, name: str) -> dict[str, Path]:
        """Role → path of every file of a model and its components, all verified.

        Raises:
            WeightsError: WEIGHTS_MISSING, WEIGHTS_TRUNCATED or WEIGHTS_HASH_MISMATCH; the message names the
                command that helps.
        """
        return {report.role: report.path for report in self._verified(name)}

    def weights_sha256(self, name: str) -> str:
        """One hash over role and SHA-256 of all files of a model; the same on every machine."""
        lines = sorted(f"{report.role} {report.sha256}\n" for report in self._verified(name))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def verify(self, name: str) -> tuple[FileReport, ...]:
        """Hash every file of a model again, whatever is remembered."""
        return tuple(self._check(owned, again=True) for owned in self._all_files(name))

    def pull(self, name: str, on_bytes: OnBytes | None = None) -> None:
        """Download what is missing or wrong; an interrupted download goes on where it stopped.

        Two processes may pull the same model: the second waits and then finds the files.

        Args:
            name: model or component.
            on_bytes: called with (file name, bytes done, bytes in all or 0 where unknown).

        Raises:
            WeightsError: WEIGHTS_DOWNLOAD_FAILED, WEIGHTS_TRUNCATED, WEIGHTS_HASH_MISMATCH.
            ResourceError: DISK_FULL, OUTPUT_NOT_WRITABLE.
        """
        for owned in self._all_files(name):
            if self._check(owned).state is FileState.VERIFIED:
                continue
            if owned.file.bundled:
                raise self._unusable(name, owned, self._check(owned))
            path = self._path(owned)
            with self._lock(owned):
                if self._check(owned).state is not FileState.VERIFIED:
                    # The network half is heavy and only needed here.
                    from lipsync_engine.weights.download import download

                    part = download(owned.file, path.parent, on_bytes or _ignore)
                    self._take(owned, part, "Pull again, from another mirror (HF_ENDPOINT) if this repeats.")

    def import_path(self, source: Path) -> tuple[FileReport, ...]:
        """Take model files from a file or a folder (a copy of a hub repository, a hub cache, a flat folder).

        A file is recognised by size and SHA-256 whatever its name, or by name where the manifest has no
        hash. Sound files are hard-linked where the disk allows, else copied.

        Returns:
            one report per file taken.

        Raises:
            WeightsError: nothing was recognised, or a weight file of a known name is damaged (sound files
                beside it are taken first).
        """
        if not source.exists():
            raise WeightsError(
                ErrorCode.WEIGHTS_MISSING, f"{source} does not exist: name a file or a folder."
            )
        found = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
        taken: list[FileReport] = []
        refused: WeightsError | None = None
        for path in found:
            matches, problem = self._recognise(path)
            for owned in matches:
                with self._lock(owned):
                    report = self._check(owned)
                    if report.state is not FileState.VERIFIED:
                        target = self._path(owned)
                        part = _link_or_copy(path, target.with_name(f"{target.name}.import.part"))
                        report = self._take(owned, part, f"{path} stays as it was; get it again.")
                taken.append(report)
            refused = refused or problem
        if refused is not None:
            raise refused
        if not taken:
            wanted = sorted({owned.file.name for owned in self._downloadable()})
            raise WeightsError(
                ErrorCode.WEIGHTS_MISSING,
                f"{source} holds no known model file: files that are looked for are {', '.join(wanted)}.",
            )
        return tuple(taken)

    # --- one file ---

    def _all_files(self, name: str) -> list[_Owned]:
        entry = self.entry(name)
        owners = (entry, *(self.entry(used) for used in entry.uses))
        return [_Owned(owner.name, file) for owner in owners for file in owner.files]

    def _downloadable(self) -> list[_Owned]:
        owned = [_Owned(entry.name, file) for entry in self.entries() for file in entry.files]
        return [one for one in owned if not one.file.bundled]

    def _path(self, owned: _Owned) -> Path:
        base = self._manifest.parent if owned.file.bundled else self.root / owned.owner
        return base / owned.file.path

    def _verified(self, name: str) -> list[FileReport]:
        reports = []
        for owned in self._all_files(name):
            report = self._check(owned)
            if report.state is not FileState.VERIFIED:
                raise self._unusable(name, owned, report)
            reports.append(report)
        return reports

    def _look(self, owned: _Owned) -> FileReport:
        """State as far as it is known without hashing."""
        path = self._path(owned)
        if not path.is_file():
            return FileReport(owned.file.role, path, FileState.MISSING, None)
        if owned.file.size is not None and path.stat().st_size != owned.file.size:
            return FileReport(owned.file.role, path, FileState.TRUNCATED, None)
        known = _read_json(self._state_file).get(str(path), {})
        if known.get("stamp") != _stamp(path):
            return FileReport(owned.file.role, path, FileState.PRESENT, None)
        return self._judged(owned, path, known["sha256"])

    def _check(self, owned: _Owned, *, again: bool = False) -> FileReport:
        """State, after hashing unless the very same file was hashed before."""
        report = self._look(owned)
        if report.state in (FileState.MISSING, FileState.TRUNCATED) or (report.sha256 and not again):
            return report
        stamp = _stamp(report.path)  # before hashing: a change meanwhile must not pass for the hashed file
        digest = file_sha256(report.path)
        self._remember(report.path, stamp, digest)
        return self._judged(owned, report.path, digest)

    def _judged(self, owned: _Owned, path: Path, digest: str) -> FileReport:
        expected = owned.file.sha256
        if expected is None and not owned.file.bundled:
            expected = _recorded(path) or _record(path, digest)
        state = FileState.VERIFIED if expected in (None, digest) else FileState.CHANGED
        return FileReport(owned.file.role, path, state, digest)

    def _take(self, owned: _Owned, part: Path, advice: str) -> FileReport:
        """Verify a new file and move it to its place; a wrong one is removed."""
        file, path = owned.file, self._path(owned)
        size, digest = part.stat().st_size, file_sha256(part)
        if file.size is not None and size != file.size:
            part.unlink()
            raise WeightsError(
                ErrorCode.WEIGHTS_TRUNCATED,
                f"{file.name} has {size} bytes, but {file.size} are published; it was not kept. {advice}",
            )
        if file.sha256 is not None and digest != file.sha256:
            part.unlink()
            raise WeightsError(
                ErrorCode.WEIGHTS_HASH_MISMATCH,
                f"{file.name} is not the published file (SHA-256 {digest[:12]}…, expected "
                f"{file.sha256[:12]}…); it was not kept. {advice}",
            )
        part.replace(path)
        for stale in path.parent.glob(f"{glob.escape(path.name)}.*part"):  # of earlier versions
            stale.unlink()
        if file.sha256 is None:
            _record(path, digest)
        self._remember(path, _stamp(path), digest)
        return self._judged(owned, path, digest)

    def _recognise(self, path: Path) -> tuple[list[_Owned], WeightsError | None]:
        """Manifest files that `path` is a copy of, or what is wrong with a file of a known name."""
        size = path.stat().st_size
        same_name = [owned for owned in self._downloadable() if owned.file.name == path.name]
        unhashed = [owned for owned in same_name if owned.file.sha256 is None]
        if unhashed:
            place = path.resolve().as_posix().lower()
            told = [one for one in unhashed if one.owner in place or _repo_name(one.file) in place]
            return (told if len(told) == 1 else unhashed if len(unhashed) == 1 else []), None

        candidates = [
            owned for owned in self._downloadable() if owned.file.sha256 and owned.file.size in (None, size)
        ]
        digest = file_sha256(path) if candidates else None
        if matches := [owned for owned in candidates if owned.file.sha256 == digest]:
            return matches, None
        # Many models have a config.json; another model's is no damaged copy of ours.
        if not same_name or path.suffix not in WEIGHT_SUFFIXES:
            return [], None
        sizes = sorted({owned.file.size for owned in same_name if owned.file.size is not None})
        if sizes and size not in sizes:
            return [], WeightsError(
                ErrorCode.WEIGHTS_TRUNCATED,
                f"{path} has {size} bytes, but published are {' or '.join(map(str, sizes))}: it is cut off "
                "or another version; get it again.",
            )
        return [], WeightsError(
            ErrorCode.WEIGHTS_HASH_MISMATCH,
            f"{path} is not the published file (SHA-256 {str(digest)[:12]}…): it is damaged or another "
            "version; get it again.",
        )

    def _unusable(self, name: str, owned: _Owned, report: FileReport) -> WeightsError:
        if owned.file.bundled:
            get = "it ships with the package: reinstall that"
        else:
            get = f"run `lipsync weights pull {name}`, or `lipsync weights import PATH` if you have the files"
        match report.state:
            case FileState.MISSING:
                code, what = (
                    ErrorCode.WEIGHTS_MISSING,
                    f"{name} needs {owned.file.path}, which is not in {self.root}",
                )
            case FileState.TRUNCATED:
                code, what = ErrorCode.WEIGHTS_TRUNCATED, f"{report.path} has the wrong size"
            case _:
                code, what = (
                    ErrorCode.WEIGHTS_HASH_MISMATCH,
                    f"{report.path} does not have its published content",
                )
        return WeightsError(code, f"{what}: {get}.")

    # --- memory and locks ---

    @property
    def _state_file(self) -> Path:
        return self.root / "verified.json"

    def _remember(self, path: Path, stamp: str, digest: str) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / ".verified.lock"):
                known = _read_json(self._state_file)
                known[str(path)] = {"stamp": stamp, "sha256": digest}
                part = self._state_file.with_suffix(".part")
                part.write_text(json.dumps(known, indent=1))
                part.replace(self._state_file)
        except OSError as error:  # a read-only folder of shared weights: hashed anew by each process
            log.info("%s cannot be written (%s): hashes are not remembered", self.root, error)

    @contextmanager
    def _lock(self, owned: _Owned) -> Iterator[None]:
        path = self._path(owned)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_name(f".{path.name}.lock"))
            lock.acquire()
        except OSError as error:
            raise disk_fault(error, path.parent) from error
        try:
            yield
        finally:
            lock.release()


def _link_or_copy(source: Path, part: Path) -> Path:
    part.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), part)
    except OSError:  # another disk, or a file system without links
        try:
            shutil.copyfile(source, part)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise disk_fault(error, part.parent) from error
    return part


def _recorded(path: Path) -> str | None:
    """The hash noted when a file of unknown hash was first taken."""
    try:
        return path.with_name(f"{path.name}.sha256").read_text().split()[0]
    except (FileNotFoundError, IndexError):
        return None


def _record(path: Path, digest: str) -> str:
    try:
        path.with_name(f"{path.name}.sha256").write_text(f"{digest}  {path.name}\n")
    except OSError as error:
        log.warning("%s has no known hash, and none can be recorded beside it (%s)", path, error)
    return digest


def _repo_name(file: FileEntry) -> str:
    return str(file.repo or file.name).split("/")[-1].lower()


def _stamp(path: Path) -> str:
    """Changes whenever a file's content does, short of deliberate forgery."""
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _ignore(name: str, done: int, total: int) -> None:
    """Nobody asked for progress."""
