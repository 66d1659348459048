"""Clips as phones record them: 10 bits, HLG. And audio without a detectable voice. Through whole jobs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipsync_engine import (
    ErrorCode,
    HdrMode,
    LipSyncError,
    LipSyncPipeline,
    SyncParams,
    VideoCodec,
    WarningCode,
    media,
)
from tests.support.paths import DEMO_VIDEO, DEMO_VOICE

Ffmpeg = Callable[..., None]
Run = Callable[..., subprocess.CompletedProcess[str]]

HLG = (
    "format=yuv444p10le,setparams=color_trc=bt709:colorspace=bt709:color_primaries=bt709:range=tv,"
    "zscale=transfer=linear:npl=203,format=gbrpf32le,zscale=primaries=2020,"
    "zscale=transfer=arib-std-b67:matrix=2020_ncl:range=limited:npl=203,format=yuv420p10le"
)


SDR = (
    "zscale=transfer=linear:npl=203,format=gbrpf32le,zscale=primaries=bt709,"
    "tonemap=mobius:peak=4.9261:desat=0,zscale=transfer=bt709:matrix=bt709:range=limited,format=yuv420p"
)


def quick(**options: Any) -> SyncParams:
    return SyncParams(num_inference_steps=1, guidance_scale=1.0, **options)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> LipSyncPipeline:
    return LipSyncPipeline.from_pretrained(
        "tiny", device="cpu", cache_dir=tmp_path_factory.mktemp("cache"), marking="off"
    )


@pytest.fixture(scope="module")
def phone_clips(tmp_path_factory: pytest.TempPathFactory, ffmpeg: Ffmpeg) -> dict[str, Path]:
    """One second of the presenter: 8-bit, 10-bit, the same in HLG, and that in SDR again."""
    folder = tmp_path_factory.mktemp("phone")
    clips = {name: folder / f"{name}.mp4" for name in ("sdr8", "sdr10", "hlg", "tone-mapped")}
    source = ("-i", DEMO_VIDEO, "-t", 1, "-an")
    x265 = ("-c:v", "libx265", "-x265-params", "log-level=error:crf=4", "-tag:v", "hvc1")
    bt709 = "setparams=color_trc=bt709:colorspace=bt709:color_primaries=bt709:range=tv"
    ffmpeg(
        *source, "-vf", f"scale=320:-2:out_color_matrix=bt709:out_range=tv,{bt709}", "-crf", 6, clips["sdr8"]
    )
    ffmpeg("-i", clips["sdr8"], "-vf", f"format=yuv420p10le,{bt709}", *x265, clips["sdr10"])
    ffmpeg("-i", clips["sdr8"], "-vf", HLG, *x265, clips["hlg"])
    ffmpeg("-i", clips["hlg"], "-vf", SDR, "-crf", 4, clips["tone-mapped"])
    return clips


def read_luma(path: Path) -> np.ndarray:
    """(N, H, W) in 8-bit units."""
    info = media.probe_video(path)
    pts_s = np.array([pts for pts, _ in media.scan_frames(info, 32)])
    with media.FrameReader(info, pts_s) as reader:
        planes = np.stack([frame.y for frame in reader.read(range(len(pts_s)))])
    return planes / 2.0 ** (info.format.bit_depth - 8)


@pytest.mark.parametrize(("name", "sdr"), [("sdr10", "sdr8"), ("hlg", "tone-mapped")])
def test_result_of_a_phone_clip_plays_everywhere_and_looks_like_its_sdr_version(
    name: str,
    sdr: str,
    phone_clips: dict[str, Path],
    voice: Path,
    pipeline: LipSyncPipeline,
    tmp_path: Path,
) -> None:
    results = {
        kind: pipeline(phone_clips[kind], voice, tmp_path / f"{kind}.mp4", quick()) for kind in (sdr, name)
    }
    info = media.probe_video(results[name].output)
    assert (info.codec, info.format.pix_fmt, info.hdr) == ("h264", "yuv420p", None)
    assert (info.color_space, info.color_transfer) == ("bt709", "bt709")
    codes = [warning.code for warning in results[name].warnings]
    assert codes.count(WarningCode.HDR_TONE_MAPPED) == (name == "hlg")
    difference = read_luma(results[sdr].output) - read_luma(results[name].output)
    assert np.sqrt(np.mean(difference**2)) < 2.5


def test_hevc_main_10_on_request(
    phone_clips: dict[str, Path], voice: Path, pipeline: LipSyncPipeline, tmp_path: Path
) -> None:
    params = quick(video_codec=VideoCodec.HEVC10)
    output = pipeline(phone_clips["sdr10"], voice, tmp_path / "out.mov", params).output
    info = media.probe_video(output)
    assert (info.codec, info.format.pix_fmt) == ("hevc", "yuv420p10le")
    assert b"hvc1" in output.read_bytes()
    assert len(read_luma(output)) == 38  # 1.5 s


def test_hdr_is_refused_on_request(
    phone_clips: dict[str, Path], voice: Path, pipeline: LipSyncPipeline, lipsync: Run, tmp_path: Path
) -> None:
    output = tmp_path / "out.mp4"
    with pytest.raises(LipSyncError, match="hdr=refuse") as caught:
        pipeline(phone_clips["hlg"], voice, output, quick(hdr=HdrMode.REFUSE))
    assert caught.value.code is ErrorCode.MEDIA_UNSUPPORTED_PIXELS
    # The command refuses before it loads a model: this one has no weights.
    command = ("sync", phone_clips["hlg"], voice, "-o", output, "--model", "latentsync-1.6")
    completed = lipsync(*command, "--hdr", "refuse")
    assert "error [media_unsupported_pixels]" in completed.stderr
    assert not output.exists()


def test_voice_gate_opens_with_a_warning_where_no_voice_can_be_detected(
    clip: Path, voice: Path, pipeline: LipSyncPipeline, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    noisy = tmp_path / "noisy.wav"
    ffmpeg(
        *("-i", voice, "-f", "lavfi", "-i", "anoisesrc=r=16000:d=1.5:a=0.5:seed=1"),
        *("-filter_complex", "[0]volume=0.02[v];[v][1]amix=normalize=0", noisy),
    )
    result = pipeline(clip, noisy, tmp_path / "out.mp4", quick())
    assert WarningCode.VOICE_GATE_OPEN in [warning.code for warning in result.warnings]
    assert result.pauses_s == ()


def test_pauses_are_reported(clip: Path, pipeline: LipSyncPipeline, tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    spoken = tmp_path / "spoken.wav"  # 0.9 s of words, then silence
    ffmpeg("-t", 0.9, "-i", DEMO_VOICE, "-af", "apad=whole_dur=2", spoken)
    result = pipeline(clip, spoken, tmp_path / "out.mp4", quick())
    [(start_s, stop_s)] = result.pauses_s
    assert start_s == pytest.approx(1.1, abs=0.15)
    assert stop_s == pytest.approx(2.0, abs=0.05)
    assert [warning.code for warning in result.warnings] == [WarningCode.NOT_DONE]  # not signed
