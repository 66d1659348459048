"""The main job through the real command and the library, on the drawn presenter."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from lipsync_engine import LipSyncPipeline, LoopMode, Stage, SyncParams, Tail, faces, media
from lipsync_engine.models import LipSyncModel
from lipsync_engine.planning import timeline
from lipsync_engine.planning.plan import Plan
from lipsync_engine.planning.planner import plan_job
from lipsync_engine.rendering.render import render_frames
from lipsync_engine.result import WarningCode
from lipsync_engine.utils import drain
from tests.support.paths import DEMO_VOICE

Ffmpeg = Callable[..., None]
Run = Callable[..., subprocess.CompletedProcess[str]]
Likeness = Callable[[Path, Path], float]


def quick(**options: Any) -> SyncParams:
    """One step without guidance: enough where the picture's beauty is not the question."""
    return SyncParams(num_inference_steps=1, guidance_scale=1.0, **options)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> LipSyncPipeline:
    return LipSyncPipeline.from_pretrained(
        "tiny", device="cpu", cache_dir=tmp_path_factory.mktemp("pipeline_cache")
    )


def luma(path: Path) -> np.ndarray:
    """All frames' luma, (N, H, W)."""
    info = media.probe_video(path)
    pts_s = np.array([pts for pts, _ in media.scan_frames(info, 64)])
    with media.FrameReader(info, pts_s) as reader:
        return np.stack([frame.y for frame in reader.read(range(len(pts_s)))])


def test_command_writes_a_video_and_a_comparison(
    clip: Path, voice: Path, tmp_path: Path, lipsync: Run, cache_dir: Path
) -> None:
    output, both = tmp_path / "out.mp4", tmp_path / "both.mp4"
    result = lipsync("sync", clip, voice, "-o", output, "--side-by-side", both, "--preset", "lossless")
    assert result.returncode == 0, result.stderr[-3000:]
    assert str(output) in result.stdout
    assert "0 without a usable face" in result.stdout

    source, created = media.probe_video(clip), media.probe_video(output)
    assert (created.format.width, created.format.height) == (source.format.width, source.format.height)
    assert created.frame_rate == source.frame_rate
    frames = luma(output)
    assert len(frames) == timeline.count_audio_frames(media.probe_audio(voice).duration_s, created.frame_rate)

    # Lips changed; above the face every sample is the source's.
    before = luma(clip)[: len(frames)]
    assert np.array_equal(frames[:, :60], before[:, :60])
    assert np.abs(frames.astype(int) - before).max() > 40
    assert media.probe_video(both).format.width >= source.format.width
    assert list((cache_dir / "jobs").iterdir()) == []


def test_seed_decides_the_frames(
    clip: Path, voice: Path, tmp_path: Path, pipeline: LipSyncPipeline, likeness_db: Likeness
) -> None:
    runs = [pipeline(clip, voice, tmp_path / f"{i}.mp4", quick(seed=s)) for i, s in enumerate((5, 5, 6))]
    first, second, other = (result.output for result in runs)
    assert likeness_db(first, second) > 55
    assert likeness_db(first, other) < 53
    assert runs[1].analysis_cached
    assert runs[0].weights_sha256 == runs[2].weights_sha256
    assert len(runs[0].weights_sha256) == 64


def test_progress_reports_stage_and_position(
    clip: Path, voice: Path, tmp_path: Path, pipeline: LipSyncPipeline
) -> None:
    reports = list(pipeline.run(clip, voice, tmp_path / "out.mp4", quick(seed=11)))
    assert [stage for stage in Stage if any(r.stage is stage for r in reports)] == [
        r for i, r in enumerate(r.stage for r in reports) if i == 0 or r is not reports[i - 1].stage
    ]
    rendering = [r for r in reports if r.stage is Stage.RENDER]
    assert [r.done for r in rendering] == sorted(r.done for r in rendering)
    assert rendering[-1].done == rendering[-1].total


def test_closing_the_generator_leaves_no_files(
    clip: Path, voice: Path, tmp_path: Path, pipeline: LipSyncPipeline
) -> None:
    steps = pipeline.run(clip, voice, tmp_path / "out.mp4", quick(seed=12))
    assert any(report.stage is Stage.RENDER for report in steps)  # stops at the first
    steps.close()
    assert list(tmp_path.iterdir()) == []


