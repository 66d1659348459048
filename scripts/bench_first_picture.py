"""How long until the first seconds of a film can be watched, against the film's length. Numbers: dev/log.md.

    python -m scripts.bench_first_picture --seconds 10 20 40

Starts a server of its own with the tiny model on this machine's first device. Every job's video has other
bytes, so that no analysis is taken from a cache. The time runs from the submission to the event that names
the first segment.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

from lipsync_engine import media
from tests.support.live_server import ROOT, Live

VIDEO, VOICE = ROOT / "demo" / "presenter.mp4", ROOT / "demo" / "voice.wav"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, nargs="+", default=[10, 20, 40])
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        live = Live(Path(folder) / "data", drain_s=0)
        live.start()
        try:
            live.wait_ready()
            print("film s | first picture after s | done after s")
            for seconds in arguments.seconds:
                video, voice = _media(Path(folder), seconds)
                first_s, done_s = _measured(live, live.upload(video), live.upload(voice), arguments.steps)
                print(f"{seconds:6g} | {first_s:21.1f} | {done_s:12.1f}", flush=True)
        finally:
            live.stop()


def _media(folder: Path, seconds: float) -> tuple[Path, Path]:
    """A video and a voice that last that long."""
    video, voice = folder / f"{seconds}.mp4", folder / f"{seconds}.wav"
    for source, target, options in ((VIDEO, video, ["-c", "copy", "-an"]), (VOICE, voice, [])):
        looped = [str(media.find_ffmpeg()), "-v", "error", "-y", "-stream_loop", "-1", "-i", str(source)]
        subprocess.run([*looped, "-t", str(seconds), *options, str(target)], check=True)
    return video, voice


def _measured(live: Live, video: str, voice: str, steps: int) -> tuple[float, float]:
    """Seconds to the first segment, and to the end."""
    began = time.monotonic()
    job = live.submit(video, voice, inference_steps=steps)
    url = f"{live.base}/api/native/v1/jobs/{job}/events"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {live.key}"})
    first_s, name = float("nan"), ""
    with urllib.request.urlopen(request, timeout=600) as stream:
        for raw in stream:
            field, _, value = raw.decode().strip().partition(": ")
            name = value if field == "event" else name
            if field == "data" and name == "segment" and json.loads(value)["index"] == 0:
                first_s = time.monotonic() - began
    seen = live.look(job)
    if seen["status"] != "completed":
        raise SystemExit(f"the job did not end well: {seen['error']}")
    return first_s, time.monotonic() - began


if __name__ == "__main__":
    main()
