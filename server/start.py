"""What must be right before a server starts: its address, its job hook, and what its workers need."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from server.settings import Settings, SettingsError

FIRST_PASSED_FD = 3
"""SD_LISTEN_FDS_START of systemd's protocol."""

MESSAGES = {
    errno.EADDRINUSE: "another program has this port: stop it, or choose another one with --port",
    errno.EADDRNOTAVAIL: "this machine does not have the address: use 127.0.0.1, ::1, 0.0.0.0 or ::",
    errno.EACCES: "this user may not use the port: choose one from 1024 on",
}
"""Problem and remedy by the reason why an address cannot be listened on."""


def open_listener(host: str, port: int) -> socket.socket:
    """Listen on an address or host name, IPv4 or IPv6; `::` accepts both.

    Raises:
        SettingsError: the sentence has the remedy.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        both = family is socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, dualstack_ipv6=both)
    except socket.gaierror:
        reason = "the host is no address and no name of this machine: use 127.0.0.1, ::1, 0.0.0.0 or ::"
    except OSError as error:
        reason = MESSAGES.get(error.errno or 0, str(error))
    raise SettingsError(f"cannot listen on host = {host}, port = {port}: {reason}.")


def inherit_listener() -> socket.socket | None:
    """Take over the socket that systemd or another service manager listens on; None: there is none.

    It stays open in the manager, so no connection is refused while the server restarts.

    Raises:
        SettingsError: there is not one socket.
    """
    pid, count = (os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS"))
    if pid != str(os.getpid()):
        return None
    if count != "1":
        raise SettingsError(f"the service manager passed {count} sockets: configure exactly one.")
    listener = socket.socket(fileno=FIRST_PASSED_FD)
    listener.set_inheritable(False)
    return listener


def format_host(host: str) -> str:
    """Write a host as URLs have it."""
    return f"[{host}]" if ":" in host else host


def list_devices(folder: Path, visible: str | None) -> tuple[str, ...]:
    """Return every CUDA device that this process may use, else the CPU.

    torch, which takes seconds, is not loaded. A container has a node for each GPU that it was given, while
    /proc lists all of the host's. Under WSL 2 there is one node for all GPUs, of which the first is used.

    Args:
        folder: /dev.
        visible: value of CUDA_VISIBLE_DEVICES: indices or UUIDs, of GPUs or their MIG parts. CUDA stops at
            the first that is invalid, such as -1.
    """
    nodes = sum(1 for node in folder.glob("nvidia*") if re.fullmatch(r"nvidia\d+", node.name))
    count = nodes or int((folder / "dxg").exists())
    if visible is not None:
        names = list(itertools.takewhile(_is_device_name, (name.strip() for name in visible.split(","))))
        count = (
            len(names) if nodes and any(name.startswith("MIG-") for name in names) else min(count, len(names))
        )
    return tuple(f"cuda:{number}" for number in range(count)) or ("cpu",)


def _is_device_name(name: str) -> bool:
    return re.fullmatch(r"\d+|(GPU|MIG)-[\w/-]+", name) is not None


def check_hook(hook: str | None) -> None:
    """Check that the job hook is a URL or a command that exists.

    Raises:
        SettingsError: it is neither.
    """
    if hook is None or urlsplit(hook).scheme in ("http", "https"):
        return
    try:
        program = shlex.split(hook)[0]
    except (ValueError, IndexError):
        raise SettingsError(f"job_hook = {hook!r} is neither a URL nor a command.") from None
    if shutil.which(program) is None:
        raise SettingsError(
            f"job_hook = {hook!r} is not executable: {program} does not exist or may not run."
        )


class WorkerCheck:
    """The check of what workers need, in a child process that runs while the server is built.

    Args:
        devices: without any there are no workers, and nothing is checked.
        with_devices: check also that torch can use the devices, which takes seconds.
    """

    def __init__(self, settings: Settings, devices: tuple[str, ...], *, with_devices: bool) -> None:
        self._process: subprocess.Popen[str] | None = None
        if devices:
            command = [sys.executable, "-m", "server.workers.check", "--model", settings.model]
            command += ["--devices", ",".join(devices)] if with_devices else []
            command += ["--require-sandbox"] if settings.require_sandbox else []
            environment = {**os.environ, **settings.worker_environment}
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
            )

    def require_success(self) -> str:
        """Wait for its end; returns what FFmpeg processes are not kept from, empty where nothing is missing.

        Raises:
            SettingsError: workers cannot start.
        """
        if self._process is None:
            return ""
        stdout, stderr = self._process.communicate()
        if self._process.returncode:
            raise SettingsError((stderr.strip().splitlines() or ["the check of the workers died"])[-1])
        return stdout.strip()
