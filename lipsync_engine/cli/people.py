"""The commands for portraits and for several speakers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipsync_engine.cli.jobs import (
    Consent,
    Detector,
    Device,
    Dtype,
    GuidanceScale,
    HeardAudio,
    Label,
    Looping,
    Marking,
    MaskImage,
    MaxShortSide,
    Model,
    ModelName,
    OutputFile,
    Preset,
    Seed,
    SideBySide,
    Steps,
    Unseen,
    load,
    run,
)
from lipsync_engine.cli.terminal import followed, report
from lipsync_engine.errors import ParameterError
from lipsync_engine.params import FaceChoice, FaceRule, Motion, Provenance, Speaker, SpeakerOrder, SyncParams


def multi(
    video: Annotated[Path, typer.Argument(help="Video with several people.")],
    output: OutputFile,
    speaker: Annotated[
        list[str] | None,
        typer.Option(help="FACE=AUDIO for each person; FACE is left, right, 0, 1, … or X,Y@SECONDS."),
    ] = None,
    order: Annotated[SpeakerOrder, typer.Option(help="Whether left and right speak together or in turn.")] = (
        SpeakerOrder.TOGETHER
    ),
    segment: Annotated[
        list[str] | None,
        typer.Option(help="START-STOP,face=FACE,audio=AUDIO: a stretch of the result, times as M:SS or S."),
    ] = None,
    model: ModelName = "tiny",
    preset: Preset = "default",
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    seed: Seed = None,
    mask_image: MaskImage = None,
    max_short_side: MaxShortSide = None,
    loop_mode: Looping = None,
    output_audio: Annotated[
        Path | None, typer.Option(help="Sound of the result, where it is not the voices' mix.")
    ] = None,
    label: Label = False,
    watermark: Unseen = False,
    side_by_side: SideBySide = None,
    consent: Consent = None,
    marking: Marking = None,
    detector: Detector = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Make several people in VIDEO speak, each with an own voice.

    Who has nothing to say keeps a resting mouth. The result lasts until the last voice ends.
    """
    params = SyncParams.preset(
        preset,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        mask_image=mask_image,
        max_short_side=max_short_side,
        loop_mode=loop_mode,
        label=label,
        watermark=watermark,
    )
    speakers = _speakers(speaker or [], order, segment or [])
    run(
        video,
        speakers,
        output,
        params,
        output_audio,
        side_by_side,
        Model(model, detector, device, dtype, marking),
        Provenance(consent),
    )


def portrait(
    image: Annotated[Path, typer.Argument(help="Picture with a face (PNG, JPEG, WebP, BMP).")],
    audio: Annotated[Path, typer.Argument(help="Voice that drives the lips (any file with sound).")],
    output: OutputFile,
    motion: Annotated[Motion, typer.Option(help="What the head does besides speaking.")] = Motion.NATURAL,
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
    label: Label = False,
    watermark: Unseen = False,
    output_audio: HeardAudio = None,
    consent: Consent = None,
    marking: Marking = None,
    detector: Detector = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Make the person in the picture IMAGE speak AUDIO."""
    params = SyncParams.preset(
        preset,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        face=None if face is None else FaceChoice.parse(face),
        mask_image=mask_image,
        max_short_side=max_short_side,
        label=label,
        watermark=watermark,
    )
    provenance = Provenance(consent)
    from lipsync_engine import media

    media.read_image(image, max_short_side)
    for sound in (audio, output_audio):
        if sound is not None:
            media.probe_audio(sound)
    media.check_output(output, (image, audio))
    pipeline = load(Model(model, detector, device, dtype, marking), output)
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
    report(followed(job))


def _speakers(named: list[str], order: SpeakerOrder, segments: list[str]) -> list[Speaker]:
    """From `--speaker`, `--order` and `--segment`."""
    found = []
    for text in named:
        face, _, path = text.partition("=")
        if not path:
            raise ParameterError(
                f"speaker={text!r} is not understood: use FACE=AUDIO, such as left=anna.wav."
            )
        found.append(Speaker(FaceChoice.parse(face), Path(path)))
    if order is not SpeakerOrder.TOGETHER:
        by_face = {speaker.face.rule: speaker.audio for speaker in found}
        if len(found) != 2 or by_face.keys() != {FaceRule.LEFT, FaceRule.RIGHT}:
            raise ParameterError(f"order={order} needs two speakers, left=AUDIO and right=AUDIO.")
        from lipsync_engine.planning.speakers import make_dialogue

        found = list(make_dialogue(by_face[FaceRule.LEFT], by_face[FaceRule.RIGHT], order))
    found += [_segment(text) for text in segments]
    if not found:
        raise ParameterError("Nobody speaks: give --speaker FACE=AUDIO or --segment.")
    return found


def _segment(text: str) -> Speaker:
    times, *rest = text.split(",", 1)
    face, comma, audio = rest[0].removeprefix("face=").partition(",audio=") if rest else ("", "", "")
    start, dash, stop = times.partition("-")
    try:
        start_s, stop_s = _seconds(start), _seconds(stop)
    except ValueError:
        dash = ""
    if not dash or not comma or stop_s <= start_s:
        raise ParameterError(
            f"segment={text!r} is not understood: use START-STOP,face=FACE,audio=AUDIO, "
            "such as 0:00-0:04,face=left,audio=anna.wav."
        )
    return Speaker(FaceChoice.parse(face), Path(audio), start_s, stop_s - start_s)


def _seconds(text: str) -> float:
    """`75`, `1:15` or `1:15.5`."""
    total = 0.0
    for part in text.strip().split(":"):
        total = 60 * total + float(part)
    return total
