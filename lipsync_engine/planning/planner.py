"""`plan_job`: one pass over the audio and one over the video, and from them the whole plan of a job.

A long clip is not read to its end before rendering starts: drafts of the plan are yielded on the way, and
their ready segments can be rendered at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import numpy as np

from lipsync_engine import faces, media
from lipsync_engine.audio import features as audio_features
from lipsync_engine.audio.silero import load_silero
from lipsync_engine.audio.vad import VoiceActivity, VoiceDetector
from lipsync_engine.errors import ErrorCode, FaceError
from lipsync_engine.faces.compositor import compositor_for
from lipsync_engine.media import AudioInfo, VideoInfo
from lipsync_engine.models import LipSyncModel
from lipsync_engine.params import IMAGE_SUFFIXES, FaceChoice, LoopMode, SyncParams, Tail
from lipsync_engine.planning import timeline
from lipsync_engine.planning.plan import Plan, PlanArrays, PlanHeader, features_path
from lipsync_engine.progress import Meter, Progress, Stage, meter_steps
from lipsync_engine.utils import Float64Array, FloatArray, IntArray

ANALYSIS_MAX_SIDE = 960
"""Faces are detected in frames scaled down to this longest side, pixels."""

FIRST_DRAFT_S, DRAFT_SPACING = 13.0, 1.5
"""Source time of the first draft, and the factor from each draft to the next. Early enough for a viewer, late
enough that the first segment is settled (see `faces` on the choice of a speaker, and `SEGMENT_S`)."""

MATTE_SCAN_MAX_SIDE = 64
"""A matte video is scanned for its frame times only, so its pixels are scaled down to this side."""

TAIL_FADE_S = 0.2
"""If the video continues after the audio, the generated mouth fades into the source's over this time."""


def plan_job(
    video: VideoInfo,
    speakers: Sequence[tuple[FaceChoice, AudioInfo]],
    params: SyncParams,
    *,
    model: LipSyncModel,
    detector: faces.FaceDetector,
    cache: faces.AnalysisCache,
    video_hash: str,
    folder: Path,
) -> Generator[Progress | Plan, None, Plan]:
    """Read audio and video once and decide everything.

    Args:
        video: as probed.
        speakers: the face and the probed audio of each.
        params: options of the job; `params.face` is not used.
        model: defines the audio encoder, the crop's geometry and the window.
        detector: detects faces unless `params.faces_file` is set.
        cache: face tracks by `video_hash`: other audio for the same video skips detection.
        folder: private to the job; takes the plan and the audio features.

    Yields:
        Progress of the two stages. For a longer clip also drafts of the plan, whose ready segments can be
        rendered before the rest is read.

    Raises:
        MediaError: a file ends early or cannot be decoded.
        FaceError: no usable face.
    """
    # 1. Audio: log-mel to disk, then the encoder's hidden states.
    audio = []
    for number, (_, info) in enumerate(speakers):
        audio.append((yield from _extract_audio_features(info, params, model, folder, number)))

    # 2. Faces: every frame once, scaled down, until all that the result shows is known.
    planner = Planner(video, [face for face, _ in speakers], params, model, folder, audio)
    key = faces.analysis_key(video_hash, "given" if params.faces_file is not None else detector.name)
    cached_tracks = cache.get(key)
    plan = None if cached_tracks is None else planner.make_plan(cached_tracks, is_cached=True)
    if plan is None or not plan.is_complete:
        with closing(_track_faces(video, params, detector)) as steps:
            for step in steps:
                if isinstance(step, Progress):
                    progress = step
                    yield progress
                elif (plan := planner.make_plan(step)) is not None:
                    if plan.is_complete:
                        cache.put(key, step)
                        yield dataclasses.replace(progress, total=progress.done)  # the rest is not needed
                        break
                    yield plan
    if plan is None:
        raise AssertionError("tracks of a whole clip always give a plan")

    # 3. The whole plan.
    if not plan.arrays.weight.any(axis=1).all():
        remedy = "Use another part of the video, or give the face with a faces file."
        if detector.name.startswith("drawn"):
            remedy = (
                "The tiny model knows drawn presenters only; people need a LatentSync model (docs/models.md)."
            )
        raise FaceError(
            ErrorCode.FACE_NOT_FOUND,
            f"No usable face is visible while the voice speaks: of {plan.header.n_audio} frames "
            f"{faces.describe_untouched(plan.untouched)}. {remedy}",
        )
    plan.save()
    return plan


