"""What an installation consists of, as a CycloneDX bill of materials: libraries, and the manifest's weights.

    python scripts/release/sbom.py build/sbom.json

Libraries are those of the environment that runs this, by cyclonedx-py; weights are the manifest's, with their
hashes and licences. The result is held against CycloneDX's schema before it is written.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from lipsync_engine.weights import WeightsStore

ROOT = Path(__file__).parents[2]


def libraries() -> Bom:
    """The environment's libraries, and this package as what they are for."""
    command = [
        sys.executable,
        "-m",
        "cyclonedx_py",
        "environment",
        "--pyproject",
        str(ROOT / "pyproject.toml"),
    ]
    command += ["--output-reproducible", "--spec-version", "1.6", "--output-format", "JSON", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return Bom.from_json(json.loads(done.stdout))  # type: ignore[attr-defined]


def weights() -> list[Component]:
    """One component per model of the manifest, one per file in it."""
    found = []
    for entry in WeightsStore().entries():
        files = [
            Component(
                name=file.path,
                type=ComponentType.FILE,
                bom_ref=f"weights/{entry.name}/{file.path}",
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=file.sha256)] if file.sha256 else [],
            )
            for file in entry.files
        ]
        found.append(
            Component(
                name=entry.name,
                type=ComponentType.MACHINE_LEARNING_MODEL,
                bom_ref=f"weights/{entry.name}",
                licenses=[DisjunctiveLicense(name=entry.licence)],
                components=files,
            )
        )
    return found


def main(output: Path) -> int:
    bom = libraries()
    bom.components.update(weights())
    text = JsonV1Dot6(bom).output_as_string(indent=1)
    if (problem := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)) is not None:
        print(f"the bill of materials is not valid: {problem}", file=sys.stderr)
        return 1
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text + "\n")
    print(f"{len(bom.components)} components: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
