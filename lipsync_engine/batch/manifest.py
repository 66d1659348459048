"""What is to be made: rows of a CSV or JSONL file, or pairs of files in a folder.

Nothing in a manifest is believed: a row becomes a `Row` only when its options are in range and its result
stays inside the output folder, alone under its name. Whether its files can be used is not looked at here.

It reads manifests and lists folders; it knows neither models nor results.
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
from lipsync_engine.params import FaceChoice, LoopMode, Motion, Provenance, SyncParams, Tail
from lipsync_engine.provenance import require_consent


class Input(StrEnum):
    """What the files of a row are for; also the names of their columns."""

    VIDEO = "video"
    IMAGE = "image"
    AUDIO = "audio"
    OUTPUT_AUDIO = "output_audio"
    MASK_IMAGE = "mask_image"


VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm"})
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
AUDIO_SUFFIXES = frozenset({".wav", ".mp3", ".m4a", ".aac", ".flac", ".ogg", ".opus", ".aiff"})

KINDS = ((Input.VIDEO, VIDEO_SUFFIXES), (Input.IMAGE, IMAGE_SUFFIXES), (Input.AUDIO, AUDIO_SUFFIXES))
"""What a file of a folder is by the end of its name."""

MAX_MANIFEST_BYTES = 64 << 20
MAX_NAME_BYTES = 200
"""Of one part of an output's path: file systems take 255, and the unfinished file's name is longer."""


OPTIONS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "face": ("face", FaceChoice.parse),
    "seed": ("seed", int),
    "steps": ("num_inference_steps", int),
    "guidance_scale": ("guidance_scale", float),
    "fps": ("fps", parse_rate),
    "max_short_side": ("max_short_side", int),
    "loop_mode": ("loop_mode", LoopMode),
    "tail": ("tail", Tail),
}
"""Columns that are options of a job: the field of `SyncParams`, and how a cell is read."""

PORTRAIT_OPTIONS = ("motion", "prompt")
VIDEO_OPTIONS = ("fps", "loop_mode", "tail")
COLUMNS = (*map(str, Input), "output", *OPTIONS, *PORTRAIT_OPTIONS, "consent")


@dataclass(frozen=True, slots=True)
class Row:
    """One clip to make.

    Attributes:
        number: of the row, from 1; a CSV's header is not counted, a folder's pairs are in order of names.
        inputs: the files that are read; VIDEO or IMAGE, and AUDIO, are always there.
        output: path of the result in the output folder, with `/`; no other row has it.
        params: the batch's options with the row's own.
        motion, prompt: of a portrait.
        consent: reference to the consent of the person shown.
    """

    number: int
    inputs: Mapping[Input, Path]
    output: str
    params: SyncParams
    motion: Motion = Motion.NATURAL
    prompt: str | None = None
    consent: str | None = None

    @property
    def picture(self) -> Input:
        return Input.IMAGE if Input.IMAGE in self.inputs else Input.VIDEO


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a row cannot be made.

    Attributes:
        row: its number, from 1.
        column: where the mistake is; empty where it is the row as a whole.
        code, message: as those of errors.
        clip: what the row calls its result or files, for people.
    """

    row: int
    column: str
    code: ErrorCode
    message: str
    clip: str = ""

    def __str__(self) -> str:
        place = f"row {self.row}, {self.column}" if self.column else f"row {self.row}"
        return f"{place}: {self.message}"


