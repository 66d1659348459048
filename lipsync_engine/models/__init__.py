"""Model families: what a lip-sync model must offer, and a lazy registry of those that exist.

A new family is one folder and one line in `FAMILIES`. `image_to_video` is no lip-sync model: it gives a still
portrait something to do. Nothing here knows video files or command lines.
"""

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
from lipsync_engine.params import EXACT, Shortcuts
from lipsync_engine.weights import ModelEntry, WeightsStore

IMAGE_TO_VIDEO = "image-to-video"
"""Family of the manifest's entries that `image_to_video` loads."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a caller must know about a loaded model.

    Attributes:
        name, family: as in the manifest.
        resolution: side R of the square face crop, pixels.
        window_frames: frames that the model sees together.
        audio_context: steps of 40 ms before and after a frame that it hears.
        num_inference_steps, guidance_scale: its defaults.
        weights_sha256: one hash over all its files.
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
    """A loaded model, for any number of threads. Faces are float32 (F, 3, R, R) in [-1, 1], F from 1 to
    `info.window_frames`.

    Attributes:
        dtype: of latents.
        precision: number formats that decide its results, as these name them.
    """

    info: ModelInfo
    device: torch.device
    dtype: torch.dtype
    precision: str
    audio_encoder: nn.Module
    keep_mask: npt.NDArray[np.float32]

    def initial_noise(self, seed: int) -> Tensor:
        """The start of every window of a job: (1, C, 1, h, w) on the model's device in its dtype."""

    def denoise(
        self,
        faces: Tensor,
        audio: Tensor,
        *,
        noise: Tensor,
        num_inference_steps: int,
        guidance_scale: float,
        posterior_noise: tuple[Tensor, Tensor] | None = None,
        shortcuts: Shortcuts = EXACT,
    ) -> Tensor:
        """Latents (F, C, h, w) of the generated faces.

        Args:
            faces: what the source shows.
            audio: (F, T, D) tokens that each frame hears.
            noise: from `initial_noise`.
            num_inference_steps: evaluations of the network.
            guidance_scale: above 1 the network also runs without sound, and the difference is enlarged.
            posterior_noise: (F, C, h, w) draws for the masked and the reference faces; None takes the mean.
            shortcuts: what may be left out.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Faces (F, 3, R, R) from latents (F, C, h, w); not clamped."""

    def to_float8(self) -> None:
        """Compute in eight-bit floating point where that pays, from now on; before `compile`."""

    def compile(self, cache_dir: Path) -> None:
        """Let full windows run as compiled code: minutes at first, then seconds, by what lies in `cache_dir`.

        Where that cannot be done it is said in the log, and all runs as before.
        """

    def warm_up(self) -> None:
        """Make a window of nothing, so that the first job does not pay for what is made at first use."""


Loader = Callable[[ModelEntry, Mapping[str, Path], str, torch.device, torch.dtype], LipSyncModel]

FAMILIES: Mapping[str, tuple[str, str]] = {
    "latentsync": ("lipsync_engine.models.latentsync.model", "load"),
}
"""Family → (module, function); imported on first use."""


def load_model(name: str, *, device: torch.device, dtype: torch.dtype, store: WeightsStore) -> LipSyncModel:
    """Load a model of the manifest.

    Raises:
        WeightsError: unknown name, missing or damaged files, or files of another architecture.
    """
    entry = store.entry(name)
    if entry.family not in FAMILIES:
        raise _wrong_family(entry, "lip-sync", FAMILIES, store)
    module, function = FAMILIES[entry.family]
    load = cast(Loader, getattr(importlib.import_module(module), function))
    return load(entry, store.files(name), store.weights_sha256(name), device, dtype)


def image_to_video_entry(name: str | None, store: WeightsStore) -> ModelEntry:
    """The model of that name that makes clips from pictures; None: the manifest's first.

    Raises:
        WeightsError: MODEL_UNKNOWN.
    """
    listed = [entry for entry in store.entries() if entry.family == IMAGE_TO_VIDEO]
    if name is None and not listed:
        raise WeightsError(
            ErrorCode.MODEL_UNKNOWN, "The list of models has none that makes a clip from a picture."
        )
    entry = listed[0] if name is None else store.entry(name)
    if entry.family != IMAGE_TO_VIDEO:
        raise _wrong_family(entry, IMAGE_TO_VIDEO, (IMAGE_TO_VIDEO,), store)
    return entry


def _wrong_family(
    entry: ModelEntry, wanted: str, families: Container[str], store: WeightsStore
) -> WeightsError:
    known = ", ".join(other.name for other in store.entries() if other.family in families)
    return WeightsError(
        ErrorCode.MODEL_UNKNOWN, f"{entry.name} ({entry.family}) is no {wanted} model: use one of {known}."
    )
