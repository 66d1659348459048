"""Content credentials: what is signed holds, what was changed does not, a broken signer is seen."""

from __future__ import annotations

import logging
import resource
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lipsync_engine.errors import ErrorCode, InputError, ParameterError
from lipsync_engine.provenance import Facts, Marker, Policy, SigningError, Verdict, signed_beside, verify
from tests.support.paths import ROOT

Ffmpeg = Callable[..., None]
FACTS = Facts("tiny", "ab" * 32, 7, 2, "job 1", consent="release 17")

SIGNER = ROOT / "scripts" / "file_signer.py"

MEMORY = """
import resource, sys
from pathlib import Path
from lipsync_engine.provenance import *
marker, file = Marker(Policy.REQUIRED, Path(sys.argv[1])), Path(sys.argv[2])
marker.prepare(file)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert marker.mark(file, file, Facts("tiny", "", 1, 1, "")) is None
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
assert verify(file, marker.known()).verdict is Verdict.TRUSTED
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.fixture
def marker(tmp_path: Path) -> Marker:
    return Marker(Policy.REQUIRED, tmp_path / "private" / "credentials")


@pytest.fixture
def film(clip: Path, tmp_path: Path) -> Path:
    """An unsigned video that may be changed."""
    path = tmp_path / "film.mp4"
    path.write_bytes(clip.read_bytes())
    return path


def test_a_signed_film_is_trusted_where_its_root_is_known(marker: Marker, film: Path, clip: Path) -> None:
    assert marker.mark(film, clip, FACTS) is None
    found = verify(film, marker.known())
    assert (found.verdict, found.problems) == (Verdict.TRUSTED, ())
    assert found.is_generated
    assert found.is_development
    assert found.made == FACTS.assertion()
    assert [(source.relationship, source.signer) for source in found.sources] == [("parentOf", None)]
    stranger = verify(film, "")
    assert (stranger.verdict, stranger.problems) == (Verdict.UNKNOWN_SIGNER, ())
    assert verify(clip, marker.known()).verdict is Verdict.NONE


def test_a_damaged_source_is_named_too(marker: Marker, film: Path, clip: Path) -> None:
    """A box that goes beyond the file's end stops c2pa, but not FFmpeg: such a film is made all the same."""
    damaged = film.with_name("damaged.mp4")
    damaged.write_bytes(clip.read_bytes() + struct.pack(">I4s", 1000, b"free"))
    assert marker.mark(film, damaged, FACTS) is None
    found = verify(film, marker.known())
    assert found.verdict is Verdict.TRUSTED
    assert [(source.relationship, source.signer) for source in found.sources] == [("parentOf", None)]


def test_nothing_personal_is_written(marker: Marker, film: Path, clip: Path) -> None:
    named = film.with_name("anna-private.mp4")
    named.write_bytes(clip.read_bytes())
    marker.mark(film, named, FACTS)
    added = film.read_bytes()
    for secret in (b"release 17", b"job 1", b"anna", str(film.parent).encode()):
        assert secret not in added, secret


def test_the_picture_is_the_same(
    marker: Marker, film: Path, clip: Path, ffmpeg: Ffmpeg, tmp_path: Path
) -> None:
    marker.mark(film, clip, FACTS)
    for path in (film, clip):
        ffmpeg("-i", path, "-c", "copy", "-f", "framemd5", tmp_path / f"{path.stem}.md5")
    assert (tmp_path / "film.md5").read_text() == (tmp_path / f"{clip.stem}.md5").read_text()


@pytest.mark.parametrize("place", [0.3, 0.6, 0.95])
def test_one_flipped_bit_is_seen(marker: Marker, film: Path, clip: Path, place: float) -> None:
    marker.mark(film, clip, FACTS)
    content = bytearray(film.read_bytes())
    content[int(place * len(content))] ^= 1
    film.write_bytes(content)
    found = verify(film, marker.known())
    assert found.verdict is Verdict.INVALID
    assert found.problems


def test_a_remux_loses_them(marker: Marker, film: Path, clip: Path, ffmpeg: Ffmpeg, tmp_path: Path) -> None:
    marker.mark(film, clip, FACTS)
    ffmpeg("-i", film, "-c", "copy", tmp_path / "remuxed.mp4")
    assert verify(tmp_path / "remuxed.mp4", marker.known()).verdict is Verdict.NONE


