"""Foreign checkpoints at the door: pure functions from what the files hold to our own key names.

U-Net    `{"state_dict": …, "global_step": …}`, or the bare state
VAE      the old names of the two mid-block attentions
Whisper  `{"dims": …, "model_state_dict": …}`, of which only the encoder is kept
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from whisper.model import ModelDimensions

from lipsync_engine.errors import ErrorCode, WeightsError

_OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def unet(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """State of `LatentSyncUNet` from `latentsync_unet.pt` or a bare state dict."""
    return _tensors(checkpoint.get("state_dict", checkpoint), "U-Net")


def vae(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """State of diffusers' AutoencoderKL; the published file may use the old attention names."""
    renamed: dict[str, Any] = {}
    for name, value in checkpoint.items():
        parts = name.split(".")
        if "attentions" in parts and len(parts) >= 2 and parts[-2] in _OLD_ATTENTION_NAMES:
            parts[-2] = _OLD_ATTENTION_NAMES[parts[-2]]
        renamed[".".join(parts)] = value
    return _tensors(renamed, "VAE")


def whisper_dims(checkpoint: Mapping[str, Any], config: Mapping[str, Any] | None) -> ModelDimensions:
    """Dimensions from the checkpoint itself, or from a config next to a bare state dict."""
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
            f"The Whisper file's `dims` are not understood ({error}): use OpenAI's own tiny.pt.",
        ) from error


def whisper_encoder(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """State of openai-whisper's AudioEncoder; the decoder is left out."""
    state = _tensors(checkpoint.get("model_state_dict", checkpoint), "Whisper")
    return {name.removeprefix("encoder."): t for name, t in state.items() if name.startswith("encoder.")}


def _tensors(state: Any, what: str) -> dict[str, Tensor]:
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(
            ErrorCode.WEIGHTS_ARCHITECTURE,
            f"The {what} file does not hold a state dict of tensors: it is another kind of file.",
        )
    return dict(state)