def make_plan(clip: Path, voice: Path, folder: Path, pipeline: LipSyncPipeline, params: SyncParams) -> Plan:
    steps = plan_job(
        media.probe_video(clip),
        [(params.face, media.probe_audio(voice))],
        params,
        model=pipeline.model,
        detector=pipeline.detector,
        cache=faces.AnalysisCache(folder / "analysis"),
        video_hash=media.content_hash(clip),
        folder=folder,
    )
    return drain(steps)


@pytest.fixture(scope="module")
def planned(
    clip: Path,
    voice: Path,
    tmp_path_factory: pytest.TempPathFactory,
    ffmpeg: Ffmpeg,
    pipeline: LipSyncPipeline,
) -> Plan:
    """A plan of two segments."""
    folder = tmp_path_factory.mktemp("planned")
    long_voice = folder / "voice.wav"
    ffmpeg("-stream_loop", -1, "-i", voice, "-t", 4.8, long_voice)
    plan = make_plan(clip, long_voice, folder, pipeline, quick())
    assert len(plan.segments) == 2
    return plan


class CoveredFaceDetector:
    """The detector of drawn faces, with a low presence from the eleventh to the twentieth frame."""

    name = "drawn-covered"
    smooth_s = 0.12

    def __init__(self, detector: faces.FaceDetector) -> None:
        self._detector = detector
        self._numbers = itertools.count()

    def detect(
        self, image: np.ndarray, previous: Sequence[faces.Detection] = (), *, search: bool = True
    ) -> list[faces.Detection]:
        presence = 0.7 if 10 <= next(self._numbers) < 20 else 1.0
        detections = self._detector.detect(image, previous, search=search)
        return [dataclasses.replace(face, presence=presence) for face in detections]


@pytest.mark.parametrize("has_matte", [False, True])
def test_warning_names_the_moments_of_a_covered_mouth(
    clip: Path, voice: Path, tmp_path: Path, pipeline: LipSyncPipeline, has_matte: bool
) -> None:
    matte = tmp_path / "matte.png"
    cv2.imwrite(str(matte), np.zeros((320, 320), np.uint8))
    covered = pipeline.clone_for_thread(CoveredFaceDetector(pipeline.detector))
    params = quick(matte=matte if has_matte else None)
    warnings = [
        warning
        for warning in covered(clip, voice, tmp_path / "out.mp4", params).warnings
        if warning.code is WarningCode.MOUTH_COVERED
    ]
    if has_matte:
        assert warnings == []
    else:
        (warning,) = warnings
        assert "0.4-0.76 s" in warning
        assert "--matte" in warning


DIGEST_SEGMENT = """
import hashlib, json, sys
from pathlib import Path
from lipsync_engine import LipSyncPipeline
from lipsync_engine.planning.plan import Plan
from lipsync_engine.rendering.render import render_frames
plan = Plan.load_portable(Path(sys.argv[1]))
model = LipSyncPipeline.from_pretrained("tiny", device="cpu").model
digests = {}
for index in map(int, sys.argv[2:]):
    digest = hashlib.sha256()
    for frame in render_frames(plan, plan.segments[index], model):
        for plane in (frame.y, frame.u, frame.v):
            digest.update(plane.tobytes())
    digests[index] = digest.hexdigest()
print(json.dumps(digests))
"""


def test_segments_do_not_depend_on_order_or_process(
    planned: Plan, pipeline: LipSyncPipeline, tmp_path: Path
) -> None:
    """Nor on where one ends and the next begins: backwards elsewhere is the same as in one go here."""
    for name, path in planned.portable_files().items():  # all that another machine is given
        shutil.copy(path, tmp_path / name)
    backward = [str(segment.index) for segment in reversed(planned.segments)]
    command = [sys.executable, "-c", DIGEST_SEGMENT, str(tmp_path), *backward]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    digests = json.loads(result.stdout.splitlines()[-1])
    assert len(set(digests.values())) == len(planned.segments)

    (whole,) = timeline.plan_segments(planned.n_frames, planned.windows, planned.header.fps, 60, 60)
    frames = render_frames(planned, whole, pipeline.model)
    for segment in planned.segments:
        digest = hashlib.sha256()
        for frame in itertools.islice(frames, segment.stop - segment.start):
            for plane in (frame.y, frame.u, frame.v):
                digest.update(plane.tobytes())
        assert digest.hexdigest() == digests[str(segment.index)]