class ManifestError(InputError):
    """Rows that cannot be made.

    Args:
        problems: at least one, in order of rows.
        rows: how many there are in all.
    """

    def __init__(self, problems: tuple[Problem, ...], rows: int) -> None:
        bad = len({problem.row for problem in problems})
        super().__init__(
            ErrorCode.MANIFEST_INVALID,
            f"{bad} of {rows} rows cannot be made, so nothing was started: correct them, or leave them out "
            "with --skip-bad.",
        )
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was read: rows that may be made, and what is wrong with the others."""

    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]

    @property
    def n_rows(self) -> int:
        return len(self.rows) + len({problem.row for problem in self.problems})


def read_manifest(source: Path, params: SyncParams, output: Path, consent: str | None = None) -> Manifest:
    """Rows of a file or pairs of a folder.

    Args:
        source: .csv, .jsonl or a folder; relative paths in a file are relative to it.
        params: options of rows that have none of their own.
        output: folder of the results; it need not exist.
        consent: of rows that have none of their own.

    Raises:
        InputError: the file cannot be read at all, has columns that do not exist, or no rows.
    """
    try:
        cells = list(_cells(source))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            ErrorCode.INPUT_NOT_FOUND if isinstance(error, FileNotFoundError) else ErrorCode.INPUT_UNREADABLE,
            f"{source.name!r} cannot be read ({_reason(error)}): give a CSV or JSONL file in UTF-8, or "
            "a folder.",
        ) from error
    if not cells:
        raise InputError(
            ErrorCode.INPUT_EMPTY,
            f"{source.name!r} names no clips: a file needs a row, a folder two files such as talk.mp4 and "
            "talk.wav.",
        )
    base = source if source.is_dir() else source.parent
    rows: list[Row] = []
    problems: list[Problem] = []
    for number, found in enumerate(cells, 1):
        row = found if isinstance(found, _Wrong) else _row(number, found, base, params, consent)
        if isinstance(row, Row):
            rows.append(row)
        else:
            clip = found.clip if isinstance(found, _Wrong) else _clip(found)
            problems += [Problem(number, *mistake, clip) for mistake in row.mistakes]
    misplaced = list(_misplaced(rows, output))
    refused = {problem.row for problem in misplaced}
    kept = tuple(row for row in rows if row.number not in refused)
    return Manifest(kept, tuple(sorted([*problems, *misplaced], key=lambda problem: problem.row)))


def readable(text: str) -> str:
    """With escapes in place of what cannot be written as UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


# --- cells ---


@dataclass(frozen=True, slots=True)
class _Wrong:
    """(column, code, message) of every mistake in a row; `clip` as a problem has it."""

    mistakes: tuple[tuple[str, ErrorCode, str], ...]
    clip: str = ""

    @classmethod
    def one(
        cls, column: str, message: str, code: ErrorCode = ErrorCode.PARAMETER_INVALID, clip: str = ""
    ) -> _Wrong:
        return cls(((column, code, message),), clip)


Cells = Mapping[str, str]


def _cells(source: Path) -> Iterator[Cells | _Wrong]:
    if source.is_dir():
        return _pairs(source)
    kind, size_bytes = source.suffix.lower(), source.stat().st_size
    if kind not in (".csv", ".jsonl"):
        raise ParameterError(f"{source.name!r} is not understood: give a .csv or .jsonl file, or a folder.")
    if size_bytes > MAX_MANIFEST_BYTES:
        raise ParameterError(f"{source.name!r} is larger than {MAX_MANIFEST_BYTES >> 20} MiB: split it.")
    text = source.read_text(encoding="utf-8-sig")
    return _csv(text) if kind == ".csv" else _jsonl(text)


def _csv(text: str) -> Iterator[Cells | _Wrong]:
    lines = csv.reader(text.splitlines(keepends=True), strict=True)
    header = [name.strip().lower() for name in next(lines, [])]
    if unknown := [name for name in header if name not in COLUMNS]:
        raise ParameterError(
            f"Column {readable(unknown[0])!r} does not exist: the first line names columns, which are "
            f"{', '.join(COLUMNS)}."
        )
    if len(set(header)) < len(header):
        raise ParameterError("A column is named twice in the first line: name each once.")
    for cells in lines:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(header):
            yield _Wrong.one(
                "", f"It has {len(cells)} cells, the first line only {len(header)}: quote commas."
            )
        else:
            yield dict(zip(header, cells, strict=False))


