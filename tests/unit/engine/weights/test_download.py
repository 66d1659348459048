"""Tests of downloads against a local server that implements the needed part of the hub's API.

The server redirects to a second host name, as the hub does. It can drop connections and send wrong content,
and it logs every request, so that tests of resuming check what was really requested.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from whisper.model import ModelDimensions, Whisper

from lipsync_engine.cli.terminal import download_bars
from lipsync_engine.errors import ErrorCode, ResourceError, WeightsError
from lipsync_engine.models import load_model
from lipsync_engine.models.latentsync.config import UNetConfig
from lipsync_engine.models.latentsync.unet import LatentSyncUNet
from lipsync_engine.weights import WeightsStore
from tests.support.paths import SHARED

SHARED_YUNET = SHARED / "weights/face_detection_yunet_2023mar.onnx"
REVISION = "0123456789abcdef0123456789abcdef01234567"
CHUNK = 10 * 1024 * 1024  # huggingface_hub writes in pieces of this size
TOKEN = "hf_of_the_test"

UNET_FIELDS = {
    "in_channels": 13,
    "out_channels": 4,
    "block_out_channels": [32, 64, 64, 96],
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 32,
    "norm_num_groups": 16,
    "norm_eps": 1e-5,
    "use_motion_module": True,
}
DIMS = {
    "n_mels": 80,
    "n_audio_ctx": 1500,
    "n_audio_state": 32,
    "n_audio_head": 4,
    "n_audio_layer": 2,
    "n_vocab": 64,
    "n_text_ctx": 8,
    "n_text_state": 32,
    "n_text_head": 4,
    "n_text_layer": 1,
}


def make_hub(folder: Path) -> dict[str, Path]:
    """Write files as their publishers do; return repository path → file."""
    torch.manual_seed(3)
    sync, vae = folder / "ByteDance/Mini", folder / "stabilityai/mini-vae"
    (sync / "whisper").mkdir(parents=True)

    unet = LatentSyncUNet(UNetConfig.from_published(UNET_FIELDS))
    torch.save({"global_step": 27, "state_dict": unet.state_dict()}, sync / "latentsync_unet.pt")
    (sync / "unet_config.json").write_text(json.dumps(UNET_FIELDS))
    whisper = Whisper(ModelDimensions(**DIMS))
    torch.save({"dims": DIMS, "model_state_dict": whisper.state_dict()}, sync / "whisper/tiny.pt")
    AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
    ).save_pretrained(vae)
    yunet = folder / "opencv/yunet/face_detection_yunet_2023mar.onnx"
    yunet.parent.mkdir(parents=True)
    yunet.write_bytes(
        SHARED_YUNET.read_bytes() if SHARED_YUNET.exists() else random.Random(1).randbytes(232_589)
    )
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


ROLES = {
    "unet": "ByteDance/Mini/latentsync_unet.pt",
    "unet_config": "ByteDance/Mini/unet_config.json",
    "whisper": "ByteDance/Mini/whisper/tiny.pt",
    "vae": "stabilityai/mini-vae/diffusion_pytorch_model.safetensors",
    "vae_config": "stabilityai/mini-vae/config.json",
    "detector": "opencv/yunet/face_detection_yunet_2023mar.onnx",
}


def write_manifest(folder: Path, files: dict[str, Path], **changed: str) -> Path:
    """Write a manifest of the model `mini` and its components with sizes and hashes.

    `changed` replaces the source lines of a role.
    """
    tables = {
        "mini": ["unet", "unet_config"],
        "audio": ["whisper"],
        "vae": ["vae", "vae_config"],
        "faces": ["detector"],
    }
    lines = []
    for name, roles in tables.items():
        family = "latentsync" if name == "mini" else "component"
        uses = '"audio", "vae", "faces"' if name == "mini" else ""
        lines += [
            f'[models.{name}]\ntitle = "t"\nfamily = "{family}"\nlicence = "MIT"\ncommercial = "yes"',
            f'source = "s"\nresolution = 64\nuses = [{uses}]',
        ]
        for role in roles:
            owner, repo, path = ROLES[role].split("/", 2)
            content = files[ROLES[role]].read_bytes()
            source = changed.get(role) or (
                f'repo = "{owner}/{repo}"\nrevision = "{REVISION}"\nsize = {len(content)}\n'
                f'sha256 = "{hashlib.sha256(content).hexdigest()}"'
            )
            lines.append(f'[[models.{name}.files]]\nrole = "{role}"\npath = "{path}"\n{source}')
    manifest = folder / "manifest.toml"
    manifest.write_text("\n".join(lines))
    return manifest


@dataclass
class Hub:
    """A local model hub.

    Attributes:
        files: repository path → content; tests replace entries by wrong content.
        metadata: repository path → (size, SHA-256) if it differs from the content.
        cut_after: repository path → bytes after which the connection breaks, once.
        stall_after: repository path → bytes after which the server waits for `release`, once.
        status: repository path → HTTP status instead of the file.
        log: (repository path, Range header, Authorization header) of every request for content.
        heads: (repository path, Authorization header) of every request for metadata.
    """

    files: dict[str, bytes]
    metadata: dict[str, tuple[int, str]] = field(default_factory=dict)
    cut_after: dict[str, int] = field(default_factory=dict)
    stall_after: dict[str, int] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    log: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    heads: list[tuple[str, str | None]] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def range_headers(self, path: str) -> list[str | None]:
        """Range header of each request for the content of `path`."""
        return [header for logged_path, header, _ in self.log if logged_path == path]


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        path = self._resolve()
        if path is None:
            return
        self.hub.heads.append((path, self.headers["Authorization"]))
        content = self.hub.files[path]
        size, digest = self.hub.metadata.get(path, (len(content), hashlib.sha256(content).hexdigest()))
        self._redirect(
            path, {"X-Repo-Commit": REVISION, "X-Linked-Size": str(size), "X-Linked-ETag": f'"{digest}"'}
        )

    def do_GET(self) -> None:
        if self.path.startswith("/cdn/"):
            self._send(self.path.removeprefix("/cdn/"))
        elif (path := self._resolve()) is not None:
            self._redirect(path, {})

    def _resolve(self) -> str | None:
        repo, _, rest = self.path.removeprefix("/").partition("/resolve/")
        path = f"{repo}/{rest.partition('/')[2]}"
        status = self.hub.status.get(path, 200 if path in self.hub.files else 404)
        if status == 200:
            return path
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def _redirect(self, path: str, headers: dict[str, str]) -> None:
        self.send_response(302)
        for name, value in headers.items():
            self.send_header(name, value)
        # Another host name, as the hub's content network is.
        self.send_header("Location", f"http://localhost:{self.hub.port}/cdn/{path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, path: str) -> None:
        hub, range_header = self.hub, self.headers["Range"]
        hub.log.append((path, range_header, self.headers["Authorization"]))
        content = hub.files[path]
        start = int(range_header.removeprefix("bytes=").partition("-")[0]) if range_header else 0
        self.send_response(206 if range_header else 200)
        if range_header:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stop = hub.cut_after.pop(path, None)
        stall = hub.stall_after.pop(path, None)
        self.wfile.write(content[start : stop or stall])
        if stall is not None:
            self.wfile.flush()
            hub.release.wait(60)
        if stop is not None or stall is not None:
            self.close_connection = True


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def hub(originals: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub({path: file.read_bytes() for path, file in originals.items()})
    handler = type("HubHandler", (HubHandler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients are killed here
        hub.port = server.server_address[1]
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield hub
        hub.release.set()
        server.shutdown()


@pytest.fixture
def store(tmp_path: Path, originals: dict[str, Path]) -> WeightsStore:
    return WeightsStore(tmp_path / "root", write_manifest(tmp_path, originals))


UNET = ROLES["unet"]


def part_files(store: WeightsStore) -> list[str]:
    return sorted(path.name for path in store.root.rglob("*part*"))


def pull_error(store: WeightsStore, name: str = "mini") -> WeightsError | ResourceError:
    with pytest.raises((WeightsError, ResourceError)) as error:
        store.pull(name)
    return error.value


# --- downloads ---


def test_pulled_model_loads(hub: Hub, store: WeightsStore) -> None:
    reports: dict[str, list[tuple[int, int]]] = {}
    store.pull("mini", lambda file, done, total: reports.setdefault(file, []).append((done, total)))
    assert {path: len(hub.range_headers(path)) for path in ROLES.values()} == dict.fromkeys(ROLES.values(), 1)
    assert part_files(store) == []
    size = len(hub.files[UNET])
    assert reports["latentsync_unet.pt"][0] == (0, size)
    assert reports["latentsync_unet.pt"][-1] == (size, size)
    assert [done for done, _ in reports["latentsync_unet.pt"]] == sorted(
        done for done, _ in reports["latentsync_unet.pt"]
    )

    model = load_model("mini", device=torch.device("cpu"), dtype=torch.float32, store=store)
    assert model.info.weights_sha256 == store.weights_sha256("mini")
    assert model.initial_noise(1).shape == (1, 4, 1, 32, 32)

    store.pull("mini")  # nothing is missing, so no request is sent
    assert len(hub.log) == len(ROLES)
    assert len(hub.heads) == len(ROLES)


def test_token_is_sent_only_to_the_hub(hub: Hub, store: WeightsStore) -> None:
    store.pull("faces")
    assert [token for _, token in hub.heads] == [f"Bearer {TOKEN}"]
    assert [token for _, _, token in hub.log] == [None]


def test_plain_url_download_resumes(hub: Hub, tmp_path: Path, originals: dict[str, Path]) -> None:
    path = ROLES["whisper"]
    digest = hashlib.sha256(hub.files[path]).hexdigest()
    url = f'url = "http://localhost:{hub.port}/cdn/{path}"\nsha256 = "{digest}"'
    store = WeightsStore(tmp_path / "root", write_manifest(tmp_path, originals, whisper=url))
    folder = store.root / "audio/whisper"
    folder.mkdir(parents=True)
    (folder / f"tiny.pt.{digest[:12]}.part").write_bytes(hub.files[path][:1000])
    store.pull("audio")
    assert hub.range_headers(path) == ["bytes=1000-"]
    assert store.verified_files("audio")["whisper"].read_bytes() == hub.files[path]
    assert [token for _, _, token in hub.log] == [None]


def test_unpublished_hash_is_recorded_at_first_pull(
    hub: Hub, tmp_path: Path, originals: dict[str, Path]
) -> None:
    line = f'repo = "opencv/yunet"\nrevision = "{REVISION}"'
    store = WeightsStore(tmp_path / "root", write_manifest(tmp_path, originals, detector=line))
    store.pull("faces")
    path = store.verified_files("faces")["detector"]
    digest = hashlib.sha256(hub.files[ROLES["detector"]]).hexdigest()
    assert path.with_name(f"{path.name}.sha256").read_text().split() == [digest, path.name]


# --- interruptions ---


def test_broken_connection_is_resumed(hub: Hub, store: WeightsStore) -> None:
    hub.cut_after[UNET] = CHUNK + 1_000_000
    store.pull("mini")
    assert hub.range_headers(UNET) == [None, f"bytes={CHUNK}-"]
    assert store.verified_files("mini")["unet"].read_bytes() == hub.files[UNET]


PULL_SCRIPT = """
import sys
from pathlib import Path
from lipsync_engine.weights import WeightsStore
def print_progress(file, done, total):
    print(file, done, flush=True)
