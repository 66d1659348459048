"""Downloads against a local server that speaks as much of the hub as needed, with files of the true formats.

The server redirects to a second host name, as the hub does, cuts connections, lies about content, and keeps
a log, so that every claim about resuming is read from what was really requested.
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

from lipsync_engine.cli.terminal import downloads
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
    """Files as their publishers make them; repository path → file."""
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
    """The model `mini` and its components with the true sizes and hashes; `changed` replaces a role's
    lines.
    """
    tables = {
        "mini": ["unet", "unet_config"],
        "ear": ["whisper"],
        "vae": ["vae", "vae_config"],
        "eye": ["detector"],
    }
    lines = []
    for name, roles in tables.items():
        family = "latentsync" if name == "mini" else "component"
        uses = '"ear", "vae", "eye"' if name == "mini" else ""
        lines += [
            f'[models.{name}]\ntitle = "t"\nfamily = "{family}"\nlicence = "MIT"\ncommercial = "yes"',
            f'source = "s"\nresolution = 64\nuses = [{uses}]',
        ]
        for role in roles:
            owner, repo, path = ROLES[role].split("/", 2)
            content = files[ROLES[role]].read_bytes()
            given = changed.get(role) or (
                f'repo = "{owner}/{repo}"\nrevision = "{REVISION}"\nsize = {len(content)}\n'
                f'sha256 = "{hashlib.sha256(content).hexdigest()}"'
            )
            lines.append(f'[[models.{name}.files]]\nrole = "{role}"\npath = "{path}"\n{given}')
    manifest = folder / "manifest.toml"
    manifest.write_text("\n".join(lines))
    return manifest


@dataclass
class Hub:
    """A model hub on this machine.

    Attributes:
        files: repository path → content; tests replace entries to lie.
        announced: repository path → (size, SHA-256) where it differs from the content.
        cut_after: repository path → bytes after which the connection breaks, once.
        stall_after: repository path → bytes after which nothing more comes, once, until `release`.
        status: repository path → HTTP status instead of the file.
        log: (method, repository path, Range header, Authorization header) of every request for content.
        heads: the same of every request for facts.
    """

    files: dict[str, bytes]
    announced: dict[str, tuple[int, str]] = field(default_factory=dict)
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

    def asked(self, path: str) -> list[str | None]:
        """Range header of each request for the content of `path`."""
        return [given for asked, given, _ in self.log if asked == path]


class Handler(BaseHTTPRequestHandler):
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
        size, digest = self.hub.announced.get(path, (len(content), hashlib.sha256(content).hexdigest()))
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
        hub, given = self.hub, self.headers["Range"]
        hub.log.append((path, given, self.headers["Authorization"]))
        content = hub.files[path]
        start = int(given.removeprefix("bytes=").partition("-")[0]) if given else 0
        self.send_response(206 if given else 200)
        if given:
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
    handler = type("HubHandler", (Handler,), {"hub": hub})
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


def leftovers(store: WeightsStore) -> list[str]:
    return sorted(path.name for path in store.root.rglob("*part*"))


def fault(store: WeightsStore, name: str = "mini") -> WeightsError | ResourceError:
    with pytest.raises((WeightsError, ResourceError)) as caught:
        store.pull(name)
    return caught.value


# --- what works ---


def test_a_pulled_model_loads(hub: Hub, store: WeightsStore) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    store.pull("mini", lambda file, done, total: seen.setdefault(file, []).append((done, total)))
    assert {path: len(hub.asked(path)) for path in ROLES.values()} == dict.fromkeys(ROLES.values(), 1)
    assert leftovers(store) == []
    size = len(hub.files[UNET])
    assert seen["latentsync_unet.pt"][0] == (0, size)
    assert seen["latentsync_unet.pt"][-1] == (size, size)
    assert [done for done, _ in seen["latentsync_unet.pt"]] == sorted(
        done for done, _ in seen["latentsync_unet.pt"]
    )

    model = load_model("mini", device=torch.device("cpu"), dtype=torch.float32, store=store)
    assert model.info.weights_sha256 == store.weights_sha256("mini")
    assert model.initial_noise(1).shape == (1, 4, 1, 32, 32)

    store.pull("mini")  # nothing is missing: not a single request
    assert len(hub.log) == len(ROLES)
    assert len(hub.heads) == len(ROLES)


def test_the_token_stays_with_the_hub(hub: Hub, store: WeightsStore) -> None:
    store.pull("eye")
    assert [token for _, token in hub.heads] == [f"Bearer {TOKEN}"]
    assert [token for _, _, token in hub.log] == [None]


def test_a_plain_address_works_and_resumes(hub: Hub, tmp_path: Path, originals: dict[str, Path]) -> None:
    path = ROLES["whisper"]
    digest = hashlib.sha256(hub.files[path]).hexdigest()
    url = f'url = "http://localhost:{hub.port}/cdn/{path}"\nsha256 = "{digest}"'
    store = WeightsStore(tmp_path / "root", write_manifest(tmp_path, originals, whisper=url))
    folder = store.root / "ear/whisper"
    folder.mkdir(parents=True)
    (folder / f"tiny.pt.{digest[:12]}.part").write_bytes(hub.files[path][:1000])
    store.pull("ear")
    assert hub.asked(path) == ["bytes=1000-"]
    assert store.files("ear")["whisper"].read_bytes() == hub.files[path]
    assert [token for _, _, token in hub.log] == [None]


def test_a_file_of_unknown_hash_is_recorded(hub: Hub, tmp_path: Path, originals: dict[str, Path]) -> None:
    line = f'repo = "opencv/yunet"\nrevision = "{REVISION}"'
    store = WeightsStore(tmp_path / "root", write_manifest(tmp_path, originals, detector=line))
    store.pull("eye")
    path = store.files("eye")["detector"]
    digest = hashlib.sha256(hub.files[ROLES["detector"]]).hexdigest()
    assert path.with_name(f"{path.name}.sha256").read_text().split() == [digest, path.name]


# --- interrupted ---


def test_a_broken_connection_is_resumed(hub: Hub, store: WeightsStore) -> None:
    hub.cut_after[UNET] = CHUNK + 1_000_000
    store.pull("mini")
    assert hub.asked(UNET) == [None, f"bytes={CHUNK}-"]
    assert store.files("mini")["unet"].read_bytes() == hub.files[UNET]


PULL = """
import sys
from pathlib import Path
from lipsync_engine.weights import WeightsStore
def tell(file, done, total):
    print(file, done, flush=True)
