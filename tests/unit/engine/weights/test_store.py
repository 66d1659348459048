"""Files on this machine: verified before use, remembered, imported from a folder."""

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


def place(content: bytes, *, known: bool = True) -> str:
    where = 'repo = "Some/Model"\nrevision = "abc"\n'
    return where + (f'size = {len(content)}\nsha256 = "{digest(content)}"\n' if known else "")


def head(name: str, family: str, uses: str = "") -> str:
    return (
        f'\n[models."{name}"]\ntitle = "t"\nfamily = "{family}"\nlicence = "MIT"\ncommercial = "yes"\n'
        f'source = "s"\nuses = [{uses}]\n'
    )


@pytest.fixture
def store(tmp_path: Path) -> WeightsStore:
    """Two models that share a component, and one of unknown hash; a bundled one beside the manifest."""
    shipped = tmp_path / "shipped"
    (shipped / "ours").mkdir(parents=True)
    (shipped / "ours/unet.pt").write_bytes(b"ours")
    text = (
        head("new", "latentsync", '"ear"')
        + f'[[models."new".files]]\nrole = "unet"\npath = "unet.pt"\n{place(UNET)}'
        + head("old", "latentsync", '"ear"')
        + f'[[models."old".files]]\nrole = "unet"\npath = "unet.pt"\n{place(OTHER_UNET)}'
        + head("ear", "component")
        + f'[[models."ear".files]]\nrole = "whisper"\npath = "whisper/tiny.pt"\n{place(WHISPER)}'
        + f'[[models."ear".files]]\nrole = "whisper_config"\npath = "config.json"\n{place(CONFIG)}'
        + head("strange", "component")
        + f'[[models."strange".files]]\nrole = "x"\npath = "x.bin"\n{place(b"", known=False)}'
        + head("ours", "latentsync")
        + '[[models."ours".files]]\nrole = "unet"\npath = "ours/unet.pt"\n'
        + f'size = 4\nsha256 = "{digest(b"ours")}"\n'
    )
    manifest = shipped / "manifest.toml"
    manifest.write_text(text)
    return WeightsStore(tmp_path / "root", manifest)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a user carries to a machine without a network: files under other names and in other places."""
    folder = tmp_path / "stick"
    (folder / "models--Some--Model/blobs").mkdir(parents=True)
    (folder / "models--Some--Model/blobs" / digest(UNET)).write_bytes(UNET)
    (folder / "deep/whisper").mkdir(parents=True)
    (folder / "deep/whisper/tiny.pt").write_bytes(WHISPER)
    (folder / "config.json").write_bytes(CONFIG)
    (folder / "deep/config.json").write_text('{"of another model": true}')
    (folder / "README.md").write_text("not a model")
    return folder


def refusal(store: WeightsStore, name: str) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        store.files(name)
    return caught.value


# --- import ---


def test_a_folder_is_enough(store: WeightsStore, folder: Path) -> None:
    reports = store.import_path(folder)
    assert sorted(report.role for report in reports) == ["unet", "whisper", "whisper_config"]
    assert {report.state for report in reports} == {FileState.VERIFIED}
    files = store.files("new")
    assert {role: path.read_bytes() for role, path in files.items()} == {
        "unet": UNET,
        "whisper": WHISPER,
        "whisper_config": CONFIG,
    }
    assert files["unet"] == store.root / "new/unet.pt"
    assert files["unet"].samefile(folder / "models--Some--Model/blobs" / digest(UNET))  # no second copy
    assert store.summary("new") == "ready"
    assert store.summary("old") == "missing: unet.pt"
    assert not list(store.root.rglob("*part"))
    # Again, and one file alone.
    assert len(store.import_path(folder)) == 3
    assert [r.role for r in store.import_path(folder / "deep/whisper/tiny.pt")] == ["whisper"]


def test_the_same_name_is_told_apart_by_content(store: WeightsStore, tmp_path: Path) -> None:
    for name, content in (("a", OTHER_UNET), ("b", UNET)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "unet.pt").write_bytes(content)
    store.import_path(tmp_path / "a")
    store.import_path(tmp_path / "b")
    assert (store.root / "old/unet.pt").read_bytes() == OTHER_UNET
    assert (store.root / "new/unet.pt").read_bytes() == UNET


@pytest.mark.parametrize(
    ("content", "code", "told"),
    [
        (UNET[:-5], ErrorCode.WEIGHTS_TRUNCATED, r"has 199995 bytes, but published are 160000 or 200000"),
        (UNET[:-4] + b"evil", ErrorCode.WEIGHTS_HASH_MISMATCH, r"is not the published file"),
    ],
)
def test_a_damaged_file_is_refused_after_the_sound_ones(
    store: WeightsStore, folder: Path, content: bytes, code: ErrorCode, told: str
) -> None:
    (folder / "unet.pt").write_bytes(content)
    with pytest.raises(WeightsError, match=told + r".*get it again") as caught:
        store.import_path(folder)
    assert caught.value.code is code
    assert (folder / "unet.pt").read_bytes() == content  # the user's file stays
    assert store.summary("ear") == "ready"


def test_nothing_to_import(store: WeightsStore, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        store.import_path(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"no known model file.*tiny\.pt, unet\.pt, x\.bin") as caught:
        store.import_path(tmp_path / "empty")
    assert caught.value.code is ErrorCode.WEIGHTS_MISSING


# --- verify before use ---


def test_missing_files_name_the_commands(store: WeightsStore) -> None:
    error = refusal(store, "new")
    assert error.code is ErrorCode.WEIGHTS_MISSING
    assert "`lipsync weights pull new`" in error.message
    assert "`lipsync weights import PATH`" in error.message
    assert {report.state for report in store.status("new")} == {FileState.MISSING}
    assert store.summary("new") == "missing: 3 of 3 files"


def test_a_shortened_file_is_refused(store: WeightsStore, folder: Path) -> None:
    store.import_path(folder)
    path = store.files("new")["unet"]
    path.unlink()
    path.write_bytes(UNET[:1000])
    error = refusal(store, "new")
    assert error.code is ErrorCode.WEIGHTS_TRUNCATED
    assert "lipsync weights pull new" in error.message
    assert store.summary("new") == "wrong size: unet.pt"


def test_a_changed_file_is_refused_even_with_its_old_time(store: WeightsStore, folder: Path) -> None:
    store.import_path(folder)
    path = store.files("new")["unet"]
    times = path.stat()
    with path.open("r+b") as file:  # in place: same inode, same size
        file.write(b"evil")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    error = refusal(store, "new")
    assert error.code is ErrorCode.WEIGHTS_HASH_MISMATCH
    assert "published content" in error.message
    assert [r.state for r in store.verify("new") if r.role == "unet"] == [FileState.CHANGED]


def test_a_verified_file_is_not_hashed_again_until_asked(store: WeightsStore, folder: Path) -> None:
    store.import_path(folder)
    path = store.files("new")["unet"]
    memory = store.root / "verified.json"
    known = json.loads(memory.read_text())
    known[str(path)]["sha256"] = "0" * 64  # what a new hash could never give
    memory.write_text(json.dumps(known))
    assert refusal(store, "new").code is ErrorCode.WEIGHTS_HASH_MISMATCH  # the memory was believed
    assert {report.state for report in store.verify("new")} == {FileState.VERIFIED}
    assert store.files("new")["unet"] == path
    memory.write_text("{ broken")
    assert [r.state for r in store.status("new")] == [FileState.PRESENT] * 3
    assert store.files("new")["unet"] == path


def test_a_read_only_folder_works(store: WeightsStore, folder: Path) -> None:
    """Shared weights mounted read-only: nothing can be remembered, everything is still verified."""
    store.import_path(folder)
    (store.root / "verified.json").unlink()
    (store.root / "verified.json").mkdir()  # stands for a file that cannot be written, also for root
    assert store.files("new")["unet"].read_bytes() == UNET
    path = store.root / "new/unet.pt"
    path.unlink()
    path.write_bytes(OTHER_UNET + bytes(len(UNET) - len(OTHER_UNET)))
    assert refusal(store, "new").code is ErrorCode.WEIGHTS_HASH_MISMATCH


def test_a_file_of_unknown_hash_is_trusted_once(store: WeightsStore, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"first")
    store.import_path(tmp_path / "x.bin")
    path = store.files("strange")["x"]
    assert path.with_name("x.bin.sha256").read_text() == f"{digest(b'first')}  x.bin\n"
    path.unlink()
    path.write_bytes(b"later")
    assert refusal(store, "strange").code is ErrorCode.WEIGHTS_HASH_MISMATCH
    (store.root / "verified.json").unlink()
    assert refusal(store, "strange").code is ErrorCode.WEIGHTS_HASH_MISMATCH


def test_bundled_files_are_verified_too(store: WeightsStore) -> None:
    path = store.files("ours")["unet"]
    assert path.read_bytes() == b"ours"
    path.write_bytes(b"0urs")
    error = refusal(store, "ours")
    assert error.code is ErrorCode.WEIGHTS_HASH_MISMATCH
    assert "reinstall" in error.message


def test_one_hash_names_all_files_of_a_model(store: WeightsStore, folder: Path, tmp_path: Path) -> None:
    store.import_path(folder)
    one = store.weights_sha256("new")
    elsewhere = WeightsStore(tmp_path / "elsewhere", tmp_path / "shipped/manifest.toml")
    elsewhere.import_path(folder)
    assert elsewhere.weights_sha256("new") == one
    (folder / "unet.pt").write_bytes(OTHER_UNET)
    store.import_path(folder)
    assert store.weights_sha256("old") != one
    assert len(one) == 64


def test_the_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIPSYNC_WEIGHTS_DIR", str(tmp_path / "here"))
    assert WeightsStore().root == tmp_path / "here"
    assert WeightsStore(tmp_path / "there").root == tmp_path / "there"
    monkeypatch.delenv("LIPSYNC_WEIGHTS_DIR")
    assert WeightsStore().root.name == "weights"
