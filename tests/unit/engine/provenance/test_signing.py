"""Tests of content credentials: valid and changed files, signers of all kinds, bounded memory."""

from __future__ import annotations

import contextlib
import logging
import resource
import socket
import stat
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lipsync_engine import media
from lipsync_engine.errors import ErrorCode, InputError, ParameterError
from lipsync_engine.provenance import (
    ManifestFacts,
    ManifestSigner,
    SigningError,
    SigningPolicy,
    Verdict,
    signed_copy_path,
    verify_credentials,
)
from lipsync_engine.provenance.development import create_development_certificate
from lipsync_engine.provenance.source_manifest import C2PA_UUID, MAX_BOXES
from tests.support.paths import ROOT

Ffmpeg = Callable[..., None]
XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
FACTS = ManifestFacts("tiny", "ab" * 32, 7, 2, "job 1", consent="release 17")

SIGNER = ROOT / "deploy" / "file_signer.py"

MEMORY_SCRIPT = """
import resource, sys
from pathlib import Path
from lipsync_engine.provenance import *
signer, file = ManifestSigner(SigningPolicy.REQUIRED, Path(sys.argv[1])), Path(sys.argv[2])
signer.check_can_sign(file)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert signer.sign(file, file, ManifestFacts("tiny", "", 1, 1, "")) is None
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
assert verify_credentials(file, signer.trusted_roots()).verdict is Verdict.TRUSTED
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.fixture
def signer(tmp_path: Path) -> ManifestSigner:
    return ManifestSigner(SigningPolicy.REQUIRED, tmp_path / "private" / "credentials")


@pytest.fixture
def video(clip: Path, tmp_path: Path) -> Path:
    """An unsigned video that may be changed."""
    path = tmp_path / "video.mp4"
    path.write_bytes(clip.read_bytes())
    return path


def test_signed_video_is_trusted_if_its_root_is_known(
    signer: ManifestSigner, video: Path, clip: Path
) -> None:
    assert signer.sign(video, clip, FACTS) is None
    verification = verify_credentials(video, signer.trusted_roots())
    assert (verification.verdict, verification.problems) == (Verdict.TRUSTED, ())
    assert verification.is_generated
    assert verification.is_development
    assert verification.generation == FACTS.to_assertion()
    assert [(source.relationship, source.signer) for source in verification.ingredients] == [
        ("parentOf", None)
    ]
    stranger = verify_credentials(video, "")
    assert (stranger.verdict, stranger.problems) == (Verdict.UNKNOWN_SIGNER, ())
    assert verify_credentials(clip, signer.trusted_roots()).verdict is Verdict.NONE


def test_damaged_source_becomes_an_ingredient(signer: ManifestSigner, video: Path, clip: Path) -> None:
    """c2pa rejects a box that extends beyond the end of the file, but FFmpeg does not, so such jobs run."""
    damaged = video.with_name("damaged.mp4")
    damaged.write_bytes(clip.read_bytes() + struct.pack(">I4s", 1000, b"free"))
    assert signer.sign(video, damaged, FACTS) is None
    verification = verify_credentials(video, signer.trusted_roots())
    assert verification.verdict is Verdict.TRUSTED
    assert [(source.relationship, source.signer) for source in verification.ingredients] == [
        ("parentOf", None)
    ]


def test_damaged_credentials_of_the_source_do_not_prevent_signing(
    signer: ManifestSigner, video: Path, clip: Path, tmp_path: Path
) -> None:
    """Any byte of them may be damaged; FFmpeg decodes the video all the same."""
    source = tmp_path / "source.mp4"
    source.write_bytes(clip.read_bytes())
    assert signer.sign(source, clip, FACTS) is None
    content = source.read_bytes()
    start = content.index(C2PA_UUID)
    original = video.read_bytes()
    for position in (start + 40, start + 300, start + 2000, start + 6000):
        source.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        video.write_bytes(original)
        assert signer.sign(video, source, FACTS) is None
        assert verify_credentials(video, signer.trusted_roots()).verdict is Verdict.TRUSTED


def test_file_of_many_boxes_is_not_parsed(
    signer: ManifestSigner, video: Path, clip: Path, tmp_path: Path
) -> None:
    """c2pa would take minutes for them, wherever they are."""
    source = tmp_path / "source.mp4"
    many = MAX_BOXES * struct.pack(">I4s", 8, b"free")
    source.write_bytes(clip.read_bytes() + struct.pack(">I4s", 8 + len(many), b"moov") + many)
    with pytest.raises(InputError):
        verify_credentials(source, "")
    source.write_bytes(clip.read_bytes() + many)
    assert signer.sign(video, source, FACTS) is None
    assert [part.signer for part in verify_credentials(video, "").ingredients] == [None]
    with pytest.raises(InputError) as error:
        verify_credentials(source, "")
    assert error.value.code is ErrorCode.INPUT_UNREADABLE


class LoopbackListener:
    """Counts connections to a port of this machine."""

    def __init__(self) -> None:
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/manifest.c2pa"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._socket.accept()
                self.connections += 1
                connection.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


def with_remote_references(kind: str, url: str, path: Path, ffmpeg: Ffmpeg, clip: Path) -> Path:
    """Write a small file of a kind whose metadata name a URL wherever the format has a place for one."""
    tags = [f"-metadata={name}={url}" for name in ("comment", "url", "WXXX", "WOAF", "purl", "xmp")]
    metadata = [word for tag in tags for word in tag.split("=", 1)]
    media = ["-f", "lavfi", "-i", "sine=duration=0.2"] if kind == "wav" else ["-i", clip, "-frames:v", 1]
    ffmpeg(*media, *metadata, *(["-id3v2_version", 4, "-write_id3v2", 1] if kind == "aiff" else []), path)
    xmp = (
        '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        f'xmlns:dcterms="http://purl.org/dc/terms/" dcterms:provenance="{url}"/></rdf:RDF></x:xmpmeta>'
        '<?xpacket end="w"?>'
    ).encode()
    data = path.read_bytes()
    match kind:
        case "jpg":
            body = b"http://ns.adobe.com/xap/1.0/\0" + xmp
            data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]
        case "png":
            body = b"iTXtXML:com.adobe.xmp\0\0\0\0\0" + xmp
            checksum = struct.pack(">I", zlib.crc32(body))
            data = data[:33] + struct.pack(">I", len(body) - 4) + body + checksum + data[33:]
        case "webp" | "wav":
            name = b"XMP " if kind == "webp" else b"_PMX"
            data += name + struct.pack("<I", len(xmp)) + xmp + bytes(len(xmp) % 2)
            data = data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
        case "mp4" | "mov":
            data += struct.pack(">I", len(xmp) + 24) + b"uuid" + XMP_UUID + xmp
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "mp4", "mov", "mkv", "wav"])
def test_no_library_follows_a_url_of_a_source(
    kind: str, signer: ManifestSigner, video: Path, clip: Path, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    listener = LoopbackListener()
    source = with_remote_references(kind, listener.url, tmp_path / f"source.{kind}", ffmpeg, clip)
    if kind == "wav":
        media.probe_audio(source)
    elif kind in ("jpg", "png", "webp"):
        media.read_image(source)
    else:
        list(media.scan_frames(media.probe_video(source), 64))
    assert signer.sign(video, source, FACTS) is None
    assert verify_credentials(source, "").verdict in (Verdict.NONE, Verdict.INVALID)
    assert verify_credentials(video, signer.trusted_roots()).verdict is Verdict.TRUSTED
    listener.close()
    assert listener.connections == 0


def test_engine_is_imported_without_signing_libraries() -> None:
    """A GPU machine without a network has PyTorch, and may lack them."""
    script = """
