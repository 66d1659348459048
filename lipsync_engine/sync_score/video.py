"""Sync score of any video: faces are detected first."""

from __future__ import annotations

import itertools
from contextlib import closing
from pathlib import Path

import numpy as np

from lipsync_engine import media
from lipsync_engine.errors import ErrorCode, FaceError
from lipsync_engine.faces import FaceDetector, FaceTracker, choose_speaker
from lipsync_engine.params import FaceChoice
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

MAX_YAW_DEG = 60.0
"""Faces turned further show too little of the mouth."""


def score_video(
    video: Path, audio: Path, scorer: SyncScorer, detector: FaceDetector, choice: FaceChoice | None = None
) -> SyncScore:
    """Score a video's lips against a voice, over up to three windows of four seconds.

    Args:
        video: file with the person.
        audio: file with the voice, often the same; its time 0 is the video's.
        choice: who speaks; None: the largest face.

    Raises:
        MediaError: a file cannot be used.
        FaceError: no face is visible for long enough.
    """
    faces = extract_face_windows(video, scorer.side, detector, choice)
    score = scorer.score(attach_audio(faces, audio)) if faces else None
    if score is None:
        raise FaceError(
            ErrorCode.FACE_NOT_FOUND,
            f"No face is visible for {MIN_WINDOW_S:g} s in the examined parts of the video: use a video that "
            "shows the speaker, or another --detector.",
        )
    return score


def extract_face_windows(
    video: Path, side: int, detector: FaceDetector, choice: FaceChoice | None = None
) -> list[tuple[float, ImageArray]]:
    """Extract up to three windows: start in seconds, and face crops, uint8 (n, side, side, 3)."""
    info = media.probe_video(video)
    scale = min(1.0, MAX_SIDE / max(info.format.width, info.format.height))
    count = max(1, int(info.duration_s / WINDOW_S))
    windows = []
    with closing(media.scan_frames(info, MAX_SIDE)) as scan:
        for index in spread_evenly(count):
            start_s = index * WINDOW_S
            resampled = resample_to_25_fps(scan, info.frame_rate, start_s)
            frames = list(itertools.islice(resampled, round(WINDOW_S * FPS)))
            tracker = FaceTracker(detector, info.format.width, info.format.height)
            for number, frame in enumerate(frames):
                tracker.add(number / FPS, frame)
            tracks = tracker.snapshot(is_complete=True)
            if not tracks.tracks:
                continue
            path = choose_speaker(tracks, choice or FaceChoice(), MAX_YAW_DEG)
            usable = (path.weight > 0) & np.isfinite(path.points).all(axis=(1, 2))
            first, stop = longest_run(usable, path.shots)
            if stop - first >= MIN_WINDOW_S * FPS:
                squares = compute_squares(path.points[first:stop] * np.float32(scale))
                crops = [
                    crop_square(frame, square, side)
                    for frame, square in zip(frames[first:stop], squares, strict=True)
                ]
                windows.append((start_s + first / FPS, np.stack(crops)))
    return windows
