"""Local store of model files: status, verification, download and import.

A file is used only after its SHA-256 was verified: against the manifest, or, if the manifest has no hash,
against the record that was written when the file was installed (`NAME.sha256` beside it, in the format of
`sha256sum -c`). The store remembers verified files by size, times and inode, so that loading does not hash
gigabytes again.
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
from lipsync_engine.utils import file_sha256
from lipsync_engine.weights.files import OnBytes, to_disk_error
from lipsync_engine.weights.manifest import FileEntry, ModelEntry, bundled_weights_dir, read_model_manifest

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
        role: see `FileEntry`.
        path: where it is, or belongs.
        state: of the local file.
        sha256: of the local file; None if it was not hashed.
    """

    role: str
    path: Path
    state: FileState
    sha256: str | None


@dataclass(frozen=True, slots=True)
class _ModelFile:
    """A file and the name of the manifest entry that owns it."""

    owner: str
    file: FileEntry


class WeightsStore:
    """Local store of model files.

    Args:
        root: folder of pulled and imported files; None: LIPSYNC_WEIGHTS_DIR, else the user's cache folder.
        manifest: list of models; None: the one of the package. Bundled files are beside it.
    """

    def __init__(self, root: Path | None = None, manifest: Path | None = None) -> None:
        setting = os.environ.get("LIPSYNC_WEIGHTS_DIR")
        default = Path(setting) if setting else Path(platformdirs.user_cache_dir("lipsync")) / "weights"
        self.root = (root or default).expanduser().absolute()
        self._manifest = manifest or bundled_weights_dir() / "manifest.toml"
        self._entries = read_model_manifest(self._manifest)

    def entries(self) -> tuple[ModelEntry, ...]:
        """Return all models and components, in the manifest's order."""
        return tuple(self._entries.values())

    def entry(self, name: str) -> ModelEntry:
        """Return the entry of a model or component.

        Raises:
            WeightsError: MODEL_UNKNOWN; the message lists the models.
        """
        if name not in self._entries:
            names = ", ".join(entry.name for entry in self.entries() if not entry.is_component)
            raise WeightsError(ErrorCode.MODEL_UNKNOWN, f"Model {name!r} does not exist: use one of {names}.")
        return self._entries[name]

    def file_reports(self, name: str) -> tuple[FileReport, ...]:
        """Report the state of every file of a model and its components, without hashing."""
        return tuple(self._report_unhashed(model_file) for model_file in self._model_files(name))

    def describe_status(self, name: str) -> str:
        """Describe the state of a model in a few words."""
        reports = self.file_reports(name)
        for state in (FileState.MISSING, FileState.TRUNCATED, FileState.CHANGED, FileState.PRESENT):
            if names := [report.path.name for report in reports if report.state is state]:
                return f"{state}: {names[0] if len(names) == 1 else f'{len(names)} of {len(reports)} files'}"
        return "ready"

    def require_complete(self, name: str) -> None:
        """Check that every file of a model and its components is there in full, without hashing.

        Raises:
            WeightsError: as `verified_files`.
        """
        for model_file in self._model_files(name):
            report = self._report_unhashed(model_file)
            if report.state not in (FileState.PRESENT, FileState.VERIFIED):
                raise self._unusable_error(name, model_file, report)

    def verified_files(self, name: str) -> dict[str, Path]:
        """Verify every file of a model and its components, and return role → path.

        Raises:
            WeightsError: WEIGHTS_MISSING, WEIGHTS_TRUNCATED or WEIGHTS_HASH_MISMATCH; the message names the
                command to run.
        """
        return {report.role: report.path for report in self._verified_reports(name)}

    def weights_sha256(self, name: str) -> str:
        """Compute one hash over role and SHA-256 of all files of a model; it is the same on every machine."""
        lines = sorted(f"{report.role} {report.sha256}\n" for report in self._verified_reports(name))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def verify(self, name: str) -> tuple[FileReport, ...]:
        """Hash every file of a model again, ignoring remembered hashes."""
        return tuple(self._verify_file(model_file, rehash=True) for model_file in self._model_files(name))

    def pull(self, name: str, on_bytes: OnBytes | None = None) -> None:
        """Download the files that are missing or damaged, and resume interrupted downloads.

        Several processes may pull the same model: one downloads, the others wait for it.

        Args:
            name: model or component.
            on_bytes: progress callback.

        Raises:
            WeightsError: WEIGHTS_DOWNLOAD_FAILED, WEIGHTS_TRUNCATED, WEIGHTS_HASH_MISMATCH.
            ResourceError: DISK_FULL, OUTPUT_NOT_WRITABLE.
        """
        for model_file in self._model_files(name):
            if self._verify_file(model_file).state is FileState.VERIFIED:
                continue
            if model_file.file.is_bundled:
                raise self._unusable_error(name, model_file, self._verify_file(model_file))
            path = self._local_path(model_file)
            with self._lock_file(model_file):
                if self._verify_file(model_file).state is not FileState.VERIFIED:
                    # The module imports network libraries that only downloads need.
                    from lipsync_engine.weights.download import download

                    part = download(model_file.file, path.parent, on_bytes or _ignore_progress)
                    self._install(
                        model_file, part, "Pull again, from another mirror (HF_ENDPOINT) if this repeats."
                    )

    def import_path(self, source: Path) -> tuple[FileReport, ...]:
        """Import model files from a file or a folder: copy of a hub repository, hub cache, or flat folder.

        Files are matched by size and SHA-256, or by name if the manifest has no hash. Valid files are
        hard-linked if the file system allows it, else copied.

        Returns:
            One report per imported file.

        Raises:
            WeightsError: no file matches, or a weight file with a known name is damaged. Valid files beside
                it are imported first.
        """
        if not source.exists():
            raise WeightsError(
                ErrorCode.WEIGHTS_MISSING, f"{source} does not exist: name a file or a folder."
            )
        paths = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
        reports: list[FileReport] = []
        first_error: WeightsError | None = None
        for path in paths:
            matches, error = self._match_path(path)
            for model_file in matches:
                with self._lock_file(model_file):
                    report = self._verify_file(model_file)
                    if report.state is not FileState.VERIFIED:
                        target = self._local_path(model_file)
                        part = _link_or_copy(path, target.with_name(f"{target.name}.import.part"))
                        report = self._install(model_file, part, f"{path} is unchanged; get it again.")
                reports.append(report)
            first_error = first_error or error
        if first_error is not None:
            raise first_error
        if not reports:
            names = sorted({model_file.file.name for model_file in self._downloadable_files()})
            raise WeightsError(
                ErrorCode.WEIGHTS_MISSING,
                f"{source} contains no known model file: the known files are {', '.join(names)}.",
            )
        return tuple(reports)

    # --- one file ---

    def _model_files(self, name: str) -> list[_ModelFile]:
        entry = self.entry(name)
        owners = (entry, *(self.entry(component) for component in entry.uses))
        return [_ModelFile(owner.name, file) for owner in owners for file in owner.files]

    def _downloadable_files(self) -> list[_ModelFile]:
        return [
            _ModelFile(entry.name, file)
            for entry in self.entries()
            for file in entry.files
            if not file.is_bundled
        ]

    def _local_path(self, model_file: _ModelFile) -> Path:
        base = self._manifest.parent if model_file.file.is_bundled else self.root / model_file.owner
        return base / model_file.file.path

    def _verified_reports(self, name: str) -> list[FileReport]:
        reports = []
        for model_file in self._model_files(name):
            report = self._verify_file(model_file)
            if report.state is not FileState.VERIFIED:
                raise self._unusable_error(name, model_file, report)
            reports.append(report)
        return reports

    def _report_unhashed(self, model_file: _ModelFile) -> FileReport:
        """Report the state as far as it is known without hashing."""
        path = self._local_path(model_file)
        if not path.is_file():
            return FileReport(model_file.file.role, path, FileState.MISSING, None)
        if model_file.file.size is not None and path.stat().st_size != model_file.file.size:
            return FileReport(model_file.file.role, path, FileState.TRUNCATED, None)
        remembered = _read_json(self._state_file).get(str(path), {})
        if remembered.get("stamp") != _file_stamp(path):
            return FileReport(model_file.file.role, path, FileState.PRESENT, None)
        return self._report_hashed(model_file, path, remembered["sha256"])

    def _verify_file(self, model_file: _ModelFile, *, rehash: bool = False) -> FileReport:
        """Report the state after hashing; an unchanged file is hashed again only with `rehash`."""
        report = self._report_unhashed(model_file)
        if report.state in (FileState.MISSING, FileState.TRUNCATED) or (report.sha256 and not rehash):
            return report
        stamp = _file_stamp(report.path)  # read before hashing, so that a concurrent change invalidates it
        digest = file_sha256(report.path)
        self._store_hash(report.path, stamp, digest)
        return self._report_hashed(model_file, report.path, digest)

    def _report_hashed(self, model_file: _ModelFile, path: Path, digest: str) -> FileReport:
        expected = model_file.file.sha256
        if expected is None and not model_file.file.is_bundled:
            expected = _read_hash_record(path) or _write_hash_record(path, digest)
        state = FileState.VERIFIED if expected in (None, digest) else FileState.CHANGED
        return FileReport(model_file.file.role, path, state, digest)

    def _install(self, model_file: _ModelFile, part: Path, advice: str) -> FileReport:
        """Verify a new file and move it to its path; a wrong file is deleted."""
        file, path = model_file.file, self._local_path(model_file)
        size, digest = part.stat().st_size, file_sha256(part)
        if file.size is not None and size != file.size:
            part.unlink()
            raise WeightsError(
                ErrorCode.WEIGHTS_TRUNCATED,
                f"{file.name} has {size} bytes, but {file.size} are published; it was discarded. {advice}",
            )
        if file.sha256 is not None and digest != file.sha256:
            part.unlink()
            raise WeightsError(
                ErrorCode.WEIGHTS_HASH_MISMATCH,
                f"{file.name} is not the published file (SHA-256 {digest[:12]}…, expected "
                f"{file.sha256[:12]}…); it was discarded. {advice}",
            )
        part.replace(path)
        for stale in path.parent.glob(f"{glob.escape(path.name)}.*part"):  # parts of earlier versions
            stale.unlink()
        if file.sha256 is None:
            _write_hash_record(path, digest)
        self._store_hash(path, _file_stamp(path), digest)
        return self._report_hashed(model_file, path, digest)

    def _match_path(self, path: Path) -> tuple[list[_ModelFile], WeightsError | None]:
        """Find the manifest files that `path` is a copy of, or the error of a file with a known name."""
        size = path.stat().st_size
        same_name = [
            model_file for model_file in self._downloadable_files() if model_file.file.name == path.name
        ]
        unhashed = [model_file for model_file in same_name if model_file.file.sha256 is None]
        if unhashed:
            location = path.resolve().as_posix().lower()
            by_folder = [
                model_file
                for model_file in unhashed
                if model_file.owner in location or _repo_name(model_file.file) in location
            ]
            return (by_folder if len(by_folder) == 1 else unhashed if len(unhashed) == 1 else []), None

        candidates = [
            model_file
            for model_file in self._downloadable_files()
            if model_file.file.sha256 and model_file.file.size in (None, size)
        ]
        digest = file_sha256(path) if candidates else None
        if matches := [model_file for model_file in candidates if model_file.file.sha256 == digest]:
            return matches, None
        # Many models have a config.json; another model's file is not a damaged copy of ours.
        if not same_name or path.suffix not in WEIGHT_SUFFIXES:
            return [], None
        sizes = sorted({model_file.file.size for model_file in same_name if model_file.file.size is not None})
        if sizes and size not in sizes:
            return [], WeightsError(
                ErrorCode.WEIGHTS_TRUNCATED,
                f"{path} has {size} bytes, but {' or '.join(map(str, sizes))} are published: it is truncated "
                "or another version; get it again.",
            )
        return [], WeightsError(
            ErrorCode.WEIGHTS_HASH_MISMATCH,
            f"{path} is not the published file (SHA-256 {str(digest)[:12]}…): it is damaged or another "
            "version; get it again.",
        )

    def _unusable_error(self, name: str, model_file: _ModelFile, report: FileReport) -> WeightsError:
        if model_file.file.is_bundled:
            remedy = "reinstall the package, which contains it"
        else:
            remedy = (
                f"run `lipsync weights pull {name}`, or `lipsync weights import PATH` if you have the files"
            )
        match report.state:
            case FileState.MISSING:
                code, problem = (
                    ErrorCode.WEIGHTS_MISSING,
                    f"{name} needs {model_file.file.path}, which is not in {self.root}",
                )
            case FileState.TRUNCATED:
                code, problem = ErrorCode.WEIGHTS_TRUNCATED, f"{report.path} has the wrong size"
            case _:
                code, problem = (
                    ErrorCode.WEIGHTS_HASH_MISMATCH,
                    f"{report.path} does not match its published SHA-256",
                )
        return WeightsError(code, f"{problem}: {remedy}.")

    # --- remembered hashes and locks ---

    @property
    def _state_file(self) -> Path:
        return self.root / "verified.json"

    def _store_hash(self, path: Path, stamp: str, digest: str) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / ".verified.lock"):
                hashes = _read_json(self._state_file)
                hashes[str(path)] = {"stamp": stamp, "sha256": digest}
                part = self._state_file.with_suffix(".part")
                part.write_text(json.dumps(hashes, indent=1))
                part.replace(self._state_file)
        except OSError as error:  # a read-only folder of shared weights: every process hashes again
            log.info("%s is not writable (%s): hashes are not remembered", self.root, error)

    @contextmanager
    def _lock_file(self, model_file: _ModelFile) -> Iterator[None]:
        path = self._local_path(model_file)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_name(f".{path.name}.lock"))
            lock.acquire()
        except OSError as error:
            raise to_disk_error(error, path.parent) from error
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
            raise to_disk_error(error, part.parent) from error
    return part


def _read_hash_record(path: Path) -> str | None:
    """Read the hash that was recorded when a file without a published hash was installed."""
    try:
        return path.with_name(f"{path.name}.sha256").read_text().split()[0]
    except (FileNotFoundError, IndexError):
        return None


def _write_hash_record(path: Path, digest: str) -> str:
    try:
        path.with_name(f"{path.name}.sha256").write_text(f"{digest}  {path.name}\n")
    except OSError as error:
        log.warning("%s has no published hash, and its hash cannot be recorded (%s)", path, error)
    return digest


def _repo_name(file: FileEntry) -> str:
    return str(file.repo or file.name).split("/")[-1].lower()


def _file_stamp(path: Path) -> str:
    """Identify the file's content by size, times and inode; only deliberate forgery defeats it."""
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _ignore_progress(name: str, done: int, total: int) -> None:
    """Ignore the progress of a download."""
