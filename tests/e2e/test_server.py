"""The real server in real processes: the official clients, crashes at every stage, cancelling, stopping."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lipsync_engine import media
from server.api.submission import webhook_headers
from tests.support.live_server import Live, descendants
from tests.support.webhook_receiver import Receiver

Ffmpeg = Callable[..., None]
Likeness = Callable[[Path, Path], float]
LONG_FRAMES = 120


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    server = Live(tmp_path_factory.mktemp("live"), allow_hosts="127.0.0.1", requests_per_minute=100000)
    server.start()
    server.wait_ready()
    yield server
    assert server.process is not None
    left = descendants(server.process.pid)
    assert server.stop() == 0
    assert not [pid for pid in left if Path(f"/proc/{pid}").exists()]


@pytest.fixture(scope="module")
def uploads(live: Live, clip: Path, voice: Path) -> tuple[str, str]:
    return live.upload(clip), live.upload(voice)


@pytest.fixture(scope="module")
def long_voice(tmp_path_factory: pytest.TempPathFactory, voice: Path, ffmpeg: Ffmpeg) -> Path:
    """Two segments, of 60 frames each."""
    path = tmp_path_factory.mktemp("long") / "voice.wav"
    ffmpeg("-stream_loop", -1, "-i", voice, "-t", LONG_FRAMES / 25, path)
    return path


def is_video(content: bytes, folder: Path, frames: int) -> bool:
    path = folder / "got.mp4"
    path.write_bytes(content)
    info = media.probe_video(path)
    return len(list(media.scan_frames(info, 64))) == frames


def test_a_job_from_upload_to_film(live: Live, uploads: tuple[str, str], tmp_path: Path) -> None:
    began = time.monotonic()
    job = live.submit(*uploads, inference_steps=2)
    assert time.monotonic() - began < 1.0
    done = live.wait(job)
    assert done["status"] == "completed", done
    assert done["timings"]["inference"] <= done["executionTime"]
    (link,) = done["outputs"]
    status, film = live.call("GET", link, Authorization="")
    assert status == 200
    assert is_video(film, tmp_path, 38)


@pytest.mark.slow
def test_equal_jobs_give_equal_films(
    live: Live, uploads: tuple[str, str], tmp_path: Path, likeness_db: Likeness
) -> None:
    """A, B, A: what a worker did before does not change what it does."""
    films = [tmp_path / f"{number}.mp4" for number in range(3)]
    for seed, film in zip((7, 8, 7), films, strict=True):
        done = live.wait(live.submit(*uploads, inference_steps=1, seed=seed))
        film.write_bytes(live.call("GET", done["outputs"][0])[1])
    assert likeness_db(films[0], films[2]) > 55
    assert likeness_db(films[0], films[1]) < 53


def test_a_failing_job_says_why(live: Live, uploads: tuple[str, str], tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    grey = tmp_path / "grey.mp4"
    ffmpeg("-f", "lavfi", "-i", "color=gray:s=128x128:r=25", "-t", 1, grey)
    failed = live.wait(live.submit(live.upload(grey), uploads[1]))
    assert (failed["status"], failed["code"], failed["outputs"]) == ("failed", 1403, [])
    assert "face" in failed["error"]


def test_vendor_limits_are_kept(live: Live, uploads: tuple[str, str]) -> None:
    _, told = live.call(
        "POST", "/api/v3/kwaivgi/kling-lipsync/audio-to-video", {"video": uploads[0], "audio": uploads[1]}
    )
    failed = live.wait(told["data"]["id"])
    assert (failed["status"], failed["code"]) == ("failed", 1401)
    assert "720" in failed["error"]


def test_a_portrait_speaks(
    live: Live, uploads: tuple[str, str], tmp_path: Path, clip: Path, ffmpeg: Ffmpeg
) -> None:
    portrait = tmp_path / "portrait.png"
    ffmpeg("-i", clip, "-frames:v", 1, portrait)
    body = {"image": live.upload(portrait), "audio": uploads[1]}
    _, told = live.call("POST", "/api/v3/bytedance/avatar-omni-human", body)
    done = live.wait(told["data"]["id"])
    assert done["status"] == "completed", done
    assert is_video(live.call("GET", done["outputs"][0])[1], tmp_path, 38)


def test_progress_is_seen_and_a_cancelled_job_stops_soon(
    live: Live, uploads: tuple[str, str], long_voice: Path
) -> None:
    job = live.submit(uploads[0], live.upload(long_voice), inference_steps=8)
    seen = live.wait(job, lambda s: s["timings"].get("stage") == "render" and s["timings"]["done"] > 0)
    assert seen["timings"]["total"] == LONG_FRAMES
    began = time.monotonic()
    _, told = live.call("POST", f"/api/v3/predictions/{job}/cancel")
    assert told["data"]["status"] == "cancelled"
    assert time.monotonic() - began < 8
    (worker,) = live.worker_pids()
    after = live.wait(live.submit(*uploads, inference_steps=1))
    assert after["status"] == "completed"
    assert live.worker_pids() == [worker]  # it stopped the job, it was not killed


def test_a_client_that_listens_does_not_hold_up_the_end(tmp_path: Path, clip: Path, voice: Path) -> None:
    server = Live(tmp_path / "data", drain_s=0)
    server.start()
    job = server.submit(server.upload(clip), server.upload(voice))
    url = f"{server.base}/api/native/v1/jobs/{job}/events"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {server.key}"})
    with urllib.request.urlopen(request, timeout=60) as stream:
        assert stream.readline() == b"event: job\n"
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 10
        assert b"event: gone" not in stream.read()


# --- webhooks ---


def test_a_webhook_comes_again_until_it_is_taken(live: Live, uploads: tuple[str, str]) -> None:
    receiver = Receiver(refuse=1)
    job = live.submit(*uploads, inference_steps=1, webhook_url=receiver.url)
    for _ in range(2):
        assert receiver.arrived.acquire(timeout=60)
    secret = live.call("GET", "/api/v3/webhook/secret")[1]["data"]["secret"]
    for headers, body in receiver.got:
        assert headers["webhook-id"] == job
        stamp = float(headers["webhook-timestamp"])
        wanted = webhook_headers(secret, job, body, stamp)["webhook-signature"]
        assert headers["webhook-signature"] == wanted
        assert json.loads(body)["status"] == "completed"
    receiver.close()


def test_a_batch_from_uploads_to_films_and_one_webhook(
    live: Live, uploads: tuple[str, str], tmp_path: Path
) -> None:
    receiver = Receiver(refuse=0)
    given = {"video": uploads[0], "audio": uploads[1], "inference_steps": 1}
    rows = [
        {"model": "bytedance/latentsync", "input": given},
        {"model": "bytedance/latentsync", "input": {**given, "audio": uploads[0]}},  # nobody speaks there
    ]
    status, made = live.call("POST", "/api/native/v1/batches", {"jobs": rows, "webhook_url": receiver.url})
    assert status == 200, made
    assert receiver.arrived.acquire(timeout=60)
    (told,) = [json.loads(body) for _, body in receiver.got]
    assert (told["state"], told["counts"]["succeeded"], told["counts"]["failed"]) == ("ended", 1, 1)
    first, second = live.call("GET", f"{told['url']}/jobs")[1]["jobs"]
    assert is_video(live.call("GET", first["output"])[1], tmp_path, 38)
    assert (second["id"], second["failure"]["code"]) == (made["jobs"][1]["id"], "media_no_audio")
    receiver.close()


# --- the official clients ---

PYTHON_CLIENT = """
import json, os, wavespeed
client = wavespeed.Client(api_key=os.environ["KEY"], base_url=os.environ["BASE"])
video, audio = client.upload(os.environ["VIDEO"]), client.upload(os.environ["VOICE"])
inputs = {"video": video, "audio": audio, "inference_steps": 1}
seen = {"run": client.run("bytedance/latentsync", inputs)}
seen["sync"] = client.run("bytedance/latentsync", inputs, enable_sync_mode=True)
try:
    client.run("bytedance/latentsync", {"video": audio, "audio": audio})
