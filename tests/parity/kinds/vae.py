"""Kind `vae`: posterior, sampled and scaled latents, decoded image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from lipsync_engine.models.latentsync import keys
from lipsync_engine.weights import load_strict
from tests.parity.harness import Measure, difference, tensors


def load(pack: Path, name: str) -> AutoencoderKL:
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(json.loads((pack / f"{name}.json").read_text()))
    load_strict(vae, keys.convert_vae(tensors(pack, f"{name}.safetensors")))
    return vae.eval()


@torch.inference_mode()
def check(pack: Path, spec: Mapping[str, Any]) -> list[Measure]:
    vae, io, limit = load(pack, spec["vae"]), tensors(pack, spec["io"]), spec["limits"]["max"]
    factor = vae.config.scaling_factor
    posterior = vae.encode(io["image"]).latent_dist
    latents = (posterior.mean + posterior.std * io["posterior_noise"]) * factor
    ours = {
        "posterior_mean": posterior.mean,
        "posterior_logvar": posterior.logvar,
        "latents_scaled": latents,
        "decoded": vae.decode(io["latents_scaled"] / factor).sample,
    }
    return [Measure(name, difference(value, io[name]).max(), limit) for name, value in ours.items()]
