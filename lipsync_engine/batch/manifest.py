"""The rows of a batch: from a CSV or JSONL file, or from pairs of files in a folder.

Manifests are untrusted. A row becomes a `ManifestRow` only if its options are in range and its output path is
unique and inside the output folder. Input files are not opened here. The module knows neither models nor
results.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

from lipsync_engine.errors import ErrorCode, InputError, LipSyncError, ParameterError
from lipsync_engine.media import OUTPUT_SUFFIXES
from lipsync_engine.media.rates import parse_rate
from lipsync_engine.params import (
    IMAGE_SUFFIXES,
    FaceChoice,
    HdrMode,
    LoopMode,
    Motion,
    Provenance,
    SyncParams,
    Tail,
    VideoCodec,
)
from lipsync_engine.provenance import require_consent


class InputRole(StrEnum):
    """Role of a row's input file; also the name of its column."""

    VIDEO = "video"
    IMAGE = "image"
    AUDIO = "audio"
    OUTPUT_AUDIO = "output_audio"
    MASK_IMAGE = "mask_image"


VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm"})
AUDIO_SUFFIXES = frozenset({".wav", ".mp3", ".m4a", ".aac", ".flac", ".ogg", ".opus", ".aiff"})

SUFFIXES = (
    (InputRole.VIDEO, VIDEO_SUFFIXES),
    (InputRole.IMAGE, IMAGE_SUFFIXES),
    (InputRole.AUDIO, AUDIO_SUFFIXES),
)
"""Role of a file in a folder by its suffix."""

URL_STARTS = ("http://", "https://")
MAX_MANIFEST_BYTES = 64 << 20
MAX_NAME_BYTES = 200
"""Limit for one part of an output path. File systems allow 255, and the temporary file's name is longer."""

OPTIONS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "face": ("face", FaceChoice.parse),
    "seed": ("seed", int),
    "steps": ("num_inference_steps", int),
    "guidance_scale": ("guidance_scale", float),
    "fps": ("fps", parse_rate),
    "max_short_side": ("max_short_side", int),
    "video_codec": ("video_codec", VideoCodec),
    "hdr": ("hdr", HdrMode),
    "loop_mode": ("loop_mode", LoopMode),
    "tail": ("tail", Tail),
}
"""Columns that are options of a job: the field of `SyncParams`, and the parser of a cell."""

