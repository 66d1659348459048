"""Sync score of a job, whose plan contains the faces."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from lipsync_engine import media
from lipsync_engine.faces import align
from lipsync_engine.planning.plan import Plan
from lipsync_engine.planning.timeline import Segment
from lipsync_engine.sync_score.crop import compute_squares, crop_square
from lipsync_engine.sync_score.measure import FPS, SyncScore, SyncScorer
from lipsync_engine.sync_score.windows import (
    MAX_SIDE,
    MIN_WINDOW_S,
    WINDOW_S,
    attach_audio,
    longest_run,
    resample_to_25_fps,
    spread_evenly,
)
from lipsync_engine.utils import ImageArray


def score_job(
    plan: Plan, files: Sequence[Path], voices: Sequence[Path], scorer: SyncScorer
) -> SyncScore | None:
    """Score the generated lips against the voices; with several speakers return the lowest score.

    Args:
        plan: of the job.
        files: its finished segments, one per segment of the plan.
        voices: audio file of each speaker.

    Returns:
        None if no speaker talks for one second without a pause.
    """
    scores = []
    for speaker, voice in enumerate(voices):
        runs = [_longest_spoken_run(plan, speaker, segment) for segment in plan.segments]
        fps = float(plan.header.fps)
        candidates = [n for n, (start, stop) in enumerate(runs) if stop - start >= MIN_WINDOW_S * fps]
        chosen = [candidates[i] for i in spread_evenly(len(candidates))] if candidates else []
        faces = [_crop_faces(plan, speaker, plan.segments[n], files[n], runs[n], scorer.side) for n in chosen]
        if faces and (score := scorer.score(attach_audio(faces, voice))) is not None:
            scores.append(score)
    return min(scores, key=lambda score: score.confidence, default=None)


def _longest_spoken_run(plan: Plan, speaker: int, segment: Segment) -> tuple[int, int]:
    """Return [start, stop) of the longest run of output frames that show this speaker talking."""
    frames = slice(segment.start, segment.stop)
    speaking = (plan.arrays.weight[speaker, frames] > 0.5) & (plan.arrays.gate[speaker, frames] > 0.5)
    start, stop = longest_run(speaking, plan.arrays.shots[frames])
    return segment.start + start, segment.start + stop


def _crop_faces(
    plan: Plan, speaker: int, segment: Segment, file: Path, run: tuple[int, int], side: int
) -> tuple[float, ImageArray]:
    """Return the start of a run in seconds, and its face crops at 25 per second."""
    fps, info = plan.header.fps, media.probe_video(file)
    start_s = run[0] / float(fps)
    numbers = np.arange(segment.start, segment.stop)
    scale = min(1.0, MAX_SIDE / max(info.format.width, info.format.height))
    scale *= info.format.width / plan.header.video.format.width
    squares = compute_squares(_face_points(plan, speaker, numbers) * np.float32(scale))
    with closing(media.scan_frames(info, MAX_SIDE)) as frames:
        timed_numbers = ((n / float(fps), n) for n in range(*run))
        resampled = itertools.islice(resample_to_25_fps(timed_numbers, fps, start_s), round(WINDOW_S * FPS))
        needed = [n - segment.start for n in resampled]
        crops: list[ImageArray] = []
        for number, (_, frame) in enumerate(frames):
            crops += [crop_square(frame, squares[number], side)] * needed.count(number)
            if number >= needed[-1]:
                break
    return start_s, np.stack(crops)


def _face_points(plan: Plan, speaker: int, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return (n, 3, 2) alignment points of output frames in source pixels.

    A frame without a face gets the points of the nearest frame with one.
    """
    template = np.column_stack([align.template_points(plan.header.model.resolution), np.ones(3)])
    matrices = plan.arrays.matrices[speaker, plan.arrays.order[numbers]]
    with_face = np.flatnonzero(np.isfinite(matrices).all(axis=(1, 2)))
    nearest = with_face[np.abs(with_face[None] - np.arange(len(numbers))[:, None]).argmin(axis=1)]
    points = [template @ cv2.invertAffineTransform(matrices[n]).T for n in nearest]
    return np.array(points, dtype=np.float32)