import sys
for name in ("c2pa", "cryptography"):
    sys.modules[name] = None
from lipsync_engine import LipSyncPipeline, SyncParams
import lipsync_engine.cli, lipsync_engine.models.latentsync.model
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_manifest_contains_no_personal_data(signer: ManifestSigner, video: Path, clip: Path) -> None:
    named = video.with_name("anna-private.mp4")
    named.write_bytes(clip.read_bytes())
    signer.sign(video, named, FACTS)
    added = video.read_bytes()
    for secret in (b"release 17", b"job 1", b"anna", str(video.parent).encode()):
        assert secret not in added, secret


def test_signing_changes_no_frame(
    signer: ManifestSigner, video: Path, clip: Path, ffmpeg: Ffmpeg, tmp_path: Path
) -> None:
    signer.sign(video, clip, FACTS)
    for path in (video, clip):
        ffmpeg("-i", path, "-c", "copy", "-f", "framemd5", tmp_path / f"{path.stem}.md5")
    assert (tmp_path / "video.md5").read_text() == (tmp_path / f"{clip.stem}.md5").read_text()


@pytest.mark.parametrize("place", [0.3, 0.6, 0.95])
def test_one_flipped_bit_invalidates_the_signature(
    signer: ManifestSigner, video: Path, clip: Path, place: float
) -> None:
    signer.sign(video, clip, FACTS)
    content = bytearray(video.read_bytes())
    content[int(place * len(content))] ^= 1
    video.write_bytes(content)
    verification = verify_credentials(video, signer.trusted_roots())
    assert verification.verdict is Verdict.INVALID
    assert verification.problems


