"""The bill of materials is valid and whole: libraries, weights, hashes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT


@pytest.mark.slow
def test_sbom_is_valid_and_names_libraries_and_weights(tmp_path: Path) -> None:
    path = tmp_path / "sbom.json"
    command = [sys.executable, str(ROOT / "scripts" / "release" / "sbom.py"), str(path)]
    subprocess.run(command, check=True, timeout=600, cwd=ROOT)  # it validates itself
    found = json.loads(path.read_text())
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    assert found["metadata"]["component"]["name"] == "lipsync-engine"
    components = {one["name"]: one for one in found["components"]}
    assert {"torch", "diffusers", "c2pa-python", "latentsync-1.6", "tiny"} <= set(components)
    assert "file://" not in path.read_text()
    tiny = components["tiny"]
    assert tiny["type"] == "machine-learning-model"
    assert all(len(file["hashes"][0]["content"]) == 64 for file in tiny["components"])
