"""The real server in real processes: the official clients, crashes at every stage, cancelling, stopping."""

from __future__ import annotations

import json
import os
import re
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
from tests.support.live_server import LiveServer
from tests.support.paths import ROOT
from tests.support.processes import descendant_pids
from tests.support.webhook_receiver import WebhookReceiver

Ffmpeg = Callable[..., None]
Likeness = Callable[[Path, Path], float]
LONG_FRAMES = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    server = LiveServer(tmp_path_factory.mktemp("live"), allow_hosts="127.0.0.1", requests_per_minute=100000)
    server.start()
    server.wait_ready()
    yield server
    assert server.process is not None
    remaining = descendant_pids(server.process.pid)
    assert server.stop() == 0
    assert not [pid for pid in remaining if Path(f"/proc/{pid}").exists()]


@pytest.fixture(scope="module")
def uploads(server: LiveServer, clip: Path, voice: Path) -> tuple[str, str]:
    return server.upload(clip), server.upload(voice)


@pytest.fixture(scope="session")
def long_voice(make_voice: Callable[[float], Path]) -> Path:
    """Two segments, of 60 frames each."""
    return make_voice(LONG_FRAMES / 25)


def is_video(content: bytes, folder: Path, frames: int) -> bool:
    path = folder / "got.mp4"
    path.write_bytes(content)
    info = media.probe_video(path)
    return len(list(media.scan_frames(info, 64))) == frames


def test_job_runs_from_upload_to_result(server: LiveServer, uploads: tuple[str, str], tmp_path: Path) -> None:
    began = time.monotonic()
    job = server.submit(*uploads, inference_steps=2)
    assert time.monotonic() - began < 1.0
    prediction = server.wait_for_job(job)
    assert prediction["status"] == "completed", prediction
    assert prediction["timings"]["inference"] <= prediction["executionTime"]
    (link,) = prediction["outputs"]
    status, video = server.request("GET", link, Authorization="")
    assert status == 200
    assert is_video(video, tmp_path, 38)


def test_tenants_share_no_cache_of_equal_inputs(
    server: LiveServer, uploads: tuple[str, str], clip: Path, voice: Path
) -> None:
    """What one tenant has processed is neither used for another's equal job nor visible in it."""
    status, created = server.request("POST", "/admin/keys", {"tenant": "bob", "scopes": "run read"})
    assert status == 200
    server.wait_for_job(server.submit(*uploads, inference_steps=1, seed=3))
    tenants = server.data_dir / "work" / "engine" / "tenants"
    before = {path.name: len(list(path.glob("analysis/*.npz"))) for path in tenants.iterdir()}
    assert list(before.values()) == [1]
    key, server.key = server.key, created["key"]
    try:
        server.wait_for_job(
            server.submit(server.upload(clip), server.upload(voice), inference_steps=1, seed=3)
        )
    finally:
        server.key = key
    after = {path.name: len(list(path.glob("analysis/*.npz"))) for path in tenants.iterdir()}
    assert after.items() > before.items()
    assert sorted(after.values()) == [1, 1]


@pytest.mark.slow
def test_equal_jobs_give_equal_results(
    server: LiveServer, uploads: tuple[str, str], tmp_path: Path, likeness_db: Likeness
) -> None:
    """A, B, A: what a worker did before does not change what it does."""
    videos = [tmp_path / f"{number}.mp4" for number in range(3)]
    for seed, video in zip((7, 8, 7), videos, strict=True):
        prediction = server.wait_for_job(server.submit(*uploads, inference_steps=1, seed=seed))
        video.write_bytes(server.request("GET", prediction["outputs"][0])[1])
    assert likeness_db(videos[0], videos[2]) > 55
    assert likeness_db(videos[0], videos[1]) < 53


