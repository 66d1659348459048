"""Windows of the demo, faces that a model generates for them, and how alike two such results are."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from lipsync_engine import LipSyncPipeline, SyncParams
from lipsync_engine.models import LipSyncModel
from lipsync_engine.params import EXACT_SAMPLING, FastSampling
from tests.support.paths import DEMO_VIDEO, DEMO_VOICE


@dataclass(frozen=True)
class Mode:
    steps: int
    fast_sampling: FastSampling = EXACT_SAMPLING
    fp8: bool = False


@dataclass(frozen=True)
class Window:
    """What a model was asked for: float32 (F, 3, R, R) faces, (F, T, D) audio, (1, C, 1, h, w) noise."""

    faces: torch.Tensor
    audio: torch.Tensor
    noise: torch.Tensor


class Recorder:
    """A model that remembers the windows it is asked for."""

    def __init__(self, model: LipSyncModel) -> None:
        self._model = model
        self.windows: list[Window] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def denoise(self, faces: torch.Tensor, audio: torch.Tensor, *, noise: torch.Tensor, **rest: Any) -> Any:
        self.windows.append(Window(faces, audio, noise))
        return self._model.denoise(faces, audio, noise=noise, **rest)


def demo_windows(pipeline: LipSyncPipeline, count: int) -> list[Window]:
    """The first windows of the demo."""
    model, recorder = pipeline.model, Recorder(pipeline.model)
    pipeline.model = recorder  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        pipeline(
            DEMO_VIDEO,
            DEMO_VOICE,
            Path(folder) / "out.mp4",
            SyncParams(num_inference_steps=1),
        )
    pipeline.model = model
    return recorder.windows[:count]


def generate(model: LipSyncModel, window: Window, mode: Mode, guidance: float) -> tuple[np.ndarray, float]:
    """float32 (F, R, R, 3) 0..255 faces, and the processor seconds of denoising them."""
    began = time.process_time()
    latents = model.denoise(
        window.faces,
        window.audio,
        noise=window.noise,
        num_inference_steps=mode.steps,
        guidance_scale=guidance,
        fast_sampling=mode.fast_sampling,
    )
    took = time.process_time() - began
    faces = ((model.decode(latents).clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).float().cpu().numpy()
    return faces, took


def likeness(made: np.ndarray, wanted: np.ndarray, generated: np.ndarray) -> tuple[float, float]:
    """(PSNR in dB, mean SSIM) over the generated pixels of (F, R, R, 3) faces 0..255.

    SSIM: Wang et al. 2004, Gaussian window of sigma 1.5 on luma.
    """
    error = np.square(made - wanted)[:, generated].mean()
    scores = []
    for one, other in zip(made, wanted, strict=True):
        a, b = (cv2.cvtColor(face / 255, cv2.COLOR_RGB2GRAY) for face in (one, other))
        mean_a, mean_b = _blur(a), _blur(b)
        var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
        both = _blur(a * b) - mean_a * mean_b
        c1, c2 = 0.01**2, 0.03**2
        ssim = (2 * mean_a * mean_b + c1) * (2 * both + c2)
        ssim /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
        scores.append(ssim[generated].mean())
    return float(10 * np.log10(255**2 / max(error, 1e-9))), float(np.mean(scores))


def _blur(image: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(image, (11, 11), 1.5)
