"""A still picture and voices → a film of that picture in motion, which is then lip-synced like any other."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lipsync_engine import audio, faces, media, motion
from lipsync_engine.params import FaceChoice, Motion, SyncParams
from lipsync_engine.plan import speaker_paths
from lipsync_engine.progress import Meter, Progress, Stage


def animate(
    picture: npt.NDArray[np.uint8],
    people: Sequence[tuple[FaceChoice, Path]],
    film: Path,
    detector: faces.FaceDetector,
    params: SyncParams,
    how: Motion,
) -> Generator[Progress, None, None]:
    """Write the film: as long as the longest voice, 25 fps; a still one has one frame.

    Args:
        picture: uint8 (H, W, 3) with even sides.
        people: of each person the face and the voice.
        params: seed, masks and limits as for a job.

    Raises:
        FaceError: a face is not there. MediaError, ResourceError: of the voices, the disk.
    """
    height, width = picture.shape[:2]
    fps = Fraction(motion.FPS)
    if how is Motion.STILL:
        with media.PictureWriter(film, width, height, fps) as writer:
            writer.write(picture)
        return
    tracker = faces.FaceTracker(detector, width, height)
    tracker.add(0.0, picture)
    tracks = tracker.finish()
    paths = speaker_paths(tracks, params, (width, height), [face for face, _ in people])
    loud = [audio.loudness(media.read_audio(voice), motion.FPS) for _, voice in people]
    n = max(map(len, loud))
    does = [
        motion.moves(np.pad(each, (0, n - len(each))), params.seed + number)
        for number, each in enumerate(loud)
    ]
    meter = Meter(Stage.MOTION, n)
    with media.PictureWriter(film, width, height, fps) as writer:
        eyes = motion.DRAWN if detector.name.startswith("drawn") else motion.PHOTOGRAPHED
        pictures = motion.animated(picture, [path.points[0] for path in paths], does, eyes)
        for done, moved in enumerate(pictures, start=1):
            writer.write(moved)
            yield meter.at(done)
