"""Looking for the mark in a film: its faces are found, aligned and averaged."""

from __future__ import annotations

import itertools
from contextlib import closing
from pathlib import Path

import numpy as np

from lipsync_engine import media
from lipsync_engine.faces import FaceDetector, FaceTracker, align, choose_speaker
from lipsync_engine.faces.compositor import SoftCompositor
from lipsync_engine.params import FaceChoice
from lipsync_engine.provenance.watermark.pattern import SIDE, Watermark, WatermarkReader

FRAMES = 150
"""So many from the film's start are looked at."""

MAX_SIDE = 960
"""Pictures are looked at scaled down to this longest side."""

MAX_YAW_DEG = 60.0
"""Heads turned further are not aligned well."""


def read_watermark(film: Path, detector: FaceDetector) -> Watermark:
    """Look for the mark in the largest face of a film's first 150 frames.

    Raises:
        MediaError, InputError: the file cannot be used.
    """
    return averaged_faces(film, detector).result()


def averaged_faces(film: Path, detector: FaceDetector) -> WatermarkReader:
    """The faces that are looked at, in a reader."""
    info = media.probe_video(film)
    tracker = FaceTracker(detector, info.format.width, info.format.height)
    pictures = []
    with closing(media.scan_frames(info, MAX_SIDE)) as frames:
        for pts_s, picture in itertools.islice(frames, FRAMES):
            tracker.add(pts_s, picture)
            pictures.append(picture)
    reader, tracks = WatermarkReader(), tracker.snapshot(is_complete=True)
    if not tracks.tracks:
        return reader
    path = choose_speaker(tracks, FaceChoice(), MAX_YAW_DEG)
    scale = np.float32(pictures[0].shape[1] / info.format.width)
    whole = np.ones((SIDE, SIDE), np.float32)
    matrices = SoftCompositor(whole, info.sample_aspect_ratio).matrices(path.points * scale)
    for picture, matrix, weight in zip(pictures, matrices, path.weight, strict=True):
        if weight > 0 and np.isfinite(matrix).all():
            box = align.face_region(matrix, SIDE, picture.shape[1], picture.shape[0])
            region = picture[box[1] : box[3], box[0] : box[2]].astype(np.float32)
            reader.add(align.crop_face(region, align.shift_matrix(matrix, box), SIDE))
    return reader