except Exception as error:
    seen["error"] = str(error)
print(json.dumps(seen))
"""

JAVASCRIPT_CLIENT = """
const { Client } = require("wavespeed");
(async () => {
  const client = new Client(process.env.KEY, { baseUrl: process.env.BASE });
  const video = await client.upload(process.env.VIDEO), audio = await client.upload(process.env.VOICE);
  const inputs = { video, audio, inference_steps: 1 }, seen = {};
  seen.run = await client.run("bytedance/latentsync", inputs);
  seen.sync = await client.run("bytedance/latentsync", inputs, { enableSyncMode: true });
  try { await client.run("bytedance/latentsync", { video: audio, audio }); }
  catch (error) { seen.error = String(error); }
  console.log(JSON.stringify(seen));
})();
"""


def client_environment(live: Live, clip: Path, voice: Path) -> dict[str, str]:
    return {**os.environ, "KEY": live.key, "BASE": live.base, "VIDEO": str(clip), "VOICE": str(voice)}


def check_client(done: subprocess.CompletedProcess[str], live: Live) -> None:
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    print(done.stdout)
    for way in ("run", "sync"):
        (link,) = seen[way]["outputs"]
        assert link.startswith(live.base)
        assert live.call("GET", link)[0] == 200
    assert "no video file" in seen["error"]


@pytest.mark.parametrize("version", ["2.0.5", "1.0.14", pytest.param("1.0.10", marks=pytest.mark.slow)])
def test_the_python_sdk(version: str, live: Live, clip: Path, voice: Path, tmp_path: Path) -> None:
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--target",
        str(tmp_path),
        f"wavespeed=={version}",
    ]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    if installed.returncode != 0:
        pytest.skip(f"wavespeed {version} cannot be installed: {installed.stderr[-200:]}")
    env = client_environment(live, clip, voice) | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", PYTHON_CLIENT]
    check_client(
        subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False), live
    )


def test_the_javascript_sdk(live: Live, clip: Path, voice: Path, tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("there is no npm on this machine")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "wavespeed@0.3.2"]
    installed = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, check=False)
    if installed.returncode != 0:
        pytest.skip(f"the SDK cannot be installed: {installed.stderr[-200:]}")
    env = client_environment(live, clip, voice)
    command = ["node", "-e", JAVASCRIPT_CLIENT]
    check_client(
        subprocess.run(
            command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        ),
        live,
    )


STUDIO_PROGRAM = """
const fetch = require("node-fetch");
const express = require("express");
const { BASE, KEY, IMAGE, VOICE } = process.env;
const headers = { Authorization: `Bearer ${KEY}`, "Content-Type": "application/json" };
const app = express();
app.use(express.json({ limit: "2mb" }));
const told = new Promise((resolve) => {
  app.post("/webhooks/lipsync", (request, response) => {
    response.json({ received: true });
    resolve(request.body);
  });
});
const server = app.listen(0, "127.0.0.1", async () => {
  const webhook = `http://127.0.0.1:${server.address().port}/webhooks/lipsync`;
  const formState = { image: IMAGE, audio: VOICE, resolution: "480p", seed: 42 };
  const body = JSON.stringify({ webhook, formState });
  const answer = await fetch(`${BASE}/api/v1/lipsync-image`, { method: "POST", headers, body });
  const submitted = await answer.json();
  let job;
  do {
    await new Promise((resolve) => setTimeout(resolve, 500));
    job = await (await fetch(`${BASE}/api/v1/jobs/${submitted.requestId}`, { headers })).json();
  } while (job.status === "processing");
  const film = await fetch(job.output);
  const bytes = (await film.buffer()).length;
  console.log(JSON.stringify({ submitted, job, webhook: await told, bytes }));
  process.exit(0);
});
"""
"""What lipsync.studio's page shows in JavaScript: submit, be called, and ask until it is done."""