print("ready", 0, flush=True)
WeightsStore(Path(sys.argv[1]), Path(sys.argv[2])).pull(sys.argv[3], print_progress)
"""


def start_pull(store: WeightsStore, name: str = "mini") -> subprocess.Popen[str]:
    manifest = store.root.parent / "manifest.toml"
    return subprocess.Popen(
        [sys.executable, "-c", PULL_SCRIPT, str(store.root), str(manifest), name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_download_resumes(hub: Hub, store: WeightsStore) -> None:
    hub.stall_after[UNET] = 2 * CHUNK + 1_000_000
    with start_pull(store) as child:
        assert child.stdout is not None
        for line in child.stdout:  # the second piece has come, so the first is on the disk
            if line == f"latentsync_unet.pt {2 * CHUNK}\n":
                break
        child.kill()
    hub.release.set()
    (part,) = (store.root / "mini").glob("latentsync_unet.pt.*.part")
    size = part.stat().st_size
    assert size >= CHUNK
    assert store.describe_status("mini") == "missing: 6 of 6 files"

    store.pull("mini")
    assert hub.range_headers(UNET) == [None, f"bytes={size}-"]  # only what was missing
    assert store.verified_files("mini")["unet"].read_bytes() == hub.files[UNET]
    assert part_files(store) == []


def test_concurrent_pulls_download_once(hub: Hub, store: WeightsStore) -> None:
    hub.stall_after[UNET] = CHUNK + 1_000_000  # the first is held until the second has started
    with start_pull(store) as first:
        assert first.stdout is not None
        for line in first.stdout:
            if line == f"latentsync_unet.pt {CHUNK}\n":
                break
        with start_pull(store) as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "ready 0\n"
            hub.release.set()
            assert [second.wait(60), first.wait(60)] == [0, 0]
    assert hub.range_headers(UNET) == [None, f"bytes={CHUNK}-"]  # the first process, after the stall
    assert all(len(hub.range_headers(path)) == 1 for path in ROLES.values() if path != UNET)
    assert store.verified_files("mini")["unet"].read_bytes() == hub.files[UNET]


# --- wrong content ---


def test_wrong_content_is_discarded(hub: Hub, store: WeightsStore) -> None:
    right = hub.files[UNET]
    hub.metadata[UNET] = (len(right), hashlib.sha256(right).hexdigest())
    hub.files[UNET] = right[:-4] + b"evil"
    error = pull_error(store)
    assert error.code is ErrorCode.WEIGHTS_HASH_MISMATCH
    assert "not the published file" in error.message
    assert "another mirror (HF_ENDPOINT)" in error.message
    assert part_files(store) == []
    with pytest.raises(WeightsError, match="lipsync weights pull mini"):
        store.verified_files("mini")

    hub.files[UNET] = right
    store.pull("mini")
    assert store.verified_files("mini")["unet"].read_bytes() == right


@pytest.mark.parametrize(
    ("size", "digest", "code", "text"),
    [
        (None, "b" * 64, ErrorCode.WEIGHTS_HASH_MISMATCH, "is not the published file"),
        (77, None, ErrorCode.WEIGHTS_TRUNCATED, "has 77 bytes"),
    ],
)
def test_wrong_metadata_prevents_the_download(
    hub: Hub, store: WeightsStore, size: int | None, digest: str | None, code: ErrorCode, text: str
) -> None:
    content = hub.files[UNET]
    hub.metadata[UNET] = (size or len(content), digest or hashlib.sha256(content).hexdigest())
    error = pull_error(store)
    assert error.code is code
    assert text in error.message
    assert "nothing was downloaded" in error.message
    assert hub.log == []


def test_short_download_is_discarded(hub: Hub, store: WeightsStore) -> None:
    right = hub.files[ROLES["detector"]]
    hub.metadata[ROLES["detector"]] = (len(right), hashlib.sha256(right).hexdigest())
    hub.files[ROLES["detector"]] = right[:-1000]
    error = pull_error(store, "faces")
    assert error.code is ErrorCode.WEIGHTS_TRUNCATED
    assert "wrong length" in error.message
    assert "Pull again" in error.message
    assert part_files(store) == []


def test_file_of_another_architecture_is_named(hub: Hub, tmp_path: Path, originals: dict[str, Path]) -> None:
    """Its hash is right, but the file belongs to another model."""
    checkpoint = torch.load(originals[UNET], weights_only=True)
    state = checkpoint["state_dict"]
    state["conv_in.weight"] = state["conv_in.weight"][:, :9]
    del state["conv_out.bias"]
    other = tmp_path / "other.pt"
    torch.save(checkpoint, other)
    hub.files[UNET] = other.read_bytes()
    store = WeightsStore(tmp_path / "root", write_manifest(tmp_path, {**originals, UNET: other}))
    store.pull("mini")
    with pytest.raises(WeightsError, match="do not fit LatentSyncUNet") as error:
        load_model("mini", device=torch.device("cpu"), dtype=torch.float32, store=store)
    assert error.value.code is ErrorCode.WEIGHTS_ARCHITECTURE
    assert "1 missing (conv_out.bias)" in error.value.message
    assert "conv_in.weight has 32×9×3×3 instead of 32×13×3×3" in error.value.message
    assert "lipsync weights list" in error.value.message


# --- network and disk errors ---


@pytest.mark.parametrize(("status", "text"), [(404, "HTTP 404"), (403, "set HF_TOKEN"), (500, "HTTP 500")])
def test_http_error_is_reported(hub: Hub, store: WeightsStore, status: int, text: str) -> None:
    hub.status[UNET] = status
    error = pull_error(store)
    assert error.code is ErrorCode.WEIGHTS_DOWNLOAD_FAILED
    assert text in error.message
    assert f"127.0.0.1:{hub.port}" in error.message


def test_unreachable_host_is_reported(store: WeightsStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port, without a server
    error = pull_error(store)
    assert error.code is ErrorCode.WEIGHTS_DOWNLOAD_FAILED
    assert "from 127.0.0.1:9" in error.message
    assert "set HF_ENDPOINT to a mirror" in error.message
    assert "lipsync weights import" in error.message


def test_import_and_load_work_offline(hub: Hub, store: WeightsStore, originals: dict[str, Path]) -> None:
    """HF_HUB_OFFLINE makes pull fail; import and loading need no network."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    manifest, folder = store.root.parent / "manifest.toml", originals[UNET].parents[2]
    code = """
import sys
from pathlib import Path
from lipsync_engine.errors import WeightsError
from lipsync_engine.weights import WeightsStore
store = WeightsStore(Path(sys.argv[1]), Path(sys.argv[2]))
try:
    store.pull("mini")
except WeightsError as error:
    print(error.code, error.message)
store.import_path(Path(sys.argv[3]))
print(sorted(store.verified_files("mini")))
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(store.root), str(manifest), str(folder)],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    error_line, roles = result.stdout.splitlines()
    assert error_line.startswith("weights_download_failed")
    assert "HF_HUB_OFFLINE is set" in error_line
    assert roles == str(sorted(ROLES))
    assert hub.heads == []
    assert hub.log == []
    load_model("mini", device=torch.device("cpu"), dtype=torch.float32, store=store)


def test_full_disk_is_detected_before_the_download(
    hub: Hub, tmp_path: Path, originals: dict[str, Path]
) -> None:
    line = f'url = "http://localhost:{hub.port}/cdn/{UNET}"\nsize = {10**18}\nsha256 = "{"a" * 64}"'
    store = WeightsStore(tmp_path / "root", write_manifest(tmp_path, originals, unet=line))
    error = pull_error(store)
    assert error.code is ErrorCode.DISK_FULL
    assert "LIPSYNC_WEIGHTS_DIR" in error.message
    assert hub.log == []


def test_download_bars_show_known_and_unknown_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    with download_bars() as report:
        for name, done, total in (("unet.pt", 10, 30), ("config.json", 7, 0), ("unet.pt", 30, 30)):
            report(name, done, total)
    shown = capsys.readouterr().err
    assert re.search(r"unet\.pt .* 30/30 +bytes", shown)
    assert re.search(r"config\.json .* 7/\? +bytes", shown)