PORTRAIT_OPTIONS = ("motion", "prompt")
VIDEO_OPTIONS = ("fps", "loop_mode", "tail", "hdr")
COLUMNS = (*map(str, InputRole), "output", *OPTIONS, *PORTRAIT_OPTIONS, "consent")


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One clip to lip-sync.

    Attributes:
        number: of the row, from 1; a CSV's header is not counted, a folder's pairs are sorted by name.
        inputs: files to read; VIDEO or IMAGE, and AUDIO, are always among them.
        output: path of the result in the output folder, with `/`; unique in the batch.
        params: the batch's options, overridden by the row's.
        motion, prompt: of a portrait.
        consent: reference to the consent of the person shown.
    """

    number: int
    inputs: Mapping[InputRole, Path]
    output: str
    params: SyncParams
    motion: Motion = Motion.NATURAL
    prompt: str | None = None
    consent: str | None = None

    @property
    def source_role(self) -> InputRole:
        """IMAGE for a portrait, otherwise VIDEO."""
        return InputRole.IMAGE if InputRole.IMAGE in self.inputs else InputRole.VIDEO


@dataclass(frozen=True, slots=True)
class ManifestProblem:
    """One reason why a row is invalid.

    Attributes:
        row: its number, from 1.
        column: with the invalid value; empty if it is the row as a whole.
        code, message: as those of errors.
        clip: display name of the row, from its output or input files.
    """

    row: int
    column: str
    code: ErrorCode
    message: str
    clip: str = ""

    def __str__(self) -> str:
        position = f"row {self.row}, {self.column}" if self.column else f"row {self.row}"
        return f"{position}: {self.message}"


class ManifestError(InputError):
    """Some rows are invalid, so the batch was not started.

    Args:
        problems: at least one, in order of rows.
        rows: number of rows in the manifest.
    """

    def __init__(self, problems: tuple[ManifestProblem, ...], rows: int) -> None:
        n_invalid = len({problem.row for problem in problems})
        super().__init__(
            ErrorCode.MANIFEST_INVALID,
            f"{n_invalid} of {rows} rows are invalid, so nothing was started: correct them, or use "
            "--skip-bad to leave them out.",
        )
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Manifest:
    """The valid rows of a manifest, and the problems of the others."""

    rows: tuple[ManifestRow, ...]
    problems: tuple[ManifestProblem, ...]

    @property
    def n_rows(self) -> int:
        """Number of valid and invalid rows."""
        return len(self.rows) + len({problem.row for problem in self.problems})


def read_manifest(source: Path, params: SyncParams, output: Path, consent: str | None = None) -> Manifest:
    """Read the rows of a file or the pairs of a folder.

    Args:
        source: .csv, .jsonl or a folder; relative paths in a file are relative to it.
        params: options of rows that do not set their own.
        output: folder of the results; it need not exist.
        consent: of rows that do not set their own.

    Raises:
        InputError: the file is not readable, has unknown columns, or has no rows.
    """
    try:
        entries = list(_read_entries(source))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            ErrorCode.INPUT_NOT_FOUND if isinstance(error, FileNotFoundError) else ErrorCode.INPUT_UNREADABLE,
            f"{source.name!r} is not readable ({_describe_error(error)}): use a CSV or JSONL file in UTF-8, "
            "or a folder.",
        ) from error
    if not entries:
        raise InputError(
            ErrorCode.INPUT_EMPTY,
            f"{source.name!r} names no clips: a file needs a row, a folder two files such as talk.mp4 and "
            "talk.wav.",
        )
    base = source if source.is_dir() else source.parent
    rows: list[ManifestRow] = []
    problems: list[ManifestProblem] = []
    for number, entry in enumerate(entries, 1):
        row = entry if isinstance(entry, _RowError) else _parse_row(number, entry, base, params, consent)
        if isinstance(row, ManifestRow):
            rows.append(row)
        else:
            clip = entry.clip if isinstance(entry, _RowError) else _display_name(entry)
            problems += [ManifestProblem(number, *problem, clip) for problem in row.problems]
    output_problems = list(_check_output_paths(rows, output))
    invalid = {problem.row for problem in output_problems}
    valid_rows = tuple(row for row in rows if row.number not in invalid)
    problems = sorted([*problems, *output_problems], key=lambda problem: problem.row)
    return Manifest(valid_rows, tuple(problems))


def escape_undecodable(text: str) -> str:
    """Replace characters that UTF-8 cannot represent with escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


# --- cells ---


@dataclass(frozen=True, slots=True)
class _RowError:
    """(column, code, message) of every problem in a row; `clip` as in `ManifestProblem`."""

    problems: tuple[tuple[str, ErrorCode, str], ...]
    clip: str = ""

    @classmethod
    def from_problem(
        cls, column: str, message: str, code: ErrorCode = ErrorCode.PARAMETER_INVALID, clip: str = ""
    ) -> _RowError:
        return cls(((column, code, message),), clip)


Cells = Mapping[str, str]


def _read_entries(source: Path) -> Iterator[Cells | _RowError]:
    if source.is_dir():
        return _pair_files(source)
    suffix, size_bytes = source.suffix.lower(), source.stat().st_size
    if suffix not in (".csv", ".jsonl"):
        raise ParameterError(f"{source.name!r} is no manifest: give a .csv or .jsonl file, or a folder.")
    if size_bytes > MAX_MANIFEST_BYTES:
        raise ParameterError(
            f"{source.name!r} has {size_bytes >> 20} MiB; the limit is {MAX_MANIFEST_BYTES >> 20} MiB: split "
            "the file."
        )
    text = source.read_text(encoding="utf-8-sig")
    return _read_csv(text) if suffix == ".csv" else _read_jsonl(text)


def _read_csv(text: str) -> Iterator[Cells | _RowError]:
    first_line = text.partition("\n")[0]
    # Spreadsheets write semicolons where the comma is the decimal sign. No column has one in its name.
    delimiter = ";" if ";" in first_line and "," not in first_line else ","
    lines = csv.reader(text.splitlines(keepends=True), strict=True, delimiter=delimiter)
    header = [name.strip().lower() for name in next(lines, [])]
    if unknown := [name for name in header if name not in COLUMNS]:
        raise ParameterError(
            f"Column {escape_undecodable(unknown[0])!r} does not exist: use {', '.join(COLUMNS)} in the "
            "first line."
        )
    if len(set(header)) < len(header):
        raise ParameterError("A column is named twice in the first line: name each once.")
    for cells in lines:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(header):
            yield _RowError.from_problem(
                "",
                f"The row has {len(cells)} cells, the first line {len(header)}: quote cells that contain "
                f"{delimiter!r}.",
            )
        else:
            yield dict(zip(header, cells, strict=False))


