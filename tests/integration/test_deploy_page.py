"""Blocks of docs/deploy.md that are not proxies: units of systemd, backup, restore, copy to PostgreSQL."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.private_postgres import PrivatePostgres

BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(), re.DOTALL)
DATA = ROOT / "tests" / "support" / "data_dir_e5b2546"


def run_block(word: str, root: Path, **replacements: str) -> None:
    """Run the block that has a word, with /var as a folder."""
    (block,) = (text for text in BLOCKS if word in text)
    for name, value in {"/var/": f"{root}/", **replacements}.items():
        block = block.replace(name, value)
    command = f'lipsync() {{ "{sys.executable}" -m lipsync_engine.cli "$@"; }}\nset -e\n{block}'
    env = {name: value for name, value in os.environ.items() if name != "LIPSYNC_CREDENTIALS_DIR"}
    done = subprocess.run(
        ["bash", "-c", command], env=env, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_backup_and_restore_blocks_run_one_after_the_other(tmp_path: Path) -> None:
    data_dir = tmp_path / "lib" / "lipsync"
    shutil.copytree(DATA, data_dir)
    (tmp_path / "backups").mkdir()
    run_block("lipsync backup", tmp_path)
    run_block("lipsync restore", tmp_path)
    old = tmp_path / "lib" / "lipsync-old"
    names = {path.relative_to(old) for path in (old / "blobs").rglob("*")}
    assert names
    assert names == {path.relative_to(data_dir) for path in (data_dir / "blobs").rglob("*")}
    assert (data_dir / "lipsync.sqlite").exists()


def test_block_that_copies_to_postgresql_runs(tmp_path: Path) -> None:
    database = PrivatePostgres()
    try:
        shutil.copytree(DATA, tmp_path / "lib" / "lipsync")
        url = database.url.replace("+psycopg", "")
        run_block("db copy", tmp_path, **{"postgresql://lipsync@127.0.0.1/lipsync": url})
    finally:
        database.close()


def test_systemd_accepts_the_installed_units(tmp_path: Path) -> None:
    (block,) = (text for text in BLOCKS if "systemctl" in text)
    files = re.findall(r"deploy/systemd/\S+", block)
    assert {ROOT / name for name in files} == set((ROOT / "deploy" / "systemd").iterdir())
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    for name in files:  # this machine has neither the program nor its user
        text = (ROOT / name).read_text().replace("/opt/lipsync/bin/lipsync", sys.executable)
        (tmp_path / Path(name).name).write_text(re.sub(r"^(User|Group)=.*\n", "", text, flags=re.MULTILINE))
    units = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if str(tmp_path) in line]
    assert (done.returncode, complaints) == (0, []), done.stderr
