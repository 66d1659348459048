"""Kind `align`: landmarks → points → matrices with the carried-over offset, and crops."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lipsync_engine.faces import align
from tests.parity.harness import Measure, difference


def check(pack: Path, spec: Mapping[str, Any]) -> list[Measure]:
    limits = spec["limits"]
    measures = []
    with np.load(pack / spec["io"]) as io:
        points = align.reference_points(io["landmarks106"])
        measures.append(Measure("points", difference(points, io["landmarks3"]).max(), 0.0))
        for size in sorted(int(m[1]) for name in io.files if (m := re.fullmatch(r"matrices_(\d+)", name))):
            worst = difference(align.template_points(size), io[f"template_{size}"]).max()
            measures.append(Measure(f"template {size}", worst, limits["matrix_max"]))
            matrices = align.reference_matrices(points, size)
            worst = difference(matrices, io[f"matrices_{size}"]).max()
            measures.append(Measure(f"matrices {size}", worst, limits["matrix_max"]))
            single = np.stack([align.solve_matrix(three, size) for three in points])
            worst = difference(single, io[f"matrices_nosmooth_{size}"]).max()
            measures.append(Measure(f"matrices without smoothing {size}", worst, limits["matrix_max"]))
            for stored, index in zip(io[f"crop_{size}"], io[f"crop_index_{size}"], strict=False):
                crop = align.reference_crop(io["frame"], io[f"matrices_{size}"][index], size)
                worst = difference(crop.transpose(2, 0, 1), stored)
                label = f"crop {size} of frame {index}"
                measures.append(Measure(f"{label} max", worst.max(), limits["crop_max"]))
                measures.append(
                    Measure(f"{label} differing", np.mean(worst > 0), limits["crop_fraction_differing"])
                )
                over = np.mean(worst > 1)
                measures.append(Measure(f"{label} over 1", over, limits["crop_fraction_over_1"]))
    return measures
