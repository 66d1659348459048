"""Tests of the weights store: verification, remembered hashes, import from a folder."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from lipsync_engine.errors import ErrorCode, WeightsError
from lipsync_engine.weights import FileState, WeightsStore

UNET, WHISPER, CONFIG = b"unet" * 50_000, b"whisper" * 9_000, b'{"config": 1}'
OTHER_UNET = b"tenu" * 40_000


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def source_lines(content: bytes, *, has_hash: bool = True) -> str:
    lines = 'repo = "Some/Model"\nrevision = "abc"\n'
    return lines + (f'size = {len(content)}\nsha256 = "{digest(content)}"\n' if has_hash else "")


def entry_lines(name: str, family: str, uses: str = "") -> str:
    return (
        f'\n[models."{name}"]\ntitle = "t"\nfamily = "{family}"\nlicence = "MIT"\ncommercial = "yes"\n'
        f'source = "s"\nuses = [{uses}]\n'
    )


@pytest.fixture
def store(tmp_path: Path) -> WeightsStore:
    """Two models that share a component, one component without a published hash, one bundled model."""
    shipped = tmp_path / "shipped"
    (shipped / "ours").mkdir(parents=True)
    (shipped / "ours/unet.pt").write_bytes(b"ours")
    text = (
        entry_lines("new", "latentsync", '"audio"')
        + f'[[models."new".files]]\nrole = "unet"\npath = "unet.pt"\n{source_lines(UNET)}'
        + entry_lines("old", "latentsync", '"audio"')
        + f'[[models."old".files]]\nrole = "unet"\npath = "unet.pt"\n{source_lines(OTHER_UNET)}'
        + entry_lines("audio", "component")
        + f'[[models."audio".files]]\nrole = "whisper"\npath = "whisper/tiny.pt"\n{source_lines(WHISPER)}'
        + f'[[models."audio".files]]\nrole = "whisper_config"\npath = "config.json"\n{source_lines(CONFIG)}'
        + entry_lines("strange", "component")
        + f'[[models."strange".files]]\nrole = "x"\npath = "x.bin"\n{source_lines(b"", has_hash=False)}'
        + entry_lines("ours", "latentsync")
        + '[[models."ours".files]]\nrole = "unet"\npath = "ours/unet.pt"\n'
        + f'size = 4\nsha256 = "{digest(b"ours")}"\n'
    )
    manifest = shipped / "manifest.toml"
    manifest.write_text(text)
    return WeightsStore(tmp_path / "root", manifest)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files as a user copies them to an offline machine: other names, other folders."""
    folder = tmp_path / "offline"
    (folder / "models--Some--Model/blobs").mkdir(parents=True)
    (folder / "models--Some--Model/blobs" / digest(UNET)).write_bytes(UNET)
    (folder / "deep/whisper").mkdir(parents=True)
    (folder / "deep/whisper/tiny.pt").write_bytes(WHISPER)
    (folder / "config.json").write_bytes(CONFIG)
    (folder / "deep/config.json").write_text('{"of another model": true}')
    (folder / "README.md").write_text("not a model")
    return folder


def verification_error(store: WeightsStore, name: str) -> WeightsError:
    with pytest.raises(WeightsError) as error:
        store.verified_files(name)
    return error.value


# --- import ---


def test_import_matches_files_of_a_folder_by_content(store: WeightsStore, folder: Path) -> None:
    reports = store.import_path(folder)
    assert sorted(report.role for report in reports) == ["unet", "whisper", "whisper_config"]
    assert {report.state for report in reports} == {FileState.VERIFIED}
    files = store.verified_files("new")
    assert {role: path.read_bytes() for role, path in files.items()} == {
        "unet": UNET,
        "whisper": WHISPER,
        "whisper_config": CONFIG,
    }
    assert files["unet"] == store.root / "new/unet.pt"
    assert files["unet"].samefile(folder / "models--Some--Model/blobs" / digest(UNET))  # no second copy
    assert store.describe_status("new") == "ready"
    assert store.describe_status("old") == "missing: unet.pt"
    assert not list(store.root.rglob("*part"))
    # Again, and one file alone.
    assert len(store.import_path(folder)) == 3
    assert [r.role for r in store.import_path(folder / "deep/whisper/tiny.pt")] == ["whisper"]


def test_import_distinguishes_equal_names_by_content(store: WeightsStore, tmp_path: Path) -> None:
    for name, content in (("a", OTHER_UNET), ("b", UNET)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "unet.pt").write_bytes(content)
    store.import_path(tmp_path / "a")
    store.import_path(tmp_path / "b")
    assert (store.root / "old/unet.pt").read_bytes() == OTHER_UNET
    assert (store.root / "new/unet.pt").read_bytes() == UNET


@pytest.mark.parametrize(
    ("content", "code", "pattern"),
    [
        (UNET[:-5], ErrorCode.WEIGHTS_TRUNCATED, r"has 199995 bytes, but 160000 or 200000 are published"),
        (UNET[:-4] + b"evil", ErrorCode.WEIGHTS_HASH_MISMATCH, r"is not the published file"),
    ],
)
def test_import_rejects_a_damaged_file_and_keeps_the_valid_ones(
    store: WeightsStore, folder: Path, content: bytes, code: ErrorCode, pattern: str
) -> None:
    (folder / "unet.pt").write_bytes(content)
    with pytest.raises(WeightsError, match=pattern + r".*get it again") as error:
        store.import_path(folder)
    assert error.value.code is code
    assert (folder / "unet.pt").read_bytes() == content  # the user's file stays
    assert store.describe_status("audio") == "ready"


