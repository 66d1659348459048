"""Crashes with real processes: what was accepted ends exactly once, with one film that opens.

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
from tests.support.live_server import FINAL, Live, processes_naming, until

Ffmpeg = Callable[..., None]
LONG_FRAMES, SHORT_FRAMES, FIRST_SEGMENT = 180, 38, 60
LATENTSYNC = "/api/v3/bytedance/latentsync"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    server = Live(
        tmp_path_factory.mktemp("house"), allow_hosts="127.0.0.1", drain_s=0, stall_s=8, max_attempts=5,
        requests_per_minute=10**6,
    )  # fmt: skip
    server.start()
    server.wait_ready()
    yield server
    assert server.stop() == 0
    until(lambda: not processes_naming(str(server.data_dir)), "a process outlived its server")


@pytest.fixture(scope="module")
def long_voice(tmp_path_factory: pytest.TempPathFactory, voice: Path, ffmpeg: Ffmpeg) -> Path:
    """Two segments, of 60 and 120 frames."""
    path = tmp_path_factory.mktemp("long") / "voice.wav"
    ffmpeg("-stream_loop", -1, "-i", voice, "-t", LONG_FRAMES / 25, path)
    return path


class Gate:
    """A web server that gives a file, the second half of it only when let."""

    def __init__(self, file: Path) -> None:
        self.asked, self.open = threading.Event(), threading.Event()
        gate, content = self, file.read_bytes()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
                gate.asked.set()
                gate.open.wait(60)
                self.wfile.write(content[len(content) // 2 :])

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/clip.mp4"

    def close(self) -> None:
        self.open.set()
        self._server.shutdown()


# --- who dies, and when ---


def kill_worker(house: Live) -> None:
    (worker,) = house.worker_pids()
    os.kill(worker, signal.SIGKILL)


def kill_server(house: Live) -> None:
    house.restart(signal.SIGKILL)


def kill_both(house: Live) -> None:
    kill_worker(house)
    house.restart(signal.SIGKILL)


def kill_server_and_freeze_worker(house: Live) -> None:
    (worker,) = house.worker_pids()
    os.kill(worker, signal.SIGSTOP)
    house.restart(signal.SIGKILL)


def stop_server(house: Live) -> None:
    house.restart(signal.SIGTERM)


def rendering(house: Live, job: str, frames: int) -> Callable[[], bool]:
    def seen() -> bool:
        timings = house.look(job)["timings"]
        return timings.get("stage") == "render" and timings["done"] >= frames

    return seen


def assembling(house: Live, job: str) -> Callable[[], bool]:
    folder = house.data_dir / "work" / "jobs" / job
    return lambda: any(folder.glob(".out.*.part.mp4"))


MOMENTS: dict[str, Callable[[Live, str, Gate], Callable[[], bool]]] = {
    "fetch": lambda house, job, gate: gate.asked.is_set,
    "faces": lambda house, job, gate: lambda: house.look(job)["timings"].get("stage") == "faces",
    "first window": lambda house, job, gate: rendering(house, job, 1),
    "second segment": lambda house, job, gate: rendering(house, job, FIRST_SEGMENT + 4),
    "assemble": lambda house, job, gate: assembling(house, job),
}
NEEDS_LONG = ("first window", "second segment")


@pytest.mark.parametrize(
    ("who", "when"),
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
def test_a_job_outlives(
    who: Callable[[Live], None],
    when: str,
    house: Live,
    clip: Path,
    voice: Path,
    long_voice: Path,
    tmp_path: Path,
    ffmpeg: Ffmpeg,
) -> None:
    unknown = tmp_path / "clip.mp4"  # other bytes, so that nothing of it is in the analysis cache
    ffmpeg("-i", clip, "-c", "copy", "-metadata", f"comment={who.__name__} {when}", unknown)
    gate = Gate(unknown)
    if when != "fetch":
        gate.open.set()
    heard, frames = (long_voice, LONG_FRAMES) if when in NEEDS_LONG else (voice, SHORT_FRAMES)
    audio = house.upload(heard)
    house.wait_ready()
    job = house.submit(gate.url, audio, inference_steps=1, guidance_scale=1)
    until(MOMENTS[when](house, job, gate), "the moment never came")
    who(house)
    gate.open.set()

    if when == "second segment":
        resumed = house.wait(job, lambda seen: seen["timings"].get("stage") == "render")
        assert resumed["timings"]["done"] >= FIRST_SEGMENT, "a finished segment was rendered again"
    check_end(house, job, frames, tmp_path)
    gate.close()


def check_end(house: Live, job: str, frames: int, folder: Path) -> None:
    """One completed job, one film of so many frames, nothing else."""
    done = house.wait(job)
    assert done["status"] == "completed", done
    films = list((house.data_dir / "blobs" / "results").glob(f"{job}*"))
    assert [film.name for film in films] == [f"{job}.mp4"]
    film = folder / "film.mp4"
    film.write_bytes(house.call("GET", done["outputs"][0])[1])
    assert len(list(media.scan_frames(media.probe_video(film), 64))) == frames
    work = house.data_dir / "work"
    until(lambda: not list((work / "jobs").iterdir()), "a working file is left")
    until(lambda: not list((work / "engine" / "jobs").iterdir()), "unfinished work is left")


def test_a_film_that_was_stored_is_not_made_again(
    house: Live, clip: Path, voice: Path, tmp_path: Path
) -> None:
    """The server dies between storing the film and saying so: a lock holds the database at that moment."""
    video, audio = house.upload(clip), house.upload(voice)
    house.wait_ready()
    job = house.submit(video, audio, inference_steps=1, guidance_scale=1, seed=1)
    until(assembling(house, job), "it never came to the end")
    database = sqlite3.connect(house.data_dir / "lipsync.sqlite", isolation_level=None, timeout=20)
    database.execute("BEGIN IMMEDIATE")
    film = house.data_dir / "blobs" / "results" / f"{job}.mp4"
    until(film.exists, "the film was never stored")
    house.stop(signal.SIGKILL)
    database.execute("ROLLBACK")
    database.close()
    made_at = film.stat().st_mtime_ns
    house.start_again()
    check_end(house, job, SHORT_FRAMES, tmp_path)
    assert film.stat().st_mtime_ns == made_at


@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced(house: Live, clip: Path, long_voice: Path, tmp_path: Path) -> None:
    video, audio = house.upload(clip), house.upload(long_voice)
    house.wait_ready()
    job = house.submit(video, audio, inference_steps=1, guidance_scale=1, seed=2)
    until(rendering(house, job, 1), "it never rendered")
    (worker,) = house.worker_pids()
    os.kill(worker, signal.SIGSTOP)
    check_end(house, job, LONG_FRAMES, tmp_path)
    assert not Path(f"/proc/{worker}").exists()


# --- the database ---


def test_what_was_acknowledged_outlives_a_kill_during_commits(house: Live) -> None:
    """Clients submit as fast as they can; the server is killed in the middle of it, twice."""
    body = {
        "video": "http://127.0.0.2/clip.mp4",
        "audio": "http://127.0.0.2/voice.wav",
    }  # refused when fetched
    acknowledged: dict[str, str] = {}

    def submit(key: str) -> bool:
        try:
            status, told = house.call("POST", LATENTSYNC, body, **{"Idempotency-Key": key})
        except OSError:
            return False
        assert status == 200, told
        assert acknowledged.setdefault(key, told["data"]["id"]) == told["data"]["id"]
        return True

    for round_ in range(2):
        before = len(acknowledged)
        with ThreadPoolExecutor(8) as clients:
            for client in range(8):
                keys = (f"{round_}-{client}-{n}" for n in range(100_000))
                clients.submit(lambda keys=keys: all(map(submit, keys)))
            until(lambda wanted=before + 80: len(acknowledged) >= wanted, "the submissions do not come in")
            house.stop(signal.SIGKILL)
        house.start_again()

    for key in list(acknowledged):
        assert submit(key)  # the same job as before
    until(lambda: all(house.look(job)["status"] in FINAL for job in acknowledged.values()), "one never ended")


def test_fifty_submissions_with_one_key_at_once_are_one_job(house: Live) -> None:
    body = {"video": "http://127.0.0.2/clip.mp4", "audio": "http://127.0.0.2/voice.wav"}

    def submit(_: int) -> str:
        status, told = house.call("POST", LATENTSYNC, body, **{"Idempotency-Key": "fifty"})
        assert status == 200, told
        return str(told["data"]["id"])

    with ThreadPoolExecutor(50) as clients:
        assert len(set(clients.map(submit, range(50)))) == 1


# --- the disk ---


@pytest.fixture
def small_house() -> Iterator[Live]:
    """A server on a file system of 64 MiB."""
    folder = Path(tempfile.mkdtemp(prefix="lipsync-small-"))
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        folder.rmdir()
        pytest.skip("a small file system cannot be mounted here: that needs root")
    server = Live(
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


def test_a_full_disk_loses_nothing(small_house: Live, clip: Path, long_voice: Path, tmp_path: Path) -> None:
    server = small_house
    video, audio = server.upload(clip), server.upload(long_voice)
    job = server.submit(video, audio, inference_steps=1, guidance_scale=1)
    until(rendering(server, job, 1), "it never rendered")
    filler = server.data_dir.parent / "filler"
    fill(filler)
    until(lambda: any("could not be written down" in line for line in server.log), "nothing was noticed")
    assert server.look(job)["status"] == "processing"
    status, told = server.call("POST", LATENTSYNC, {"video": video, "audio": audio})
    assert (status, told["error_code"]) == (503, "storage_full")
    filler.unlink()
    check_end(server, job, LONG_FRAMES, tmp_path)
