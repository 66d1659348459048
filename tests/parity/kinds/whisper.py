"""Kind `whisper`: log-mel, hidden states and frame windows of each recording, in the reference's pieces."""

from __future__ import annotations

import json
import wave
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from whisper.model import AudioEncoder

from lipsync_engine.audio import features as audio_features
from lipsync_engine.models.latentsync import keys
from lipsync_engine.weights import load_strict
from tests.parity.harness import Measure, difference, tensors


def load(pack: Path, name: str) -> AudioEncoder:
    state = tensors(pack, f"{name}.safetensors")
    dims = keys.parse_whisper_dims(state, json.loads((pack / f"{name}.json").read_text()))
    with torch.device("meta"):
        encoder = AudioEncoder(
            dims.n_mels, dims.n_audio_ctx, dims.n_audio_state, dims.n_audio_head, dims.n_audio_layer
        )
    load_strict(encoder, keys.convert_whisper_encoder(state))
    return encoder.eval()


def samples(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16)


def extract_features(
    pack: Path, wav: str, encoder: AudioEncoder, folder: Path
) -> tuple[audio_features.Mel, audio_features.AudioFeatures]:
    writer = audio_features.MelWriter(folder / "mel", encoder.conv1.weight.shape[1])
    for part in np.array_split(samples(pack / wav), 7):
        writer.add(part)
    mel = writer.finish()
    steps = audio_features.encode_mel(mel, encoder, folder / "features", reference=True)
    for _ in steps:
        pass
    return mel, audio_features.AudioFeatures.open(folder / "features")


def check(pack: Path, spec: Mapping[str, Any]) -> list[Measure]:
    limit, relative = spec["limits"]["max"], spec["limits"]["sum_relative"]
    encoder, io = load(pack, spec["whisper"]), tensors(pack, spec["io"])
    summary = json.loads((pack / spec["summary"]).read_text())
    measures = []
    for case, wav in spec["wav"].items():
        with TemporaryDirectory() as folder:
            mel, features = extract_features(pack, wav, encoder, Path(folder))
            n_windows = summary[case]["num_windows"]
            states = features.rows(0, features.length)
            windows = audio_features.frame_windows(features, np.arange(n_windows) / 25.0).numpy()
            log_mel = mel.read(0, mel.frames)
        counts = {
            "samples": mel.n_samples,
            "mel_frames": mel.frames,
            "feature_len": features.length,
            "num_windows": features.length // 2 + 2,
        }
        wrong = sum(summary[case][name] != value for name, value in counts.items())
        measures.append(Measure(f"{case} counts", wrong, 0))
        for kind, values in (("features", states), ("windows", windows)):
            total = np.abs(values.astype(np.float64)).sum()
            stored = summary[case][f"{kind}_abs_sum"]
            measures.append(Measure(f"{case} {kind} sum", abs(total - stored) / stored, relative))
        ours = {"log_mel": log_mel, "log_mel_colmean": log_mel.mean(axis=0), "features": states}
        if f"{case}.feature_index" in io:
            ours["features_at_index"] = states[io[f"{case}.feature_index"]]
        if f"{case}.window_index" in io:
            ours["windows"] = windows[io[f"{case}.window_index"]]
        for name, value in ours.items():
            if f"{case}.{name}" in io:
                worst = difference(value, io[f"{case}.{name}"]).max()
                measures.append(Measure(f"{case} {name}", worst, limit))
    return measures
