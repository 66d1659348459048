"""The GPU benchmark runs where there is no GPU, as a miniature, so that it works when there is one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_miniature_runs_on_the_cpu(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts" / "bench_gpu.py", "--device", "cpu", "--dtype", "fp32"]
    subprocess.run([*command, "--small", "--repeats", "1", "--out", tmp_path], check=True, timeout=400)
    report = json.loads((tmp_path / "gpu.json").read_text())
    found = report["models"]["latentsync-1.5"]
    assert set(found["modes"]) == {"exact", "fast", "fastest"}
    assert found["lean_distance"] < 1e-3
    assert found["job"]["default"]["frames_without_face"] == 0
    assert 0 < found["utilisation"]["step"] < 1.5
    assert (tmp_path / "gpu.png").stat().st_size > 1000