class Planner:
    """Makes plans from face tracks of a whole clip or of its beginning.

    Args:
        choices: the face of each speaker.
        audio: audio features of each speaker, and the voice activity unless the voice gate is off.
    """

    def __init__(
        self,
        video: VideoInfo,
        choices: Sequence[FaceChoice],
        params: SyncParams,
        model: LipSyncModel,
        folder: Path,
        audio: Sequence[tuple[audio_features.AudioFeatures, VoiceActivity | None]],
    ) -> None:
        self._video, self._choices, self._params, self._model = video, choices, params, model
        self._folder = folder
        self._activities = [activity for _, activity in audio if activity is not None]
        self._fps = params.fps or video.frame_rate
        if params.reference_numerics:
            counts = [timeline.count_reference_audio_frames(features.length) for features, _ in audio]
        else:
            counts = [timeline.count_audio_frames(features.duration_s, self._fps) for features, _ in audio]
        self._n_audio = max(counts)
        self._compositor = compositor_for(params, model.keep_mask, video)
        self._matte, self._matte_pts_s = _probe_matte(params.matte)

    def make_plan(self, tracks: faces.FaceTracks, *, is_cached: bool = False) -> Plan | None:
        """Return a plan, or None if the tracks are too short to decide anything.

        Args:
            is_cached: the tracks came from an earlier job.
        """
        params, video, fps = self._params, self._video, self._fps
        size = video.format.width, video.format.height
        paths = faces.speaker_paths(tracks, params, size, self._choices)
        source_frames = timeline.conform_to_rate(tracks.pts_s, fps, video.frame_rate)
        if tracks.is_complete:
            order = source_frames[
                timeline.source_order(
                    len(source_frames),
                    self._n_audio,
                    params.loop_mode,
                    params.tail,
                    repeat_ends=params.reference_numerics,
                )
            ]
        else:
            n_settled = int(np.searchsorted(source_frames, min(path.n_settled for path in paths)))
            order = source_frames[: self._count_certain_frames(n_settled)]
        is_complete = tracks.is_complete or (params.tail is Tail.CUT and len(order) == self._n_audio)
        weight = np.stack([path.weight[order] for path in paths])
        if tracks.is_complete or len(order) > self._n_audio:
            weight *= _tail_fade(len(order), self._n_audio, fps)
        if not is_complete and not weight.any(axis=1).all():
            return None
        gate = np.ones(weight.shape, dtype=np.float32)
        if self._activities:
            times_s = np.arange(len(order)) / float(fps)
            gate = np.stack([activity.gate(times_s) for activity in self._activities])
        header = PlanHeader(
            video,
            params,
            self._model.info,
            fps,
            self._n_audio,
            is_cached,
            self._matte,
            is_gate_bypassed=any(activity.is_bypassed for activity in self._activities),
            covered_s=_find_covered(paths, tracks.pts_s, order[: self._n_audio]),
            people=self._describe_people(tracks),
        )
        arrays = PlanArrays(
            pts_s=tracks.pts_s,
            matrices=np.stack([self._compositor.matrices(path.points) for path in paths]),
            order=order,
            shots=faces.merge_shots(paths)[order],
            weight=weight.astype(np.float32),
            gate=gate,
            reasons=np.stack([path.reasons[order] for path in paths]),
            matte_pts_s=self._matte_pts_s,
        )
        return Plan(self._folder, header, arrays, is_complete=is_complete)

    def _describe_people(self, tracks: faces.FaceTracks) -> str:
        """List the people if several are visible at once and the largest was taken for want of a choice."""
        params = self._params
        has_choice = params.faces_file or params.face_mask or params.mask_image
        if has_choice or list(self._choices) != [FaceChoice()] or faces.count_people(tracks) < 2:
            return ""
        return faces.describe_people(tracks)

    def _count_certain_frames(self, n_settled: int) -> int:
        """Return how many output frames no later source frame can change.

        The video may still have any length, which matters for REMAP and for the fade before a kept tail.
        """
        params, n_audio = self._params, self._n_audio
        if params.loop_mode is LoopMode.REMAP:
            return 0
        if params.tail is Tail.CUT:
            return min(n_settled, n_audio)
        before_fade = n_audio - math.ceil(TAIL_FADE_S * float(self._fps))
        return n_settled if n_settled > n_audio else max(0, min(n_settled, before_fade))


