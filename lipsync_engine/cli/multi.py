"""`lipsync multi`: lip-sync several people in a video."""

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
    Force,
    GuidanceScale,
    Hdr,
    Label,
    Looping,
    Marking,
    MaskImage,
    MaxShortSide,
    ModelName,
    OutputFile,
    Preset,
    Seed,
    SideBySide,
    Steps,
    Watermark,
)
from lipsync_engine.errors import ParameterError
from lipsync_engine.params import FaceChoice, FaceRule, Provenance, Speaker, SpeakerOrder, SyncParams


def sync_speakers(
    video: Annotated[Path, typer.Argument(help="Video with several people.")],
    output: OutputFile,
    speaker: Annotated[
        list[str] | None,
        typer.Option(help="FACE=AUDIO for each person; FACE is left, right, 0, 1, … or X,Y@SECONDS."),
    ] = None,
    order: Annotated[
        SpeakerOrder, typer.Option(help="Whether left and right speak at the same time or in turn.")
    ] = SpeakerOrder.TOGETHER,
    segment: Annotated[
        list[str] | None,
        typer.Option(help="START-STOP,face=FACE,audio=AUDIO: an interval of the result, times as M:SS or S."),
    ] = None,
    model: ModelName = "tiny",
    preset: Preset = "default",
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    seed: Seed = None,
    mask_image: MaskImage = None,
    max_short_side: MaxShortSide = None,
    video_codec: Codec = None,
    hdr: Hdr = None,
    loop_mode: Looping = None,
    output_audio: Annotated[
        Path | None, typer.Option(help="Audio of the result if it is not the mix of all voices.")
    ] = None,
    label: Label = False,
    watermark: Watermark = False,
    side_by_side: SideBySide = None,
    consent: Consent = None,
    marking: Marking = None,
    detector: Detector = None,
    force: Force = False,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Lip-sync several people in VIDEO, each to a separate audio file.

    The mouth of a silent person rests. The result lasts until the last voice ends.
    """
    params = SyncParams.preset(
        preset,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        mask_image=mask_image,
        max_short_side=max_short_side,
        video_codec=video_codec,
        hdr=hdr,
        loop_mode=loop_mode,
        label=label,
        watermark=watermark,
    )
    speakers = _parse_speakers(speaker or [], order, segment or [])
    run_video_job(
        video,
        speakers,
        output,
        params,
        output_audio,
        side_by_side,
        ModelSelection(model, detector, device, dtype, marking, force),
        Provenance(consent),
    )


def _parse_speakers(texts: list[str], order: SpeakerOrder, segments: list[str]) -> list[Speaker]:
    """Parse the values of `--speaker`, `--order` and `--segment`."""
    speakers = [_parse_speaker(text) for text in texts]
    if order is not SpeakerOrder.TOGETHER:
        by_face = {speaker.face.rule: speaker.audio for speaker in speakers}
        if len(speakers) != 2 or by_face.keys() != {FaceRule.LEFT, FaceRule.RIGHT}:
            raise ParameterError(f"order={order} needs two speakers: use left=AUDIO and right=AUDIO.")
        from lipsync_engine.planning.speakers import make_dialogue

        speakers = list(make_dialogue(by_face[FaceRule.LEFT], by_face[FaceRule.RIGHT], order))
    speakers += [_parse_segment(text) for text in segments]
    if not speakers:
        raise ParameterError("There is no speaker: use --speaker FACE=AUDIO or --segment.")
    return speakers


def _parse_speaker(text: str) -> Speaker:
    face, _, path = text.partition("=")
    if not path:
        raise ParameterError(f"speaker={text!r} is invalid: use FACE=AUDIO, such as left=anna.wav.")
    return Speaker(FaceChoice.parse(face), Path(path))


def _parse_segment(text: str) -> Speaker:
    times, *rest = text.split(",", 1)
    face, comma, audio = rest[0].removeprefix("face=").partition(",audio=") if rest else ("", "", "")
    start, dash, stop = times.partition("-")
    try:
        start_s, stop_s = _parse_time(start), _parse_time(stop)
    except ValueError:
        dash = ""
    if not dash or not comma or stop_s <= start_s:
        raise ParameterError(
            f"segment={text!r} is invalid: use START-STOP,face=FACE,audio=AUDIO, such as "
            "0:00-0:04,face=left,audio=anna.wav."
        )
    return Speaker(FaceChoice.parse(face), Path(audio), start_s, stop_s - start_s)


def _parse_time(text: str) -> float:
    """Parse `75`, `1:15` or `1:15.5` into seconds."""
    total_s = 0.0
    for part in text.strip().split(":"):
        total_s = 60 * total_s + float(part)
    return total_s
