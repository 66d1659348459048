"""A PostgreSQL of a test's own, that it can stop and start: made by the installed programs, in a folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

PROGRAMS = Path("/usr/lib/postgresql")


class PrivatePostgres:
    """Listens on a free port of this machine alone; as root it runs as `postgres`, for it refuses root."""

    def __init__(self) -> None:
        program = shutil.which("pg_ctl") or next(map(str, PROGRAMS.glob("*/bin/pg_ctl")), None)
        if program is None:
            pytest.skip(f"no PostgreSQL programs on PATH or in {PROGRAMS}")
        self._programs = Path(program).parent
        self._data = Path(tempfile.mkdtemp(prefix="lipsync-postgres-"))
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(self._data, self._user)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._run("initdb", "-U", "postgres", "--auth", "trust", "--no-sync", "-E", "UTF8")
        self.url = f"postgresql+psycopg://postgres@127.0.0.1:{self._port}/postgres"
        self.start()

    def start(self) -> None:
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
        self._run("pg_ctl", "-w", "-o", options, "-l", self._data / "log", "start")

    def stop(self, how: str = "fast") -> None:
        self._run("pg_ctl", "-w", "-m", how, "stop")

    def close(self) -> None:
        self.stop("immediate")
        shutil.rmtree(self._data)

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self._programs / program), "-D", str(self._data), *map(str, arguments)]
        subprocess.run(command, user=self._user, cwd="/", check=True, timeout=60, stdout=subprocess.DEVNULL)
