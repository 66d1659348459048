"""Windows of different jobs in one run of the network: the same numbers, and nobody pays for another."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lipsync_engine.models.latentsync.batching import SharedNetwork
from lipsync_engine.models.latentsync.config import RunConfig
from lipsync_engine.models.latentsync.memory import MOST_WINDOWS, MemoryPlan, Thrift, windows_at_once
from lipsync_engine.models.latentsync.memory import published_needs as published
from lipsync_engine.models.latentsync.model import LatentSync, load
from lipsync_engine.models.latentsync.sampling import DenoiseInputs, Network, sampling_steps
from lipsync_engine.models.latentsync.unet import Heard
from lipsync_engine.params import EXACT, Shortcuts, Solver
from lipsync_engine.weights import WeightsStore
from tests.support.paths import ROOT

SIDE, TOKENS = 8, 6
RUN = RunConfig.parse(json.loads((ROOT / "weights/tiny/model_config.json").read_text()))


@pytest.fixture(scope="module")
def model() -> LatentSync:
    store = WeightsStore()
    return load(store.entry("tiny"), store.files("tiny"), "", torch.device("cpu"), torch.float32)


@dataclass(frozen=True)
class Window:
    """A window of a job of its own."""

    seed: int
    steps: int = 3
    guidance: float = 2.0
    shortcuts: Shortcuts = EXACT
    frames: int = 4

    def sampled(self, network: Network, stop_after: int = 99) -> Tensor:
        draw = torch.Generator().manual_seed(self.seed)
        seen = torch.randn(2, 1, 4, self.frames, SIDE, SIDE, generator=draw)
        given = DenoiseInputs(
            torch.ones(1, 1, self.frames, SIDE, SIDE),
            seen[0],
            seen[1],
            torch.randn(self.frames, TOKENS, 96, generator=draw),
        )
        steps = sampling_steps(
            network,
            RUN,
            given,
            noise=torch.randn(1, 4, 1, SIDE, SIDE, generator=draw),
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            shortcuts=self.shortcuts,
        )
        for step in itertools.islice(steps, stop_after):
            latents = step.latents
        return latents


def together(works: list[Callable[[], Tensor]]) -> list[Tensor | Exception]:
    """What each gives, or raises, in a thread of its own."""
    found: dict[int, Tensor | Exception] = {}

    def work(number: int) -> None:
        try:
            found[number] = works[number]()
        except Exception as error:  # noqa: BLE001  (looked at by the test)
            found[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "somebody waits for ever"
    return [found[number] for number in range(len(works))]


def in_window(network: SharedNetwork, window: Window, stop_after: int = 99) -> Tensor:
    with network.window():
        return window.sampled(network, stop_after)


def all_at_once(network: SharedNetwork, windows: list[Window]) -> list[Tensor | Exception]:
    """Sampled by threads of which none begins before all are there."""
    there = threading.Barrier(len(windows))

    def work(window: Window) -> Tensor:
        with network.window():
            there.wait(30)
            return window.sampled(network)

    return together([lambda w=window: work(w) for window in windows])  # type: ignore[misc]


ROUNDING = 1e-3
"""What is left after all steps of what libraries may round otherwise in batches of other sizes, relative."""


def same(found: Tensor | Exception, wanted: Tensor) -> bool:
    return isinstance(found, Tensor) and bool((found - wanted).norm() < ROUNDING * wanted.norm())


MIXED = [
    Window(1),
    Window(2, guidance=1.5),
    Window(3, steps=4),
    Window(4, steps=2, guidance=1.0),
    Window(5, steps=2, guidance=1.0),
    Window(6, steps=4, shortcuts=Shortcuts(solver=Solver.UNIPC, reuse_within=0.3, guide_every=2)),
    Window(8, frames=3),
]


def test_the_same_with_and_without_company(model: LatentSync) -> None:
    alone = [window.sampled(model.unet) for window in MIXED]
    network = SharedNetwork(model.unet, 3)
    shared = all_at_once(network, MIXED)
    for window, wanted, found in zip(MIXED, alone, shared, strict=True):
        assert same(found, wanted), window
    assert max(network.runs) == 3
    alone_runs = sum(window.steps for window in MIXED)
    assert network.runs.total() < 0.7 * alone_runs


def test_on_a_cpu_threads_get_to_the_bit_what_each_gets_alone(model: LatentSync) -> None:
    """There windows share the network and not its runs, which would gain nothing."""
    draw = torch.Generator().manual_seed(3)
    given = [
        (torch.rand(4, 3, 64, 64, generator=draw) * 2 - 1, torch.randn(4, TOKENS, 96, generator=draw))
        for _ in range(3)
    ]

    def made(number: int) -> Tensor:
        faces, audio = given[number]
        noise = model.initial_noise(number)
        latents = model.denoise(faces, audio, noise=noise, num_inference_steps=2, guidance_scale=2.0)
        return model.decode(latents)

    alone = [made(number) for number in range(3)]
    for wanted, found in zip(alone, together([lambda n=n: made(n) for n in range(3)]), strict=True):  # type: ignore[misc]
        assert isinstance(found, Tensor)
        assert torch.equal(found, wanted)


class Faulty:
    """The network with a fault: `fails` is told each run's samples, and raises."""

    def __init__(self, network: Network, fails: Callable[[Tensor], None]) -> None:
        self._network, self._fails = network, fails

    def listen(self, audio: Tensor, silent: int = 0) -> Heard:
        return self._network.listen(audio, silent)

    def predict(
        self, sample: Tensor, timestep: Tensor, heard: Heard, deep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self._fails(sample)
        return self._network.predict(sample, timestep, heard, deep)


def test_memory_that_holds_fewer_windows_costs_nobody_his_job(model: LatentSync) -> None:
    def fails(sample: Tensor) -> None:
        if len(sample) > 2:
            raise torch.OutOfMemoryError("no room")

    network, windows = SharedNetwork(Faulty(model.unet, fails), 4), [Window(number) for number in range(4)]
    for window, found in zip(windows, all_at_once(network, windows), strict=True):
        assert same(found, window.sampled(model.unet))
    assert network.most == 2
    assert network.runs == {4: 1, 1: 4, 2: 4}


def test_an_error_reaches_the_job_whose_it_is(model: LatentSync) -> None:
    bad = Window(1)
    first = torch.randn(2, 1, 4, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(bad.seed))

    def fails(sample: Tensor) -> None:
        if any(torch.equal(one[5:9], first[0][0]) for one in sample):
            raise torch.OutOfMemoryError("even alone")

    network, windows = SharedNetwork(Faulty(model.unet, fails), 4), [Window(0), bad, Window(2)]
    good, failed, other = all_at_once(network, windows)
    assert isinstance(failed, torch.OutOfMemoryError)
    for window, found in ((windows[0], good), (windows[2], other)):
        assert same(found, window.sampled(model.unet))


def test_who_leaves_early_keeps_nobody_waiting(model: LatentSync) -> None:
    network = SharedNetwork(model.unet, 4)
    long, other = Window(1, steps=4), Window(2, steps=4)
    found = together(
        [
            lambda: in_window(network, long),
            lambda: in_window(network, other, stop_after=2),
            lambda: in_window(network, Window(3, steps=1)),
        ]
    )
    assert same(found[0], long.sampled(model.unet))


def test_how_many_windows_share_a_run_follows_the_memory() -> None:
    need = published(512, 2)
    plan = MemoryPlan(Thrift.NONE, 32)
    counts = [windows_at_once(gigabytes * 10**9, need, plan) for gigabytes in (12, 24, 80)]
    assert counts == sorted(counts)
    assert counts[0] < counts[1] < counts[2] == MOST_WINDOWS
    each = need.peak_bytes(MemoryPlan(Thrift.NONE, 0)) - need.weights_bytes
    assert need.weights_bytes + counts[1] * each < 24e9
    assert windows_at_once(80 * 10**9, need, MemoryPlan(Thrift.SINGLE, 1)) == 1
    assert windows_at_once(10**9, need, plan) == 1