def test_failed_job_reports_the_reason(
    server: LiveServer, uploads: tuple[str, str], tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    grey = tmp_path / "grey.mp4"
    ffmpeg("-f", "lavfi", "-i", "color=gray:s=128x128:r=25", "-t", 1, grey)
    failed = server.wait_for_job(server.submit(server.upload(grey), uploads[1]))
    assert (failed["status"], failed["code"], failed["outputs"]) == ("failed", 1403, [])
    assert "face" in failed["error"]


def test_avi_video_and_aiff_audio_are_accepted(
    server: LiveServer, tmp_path: Path, clip: Path, voice: Path, ffmpeg: Ffmpeg
) -> None:
    video, audio = tmp_path / "clip.avi", tmp_path / "voice.aiff"
    ffmpeg("-i", clip, "-vcodec", "mpeg4", "-q:v", 2, "-t", 0.4, video)
    ffmpeg("-i", voice, "-t", 0.4, audio)
    job = server.submit(server.upload(video), server.upload(audio), inference_steps=1)
    prediction = server.wait_for_job(job)
    assert prediction["status"] == "completed", prediction
    assert is_video(server.request("GET", prediction["outputs"][0])[1], tmp_path, 10)


def test_vendor_limits_are_enforced(server: LiveServer, uploads: tuple[str, str]) -> None:
    _, response = server.request(
        "POST", "/api/v3/kwaivgi/kling-lipsync/audio-to-video", {"video": uploads[0], "audio": uploads[1]}
    )
    failed = server.wait_for_job(response["data"]["id"])
    assert (failed["status"], failed["code"]) == ("failed", 1401)
    assert "720" in failed["error"]


def test_portrait_job_completes(
    server: LiveServer, uploads: tuple[str, str], tmp_path: Path, clip: Path, ffmpeg: Ffmpeg
) -> None:
    portrait = tmp_path / "portrait.png"
    ffmpeg("-i", clip, "-frames:v", 1, portrait)
    body = {"image": server.upload(portrait), "audio": uploads[1]}
    _, response = server.request("POST", "/api/v3/bytedance/avatar-omni-human", body)
    prediction = server.wait_for_job(response["data"]["id"])
    assert prediction["status"] == "completed", prediction
    assert is_video(server.request("GET", prediction["outputs"][0])[1], tmp_path, 38)


def test_cancelled_job_stops_within_seconds_and_keeps_its_worker(
    server: LiveServer, uploads: tuple[str, str], long_voice: Path
) -> None:
    job = server.submit(uploads[0], server.upload(long_voice), inference_steps=8)
    outcome = server.wait_for_job(
        job, lambda s: s["timings"].get("stage") == "render" and s["timings"]["done"] > 0
    )
    assert outcome["timings"]["total"] == LONG_FRAMES
    began = time.monotonic()
    _, response = server.request("POST", f"/api/v3/predictions/{job}/cancel")
    assert response["data"]["status"] == "cancelled"
    assert time.monotonic() - began < 8
    (worker,) = server.worker_pids()
    after = server.wait_for_job(server.submit(*uploads, inference_steps=1))
    assert after["status"] == "completed"
    assert server.worker_pids() == [worker]  # it stopped the job, it was not killed


def test_open_event_stream_does_not_delay_shutdown(tmp_path: Path, clip: Path, voice: Path) -> None:
    server = LiveServer(tmp_path / "data", drain_s=0)
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


def test_refused_webhook_is_delivered_again(server: LiveServer, uploads: tuple[str, str]) -> None:
    receiver = WebhookReceiver(refusals=1)
    job = server.submit(*uploads, inference_steps=1, webhook_url=receiver.url)
    for _ in range(2):
        assert receiver.arrived.acquire(timeout=60)
    secret = server.request("GET", "/api/v3/webhook/secret")[1]["data"]["secret"]
    for headers, body in receiver.deliveries:
        assert headers["webhook-id"] == job
        stamp = float(headers["webhook-timestamp"])
        expected = webhook_headers(secret, job, body, stamp)["webhook-signature"]
        assert headers["webhook-signature"] == expected
        assert json.loads(body)["status"] == "completed"
    receiver.close()


def test_batch_runs_from_uploads_to_results_and_one_webhook(
    server: LiveServer, uploads: tuple[str, str], tmp_path: Path
) -> None:
    receiver = WebhookReceiver()
    inputs = {"video": uploads[0], "audio": uploads[1], "inference_steps": 1}
    rows = [
        {"model": "bytedance/latentsync", "input": inputs},
        {"model": "bytedance/latentsync", "input": {**inputs, "audio": uploads[0]}},  # nobody speaks there
    ]
    status, batch = server.request(
        "POST", "/api/native/v1/batches", {"jobs": rows, "webhook_url": receiver.url}
    )
    assert status == 200, batch
    assert receiver.arrived.acquire(timeout=60)
    (response,) = [json.loads(body) for _, body in receiver.deliveries]
    assert (response["state"], response["counts"]["succeeded"], response["counts"]["failed"]) == (
        "ended",
        1,
        1,
    )
    first, second = server.request("GET", f"{response['url']}/jobs")[1]["jobs"]
    assert is_video(server.request("GET", first["output"])[1], tmp_path, 38)
    assert (second["id"], second["failure"]["code"]) == (batch["jobs"][1]["id"], "media_no_audio")
    receiver.close()


# --- the official clients ---

PYTHON_CLIENT = """
import json, os, wavespeed
client = wavespeed.Client(api_key=os.environ["KEY"], base_url=os.environ["BASE"])
video, audio = client.upload(os.environ["VIDEO"]), client.upload(os.environ["VOICE"])
inputs = {"video": video, "audio": audio, "inference_steps": 1}
outcome = {"run": client.run("bytedance/latentsync", inputs)}
outcome["sync"] = client.run("bytedance/latentsync", inputs, enable_sync_mode=True)
try:
    client.run("bytedance/latentsync", {"video": audio, "audio": audio})
except Exception as error:
    outcome["error"] = str(error)
print(json.dumps(outcome))
"""

JAVASCRIPT_CLIENT = """
const { Client } = require("wavespeed");
(async () => {
  const client = new Client(process.env.KEY, { baseUrl: process.env.BASE });
  const video = await client.upload(process.env.VIDEO), audio = await client.upload(process.env.VOICE);
  const inputs = { video, audio, inference_steps: 1 }, outcome = {};
  outcome.run = await client.run("bytedance/latentsync", inputs);
  outcome.sync = await client.run("bytedance/latentsync", inputs, { enableSyncMode: true });
  try { await client.run("bytedance/latentsync", { video: audio, audio }); }
  catch (error) { outcome.error = String(error); }
  console.log(JSON.stringify(outcome));
})();
"""


def client_environment(server: LiveServer, clip: Path, voice: Path) -> dict[str, str]:
    return {**os.environ, "KEY": server.key, "BASE": server.base, "VIDEO": str(clip), "VOICE": str(voice)}


def check_client(done: subprocess.CompletedProcess[str], server: LiveServer) -> None:
    assert done.returncode == 0, done.stderr[-2000:]
    outcome = json.loads(done.stdout.splitlines()[-1])
    print(done.stdout)
    for mode in ("run", "sync"):
        (link,) = outcome[mode]["outputs"]
        assert link.startswith(server.base)
        assert server.request("GET", link)[0] == 200
    assert "not a supported video file" in outcome["error"]


def check_documented_example(
    language: str, command: tuple[str, str], folder: Path, env: dict[str, str], server: LiveServer
) -> None:
    """Run the only block of that language in docs/clients.md beside the files that it names.

    Args:
        command: program and suffix of its files.
    """
    page = (ROOT / "docs" / "clients.md").read_text()
    (example,) = re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    program, suffix = command
    (folder / f"example.{suffix}").write_text(example)
    shutil.copy(env["VIDEO"], folder / "talk.mp4")
    shutil.copy(env["VOICE"], folder / "voice.wav")
    done = subprocess.run(
        [program, f"example.{suffix}"],
        env=env, cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (link,) = re.findall(r"http[^'\"]+", done.stdout)
    assert server.request("GET", link)[0] == 200


@pytest.mark.parametrize("version", ["2.0.5", "1.0.14", pytest.param("1.0.10", marks=pytest.mark.slow)])
def test_python_sdk(version: str, server: LiveServer, clip: Path, voice: Path, tmp_path: Path) -> None:
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
    env = client_environment(server, clip, voice) | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", PYTHON_CLIENT]
    check_client(
        subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False), server
    )
    if version == "2.0.5":
        check_documented_example("py", (sys.executable, "py"), tmp_path, env, server)


def test_javascript_sdk(server: LiveServer, clip: Path, voice: Path, tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("there is no npm on this machine")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "wavespeed@0.3.2"]
    installed = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, check=False)
    if installed.returncode != 0:
        pytest.skip(f"the SDK cannot be installed: {installed.stderr[-200:]}")
    env = client_environment(server, clip, voice)
    command = ["node", "-e", JAVASCRIPT_CLIENT]
    check_client(
        subprocess.run(
            command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        ),
        server,
    )
    check_documented_example("js", ("node", "mjs"), tmp_path, env, server)


