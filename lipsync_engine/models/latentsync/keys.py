"""Conversion of published checkpoints to this package's key names; pure functions.

U-Net    `{"state_dict": …, "global_step": …}`, or a bare state dict
VAE      old or new names of the two mid-block attentions
Whisper  `{"dims": …, "model_state_dict": …}`, of which only the encoder is used
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from whisper.model import ModelDimensions

from lipsync_engine.errors import ErrorCode, WeightsError

_OLD_ATTENTION_KEYS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def convert_unet(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the state of `LatentSyncUNet` from `latentsync_unet.pt` or a bare state dict."""
    return _require_tensors(checkpoint.get("state_dict", checkpoint), "U-Net")


def convert_vae(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the state of diffusers' AutoencoderKL; the published file may use the old attention names."""
    renamed: dict[str, Any] = {}
    for name, value in checkpoint.items():
        parts = name.split(".")
        if "attentions" in parts and len(parts) >= 2 and parts[-2] in _OLD_ATTENTION_KEYS:
            parts[-2] = _OLD_ATTENTION_KEYS[parts[-2]]
        renamed[".".join(parts)] = value
    return _require_tensors(renamed, "VAE")


def parse_whisper_dims(checkpoint: Mapping[str, Any], config: Mapping[str, Any] | None) -> ModelDimensions:
    """Read the dimensions from the checkpoint itself, or from the config of a bare state dict."""
    fields = config if config is not None else checkpoint.get("dims")
    if not isinstance(fields, Mapping):
        raise WeightsError(
            ErrorCode.WEIGHTS_ARCHITECTURE,
            "The Whisper file has no `dims`: use OpenAI's own tiny.pt, not a converted copy.",
        )
    try:
        return ModelDimensions(**fields)
    except TypeError as error:
        raise WeightsError(
            ErrorCode.WEIGHTS_ARCHITECTURE,
            f"The Whisper file has unknown `dims` ({error}): use OpenAI's own tiny.pt.",
        ) from error


def convert_whisper_encoder(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the state of openai-whisper's AudioEncoder, without the decoder."""
    state = _require_tensors(checkpoint.get("model_state_dict", checkpoint), "Whisper")
    return {name.removeprefix("encoder."): t for name, t in state.items() if name.startswith("encoder.")}


def _require_tensors(state: Any, file_kind: str) -> dict[str, Tensor]:
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(
            ErrorCode.WEIGHTS_ARCHITECTURE,
            f"The {file_kind} file does not contain a state dict of tensors: get the published file.",
        )
    return dict(state)
