"""What a worker makes of an order's options."""

from __future__ import annotations

from fractions import Fraction

import pytest

from lipsync_engine.params import PRESETS, LoopMode, SyncParams
from server.api.schemas import OPTIONS
from server.jobs.request import Options
from server.settings import Settings
from server.workers.main import _params
from server.workers.messages import RunJob


def order(**options: object) -> RunJob:
    return RunJob("job", {}, {}, (), "out.mp4", Options(**options))  # type: ignore[arg-type]


def test_job_without_options_has_default_params() -> None:
    assert _params(order(), {}) == SyncParams()
    assert _params(order(), {}, label=True) == SyncParams(label=True)
    assert _params(order(), {}, watermark=True) == SyncParams(watermark=True)


@pytest.mark.parametrize("name", OPTIONS["preset"]["enum"])
def test_preset_is_overridden_by_single_options(name: str) -> None:
    assert _params(order(preset=name), {}) == SyncParams.preset(name)
    result = _params(order(preset=name, num_inference_steps=6, seed=7, fps="29.97", loop_mode="loop"), {})
    expected = SyncParams.preset(
        name, num_inference_steps=6, seed=7, fps=Fraction("29.97"), loop_mode=LoopMode.LOOP
    )
    assert result == expected


def test_fast_presets_are_accepted() -> None:
    quick = {name for name, preset in PRESETS.items() if "fast_sampling" in preset}
    assert {*quick, "default"} == set(OPTIONS["preset"]["enum"])
    assert {Settings(preset=name).preset for name in OPTIONS["preset"]["enum"]} == {*quick, "default"}  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["compile", "fp8"])
def test_compile_and_fp8_settings_reach_the_worker(name: str) -> None:
    assert Settings().worker_environment[f"LIPSYNC_{name.upper()}"] == "false"
    assert Settings.model_validate({name: True}).worker_environment[f"LIPSYNC_{name.upper()}"] == "true"
