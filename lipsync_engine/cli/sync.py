"""`lipsync sync`: lip-sync one person in a video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipsync_engine.cli.jobs import ModelSelection, run_video_job
from lipsync_engine.cli.options import (
    Codec,
    Consent,
    Detector,
    Device,
    Dtype,
    Face,
    Force,
    FrameRate,
    GuidanceScale,
    Hdr,
    Label,
    Looping,
    Marking,
    MaskImage,
    MaxShortSide,
    ModelName,
    OutputAudio,
    OutputFile,
    Preset,
    Seed,
    SideBySide,
    Steps,
    VideoTail,
    Watermark,
)
from lipsync_engine.params import FaceChoice, Provenance, SyncParams


def sync_video(
    video: Annotated[Path, typer.Argument(help="Video with the person (mp4, mov, mkv, webm).")],
    audio: Annotated[Path, typer.Argument(help="Voice that drives the lips (any file with audio).")],
    output: OutputFile,
    model: ModelName = "tiny",
    preset: Preset = "default",
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    seed: Seed = None,
    face: Face = None,
    faces_file: Annotated[Path | None, typer.Option(help="JSON of per-frame boxes or landmarks.")] = None,
    face_mask: Annotated[Path | None, typer.Option(help="Image, white over the speaker's face.")] = None,
    mask_image: MaskImage = None,
    matte: Annotated[
        Path | None, typer.Option(help="Image or video, white where something is in front of the mouth.")
    ] = None,
    max_yaw_deg: Annotated[
        float | None, typer.Option(help="Leave heads that are turned further untouched [60].")
    ] = None,
    fps: FrameRate = None,
    max_short_side: MaxShortSide = None,
    video_codec: Codec = None,
    hdr: Hdr = None,
    loop_mode: Looping = None,
    tail: VideoTail = None,
    voice_gate: Annotated[
        bool | None, typer.Option("--voice-gate/--no-voice-gate", help="Rest the mouth in silence [on].")
    ] = None,
    label: Label = False,
    watermark: Watermark = False,
    output_audio: OutputAudio = None,
    side_by_side: SideBySide = None,
    consent: Consent = None,
    marking: Marking = None,
    detector: Detector = None,
    force: Force = False,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Lip-sync the person in VIDEO to AUDIO.

    The same command resumes an interrupted run.
    """
    from lipsync_engine.media.rates import parse_rate

    params = SyncParams.preset(
        preset,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        face=None if face is None else FaceChoice.parse(face),
        faces_file=faces_file,
        face_mask=face_mask,
        mask_image=mask_image,
        matte=matte,
        max_yaw_deg=max_yaw_deg,
        fps=None if fps is None else parse_rate(fps),
        max_short_side=max_short_side,
        video_codec=video_codec,
        hdr=hdr,
        loop_mode=loop_mode,
        tail=tail,
        voice_gate=voice_gate,
        label=label,
        watermark=watermark,
    )
    run_video_job(
        video,
        audio,
        output,
        params,
        output_audio,
        side_by_side,
        ModelSelection(model, detector, device, dtype, marking, force),
        Provenance(consent),
    )