class CountingModel:
    """A model that counts the windows it denoises."""

    def __init__(self, model: LipSyncModel) -> None:
        self._model, self.windows = model, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def denoise(self, *arguments: Any, **options: Any) -> Any:
        self.windows += 1
        return self._model.denoise(*arguments, **options)


def test_no_window_is_computed_twice_in_one_process(planned: Plan, pipeline: LipSyncPipeline) -> None:
    """A segment blends its first frames with a window of the segment before."""
    first, second = planned.segments
    model, latents = CountingModel(pipeline.model), {}
    for _ in render_frames(planned, first, model, latents):
        pass
    together = list(render_frames(planned, second, model, latents))
    assert model.windows == len(planned.windows[0])
    alone = list(render_frames(planned, second, model))
    assert model.windows > len(planned.windows[0]) + len(second.speaker_windows[0].windows)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.y, other.y)


def steps_and_borders(plan: Plan, clip: Path, pipeline: LipSyncPipeline) -> tuple[np.ndarray, set[int]]:
    """How much the generated region changes from each frame to the next, and where windows meet."""
    frames = [f.y.astype(np.float32) for s in plan.segments for f in render_frames(plan, s, pipeline.model)]
    source = luma(clip)
    changed = np.mean([np.abs(f - source[plan.arrays.order[i]]) for i, f in enumerate(frames)], axis=0) > 1.0
    steps = np.array([np.abs(b - a)[changed].mean() for a, b in itertools.pairwise(frames)])
    return steps, {w.output_frames[0] - 1 for w in plan.windows[0] if w.output_frames[0] > 0}


@pytest.mark.slow
def test_segment_borders_are_as_smooth_as_the_rest(
    clip: Path, tmp_path: Path, ffmpeg: Ffmpeg, pipeline: LipSyncPipeline
) -> None:
    """The same frames at a border and, cut otherwise, inside a window: what is said there cancels out."""
    voice = tmp_path / "voice.wav"
    ffmpeg("-stream_loop", -1, "-i", DEMO_VOICE, "-t", 10, voice)
    output = {}
    for overlap in (4, 5, 0):
        plan = make_plan(clip, voice, tmp_path, pipeline, quick(window_overlap=overlap))
        output[overlap] = steps_and_borders(plan, clip, pipeline)

    def roughness(overlap: int, other: int) -> float:
        (steps, borders), (smooth, elsewhere) = output[overlap], output[other]
        at = sorted(borders - elsewhere)
        return float(steps[at].mean() / smooth[at].mean())

    blended, hard = roughness(4, 5), roughness(0, 4)
    print(f"frame difference at window borders over inside: {blended:.3f}, without overlap {hard:.3f}")
    assert blended <= 1.05
    assert hard > 1.1  # the measure sees what blending removes


@pytest.mark.parametrize(
    ("params", "seconds", "frames"),
    [
        (quick(loop_mode=LoopMode.LOOP, seed=20), 2.6, 65),
        (quick(loop_mode=LoopMode.FREEZE, seed=21), 2.6, 65),
        (quick(loop_mode=LoopMode.REMAP, seed=22), 2.6, 65),
        (quick(tail=Tail.KEEP, seed=23), 1.0, 50),
        (quick(fps=Fraction(12), seed=24), 1.0, 12),
        (quick(fps=Fraction(50), seed=25), 1.0, 50),
    ],
    ids=["loop", "freeze", "remap", "keep", "12fps", "50fps"],
)
def test_loop_mode_tail_and_rate_set_the_length(
    params: SyncParams,
    seconds: float,
    frames: int,
    clip: Path,
    voice: Path,
    tmp_path: Path,
    ffmpeg: Ffmpeg,
    pipeline: LipSyncPipeline,
) -> None:
    sound = tmp_path / "sound.wav"
    ffmpeg("-stream_loop", -1, "-i", voice, "-t", seconds, sound)
    result = pipeline(clip, sound, tmp_path / "out.mp4", params)
    output = luma(result.output)
    assert result.frames == len(output) == frames
    if params.tail is Tail.KEEP:  # after the voice the source goes on untouched
        assert np.abs(output[30:].astype(int) - luma(clip)[30:frames]).mean() < 2.0


