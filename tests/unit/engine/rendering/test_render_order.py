"""Tests of the order in which a segment's work reaches the device, on a simulated in-order device.

Times are counted, not measured: the device runs what was submitted in order, and each window costs the host
and the device a fixed time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lipsync_engine import LipSyncPipeline, SyncParams, faces, media
from lipsync_engine.planning.planner import plan_job
from lipsync_engine.rendering.render import render_frames
from lipsync_engine.utils import drain
from tests.support.paths import ROOT
from tests.support.stand_in import StandIn

HOST_MS = 96.0
"""Host time per window: collect, crop and stack 12 frames at 8 ms each."""


class InOrderDevice:
    """Clocks of the host and of a device that runs one piece of work after the other."""

    def __init__(self) -> None:
        self.host_ms = self.free_ms = self.busy_ms = self.first_ms = 0.0

    def submit(self, cost_ms: float) -> float:
        start = max(self.host_ms, self.free_ms)
        self.first_ms = self.first_ms or start
        self.busy_ms += cost_ms
        self.free_ms = start + cost_ms
        return self.free_ms

    def wait_until(self, time_ms: float) -> None:
        self.host_ms = max(self.host_ms, time_ms)

    def copy_to_host(self, tensor: torch.Tensor) -> SimulatedCopy:
        return SimulatedCopy(self, tensor)

    @property
    def busy_share(self) -> float:
        return self.busy_ms / (self.free_ms - self.first_ms)


class SimulatedCopy:
    def __init__(self, device: InOrderDevice, tensor: torch.Tensor) -> None:
        self._device, self._values, self._done_ms = device, tensor, device.submit(0.0)

    def wait(self) -> np.ndarray:
        self._device.wait_until(self._done_ms)
        return self._values.numpy()


class SimulatedModel(StandIn):
    def start(self, device: InOrderDevice, window_ms: float) -> None:
        self._simulated, self._window_ms = device, window_ms

    def denoise(self, faces: torch.Tensor, audio: torch.Tensor, **options: object) -> torch.Tensor:
        self._simulated.host_ms += HOST_MS
        self._simulated.submit(self._window_ms)
        return faces

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents


def test_device_never_waits_for_a_copy_to_the_host(tmp_path: Path, subtests: pytest.Subtests) -> None:
    model, video = SimulatedModel(), media.probe_video(ROOT / "demo/presenter.mp4")
    plan = drain(
        plan_job(
            video,
            [(SyncParams().face, media.probe_audio(ROOT / "demo/voice.wav"))],
            SyncParams(),
            model=model,
            detector=LipSyncPipeline.from_pretrained("tiny", device="cpu").detector,
            cache=faces.AnalysisCache(tmp_path),
            video_hash="demo",
            folder=tmp_path,
        )
    )
    for window_ms in (145.0, 614.0):  # modelled for an H200: `fastest` of LatentSync 1.5 and 1.6
        with subtests.test(window_ms=window_ms):
            device = InOrderDevice()
            model.start(device, window_ms)
            for _ in render_frames(plan, plan.segments[0], model, copy_to_host=device.copy_to_host):
                pass
            assert device.busy_ms >= 5 * window_ms
            assert device.busy_share > 0.99
