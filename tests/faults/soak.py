"""Does anything get lost? A real server under a random mix of work, kills and restarts.

    python -m tests.faults.soak --minutes 3 --seed 1

Jobs are submitted, repeated, cancelled; workers and the server are killed, frozen and stopped at random
moments. Then everything must come to an end, and the invariants are checked: every accepted job in one final
state, within its attempts, told about by webhook; every completed one with one film that opens and has all
its frames; no process and no working file left. Prints a table; exit status 1 when an invariant is broken.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from lipsync_engine import media
from tests.support.live_server import FINAL, LiveServer
from tests.support.paths import ROOT
from tests.support.polling import wait_until
from tests.support.processes import pids_naming

UNFINISHED = 4
"""So many jobs are kept in the queue."""

LENGTHS_S = (0.8, 1.6, 4.8)
"""Of the voices: the longest makes two segments."""

CALM_S = 6.0
"""After a kill, so that work gets done in between."""

SHARES = {
    "submit": 30, "submit twice with one key": 6, "cancel": 6, "delete": 3, "upload and leave": 2,
    "SIGKILL worker": 8, "SIGSTOP worker": 3, "SIGKILL server": 3, "SIGTERM server": 3, "SIGKILL both": 2,
}  # fmt: skip


@dataclass
class Soak:
    """The state of a run."""

    server: LiveServer
    rng: random.Random
    clip: str = ""
    voices: list[str] = field(default_factory=list)
    frames: dict[str, int] = field(default_factory=dict)  # of every accepted job
    deleted: set[str] = field(default_factory=set)
    done: collections.Counter[str] = field(default_factory=collections.Counter)
    told: dict[str, list[str]] = field(default_factory=lambda: collections.defaultdict(list))
    hook: str = ""

    # --- what may happen ---

    def submit(self, key: str | None = None) -> str:
        number = self.rng.randrange(len(self.voices))
        headers = {"Idempotency-Key": key} if key else {}
        body = {
            "video": self.clip,
            "audio": self.voices[number],
            "inference_steps": 1,
            "webhook_url": self.hook,
        }
        status, response = self.server.request("POST", "/api/v3/bytedance/latentsync", body, **headers)
        if status != 200:
            raise AssertionError(f"a submission was answered with {status}: {response}")
        job = str(response["data"]["id"])
        self.frames.setdefault(job, round(LENGTHS_S[number] * 25))
        return job

    def act(self, action: str) -> None:
        match action:
            case "submit":
                if len(self.unfinished()) >= UNFINISHED:
                    return
                self.submit()
            case "submit twice with one key":
                key = f"{self.rng.getrandbits(64):x}"
                state = self.rng.getstate()
                first = self.submit(key)
                self.rng.setstate(state)
                if self.submit(key) != first:
                    raise AssertionError("one idempotency key made two jobs")
            case "cancel" | "delete":
                if not (waiting := self.unfinished()):
                    return
                job = self.rng.choice(waiting)
                if action == "cancel":
                    self.server.request("POST", f"/api/v3/predictions/{job}/cancel")
                elif self.server.request("DELETE", f"/api/v3/predictions/{job}")[0] == 200:
                    status, _ = self.server.request("GET", f"/api/v3/predictions/{job}/result")
                    if status == 404:
                        self.deleted.add(job)
            case "upload and leave":
                self.server.upload(ROOT / "demo" / "voice.wav")
            case "SIGKILL worker" | "SIGSTOP worker":
                if not (workers := self.server.worker_pids()):
                    return
                signalled = signal.SIGKILL if "KILL" in action else signal.SIGSTOP
                os.kill(workers[0], signalled)
            case "SIGKILL both":
                for worker in self.server.worker_pids():
                    os.kill(worker, signal.SIGKILL)
                self.server.restart(signal.SIGKILL)
            case _:
                self.server.restart(signal.Signals[action.split()[0]])
        self.done[action] += 1

    def unfinished(self) -> list[str]:
        ids = [job for job in self.frames if job not in self.deleted]
        return [job for job in ids if self.server.prediction(job)["status"] not in FINAL]


def listen(told: dict[str, list[str]], rng: random.Random) -> tuple[ThreadingHTTPServer, str]:
    """A receiver that refuses one webhook in five."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            rejection = rng.random() < 0.2
            if not rejection:
                told[body["id"]].append(body["status"])
            self.send_response(503 if rejection else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    receiver = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    return receiver, f"http://127.0.0.1:{receiver.server_address[1]}/hook"


def inputs(folder: Path) -> tuple[Path, list[Path]]:
    def ffmpeg(*arguments: object) -> None:
        command = [str(media.find_ffmpeg()), "-v", "error", "-y", *map(str, arguments)]
        subprocess.run(command, check=True, timeout=120)

    demo = ROOT / "demo"
    clip = folder / "clip.mp4"
    ffmpeg("-i", demo / "presenter.mp4", "-t", 1, "-an", "-vf", "scale=256:-2", "-crf", 14, clip)
    voices = [folder / f"voice-{seconds}.wav" for seconds in LENGTHS_S]
    for seconds, voice in zip(LENGTHS_S, voices, strict=True):
        ffmpeg("-stream_loop", -1, "-i", demo / "voice.wav", "-t", seconds, voice)
    return clip, voices


def problems(soak: Soak, folder: Path) -> list[str]:
    """Broken invariants, as sentences."""
    result, server = [], soak.server
    states = collections.Counter()  # type: ignore[var-annotated]
    for job, frames in soak.frames.items():
        if job in soak.deleted:
            continue
        prediction = server.prediction(job)
        states[prediction["status"]] += 1
        if prediction["status"] == "completed":
            film = folder / "film.mp4"
            film.write_bytes(server.request("GET", prediction["outputs"][0])[1])
            got = len(list(media.scan_frames(media.probe_video(film), 64)))
            if got != frames:
                result.append(f"{job} has {got} frames instead of {frames}")
        elif prediction["status"] == "failed" and prediction["code"] != 5000:
            result.append(f"{job} failed: {prediction['error']}")
        if soak.told[job] == [] or set(soak.told[job]) != {prediction["status"]}:
            result.append(f"{job} is {prediction['status']}, its webhooks said {soak.told[job]}")
    results = list((server.data_dir / "blobs" / "results").glob("*"))
    if len(results) != states["completed"]:
        result.append(f"{len(results)} films for {states['completed']} completed jobs")
    if remaining := list((server.data_dir / "work" / "jobs").glob("*")):
        result.append(f"left in work/jobs: {[path.name for path in remaining]}")
    print(f"\n{len(soak.frames)} jobs accepted: {dict(states)}, {len(soak.deleted)} deleted")
    print(f"webhooks taken: {sum(map(len, soak.told.values()))}")
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lipsync-soak-") as name:
        folder = Path(name)
        rng = random.Random(arguments.seed)
        server = LiveServer(
            folder / "data", allow_hosts="127.0.0.1", requests_per_minute=10**6, stall_s=15, drain_s=2,
            max_attempts=5, min_free_bytes=0,
        )  # fmt: skip
        soak = Soak(server, rng)
        receiver, soak.hook = listen(soak.told, random.Random(arguments.seed))
        clip, voices = inputs(folder)
        server.start()
        try:
            soak.clip, soak.voices = server.upload(clip), [server.upload(voice) for voice in voices]
            began, calm_until = time.monotonic(), 0.0
            while (used := time.monotonic() - began) < 60 * arguments.minutes:
                action = rng.choices(list(SHARES), list(SHARES.values()))[0]
                if action.startswith("SIG"):
                    if used < calm_until:
                        continue
                    calm_until = used + CALM_S + rng.uniform(0, CALM_S)
                print(f"{used:6.1f} s  {action}", flush=True)
                soak.act(action)
                threading.Event().wait(rng.uniform(0, 2.0))
            print("no more kills: everything must come to its end", flush=True)
            wait_until(lambda: not soak.unfinished(), "a job never ended", 300, interval_s=0.1)
            live = [job for job in soak.frames if job not in soak.deleted]
            wait_until(
                lambda: all(soak.told[job] for job in live), "a webhook never came", 120, interval_s=0.1
            )
            broken = problems(soak, folder)
            if server.stop() != 0:
                broken.append("the server did not stop cleanly")
            if pids_naming(str(folder)):
                broken.append("a process is left")
        except (AssertionError, urllib.error.URLError) as error:
            broken = [str(error)]
            print("".join(server.log[-30:]), file=sys.stderr)
        finally:
            if server.process is not None and server.process.poll() is None:
                server.process.kill()
            receiver.shutdown()
    print(f"\n{'what happened':<28}times")
    for action in SHARES:
        print(f"{action:<28}{soak.done[action]:>5}")
    print("\ninvariants: " + ("all hold" if not broken else "BROKEN\n  " + "\n  ".join(broken)))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
