"""Tests of the model manifest: valid and invalid entries, and what the package ships."""

import re
from pathlib import Path

import pytest

from lipsync_engine.errors import ErrorCode, WeightsError
from lipsync_engine.weights import Commercial, WeightsStore, bundled_weights_dir, read_model_manifest
from tests.support.paths import ROOT

VALID = """
[models.part]
title = "A part"
family = "component"
licence = "MIT"
commercial = "yes"
source = "https://example.org"

[[models.part.files]]
role = "whisper"
repo = "someone/part"
revision = "0123456789012345678901234567890123456789"
path = "part.pt"
size = 10

[models.whole]
title = "A model"
family = "latentsync"
resolution = 64
licence = "MIT"
commercial = "unknown"
source = "https://example.org"
uses = ["part"]

[[models.whole.files]]
role = "unet"
url = "https://example.org/whole.pt"
path = "whole.pt"
sha256 = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "manifest.toml"
    path.write_text(text)
    return path


def test_valid_manifest_is_read(tmp_path: Path) -> None:
    entries = read_model_manifest(write(tmp_path, VALID))
    assert list(entries) == ["part", "whole"]
    whole = entries["whole"]
    assert (whole.resolution, whole.uses, whole.commercial) == (64, ("part",), Commercial.UNKNOWN)
    assert (whole.files[0].name, whole.files[0].size, whole.files[0].is_bundled) == ("whole.pt", None, False)
    assert entries["part"].is_component
    assert not whole.is_component


def test_manifest_error_names_the_field(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for old, new, pattern in [
        ('role = "unet"', 'role = "unet"\nsh256 = "x"', r"models\.whole\.files\.0\.sh256"),
        ('licence = "MIT"', 'license = "MIT"', r"models\.part\.licen[sc]e"),
        ('commercial = "yes"', 'commercial = "maybe"', r"models\.part\.commercial"),
        ("size = 10", "size = -1", r"models\.part\.files\.0\.size"),
        ("size = 10", 'size = "big"', r"models\.part\.files\.0\.size"),
        ('"aaaa', '"zzzz', r"models\.whole\.files\.0\.sha256"),
        ('path = "part.pt"', 'path = "../part.pt"', "must be relative"),
        ('path = "part.pt"', 'path = "/etc/part.pt"', "must be relative"),
        ('revision = "0123456789012345678901234567890123456789"\n', "", "repo and revision belong together"),
        ("url =", 'repo = "a/b"\nrevision = "c"\nurl =', "either repo or url"),
        ('\nsha256 = "' + "a" * 64 + '"', "", "needs its sha256"),
        ('uses = ["part"]', 'uses = ["prat"]', r"models\.whole\.uses names prat"),
        ('role = "unet"', 'role = "whisper"', "two files for the role whisper"),
        ("[models.part]", "[other]\nx = 1\n[models.part]", "unknown top-level key other"),
        ("[models.part]", "[models.part", "is invalid"),
    ]:
        with subtests.test(old=old, new=new, pattern=pattern):
            assert old in VALID
            with pytest.raises(WeightsError, match=pattern) as error:
                read_model_manifest(write(tmp_path, VALID.replace(old, new, 1)))
            assert error.value.code is ErrorCode.WEIGHTS_ARCHITECTURE
            assert str(tmp_path) in error.value.message


def test_unknown_model_error_lists_the_models(tmp_path: Path) -> None:
    store = WeightsStore(tmp_path, write(tmp_path, VALID))
    with pytest.raises(WeightsError, match=r"Model 'hole' does not exist: use one of whole\.") as error:
        store.entry("hole")
    assert error.value.code is ErrorCode.MODEL_UNKNOWN


# --- what ships ---


def test_bundled_files_match_the_manifest(tmp_path: Path) -> None:
    store = WeightsStore(tmp_path)
    for entry in store.entries():
        for file in entry.files:
            assert file.is_bundled == (file.repo is None and file.url is None)
            if file.is_bundled:
                path = bundled_weights_dir() / file.path
                assert file.sha256 is not None, f"{file.path} ships without a hash"
                assert path.stat().st_size == file.size, f"{file.path} is not what the manifest lists"


def test_manifest_matches_public_records() -> None:
    entries = read_model_manifest(bundled_weights_dir() / "manifest.toml")
    assert entries["latentsync-1.6"].resolution == 512
    assert entries["latentsync-1.5"].resolution == 256
    for name in ("latentsync-1.6", "latentsync-1.5"):
        files = [f for n in (name, *entries[name].uses) for f in entries[n].files]
        assert {file.role for file in files} == {"unet", "vae", "vae_config", "whisper"}
        assert all(file.sha256 and file.size for file in files)
        # 1,267,099,844 parameters and 844,800 table values as float32, and little else.
        (unet,) = entries[name].files
        assert 0 < unet.size - 4 * (1_267_099_844 + 844_800) < 1_000_000
    # OpenAI puts the hash of its files into their addresses.
    import whisper

    assert entries["whisper-tiny"].files[0].sha256 in whisper._MODELS["tiny"]


def test_image_to_video_model_is_a_complete_folder() -> None:
    files = {
        f.path: f
        for f in read_model_manifest(bundled_weights_dir() / "manifest.toml")["wan2.2-ti2v-5b"].files
    }
    assert files["model_index.json"].role == "model_index"
    assert len({(file.repo, file.revision) for file in files.values()}) == 1
    assert all(file.sha256 and file.size for file in files.values())
    # Published numbers of float32 parameters, and little else.
    for part, parameters in (("transformer/", 4_999_787_712), ("vae/", 704_688_668)):
        sizes = [
            f.size for f in files.values() if f.path.startswith(part) and f.path.endswith(".safetensors")
        ]
        assert 0 < sum(sizes) - 4 * parameters < 1_000_000


def test_readme_licence_table_matches_the_manifest() -> None:
    rows = re.findall(
        r"^\| `([^`]+)` \| ([^|]+) \| (yes|no|unknown) \| (\S+) \|$",
        (ROOT / "weights/README.md").read_text(),
        re.MULTILINE,
    )
    entries = read_model_manifest(ROOT / "weights/manifest.toml").values()
    expected = [(e.name, e.licence, str(e.commercial), e.source) for e in entries]
    table = "\n".join("| `{}` | {} | {} | {} |".format(*row) for row in expected)
    assert rows == expected, f"weights/README.md must have this table:\n{table}"
