"""A real server in processes of its own, and a plain client: for tests, soaks and measurements."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

FINAL = ("completed", "failed", "cancelled")


class Live:
    """`lipsync serve` on a free port, which it keeps over restarts.

    Args:
        data_dir: kept over restarts.
        settings: LIPSYNC_<NAME> variables.
    """

    def __init__(self, data_dir: Path, **settings: object) -> None:
        self.data_dir, self.settings = data_dir, settings
        self.key, self.base = "", ""
        self.log: list[str] = []
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        variables = {f"LIPSYNC_{name.upper()}": str(value) for name, value in self.settings.items()}
        env = {**os.environ, **variables}
        command = [
            sys.executable,
            "-m",
            "server",
            "--port",
            self.base.rpartition(":")[2] or "0",
            "--data-dir",
            str(self.data_dir),
        ]
        self.process = subprocess.Popen(
            command,
            env=env,
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        found = re.search(r"http://[\d.:]+", first)
        assert found, (first, self.process.stderr.read() if self.process.stderr else "")
        self.base = found[0]
        if not self.key:
            self.key = re.search(r"sk_\S+", self.process.stdout.readline())[0]  # type: ignore[index]
        threading.Thread(target=self._read_log, daemon=True).start()

    def _read_log(self) -> None:
        assert self.process is not None
        assert self.process.stderr is not None
        self.log.extend(self.process.stderr)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(60)

    def restart(self, how: signal.Signals) -> None:
        """End it and, once nothing of it runs any more, start it again on the same data."""
        self.stop(how)
        self.start_again()

    def start_again(self) -> None:
        until(lambda: not processes_naming(str(self.data_dir)), "a process outlived its server", 20)
        self.start()

    def call(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """(status, JSON or bytes) of a request with the first key."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        url = path if path.startswith("http") else self.base + path
        given = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json", **headers}
        request = urllib.request.Request(url, data, given, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content

    def upload(self, path: Path) -> str:
        """A download URL for a local file."""
        _, told = self.call(
            "POST", "/api/v3/media/uploads", {"filename": path.name, "size": path.stat().st_size}
        )
        place = told["data"]
        status, _ = self.call("PUT", place["upload"]["url"], path.read_bytes())
        assert status == 200
        return str(place["download_url"])

    def submit(self, video: str, audio: str, **body: object) -> str:
        status, told = self.call(
            "POST", "/api/v3/bytedance/latentsync", {"video": video, "audio": audio, **body}
        )
        assert status == 200, told
        return str(told["data"]["id"])

    def look(self, job: str) -> dict[str, Any]:
        status, told = self.call("GET", f"/api/v3/predictions/{job}/result")
        assert status == 200, told
        return dict(told["data"])

    def wait(self, job: str, until: Any = None, timeout_s: float = 120) -> dict[str, Any]:
        """Poll until the job has ended, or until `until(prediction)`."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            seen = self.look(job)
            if seen["status"] in FINAL or (until is not None and until(seen)):
                return seen
            threading.Event().wait(0.05)
        raise AssertionError(f"{job} is still {seen}\n" + "".join(self.log[-20:]))

    def wait_ready(self, timeout_s: float = 120) -> None:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if self.call("GET", "/readyz")[0] == 200:
                return
            threading.Event().wait(0.1)
        raise AssertionError("no worker became ready\n" + "".join(self.log[-20:]))

    def worker_pids(self) -> list[int]:
        """Worker processes of this server."""
        assert self.process is not None
        return [pid for pid in descendants(self.process.pid) if b"server.workers.main" in command_line(pid)]


def until(what: Callable[[], Any], otherwise: str, seconds: float = 60, pause_s: float = 0.01) -> None:
    """Look again and again, with pauses.

    Raises:
        AssertionError: `otherwise`, when it does not come.
    """
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            raise AssertionError(otherwise)
        threading.Event().wait(pause_s)


def descendants(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if parent == pid:
            child = int(stat.parent.name)
            found += [child, *descendants(child)]
    return found


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def processes_naming(text: str) -> list[int]:
    """Processes, this one aside, whose command line names something."""
    own = os.getpid()
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if pid != own and text.encode() in command_line(pid)]
