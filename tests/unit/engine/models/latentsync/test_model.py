"""Tests of LatentSync's configuration: valid files with unsupported settings, or of different models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from whisper.model import AudioEncoder

from lipsync_engine.errors import ErrorCode, WeightsError
from lipsync_engine.models.latentsync import keys
from lipsync_engine.models.latentsync.config import RunConfig, UNetConfig
from lipsync_engine.models.latentsync.model import LatentSync, load_latentsync
from lipsync_engine.weights import WeightsStore
from tests.parity.harness import PACK_SMALL
from tests.support.paths import ROOT

Json = dict[str, Any]
TINY = json.loads((ROOT / "weights" / "tiny" / "unet_config.json").read_text())
MOTION = TINY["motion_module_kwargs"]


def motion(**change: Any) -> Json:
    return {"motion_module_kwargs": {**MOTION, **change}}


def test_unsupported_unet_setting_is_named_in_error(subtests: pytest.Subtests) -> None:
    for change, pattern in [
        (motion(temporal_position_encoding=False), "temporal_position_encoding"),
        (motion(num_transformer_block=2), "num_transformer_block"),
        (motion(attention_block_types=["Temporal_Self", "Temporal_Cross"]), "attention_block_types"),
        (motion(temporal_attention_dim_div=2), "temporal_attention_dim_div"),
        (motion(cross_frame_attention_mode="x"), "cross_frame_attention_mode"),
        ({"motion_module_type": "Other"}, "motion_module_type"),
        ({"motion_module_resolutions": [1, 2]}, "motion_module_resolutions"),
        ({"motion_module_mid_block": True}, "motion_module_mid_block"),
        ({"down_block_types": ["DownBlock3D"] * 4}, "down_block_types"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        ({"mid_block_scale_factor": 2}, "mid_block_scale_factor"),
        ({"freq_shift": 1}, "freq_shift"),
        ({"only_cross_attention": True}, "only_cross_attention"),
        ({"norm_num_groups": 24}, "norm_num_groups"),
        ({"layers_per_block": 0}, "layers_per_block"),
    ]:
        with subtests.test(change=change, pattern=pattern):
            with pytest.raises(WeightsError, match=pattern) as error:
                UNetConfig.from_published({**TINY, **change})
            assert error.value.code is ErrorCode.WEIGHTS_ARCHITECTURE


def test_training_settings_are_ignored() -> None:
    fields = {**TINY, **motion(zero_initialize=False), "sample_size": 64, "use_linear_projection": False}
    assert UNetConfig.from_published(fields) == UNetConfig.from_published(TINY)


def test_invalid_run_setting_is_named_in_error(subtests: pytest.Subtests) -> None:
    for fields, pattern in [
        ({"scheduler": {"prediction_type": "flow"}}, "scheduler.prediction_type"),
        ({"scheduler": {"timestep_spacing": "karras"}}, "scheduler.timestep_spacing"),
        ({"scheduler": {"beta_schedule": "cosine"}}, "scheduler.beta_schedule"),
        ({"scheduler": {"num_train_timesteps": 0}}, "scheduler.num_train_timesteps"),
        ({"scheduler": {"thresholding": True}}, "scheduler.thresholding"),
        ({"window_frames": 0}, "window_frames"),
        ({"num_inference_steps": "many"}, "num_inference_steps"),
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"vae_scaling_factor": 0}, "vae_scaling_factor"),
        ({"audio_context": [2]}, "audio_context"),
        ({"mixed_noise_alpha": 1.0}, "mixed_noise_alpha"),
    ]:
        with subtests.test(fields=fields, pattern=pattern):
            with pytest.raises(WeightsError, match=pattern) as error:
                RunConfig.parse(fields)
            assert error.value.code is ErrorCode.WEIGHTS_ARCHITECTURE


# --- the tiny model's own files, one of them changed ---

Load = Callable[..., LatentSync]


@pytest.fixture
def load_with(tmp_path: Path) -> Load:
    """Load the tiny model with a JSON file replaced: `load_with(vae_config={...changed fields})`."""
    store = WeightsStore()

    def load_changed(**changes: Json) -> LatentSync:
        files = dict(store.verified_files("tiny"))
        for role, change in changes.items():
            content = {**json.loads(files[role].read_text()), **change}
            files[role] = tmp_path / f"{role}.json"
            files[role].write_text(json.dumps(content))
        return load_latentsync(store.entry("tiny"), files, "0" * 64, torch.device("cpu"), torch.float32)

    return load_changed


def test_unchanged_files_load(load_with: Load) -> None:
    assert load_with().info.name == "tiny"


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"unet_config": {"cross_attention_dim": 384}}, "384"),
        ({"unet_config": {"in_channels": 9}}, "9 input"),
        ({"unet_config": {"block_out_channels": [64, 64, 64, 64]}}, "conv_in"),
        ({"model_config": {"window_frames": 25}}, "25 frames"),
        ({"vae_config": {"block_out_channels": [32, 32]}}, "vae_config"),
        ({"vae_config": {"latent_channels": 8}}, "latent|25 and 8"),
        ({"whisper_config": {"n_audio_state": 48}}, "whisper|48"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_of_different_models_are_rejected(changes: Json, pattern: str, load_with: Load) -> None:
    with pytest.raises(WeightsError, match=pattern) as error:
        load_with(**changes)
    assert error.value.code is ErrorCode.WEIGHTS_ARCHITECTURE


def test_invalid_json_file_is_named_in_error(tmp_path: Path) -> None:
    store = WeightsStore()
    broken = tmp_path / "model_config.json"
    broken.write_text("{")
    files = {**store.verified_files("tiny"), "model_config": broken}
    with pytest.raises(WeightsError, match=r"model_config\.json is not JSON"):
        load_latentsync(store.entry("tiny"), files, "0" * 64, torch.device("cpu"), torch.float32)


# --- the published checkpoints, by key and shape ---


def read_published_state(name: str) -> dict[str, Tensor]:
    published = json.loads((PACK_SMALL / name).read_text())
    return {key: torch.empty(shape, device="meta") for key, (shape, _) in published.items()}


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


@pytest.mark.parametrize("old_names", [False, True])
def test_vae_has_every_published_key_and_shape(old_names: bool) -> None:
    published = read_published_state("vae_sd_ft_mse_keys.json")
    with torch.device("meta"):
        config = json.loads((PACK_SMALL / "vae_sd_ft_mse_config.json").read_text())
        vae = AutoencoderKL.from_config(config).state_dict()
    if old_names:
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for new, old in names.items():
            published = {
                key.replace(f".{new}.", f".{old}.") if ".attentions." in key else key: tensor
                for key, tensor in published.items()
            }
        assert any(".proj_attn." in key for key in published)
    assert shapes(keys.convert_vae(published)) == shapes(vae)


def test_audio_encoder_has_every_published_key_and_shape() -> None:
    published = read_published_state("whisper_tiny_keys.json")
    with torch.device("meta"):
        encoder = AudioEncoder(80, 1500, 384, 6, 4).state_dict()
    assert shapes(keys.convert_whisper_encoder(published)) == shapes(encoder)
