"""What a finished job says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from lipsync_engine.sync_score import SyncScore


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """Wall-clock seconds that each stage took in this run; `motion` is a portrait's."""

    motion: float
    faces: float
    audio: float
    render: float
    assemble: float


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What was made, and from what.

    Attributes:
        output: the finished video.
        width, height: displayed size.
        fps: frame rate.
        frames: number of frames.
        frames_without_face: of these, how many under the voice show the source untouched for want of a face.
        segments: number of segments; `segments_resumed` of them came from an earlier, interrupted run.
        analysis_cached: the face tracks came from an earlier job on the same video.
        seed, num_inference_steps, guidance_scale, model, weights_sha256, device, dtype: what decided the
            pixels.
        seconds: per stage.
        job: the name whose SHA-256 stands in the content credentials.
        is_marked: it carries them.
        sync: how well lips and voice belong together; None where that was not measured.
        is_nsfw: the source is not safe for work; None where nobody looked.
        warnings: sentences about what was asked for and not done.
    """

    output: Path
    width: int
    height: int
    fps: Fraction
    frames: int
    frames_without_face: int
    segments: int
    segments_resumed: int
    analysis_cached: bool
    seed: int
    num_inference_steps: int
    guidance_scale: float
    model: str
    weights_sha256: str
    device: str
    dtype: str
    seconds: StageSeconds
    job: str
    is_marked: bool
    sync: SyncScore | None = None
    is_nsfw: bool | None = None
    warnings: tuple[str, ...] = ()