def test_remuxing_removes_credentials(
    signer: ManifestSigner, video: Path, clip: Path, ffmpeg: Ffmpeg, tmp_path: Path
) -> None:
    signer.sign(video, clip, FACTS)
    ffmpeg("-i", video, "-c", "copy", tmp_path / "remuxed.mp4")
    assert verify_credentials(tmp_path / "remuxed.mp4", signer.trusted_roots()).verdict is Verdict.NONE


def test_credentials_of_the_source_are_kept(
    signer: ManifestSigner, video: Path, clip: Path, tmp_path: Path
) -> None:
    source = tmp_path / "input"  # without a suffix, like inputs of the server
    source.write_bytes(clip.read_bytes())
    signed = source.with_name("signed.mp4")
    source.rename(signed)
    signer.sign(signed, clip, ManifestFacts("camera", "", 1, 1, ""))
    signed.rename(source)
    signer.sign(video, source, FACTS)
    verification = verify_credentials(video, signer.trusted_roots())
    assert verification.verdict is Verdict.TRUSTED
    assert [source.signer for source in verification.ingredients] == ["lipsync-engine development"]


def test_images_and_other_containers_become_ingredients(
    signer: ManifestSigner, video: Path, clip: Path, ffmpeg: Ffmpeg, tmp_path: Path
) -> None:
    for name in ("still.png", "still.jpg", "still.bmp", "still.webp", "clip.mkv"):
        source = tmp_path / name
        ffmpeg("-i", clip, *([] if source.suffix == ".mkv" else ["-frames:v", 1]), source)
        assert signer.sign(video, source, FACTS) is None
        assert verify_credentials(video, signer.trusted_roots()).verdict is Verdict.TRUSTED, name


def test_development_certificate_is_private_and_created_once(
    signer: ManifestSigner, video: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        signer.check_can_sign(video)
        key = (signer.development_dir / "key.pem").read_bytes()
        signer.check_can_sign(video)
    assert [record.message[:25] for record in caplog.records] == ["development certificate f"]
    assert (signer.development_dir / "key.pem").read_bytes() == key
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in [signer.development_dir, *signer.development_dir.iterdir()]
    }
    assert modes == {"credentials": 0o700, "root.pem": 0o600, "chain.pem": 0o600, "key.pem": 0o600}


