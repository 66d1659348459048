"""Still image and audio → source video of the image in motion, which is then lip-synced like any other."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import torch

from lipsync_engine import faces, media
from lipsync_engine.audio import vad
from lipsync_engine.errors import InputError
from lipsync_engine.models import find_image_to_video_entry
from lipsync_engine.params import FaceChoice, Motion, SyncParams
from lipsync_engine.portrait import animation
from lipsync_engine.progress import Meter, Progress, Stage, meter_steps
from lipsync_engine.utils import ImageArray, drop_oldest
from lipsync_engine.weights import WeightsStore

CACHE_MAX_BYTES = 2 * 2**30

CACHE_VERSION = 1
"""Increased when clips are generated differently, so that older ones are not used."""


def write_source_video(
    image: ImageArray,
    people: Sequence[tuple[FaceChoice, Path]],
    video: Path,
    detector: faces.FaceDetector,
    params: SyncParams,
    motion: Motion | ClipCache,
) -> Generator[Progress, None, None]:
    """Write the source video: as long as the longest audio, at 25 fps; a still one has one frame.

    Args:
        image: uint8 (H, W, 3) with even sides; the video has its size.
        people: the face and the audio of each.
        video: file to write.
        params: seed, masks and limits of the job.
        motion: how the head moves; for generated motion the cache that provides its clip.

    Yields:
        Progress in frames; for generated motion first in denoising steps.

    Raises:
        FaceError: a face is not there. MediaError, ResourceError: of the audio, of the disk.
        OutputError: the generated motion contains no usable image.
    """
    height, width = image.shape[:2]
    fps = Fraction(animation.FPS)
    if motion is Motion.STILL:
        with media.RgbVideoWriter(video, width, height, fps) as writer:
            writer.write(image)
        return
    tracker = faces.FaceTracker(detector, width, height)
    tracker.add(0.0, image)
    tracks = tracker.snapshot(is_complete=True)
    paths = faces.speaker_paths(tracks, params, (width, height), [face for face, _ in people])
    loudness = [vad.loudness(media.read_audio(voice), animation.FPS) for _, voice in people]
    n_frames = max(map(len, loudness))
    frames: Iterator[ImageArray]
    if isinstance(motion, ClipCache):
        clip = yield from motion.load_or_generate(image, params)
        frames = (_resize_frame(frame, width, height) for frame in animation.pingpong_frames(clip, n_frames))
    else:
        motions = [
            animation.generate_head_motion(np.pad(values, (0, n_frames - len(values))), params.seed + number)
            for number, values in enumerate(loudness)
        ]
        face_points = [path.points[0] for path in paths]
        if detector.name.startswith("drawn"):
            eyes = [animation.drawn_eyes(points) for points in face_points]
        else:
            eyes = [animation.photographed_eyes(image, points) for points in face_points]
        frames = animation.animate_image(image, face_points, motions, eyes)
    meter = Meter(Stage.MOTION, n_frames)
    with media.RgbVideoWriter(video, width, height, fps) as writer:
        for done, frame in enumerate(frames, start=1):
            writer.write(frame)
            yield meter.at(done)


@dataclass(frozen=True, slots=True)
class ClipCache:
    """Disk cache of short clips that an image-to-video model generated from images.

    Other audio for the same image, or a job that resumes after a crash, does not generate again.

    Attributes:
        model: its name in the manifest.
        folder: its verified files.
        weights_sha256: of all of them.
        prompt: what to generate; None or blank: a person who idles.
        root: where clips are stored; the least recently used are removed beyond CACHE_MAX_BYTES.
        device: where to generate.
    """

    model: str
    folder: Path
    weights_sha256: str
    prompt: str | None
    root: Path
    device: torch.device

    @classmethod
    def from_manifest(
        cls, model: str | None, prompt: str | None, store: WeightsStore, root: Path, device: torch.device
    ) -> ClipCache:
        """Verify a model's files and return a cache for it.

        Args:
            model: name in the manifest; None: its first image-to-video model.

        Raises:
            WeightsError: unknown, missing or damaged; the message names the command that helps.
        """
        name = find_image_to_video_entry(model, store).name
        folder = store.verified_files(name)["model_index"].parent
        return cls(name, folder, store.weights_sha256(name), prompt, root, device)

    def clip_path(self, image: ImageArray, params: SyncParams) -> Path:
        """Return the clip's path, an .mp4 that `media` reads, named by a hash of all that decides it."""
        digest = hashlib.sha256(image.tobytes())
        shape = image.shape, params.max_short_side is None
        for part in (CACHE_VERSION, shape, (self.prompt or "").strip(), params.seed, self.weights_sha256):
            digest.update(repr(part).encode() + b"\0")
        return self.root / f"{digest.hexdigest()[:40]}.mp4"

    def load_or_generate(
        self, image: ImageArray, params: SyncParams
    ) -> Generator[Progress, None, list[ImageArray]]:
        """Return the clip's frames, of any size in the image's aspect; generate them unless they are stored.

        Args:
            image: uint8 (H, W, 3).
            params: seed; without `max_short_side` the clip has as many pixels as suit the model best, else
                at most as many as the image.

        Raises:
            WeightsError: the files do not match. OutputError: the model's output is no image.
            MediaError, ResourceError: the clip cannot be written.
        """
        path = self.clip_path(image, params)
        if path.exists():
            try:
                return _read_clip(path)
            except InputError:  # damaged
                path.unlink(missing_ok=True)
        yield from self._generate_clip(image, params, path)
        return _read_clip(path)  # the very frames that a later run will read

    def _generate_clip(
        self, image: ImageArray, params: SyncParams, path: Path
    ) -> Generator[Progress, None, None]:
        # diffusers' pipelines take seconds to import, and only generated motion needs one.
        from lipsync_engine.models import image_to_video

        model = image_to_video.load(self.folder, self.device)
        try:
            prompt = image_to_video.build_prompt(self.prompt)
            steps = model.generate_clip(image, prompt, params.seed, enlarge=params.max_short_side is None)
            frames = yield from meter_steps(Stage.MOTION, steps)
        finally:
            model.release()
        store_clip(path, frames)


def store_clip(path: Path, frames: Sequence[ImageArray]) -> None:
    """Write a clip to its path in the cache; the file appears complete or not at all.

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
    drop_oldest(path.parent, CACHE_MAX_BYTES)


def _read_clip(path: Path) -> list[ImageArray]:
    info = media.probe_video(path)
    frames = [frame for _, frame in media.scan_frames(info, max(info.format.width, info.format.height))]
    os.utime(path)  # mark as recently used
    return frames


def _resize_frame(frame: ImageArray, width: int, height: int) -> ImageArray:
    method = cv2.INTER_AREA if frame.shape[1] > width else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(frame, (width, height), interpolation=method), np.uint8)