def test_a_source_keeps_its_own(marker: Marker, film: Path, clip: Path, tmp_path: Path) -> None:
    source = tmp_path / "input"  # as the server's inputs: without a suffix
    source.write_bytes(clip.read_bytes())
    signed = source.with_name("signed.mp4")
    source.rename(signed)
    marker.mark(signed, clip, Facts("camera", "", 1, 1, ""))
    signed.rename(source)
    marker.mark(film, source, FACTS)
    found = verify(film, marker.known())
    assert found.verdict is Verdict.TRUSTED
    assert [source.signer for source in found.sources] == ["lipsync-engine development"]


def test_pictures_and_foreign_films_are_sources_too(
    marker: Marker, film: Path, clip: Path, ffmpeg: Ffmpeg, tmp_path: Path
) -> None:
    for name in ("still.png", "still.jpg", "still.bmp", "still.webp", "clip.mkv"):
        source = tmp_path / name
        ffmpeg("-i", clip, *([] if source.suffix == ".mkv" else ["-frames:v", 1]), source)
        assert marker.mark(film, source, FACTS) is None
        assert verify(film, marker.known()).verdict is Verdict.TRUSTED, name


def test_the_development_certificate_is_private_and_made_once(
    marker: Marker, film: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        marker.prepare(film)
        key = (marker.folder / "key.pem").read_bytes()
        marker.prepare(film)
    assert [record.message[:25] for record in caplog.records] == ["a development certificate"]
    assert (marker.folder / "key.pem").read_bytes() == key
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in [marker.folder, *marker.folder.iterdir()]
    }
    assert modes == {"credentials": 0o700, "root.pem": 0o600, "chain.pem": 0o600, "key.pem": 0o600}


