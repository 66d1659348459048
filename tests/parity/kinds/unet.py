"""Kind `unet`: single evaluations in float32 and float64. Cases are the prefixes of the io file's keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from harness import Measure, difference, tensors

from lipsync_engine.models.latentsync.config import UNetConfig
from lipsync_engine.models.latentsync.unet import LatentSyncUNet
from lipsync_engine.weights import load_strict


def load(pack: Path, name: str) -> LatentSyncUNet:
    with torch.device("meta"):
        unet = LatentSyncUNet(UNetConfig.from_published(json.loads((pack / f"{name}.json").read_text())))
    load_strict(unet, tensors(pack, f"{name}.safetensors"))
    return unet.eval()


@torch.inference_mode()
def check(pack: Path, spec: Mapping[str, Any]) -> list[Measure]:
    unet, io, limits = load(pack, spec["unet"]), tensors(pack, spec["io"]), spec["limits"]
    measures = []
    for case in sorted({name.split(".")[0] for name in io}):
        sample, timestep, audio = (io[f"{case}.{n}"] for n in ("sample", "timestep", "encoder_hidden_states"))
        worst = difference(unet(sample, timestep, audio), io[f"{case}.output"])
        measures.append(Measure(f"{case} float32 max", worst.max(), limits["f32_max"]))
        measures.append(Measure(f"{case} float32 mean", worst.mean(), limits["f32_mean"]))
    unet = unet.double()
    for case in sorted({name.split(".")[0] for name in io}):
        sample, timestep, audio = (io[f"{case}.{n}"] for n in ("sample", "timestep", "encoder_hidden_states"))
        worst = difference(unet(sample.double(), timestep, audio.double()), io[f"{case}.output_f64"])
        measures.append(Measure(f"{case} float64 max", worst.max(), limits["f64_max"]))
    return measures
