"""SyncNet (Chung and Zisserman, "Out of time", 2016): a face tower and an audio tower.

Each tower embeds 0.2 s as a vector. Vectors of a mouth and of the speech that it produces are close together.
Layer order and key names are those of the published `syncnet_v2.model`, so that its files load unchanged.
Widths and face size are configurable, for smaller networks of the same form.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from lipsync_engine.errors import ErrorCode, WeightsError
from lipsync_engine.weights import load_strict, read_checkpoint

CLIP_FRAMES = 5
"""Frames per input of the face tower, at 25 per second."""

CLIP_STEPS = 20
"""MFCC columns per input of the audio tower, at 100 per second."""

COEFFICIENTS = 13
"""MFCC coefficients per column."""


@dataclass(frozen=True, slots=True)
class SyncConfig:
    """Sizes of a SyncNet; the defaults are the published network's.

    The field names are the keys of its JSON file.

    Attributes:
        side: of the square faces, pixels.
        voice_widths, face_widths: channels of the six convolutions of each tower.
        hidden: width of the layer after them.
        embedding: length of the vectors.
    """

    side: int = 224
    voice_widths: tuple[int, int, int, int, int, int] = (64, 192, 384, 256, 256, 512)
    face_widths: tuple[int, int, int, int, int, int] = (96, 256, 256, 256, 256, 512)
    hidden: int = 512
    embedding: int = 1024


class SyncNet(nn.Module):
    """The two towers of SyncNet; the module names are the published file's."""

    def __init__(self, config: SyncConfig) -> None:
        super().__init__()
        self.config = config
        self.netcnnaud = _build_audio_tower(config.voice_widths)
        self.netfcaud = _build_head(config.voice_widths[-1], config)
        self.netcnnlip = _build_face_tower(config.face_widths, _last_kernel_size(config.side))
        self.netfclip = _build_head(config.face_widths[-1], config)

    def embed_audio(self, mfcc: Tensor) -> Tensor:
        """Embed MFCC (B, 1, 13, 20) → (B, embedding)."""
        out: Tensor = self.netfcaud(self.netcnnaud(mfcc).flatten(1))
        return out

    def embed_faces(self, faces: Tensor) -> Tensor:
        """Embed faces (B, 3, T, side, side), BGR, 0..255 → (B, T - 4, embedding), one per five frames.

        Only the first layer spans time, so overlapping clips share all other computation.
        """
        features = self.netcnnlip(faces).flatten(2).transpose(1, 2)  # (B, T - 4, width)
        out: Tensor = self.netfclip(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        return out


def _build_audio_tower(widths: tuple[int, ...]) -> nn.Sequential:
    a, b, c, d, e, f = widths
    return nn.Sequential(
        *_conv2d(1, a, 3, 1),
        nn.MaxPool2d(1),  # keeps the layer numbers of the published file
        *_conv2d(a, b, 3, 1),
        nn.MaxPool2d(3, stride=(1, 2)),
        *_conv2d(b, c, 3, 1),
        *_conv2d(c, d, 3, 1),
        *_conv2d(d, e, 3, 1),
        nn.MaxPool2d(3, stride=2),
        *_conv2d(e, f, (5, 4), 0),
    )


def _build_face_tower(widths: tuple[int, ...], last_kernel: int) -> nn.Sequential:
    a, b, c, d, e, f = widths
    return nn.Sequential(
        *_conv3d(3, a, (CLIP_FRAMES, 7, 7), 2, 0),
        nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2)),
        *_conv3d(a, b, (1, 5, 5), 2, 1),
        nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        *_conv3d(b, c, (1, 3, 3), 1, 1),
        *_conv3d(c, d, (1, 3, 3), 1, 1),
        *_conv3d(d, e, (1, 3, 3), 1, 1),
        nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2)),
        *_conv3d(e, f, (1, last_kernel, last_kernel), 1, 0),
    )


def _conv2d(before: int, after: int, kernel: int | tuple[int, int], padding: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, after, kernel, padding=padding), nn.BatchNorm2d(after), nn.ReLU()


def _conv3d(
    before: int, after: int, kernel: tuple[int, int, int], stride: int, padding: int
) -> tuple[nn.Module, ...]:
    conv = nn.Conv3d(before, after, kernel, (1, stride, stride), (0, padding, padding))
    return conv, nn.BatchNorm3d(after), nn.ReLU()


def _build_head(before: int, config: SyncConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(before, config.hidden),
        nn.BatchNorm1d(config.hidden),
        nn.ReLU(),
        nn.Linear(config.hidden, config.embedding),
    )


def _last_kernel_size(side: int) -> int:
    """Return the side of the features before the last convolution: 6 for faces of 224 pixels."""
    for kernel, stride, padding in ((7, 2, 0), (3, 2, 0), (5, 2, 1), (3, 2, 1), (3, 2, 0)):
        side = (side + 2 * padding - kernel) // stride + 1
    if side < 1:
        raise WeightsError(
            ErrorCode.WEIGHTS_ARCHITECTURE,
            "The face size of the sync score model is too small for its network: get the files that `lipsync "
            "weights list` names.",
        )
    return side


def load_sync_net(files: Mapping[str, Path]) -> SyncNet:
    """Load a SyncNet in float32 on the CPU.

    Args:
        files: `sync`, a state dict; `sync_config` (JSON of `SyncConfig`) if its sizes are not the published
            ones.

    Raises:
        WeightsError: the files are damaged, or have another architecture.
    """
    config = SyncConfig()
    if "sync_config" in files:
        try:
            config = TypeAdapter(SyncConfig).validate_json(files["sync_config"].read_bytes())
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            raise WeightsError(
                ErrorCode.WEIGHTS_ARCHITECTURE,
                f"{files['sync_config'].name} does not describe a SyncNet ({problem['loc']}: "
                f"{problem['msg']}): get the files that `lipsync weights list` names.",
            ) from error
    with torch.device("meta"):
        net = SyncNet(config)
    # The published file lacks this counter, which only training uses.
    counters = {key: torch.tensor(0) for key in net.state_dict() if key.endswith("num_batches_tracked")}
    load_strict(net, read_checkpoint(files["sync"]), recomputable=counters)
    return net.float().eval().requires_grad_(False)


def dump_config(config: SyncConfig) -> str:
    """Serialise a configuration as `load_sync_net` reads it."""
    return json.dumps(dataclasses.asdict(config), indent=1) + "\n"
