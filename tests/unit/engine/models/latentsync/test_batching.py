"""Tests of cross-job batching: results equal those of each window alone, and faults stay separate."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lipsync_engine.models.latentsync.batching import BatchedDenoiser
from lipsync_engine.models.latentsync.config import RunConfig
from lipsync_engine.models.latentsync.memory import (
    MAX_ATTENTION_ROWS,
    MAX_BATCHED_WINDOWS,
    MemoryMode,
    MemoryPlan,
    count_batched_windows,
    estimate_published,
)
from lipsync_engine.models.latentsync.model import LatentSync, load_latentsync
from lipsync_engine.models.latentsync.sampling import DenoiseInputs, Denoiser, sampling_steps
from lipsync_engine.models.latentsync.unet import AudioContext, Prediction
from lipsync_engine.params import EXACT_SAMPLING, FastSampling, Solver
from lipsync_engine.weights import WeightsStore
from tests.support.paths import ROOT

SIDE, TOKENS = 8, 6
RUN_CONFIG = RunConfig.parse(json.loads((ROOT / "weights/tiny/model_config.json").read_text()))


@pytest.fixture(scope="module")
def model() -> LatentSync:
    store = WeightsStore()
    return load_latentsync(
        store.entry("tiny"), store.verified_files("tiny"), "", torch.device("cpu"), torch.float32
    )


@dataclass(frozen=True)
class Window:
    """A window of one job, with its own noise, steps and guidance."""

    seed: int
    steps: int = 3
    guidance: float = 2.0
    fast_sampling: FastSampling = EXACT_SAMPLING
    frames: int = 4

    def sample(self, denoiser: Denoiser, stop_after: int = 99) -> Tensor:
        draw = torch.Generator().manual_seed(self.seed)
        encoded = torch.randn(2, 1, 4, self.frames, SIDE, SIDE, generator=draw)
        inputs = DenoiseInputs(
            torch.ones(1, 1, self.frames, SIDE, SIDE),
            encoded[0],
            encoded[1],
            torch.randn(self.frames, TOKENS, 96, generator=draw),
        )
        steps = sampling_steps(
            denoiser,
            RUN_CONFIG,
            inputs,
            noise=torch.randn(1, 4, 1, SIDE, SIDE, generator=draw),
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            fast_sampling=self.fast_sampling,
        )
        for step in itertools.islice(steps, stop_after):
            latents = step.latents
        return latents


def run_in_threads(calls: list[Callable[[], Tensor]]) -> list[Tensor | Exception]:
    """Run each call in its own thread and return the results or exceptions."""
    results: dict[int, Tensor | Exception] = {}

    def run(number: int) -> None:
        try:
            results[number] = calls[number]()
        except Exception as error:  # noqa: BLE001  (the test checks it)
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a thread waits forever"
    return [results[number] for number in range(len(calls))]


def sample_in_session(denoiser: BatchedDenoiser, window: Window, stop_after: int = 99) -> Tensor:
    with denoiser.sampling_session():
        return window.sample(denoiser, stop_after)


def sample_together(denoiser: BatchedDenoiser, windows: list[Window]) -> list[Tensor | Exception]:
    """Sample each window in its own thread; all sessions are open before the first step."""
    all_open = threading.Barrier(len(windows))

    def sample(window: Window) -> Tensor:
        with denoiser.sampling_session():
            all_open.wait(30)
            return window.sample(denoiser)

    return run_in_threads([lambda w=window: sample(w) for window in windows])  # type: ignore[misc]


ROUNDING = 1e-3
"""Relative rounding difference between batch sizes after all steps."""


def is_close(result: Tensor | Exception, expected: Tensor) -> bool:
    return isinstance(result, Tensor) and bool((result - expected).norm() < ROUNDING * expected.norm())


MIXED = [
    Window(1),
    Window(2, guidance=1.5),
    Window(3, steps=4),
    Window(4, steps=2, guidance=1.0),
    Window(5, steps=2, guidance=1.0),
    Window(
        6,
        steps=4,
        fast_sampling=FastSampling(solver=Solver.UNIPC, feature_cache_threshold=0.3, guidance_interval=2),
    ),
    Window(8, frames=3),
]


def test_batched_windows_equal_windows_alone(model: LatentSync) -> None:
    alone = [window.sample(model.unet) for window in MIXED]
    denoiser = BatchedDenoiser(model.unet, 3)
    batched = sample_together(denoiser, MIXED)
    for window, expected, result in zip(MIXED, alone, batched, strict=True):
        assert is_close(result, expected), window
    assert max(denoiser.batch_sizes) == 3
    passes_alone = sum(window.steps for window in MIXED)
    assert denoiser.batch_sizes.total() < 0.7 * passes_alone


def test_cpu_threads_get_bit_identical_results(model: LatentSync) -> None:
    """On a CPU windows share the network but not its forward passes, which would gain nothing."""
    draw = torch.Generator().manual_seed(3)
    inputs = [
        (torch.rand(4, 3, 64, 64, generator=draw) * 2 - 1, torch.randn(4, TOKENS, 96, generator=draw))
        for _ in range(3)
    ]

    def generate(number: int) -> Tensor:
        faces, audio = inputs[number]
        noise = model.initial_noise(number)
        latents = model.denoise(faces, audio, noise=noise, num_inference_steps=2, guidance_scale=2.0)
        return model.decode(latents)

    alone = [generate(number) for number in range(3)]
    threaded = run_in_threads([lambda n=number: generate(n) for number in range(3)])  # type: ignore[misc]
    for expected, result in zip(alone, threaded, strict=True):
        assert isinstance(result, Tensor)
        assert torch.equal(result, expected)


class FaultyDenoiser:
    """A denoiser with a fault: `fail` receives the samples of each forward pass, and may raise."""

    def __init__(self, denoiser: Denoiser, fail: Callable[[Tensor], None]) -> None:
        self._denoiser, self._fail = denoiser, fail

    def precompute_audio_kv(self, audio: Tensor, num_unconditional: int = 0) -> AudioContext:
        return self._denoiser.precompute_audio_kv(audio, num_unconditional)

    def predict(
        self,
        sample: Tensor,
        timestep: Tensor,
        audio_context: AudioContext,
        cached_features: Tensor | None = None,
    ) -> Prediction:
        self._fail(sample)
        return self._denoiser.predict(sample, timestep, audio_context, cached_features)


def test_out_of_memory_halves_the_batch_and_fails_no_window(model: LatentSync) -> None:
    def fail(sample: Tensor) -> None:
        if len(sample) > 2:
            raise torch.OutOfMemoryError("more than two windows")

    denoiser = BatchedDenoiser(FaultyDenoiser(model.unet, fail), 4)
    windows = [Window(number) for number in range(4)]
    for window, result in zip(windows, sample_together(denoiser, windows), strict=True):
        assert is_close(result, window.sample(model.unet))
    assert denoiser.max_windows == 2
    assert denoiser.batch_sizes == {4: 1, 1: 4, 2: 4}


def test_batch_that_the_device_refuses_is_halved_and_logged(
    model: LatentSync, caplog: pytest.LogCaptureFixture
) -> None:
    """Fused attention refuses more than 65,535 sequences with an error that says nothing of memory."""

    def fail(sample: Tensor) -> None:
        if len(sample) > 2:
            raise RuntimeError("CUDA error: invalid configuration argument\nmore lines")

    denoiser = BatchedDenoiser(FaultyDenoiser(model.unet, fail), 4)
    windows = [Window(number, steps=1) for number in range(4)]
    for window, result in zip(windows, sample_together(denoiser, windows), strict=True):
        assert is_close(result, window.sample(model.unet))
    assert denoiser.max_windows == 2
    assert "at most 2: RuntimeError: CUDA error: invalid configuration argument" in caplog.messages[-1]


def test_error_reaches_only_the_failing_window(model: LatentSync) -> None:
    bad = Window(1)
    encoded = torch.randn(2, 1, 4, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(bad.seed))

    def fail(sample: Tensor) -> None:
        if any(torch.equal(item[5:9], encoded[0][0]) for item in sample):
            raise torch.OutOfMemoryError("even alone")

    denoiser = BatchedDenoiser(FaultyDenoiser(model.unet, fail), 4)
    windows = [Window(0), bad, Window(2)]
    good, failed, other = sample_together(denoiser, windows)
    assert isinstance(failed, torch.OutOfMemoryError)
    for window, result in ((windows[0], good), (windows[2], other)):
        assert is_close(result, window.sample(model.unet))
    assert denoiser.max_windows == 4  # the size of the batch was not at fault


def test_window_that_stops_early_blocks_no_other(model: LatentSync) -> None:
    denoiser = BatchedDenoiser(model.unet, 4)
    long, other = Window(1, steps=4), Window(2, steps=4)
    results = run_in_threads(
        [
            lambda: sample_in_session(denoiser, long),
            lambda: sample_in_session(denoiser, other, stop_after=2),
            lambda: sample_in_session(denoiser, Window(3, steps=1)),
        ]
    )
    assert is_close(results[0], long.sample(model.unet))


def test_batch_size_follows_the_free_memory() -> None:
    estimate = estimate_published(512, 2)
    plan = MemoryPlan(MemoryMode.FULL, 32)
    counts = [count_batched_windows(gigabytes * 10**9, estimate, plan) for gigabytes in (12, 24, 80)]
    assert counts == sorted(counts)
    assert counts[0] < counts[1] < counts[2] == MAX_ATTENTION_ROWS // (2 * 64 * 64) == 7
    assert count_batched_windows(80 * 10**9, estimate_published(256, 2), plan) == MAX_BATCHED_WINDOWS
    window_bytes = estimate.peak_bytes(MemoryPlan(MemoryMode.FULL, 0)) - estimate.weights_bytes
    assert estimate.weights_bytes + counts[1] * window_bytes < 24e9
    assert count_batched_windows(80 * 10**9, estimate, MemoryPlan(MemoryMode.SEQUENTIAL, 1)) == 1
    assert count_batched_windows(10**9, estimate, plan) == 1
