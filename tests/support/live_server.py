"""A real server in processes of its own, and a plain client: for tests, soaks and measurements."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT
from tests.support.polling import wait_until
from tests.support.processes import command_line, descendant_pids, pids_naming

PASS_LISTENER = 'exec 3<&"$0"; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
"""Starts a program with the socket that systemd's protocol expects."""

FINAL = ("completed", "failed", "cancelled")


class LiveServer:
    """`lipsync serve` on a free port, which it keeps over restarts.

    Args:
        data_dir: kept over restarts.
        listener: a listening socket that the server takes over, as from systemd; None: it opens its own.
        settings: values of LIPSYNC_<NAME> variables.

    Attributes:
        base, key: URL and first API key, once the server was started.
        log: lines of its standard error.
    """

    def __init__(self, data_dir: Path, *, listener: socket.socket | None = None, **settings: object) -> None:
        self.data_dir, self.settings, self._listener = data_dir, settings, listener
        self.key, self.base = "", ""
        self.log: list[str] = []
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        variables = {f"LIPSYNC_{name.upper()}": str(value) for name, value in self.settings.items()}
        port = self.base.rpartition(":")[2] or "0"
        command = [sys.executable, "-m", "server", "--port", port, "--data-dir", str(self.data_dir)]
        passed_fds = [] if self._listener is None else [self._listener.fileno()]
        for number in passed_fds:
            command = ["bash", "-c", PASS_LISTENER, str(number), *command]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **variables},
            pass_fds=passed_fds,
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        first_line = self.process.stdout.readline()
        url = re.search(r"http://[\d.:]+", first_line)
        assert url, (first_line, self.process.stderr.read() if self.process.stderr else "")
        self.base = url[0]
        if not self.key:
            self.key = re.search(r"sk_\S+", self.process.stdout.readline())[0]  # type: ignore[index]
        threading.Thread(target=self._read_log, daemon=True).start()

    def _read_log(self) -> None:
        assert self.process is not None
        assert self.process.stderr is not None
        self.log.extend(self.process.stderr)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def kill_if_running(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop(signal.SIGKILL)

    def restart(self, number: signal.Signals) -> None:
        """Stop the server and start it again on the same data."""
        self.stop(number)
        self.start_again()

    def start_again(self) -> None:
        """Start on the same data once no process of the last start is left."""
        wait_until(lambda: not pids_naming(str(self.data_dir)), "a process outlived its server", 20)
        self.start()

    def request(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """Send a request with the first key; (status, JSON or bytes)."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        url = path if path.startswith("http") else self.base + path
        all_headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json", **headers}
        request = urllib.request.Request(url, data, all_headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                status, content = response.status, response.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content

    def upload(self, path: Path) -> str:
        """Upload a file; its download URL."""
        body = {"filename": path.name, "size": path.stat().st_size}
        _, ticket = self.request("POST", "/api/v3/media/uploads", body)
        status, _ = self.request("PUT", ticket["data"]["upload"]["url"], path.read_bytes())
        assert status == 200
        return str(ticket["data"]["download_url"])

    def submit(self, video: str, audio: str, **options: object) -> str:
        """Submit a job to the WaveSpeed API; its id."""
        body = {"video": video, "audio": audio, **options}
        status, response = self.request("POST", "/api/v3/bytedance/latentsync", body)
        assert status == 200, response
        return str(response["data"]["id"])

    def prediction(self, job: str) -> dict[str, Any]:
        """Get a job as the WaveSpeed API shows it."""
        status, response = self.request("GET", f"/api/v3/predictions/{job}/result")
        assert status == 200, response
        return dict(response["data"])

    def wait_for_job(
        self, job: str, condition: Callable[[dict[str, Any]], bool] | None = None, timeout_s: float = 120
    ) -> dict[str, Any]:
        """Poll until a job has ended, or until `condition(prediction)`; the prediction."""
        last: dict[str, Any] = {}

        def is_reached() -> bool:
            last.clear()
            last.update(self.prediction(job))
            return last["status"] in FINAL or (condition is not None and condition(last))

        try:
            wait_until(is_reached, "", timeout_s, 0.05)
        except AssertionError:
            raise AssertionError(f"{job} is still {last}\n" + "".join(self.log[-20:])) from None
        return last

    def download_result(self, job: str, path: Path) -> Path:
        """Wait until a job has completed and download its video."""
        prediction = self.wait_for_job(job)
        assert prediction["status"] == "completed", prediction
        path.write_bytes(self.request("GET", prediction["outputs"][0])[1])
        return path

    def wait_ready(self, timeout_s: float = 120) -> None:
        try:
            wait_until(lambda: self.request("GET", "/readyz")[0] == 200, "", timeout_s, 0.1)
        except AssertionError:
            raise AssertionError("no worker became ready\n" + "".join(self.log[-20:])) from None

    def worker_pids(self) -> list[int]:
        """Return the ids of this server's worker processes."""
        assert self.process is not None
        pids = descendant_pids(self.process.pid)
        return [pid for pid in pids if b"server.workers.main" in command_line(pid)]