def _read_jsonl(text: str) -> Iterator[Cells | _RowError]:
    for line in text.split("\n"):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            yield _RowError.from_problem("", "The line is not JSON: write one object per line.")
            continue
        if not isinstance(value, dict):
            yield _RowError.from_problem(
                "",
                'The line is no JSON object: write one such as {"video": "talk.mp4", "audio": "talk.wav"}.',
            )
        elif unknown := [key for key in value if key not in COLUMNS]:
            yield _RowError.from_problem(
                escape_undecodable(unknown[0])[:40], f"The key does not exist: use {', '.join(COLUMNS)}."
            )
        elif not_scalar := [key for key, cell in value.items() if not _is_scalar(cell)]:
            yield _RowError.from_problem(
                not_scalar[0], "The value is neither text nor a number: use one of them."
            )
        else:
            yield {key: str(cell) for key, cell in value.items() if cell is not None}


def _is_scalar(value: object) -> bool:
    return value is None or (isinstance(value, (str, int, float)) and not isinstance(value, bool))


def _pair_files(folder: Path) -> Iterator[Cells | _RowError]:
    """Yield pairs of a video or image and an audio file with the same stem."""
    by_stem: dict[str, dict[str, list[str]]] = {}
    for path in sorted(folder.iterdir()):
        suffix = path.suffix.lower()
        role = next((name for name, suffixes in SUFFIXES if suffix in suffixes), None)
        if role is not None and not path.name.startswith("."):
            by_stem.setdefault(path.stem, {}).setdefault(role, []).append(path.name)
    for stem, by_role in sorted(by_stem.items()):
        sources = by_role.get(InputRole.VIDEO, []) + by_role.get(InputRole.IMAGE, [])
        audio = by_role.get(InputRole.AUDIO, [])
        names = ", ".join(escape_undecodable(name) for name in sources + audio)
        stem = escape_undecodable(stem)
        if len(sources) == 1 and len(audio) == 1:
            yield {role: files[0] for role, files in by_role.items()}
        elif not audio:
            message = f"{names} has no audio file of the same name: add {stem}.wav."
            yield _RowError.from_problem(InputRole.AUDIO, message, ErrorCode.INPUT_NOT_FOUND, names)
        elif not sources:
            message = f"{names} has no video or image of the same name: add {stem}.mp4 or {stem}.png."
            yield _RowError.from_problem(InputRole.VIDEO, message, ErrorCode.INPUT_NOT_FOUND, names)
        else:
            yield _RowError.from_problem(
                "",
                f"{names} have the same name: keep one video or image and one audio file, or use a CSV file.",
            )


# --- rows ---


def _parse_row(
    number: int, cells: Cells, base: Path, params: SyncParams, consent: str | None
) -> ManifestRow | _RowError:
    values = {name: cell.strip() for name, cell in cells.items() if cell.strip()}
    problems: list[tuple[str, ErrorCode, str]] = []

    def add_problem(column: str, message: str) -> None:
        problems.append((column, ErrorCode.PARAMETER_INVALID, message))

    for name, text in values.items():
        if not _is_printable(text):
            add_problem(
                name, f"{escape_undecodable(text)[:80]!r} has control characters or line breaks: remove them."
            )
    if problems:
        return _RowError(tuple(problems))
    for name in [str(role) for role in InputRole if values.get(role, "").lower().startswith(URL_STARTS)]:
        add_problem(name, "The cell is a URL: download the file first, and name the file.")
    is_portrait = InputRole.IMAGE in values
    if (InputRole.VIDEO in values) == is_portrait:
        add_problem(InputRole.VIDEO, "The row needs either a video or an image: name one of them.")
    if InputRole.AUDIO not in values:
        add_problem(InputRole.AUDIO, "The row has no audio file: name the file with the voice.")
    inapplicable = VIDEO_OPTIONS if is_portrait else PORTRAIT_OPTIONS
    for name in sorted(values.keys() & set(inapplicable)):
        add_problem(
            name, f"The option does not apply to {'an image' if is_portrait else 'a video'}: leave it empty."
        )
    for name in OPTIONS.keys() & values.keys():
        field, parse = OPTIONS[name]
        try:
            params = dataclasses.replace(params, **{field: parse(values[name])})
        except LipSyncError as error:
            add_problem(name, error.message)
        except ValueError:
            add_problem(name, f"{values[name][:80]!r} is invalid{_describe_choices(parse)}.")
    motion = values.get("motion", Motion.NATURAL)
    if motion not in list(Motion):
        add_problem("motion", f"{motion[:80]!r} is invalid{_describe_choices(Motion)}.")
    consent = values.get("consent", consent)
    try:
        Provenance(consent)
        require_consent(consent)
    except LipSyncError as error:
        problems.append(("consent", error.code, error.message))
    if problems:
        return _RowError(tuple(problems))
    inputs = {role: base / values[role] for role in InputRole if role in values}
    if InputRole.MASK_IMAGE in inputs:
        params = dataclasses.replace(params, mask_image=inputs[InputRole.MASK_IMAGE])
    elif params.mask_image is not None:
        inputs[InputRole.MASK_IMAGE] = params.mask_image
    source = inputs[InputRole.IMAGE if is_portrait else InputRole.VIDEO]
    output = values.get("output") or _default_output_name(source, inputs[InputRole.AUDIO])
    if problem := _output_name_problem(output):
        return _RowError.from_problem("output", problem)
    return ManifestRow(
        number, inputs, str(PurePosixPath(output)), params, Motion(motion), values.get("prompt"), consent
    )