def test_import_of_unknown_files_is_an_error(store: WeightsStore, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        store.import_path(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"no known model file.*tiny\.pt, unet\.pt, x\.bin") as error:
        store.import_path(tmp_path / "empty")
    assert error.value.code is ErrorCode.WEIGHTS_MISSING


# --- verify before use ---


def test_missing_files_error_names_the_commands(store: WeightsStore) -> None:
    error = verification_error(store, "new")
    assert error.code is ErrorCode.WEIGHTS_MISSING
    assert "`lipsync weights pull new`" in error.message
    assert "`lipsync weights import PATH`" in error.message
    assert {report.state for report in store.file_reports("new")} == {FileState.MISSING}
    assert store.describe_status("new") == "missing: 3 of 3 files"


def test_truncated_file_is_rejected(store: WeightsStore, folder: Path) -> None:
    store.import_path(folder)
    path = store.verified_files("new")["unet"]
    path.unlink()
    path.write_bytes(UNET[:1000])
    error = verification_error(store, "new")
    assert error.code is ErrorCode.WEIGHTS_TRUNCATED
    assert "lipsync weights pull new" in error.message
    assert store.describe_status("new") == "wrong size: unet.pt"


def test_changed_file_is_rejected_even_with_its_old_mtime(store: WeightsStore, folder: Path) -> None:
    store.import_path(folder)
    path = store.verified_files("new")["unet"]
    times = path.stat()
    with path.open("r+b") as file:  # in source_lines: same inode, same size
        file.write(b"evil")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    error = verification_error(store, "new")
    assert error.code is ErrorCode.WEIGHTS_HASH_MISMATCH
    assert "published SHA-256" in error.message
    assert [r.state for r in store.verify("new") if r.role == "unet"] == [FileState.CHANGED]


def test_verified_file_is_hashed_again_only_by_verify(store: WeightsStore, folder: Path) -> None:
    store.import_path(folder)
    path = store.verified_files("new")["unet"]
    state_file = store.root / "verified.json"
    hashes = json.loads(state_file.read_text())
    hashes[str(path)]["sha256"] = "0" * 64  # cannot result from hashing
    state_file.write_text(json.dumps(hashes))
    assert verification_error(store, "new").code is ErrorCode.WEIGHTS_HASH_MISMATCH
    assert {report.state for report in store.verify("new")} == {FileState.VERIFIED}
    assert store.verified_files("new")["unet"] == path
    state_file.write_text("{ broken")
    assert [r.state for r in store.file_reports("new")] == [FileState.PRESENT] * 3
    assert store.verified_files("new")["unet"] == path


def test_store_works_in_a_read_only_folder(store: WeightsStore, folder: Path) -> None:
    """No hash can be remembered, but every file is still verified."""
    store.import_path(folder)
    (store.root / "verified.json").unlink()
    (store.root / "verified.json").mkdir()  # like a file that is not writable, even for root
    assert store.verified_files("new")["unet"].read_bytes() == UNET
    path = store.root / "new/unet.pt"
    path.unlink()
    path.write_bytes(OTHER_UNET + bytes(len(UNET) - len(OTHER_UNET)))
    assert verification_error(store, "new").code is ErrorCode.WEIGHTS_HASH_MISMATCH


def test_unpublished_hash_is_recorded_at_first_import(store: WeightsStore, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"first")
    store.import_path(tmp_path / "x.bin")
    path = store.verified_files("strange")["x"]
    assert path.with_name("x.bin.sha256").read_text() == f"{digest(b'first')}  x.bin\n"
    path.unlink()
    path.write_bytes(b"later")
    assert verification_error(store, "strange").code is ErrorCode.WEIGHTS_HASH_MISMATCH
    (store.root / "verified.json").unlink()
    assert verification_error(store, "strange").code is ErrorCode.WEIGHTS_HASH_MISMATCH


def test_bundled_files_are_verified(store: WeightsStore) -> None:
    path = store.verified_files("ours")["unet"]
    assert path.read_bytes() == b"ours"
    path.write_bytes(b"0urs")
    error = verification_error(store, "ours")
    assert error.code is ErrorCode.WEIGHTS_HASH_MISMATCH
    assert "reinstall" in error.message


def test_weights_sha256_covers_all_files_of_a_model(
    store: WeightsStore, folder: Path, tmp_path: Path
) -> None:
    store.import_path(folder)
    sha256 = store.weights_sha256("new")
    elsewhere = WeightsStore(tmp_path / "elsewhere", tmp_path / "shipped/manifest.toml")
    elsewhere.import_path(folder)
    assert elsewhere.weights_sha256("new") == sha256
    (folder / "unet.pt").write_bytes(OTHER_UNET)
    store.import_path(folder)
    assert store.weights_sha256("old") != sha256
    assert len(sha256) == 64


def test_store_root_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIPSYNC_WEIGHTS_DIR", str(tmp_path / "here"))
    assert WeightsStore().root == tmp_path / "here"
    assert WeightsStore(tmp_path / "there").root == tmp_path / "there"
    monkeypatch.delenv("LIPSYNC_WEIGHTS_DIR")
    assert WeightsStore().root.name == "weights"