def _jsonl(text: str) -> Iterator[Cells | _Wrong]:
    for line in text.split("\n"):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            yield _Wrong.one("", "It is not JSON: write one object per line.")
            continue
        if not isinstance(found, dict):
            yield _Wrong.one(
                "", 'It is not a JSON object such as {"video": "talk.mp4", "audio": "talk.wav"}.'
            )
        elif unknown := [key for key in found if key not in COLUMNS]:
            yield _Wrong.one(
                readable(unknown[0])[:40], f"There is no such key; known are {', '.join(COLUMNS)}."
            )
        elif wrong := [key for key, value in found.items() if not _is_plain(value)]:
            yield _Wrong.one(wrong[0], "It must be text or a number.")
        else:
            yield {key: str(value) for key, value in found.items() if value is not None}


def _is_plain(value: object) -> bool:
    return value is None or (isinstance(value, (str, int, float)) and not isinstance(value, bool))


def _pairs(folder: Path) -> Iterator[Cells | _Wrong]:
    """A video or picture and a sound with the same name."""
    by_stem: dict[str, dict[str, list[str]]] = {}
    for path in sorted(folder.iterdir()):
        suffix = path.suffix.lower()
        kind = next((name for name, suffixes in KINDS if suffix in suffixes), None)
        if kind is not None and not path.name.startswith("."):
            by_stem.setdefault(path.stem, {}).setdefault(kind, []).append(path.name)
    for stem, kinds in sorted(by_stem.items()):
        pictures = kinds.get(Input.VIDEO, []) + kinds.get(Input.IMAGE, [])
        sounds = kinds.get(Input.AUDIO, [])
        names = ", ".join(readable(name) for name in pictures + sounds)
        if len(pictures) == 1 and len(sounds) == 1:
            yield {name: files[0] for name, files in kinds.items()}
        elif not sounds:
            missing = f"{names} has no sound beside it: add {readable(stem)}.wav."
            yield _Wrong.one(Input.AUDIO, missing, ErrorCode.INPUT_NOT_FOUND, names)
        elif not pictures:
            name = readable(stem)
            missing = f"{names} has no video or picture beside it: add {name}.mp4 or {name}.png."
            yield _Wrong.one(Input.VIDEO, missing, ErrorCode.INPUT_NOT_FOUND, names)
        else:
            yield _Wrong.one(
                "", f"{names} have one name: leave one picture and one sound, or use a CSV file."
            )


# --- rows ---


def _row(number: int, cells: Cells, base: Path, params: SyncParams, consent: str | None) -> Row | _Wrong:
    given = {name: cell.strip() for name, cell in cells.items() if cell.strip()}
    mistakes: list[tuple[str, ErrorCode, str]] = []

    def wrong(column: str, message: str) -> None:
        mistakes.append((column, ErrorCode.PARAMETER_INVALID, message))

    for name, text in given.items():
        if not _is_text(text):
            wrong(name, f"{readable(text)[:80]!r} has characters that names and options cannot have.")
    if mistakes:
        return _Wrong(tuple(mistakes))
    if (Input.VIDEO in given) == (Input.IMAGE in given):
        wrong(Input.VIDEO, "Name a video or an image, and not both.")
    if Input.AUDIO not in given:
        wrong(Input.AUDIO, "Name the file with the voice.")
    unused = VIDEO_OPTIONS if Input.IMAGE in given else PORTRAIT_OPTIONS
    for name in sorted(given.keys() & set(unused)):
        wrong(
            name,
            f"It has no meaning for {'an image' if Input.IMAGE in given else 'a video'}: leave it empty.",
        )
    for name in OPTIONS.keys() & given.keys():
        field, read = OPTIONS[name]
        try:
            params = dataclasses.replace(params, **{field: read(given[name])})
        except LipSyncError as error:
            wrong(name, error.message)
        except ValueError:
            wrong(name, f"{given[name][:80]!r} is not understood{_choices(read)}.")
    motion = given.get("motion", Motion.NATURAL)
    if motion not in list(Motion):
        wrong("motion", f"{motion[:80]!r} is not understood{_choices(Motion)}.")
    consent = given.get("consent", consent)
    try:
        Provenance(consent)
        require_consent(consent)
    except LipSyncError as error:
        mistakes.append(("consent", error.code, error.message))
    if mistakes:
        return _Wrong(tuple(mistakes))
    inputs = {role: base / given[role] for role in Input if role in given}
    if Input.MASK_IMAGE in inputs:
        params = dataclasses.replace(params, mask_image=inputs[Input.MASK_IMAGE])
    elif params.mask_image is not None:
        inputs[Input.MASK_IMAGE] = params.mask_image
    picture = inputs[Input.IMAGE if Input.IMAGE in inputs else Input.VIDEO]
    output = given.get("output") or _default_output(picture, inputs[Input.AUDIO])
    if mistake := _mistake_in_name(output):
        return _Wrong.one("output", mistake)
    return Row(
        number, inputs, str(PurePosixPath(output)), params, Motion(motion), given.get("prompt"), consent
    )


