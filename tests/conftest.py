"""What the whole-system tests share: small real media, the real command, the tiny model."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.support.cli_process import run_cli
from tests.support.paths import DEMO_VIDEO, DEMO_VOICE, SHARED

pytest_plugins = ["tests.support.server_fixtures"]

Ffmpeg = Callable[..., None]
Run = Callable[..., subprocess.CompletedProcess[str]]
MakeVoice = Callable[[float], Path]


@pytest.fixture(scope="session", autouse=True)
def credentials_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Development certificates of this run lie there, and not in the user's folders."""
    folder = tmp_path_factory.mktemp("signer") / "credentials"
    os.environ["LIPSYNC_CREDENTIALS_DIR"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def ffmpeg() -> Ffmpeg:
    """Call the same FFmpeg binary that the engine uses: `ffmpeg("-i", …, output)`."""
    from lipsync_engine import media

    def run(*arguments: object) -> None:
        command = [str(media.find_ffmpeg()), "-v", "error", "-y", *map(str, arguments)]
        subprocess.run(command, check=True, timeout=120)

    return run


@pytest.fixture
def replace_ffmpeg(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Replace FFmpeg by a script. It writes logs and starts programs where FFmpeg must not, so that its files
    are not restricted."""

    def replace(program: Path) -> None:
        monkeypatch.setenv("LIPSYNC_FFMPEG", str(program))
        monkeypatch.setattr("lipsync_engine.media.process.file_rules", lambda command: [])

    return replace


@pytest.fixture(scope="session")
def likeness_db() -> Callable[[Path, Path], float]:
    """PSNR of two films: luma. Equal pictures encoded twice give 55 or more: x264 decides otherwise once in
    some hundred encodes (58 dB where it was seen); pictures of another seed give about 50.
    """
    import numpy as np

    from lipsync_engine import media

    def luma(path: Path) -> np.ndarray:
        info = media.probe_video(path)
        pts_s = np.array([pts for pts, _ in media.scan_frames(info, 64)])
        with media.FrameReader(info, pts_s) as reader:
            return np.stack([frame.y.astype(float) for frame in reader.read(range(len(pts_s)))])

    def compare(one: Path, other: Path) -> float:
        a, b = luma(one), luma(other)
        assert a.shape == b.shape
        return float(10 * np.log10(255**2 / max(1e-9, np.mean((a - b) ** 2))))

    return compare


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory, ffmpeg: Ffmpeg) -> Path:
    """Two seconds of the drawn presenter, small, 25 fps."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    ffmpeg("-i", DEMO_VIDEO, "-t", 2, "-an", "-vf", "scale=320:-2", "-crf", 12, path)
    return path


@pytest.fixture(scope="session")
def voice(tmp_path_factory: pytest.TempPathFactory, ffmpeg: Ffmpeg) -> Path:
    """One and a half seconds of the demo's voice."""
    path = tmp_path_factory.mktemp("voice") / "voice.wav"
    ffmpeg("-i", DEMO_VOICE, "-t", 1.5, path)
    return path


@pytest.fixture(scope="session")
def make_voice(tmp_path_factory: pytest.TempPathFactory, voice: Path, ffmpeg: Ffmpeg) -> MakeVoice:
    """`make_voice(4.8)`: the voice, repeated until it lasts so many seconds; each length is made once."""

    @functools.cache
    def make(seconds: float) -> Path:
        path = tmp_path_factory.mktemp("voice") / f"voice-{seconds:g}s.wav"
        ffmpeg("-stream_loop", -1, "-i", voice, "-t", seconds, path)
        return path

    return make


@pytest.fixture(scope="session")
def real_media() -> Path:
    """The folder with the real clip and speech; skips where it is not at hand."""
    folder = SHARED / "media"
    if not folder.is_dir():
        pytest.skip(f"real media not found at {folder}")
    return folder


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def environment(cache_dir: Path) -> dict[str, str]:
    """For processes under test: a cache of their own, few threads."""
    return {"OMP_NUM_THREADS": "2", **os.environ, "LIPSYNC_CACHE_DIR": str(cache_dir), "COLUMNS": "200"}


@pytest.fixture
def lipsync(environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The real command: `lipsync("sync", video, audio, "-o", out)`."""

    def run(*arguments: object, timeout_s: float = 180) -> subprocess.CompletedProcess[str]:
        folder = tmp_path_factory.mktemp("command")
        return run_cli(environment, folder, *arguments, timeout_s=timeout_s)

    return run
