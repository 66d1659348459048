"""The U-Net made faster for windows of one length: layers compiled, and whole runs recorded as CUDA graphs.

A layer (residual block, attention, motion) is compiled once for each shape that it has in a full window;
layers of equal shape share their code. What has another shape, such as the window of a very short clip, runs
as it is and never starts a compiler. A recorded run costs one launch instead of one per kernel; its inputs
and results lie at fixed places. It knows neither schedules nor guidance nor files of weights.
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
    Heard,
    LatentSyncUNet,
    MotionModule,
    ResnetBlock,
    SpatialTransformer,
)

log = logging.getLogger("lipsync.model")

LAYERS = (ResnetBlock, SpatialTransformer, MotionModule)

PIECES_OF_CODE = 64
"""More than torch's own limit of 8 shapes for one function: every width and kind of step has its own."""

Predicted = tuple[Tensor, Tensor]
Work = Callable[[], Predicted]
Record = Callable[[Work], tuple[Predicted, Callable[[], None]]]
"""From work whose inputs lie at fixed places to its results and a function that does it again into them."""


class CompiledUNet:
    """Says what `LatentSyncUNet.predict` says, up to rounding; made by `LatentSync.compile`.

    Args:
        unet: the network; its layers are compiled in place.
        frames: of a full window.
        cache_dir: compiled code lies there for the next process, named by everything that it depends on.
        record: keeps whole runs; None: they are launched piece by piece.
    """

    def __init__(
        self, unet: LatentSyncUNet, frames: int, cache_dir: Path, record: Record | None = None
    ) -> None:
        self._unet, self._frames = unet, frames
        self._runs = None if record is None else RecordedRuns(unet.predict, record)
        self._stance = "force_eager"
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir))
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, PIECES_OF_CODE)
        for module in unet.modules():
            if isinstance(module, LAYERS):
                module.compile(dynamic=False)

    def compile(self, every_kind_of_step: Callable[[], object]) -> bool:
        """Compile what `every_kind_of_step` runs, and nothing from then on; False: it could not be done."""
        self._stance = "default"
        try:
            every_kind_of_step()
        except TorchDynamoException as error:
            log.warning(
                "the network cannot be compiled and runs as it is: %s. It needs a C++ compiler (g++).",
                str(error).strip().splitlines()[0],
            )
            self._stance = "force_eager"
            return False
        self._stance = "eager_on_recompile"
        return True

    def listen(self, audio: Tensor, silent: int = 0) -> Heard:
        return self._unet.listen(audio, silent)

    def predict(
        self, sample: Tensor, timestep: Tensor, heard: Heard, deep: Tensor | None = None
    ) -> Predicted:
        """See `LatentSyncUNet.predict`."""
        is_full = sample.shape[2] == self._frames
        predict = self._runs if self._runs is not None and is_full else self._unet.predict
        with torch.compiler.set_stance(self._stance if is_full else "force_eager"):
            return predict(sample, timestep, heard, deep)

    def forget_runs(self) -> bool:
        """Give back the memory that recorded runs hold; False where there are none."""
        had, self._runs = self._runs is not None, None
        return had


# --- recorded runs ---


class _Given(NamedTuple):
    """What a run is given, at places that stay."""

    sample: Tensor
    timestep: Tensor
    heard: Heard
    deep: Tensor | None


class _Run:
    """One kind of run."""

    def __init__(self, given: _Given, results: Predicted, again: Callable[[], None], heard: Heard) -> None:
        self.given, self.results, self.again = given, results, again
        self.copied = heard  # the same object at every step of a window


class RecordedRuns:
    """Records a run of each kind the first time, and does it again from then on.

    Args:
        predict: `LatentSyncUNet.predict`; windows of one size only.
        record: see `Record`; `cuda_graphs` on CUDA.
    """

    def __init__(self, predict: Callable[..., Predicted], record: Record) -> None:
        self._predict, self._record = predict, record
        self._runs: dict[tuple[object, ...], _Run] = {}

    def __call__(self, sample: Tensor, timestep: Tensor, heard: Heard, deep: Tensor | None) -> Predicted:
        first = heard[0][0]
        kind = (sample.shape, first.silent, len(first.key), None if deep is None else deep.shape)
        run = self._runs.get(kind)
        if run is None:
            given = _Given(
                sample.clone(), timestep.clone(), _copy(heard), None if deep is None else deep.clone()
            )
            results, again = self._record(lambda: self._predict(*given))
            run = self._runs[kind] = _Run(given, results, again, heard)
        run.given.sample.copy_(sample)
        run.given.timestep.copy_(timestep)
        if deep is not None and run.given.deep is not None:
            run.given.deep.copy_(deep)
        if run.copied is not heard:
            _copy_into(run.given.heard, heard)
            run.copied = heard
        run.again()
        predicted, said = run.results
        return predicted.clone(), said.clone()  # the next run of this kind writes over them


def _copy(heard: Heard) -> Heard:
    return tuple(
        tuple(sound._replace(key=sound.key.clone(), value=sound.value.clone()) for sound in block)
        for block in heard
    )


def _copy_into(places: Heard, heard: Heard) -> None:
    for block, said in zip(places, heard, strict=True):
        for place, sound in zip(block, said, strict=True):
            place.key.copy_(sound.key)
            place.value.copy_(sound.value)


def cuda_graphs(device: torch.device) -> Record:
    """Records as CUDA graphs, which share their memory: they never run at the same time."""
    pool = torch.cuda.graph_pool_handle()

    def record(work: Work) -> tuple[Predicted, Callable[[], None]]:
        # Libraries choose and load kernels at their first uses, which cannot be recorded.
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):
                    work()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                results = work()
        return results, graph.replay

    return record
