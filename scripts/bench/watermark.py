"""Is the watermark found after what films go through, is it not found where there is none, is it seen?

    python -m scripts.bench watermark --output benchmarks/watermark.json [--real CLIP]

Marked are the demo, lip-synced by the tiny model, and drawn presenters and a real clip, whose own faces get
the mark through the crop and the paste of a job, without a model. Clean are other drawn presenters. Of a
clean film the score of every unused pattern counts too: that is what a film gets which knows nothing of the
pattern.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lipsync_engine import LipSyncPipeline, SyncParams, media
from lipsync_engine.faces import FaceDetector, FaceTracker, choose_speaker
from lipsync_engine.faces.compositor import SoftCompositor
from lipsync_engine.faces.registry import load_detector
from lipsync_engine.models.latentsync.mask import load_fixed_mask
from lipsync_engine.params import FaceChoice, Quality
from lipsync_engine.provenance.watermark import embed_watermark
from lipsync_engine.provenance.watermark.pattern import THRESHOLD
from lipsync_engine.provenance.watermark.video import average_faces
from lipsync_engine.weights import WeightsStore
from scripts.bench.common import DEMO_VIDEO, DEMO_VOICE, run_ffmpeg, write_report
from tests.support import presenter
from tests.support.presenter import Identity

SIDE, FRAMES = 512, 75
CLEAN_SIDE, CLEAN_FRAMES = 256, 15
RESOLUTION = 256
MAX_FRAMES = 75
CLEAN_SEED, MARKED_SEED = 5_000_000, 6_000_000

ATTACKS = {
    "as made": None,
    "re-encoded, CRF 28": ["-crf", "28"],
    "scaled to 50 %": ["-vf", "scale=trunc(iw/4)*2:trunc(ih/4)*2", "-crf", "23"],
    "cropped by 10 %": ["-vf", "crop=trunc(iw*0.45)*2:trunc(ih*0.45)*2", "-crf", "23"],
    "25 to 30 fps": ["-r", "30", "-crf", "23"],
    "all four": [
        *("-vf", "crop=trunc(iw*0.45)*2:trunc(ih*0.45)*2,scale=trunc(iw/4)*2:trunc(ih/4)*2"),
        *("-r", "30", "-crf", "28"),
    ],
}


def drawn(seed: int, side: int, frames: int, path: Path) -> Path:
    """A presenter who moves and mouths noise."""
    noise = np.random.default_rng(seed).uniform(-0.6, 1.4, (frames, 3))
    mouth = np.clip(np.stack([np.convolve(one, np.ones(4) / 4, "same") for one in noise.T], axis=1), 0, 1)
    who = Identity.from_seed(seed)
    presenter.encode([presenter.draw(who, pose, side) for pose in presenter.poses(mouth, seed)], None, path)
    return path


def mark(source: Path, detector: FaceDetector, plain: Path, path: Path) -> None:
    """The film with its own faces pasted, without and with the mark, encoded as a job's."""
    info = media.probe_video(source)
    tracker, times = FaceTracker(detector, info.format.width, info.format.height), []
    with closing(media.scan_frames(info, 1920)) as pictures:
        for pts_s, picture in itertools.islice(pictures, MAX_FRAMES):
            tracker.add(pts_s, picture)
            times.append(pts_s)
    points = choose_speaker(tracker.snapshot(is_complete=True), FaceChoice(), 60.0).points
    compositor = SoftCompositor(load_fixed_mask(RESOLUTION).astype(np.float32), info.sample_aspect_ratio)
    matrices = compositor.matrices(points)
    with (
        media.SegmentWriter(plain, info, info.frame_rate, Quality.DEFAULT) as unmarked,
        media.SegmentWriter(path, info, info.frame_rate, Quality.DEFAULT) as writer,
        media.FrameReader(info, np.array(times)) as reader,
        closing(reader.read(list(range(len(times))))) as frames,
    ):
        for frame, matrix in zip(frames, matrices, strict=True):
            crop = compositor.crop(frame, matrix)
            unmarked.write(compositor.paste(frame, crop, crop.face, 1.0, None))
            writer.write(compositor.paste(frame, crop, embed_watermark(crop.face), 1.0, None))


