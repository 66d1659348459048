"""The sync score of any film: its faces are found first."""

from __future__ import annotations

import itertools
from contextlib import closing
from pathlib import Path

import numpy as np

from lipsync_engine import media
from lipsync_engine.errors import ErrorCode, FaceError
from lipsync_engine.faces import FaceDetector, FaceTracker, choose_speaker
from lipsync_engine.params import FaceChoice
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

MAX_YAW_DEG = 60.0
"""Heads turned further show too little of the mouth."""


def score_film(
    video: Path, sound: Path, scorer: SyncScorer, detector: FaceDetector, choice: FaceChoice | None = None
) -> SyncScore:
    """How well a film's lips and a voice belong together, over up to three stretches of four seconds.

    Args:
        video: file with the person.
        sound: file with the voice, often the same; its time 0 is the film's.
        choice: who speaks; None: the largest face.

    Raises:
        MediaError: a file cannot be used. FaceError: nobody is seen long enough.
    """
    faces = find_faces(video, scorer.side, detector, choice)
    found = scorer.measure(with_sound(faces, sound)) if faces else None
    if found is None:
        raise FaceError(
            ErrorCode.FACE_NOT_FOUND,
            f"No face is seen for {MIN_STRETCH_S:g} s in the parts that were looked at: use a film in which "
            "the speaker is seen, or another --detector.",
        )
    return found


def find_faces(
    video: Path, side: int, detector: FaceDetector, choice: FaceChoice | None = None
) -> list[tuple[float, Picture]]:
    """Of up to three stretches when they start, seconds, and their faces, uint8 (n, side, side, 3)."""
    info = media.probe_video(video)
    scale = min(1.0, MAX_SIDE / max(info.format.width, info.format.height))
    places = max(1, int(info.duration_s / STRETCH_S))
    found = []
    with closing(media.scan_frames(info, MAX_SIDE)) as frames:
        for place in spread(places):
            start_s = place * STRETCH_S
            shown = list(
                itertools.islice(at_25_fps(frames, info.frame_rate, start_s), round(STRETCH_S * FPS))
            )
            tracker = FaceTracker(detector, info.format.width, info.format.height)
            for number, picture in enumerate(shown):
                tracker.add(number / FPS, picture)
            tracks = tracker.snapshot(is_complete=True)
            if not tracks.tracks:
                continue
            path = choose_speaker(tracks, choice or FaceChoice(), MAX_YAW_DEG)
            usable = (path.weight > 0) & np.isfinite(path.points).all(axis=(1, 2))
            first, stop = longest_run(usable, path.shots)
            if stop - first >= MIN_STRETCH_S * FPS:
                where = squares(path.points[first:stop] * np.float32(scale))
                cuts = [
                    cut(picture, square, side)
                    for picture, square in zip(shown[first:stop], where, strict=True)
                ]
                found.append((start_s + first / FPS, np.stack(cuts)))
    return found
