"""The sync score of a job: its plan knows where the faces are."""

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
from lipsync_engine.sync_score.crop import cut, squares
from lipsync_engine.sync_score.measure import FPS, SyncScore, SyncScorer
from lipsync_engine.sync_score.windows import (
    MAX_SIDE,
    MIN_STRETCH_S,
    STRETCH_S,
    Picture,
    at_25_fps,
    longest_run,
    spread,
    with_sound,
)


def score_job(
    plan: Plan, files: Sequence[Path], voices: Sequence[Path], scorer: SyncScorer
) -> SyncScore | None:
    """How well the generated lips and the voices belong together; of several speakers the worst.

    Args:
        plan: of the job.
        files: its finished segments, one per segment of the plan.
        voices: what drives each speaker's lips.

    Returns:
        None where nobody speaks for a second on end.
    """
    found = []
    for speaker, voice in enumerate(voices):
        runs = [_spoken(plan, speaker, segment) for segment in plan.segments]
        fps = float(plan.header.fps)
        long = [n for n, (start, stop) in enumerate(runs) if stop - start >= MIN_STRETCH_S * fps]
        chosen = [long[i] for i in spread(len(long))] if long else []
        faces = [_faces(plan, speaker, plan.segments[n], files[n], runs[n], scorer.side) for n in chosen]
        if faces and (score := scorer.measure(with_sound(faces, voice))) is not None:
            found.append(score)
    return min(found, key=lambda score: score.confidence, default=None)


def _spoken(plan: Plan, speaker: int, segment: Segment) -> tuple[int, int]:
    """[start, stop) of the longest run of output frames in which this speaker is shown speaking."""
    part = slice(segment.start, segment.stop)
    shown = (plan.arrays.weight[speaker, part] > 0.5) & (plan.arrays.gate[speaker, part] > 0.5)
    start, stop = longest_run(shown, plan.arrays.shots[part])
    return segment.start + start, segment.start + stop


def _faces(
    plan: Plan, speaker: int, segment: Segment, file: Path, run: tuple[int, int], side: int
) -> tuple[float, Picture]:
    """When the run starts, and its faces at 25 per second."""
    fps, info = plan.header.fps, media.probe_video(file)
    start_s = run[0] / float(fps)
    numbers = np.arange(segment.start, segment.stop)
    scale = min(1.0, MAX_SIDE / max(info.format.width, info.format.height))
    scale *= info.format.width / plan.header.video.format.width
    where = squares(_points(plan, speaker, numbers) * np.float32(scale))
    with closing(media.scan_frames(info, MAX_SIDE)) as frames:
        placed = ((n / float(fps), n) for n in range(*run))
        wanted = itertools.islice(at_25_fps(placed, fps, start_s), round(STRETCH_S * FPS))
        needed = [n - segment.start for n in wanted]
        cuts: list[Picture] = []
        for number, (_, picture) in enumerate(frames):
            cuts += [cut(picture, where[number], side)] * needed.count(number)
            if number >= needed[-1]:
                break
    return start_s, np.stack(cuts)


def _points(plan: Plan, speaker: int, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """(n, 3, 2) alignment points of output frames, in the source's pixels; without a face the nearest's."""
    template = np.column_stack([align.template_points(plan.header.model.resolution), np.ones(3)])
    matrices = plan.arrays.matrices[speaker, plan.arrays.order[numbers]]
    known = np.flatnonzero(np.isfinite(matrices).all(axis=(1, 2)))
    nearest = known[np.abs(known[None] - np.arange(len(numbers))[:, None]).argmin(axis=1)]
    back = [template @ cv2.invertAffineTransform(matrices[n]).T for n in nearest]
    return np.array(back, dtype=np.float32)