def likeness(plain: Path, path: Path) -> dict[str, float]:
    """Of the marked part of the picture, frame by frame: PSNR of luma, dB, and SSIM, at the median."""
    pairs = []
    for film in (plain, path):
        info = media.probe_video(film)
        with closing(media.scan_frames(info, 4096)) as pictures:
            pairs.append(
                [
                    cv2.cvtColor(p, cv2.COLOR_RGB2GRAY).astype(np.float64)
                    for _, p in itertools.islice(pictures, 25)
                ]
            )
    psnr, ssim = [], []
    for a, b in zip(*pairs, strict=True):
        changed = cv2.blur((np.abs(a - b) > 0).astype(np.float64), (9, 9)) > 0.3
        psnr.append(10 * np.log10(255**2 / np.mean((a - b)[changed] ** 2)))
        ssim.append(float(_ssim(a, b)[changed].mean()))
    return {"psnr_db": round(float(np.median(psnr)), 1), "ssim": round(float(np.median(ssim)), 4)}


def _ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Wang et al. 2004, Gaussian window of 1.5 pixels."""

    def mean(x: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(x, (11, 11), 1.5)

    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))


def attacked(plain: Path, path: Path, detector: FaceDetector, folder: Path) -> dict[str, Any]:
    """A film's row."""
    row: dict[str, Any] = likeness(plain, path)
    row["unmarked"] = score(plain, detector)
    for name, how in ATTACKS.items():
        film = path
        if how is not None:
            film = folder / "attacked.mp4"
            run_ffmpeg("-i", path, *how, "-an", "-pix_fmt", "yuv420p", film)
        row[name] = score(film, detector)
    return row


def score(film: Path, detector: FaceDetector) -> float:
    return round(float(average_faces(film, detector).scores()[0]), 2)


def clean(count: int, detector: FaceDetector, folder: Path) -> dict[str, Any]:
    """What films without a mark score."""
    own, others = [], []
    for number in range(count):
        film = drawn(CLEAN_SEED + number, CLEAN_SIDE, CLEAN_FRAMES, folder / "clean.mp4")
        scores = average_faces(film, detector).scores()
        own.append(float(scores[0]))
        others.append(scores[1:])
    every = np.concatenate([own, *others])
    return {
        "films": count,
        "found": int((np.array(own) >= THRESHOLD).sum()),
        "highest": round(max(own), 2),
        "median": round(float(np.median(own)), 2),
        "scores, unused patterns too": len(every),
        "of them at or above the threshold": int((every >= THRESHOLD).sum()),
        "99.99 % are below": round(float(np.quantile(every, 0.9999)), 2),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--presenters", type=int, default=5)
    parser.add_argument("--clean", type=int, default=200)
    parser.add_argument("--real", type=Path, help="a film of a person")
    parser.add_argument("--output", type=Path)


def run(arguments: argparse.Namespace) -> None:
    eyes = load_detector("drawn", WeightsStore())
    found: dict[str, Any] = {"threshold": THRESHOLD, "marked": {}}

    def keep(name: str, row: dict[str, Any]) -> None:
        print(name, row, flush=True)
        if arguments.output is not None:
            write_report(found, arguments.output)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain, path = folder / "plain.mp4", folder / "marked.mp4"
        if arguments.presenters:
            pipeline = LipSyncPipeline.from_pretrained("tiny", device="cpu", cache_dir=folder / "cache")
            for out, is_marked in ((plain, False), (path, True)):
                params = SyncParams(num_inference_steps=4, watermark=is_marked)
                pipeline(DEMO_VIDEO, DEMO_VOICE, out, params)
            found["marked"]["demo, tiny model"] = row = attacked(plain, path, eyes, folder)
            keep("demo", row)
        for number in range(arguments.presenters):
            source = drawn(MARKED_SEED + number, SIDE, FRAMES, folder / "source.mp4")
            mark(source, eyes, plain, path)
            found["marked"][f"presenter {number}"] = row = attacked(plain, path, eyes, folder)
            keep(f"presenter {number}", row)
        if arguments.real is not None:
            people = load_detector("yunet", WeightsStore())
            mark(arguments.real, people, plain, path)
            found["marked"]["real person"] = row = attacked(plain, path, people, folder)
            keep("real person", row)
        if arguments.clean:
            found["clean"] = row = clean(arguments.clean, eyes, folder)
            keep("clean", row)
