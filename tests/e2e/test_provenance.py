"""What is published is signed, whatever made it; what cannot be signed is not published."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lipsync_engine import LipSyncPipeline, Provenance, SyncParams
from lipsync_engine.errors import ErrorCode, LipSyncError
from lipsync_engine.provenance import ManifestSigner, SigningPolicy, Verdict, verify_credentials
from lipsync_engine.provenance.watermark import read_watermark
from tests.support.paths import ROOT

Ffmpeg = Callable[..., None]
Run = Callable[..., Any]
SIGNER = ROOT / "deploy" / "file_signer.py"
PARAMS = SyncParams(seed=3, num_inference_steps=1)

FAILS_SECOND = """
import pathlib, subprocess, sys
count = pathlib.Path(sys.argv[1])
count.write_text(count.read_text() + "x" if count.exists() else "x")
if len(count.read_text()) == 2:
    sys.exit("the vault is shut")
sys.exit(subprocess.run([sys.executable, *sys.argv[2:]]).returncode)
"""


@pytest.fixture(scope="module")
def short(
    tmp_path_factory: pytest.TempPathFactory, clip: Path, voice: Path, ffmpeg: Ffmpeg
) -> tuple[Path, Path]:
    """Twelve frames and half a second."""
    folder = tmp_path_factory.mktemp("short")
    ffmpeg("-i", clip, "-t", 0.48, "-crf", 12, folder / "talk.mp4")
    ffmpeg("-i", voice, "-t", 0.4, folder / "talk.wav")
    return folder / "talk.mp4", folder / "talk.wav"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> LipSyncPipeline:
    return LipSyncPipeline.from_pretrained("tiny", device="cpu", cache_dir=tmp_path_factory.mktemp("cache"))


def test_command_signs_and_verifies(lipsync: Run, short: tuple[Path, Path], tmp_path: Path) -> None:
    out, both = tmp_path / "out.mp4", tmp_path / "both.mov"
    options = ("--steps", 1, "--consent", "release 17", "--side-by-side", both)
    output = lipsync("sync", *short, "-o", out, *options)
    assert output.returncode == 0, output.stderr
    assert "signed as generated" in output.stdout
    for path in (out, both):
        result = lipsync("verify", "--json", path)
        assert result.returncode == 0
        report = json.loads(result.stdout)
        assert (report["verdict"], report["is_generated"]) == ("trusted", True)
        assert report["made"]["model"] == "tiny"
        assert "consent_sha256" in report["made"]
        assert "watermark" not in report  # it was not requested
    content = bytearray(out.read_bytes())
    content[len(content) // 2] ^= 1
    out.write_bytes(content)
    for path, status, words in (
        (out, 1, "INVALID"),
        (short[0], 5, "no content credentials"),
        (tmp_path / "gone.mp4", 10, ""),
    ):
        result = lipsync("verify", path)
        assert (result.returncode, words in result.stdout) == (status, True)


def test_unsigned_results_are_not_published(
    pipeline: LipSyncPipeline, short: tuple[Path, Path], tmp_path: Path, credentials_dir: Path
) -> None:
    """A signer that works when it is tried and fails when it matters; later it works again."""
    pipeline.signer.check_can_sign(Path("out.mp4"))  # the development certificate is there
    program, key = tmp_path / "signer.py", credentials_dir / "key.pem"
    program.write_text(FAILS_SECOND)
    command = (sys.executable, str(program), str(tmp_path / "count"), str(SIGNER), str(key))
    chain, out = credentials_dir / "chain.pem", tmp_path / "out.mp4"
    out.write_bytes(b"an older result")
    strict = ManifestSigner(SigningPolicy.REQUIRED, tmp_path / "none", chain=chain, command=command)
    broken = LipSyncPipeline(pipeline.model, pipeline.detector, cache_dir=tmp_path / "cache", signer=strict)
    with pytest.raises(LipSyncError, match="the vault is shut") as failed:
        broken(*short, out, PARAMS)
    assert failed.value.code is ErrorCode.SIGNING_FAILED
    assert out.read_bytes() == b"an older result"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == []
    result = broken(*short, out, PARAMS)
    assert (result.segments_resumed, result.is_signed, result.warnings) == (1, True, ())

    (tmp_path / "count").write_text("x")  # the next is the second
    lax = ManifestSigner(SigningPolicy.BEST_EFFORT, tmp_path / "none", chain=chain, command=command)
    result = LipSyncPipeline(pipeline.model, pipeline.detector, cache_dir=tmp_path / "cache", signer=lax)(
        *short, out, PARAMS
    )
    assert not result.is_signed
    assert "the vault is shut" in result.warnings[0]
    assert verify_credentials(out, "").verdict is Verdict.NONE


def test_required_consent_is_enforced(
    pipeline: LipSyncPipeline, short: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIPSYNC_REQUIRE_CONSENT", "1")
    with pytest.raises(LipSyncError) as failed:
        pipeline(*short, tmp_path / "out.mp4", PARAMS)
    assert failed.value.code is ErrorCode.CONSENT_REQUIRED
    steps = pipeline.run(*short, tmp_path / "out.mp4", PARAMS, provenance=Provenance("release 17"))
    next(steps)
    steps.close()
    for wrong in ("", "x" * 201, "two\nlines"):
        with pytest.raises(LipSyncError, match="1 to 200"):
            Provenance(wrong)


def test_watermark_survives_re_encoding(
    pipeline: LipSyncPipeline, short: tuple[Path, Path], tmp_path: Path, lipsync: Run, ffmpeg: Ffmpeg
) -> None:
    output, sent = tmp_path / "made.mp4", tmp_path / "sent.mp4"
    pipeline(*short, output, dataclasses.replace(PARAMS, watermark=True))
    ffmpeg("-i", output, "-crf", 26, sent)
    result = lipsync("verify", "--json", "--detector", "drawn", sent)
    assert result.returncode == 5
    report = json.loads(result.stdout)
    assert report["verdict"] == "none"
    assert report["watermark"]["found"] is True
    assert report["watermark"]["frames"] == 10
    assert not read_watermark(short[0], pipeline.detector).is_detected
