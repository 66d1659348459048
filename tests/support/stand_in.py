"""A model that does nothing clever, for measuring and testing everything around a model at real sizes.

It hands the source's own face back, a little blurred, so that long or large jobs take minutes instead of
hours. Its tensors have the size of a real model's at 256 pixels.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch.nn import functional

from lipsync_engine.models import LipSyncModel, load_model
from lipsync_engine.models.latentsync.mask import load_fixed_mask
from lipsync_engine.weights import WeightsStore

RESOLUTION = 256


class StandIn:
    """See `lipsync_engine.models.LipSyncModel`. The audio encoder is the tiny model's."""

    def __init__(self) -> None:
        real: LipSyncModel = load_model(
            "tiny", device=torch.device("cpu"), dtype=torch.float32, store=WeightsStore()
        )
        self.info = dataclasses.replace(real.info, name="stand-in", resolution=RESOLUTION)
        self.device, self.dtype, self.precision = real.device, real.dtype, real.precision
        self.audio_encoder = real.audio_encoder
        self.keep_mask = load_fixed_mask(RESOLUTION).astype(np.float32)

    def initial_noise(self, seed: int) -> torch.Tensor:
        return torch.zeros(1, 4, 1, 32, 32)

    def denoise(self, faces: torch.Tensor, audio: torch.Tensor, **options: object) -> torch.Tensor:
        return functional.avg_pool2d(faces, 7, stride=1, padding=3, count_include_pad=False)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents
