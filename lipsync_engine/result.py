"""The properties of a finished job."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Self

from lipsync_engine.sync_score import SyncScore


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """Wall-clock seconds of each stage in this run; `motion` is 0 except for portraits."""

    motion: float
    faces: float
    audio: float
    render: float
    assemble: float


class WarningCode(StrEnum):
    """Stable names of warnings."""

    NOT_DONE = "not_done"  # an option had no effect; not signed; not classified; nobody speaks
    VOICE_GATE_OPEN = "voice_gate_open"
    HDR_TONE_MAPPED = "hdr_tone_mapped"
    FRAMES_UNTOUCHED = "frames_untouched"
    MOUTH_COVERED = "mouth_covered"
    SEVERAL_PEOPLE = "several_people"


class JobWarning(str):
    """A sentence about a job that succeeded, with a stable code.

    Args:
        code: what happened.
        message: the sentence.
    """

    code: WarningCode

    def __new__(cls, code: WarningCode, message: str) -> Self:
        warning = super().__new__(cls, message)
        warning.code = code
        return warning

    def __reduce__(self) -> tuple[type[Self], tuple[WarningCode, str]]:
        return type(self), (self.code, str(self))


@dataclass(frozen=True, slots=True)
class SyncResult:
    """The result of a job, and what it was computed from.

    Attributes:
        output: the finished video.
        width, height: displayed size.
        fps: frame rate.
        frames: number of frames.
        frames_without_face: frames during the audio that show the source for want of a usable face.
        untouched: number of these frames by reason: no_face, turned, small, low_presence.
        segments: number of segments.
        segments_resumed: segments that an earlier, interrupted run had rendered.
        analysis_cached: the face tracks came from an earlier job on the same video.
        seed, num_inference_steps, guidance_scale, model, weights_sha256, device, dtype: what decided the
            pixels.
        seconds: time per stage.
        job: the job's name, whose SHA-256 is in the content credentials.
        is_signed: the output has content credentials.
        sync: how well lips and audio match; None: not measured.
        is_nsfw: the source was classified as not safe for work; None: not classified.
        warnings: deviations from the request, and what needs attention.
        pauses_s: (start, stop) in seconds of the output where the voice gate is closed and the lips rest.
    """

    output: Path
    width: int
    height: int
    fps: Fraction
    frames: int
    frames_without_face: int
    untouched: dict[str, int]
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
    is_signed: bool
    sync: SyncScore | None = None
    is_nsfw: bool | None = None
    warnings: tuple[JobWarning, ...] = ()
    pauses_s: tuple[tuple[float, float], ...] = ()
