"""A still picture and voices → a film of that picture in motion, which is then lip-synced like any other."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from lipsync_engine import faces, media
from lipsync_engine.audio import vad
from lipsync_engine.cache import drop_oldest
from lipsync_engine.errors import InputError
from lipsync_engine.models import find_image_to_video_entry
from lipsync_engine.params import FaceChoice, Motion, SyncParams
from lipsync_engine.portrait import animation
from lipsync_engine.progress import Meter, Progress, Stage
from lipsync_engine.weights import WeightsStore

Picture = npt.NDArray[np.uint8]

CLIPS_MAX_BYTES = 2 * 2**30

CLIP_FORMAT = 1
"""Raised when clips are made differently, so that older ones are not used."""


def animate(
    picture: Picture,
    people: Sequence[tuple[FaceChoice, Path]],
    film: Path,
    detector: faces.FaceDetector,
    params: SyncParams,
    how: Motion | Clips,
) -> Generator[Progress, None, None]:
    """Write the film: as long as the longest voice, 25 fps; a still one has one frame.

    Args:
        picture: uint8 (H, W, 3) with even sides; the film has its size.
        people: of each person the face and the voice.
        params: seed, masks and limits as for a job.
        how: what the head does; for generated motion where its clips come from.

    Yields:
        Progress of the pictures; for generated motion first of the denoising steps.

    Raises:
        FaceError: a face is not there. MediaError, ResourceError: of the voices, the disk.
        OutputError: the generated motion is no picture.
    """
    height, width = picture.shape[:2]
    fps = Fraction(animation.FPS)
    if how is Motion.STILL:
        with media.RgbVideoWriter(film, width, height, fps) as writer:
            writer.write(picture)
        return
    tracker = faces.FaceTracker(detector, width, height)
    tracker.add(0.0, picture)
    tracks = tracker.snapshot(is_complete=True)
    paths = faces.speaker_paths(tracks, params, (width, height), [face for face, _ in people])
    loud = [vad.loudness(media.read_audio(voice), animation.FPS) for _, voice in people]
    n = max(map(len, loud))
    pictures: Iterator[Picture]
    if isinstance(how, Clips):
        clip = yield from how.clip(picture, params)
        pictures = (_resized(frame, width, height) for frame in animation.swinging(clip, n))
    else:
        does = [
            animation.moves(np.pad(each, (0, n - len(each))), params.seed + number)
            for number, each in enumerate(loud)
        ]
        heads = [path.points[0] for path in paths]
        if detector.name.startswith("drawn"):
            eyes = [animation.drawn_eyes(head) for head in heads]
        else:
            eyes = [animation.photographed_eyes(picture, head) for head in heads]
        pictures = animation.animated(picture, heads, does, eyes)
    meter = Meter(Stage.MOTION, n)
    with media.RgbVideoWriter(film, width, height, fps) as writer:
        for done, moved in enumerate(pictures, start=1):
            writer.write(moved)
            yield meter.at(done)


@dataclass(frozen=True, slots=True)
class Clips:
    """Short clips that an image-to-video model made of pictures, kept on disk: a second voice on the same
    picture, or a job that goes on after a crash, does not generate again.

    Attributes:
        model: its name in the manifest.
        folder: its verified files.
        weights_sha256: of all of them.
        prompt: what to make; None or blank: somebody who idles.
        root: where clips are kept, the least recently used removed beyond CLIPS_MAX_BYTES.
        device: where to generate.
    """

    model: str
    folder: Path
    weights_sha256: str
    prompt: str | None
    root: Path
    device: torch.device

    @classmethod
    def find(
        cls, model: str | None, prompt: str | None, store: WeightsStore, root: Path, device: torch.device
    ) -> Clips:
        """Verify a model's files.

        Args:
            model: name in the manifest; None: its first image-to-video model.

        Raises:
            WeightsError: unknown, missing or damaged; the message names the command that helps.
        """
        name = find_image_to_video_entry(model, store).name
        folder = store.verified_files(name)["model_index"].parent
        return cls(name, folder, store.weights_sha256(name), prompt, root, device)

    def path(self, picture: Picture, params: SyncParams) -> Path:
        """Where the clip lies, or would lie, an .mp4 that `media` reads: named by all that decides it."""
        digest = hashlib.sha256(picture.tobytes())
        shape = picture.shape, params.max_short_side is None
        for part in (CLIP_FORMAT, shape, (self.prompt or "").strip(), params.seed, self.weights_sha256):
            digest.update(repr(part).encode() + b"\0")
        return self.root / f"{digest.hexdigest()[:40]}.mp4"

    def clip(self, picture: Picture, params: SyncParams) -> Generator[Progress, None, list[Picture]]:
        """The frames, of any size in the picture's aspect; generated unless they are kept.

        Args:
            picture: uint8 (H, W, 3).
            params: seed; without `max_short_side` the clip has as many pixels as suit the model best, else
                not more than the picture.

        Raises:
            WeightsError: the files do not fit together. OutputError: what they make is no picture.
            MediaError, ResourceError: the clip cannot be written.
        """
        path = self.path(picture, params)
        if path.exists():
            try:
                return _read_clip(path)
            except InputError:  # damaged
                path.unlink(missing_ok=True)
        yield from self._make(picture, params, path)
        return _read_clip(path)  # what a later run will find, to the bit

    def _make(self, picture: Picture, params: SyncParams, path: Path) -> Generator[Progress, None, None]:
        # diffusers' pipelines take seconds to import, and only generated motion needs one.
        from lipsync_engine.models import image_to_video

        model = image_to_video.load(self.folder, self.device)
        try:
            prompt = image_to_video.build_prompt(self.prompt)
            steps = model.generate_clip(picture, prompt, params.seed, enlarge=params.max_short_side is None)
            meter: Meter | None = None
            with closing(steps):
                while True:
                    try:
                        done, total = next(steps)
                    except StopIteration as finished:
                        frames: list[Picture] = finished.value
                        break
                    meter = meter or Meter(Stage.MOTION, total)
                    yield meter.at(done)
        finally:
            model.release()
        keep_clip(path, frames)


def keep_clip(path: Path, frames: Sequence[Picture]) -> None:
    """Write a clip to its place in a folder of clips; the file appears complete or not at all.

    Args:
        frames: uint8 (h, w, 3) with even sides.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    part = path.with_suffix(f".{os.getpid()}.part")
    with media.RgbVideoWriter(part, width, height, Fraction(animation.FPS)) as writer:
        for frame in frames:
            writer.write(frame)
    part.replace(path)
    drop_oldest(path.parent, CLIPS_MAX_BYTES)


def _read_clip(path: Path) -> list[Picture]:
    info = media.probe_video(path)
    frames = [frame for _, frame in media.scan_frames(info, max(info.format.width, info.format.height))]
    os.utime(path)  # used now: others are dropped first
    return frames


def _resized(picture: Picture, width: int, height: int) -> Picture:
    how = cv2.INTER_AREA if picture.shape[1] > width else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, (width, height), interpolation=how), np.uint8)
