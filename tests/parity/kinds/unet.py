"""Kind `unet`: single forward passes in float32 and float64. The prefixes of the keys are the cases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lipsync_engine.models.latentsync.config import UNetConfig
from lipsync_engine.models.latentsync.unet import LatentSyncUNet
from lipsync_engine.weights import load_strict
from tests.parity.harness import Measure, difference, tensors


def load(pack: Path, name: str) -> LatentSyncUNet:
    with torch.device("meta"):
        unet = LatentSyncUNet(UNetConfig.from_published(json.loads((pack / f"{name}.json").read_text())))
    load_strict(unet, tensors(pack, f"{name}.safetensors"))
    return unet.eval()


@torch.inference_mode()
def check(pack: Path, spec: Mapping[str, Any]) -> list[Measure]:
    unet, io, limits = load(pack, spec["unet"]), tensors(pack, spec["io"]), spec["limits"]
    cases = sorted({name.rpartition(".")[0] for name in io})
    measures = []
    for dtype, output in ((torch.float32, "output"), (torch.float64, "output_f64")):
        unet = unet.to(dtype)
        for case in cases:
            sample, audio = (io[f"{case}.{name}"].to(dtype) for name in ("sample", "encoder_hidden_states"))
            worst = difference(unet(sample, io[f"{case}.timestep"], audio), io[f"{case}.{output}"])
            if dtype is torch.float64:
                measures.append(Measure(f"{case} float64 max", worst.max(), limits["f64_max"]))
            else:
                measures.append(Measure(f"{case} float32 max", worst.max(), limits["f32_max"]))
                measures.append(Measure(f"{case} float32 mean", worst.mean(), limits["f32_mean"]))
    return measures
