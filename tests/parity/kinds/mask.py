"""Kind `mask`: the fixed mask in pixels and latents, and masked crops. The array names give the sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lipsync_engine.models.latentsync.mask import downsample_mask, load_fixed_mask
from tests.parity.harness import Measure, difference


def check(pack: Path, spec: Mapping[str, Any]) -> list[Measure]:
    limit = spec["limits"]["max"]
    measures = []
    with np.load(pack / spec["io"]) as io:
        sizes = sorted(int(m[1]) for name in io.files if (m := re.fullmatch(r"mask_(\d+)_u8", name)))
        latent_sizes = [int(m[1]) for name in io.files if (m := re.fullmatch(r"latent_mask_(\d+)", name))]
        for size in sizes:
            mask = load_fixed_mask(size)
            measures.append(
                Measure(f"mask {size}", difference(mask * 255, io[f"mask_{size}_u8"]).max(), limit * 255)
            )
            pixels = io[f"crop_{size}"].astype(np.float32) / 127.5 - 1.0
            if f"pixel_values_{size}" in io.files:
                worst = difference(pixels, io[f"pixel_values_{size}"]).max()
                measures.append(Measure(f"pixel values {size}", worst, limit))
            masked = (pixels.astype(np.float64) * mask).astype(np.float32)
            for name in io.files:
                if m := re.fullmatch(rf"masked_pixel_values_{size}(?:_rows(\d+)_(\d+))?", name):
                    rows = slice(*map(int, m.groups())) if m[1] else slice(None)
                    measures.append(Measure(name, difference(masked[..., rows, :], io[name]).max(), limit))
            for latent in latent_sizes:
                if size == 8 * latent:
                    ours = downsample_mask(mask, 8)[None, None]
                    worst = difference(ours, io[f"latent_mask_{latent}"]).max()
                    measures.append(Measure(f"latent mask {latent}", worst, limit))
    return measures
