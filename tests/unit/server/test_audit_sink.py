"""Sinks of the audit log."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from server.audit_sink import open_audit_sink


def test_lines_go_to_a_syslog_server() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(5)
        send = open_audit_sink(f"syslog://127.0.0.1:{receiver.getsockname()[1]}")
        send(['{"id": 1}', '{"id": 2}'])
        assert receiver.recv(1000).rstrip(b"\0") == b'<38>lipsync-audit: {"id": 1}'
        assert b'"id": 2' in receiver.recv(1000)


def test_unusable_sinks_are_refused_at_the_start(tmp_path: Path) -> None:
    for target in ("syslog://", "syslog://host", "syslogs", "syslog://host:x"):
        with pytest.raises(ValueError, match="audit_export"):
            open_audit_sink(target)
    with pytest.raises(OSError, match="No such file"):
        open_audit_sink(str(tmp_path / "missing" / "audit.jsonl"))
