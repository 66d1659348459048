"""Compiled layers and CUDA graphs for windows of the model's full length.

A layer (residual block, attention, motion module) is compiled once for each shape that it has in a full
window; layers of equal shape share their code. Other shapes, such as the window of a very short clip, run
uncompiled and never start a compiler. A CUDA graph replays a whole forward pass with one launch instead of
one per kernel; its inputs and results stay at fixed addresses. This module does not know schedules, guidance
or weight files.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from lipsync_engine.models.latentsync.unet import (
    AudioContext,
    LatentSyncUNet,
    MotionModule,
    Prediction,
    ResnetBlock,
    SpatialTransformer,
)

log = logging.getLogger("lipsync.model")

COMPILED_LAYERS = (ResnetBlock, SpatialTransformer, MotionModule)

RECOMPILE_LIMIT = 64
"""Shapes per compiled function; torch's default is 8. Every width and kind of step needs its own code."""

Forward = Callable[[], Prediction]
Capture = Callable[[Forward], tuple[Prediction, Callable[[], None]]]
"""Captures a forward pass whose inputs stay at fixed addresses. Returns its results and a function that
replays the pass into the same results."""


class CompiledUNet:
    """A U-Net that predicts as `LatentSyncUNet` does, up to rounding; built by `LatentSync.compile`.

    Args:
        unet: its layers are compiled in place.
        frames: length of a full window.
        cache_dir: compiled code is stored here for later processes.
        capture: captures CUDA graphs; None: every kernel is launched separately.
    """

    def __init__(
        self, unet: LatentSyncUNet, frames: int, cache_dir: Path, capture: Capture | None = None
    ) -> None:
        self._unet, self._frames = unet, frames
        self._graphs = None if capture is None else CudaGraphs(unet.predict, capture)
        self._stance = "force_eager"
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir))
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
        for module in unet.modules():
            if isinstance(module, COMPILED_LAYERS):
                module.compile(dynamic=False)

    def compile(self, run_all_step_kinds: Callable[[], object]) -> bool:
        """Compile every shape that `run_all_step_kinds` uses, and none afterwards.

        Returns:
            False if compilation failed; the network then runs uncompiled.
        """
        self._stance = "default"
        try:
            run_all_step_kinds()
        except TorchDynamoException as error:
            log.warning(
                "U-Net cannot be compiled and runs uncompiled: %s. Install a C++ compiler (g++).",
                str(error).strip().splitlines()[0],
            )
            self._stance = "force_eager"
            return False
        self._stance = "eager_on_recompile"
        return True

    def precompute_audio_kv(self, audio: Tensor, num_unconditional: int = 0) -> AudioContext:
        return self._unet.precompute_audio_kv(audio, num_unconditional)

    def predict(
        self,
        sample: Tensor,
        timestep: Tensor,
        audio_context: AudioContext,
        cached_features: Tensor | None = None,
    ) -> Prediction:
        """See `LatentSyncUNet.predict`."""
        is_full = sample.shape[2] == self._frames
        predict = self._graphs if self._graphs is not None and is_full else self._unet.predict
        with torch.compiler.set_stance(self._stance if is_full else "force_eager"):
            return predict(sample, timestep, audio_context, cached_features)

    def release_graphs(self) -> bool:
        """Release the memory of the CUDA graphs; return False if there were none."""
        had_graphs, self._graphs = self._graphs is not None, None
        return had_graphs


# --- CUDA graphs ---


class _GraphInputs(NamedTuple):
    """Inputs of a graph, at fixed addresses."""

    sample: Tensor
    timestep: Tensor
    audio_context: AudioContext
    cached_features: Tensor | None


class _Graph:
    """A captured forward pass of one shape."""

    def __init__(
        self,
        inputs: _GraphInputs,
        results: Prediction,
        replay: Callable[[], None],
        audio_context: AudioContext,
    ) -> None:
        self.inputs, self.results, self.replay = inputs, results, replay
        self.copied_context = audio_context  # the same object at every step of a window


class CudaGraphs:
    """Captures a forward pass at the first use of each shape and replays it from then on.

    Args:
        predict: `LatentSyncUNet.predict`; windows of one length only.
        capture: see `Capture`; `cuda_graph_capture` on CUDA.
    """

    def __init__(self, predict: Callable[..., Prediction], capture: Capture) -> None:
        self._predict, self._capture = predict, capture
        self._graphs: dict[tuple[object, ...], _Graph] = {}

    def __call__(
        self, sample: Tensor, timestep: Tensor, audio_context: AudioContext, cached_features: Tensor | None
    ) -> Prediction:
        audio_kv = audio_context[0][0]
        features_shape = None if cached_features is None else cached_features.shape
        key = (sample.shape, audio_kv.num_unconditional, len(audio_kv.key), features_shape)
        graph = self._graphs.get(key)
        if graph is None:
            inputs = _GraphInputs(
                sample.clone(),
                timestep.clone(),
                _clone_context(audio_context),
                None if cached_features is None else cached_features.clone(),
            )
            results, replay = self._capture(lambda: self._predict(*inputs))
            graph = self._graphs[key] = _Graph(inputs, results, replay, audio_context)
        graph.inputs.sample.copy_(sample)
        graph.inputs.timestep.copy_(timestep)
        if cached_features is not None and graph.inputs.cached_features is not None:
            graph.inputs.cached_features.copy_(cached_features)
        if graph.copied_context is not audio_context:
            _copy_context(audio_context, graph.inputs.audio_context)
            graph.copied_context = audio_context
        graph.replay()
        noise_pred, features = graph.results
        return noise_pred.clone(), features.clone()  # the next replay overwrites the results


def _clone_context(audio_context: AudioContext) -> AudioContext:
    return tuple(
        tuple(kv._replace(key=kv.key.clone(), value=kv.value.clone()) for kv in block_kvs)
        for block_kvs in audio_context
    )


def _copy_context(source: AudioContext, target: AudioContext) -> None:
    for source_block, target_block in zip(source, target, strict=True):
        for source_kv, target_kv in zip(source_block, target_block, strict=True):
            target_kv.key.copy_(source_kv.key)
            target_kv.value.copy_(source_kv.value)


def cuda_graph_capture(device: torch.device) -> Capture:
    """Return a `Capture` for CUDA graphs that share one memory pool, since they never run concurrently."""
    pool = torch.cuda.graph_pool_handle()

    def capture(forward: Forward) -> tuple[Prediction, Callable[[], None]]:
        # Libraries choose and load kernels at their first use, which cannot be captured.
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):
                    forward()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                results = forward()
        return results, graph.replay

    return capture
