"""`lipsync portrait`: animate and lip-sync a still image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipsync_engine.cli.jobs import ModelSelection, load_pipeline
from lipsync_engine.cli.options import (
    Codec,
    Consent,
    Detector,
    Device,
    Dtype,
    Force,
    GuidanceScale,
    Label,
    Marking,
    MaskImage,
    MaxShortSide,
    ModelName,
    OutputAudio,
    OutputFile,
    Preset,
    Seed,
    Steps,
    Watermark,
)
from lipsync_engine.cli.terminal import print_result, run_with_bars
from lipsync_engine.params import FaceChoice, Motion, Provenance, SyncParams


def animate_portrait(
    image: Annotated[Path, typer.Argument(help="Image with a face (PNG, JPEG, WebP, BMP).")],
    audio: Annotated[Path, typer.Argument(help="Voice that drives the lips (any file with audio).")],
    output: OutputFile,
    motion: Annotated[Motion, typer.Option(help="How the head moves.")] = Motion.NATURAL,
    prompt: Annotated[
        str | None, typer.Option(help="With --motion generated: what happens [the person idles].")
    ] = None,
    motion_model: Annotated[
        str | None, typer.Option(help="With --motion generated: image-to-video model [the first listed].")
    ] = None,
    model: ModelName = "tiny",
    preset: Preset = "default",
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    seed: Seed = None,
    face: Annotated[
        str | None, typer.Option(help="Who speaks: largest, left, right, 0, 1, … from the left, or X,Y@0.")
    ] = None,
    mask_image: MaskImage = None,
    max_short_side: MaxShortSide = None,
    video_codec: Codec = None,
    label: Label = False,
    watermark: Watermark = False,
    output_audio: OutputAudio = None,
    consent: Consent = None,
    marking: Marking = None,
    detector: Detector = None,
    force: Force = False,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Animate the person in the still image IMAGE and lip-sync it to AUDIO."""
    from lipsync_engine import media

    params = SyncParams.preset(
        preset,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        face=None if face is None else FaceChoice.parse(face),
        mask_image=mask_image,
        max_short_side=max_short_side,
        video_codec=video_codec,
        label=label,
        watermark=watermark,
    )
    provenance = Provenance(consent)
    # Check inputs and output before the model loads, which can take long.
    media.read_image(image, max_short_side)
    for path in (audio, output_audio):
        if path is not None:
            media.probe_audio(path)
    media.check_output(output, (image, audio))
    pipeline = load_pipeline(ModelSelection(model, detector, device, dtype, marking, force), output)
    job = pipeline.run_portrait(
        image,
        audio,
        output,
        params,
        motion=motion,
        prompt=prompt,
        motion_model=motion_model,
        output_audio=output_audio,
        provenance=provenance,
    )
    print_result(run_with_bars(job))