def _display_name(cells: Cells) -> str:
    columns = ("output", InputRole.VIDEO, InputRole.IMAGE, InputRole.AUDIO)
    names = [cells[name] for name in columns if cells.get(name)]
    if cells.get("output"):
        names = names[:1]
    return escape_undecodable(" + ".join(name[:80] for name in names))


def _is_printable(text: str) -> bool:
    return all(unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp") for character in text)


def _describe_choices(parse: Callable[[str], Any]) -> str:
    if isinstance(parse, type) and issubclass(parse, StrEnum):
        return f": use {', '.join(parse)}"
    return ": use a whole number" if parse is int else ": use a number"


def _default_output_name(source: Path, audio: Path) -> str:
    has_same_stem = source.stem == audio.stem
    return f"{source.stem}.mp4" if has_same_stem else f"{source.stem}-{audio.stem}.mp4"


def _output_name_problem(output: str) -> str | None:
    path = PurePosixPath(output)
    name = output[:80]
    if path.is_absolute() or "\\" in output or ".." in path.parts or (len(output) > 1 and output[1] == ":"):
        return f"{name!r} leaves the output folder: use a name such as talk.mp4 or monday/talk.mp4."
    if any(part.startswith(".") for part in path.parts):
        return f"{name!r} is a hidden name: do not begin it with a dot."
    if path.suffix.lower() not in OUTPUT_SUFFIXES:
        return f"{name!r} has an unknown suffix: use one of {', '.join(sorted(OUTPUT_SUFFIXES))}."
    if any(len(part.encode()) > MAX_NAME_BYTES for part in path.parts):
        return f"{name!r} is longer than {MAX_NAME_BYTES} bytes: use a shorter name."
    return None


def _check_output_paths(rows: Iterable[ManifestRow], output: Path) -> Iterator[ManifestProblem]:
    """Yield rows whose result would overwrite another result, an input, or a file outside the folder."""
    root = output.resolve()
    inputs = {_resolve_path(path) for row in rows for path in row.inputs.values()}
    row_by_file: dict[str, int] = {}
    row_by_folder: dict[str, int] = {}
    for row in rows:
        name = _fold_name(row.output)
        parents = [_fold_name(str(parent)) for parent in PurePosixPath(row.output).parents]
        path = root / row.output
        conflict = row_by_folder.get(name) or next(
            (row_by_file[p] for p in parents if p in row_by_file), None
        )
        if name in row_by_file:
            message = f"Row {row_by_file[name]} has the result {row.output!r} too: give each its own name."
        elif conflict is not None:
            message = f"{row.output!r} cannot be a file and a folder, which row {conflict} needs it for."
        elif not _resolve_path(path.parent).is_relative_to(root):
            message = f"{row.output!r} leads out of the output folder through a link: use another name."
        elif path.is_dir():
            message = f"{row.output!r} is a folder already: use another name."
        elif _resolve_path(path) in inputs:
            message = f"{row.output!r} is an input of this batch: use another name or output folder."
        else:
            row_by_file[name] = row.number
            row_by_folder |= {parent: row.number for parent in parents if parent not in row_by_folder}
            continue
        yield ManifestProblem(row.number, "output", ErrorCode.PARAMETER_INVALID, message, row.output)


def _fold_name(name: str) -> str:
    """Return a form that is equal for names that some file system treats as one file."""
    return unicodedata.normalize("NFC", name).casefold()


def _resolve_path(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a loop of links; opening the file reports it
        return path.absolute()


def _describe_error(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or "it does not exist"
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else f"not CSV: {error}"
