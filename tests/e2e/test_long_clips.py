"""Long clips: the first segments are planned and shown before the rest is read, and nothing else changes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lipsync_engine import LipSyncPipeline, Stage, SyncParams, Tail, faces, media
from lipsync_engine.params import FaceChoice
from lipsync_engine.planning.plan import Plan
from lipsync_engine.planning.planner import plan_job
from lipsync_engine.progress import Progress
from lipsync_engine.utils import drain

Ffmpeg = Callable[..., None]
SECONDS = 34


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> LipSyncPipeline:
    cache = tmp_path_factory.mktemp("cache")
    return LipSyncPipeline.from_pretrained("tiny", device="cpu", cache_dir=cache)


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory, clip: Path, ffmpeg: Ffmpeg) -> Path:
    """The presenter, gone for two seconds after half a minute; 850 frames."""
    path = tmp_path_factory.mktemp("long") / "clip.mp4"
    away = "drawbox=color=gray:thickness=fill:enable='between(t,29,31)'"
    ffmpeg("-stream_loop", -1, "-i", clip, "-t", SECONDS, "-vf", f"scale=128:-2,{away}", "-crf", 18, path)
    return path


@pytest.fixture(scope="session")
def long_voice(make_voice: Callable[[float], Path]) -> Path:
    return make_voice(SECONDS - 1)


def plans(
    pipeline: LipSyncPipeline, video: Path, voice: Path, params: SyncParams, folder: Path
) -> tuple[list[Plan], list[int]]:
    """All drafts and the complete plan, and how many frames had been looked at before each."""
    folder.mkdir()
    steps = plan_job(
        media.probe_video(video),
        [(FaceChoice(), media.probe_audio(voice))],
        params,
        model=pipeline.model,
        detector=pipeline.detector,
        cache=faces.AnalysisCache(folder / "cache"),
        video_hash=media.content_hash(video),
        folder=folder,
    )
    drafts: list[Plan] = []
    frames_before: list[int] = []
    n_frames = 0

    def record(step: Progress | Plan) -> None:
        nonlocal n_frames
        if isinstance(step, Plan):
            drafts.append(step)
            frames_before.append(n_frames)
        elif step.stage is Stage.FACES:
            n_frames = step.done

    plan = drain(steps, record)
    return [*drafts, plan], [*frames_before, n_frames]


@pytest.mark.parametrize("tail", [Tail.CUT, pytest.param(Tail.KEEP, marks=pytest.mark.slow)])
def test_partial_plans_agree_with_the_final_plan(
    tail: Tail, pipeline: LipSyncPipeline, long_clip: Path, long_voice: Path, tmp_path: Path
) -> None:
    params = SyncParams(tail=tail)
    (*drafts, plan), looked = plans(pipeline, long_clip, long_voice, params, tmp_path / "a")
    assert len(drafts) >= 2
    assert looked[0] <= 14 * 25
    assert drafts[0].ready_segments
    assert not any(draft.is_complete for draft in drafts)
    for draft in drafts:
        ready = draft.ready_segments
        assert ready == plan.segments[: len(ready)]
        n = ready[-1].stop
        for name in ("order", "shots"):
            np.testing.assert_array_equal(getattr(draft.arrays, name)[:n], getattr(plan.arrays, name)[:n])
        for name in ("weight", "gate"):
            early, late = getattr(draft.arrays, name), getattr(plan.arrays, name)
            np.testing.assert_array_equal(early[:, :n], late[:, :n])
        rows = draft.arrays.order[:n]
        np.testing.assert_array_equal(draft.arrays.matrices[:, rows], plan.arrays.matrices[:, rows])
        needed = {
            k
            for segment in ready
            for k in (*segment.speaker_windows[0].context_windows, *segment.speaker_windows[0].windows)
        }
        assert all(draft.windows[0][k] == plan.windows[0][k] for k in needed)
    if tail is Tail.CUT:
        assert plan.n_frames == (SECONDS - 1) * 25
    assert plan.frames_without_face > 40


def test_video_is_read_only_as_far_as_the_voice_needs(
    pipeline: LipSyncPipeline, long_clip: Path, voice: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "a"
    (plan,), (looked,) = plans(pipeline, long_clip, voice, SyncParams(), folder)
    assert plan.n_frames == 38
    assert looked < 15 * 25
    again = plan_job(
        media.probe_video(long_clip),
        [(FaceChoice(), media.probe_audio(voice))],
        SyncParams(),
        model=pipeline.model,
        detector=pipeline.detector,
        cache=faces.AnalysisCache(folder / "cache"),
        video_hash=media.content_hash(long_clip),
        folder=folder,
    )
    assert {step.stage for step in again} == {Stage.AUDIO}  # what was read is remembered


def test_first_segment_is_rendered_before_the_video_is_read(
    pipeline: LipSyncPipeline, long_clip: Path, long_voice: Path, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    """And an interrupted run keeps it, although there was no plan yet."""
    voice, made = tmp_path / "voice.wav", tmp_path / "made.mp4"
    ffmpeg("-i", long_voice, "-t", 15, voice)
    params = SyncParams(num_inference_steps=1, guidance_scale=1.0)
    steps = pipeline.run(long_clip, voice, made, params)
    seen = list(itertools.takewhile(lambda step: step.stage is not Stage.RENDER, steps))
    assert 13 * 25 <= seen[-1].done < 14 * 25
    next(step for step in steps if step.stage is Stage.FACES)
    steps.close()
    (folder,) = (pipeline.cache_dir / "jobs").iterdir()
    kept = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(kept) == {"segment-00000.mp4"}

    seen, times = [], set()
    for step in pipeline.run(long_clip, voice, made, params):
        seen.append(step)
        if step.stage is Stage.RENDER:
            times.add((folder / "segment-00000.mp4").stat().st_mtime_ns)
    assert times == set(kept.values())
    stages = [stage for stage, _ in itertools.groupby(report.stage for report in seen)]
    told = [step.segment.index for step in seen if step.segment is not None]
    assert stages == [
        Stage.AUDIO, Stage.FACES, Stage.RENDER, Stage.FACES, Stage.RENDER, Stage.ASSEMBLE,
    ]  # fmt: skip
    assert told == [0, 1, 2]
    shown = [step for step in seen if step.stage is Stage.RENDER]
    assert [step.done for step in shown] == sorted(step.done for step in shown)
    assert {(step.total, step.resumed) for step in shown} == {
        (375, 50)
    }  # the clip repeats after 50 frames, and a jump ends a segment
    assert len(list(media.scan_frames(media.probe_video(made), 64))) == 375
