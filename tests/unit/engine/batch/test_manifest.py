"""Reading a batch's manifest: which rows are accepted, and how each mistake is reported."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lipsync_engine import SyncParams
from lipsync_engine.batch.manifest import InputRole, read_manifest
from lipsync_engine.errors import ErrorCode, InputError

INVALID_FIELDS = {
    "an absolute name": ("output", '"output": "/tmp/x.mp4"'),
    "a way out": ("output", '"output": "../x.mp4"'),
    "a way out in the middle": ("output", '"output": "a/../../x.mp4"'),
    "a backslash": ("output", '"output": "..\\\\x.mp4"'),
    "a drive": ("output", '"output": "c:x.mp4"'),
    "a hidden name": ("output", '"output": "a/.x.mp4"'),
    "another kind": ("output", '"output": "report.html"'),
    "a line break": ("output", '"output": "a\\n.mp4"'),
    "a null": ("audio", '"audio": "a\\u0000.wav"'),
    "half a character": ("audio", '"audio": "\\ud800.wav"'),
    "a long name": ("output", f'"output": "{"x" * 300}.mp4"'),
    "a range": ("steps", '"steps": 1000'),
    "a wrong number": ("seed", '"seed": "x"'),
    "a huge number": ("seed", f'"seed": "{"9" * 5000}"'),
    "no number": ("guidance_scale", '"guidance_scale": NaN'),
    "a huge rate": ("fps", '"fps": "1e999999999"'),
    "a wrong word": ("loop_mode", '"loop_mode": "spin"'),
    "a wrong face": ("face", '"face": "nose"'),
    "an object": ("face", '"face": {"x": 1}'),
    "motion of a video": ("motion", '"motion": "still"'),
    "two pictures": ("video", '"image": "face.png"'),
    "a video's URL": ("video", '"video": "https://media.example/talk.mp4"'),
    "an audio's URL": ("output_audio", '"output_audio": "HTTP://media.example/a.wav"'),
    "an unknown key": ("speed", '"speed": 1'),
}


def test_invalid_field_is_reported_with_row_and_column(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for name in INVALID_FIELDS:
        with subtests.test(name=name):
            column, mistake = INVALID_FIELDS[name]
            manifest = tmp_path / "list.jsonl"
            manifest.write_text(f'{{"video": "talk.mp4", "audio": "talk.wav", {mistake}}}\n')
            manifest_rows = read_manifest(manifest, SyncParams(), tmp_path / "out")
            assert manifest_rows.rows == ()
            (problem,) = manifest_rows.problems
            assert (problem.row, problem.column, problem.code) == (1, column, ErrorCode.PARAMETER_INVALID)
            assert problem.message.encode()


def test_semicolons_separate_cells_where_the_first_line_has_them(tmp_path: Path) -> None:
    manifest = tmp_path / "list.csv"
    manifest.write_text('video;audio;output\r\na.mp4;"b;c.wav";x.mp4\r\nd.mp4;e,f.wav;\r\ng.mp4;h.wav;;\r\n')
    manifest_rows = read_manifest(manifest, SyncParams(), tmp_path / "out")
    assert [(row.inputs[InputRole.AUDIO].name, row.output) for row in manifest_rows.rows] == [
        ("b;c.wav", "x.mp4"),
        ("e,f.wav", "d-e,f.mp4"),
    ]
    (problem,) = manifest_rows.problems
    assert "';'" in problem.message


def test_invalid_json_line_is_reported_and_skipped(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for line in ["[" * 100_000, "{", "7", "null"]:
        with subtests.test(line=line):
            manifest = tmp_path / "list.jsonl"
            manifest.write_text(f'{line}\n{{"video": "a.mp4", "audio": "b.wav"}}\n')
            manifest_rows = read_manifest(manifest, SyncParams(), tmp_path / "out")
            assert [row.output for row in manifest_rows.rows] == ["a-b.mp4"]
            assert [problem.row for problem in manifest_rows.problems] == [1]


def test_unpaired_files_of_a_folder_are_reported(tmp_path: Path) -> None:
    for name in ("one.mp4", "two.wav"):
        (tmp_path / name).touch()
    manifest_rows = read_manifest(tmp_path, SyncParams(), tmp_path / "out")
    assert [problem.clip for problem in manifest_rows.problems] == ["one.mp4", "two.wav"]


def test_conflicting_outputs_are_reported(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    out = tmp_path / "out"
    out.mkdir()
    (out / "away").symlink_to(tmp_path / "elsewhere")
    manifest = tmp_path / "list.csv"
    outputs = ["a.mp4", "A.mp4", "a.mp4/b.mp4", "away/b.mp4", "c/d.mp4", "c.mp4", "in.mp4"]
    manifest.write_text("video,audio,output\n" + "".join(f"out/in.mp4,b.wav,{name}\n" for name in outputs))
    manifest_rows = read_manifest(manifest, SyncParams(), out)
    assert [row.output for row in manifest_rows.rows] == ["a.mp4", "c/d.mp4", "c.mp4"]
    assert {
        problem.row: problem.message.split(":")[0][-24:] for problem in manifest_rows.problems
    }.keys() == {
        2,
        3,
        4,
        7,
    }
    messages = " ".join(problem.message for problem in manifest_rows.problems)
    for phrase in ("Row 1 has the result", "which row 1 needs", "through a link", "an input of this batch"):
        assert phrase in messages


def test_unreadable_manifest_is_rejected(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for name, content, phrase in [
        ("a.csv", b"video,audio,shout\n", "Column 'shout' does not exist"),
        ("a.csv", b"video,video,audio\n", "named twice"),
        ("a.csv", b"video,audio\n", "names no clips"),
        ("a.csv", b"video,audio\n\xff\xfe,b\n", "not UTF-8"),
        ("a.csv", b'video,audio\n"a,b\n', "not CSV"),
        ("a.csv", b"video,audio\n" + b"x" * 200_000 + b",b\n", "not CSV"),
        ("a.txt", b"video,audio\n", "give a .csv or .jsonl file"),
    ]:
        with subtests.test(name=name, content=content, phrase=phrase):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(InputError, match=re.escape(phrase)):
                read_manifest(tmp_path / name, SyncParams(), tmp_path / "out")


def test_missing_manifest_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read_manifest(tmp_path / "gone", SyncParams(), tmp_path / "out")
    assert error.value.code is ErrorCode.INPUT_NOT_FOUND


def test_incomplete_and_ambiguous_pairs_of_a_folder_are_reported(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.wav", "b.mp4", "c.wav", "d.mp4", "d.png", "d.wav", ".e.mp4", "notes.txt"):
        (tmp_path / name).touch()
    manifest_rows = read_manifest(tmp_path, SyncParams(), tmp_path / "out")
    assert [row.output for row in manifest_rows.rows] == ["a.mp4"]
    assert [(problem.row, problem.column) for problem in manifest_rows.problems] == [
        (2, "audio"),
        (3, "video"),
        (4, ""),
    ]