print("ready", 0, flush=True)
WeightsStore(Path(sys.argv[1]), Path(sys.argv[2])).pull(sys.argv[3], tell)
"""


def pulling(store: WeightsStore, name: str = "mini") -> subprocess.Popen[str]:
    manifest = store.root.parent / "manifest.toml"
    return subprocess.Popen(
        [sys.executable, "-c", PULL, str(store.root), str(manifest), name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_download_goes_on_where_it_stopped(hub: Hub, store: WeightsStore) -> None:
    hub.stall_after[UNET] = 2 * CHUNK + 1_000_000
    with pulling(store) as child:
        assert child.stdout is not None
        for line in child.stdout:  # the second piece has come, so the first is on the disk
            if line == f"latentsync_unet.pt {2 * CHUNK}\n":
                break
        child.kill()
    hub.release.set()
    (part,) = (store.root / "mini").glob("latentsync_unet.pt.*.part")
    have = part.stat().st_size
    assert have >= CHUNK
    assert store.summary("mini") == "missing: 6 of 6 files"

    store.pull("mini")
    assert hub.asked(UNET) == [None, f"bytes={have}-"]  # only what was missing
    assert store.files("mini")["unet"].read_bytes() == hub.files[UNET]
    assert leftovers(store) == []


def test_two_processes_download_once(hub: Hub, store: WeightsStore) -> None:
    hub.stall_after[UNET] = CHUNK + 1_000_000  # the first is held until the second has started
    with pulling(store) as first:
        assert first.stdout is not None
        for line in first.stdout:
            if line == f"latentsync_unet.pt {CHUNK}\n":
                break
        with pulling(store) as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "ready 0\n"
            hub.release.set()
            assert [second.wait(60), first.wait(60)] == [0, 0]
    assert hub.asked(UNET) == [None, f"bytes={CHUNK}-"]  # the first process, after the stall
    assert all(len(hub.asked(path)) == 1 for path in ROLES.values() if path != UNET)
    assert store.files("mini")["unet"].read_bytes() == hub.files[UNET]


# --- wrong ---


def test_wrong_bytes_are_not_kept(hub: Hub, store: WeightsStore) -> None:
    right = hub.files[UNET]
    hub.announced[UNET] = (len(right), hashlib.sha256(right).hexdigest())
    hub.files[UNET] = right[:-4] + b"evil"
    error = fault(store)
    assert error.code is ErrorCode.WEIGHTS_HASH_MISMATCH
    assert "not the published file" in error.message
    assert "another mirror (HF_ENDPOINT)" in error.message
    assert leftovers(store) == []
    with pytest.raises(WeightsError, match="lipsync weights pull mini"):
        store.files("mini")

    hub.files[UNET] = right
    store.pull("mini")
    assert store.files("mini")["unet"].read_bytes() == right


@pytest.mark.parametrize(
    ("size", "digest", "code", "told"),
    [
        (None, "b" * 64, ErrorCode.WEIGHTS_HASH_MISMATCH, "offers another latentsync_unet.pt"),
        (77, None, ErrorCode.WEIGHTS_TRUNCATED, "of 77 bytes"),
    ],
)
def test_what_cannot_be_right_is_not_downloaded(
    hub: Hub, store: WeightsStore, size: int | None, digest: str | None, code: ErrorCode, told: str
) -> None:
    content = hub.files[UNET]
    hub.announced[UNET] = (size or len(content), digest or hashlib.sha256(content).hexdigest())
    error = fault(store)
    assert error.code is code
    assert told in error.message
    assert "nothing was downloaded" in error.message
    assert hub.log == []


def test_a_shortened_file_is_said_to_be_short(hub: Hub, store: WeightsStore) -> None:
    right = hub.files[ROLES["detector"]]
    hub.announced[ROLES["detector"]] = (len(right), hashlib.sha256(right).hexdigest())
    hub.files[ROLES["detector"]] = right[:-1000]
    error = fault(store, "eye")
    assert error.code is ErrorCode.WEIGHTS_TRUNCATED
    assert "wrong length" in error.message
    assert "Pull again" in error.message
    assert leftovers(store) == []


def test_another_architecture_is_named(hub: Hub, tmp_path: Path, originals: dict[str, Path]) -> None:
    """Every hash is right, but the file belongs to another model."""
    checkpoint = torch.load(originals[UNET], weights_only=True)
    state = checkpoint["state_dict"]
    state["conv_in.weight"] = state["conv_in.weight"][:, :9]
    del state["conv_out.bias"]
    other = tmp_path / "other.pt"
    torch.save(checkpoint, other)
    hub.files[UNET] = other.read_bytes()
    store = WeightsStore(tmp_path / "root", write_manifest(tmp_path, {**originals, UNET: other}))
    store.pull("mini")
    with pytest.raises(WeightsError, match="do not fit LatentSyncUNet") as caught:
        load_model("mini", device=torch.device("cpu"), dtype=torch.float32, store=store)
    assert caught.value.code is ErrorCode.WEIGHTS_ARCHITECTURE
    assert "1 missing (conv_out.bias)" in caught.value.message
    assert "conv_in.weight has 32×9×3×3 instead of 32×13×3×3" in caught.value.message
    assert "lipsync weights list" in caught.value.message


# --- no network, no room ---


@pytest.mark.parametrize(("status", "told"), [(404, "HTTP 404"), (403, "set HF_TOKEN"), (500, "HTTP 500")])
def test_a_refusing_server(hub: Hub, store: WeightsStore, status: int, told: str) -> None:
    hub.status[UNET] = status
    error = fault(store)
    assert error.code is ErrorCode.WEIGHTS_DOWNLOAD_FAILED
    assert told in error.message
    assert f"127.0.0.1:{hub.port}" in error.message


def test_nobody_answers(store: WeightsStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    error = fault(store)
    assert error.code is ErrorCode.WEIGHTS_DOWNLOAD_FAILED
    assert "from 127.0.0.1:9" in error.message
    assert "set HF_ENDPOINT to a mirror" in error.message
    assert "lipsync weights import" in error.message


def test_offline_from_a_folder(hub: Hub, store: WeightsStore, originals: dict[str, Path]) -> None:
    """The environment forbids the network: pull says so, import and load need none."""
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
print(sorted(store.files("mini")))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.root), str(manifest), str(folder)],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    refused, found = done.stdout.splitlines()
    assert refused.startswith("weights_download_failed")
    assert "HF_HUB_OFFLINE is set" in refused
    assert found == str(sorted(ROLES))
    assert hub.heads == []
    assert hub.log == []
    load_model("mini", device=torch.device("cpu"), dtype=torch.float32, store=store)


def test_a_full_disk_is_seen_before_the_download(
    hub: Hub, tmp_path: Path, originals: dict[str, Path]
) -> None:
    line = f'url = "http://localhost:{hub.port}/cdn/{UNET}"\nsize = {10**18}\nsha256 = "{"a" * 64}"'
    store = WeightsStore(tmp_path / "root", write_manifest(tmp_path, originals, unet=line))
    error = fault(store)
    assert error.code is ErrorCode.DISK_FULL
    assert "LIPSYNC_WEIGHTS_DIR" in error.message
    assert hub.log == []


def test_bars_show_sizes_that_are_known_and_that_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    with downloads() as report:
        for name, done, total in (("unet.pt", 10, 30), ("config.json", 7, 0), ("unet.pt", 30, 30)):
            report(name, done, total)
    shown = capsys.readouterr().err
    assert re.search(r"unet\.pt .* 30/30 +bytes", shown)
    assert re.search(r"config\.json .* 7/\? +bytes", shown)
