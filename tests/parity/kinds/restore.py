"""Kind `restore`: faces pasted back into their frame."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lipsync_engine.faces import compositor
from tests.parity.harness import Measure, difference


def check(pack: Path, spec: Mapping[str, Any]) -> list[Measure]:
    limits = spec["limits"]
    measures = []
    with np.load(pack / spec["io"]) as io:
        for size in sorted(int(m[1]) for name in io.files if (m := re.fullmatch(r"face_(\d+)", name))):
            rows = zip(io[f"face_{size}"], io[f"matrix_{size}"], io[f"out_{size}"], strict=True)
            for i, (face, matrix, stored) in enumerate(rows):
                pasted = compositor.reference_paste(io["frame"], face.astype(np.float32), matrix)
                worst = difference(pasted, stored)
                measures.append(Measure(f"paste {size} #{i} max", worst.max(), limits["max"]))
                measures.append(
                    Measure(f"paste {size} #{i} differing", np.mean(worst > 0), limits["fraction_differing"])
                )
    return measures
