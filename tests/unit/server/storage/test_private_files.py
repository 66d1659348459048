"""Files that other users of the machine cannot read."""

from __future__ import annotations

from pathlib import Path

from server.storage.private_files import make_private


def readable_by_others(folder: Path) -> list[Path]:
    return [path for path in (folder, *folder.rglob("*")) if path.lstat().st_mode & 0o077]


def test_open_data_dir_is_closed_with_all_its_files(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.touch(mode=0o644)
    folder = tmp_path / "data"
    (folder / "blobs" / "uploads").mkdir(parents=True)
    (folder / "blobs" / "uploads" / "a.mp4").write_bytes(b"x")
    (folder / "link").symlink_to(outside)
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    make_private(folder)
    assert [path for path in readable_by_others(folder) if not path.is_symlink()] == []
    assert outside.stat().st_mode & 0o777 == 0o644
    assert (folder / "blobs" / "uploads" / "a.mp4").read_bytes() == b"x"


def test_new_data_dir_is_private(tmp_path: Path) -> None:
    make_private(tmp_path / "deep" / "data")
    assert readable_by_others(tmp_path / "deep" / "data") == []
