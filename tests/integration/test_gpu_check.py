"""The GPU benchmark runs where there is no GPU, as a miniature, so that it works when there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SCRIPTS = ROOT / "scripts"

PARTS = [
    "gpu --parts micro",
    "-m pytest",
    "gpu --parts stages jobs modes precision",
    "gpu --parts compiled --models latentsync-1.6",
    "scripts.bench batching",
    "gpu --parts reference cards",
]

HANGING = """#!/bin/sh
echo "$*" >> "$CALLS"
exec sleep 100
"""


@pytest.mark.slow
def test_small_benchmark_runs_on_the_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.bench", "gpu", "--device", "cpu", "--dtype", "fp32", "--small"]
    command += ["--repeats", "1", "--out", tmp_path]
    for parts in ([], ["--parts", "fp8"]):
        subprocess.run([*command, *parts], check=True, timeout=400)
    report = json.loads((tmp_path / "gpu.json").read_text())
    model_report = report["models"]["latentsync-1.5"]
    assert set(model_report["modes"]) == {"exact", "fast", "fastest"}
    assert model_report["stages"]["lean_distance"] < 1e-3
    assert model_report["jobs"]["default"]["frames_without_face"] == 0
    assert 0 < model_report["stages"]["utilisation"]["step"] < 1.5
    assert set(model_report["precision"]) == {"fp16", "bf16"}
    assert 0 < model_report["precision"]["fp16"] < model_report["precision"]["bf16"] < 0.2
    assert report["micro"]["attention_ms"]["over time"]["math"] > 0  # the second run kept it
    assert model_report["fp8"]["layers"] > 50
    assert all(0 < mode["relative_distance"] < 0.2 for mode in model_report["fp8"]["eager"].values())
    assert (tmp_path / "gpu.png").stat().st_size > 1000


def test_gpu_check_ends_in_time_when_every_part_hangs(tmp_path: Path) -> None:
    """Every part comes to its turn, what matters most first, and none takes another's time."""
    python, calls, limit_s = tmp_path / "python", tmp_path / "calls", 6
    python.write_text(HANGING)
    python.chmod(0o755)
    selection = {"PYTHON": str(python), "CALLS": str(calls), "LIMIT_S": str(limit_s), "OUT": str(tmp_path)}
    began = time.monotonic()
    result = subprocess.run(
        [SCRIPTS / "gpu_check.sh", "--reference", "checkout"],
        env={**os.environ, **selection}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert time.monotonic() - began < limit_s + len(PARTS)
    assert result.returncode == 1
    assert result.stderr.count("ended with status 124") == len(PARTS)
    lines = calls.read_text().splitlines()
    assert all(part in line for part, line in zip(PARTS, lines, strict=True))
    assert [line for line in lines if "--reference checkout" in line] == lines[-1:]
