"""The stages around the model on the CPU, side by side with the reference's own routines.

    OMP_NUM_THREADS=1 python -m scripts.bench stages --reference FOLDER --clip CLIP

It writes benchmarks/stages.json. FOLDER is a checkout of the public LatentSync repository (with kornia,
einops and insightface importable); its file `latentsync/utils/affine_transform.py` is run as it is, in
float32. Its encodes are the two that it makes of a result: RGB frames at CRF 13, then that file again at
CRF 18. Both sides get the same 1080p frames and face in turns; `times` is the reference's processor time,
children included, over ours, one thread each.

Faces are looked for in the first second of CLIP, a 1080p film of one person, which each side decodes at the
size that it needs. The reference's weights are for research only: here the library that it uses runs graphs
of the same shape with random weights on the CPU, with the box given (`reference_detector`). Our side also
follows faces from frame to frame and finds cuts, which the reference does not.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from lipsync_engine import faces, media
from lipsync_engine.faces.align import crop_size
from lipsync_engine.faces.compositor import SoftCompositor
from lipsync_engine.faces.registry import load_detector
from lipsync_engine.media.yuv import Frame, region_to_rgb
from lipsync_engine.models.latentsync.mask import load_fixed_mask
from lipsync_engine.params import Quality
from lipsync_engine.planning.plan import ANALYSIS_MAX_SIDE
from lipsync_engine.weights import WeightsStore
from scripts.bench.common import BENCHMARKS, run_ffmpeg, time_in_pairs, write_report
from scripts.bench.reference_detector import ReferenceDetector

WIDTH, HEIGHT, FPS = 1920, 1080, Fraction(25)
FACE = np.array([[[880.0, 430.0], [1040.0, 436.0], [962.0, 540.0]]], dtype=np.float32)
"""Two brows and a nose, pixels."""


def reference_restorer(folder: Path, resolution: int) -> Any:
    path = folder / "latentsync" / "utils" / "affine_transform.py"
    spec = importlib.util.spec_from_file_location("reference_affine_transform", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} cannot be loaded.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.AlignRestore(resolution=resolution, device="cpu", dtype=torch.float32)


def compare(theirs: Callable[[], Any], ours: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Median processor seconds of each, and their ratio."""
    reference_s, ours_s = map(statistics.median, time_in_pairs(theirs, ours, repeats))
    return {
        "reference_ms": round(1000 * reference_s, 2),
        "ours_ms": round(1000 * ours_s, 2),
        "times": round(reference_s / ours_s, 2),
    }


def film(folder: Path, seconds: float) -> tuple[media.VideoInfo, list[Frame]]:
    path = folder / "clip.mp4"
    source = f"testsrc2=size={WIDTH}x{HEIGHT}:rate={FPS}:duration={seconds}"
    run_ffmpeg("-f", "lavfi", "-i", source, "-pix_fmt", "yuv420p", path)
    info = media.probe_video(path)
    times = np.array([time_s for time_s, _ in media.scan_frames(info, 64)])
    with media.FrameReader(info, times) as reader:
        return info, list(reader.read(range(len(times))))


def picture(frame: Frame) -> np.ndarray:
    return np.clip(np.rint(region_to_rgb(frame, (0, 0, WIDTH, HEIGHT))), 0, 255).astype(np.uint8)


