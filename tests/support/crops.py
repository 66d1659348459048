"""Images, faces and masks for tests of crops."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


def natural_picture(height: int, width: int, seed: int = 0) -> Array:
    """Noise with the spectrum of photographs (amplitude ~ 1 / frequency) behind a lens of 1 pixel blur."""
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    radius = np.maximum(np.hypot(fy, fx), 1 / max(height, width))
    planes = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(height, width))) / radius).real for _ in range(3)]
    picture = np.stack([plane / plane.std() for plane in planes], axis=-1)
    return cv2.GaussianBlur(np.clip(128 + 45 * picture, 0, 255), (0, 0), 1.0).astype(np.float32)


def face_points(centre: tuple[float, float], brow_distance: float, turn: float = 0.0) -> Array:
    """Brows and nose of an upright face of template proportions, turned about the brows' middle."""
    across = np.array([math.cos(turn), math.sin(turn)])
    down = np.array([-across[1], across[0]])
    middle, half = np.array(centre), brow_distance / 2
    nose = middle + down * brow_distance * 20 / 41
    return np.stack([middle - across * half, middle + across * half, nose]).astype(np.float32)


def keep_mask(resolution: int) -> Array:
    """A mask of the model's kind: cheeks and mouth generated, nose and all borders kept."""
    mask = np.ones((resolution, resolution), dtype=np.float32)
    side, top, nose, bottom = (round(share * resolution) for share in (0.036, 0.37, 0.5, 0.94))
    mask[top:bottom, side : resolution - side] = 0
    mask[top:nose, round(0.3 * resolution) : round(0.7 * resolution)] = 1
    return mask


def psnr(a: Array, b: Array) -> float:
    return 10 * math.log10(255**2 / float(np.mean((a - b) ** 2)))
