"""Each bad input ends with its own code and exit status, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lipsync_engine.errors import EXIT_STATUS, ErrorCode

Ffmpeg = Callable[..., None]
Run = Callable[..., subprocess.CompletedProcess[str]]


def failed_with(done: subprocess.CompletedProcess[str], code: ErrorCode) -> None:
    assert re.search(rf"^error \[{code}\]: .{{20,}}", done.stderr, re.MULTILINE), done.stderr[-2000:]
    assert done.returncode == EXIT_STATUS[code]
    assert "Traceback" not in done.stderr


def files_under(folder: Path) -> list[str]:
    """Everything that a failed job might have left; a finished face analysis may stay."""
    result = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in result if not name.startswith("analysis/"))


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def text_file(path: Path, ffmpeg: Ffmpeg, clip: Path) -> None:
    path.write_text("This is not a video.\n" * 200)


def truncated(path: Path, ffmpeg: Ffmpeg, clip: Path) -> None:
    path.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])


def sound_only(path: Path, ffmpeg: Ffmpeg, clip: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", path)


def no_face(path: Path, ffmpeg: Ffmpeg, clip: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=320x240:d=1:r=25", path)


def bomb(path: Path, ffmpeg: Ffmpeg, clip: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "color=s=8192x8192:d=0.2:r=10", "-preset", "ultrafast", path)


def concat_script(path: Path, ffmpeg: Ffmpeg, clip: Path) -> None:
    path.write_text(f"ffconcat version 1.0\nfile '{clip}'\n")


def hls_playlist(path: Path, ffmpeg: Ffmpeg, clip: Path) -> None:
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile://{clip}\n#EXT-X-ENDLIST\n")


def missing(path: Path, ffmpeg: Ffmpeg, clip: Path) -> None:
    return


def directory(path: Path, ffmpeg: Ffmpeg, clip: Path) -> None:
    path.mkdir()


def empty(path: Path, ffmpeg: Ffmpeg, clip: Path) -> None:
    path.touch()


@pytest.mark.parametrize(
    ("make", "codes"),
    [
        (missing, {ErrorCode.INPUT_NOT_FOUND}),
        (directory, {ErrorCode.INPUT_IS_DIRECTORY}),
        (empty, {ErrorCode.INPUT_EMPTY}),
        (text_file, {ErrorCode.MEDIA_NOT_RECOGNISED}),
        (truncated, {ErrorCode.MEDIA_TRUNCATED}),
        (sound_only, {ErrorCode.MEDIA_NO_VIDEO}),
        (no_face, {ErrorCode.FACE_NOT_FOUND}),
        (bomb, {ErrorCode.MEDIA_TOO_LARGE}),
        (concat_script, {ErrorCode.MEDIA_FORMAT_REFUSED}),
        (hls_playlist, {ErrorCode.MEDIA_FORMAT_REFUSED}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_invalid_video_ends_with_its_code(
    make: Callable[[Path, Ffmpeg, Path], None],
    codes: set[ErrorCode],
    tmp_path: Path,
    outbox: Path,
    cache_dir: Path,
    clip: Path,
    voice: Path,
    ffmpeg: Ffmpeg,
    lipsync: Run,
) -> None:
    video = tmp_path / "input.mp4"
    make(video, ffmpeg, clip)
    (code,) = codes
    failed_with(lipsync("sync", video, voice, "-o", outbox / "out.mp4"), code)
    assert files_under(outbox) == []
    assert not cache_dir.exists() or files_under(cache_dir) == []


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (missing, ErrorCode.INPUT_NOT_FOUND),
        (empty, ErrorCode.INPUT_EMPTY),
        (text_file, ErrorCode.MEDIA_NOT_RECOGNISED),
        (no_face, ErrorCode.MEDIA_NO_AUDIO),
        (concat_script, ErrorCode.MEDIA_FORMAT_REFUSED),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_invalid_audio_ends_with_its_code(
    make: Callable[[Path, Ffmpeg, Path], None],
    code: ErrorCode,
    tmp_path: Path,
    outbox: Path,
    clip: Path,
    ffmpeg: Ffmpeg,
    lipsync: Run,
) -> None:
    audio = tmp_path / "input.mp4"
    make(audio, ffmpeg, clip)
    failed_with(lipsync("sync", clip, audio, "-o", outbox / "out.mp4"), code)
    assert files_under(outbox) == []


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("no/such/folder/out.mp4", ErrorCode.OUTPUT_NOT_WRITABLE),
        ("out.avi", ErrorCode.PARAMETER_INVALID),
        (".", ErrorCode.PARAMETER_INVALID),
    ],
)
def test_invalid_output_ends_with_its_code(
    name: str, code: ErrorCode, outbox: Path, clip: Path, voice: Path, cache_dir: Path, lipsync: Run
) -> None:
    failed_with(lipsync("sync", clip, voice, "-o", outbox / name), code)
    assert files_under(outbox) == []
    assert not cache_dir.exists() or files_under(cache_dir) == []


@pytest.mark.parametrize(
    "option",
    [
        "--mask-image",
        *(pytest.param(o, marks=pytest.mark.slow) for o in ("--face-mask", "--matte", "--faces-file")),
    ],
)
def test_missing_file_of_an_option_ends_with_its_code(
    option: str, tmp_path: Path, clip: Path, voice: Path, cache_dir: Path, lipsync: Run
) -> None:
    result = lipsync("sync", clip, voice, "-o", tmp_path / "out.mp4", option, tmp_path / "gone.png")
    failed_with(result, ErrorCode.INPUT_NOT_FOUND)
    assert not cache_dir.exists() or files_under(cache_dir) == []


def test_container_without_credentials_is_rejected_before_the_model_loads(
    outbox: Path, clip: Path, voice: Path, lipsync: Run
) -> None:
    """Weights that are not here would be the next complaint."""
    result = lipsync("sync", clip, voice, "-o", outbox / "out.mkv", "--model", "latentsync-1.6")
    failed_with(result, ErrorCode.PARAMETER_INVALID)
    assert "best_effort" in result.stderr


def test_error_shows_a_path_unchanged(tmp_path: Path, lipsync: Run) -> None:
    result = lipsync("probe", tmp_path / "take [bold] :smile:.mp4")
    failed_with(result, ErrorCode.INPUT_NOT_FOUND)
    assert "'take [bold] :smile:.mp4'" in result.stderr


def test_silent_video_has_no_sync_score(clip: Path, lipsync: Run) -> None:
    result = lipsync("score", clip, "--detector", "drawn")
    failed_with(result, ErrorCode.MEDIA_NO_AUDIO)
    assert "has no audio" in result.stderr


def test_read_only_output_folder_ends_with_its_code(clip: Path, voice: Path, lipsync: Run) -> None:
    place = Path("/proc")
    if not place.is_dir():
        pytest.skip("no file system here that refuses even root")
    failed_with(lipsync("sync", clip, voice, "-o", place / "out.mp4"), ErrorCode.OUTPUT_NOT_WRITABLE)


def test_inputs_are_never_overwritten(tmp_path: Path, clip: Path, voice: Path, lipsync: Run) -> None:
    video = tmp_path / "mine.mp4"
    shutil.copy(clip, video)
    failed_with(lipsync("sync", video, voice, "-o", video), ErrorCode.PARAMETER_INVALID)
    assert video.read_bytes() == clip.read_bytes()


@pytest.mark.parametrize(
    "option",
    [
        ("--steps", "0"),
        ("--guidance-scale", "nan"),
        ("--fps", "0"),
        ("--fps", "fast"),
        ("--face", "someone"),
        ("--preset", "best"),
        ("--detector", "magic"),
        ("--seed", "-1"),
    ],
)
def test_invalid_option_ends_with_its_code(
    option: tuple[str, str], outbox: Path, clip: Path, voice: Path, lipsync: Run
) -> None:
    failed_with(lipsync("sync", clip, voice, "-o", outbox / "out.mp4", *option), ErrorCode.PARAMETER_INVALID)
    assert files_under(outbox) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    folder = tmp_path / "tiny_disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_of_the_work_dir_is_reported(
    tiny_disk: Path,
    outbox: Path,
    clip: Path,
    voice: Path,
    environment: dict[str, str],
    lipsync: Run,
) -> None:
    environment["LIPSYNC_CACHE_DIR"] = str(tiny_disk)
    failed_with(lipsync("sync", clip, voice, "-o", outbox / "out.mp4"), ErrorCode.DISK_FULL)
    assert files_under(outbox) == []
    assert files_under(tiny_disk) == []


@pytest.mark.slow
def test_full_disk_of_the_output_is_reported(
    tiny_disk: Path, clip: Path, voice: Path, ffmpeg: Ffmpeg, tmp_path: Path, lipsync: Run
) -> None:
    noisy = tmp_path / "noise.wav"  # a sound track larger than the disk
    ffmpeg("-f", "lavfi", "-i", "anoisesrc=d=60:r=48000", "-ac", 2, noisy)
    result = lipsync("sync", clip, voice, "--output-audio", noisy, "-o", tiny_disk / "out.mp4")
    failed_with(result, ErrorCode.DISK_FULL)
    assert files_under(tiny_disk) == []
