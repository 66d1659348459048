"""Silero VAD: our torch modules compute what ONNX Runtime computes from the same file."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from lipsync_engine.audio import silero
from lipsync_engine.errors import ErrorCode, WeightsError
from lipsync_engine.weights import WeightsStore
from tests.support.paths import DEMO_VOICE

torch.set_num_threads(1)


def read_wav(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768


def probabilities_of_onnx_runtime(samples: np.ndarray) -> np.ndarray:
    """Run the published file window by window, as its own package does."""
    session = onnxruntime.InferenceSession(
        WeightsStore().verified_files("silero-vad")["vad"], providers=["CPUExecutionProvider"]
    )
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros((1, 64), np.float32)
    probabilities = []
    for window in samples.reshape(-1, 1, 512):
        inputs = np.concatenate([context, window], axis=1)
        output, state = session.run(None, {"input": inputs, "state": state, "sr": np.array(16000, np.int64)})
        probabilities.append(output.item())
        context = inputs[:, -64:]
    return np.array(probabilities)


@pytest.mark.parametrize("kind", ["voice", "voice in noise", "noise", "square wave", "silence"])
def test_probabilities_equal_those_of_onnx_runtime(kind: str) -> None:
    voice = read_wav(DEMO_VOICE)
    voice = voice[: len(voice) // 512 * 512]
    noise = np.random.default_rng(0).standard_normal(len(voice)).astype(np.float32)
    samples = {
        "voice": voice,
        "voice in noise": voice + 0.1 * noise,
        "noise": 0.3 * noise.clip(-3, 3),
        "square wave": np.sign(np.sin(np.arange(len(voice)) * 0.05)).astype(np.float32),
        "silence": np.zeros_like(voice),
    }[kind]
    network = silero.load_silero()
    half = len(samples) // 1024 * 512
    padded = torch.from_numpy(np.concatenate([np.zeros(64, np.float32), samples]))
    first, state = network(padded[: 64 + half])
    second, _ = network(padded[half:], state)
    expected = probabilities_of_onnx_runtime(samples)
    assert np.abs(torch.cat([first, second]).numpy() - expected).max() < 1e-4
    if kind == "voice":
        assert expected.max() > 0.99


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x3a\x00", b"\x3a\x02\x0a\x00"])
def test_another_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "vad.onnx").write_bytes(content)
    manifest = tmp_path / "manifest.toml"
    manifest.write_text(
        '[models.silero-vad]\ntitle = "x"\nfamily = "component"\nlicence = "MIT"\ncommercial = "yes"\n'
        'source = "x"\n[[models.silero-vad.files]]\nrole = "vad"\npath = "vad.onnx"\n'
    )
    with pytest.raises(WeightsError) as error:
        silero.load_silero(WeightsStore(tmp_path / "store", manifest))
    assert error.value.code is ErrorCode.WEIGHTS_ARCHITECTURE