def test_a_javascript_program_for_lipsync_studio(
    live: Live, clip: Path, voice: Path, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    if shutil.which("npm") is None:
        pytest.skip("there is no npm on this machine")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "node-fetch@2.7.0", "express@4.21.2"]
    installed = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, check=False)
    if installed.returncode != 0:
        pytest.skip(f"node-fetch and express cannot be installed: {installed.stderr[-200:]}")
    portrait = tmp_path / "portrait.png"
    ffmpeg("-i", clip, "-frames:v", 1, portrait)
    env = {**os.environ, "KEY": live.key, "BASE": live.base}
    env |= {"IMAGE": live.upload(portrait), "VOICE": live.upload(voice)}
    done = subprocess.run(
        ["node", "-e", STUDIO_PROGRAM],
        env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stdout)
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["submitted"]["status"] == "processing"
    assert (seen["job"]["status"], seen["job"]["model"], seen["job"]["error"]) == (
        "completed", "lipsync-image", "",
    )  # fmt: skip
    assert seen["webhook"] == seen["job"]
    assert seen["bytes"] > 10_000


def test_two_people_speak_in_segments(
    live: Live, uploads: tuple[str, str], tmp_path: Path, clip: Path, ffmpeg: Ffmpeg
) -> None:
    couple = tmp_path / "couple.mp4"
    ffmpeg("-i", clip, "-filter_complex", "[0:v]split[a][b];[a][b]hstack", "-crf", 12, couple)
    segments = [
        {"audio": uploads[1], "face": "left", "end": 0.6},
        {"audio": uploads[1], "face": "right", "start": 0.4, "end": 1.2},
    ]
    body = {"video": live.upload(couple), "segments": segments, "inference_steps": 1, "prompt": "calm"}
    status, told = live.call("POST", "/api/v3/bytedance/latentsync", body)
    assert status == 200, told
    done = live.wait(told["data"]["id"])
    assert done["status"] == "completed", done["error"]
    assert "prompt was not used" in done["warnings"][0]
    assert is_video(live.call("GET", done["outputs"][0])[1], tmp_path, 30)


def test_frames_of_a_film_are_not_black(live: Live, uploads: tuple[str, str], tmp_path: Path) -> None:
    done = live.wait(live.submit(*uploads))
    path = tmp_path / "film.mp4"
    path.write_bytes(live.call("GET", done["outputs"][0])[1])
    pictures = [picture for _, picture in media.scan_frames(media.probe_video(path), 64)]
    assert np.mean(pictures) > 30