def test_processes_that_start_at_once_agree_on_one(film: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\nfrom lipsync_engine.provenance import *\n"
        "Marker(Policy.REQUIRED, Path(sys.argv[1])).prepare(Path('a.mp4'))"
    )
    folder = tmp_path / "credentials"
    started = [subprocess.Popen([sys.executable, "-c", program, str(folder)]) for _ in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    assert sorted(path.name for path in folder.iterdir()) == ["chain.pem", "key.pem", "root.pem"]
    assert [path.name for path in tmp_path.glob("credentials*")] == ["credentials"]


# --- the operator's own signer ---


@pytest.fixture
def own(marker: Marker, film: Path, tmp_path: Path) -> Callable[..., Marker]:
    """Markers whose certificate lies in files of the operator's."""
    marker.prepare(film)

    def make(
        *, policy: Policy = Policy.REQUIRED, command: tuple[str, ...] = (), key: Path | None = None
    ) -> Marker:
        return Marker(
            policy,
            tmp_path / "unused",
            chain=marker.folder / "chain.pem",
            key=None if command else key or marker.folder / "key.pem",
            command=command,
            anchors=marker.folder / "root.pem",
        )

    return make


def test_files_and_commands_sign(own: Callable[..., Marker], film: Path, clip: Path, tmp_path: Path) -> None:
    key = str(own().key)
    for marker in (own(), own(command=(sys.executable, str(SIGNER), key))):
        marker.prepare(film)
        assert marker.mark(film, clip, FACTS) is None
        assert verify(film, marker.known()).verdict is Verdict.TRUSTED
        film.write_bytes(clip.read_bytes())
    assert not (tmp_path / "unused").exists()


def test_a_broken_signer(own: Callable[..., Marker], film: Path, clip: Path, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.pem"
    stranger.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    before = film.read_bytes()
    broken: list[tuple[dict[str, object], str]] = [
        ({"key": stranger}, "does not match"),
        ({"key": tmp_path / "gone.pem"}, "No such file"),
        ({"command": ("/bin/false",)}, "/bin/false ended with status 1"),
        ({"command": ("/bin/sh", "-c", "echo the vault is shut >&2; exit 3")}, "status 3, the vault is shut"),
        ({"command": ("/nowhere/signer",)}, "could not be asked"),
        ({"command": ("/bin/echo", "no signature")}, "ignature"),
    ]
    for changes, words in broken:
        required = own(**changes)
        with pytest.raises(SigningError, match=words) as failed:
            required.prepare(film)  # before any work
        assert failed.value.code is ErrorCode.SIGNING_FAILED
        with pytest.raises(SigningError, match=words):
            required.mark(film, clip, FACTS)
        lax = own(policy=Policy.BEST_EFFORT, **changes)
        lax.prepare(film)
        assert "no content credentials" in str(lax.mark(film, clip, FACTS))
        assert film.read_bytes() == before
        assert not signed_beside(film).exists()


def test_a_certificate_that_has_run_out_is_refused(
    own: Callable[..., Marker], marker: Marker, film: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from lipsync_engine.provenance import development

    monkeypatch.setattr(development, "VALID_DAYS", -1 / 24)
    late = Marker(Policy.REQUIRED, tmp_path / "late")
    with pytest.raises(SigningError):
        late.prepare(film)
    chain = x509.load_pem_x509_certificates((tmp_path / "late" / "chain.pem").read_bytes())
    assert len(chain) == 1


def test_policies(tmp_path: Path, film: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = film.read_bytes()
    for name in ("MARKING", "SIGNING_CHAIN", "SIGNING_KEY", "SIGNING_COMMAND", "TRUST_ANCHORS"):
        monkeypatch.delenv(f"LIPSYNC_{name}", raising=False)
    assert Marker.from_environment().policy is Policy.REQUIRED
    monkeypatch.setenv("LIPSYNC_MARKING", "off")
    off = Marker.from_environment()
    off.prepare(tmp_path / "film.mkv")
    assert "marking is off" in str(off.mark(film, clip, FACTS))
    assert film.read_bytes() == before
    assert Marker.from_environment("best_effort").policy is Policy.BEST_EFFORT
    with pytest.raises(ParameterError, match="required, best_effort, off"):
        Marker.from_environment("maybe")
    monkeypatch.setenv("LIPSYNC_SIGNING_KEY", "key.pem")
    with pytest.raises(ParameterError, match="LIPSYNC_SIGNING_CHAIN"):
        Marker.from_environment()


def test_matroska_holds_none(marker: Marker, clip: Path, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    film = tmp_path / "film.mkv"
    ffmpeg("-i", clip, "-c", "copy", film)
    with pytest.raises(ParameterError, match=r"\.mkv file cannot hold"):
        marker.prepare(film)
    lax = Marker(Policy.BEST_EFFORT, marker.folder)
    assert ".mkv file cannot hold" in str(lax.mark(film, clip, FACTS))
    assert verify(film, "").verdict is Verdict.NONE


# --- what is given to be verified ---


def test_what_is_no_video(marker: Marker, tmp_path: Path) -> None:
    note = tmp_path / "note.mp4"
    for content, verdict in (
        (b"", Verdict.NONE),
        (b"only words", Verdict.NONE),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom\xff\xff\xff\xffuuid", Verdict.NONE),
    ):
        note.write_bytes(content)
        assert verify(note, marker.known()).verdict in (verdict, Verdict.INVALID)
    for path, code in (
        (tmp_path / "gone", ErrorCode.INPUT_NOT_FOUND),
        (tmp_path, ErrorCode.INPUT_IS_DIRECTORY),
    ):
        with pytest.raises(InputError) as failed:
            verify(path, "")
        assert failed.value.code is code


# --- size ---


def _grown(film: Path, size: int) -> None:
    """Add so many bytes of media data that are a hole in the file."""
    with film.open("ab") as file:
        file.write(struct.pack(">I4sQ", 1, b"mdat", size))
        file.truncate(file.tell() + size - 16)


def _memory_mb(film: Path, folder: Path) -> list[int]:
    command = [sys.executable, "-c", MEMORY, str(folder), str(film)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=400)
    return [int(line) for line in done.stdout.split()]


def test_a_large_film_is_not_kept_in_memory(film: Path, tmp_path: Path) -> None:
    """c2pa hashes in pieces of up to 256 MB, two at a time: a film of 100 MB takes 200, and no copy more."""
    _grown(film, 100 << 20)
    signed_mb, verified_mb = _memory_mb(film, tmp_path / "credentials")
    print(f"memory of 100 MB: {signed_mb} MB to sign, {verified_mb} MB to verify as well")
    assert verified_mb < 260


@pytest.mark.slow
def test_a_film_of_1500_mb_takes_bounded_memory(film: Path, tmp_path: Path) -> None:
    _grown(film, 1500 << 20)
    signed_mb, verified_mb = _memory_mb(film, tmp_path / "credentials")
    print(f"memory of 1500 MB: {signed_mb} MB to sign, {verified_mb} MB to verify as well")
    assert verified_mb < 700


def test_a_full_disk_is_told_from_a_broken_signer(marker: Marker, film: Path, clip: Path) -> None:
    marker.prepare(film)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (film.stat().st_size // 2, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            marker.mark(film, clip, FACTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert film.read_bytes() == clip.read_bytes()
    assert not signed_beside(film).exists()
