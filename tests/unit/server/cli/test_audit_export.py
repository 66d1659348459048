"""`lipsync audit-export`."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.cli import audit_export
from server.store import Store
from server.store.audit import AuditEntry


def test_audit_export_writes_selected_entries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIPSYNC_DATA_DIR", str(tmp_path))
    store = Store(f"sqlite:///{tmp_path / 'lipsync.sqlite'}")
    for day in range(3):
        store.audit.add(
            AuditEntry(1_800_000_000.0 + day * 86400, "server_started", {"day": day, "name": "日"})
        )
    command = [sys.executable, "-m", "lipsync_engine.cli", "audit", "export"]
    rejection = subprocess.run(command, capture_output=True, text=True, check=False)
    assert rejection.returncode == 2
    assert "/admin/audit" in rejection.stderr
    store.close()

    def export(*arguments: str) -> list[dict[str, Any]]:
        assert audit_export.main(["export", *arguments]) == 0
        return [json.loads(line)["facts"] for line in capsys.readouterr().out.splitlines()]

    assert [facts["day"] for facts in export()] == [0, 1, 2]
    file = tmp_path / "log.jsonl"
    assert export("--since", "2027-01-16", "--until", "2027-01-17", "-o", str(file)) == []
    previous = file.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["facts"] for line in previous] == [{"day": 1, "name": "日"}]


def test_verify_finds_a_changed_entry(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIPSYNC_DATA_DIR", str(tmp_path))
    file = tmp_path / "lipsync.sqlite"
    store = Store(f"sqlite:///{file}")
    store.audit.add(AuditEntry(1_800_000_000.0, "server_started", {"marking": "off"}))
    store.close()
    assert audit_export.main(["verify"]) == 0
    assert "1 entries are intact; the last hash is " in capsys.readouterr().out
    with sqlite3.connect(file) as connection:
        connection.execute("DROP TRIGGER audit_is_append_only")
        connection.execute("UPDATE audit SET facts = '{}'")
    assert audit_export.main(["verify"]) == 1
    assert "entry 1 was changed after 0 intact entries" in capsys.readouterr().err
    assert audit_export.main(["export"]) == 1
    assert "server_started" in capsys.readouterr().out
