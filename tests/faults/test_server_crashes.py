"""Crashes with real processes: what was accepted ends exactly once, with one result that opens.

Who dies (worker, server, both), and when, at a moment that is seen from outside. The server keeps its data
over all of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lipsync_engine import media
from tests.support.live_server import FINAL, LiveServer
from tests.support.polling import wait_until
from tests.support.processes import pids_naming

Ffmpeg = Callable[..., None]
LONG_FRAMES, SHORT_FRAMES, FIRST_SEGMENT = 180, 38, 60
LATENTSYNC = "/api/v3/bytedance/latentsync"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    server = LiveServer(
        tmp_path_factory.mktemp("house"), allow_hosts="127.0.0.1", drain_s=0, stall_s=8, max_attempts=5,
        requests_per_minute=10**6,
    )  # fmt: skip
    server.start()
    server.wait_ready()
    yield server
    assert server.stop() == 0
    wait_until(lambda: not pids_naming(str(server.data_dir)), "a process outlived its server")


@pytest.fixture(scope="session")
def long_voice(make_voice: Callable[[float], Path]) -> Path:
    """Two segments, of 60 and 120 frames."""
    return make_voice(LONG_FRAMES / 25)


class SlowFileServer:
    """A web server that gives a file, the second half of it only when let."""

    def __init__(self, file: Path) -> None:
        self.asked, self.open = threading.Event(), threading.Event()
        file_server, content = self, file.read_bytes()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
                file_server.asked.set()
                file_server.open.wait(60)
                self.wfile.write(content[len(content) // 2 :])

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/clip.mp4"

    def close(self) -> None:
        self.open.set()
        self._server.shutdown()


# --- crash dies, and when ---


def kill_worker(server: LiveServer) -> None:
    (worker,) = server.worker_pids()
    os.kill(worker, signal.SIGKILL)


def kill_server(server: LiveServer) -> None:
    server.restart(signal.SIGKILL)


def kill_both(server: LiveServer) -> None:
    kill_worker(server)
    server.restart(signal.SIGKILL)


def kill_server_and_freeze_worker(server: LiveServer) -> None:
    (worker,) = server.worker_pids()
    os.kill(worker, signal.SIGSTOP)
    server.restart(signal.SIGKILL)


def stop_server(server: LiveServer) -> None:
    server.restart(signal.SIGTERM)


def rendering(server: LiveServer, job: str, frames: int) -> Callable[[], bool]:
    def seen() -> bool:
        timings = server.prediction(job)["timings"]
        return timings.get("stage") == "render" and timings["done"] >= frames

    return seen


def assembling(server: LiveServer, job: str) -> Callable[[], bool]:
    folder = server.data_dir / "work" / "jobs" / job
    return lambda: any(folder.glob(".out.*.part.mp4"))


MOMENTS: dict[str, Callable[[LiveServer, str, SlowFileServer], Callable[[], bool]]] = {
    "fetch": lambda server, job, file_server: file_server.asked.is_set,
    "faces": lambda server, job, file_server: (
        lambda: server.prediction(job)["timings"].get("stage") == "faces"
    ),
    "first window": lambda server, job, file_server: rendering(server, job, 1),
    "second segment": lambda server, job, file_server: rendering(server, job, FIRST_SEGMENT + 4),
    "assemble": lambda server, job, file_server: assembling(server, job),
}
NEEDS_LONG = ("first window", "second segment")


@pytest.mark.parametrize(
    ("crash", "when"),
    [
        pytest.param(kill_worker, "fetch", marks=pytest.mark.slow),
        pytest.param(kill_worker, "faces", marks=pytest.mark.slow),
        pytest.param(kill_worker, "first window", marks=pytest.mark.slow),
        (kill_worker, "second segment"),
        pytest.param(kill_worker, "assemble", marks=pytest.mark.slow),
        pytest.param(kill_server, "fetch", marks=pytest.mark.slow),
        pytest.param(kill_server, "first window", marks=pytest.mark.slow),
        pytest.param(kill_server_and_freeze_worker, "fetch", marks=pytest.mark.slow),
        pytest.param(kill_both, "second segment", marks=pytest.mark.slow),
        pytest.param(kill_both, "assemble", marks=pytest.mark.slow),
        pytest.param(stop_server, "first window", marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_job_survives_crash(
    crash: Callable[[LiveServer], None],
    when: str,
    server: LiveServer,
    clip: Path,
    voice: Path,
    long_voice: Path,
    tmp_path: Path,
    ffmpeg: Ffmpeg,
) -> None:
    unknown = tmp_path / "clip.mp4"  # other bytes, so that nothing of it is in the analysis cache
    ffmpeg("-i", clip, "-c", "copy", "-metadata", f"comment={crash.__name__} {when}", unknown)
    file_server = SlowFileServer(unknown)
    if when != "fetch":
        file_server.open.set()
    audio_file, frames = (long_voice, LONG_FRAMES) if when in NEEDS_LONG else (voice, SHORT_FRAMES)
    audio = server.upload(audio_file)
    server.wait_ready()
    job = server.submit(file_server.url, audio, inference_steps=1, guidance_scale=1)
    wait_until(MOMENTS[when](server, job, file_server), "the moment never came")
    crash(server)
    file_server.open.set()

    if when == "second segment":
        resumed = server.wait_for_job(job, lambda seen: seen["timings"].get("stage") == "render")
        assert resumed["timings"]["done"] >= FIRST_SEGMENT, "a finished segment was rendered again"
    check_completed(server, job, frames, tmp_path)
    file_server.close()


def check_completed(server: LiveServer, job: str, frames: int, folder: Path) -> None:
    """One completed job, one result of so many frames, nothing else."""
    prediction = server.wait_for_job(job)
    assert prediction["status"] == "completed", prediction
    results = list((server.data_dir / "blobs" / "results").glob(f"{job}*"))
    assert [result.name for result in results] == [f"{job}.mp4"]
    result = folder / "film.mp4"
    result.write_bytes(server.request("GET", prediction["outputs"][0])[1])
    assert len(list(media.scan_frames(media.probe_video(result), 64))) == frames
    work = server.data_dir / "work"
    wait_until(lambda: not list((work / "jobs").iterdir()), "a working file is left")
    wait_until(lambda: not list((work / "engine" / "tenants").glob("*/jobs/*")), "unfinished work is left")


def test_stored_result_is_not_rendered_again(
    server: LiveServer, clip: Path, voice: Path, tmp_path: Path
) -> None:
    """The server dies between storing the result and saying so: a lock holds the database at that moment."""
    video, audio = server.upload(clip), server.upload(voice)
    server.wait_ready()
    job = server.submit(video, audio, inference_steps=1, guidance_scale=1, seed=1)
    wait_until(assembling(server, job), "it never came to the end")
    database = sqlite3.connect(server.data_dir / "lipsync.sqlite", isolation_level=None, timeout=20)
    database.execute("BEGIN IMMEDIATE")
    result = server.data_dir / "blobs" / "results" / f"{job}.mp4"
    wait_until(result.exists, "the result was never stored")
    server.stop(signal.SIGKILL)
    database.execute("ROLLBACK")
    database.close()
    made_at = result.stat().st_mtime_ns
    server.start_again()
    check_completed(server, job, SHORT_FRAMES, tmp_path)
    assert result.stat().st_mtime_ns == made_at


@pytest.mark.slow
def test_stalled_worker_is_replaced(server: LiveServer, clip: Path, long_voice: Path, tmp_path: Path) -> None:
    video, audio = server.upload(clip), server.upload(long_voice)
    server.wait_ready()
    job = server.submit(video, audio, inference_steps=1, guidance_scale=1, seed=2)
    wait_until(rendering(server, job, 1), "it never rendered")
    (worker,) = server.worker_pids()
    os.kill(worker, signal.SIGSTOP)
    check_completed(server, job, LONG_FRAMES, tmp_path)
    assert not Path(f"/proc/{worker}").exists()


# --- the database ---


def test_acknowledged_submissions_survive_a_kill_during_commits(server: LiveServer) -> None:
    """Clients submit as fast as they can; the server is killed in the middle of it, twice."""
    body = {
        "video": "http://127.0.0.2/clip.mp4",
        "audio": "http://127.0.0.2/voice.wav",
    }  # refused when fetched
    acknowledged: dict[str, str] = {}

    def submit(key: str) -> bool:
        try:
            status, response = server.request("POST", LATENTSYNC, body, **{"Idempotency-Key": key})
        except OSError:
            return False
        assert status == 200, response
        assert acknowledged.setdefault(key, response["data"]["id"]) == response["data"]["id"]
        return True

    for round_ in range(2):
        before = len(acknowledged)
        with ThreadPoolExecutor(8) as clients:
            for client in range(8):
                keys = (f"{round_}-{client}-{n}" for n in range(100_000))
                clients.submit(lambda keys=keys: all(map(submit, keys)))
            wait_until(
                lambda wanted=before + 80: len(acknowledged) >= wanted, "the submissions do not come in"
            )
            server.stop(signal.SIGKILL)
        server.start_again()

    for key in list(acknowledged):
        assert submit(key)  # the same job as before
    wait_until(
        lambda: all(server.prediction(job)["status"] in FINAL for job in acknowledged.values()),
        "one never ended",
    )


def test_concurrent_submissions_with_one_idempotency_key_create_one_job(server: LiveServer) -> None:
    body = {"video": "http://127.0.0.2/clip.mp4", "audio": "http://127.0.0.2/voice.wav"}

    def submit(_: int) -> str:
        status, response = server.request("POST", LATENTSYNC, body, **{"Idempotency-Key": "fifty"})
        assert status == 200, response
        return str(response["data"]["id"])

    with ThreadPoolExecutor(50) as clients:
        assert len(set(clients.map(submit, range(50)))) == 1


# --- the disk ---


@pytest.fixture
def small_server() -> Iterator[LiveServer]:
    """A server on a file system of 64 MiB."""
    folder = Path(tempfile.mkdtemp(prefix="lipsync-small-"))
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        folder.rmdir()
        pytest.skip("a small file system cannot be mounted here: that needs root")
    server = LiveServer(
        folder / "data", min_free_bytes=1 << 20, max_attempts=5, drain_s=0, requests_per_minute=10**6
    )
    server.start()
    yield server
    assert server.stop() == 0
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


def fill(path: Path) -> None:
    """Write until there is no room for one more byte."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))


def test_job_survives_a_full_disk(
    small_server: LiveServer, clip: Path, long_voice: Path, tmp_path: Path
) -> None:
    video, audio = small_server.upload(clip), small_server.upload(long_voice)
    job = small_server.submit(video, audio, inference_steps=1, guidance_scale=1)
    wait_until(rendering(small_server, job, 1), "it never rendered")
    filler = small_server.data_dir.parent / "filler"
    fill(filler)
    wait_until(lambda: any("progress not saved" in line for line in small_server.log), "nothing was noticed")
    assert small_server.prediction(job)["status"] == "processing"
    status, response = small_server.request("POST", LATENTSYNC, {"video": video, "audio": audio})
    assert (status, response["error_code"]) == (503, "storage_full")
    filler.unlink()
    check_completed(small_server, job, LONG_FRAMES, tmp_path)