def _clip(cells: Cells) -> str:
    names = [cells[name] for name in ("output", Input.VIDEO, Input.IMAGE, Input.AUDIO) if cells.get(name)]
    shown = names[:1] if cells.get("output") else names
    return readable(" + ".join(name[:80] for name in shown))


def _is_text(text: str) -> bool:
    return all(unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp") for character in text)


def _choices(read: Callable[[str], Any]) -> str:
    if isinstance(read, type) and issubclass(read, StrEnum):
        return f": use {', '.join(read)}"
    return ": use a whole number" if read is int else ": use a number"


def _default_output(picture: Path, audio: Path) -> str:
    same = picture.stem == audio.stem
    return f"{picture.stem}.mp4" if same else f"{picture.stem}-{audio.stem}.mp4"


def _mistake_in_name(output: str) -> str | None:
    path = PurePosixPath(output)
    shown = output[:80]
    if path.is_absolute() or "\\" in output or ".." in path.parts or (len(output) > 1 and output[1] == ":"):
        return f"{shown!r} leaves the output folder: use a name such as talk.mp4 or monday/talk.mp4."
    if any(part.startswith(".") for part in path.parts):
        return f"{shown!r} is a hidden name: do not begin it with a dot."
    if path.suffix.lower() not in OUTPUT_SUFFIXES:
        return f"{shown!r} must end in one of {', '.join(sorted(OUTPUT_SUFFIXES))}."
    if any(len(part.encode()) > MAX_NAME_BYTES for part in path.parts):
        return f"{shown!r} is longer than {MAX_NAME_BYTES} bytes: give the result a shorter name."
    return None


def _misplaced(rows: Iterable[Row], output: Path) -> Iterator[Problem]:
    """Results that would overwrite one another, an input, or something outside the folder."""
    root = output.resolve()
    inputs = {_resolved(path) for row in rows for path in row.inputs.values()}
    first: dict[str, int] = {}
    folders: dict[str, int] = {}
    for row in rows:
        name = _folded(row.output)
        above = [_folded(str(parent)) for parent in PurePosixPath(row.output).parents]
        place = root / row.output
        if name in first:
            message = f"Row {first[name]} has the result {row.output!r} too: give each its own name."
        elif name in folders or (taken := next((parent for parent in above if parent in first), None)):
            other = folders[name] if name in folders else first[taken or ""]
            message = f"{row.output!r} cannot be a file and a folder, which row {other} needs it for."
        elif not _resolved(place.parent).is_relative_to(root):
            message = f"{row.output!r} leads out of the output folder through a link: use another name."
        elif place.is_dir():
            message = f"{row.output!r} is a folder already: use another name."
        elif _resolved(place) in inputs:
            message = f"{row.output!r} is an input of this batch: use another name or output folder."
        else:
            first[name] = row.number
            folders |= {parent: row.number for parent in above if parent not in folders}
            continue
        yield Problem(row.number, "output", ErrorCode.PARAMETER_INVALID, message, row.output)


def _folded(name: str) -> str:
    """Equal for names that are one file on some file system."""
    return unicodedata.normalize("NFC", name).casefold()


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # links in circles: opening it will say so
        return path.absolute()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or "it is not there"
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else f"not CSV: {error}"