def _find_covered(
    paths: Sequence[faces.FacePath], pts_s: Float64Array, order: IntArray
) -> tuple[tuple[float, float], ...]:
    """Return the intervals of the source in which a face is replaced although something seems to cover it.

    Args:
        paths: of the speakers.
        pts_s: (S,) times of the source frames.
        order: (N,) source frames during the audio.
    """
    is_covered = np.any([path.is_covered & (path.weight > 0) for path in paths], axis=0)
    shown = slice(int(order.min()), int(order.max()) + 1) if len(order) else slice(0)
    return faces.covered_intervals(is_covered[shown], pts_s[shown])


def _extract_audio_features(
    audio: AudioInfo, params: SyncParams, model: LipSyncModel, folder: Path, speaker: int
) -> Generator[Progress, None, tuple[audio_features.AudioFeatures, VoiceActivity | None]]:
    writer = audio_features.MelWriter(folder / f"mel-{speaker}")
    voice_detector = VoiceDetector(load_silero()) if params.voice_gate else None
    with closing(media.read_audio(audio.path)) as samples:
        for chunk in samples:
            writer.add(chunk)
            if voice_detector is not None:
                voice_detector.add(chunk)
    mel = writer.finish()
    steps = audio_features.encode_mel(
        mel, model.audio_encoder, features_path(folder, speaker), reference=params.reference_numerics
    )
    features = yield from meter_steps(Stage.AUDIO, steps)
    return features, None if voice_detector is None else voice_detector.finish()


def _track_faces(
    video: VideoInfo, params: SyncParams, detector: faces.FaceDetector
) -> Generator[Progress | faces.FaceTracks, None, None]:
    """Yield progress per frame and the face tracks; for a long clip also tracks of its beginning."""
    has_faces_file = params.faces_file is not None
    tracker = faces.FaceTracker(None if has_faces_file else detector, video.format.width, video.format.height)
    meter = Meter(Stage.FACES, round(video.duration_s * float(video.frame_rate)))
    # A faces file describes the whole clip, so tracks of its beginning would not match it.
    next_draft_s = float("inf") if has_faces_file else FIRST_DRAFT_S
    with closing(media.scan_frames(video, ANALYSIS_MAX_SIDE)) as frames:
        for done, (pts_s, image) in enumerate(frames, start=1):
            tracker.add(pts_s, image)
            yield meter.at(done)
            if pts_s >= next_draft_s:
                next_draft_s = DRAFT_SPACING * pts_s
                yield tracker.snapshot(is_complete=False)
    yield tracker.snapshot(is_complete=True)


def _probe_matte(path: Path | None) -> tuple[VideoInfo | None, Float64Array]:
    """Return a matte video's properties and frame times; None and no times for an image or no matte."""
    if path is None or path.suffix.lower() in IMAGE_SUFFIXES:
        return None, np.empty(0)
    info = media.probe_video(path)
    return info, np.array([pts_s for pts_s, _ in media.scan_frames(info, MATTE_SCAN_MAX_SIDE)])


def _tail_fade(n_frames: int, n_audio: int, fps: Fraction) -> FloatArray:
    """Return (n_frames,) 1 during the audio, 0 after it, with a raised-cosine fade before its end."""
    fade = np.ones(n_frames, dtype=np.float32)
    if n_audio < n_frames:
        fade[n_audio:] = 0.0
        ramp = min(n_audio, max(1, round(TAIL_FADE_S * float(fps))))
        position = (np.arange(ramp) + 1) / (ramp + 1)
        fade[n_audio - ramp : n_audio] = 0.5 + 0.5 * np.cos(np.pi * position)
    return fade
