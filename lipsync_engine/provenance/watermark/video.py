"""Watermark detection in a video file: faces are detected, aligned and averaged."""

from __future__ import annotations

import itertools
from contextlib import closing
from pathlib import Path

import numpy as np

from lipsync_engine import media
from lipsync_engine.faces import FaceDetector, FaceTracker, align, choose_speaker
from lipsync_engine.faces.compositor import SoftCompositor
from lipsync_engine.params import FaceChoice
from lipsync_engine.provenance.watermark.pattern import PATTERN_SIDE, WatermarkDetector, WatermarkResult

MAX_FRAMES = 150
"""Number of frames that are examined, from the start of the video."""

MAX_SIDE = 960
"""Longest side to which frames are downscaled."""

MAX_YAW_DEG = 60.0
"""Faces turned further cannot be aligned well."""


def read_watermark(video: Path, detector: FaceDetector) -> WatermarkResult:
    """Detect the watermark in the largest face of a video's first 150 frames.

    Raises:
        MediaError, InputError: the file cannot be used.
    """
    return average_faces(video, detector).result()


def average_faces(video: Path, detector: FaceDetector) -> WatermarkDetector:
    """Add the largest face of each examined frame to a watermark detector."""
    info = media.probe_video(video)
    tracker = FaceTracker(detector, info.format.width, info.format.height)
    frames = []
    with closing(media.scan_frames(info, MAX_SIDE)) as scan:
        for pts_s, frame in itertools.islice(scan, MAX_FRAMES):
            tracker.add(pts_s, frame)
            frames.append(frame)
    watermark, tracks = WatermarkDetector(), tracker.snapshot(is_complete=True)
    if not tracks.tracks:
        return watermark
    path = choose_speaker(tracks, FaceChoice(), MAX_YAW_DEG)
    scale = np.float32(frames[0].shape[1] / info.format.width)
    mask = np.ones((PATTERN_SIDE, PATTERN_SIDE), np.float32)
    matrices = SoftCompositor(mask, info.sample_aspect_ratio).matrices(path.points * scale)
    for frame, matrix, weight in zip(frames, matrices, path.weight, strict=True):
        if weight > 0 and np.isfinite(matrix).all():
            box = align.face_region(matrix, PATTERN_SIDE, frame.shape[1], frame.shape[0])
            region = frame[box[1] : box[3], box[0] : box[2]].astype(np.float32)
            watermark.add_face(align.crop_face(region, align.shift_matrix(matrix, box), PATTERN_SIDE))
    return watermark
