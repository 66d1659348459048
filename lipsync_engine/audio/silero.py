"""Silero VAD: a network that estimates the probability of speech, 31 times a second.

The published ONNX file is executed by torch modules of the same structure, so no ONNX runtime is needed. Only
its 16 kHz branch is read. Source: https://github.com/snakers4/silero-vad, MIT.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lipsync_engine.errors import ErrorCode, WeightsError
from lipsync_engine.weights import WeightsStore

MODEL_NAME = "silero-vad"
"""Entry of the manifest."""

WINDOW_SAMPLES = 512
"""Samples per probability, at 16 kHz."""

CONTEXT_SAMPLES = 64
"""Samples before a window that the network receives as well."""

_FFT, _HOP, _BINS = 256, 128, 129
_ENCODER_STRIDES = (1, 2, 2, 1)
_HIDDEN = 128

State = tuple[Tensor, Tensor]
"""Hidden and cell state of the LSTM, (1, 1, 128) each."""


class SileroVad(nn.Module):
    """The network at 16 kHz: a short-time spectrum, four convolutions, one LSTM.

    Args:
        tensors: float32, by their names in the published model.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.register_buffer("basis", tensors["stft.forward_basis_buffer"])
        self.encoder = nn.ModuleList()
        for index, stride in enumerate(_ENCODER_STRIDES):
            weight = tensors[f"encoder.{index}.reparam_conv.weight"]
            conv = nn.Conv1d(weight.shape[1], weight.shape[0], weight.shape[2], stride, padding=1)
            conv.load_state_dict({"weight": weight, "bias": tensors[f"encoder.{index}.reparam_conv.bias"]})
            self.encoder.append(conv)
        self.lstm = nn.LSTM(_HIDDEN, _HIDDEN)
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        self.lstm.load_state_dict({f"{name}_l0": tensors[f"decoder.rnn.{name}"] for name in names})
        self.head = nn.Conv1d(_HIDDEN, 1, 1)
        self.head.load_state_dict({name: tensors[f"decoder.decoder.2.{name}"] for name in ("weight", "bias")})
        self.eval()

    @torch.inference_mode()
    def forward(self, samples: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Estimate the probability of speech of consecutive windows.

        Args:
            samples: float32 (64 + 512 n,) in -1..1, mono, 16 kHz; the first 64 are context.
            state: returned with the windows before; None at the start of a file.

        Returns:
            float32 (n,), and the state for the windows that follow.
        """
        windows = samples.unfold(0, CONTEXT_SAMPLES + WINDOW_SAMPLES, WINDOW_SAMPLES)[:, None]
        padded = functional.pad(windows, (0, _FFT // 4), mode="reflect")
        spectrum = functional.conv1d(padded, self.get_buffer("basis"), stride=_HOP)
        hidden = (spectrum[:, :_BINS].square() + spectrum[:, _BINS:].square()).sqrt()
        for conv in self.encoder:
            hidden = functional.relu(conv(hidden))
        hidden, state = self.lstm(hidden.transpose(1, 2).flatten(0, 1)[:, None], state)
        logits = self.head(functional.relu(hidden.transpose(1, 2)))
        return torch.sigmoid(logits).flatten(), state


@functools.cache
def load_silero(store: WeightsStore | None = None) -> SileroVad:
    """Load the network that ships with the package, once per process.

    Raises:
        WeightsError: the file is missing, damaged or not the expected model.
    """
    path = (store or WeightsStore()).verified_files(MODEL_NAME)["vad"]
    try:
        return SileroVad(read_branch_constants(path.read_bytes()))
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise WeightsError(
            ErrorCode.WEIGHTS_ARCHITECTURE,
            f"{path.name} is not the Silero VAD model of this version ({error}): reinstall the package.",
        ) from error


# --- ONNX: the few fields of its protocol buffers that hold the weights ---

_MODEL_GRAPH = 7
_GRAPH_NODE = 1
_NODE_OUTPUT, _NODE_OP_TYPE, _NODE_ATTRIBUTE = 2, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH = 1, 5, 6
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_RAW = 1, 2, 9
_FLOAT = 1


def read_branch_constants(model: bytes) -> dict[str, Tensor]:
    """Read the float constants of the `then` branch (16 kHz) of a Silero ONNX file.

    Returns:
        Tensors by the names of their modules, e.g. `encoder.0.reparam_conv.weight`.

    Raises:
        IndexError, ValueError: the file is not laid out like that.
    """
    graph = _messages(memoryview(model), _MODEL_GRAPH)[0]
    attributes = [a for node in _messages(graph, _GRAPH_NODE) for a in _messages(node, _NODE_ATTRIBUTE)]
    branches = [a for a in attributes if bytes(_messages(a, _ATTRIBUTE_NAME)[0]) == b"then_branch"]
    tensors = {}
    for node in _messages(_messages(branches[0], _ATTRIBUTE_GRAPH)[0], _GRAPH_NODE):
        if bytes(_messages(node, _NODE_OP_TYPE)[0]) != b"Constant":
            continue
        for tensor in _messages(_messages(node, _NODE_ATTRIBUTE)[0], _ATTRIBUTE_TENSOR):
            fields = list(_fields(tensor))
            dims = [value for number, value in fields if number == _TENSOR_DIMS]
            if (_TENSOR_TYPE, _FLOAT) in fields and dims:
                values = np.frombuffer(_messages(tensor, _TENSOR_RAW)[0], "<f4").copy()
                name = bytes(_messages(node, _NODE_OUTPUT)[0]).decode().rpartition("__")[2]
                tensors[name] = torch.from_numpy(values).reshape([int(dim) for dim in dims])
    return tensors


def _messages(message: memoryview, number: int) -> list[memoryview]:
    """Return the length-delimited fields of that number."""
    return [value for field, value in _fields(message) if field == number and isinstance(value, memoryview)]


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of every field of a protocol buffer."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire_type == 2:
            size, position = _varint(message, position)
        else:
            size = {1: 8, 5: 4}.get(wire_type, 0)
            if not size:
                raise ValueError(f"field {number} has the unknown wire type {wire_type}")
        yield number, message[position : position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return a variable-length integer and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