GENERATED_CLIENT_PROGRAM = """
import io, json, os, time
from lipsync_client import AuthenticatedClient
from lipsync_client.api.wavespeed import (
    wavespeed_get_prediction_result, wavespeed_run_model, wavespeed_upload_file_binary,
)
from lipsync_client.models import WavespeedRunModelBody, WavespeedUploadFileBinaryBody
from lipsync_client.types import File
client = AuthenticatedClient(base_url=os.environ["BASE"], token=os.environ["KEY"], timeout=60)
def upload(path):
    file = File(payload=open(path, "rb"), file_name=os.path.basename(path))
    body = WavespeedUploadFileBinaryBody(file=file)
    return wavespeed_upload_file_binary.sync(client=client, body=body).data.download_url
body = WavespeedRunModelBody(
    video=upload(os.environ["VIDEO"]), audio=upload(os.environ["VOICE"]), inference_steps=1
)
job = wavespeed_run_model.sync("bytedance", "latentsync", client=client, body=body).data
while job.status not in ("completed", "failed"):
    time.sleep(0.2)
    job = wavespeed_get_prediction_result.sync(job.id, client=client).data
print(json.dumps(job.to_dict()))
"""


@pytest.mark.slow
def test_client_generated_from_the_openapi_document(
    server: LiveServer, clip: Path, voice: Path, tmp_path: Path
) -> None:
    python, tools = [sys.executable, "-m"], tmp_path / "tools"
    install = [*python, "pip", "install", "-q", "--target", str(tools), "openapi-python-client==0.29.1"]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    if installed.returncode != 0:
        pytest.skip(f"openapi-python-client cannot be installed: {installed.stderr[-200:]}")
    env = client_environment(server, clip, voice) | {"PYTHONPATH": str(tools)}
    generate = [*python, "openapi_python_client", "generate", "--meta", "none"]
    generate += ["--url", f"{server.base}/openapi.json", "--output-path", str(tmp_path / "lipsync_client")]
    for command in (generate, [sys.executable, "-c", GENERATED_CLIENT_PROGRAM]):
        done = subprocess.run(
            command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
    prediction = json.loads(done.stdout)
    assert prediction["status"] == "completed", prediction
    assert server.request("GET", prediction["outputs"][0])[0] == 200


STUDIO_PROGRAM = """
const fetch = require("node-fetch");
const express = require("express");
const { BASE, KEY, IMAGE, VOICE } = process.env;
const headers = { Authorization: `Bearer ${KEY}`, "Content-Type": "application/json" };
const app = express();
app.use(express.json({ limit: "2mb" }));
const response = new Promise((resolve) => {
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
  const video = await fetch(job.output);
  const bytes = (await video.buffer()).length;
  console.log(JSON.stringify({ submitted, job, webhook: await response, bytes }));
  process.exit(0);
});
"""
"""What lipsync.studio's page shows in JavaScript: submit, be called, and ask until it is done."""


def test_lipsync_studio_javascript_example(
    server: LiveServer, clip: Path, voice: Path, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    if shutil.which("npm") is None:
        pytest.skip("there is no npm on this machine")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "node-fetch@2.7.0", "express@4.21.2"]
    installed = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, check=False)
    if installed.returncode != 0:
        pytest.skip(f"node-fetch and express cannot be installed: {installed.stderr[-200:]}")
    portrait = tmp_path / "portrait.png"
    ffmpeg("-i", clip, "-frames:v", 1, portrait)
    env = {**os.environ, "KEY": server.key, "BASE": server.base}
    env |= {"IMAGE": server.upload(portrait), "VOICE": server.upload(voice)}
    result = subprocess.run(
        ["node", "-e", STUDIO_PROGRAM],
        env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    print(result.stdout)
    outcome = json.loads(result.stdout.splitlines()[-1])
    assert outcome["submitted"]["status"] == "processing"
    assert (outcome["job"]["status"], outcome["job"]["model"], outcome["job"]["error"]) == (
        "completed", "lipsync-image", "",
    )  # fmt: skip
    assert outcome["webhook"] == outcome["job"]
    assert outcome["bytes"] > 10_000


def test_two_speakers_in_segments(
    server: LiveServer, uploads: tuple[str, str], tmp_path: Path, clip: Path, ffmpeg: Ffmpeg
) -> None:
    couple = tmp_path / "couple.mp4"
    ffmpeg("-i", clip, "-filter_complex", "[0:v]split[a][b];[a][b]hstack", "-crf", 12, couple)
    segments = [
        {"audio": uploads[1], "face": "left", "end": 0.6},
        {"audio": uploads[1], "face": "right", "start": 0.4, "end": 1.2},
    ]
    body = {"video": server.upload(couple), "segments": segments, "inference_steps": 1, "prompt": "calm"}
    status, response = server.request("POST", "/api/v3/bytedance/latentsync", body)
    assert status == 200, response
    prediction = server.wait_for_job(response["data"]["id"])
    assert prediction["status"] == "completed", prediction["error"]
    assert "prompt was not used" in prediction["warnings"][0]
    assert is_video(server.request("GET", prediction["outputs"][0])[1], tmp_path, 30)


def test_result_frames_are_not_black(server: LiveServer, uploads: tuple[str, str], tmp_path: Path) -> None:
    prediction = server.wait_for_job(server.submit(*uploads))
    path = tmp_path / "film.mp4"
    path.write_bytes(server.request("GET", prediction["outputs"][0])[1])
    pictures = [picture for _, picture in media.scan_frames(media.probe_video(path), 64)]
    assert np.mean(pictures) > 30


def test_files_of_the_server_are_private(server: LiveServer, uploads: tuple[str, str]) -> None:
    paths = [server.data_dir, *server.data_dir.rglob("*")]
    assert {"lipsync.sqlite", "signing.key", "blobs"} <= {path.name for path in paths}
    assert [path for path in paths if path.lstat().st_mode & 0o077] == []


def test_answers_do_not_name_the_server_program(server: LiveServer) -> None:
    with urllib.request.urlopen(f"{server.base}/livez", timeout=10) as response:
        assert "server" not in response.headers