def test_one_frame_video_and_silent_audio_are_accepted(
    clip: Path, tmp_path: Path, ffmpeg: Ffmpeg, pipeline: LipSyncPipeline
) -> None:
    still, silence = tmp_path / "still.mp4", tmp_path / "silence.wav"
    ffmpeg("-i", clip, "-frames:v", 1, still)
    ffmpeg("-f", "lavfi", "-i", "anullsrc=r=44100", "-t", 0.8, silence)
    result = pipeline(still, silence, tmp_path / "out.mp4", quick())
    assert result.frames == 20
    output = luma(result.output).astype(int)
    assert np.abs(np.diff(output, axis=0)).mean() < 1.0  # a mouth at rest does not move
    assert result.warnings == ("The audio contains no speech: the lips rest throughout.",)


def test_output_audio_may_differ_from_driving_audio(
    clip: Path, voice: Path, tmp_path: Path, ffmpeg: Ffmpeg, pipeline: LipSyncPipeline
) -> None:
    mix = tmp_path / "mix.m4a"
    ffmpeg("-f", "lavfi", "-i", "sine=f=300:r=48000", "-t", 1.5, "-ac", 2, mix)
    result = pipeline(clip, voice, tmp_path / "out.mp4", quick(), output_audio=mix)
    sound = media.probe_audio(result.output)
    assert (sound.codec, sound.sample_rate, sound.channels) == ("aac", 48000, 2)


def test_unusual_file_names_are_accepted(
    clip: Path, voice: Path, tmp_path: Path, pipeline: LipSyncPipeline
) -> None:
    folder = tmp_path / 'it\'s a "folder"\n%d ünï 中文'
    folder.mkdir()
    video, sound = folder / "-in put;'.mp4", folder / "voice: [1].wav"
    video.write_bytes(clip.read_bytes())
    sound.write_bytes(voice.read_bytes())
    result = pipeline(video, sound, folder / "out 'x'.mp4", quick(seed=31))
    assert result.frames == 38


@pytest.mark.parametrize(("option", "kept"), [("matte", "white"), ("mask_image", "black")])
def test_masked_pixels_are_unchanged(
    option: str, kept: str, clip: Path, voice: Path, tmp_path: Path, ffmpeg: Ffmpeg, pipeline: LipSyncPipeline
) -> None:
    """The left half of the picture stays the source's; the mask has a size of its own."""
    mask, free = tmp_path / "mask.png", "black" if kept == "white" else "white"
    halves = f"color={kept}:s=80x160[a];color={free}:s=80x160[b];[a][b]hstack"
    ffmpeg("-filter_complex", halves, "-frames:v", 1, mask)
    result = pipeline(clip, voice, tmp_path / "out.mp4", quick(**{option: mask}, seed=32))
    output = luma(result.output).astype(float)
    off = np.abs(output - luma(clip)[: len(output)])
    assert np.mean(off[:, :, :156] ** 2) < 255**2 / 10**4.5
    assert off[:, :, 164:].max() > 30


def test_probe_and_doctor_print_their_reports(clip: Path, voice: Path, lipsync: Run) -> None:
    view = lipsync("probe", clip)
    assert view.returncode == 0, view.stderr
    assert "h264" in view.stdout
    assert "25 fps" in view.stdout
    assert "pcm_s16le" in lipsync("probe", voice).stdout
    health = lipsync("doctor", "--card-gb", 8)
    assert health.returncode == 0, health.stderr
    for word in ("device", "ffmpeg", "weights", "tiny", "latentsync-1.6"):
        assert re.search(rf"^\s*{re.escape(word)}", health.stdout, re.MULTILINE), word
    assert "off (LIPSYNC_COMPILE)" in health.stdout
    assert "off (LIPSYNC_FP8)" in health.stdout
    plan = "batched guidance, VAE batch 4: 5.5 of 7.5 GB"
    assert re.search(rf"plan latentsync-1.6 +{re.escape(plan)}", health.stdout)