def face_stages(frame: Frame, folder: Path, resolution: int, repeats: int) -> dict[str, dict[str, float]]:
    """Crop a face out of a frame, and paste a generated one back."""
    theirs = reference_restorer(folder, resolution)
    compositor = SoftCompositor(load_fixed_mask(resolution).astype(np.float32), Fraction(1))
    matrix = compositor.matrices(FACE)[0]
    rgb, points = picture(frame), np.rint(FACE[0])

    def their_crop() -> tuple[np.ndarray, Any]:
        face, found = theirs.align_warp_face(rgb.copy(), landmarks3=points, smooth=True)
        return cv2.resize(face, (resolution, resolution), interpolation=cv2.INTER_LANCZOS4), found

    face, their_matrix = their_crop()
    chw = torch.from_numpy(face).permute(2, 0, 1).float()[None] / 127.5 - 1
    width, height = crop_size(resolution)

    def their_paste() -> np.ndarray:
        resized = F.interpolate(chw, size=(height, width), mode="bicubic", antialias=True)[0]
        return np.asarray(theirs.restore_img(rgb, resized, their_matrix))

    crop = compositor.crop(frame, matrix)
    return {
        "crop": compare(their_crop, lambda: compositor.crop(frame, matrix), repeats),
        "paste": compare(their_paste, lambda: compositor.paste(frame, crop, crop.face, 1.0, None), repeats),
    }


def detect_stage(clip: Path, folder: Path, repeats: int) -> dict[str, Any]:
    """Find the face in every frame of a second."""
    cut = folder / "second.mp4"
    run_ffmpeg("-i", clip, "-t", "1", "-an", "-c", "copy", cut)
    info = media.probe_video(cut)
    size = info.format.width, info.format.height
    theirs, ours = ReferenceDetector(folder), load_detector("yunet", WeightsStore())
    _, first = next(media.scan_frames(info, max(size)))
    box = max(ours.detect(first), key=lambda found: found.score).box

    def their_way() -> None:
        for _, image in media.scan_frames(info, max(size)):
            theirs(image, box)

    def our_way() -> None:
        tracker = faces.FaceTracker(ours, *size)
        for pts_s, image in media.scan_frames(info, ANALYSIS_MAX_SIDE):
            tracker.add(pts_s, image)
        tracker.snapshot(is_complete=True)

    n_frames = sum(1 for _ in media.scan_frames(info, ANALYSIS_MAX_SIDE))
    found = compare(their_way, our_way, repeats)
    return found | {"frames": n_frames, "size": size, "reference_graphs": theirs.cost}


def encode_stage(info: media.VideoInfo, frames: list[Frame], folder: Path) -> dict[str, Any]:
    raw = b"".join(picture(frame).tobytes() for frame in frames)
    size = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-r", str(FPS), "-i", "-"]
    x264 = ["-c:v", "libx264", "-pix_fmt", "yuv420p"]

    def theirs() -> None:
        first, second = folder / "first.mp4", folder / "second.mp4"
        command = [str(media.find_ffmpeg()), "-v", "error", "-y", *size, *x264, "-crf", "13", first]
        subprocess.run(command, input=raw, check=True)
        run_ffmpeg("-i", first, *x264, "-crf", "18", second)

    def ours() -> None:
        with media.SegmentWriter(folder / "ours.mp4", info, FPS, Quality.DEFAULT) as writer:
            for frame in frames:
                writer.write(frame)

    return compare(theirs, ours, 3) | {"frames": len(frames)}


def together(report: dict[str, Any], resolution: int) -> dict[str, float]:
    """A frame through all stages; some were measured on many frames."""
    stages = report | report[str(resolution)]
    reference_ms, ours_ms = (
        sum(
            stages[name][side] / stages[name].get("frames", 1)
            for name in ("detect", "crop", "paste", "encode")
        )
        for side in ("reference_ms", "ours_ms")
    )
    return {
        "reference_ms": round(reference_ms, 2),
        "ours_ms": round(ours_ms, 2),
        "times": round(reference_ms / ours_ms, 2),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "stages.json")


def run(arguments: argparse.Namespace) -> None:
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        info, frames = film(folder, 1.0)
        report: dict[str, Any] = {
            "frame": [WIDTH, HEIGHT],
            "detect": detect_stage(arguments.clip, folder, arguments.repeats),
            "encode": encode_stage(info, frames, folder),
        }
    for resolution in (256, 512):
        report[str(resolution)] = face_stages(frames[0], arguments.reference, resolution, arguments.repeats)
        report[str(resolution)]["together"] = together(report, resolution)
    print(json.dumps(report, indent=1))
    write_report(report, arguments.out)