def test_concurrent_processes_share_one_development_certificate(video: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\nfrom lipsync_engine.provenance import *\n"
        "ManifestSigner(SigningPolicy.REQUIRED, Path(sys.argv[1])).check_can_sign(Path('a.mp4'))"
    )
    folder = tmp_path / "credentials"
    started = [subprocess.Popen([sys.executable, "-c", program, str(folder)]) for _ in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    assert sorted(path.name for path in folder.iterdir()) == ["chain.pem", "key.pem", "root.pem"]
    assert [path.name for path in tmp_path.glob("credentials*")] == ["credentials"]


# --- the operator's own signer ---


@pytest.fixture
def own_signer(signer: ManifestSigner, video: Path, tmp_path: Path) -> Callable[..., ManifestSigner]:
    """Return a factory of signers with a certificate in the operator's own files."""
    signer.check_can_sign(video)

    def make_signer(
        *,
        policy: SigningPolicy = SigningPolicy.REQUIRED,
        command: tuple[str, ...] = (),
        key: Path | None = None,
    ) -> ManifestSigner:
        return ManifestSigner(
            policy,
            tmp_path / "unused",
            chain=signer.development_dir / "chain.pem",
            key=None if command else key or signer.development_dir / "key.pem",
            command=command,
            trust_anchors=signer.development_dir / "root.pem",
        )

    return make_signer


def test_key_file_and_command_sign(
    own_signer: Callable[..., ManifestSigner], video: Path, clip: Path, tmp_path: Path
) -> None:
    key = str(own_signer().key)
    for signer in (own_signer(), own_signer(command=(sys.executable, str(SIGNER), key))):
        signer.check_can_sign(video)
        assert signer.sign(video, clip, FACTS) is None
        assert verify_credentials(video, signer.trusted_roots()).verdict is Verdict.TRUSTED
        video.write_bytes(clip.read_bytes())
    assert not (tmp_path / "unused").exists()


def test_broken_signer_is_an_error_or_a_warning(
    own_signer: Callable[..., ManifestSigner], video: Path, clip: Path, tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger.pem"
    stranger.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    before = video.read_bytes()
    cases: list[tuple[dict[str, object], str]] = [
        ({"key": stranger}, "does not match"),
        ({"key": tmp_path / "gone.pem"}, "No such file"),
        ({"command": ("/bin/false",)}, "/bin/false exited with status 1"),
        ({"command": ("/bin/sh", "-c", "echo the vault is shut >&2; exit 3")}, "status 3, the vault is shut"),
        ({"command": ("/nowhere/signer",)}, "could not be run"),
        ({"command": ("/bin/echo", "no signature")}, "ignature"),
    ]
    for changes, pattern in cases:
        required = own_signer(**changes)
        with pytest.raises(SigningError, match=pattern) as failed:
            required.check_can_sign(video)  # before any work
        assert failed.value.code is ErrorCode.SIGNING_FAILED
        with pytest.raises(SigningError, match=pattern):
            required.sign(video, clip, FACTS)
        lax = own_signer(policy=SigningPolicy.BEST_EFFORT, **changes)
        lax.check_can_sign(video)
        assert "no content credentials" in str(lax.sign(video, clip, FACTS))
        assert video.read_bytes() == before
        assert not signed_copy_path(video).exists()


def test_expired_certificate_is_rejected(video: Path, tmp_path: Path) -> None:
    create_development_certificate(tmp_path / "expired", valid_days=-1 / 24)
    signer = ManifestSigner(SigningPolicy.REQUIRED, tmp_path / "expired")
    with pytest.raises(SigningError):
        signer.check_can_sign(video)
    chain = x509.load_pem_x509_certificates((tmp_path / "expired" / "chain.pem").read_bytes())
    assert len(chain) == 1


def test_policy_comes_from_argument_or_environment(
    tmp_path: Path, video: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = video.read_bytes()
    for name in ("MARKING", "SIGNING_CHAIN", "SIGNING_KEY", "SIGNING_COMMAND", "TRUST_ANCHORS"):
        monkeypatch.delenv(f"LIPSYNC_{name}", raising=False)
    assert ManifestSigner.from_environment().policy is SigningPolicy.REQUIRED
    monkeypatch.setenv("LIPSYNC_MARKING", "off")
    off = ManifestSigner.from_environment()
    off.check_can_sign(tmp_path / "video.mkv")
    assert "marking is off" in str(off.sign(video, clip, FACTS))
    assert video.read_bytes() == before
    assert ManifestSigner.from_environment("best_effort").policy is SigningPolicy.BEST_EFFORT
    with pytest.raises(ParameterError, match="required, best_effort, off"):
        ManifestSigner.from_environment("maybe")
    monkeypatch.setenv("LIPSYNC_SIGNING_KEY", "key.pem")
    with pytest.raises(ParameterError, match="LIPSYNC_SIGNING_CHAIN"):
        ManifestSigner.from_environment()


def test_matroska_cannot_hold_credentials(
    signer: ManifestSigner, clip: Path, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    video = tmp_path / "video.mkv"
    ffmpeg("-i", clip, "-c", "copy", video)
    with pytest.raises(ParameterError, match=r"\.mkv file cannot hold"):
        signer.check_can_sign(video)
    lax = ManifestSigner(SigningPolicy.BEST_EFFORT, signer.development_dir)
    assert ".mkv file cannot hold" in str(lax.sign(video, clip, FACTS))
    assert verify_credentials(video, "").verdict is Verdict.NONE


# --- verification ---


def test_invalid_files_have_no_credentials(signer: ManifestSigner, tmp_path: Path) -> None:
    note = tmp_path / "note.mp4"
    for content, verdict in (
        (b"", Verdict.NONE),
        (b"only text", Verdict.NONE),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom\xff\xff\xff\xffuuid", Verdict.NONE),
    ):
        note.write_bytes(content)
        assert verify_credentials(note, signer.trusted_roots()).verdict in (verdict, Verdict.INVALID)
    for path, code in (
        (tmp_path / "gone", ErrorCode.INPUT_NOT_FOUND),
        (tmp_path, ErrorCode.INPUT_IS_DIRECTORY),
    ):
        with pytest.raises(InputError) as failed:
            verify_credentials(path, "")
        assert failed.value.code is code


# --- size ---


def grow_file(video: Path, size: int) -> None:
    """Append media data of the given size as a hole in the file."""
    with video.open("ab") as file:
        file.write(struct.pack(">I4sQ", 1, b"mdat", size))
        file.truncate(file.tell() + size - 16)


def measure_memory_mb(video: Path, folder: Path) -> list[int]:
    command = [sys.executable, "-c", MEMORY_SCRIPT, str(folder), str(video)]
    process = subprocess.run(command, capture_output=True, text=True, check=True, timeout=400)
    return [int(line) for line in process.stdout.split()]


def test_memory_of_signing_is_bounded(video: Path, tmp_path: Path) -> None:
    """c2pa hashes two parts of up to 256 MB at a time, so 100 MB need 200 MB, but no further copy."""
    grow_file(video, 100 << 20)
    signed_mb, verified_mb = measure_memory_mb(video, tmp_path / "credentials")
    print(f"memory of 100 MB: {signed_mb} MB to sign, {verified_mb} MB to verify as well")
    assert verified_mb < 260


@pytest.mark.slow
def test_memory_of_signing_1500_mb_is_bounded(video: Path, tmp_path: Path) -> None:
    grow_file(video, 1500 << 20)
    signed_mb, verified_mb = measure_memory_mb(video, tmp_path / "credentials")
    print(f"memory of 1500 MB: {signed_mb} MB to sign, {verified_mb} MB to verify as well")
    assert verified_mb < 700


def test_full_disk_is_distinguished_from_a_broken_signer(
    signer: ManifestSigner, video: Path, clip: Path
) -> None:
    signer.check_can_sign(video)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (video.stat().st_size // 2, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            signer.sign(video, clip, FACTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert video.read_bytes() == clip.read_bytes()
    assert not signed_copy_path(video).exists()
