"""LatentSync's fixed mask: which part of a face crop is kept and which is generated."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt


def load_fixed_mask(resolution: int) -> npt.NDArray[np.float64]:
    """Load the mask (R, R): 1 = keep, 0 = generate, soft edges if R is not 256 (parity pack, section 7)."""
    mask = cv2.imread(str(Path(__file__).with_name("mask_256.png")), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise FileNotFoundError("mask_256.png is missing from the installation: install the package again.")
    resized = cv2.resize(mask, (resolution, resolution), interpolation=cv2.INTER_LANCZOS4)
    return cast("npt.NDArray[np.float64]", resized.astype(np.float64) / 255.0)


def downsample_mask(mask: npt.NDArray[np.float64], factor: int) -> npt.NDArray[np.float64]:
    """Downsample the mask to latent size by nearest neighbour: (R, R) → (R // factor, R // factor)."""
    return mask[::factor, ::factor]
