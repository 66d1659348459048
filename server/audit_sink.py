"""Where entries of the audit log are written besides the database, as they happen: a file or syslog."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from logging.handlers import SysLogHandler
from pathlib import Path

Sink = Callable[[Sequence[str]], None]
"""Writes lines; raises OSError where they are not written."""

LOCAL_SYSLOG = "/dev/log"


def open_audit_sink(target: str) -> Sink:
    """Open a sink.

    Args:
        target: a path, `syslog` for this machine's, or `syslog://HOST:PORT` (UDP).

    Raises:
        ValueError: such an address has no host or port.
        OSError: the file or syslog cannot be opened.
    """
    if not target.startswith("syslog"):
        path = Path(target)
        os.close(_open_for_append(path))
        return lambda lines: _append(path, lines)
    address: str | tuple[str, int] = LOCAL_SYSLOG
    if target != "syslog":
        host, _, port = target.removeprefix("syslog://").rpartition(":")
        if not target.startswith("syslog://") or not host or not port.isdecimal():
            raise ValueError(f"audit_export = {target!r}: write a path, syslog or syslog://HOST:PORT")
        address = host, int(port)
    handler = _RaisingSysLogHandler(address, SysLogHandler.LOG_AUTH)
    handler.ident = "lipsync-audit: "

    def send(lines: Sequence[str]) -> None:
        for line in lines:
            handler.emit(logging.LogRecord("lipsync.audit", logging.INFO, "", 0, line, None, None))

    return send


class _RaisingSysLogHandler(SysLogHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        raise


def _open_for_append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def _append(path: Path, lines: Sequence[str]) -> None:
    descriptor = _open_for_append(path)
    try:
        os.write(descriptor, "".join(f"{line}\n" for line in lines).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
