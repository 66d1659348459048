"""The protocol of a lip-sync model, and a lazy registry of model families."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lipsync_engine.errors import ErrorCode, WeightsError
from lipsync_engine.params import EXACT_SAMPLING, FastSampling
from lipsync_engine.weights import ModelEntry, WeightsStore

IMAGE_TO_VIDEO = "image-to-video"
"""Manifest family of the models that `image_to_video` loads."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Facts about a loaded model.

    Attributes:
        name, family: as in the manifest.
        resolution: side R of the square face crop, pixels.
        window_frames: frames that are denoised together.
        audio_context: steps of 40 ms before and after a frame whose audio conditions it.
        num_inference_steps, guidance_scale: defaults.
        weights_sha256: one hash over all files of the model.
    """

    name: str
    family: str
    resolution: int
    window_frames: int
    audio_context: tuple[int, int]
    num_inference_steps: int
    guidance_scale: float
    weights_sha256: str


class LipSyncModel(Protocol):
    """A loaded model that any number of threads may use.

    Faces are float32 (F, 3, R, R) in [-1, 1], with F from 1 to `info.window_frames`.

    Attributes:
        dtype: of latents.
        precision: the number formats that affect the results, for example `float16 fp8`.
    """

    info: ModelInfo
    device: torch.device
    dtype: torch.dtype
    precision: str
    audio_encoder: nn.Module
    keep_mask: npt.NDArray[np.float32]

    def initial_noise(self, seed: int) -> Tensor:
        """Draw the initial noise of a job, (1, C, 1, h, w), which all its windows share."""

    def denoise(
        self,
        faces: Tensor,
        audio: Tensor,
        *,
        noise: Tensor,
        num_inference_steps: int,
        guidance_scale: float,
        posterior_noise: tuple[Tensor, Tensor] | None = None,
        fast_sampling: FastSampling = EXACT_SAMPLING,
    ) -> Tensor:
        """Generate a window of faces and return its latents (F, C, h, w).

        Args:
            faces: aligned faces of the source.
            audio: (F, T, D) audio tokens of each frame.
            noise: from `initial_noise`.
            num_inference_steps: denoising steps.
            guidance_scale: of classifier-free guidance; 1 and below: no guidance.
            posterior_noise: (F, C, h, w) draws for the masked and the reference faces; None: the posterior
                mean.
            shortcuts: solver, feature cache and guidance interval.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (F, C, h, w) to faces (F, 3, R, R), which are not clamped."""

    def to_float8(self) -> None:
        """Quantize the layers that gain from FP8; call it before `compile`."""

    def compile(self, cache_dir: Path) -> None:
        """Compile the network for full windows: minutes the first time, then seconds from `cache_dir`.

        If it fails, a warning is logged and the network runs uncompiled.
        """

    def warm_up(self) -> None:
        """Denoise and decode a window of zeros, so that the first job pays no initialisation."""


Loader = Callable[[ModelEntry, Mapping[str, Path], str, torch.device, torch.dtype], LipSyncModel]

FAMILIES: Mapping[str, tuple[str, str]] = {
    "latentsync": ("lipsync_engine.models.latentsync.model", "load_latentsync"),
}
"""Family → (module, function); imported on first use."""


def load_model(name: str, *, device: torch.device, dtype: torch.dtype, store: WeightsStore) -> LipSyncModel:
    """Load a model of the manifest.

    Raises:
        WeightsError: the name is unknown, files are missing or damaged, or have another architecture.
    """
    entry = store.entry(name)
    if entry.family not in FAMILIES:
        raise _wrong_family_error(entry, "lip-sync", FAMILIES, store)
    module, function = FAMILIES[entry.family]
    load = cast(Loader, getattr(importlib.import_module(module), function))
    return load(entry, store.verified_files(name), store.weights_sha256(name), device, dtype)


def find_image_to_video_entry(name: str | None, store: WeightsStore) -> ModelEntry:
    """Find an image-to-video model of the manifest by name; None: the first one.

    Raises:
        WeightsError: MODEL_UNKNOWN.
    """
    candidates = [entry for entry in store.entries() if entry.family == IMAGE_TO_VIDEO]
    if name is None and not candidates:
        raise WeightsError(
            ErrorCode.MODEL_UNKNOWN,
            "The manifest has no image-to-video model: use motion=natural.",
        )
    entry = candidates[0] if name is None else store.entry(name)
    if entry.family != IMAGE_TO_VIDEO:
        raise _wrong_family_error(entry, IMAGE_TO_VIDEO, (IMAGE_TO_VIDEO,), store)
    return entry


def _wrong_family_error(
    entry: ModelEntry, kind: str, families: Container[str], store: WeightsStore
) -> WeightsError:
    names = ", ".join(other.name for other in store.entries() if other.family in families)
    return WeightsError(
        ErrorCode.MODEL_UNKNOWN,
        f"{entry.name} ({entry.family}) is not a model for {kind}: use one of {names}.",
    )
