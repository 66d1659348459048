"""What a worker makes of an order's options."""

from __future__ import annotations

from fractions import Fraction

import pytest

from lipsync_engine import JobWarning, WarningCode
from lipsync_engine.errors import ErrorCode, LipSyncError
from lipsync_engine.params import PRESETS, LoopMode, SyncParams
from lipsync_engine.provenance import SigningError
from lipsync_engine.provenance.signing import UNSIGNED_WARNING
from server.api.schemas import OPTIONS
from server.jobs.request import Options
from server.settings import Settings
from server.workers.main import CLIENT_MESSAGES, UNSIGNED, _client_message, _client_warning, _params
from server.workers.messages import RunJob


def order(**options: object) -> RunJob:
    return RunJob("job", {}, {}, (), "out.mp4", Options(**options), "tenant")  # type: ignore[arg-type]


def test_job_without_options_has_default_params() -> None:
    assert _params(order(), {}) == SyncParams()
    assert _params(order(), {}, label=True) == SyncParams(label=True)
    assert _params(order(), {}, watermark=True) == SyncParams(watermark=True)


@pytest.mark.parametrize("name", OPTIONS["preset"]["enum"])
def test_preset_is_overridden_by_single_options(name: str) -> None:
    assert _params(order(preset=name), {}) == SyncParams.preset(name)
    result = _params(order(preset=name, num_inference_steps=6, seed=7, fps="29.97", loop_mode="loop"), {})
    expected = SyncParams.preset(
        name, num_inference_steps=6, seed=7, fps=Fraction(30000, 1001), loop_mode=LoopMode.LOOP
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


def test_errors_for_clients_name_inputs_and_no_option_of_the_command_line() -> None:
    command = RunJob("job", {"audio": "/data/in/0f3a.bin"}, {}, (), "out.mp4", Options(), "tenant")
    silent = LipSyncError(ErrorCode.MEDIA_NO_AUDIO, "'0f3a.bin' has no audio: give a file with a voice.")
    assert _client_message(silent, command) == "The input audio has no audio: give a file with a voice."
    for code in (ErrorCode.DISK_FULL, ErrorCode.OUT_OF_MEMORY, ErrorCode.OUTPUT_MISCOLOURED):
        advice = _client_message(LipSyncError(code, "set LIPSYNC_CACHE_DIR or --dtype fp32"), command)
        assert "operator" in advice
        assert not {"LIPSYNC_CACHE_DIR", "--dtype"} & set(advice.split())


def test_frame_rate_with_long_decimals_is_the_exact_rate() -> None:
    for text, rate in (
        ("29.97002997002997", Fraction(30000, 1001)),
        ("29.970029970029973", Fraction(30000, 1001)),
        ("23.976", Fraction(24000, 1001)),
        ("33.333333333333336", Fraction(100, 3)),
        ("25.0", Fraction(25)),
    ):
        assert _params(order(fps=text), {}).fps == rate


def test_tenants_get_no_paths_and_programs_of_the_server() -> None:
    assert {ErrorCode.SIGNING_FAILED, ErrorCode.WEIGHTS_MISSING} <= set(CLIENT_MESSAGES)
    for code in CLIENT_MESSAGES:
        error = LipSyncError(code, "tiny needs tiny.safetensors, which is not in /srv/weights: pull it.")
        assert "/srv" not in _client_message(error, order())
        assert "operator" in _client_message(error, order())
    own = LipSyncError(ErrorCode.FACE_NOT_FOUND, "No face was found: use another video.")
    assert _client_message(own, order()) == own.message
    detail = SigningError("/opt/hsm/sign exited with status 1, slot 3: PIN locked").message
    warning = _client_warning(JobWarning(WarningCode.NOT_DONE, f"{UNSIGNED}{detail}"))
    assert (warning.code, "hsm" in warning, "PIN" in warning) == (WarningCode.NOT_DONE, False, False)
    assert UNSIGNED_WARNING.startswith(UNSIGNED)
    for kept in (UNSIGNED_WARNING, "prompt was not used."):
        assert _client_warning(JobWarning(WarningCode.NOT_DONE, kept)) == kept
