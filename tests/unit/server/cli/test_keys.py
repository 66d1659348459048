"""`lipsync keys`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from server.store import Store


def test_keys_are_created_listed_and_revoked(tmp_path: Path) -> None:
    def keys(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lipsync_engine.cli", "keys", *arguments]
        env = {**os.environ, "LIPSYNC_DATA_DIR": str(tmp_path / "data")}
        return subprocess.run(
            command, env=env, input=stdin, capture_output=True, text=True, timeout=60, check=False
        )

    output = keys("create", "--tenant", "dubbing", "--name", "ci", "--days", "30", "--max-active-jobs", "20")
    assert output.returncode == 0, output.stderr
    name, text = output.stdout.split()
    assert text.startswith("sk_")
    listed = keys("list").stdout
    assert name in listed
    assert "dubbing" in listed
    assert "max_active_jobs 20" in listed
    assert text not in listed
    assert keys("revoke", name).returncode == 0
    assert "revoked" in keys("list").stdout
    assert keys("revoke", name).returncode == 2
    assert "scope" in keys("create", "--scopes", "root").stderr
    admin, _ = keys("create", "--scopes", "run read admin").stdout.split()
    assert "last key" in keys("revoke", admin).stderr
    changed = keys("update", admin, "--name", "chief", "--max-jobs-per-day", "9", "--max-active-jobs", "none")
    assert "chief" in changed.stdout
    assert "max_jobs_per_day 9" in changed.stdout
    successor, text = keys("rotate", admin, "--overlap-hours", "0").stdout.split()
    assert text.startswith(f"sk_{successor}_")
    assert keys("rotate-secret", successor).stdout.startswith("whsec_")
    imported = keys("create", "--import-key", stdin="wsk_" + "x" * 40).stdout
    assert imported.split()[1] == "wsk_" + "x" * 40
    running = Store(f"sqlite:///{tmp_path / 'data' / 'lipsync.sqlite'}")
    assert "/admin/keys" in keys("list").stderr
    running.close()
