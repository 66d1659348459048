"""What the commands that make videos share: options, the model they load, a job from start to report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lipsync_engine.cli.terminal import followed, report, warn, written
from lipsync_engine.errors import ParameterError
from lipsync_engine.params import PRESETS, LoopMode, Provenance, Speaker, SyncParams

if TYPE_CHECKING:
    from lipsync_engine.pipeline import LipSyncPipeline

OutputFile = Annotated[Path, typer.Option("--output", "-o", help="Video to write: .mp4, .mov or .mkv.")]
ModelName = Annotated[str, typer.Option(help="Name from `lipsync weights list`.")]
Preset = Annotated[
    str, typer.Option(help=f"One of {', '.join(PRESETS)}; fast and fastest are for LatentSync.")
]
Steps = Annotated[int | None, typer.Option(help="Denoising steps, 1-200 [model's own].")]
GuidanceScale = Annotated[float | None, typer.Option(help="Audio guidance, 0-20 [model's own].")]
Seed = Annotated[int | None, typer.Option(help="Seed of all random draws [1247].")]
MaskImage = Annotated[
    Path | None, typer.Option(help="Image, white where the picture may change, black where not.")
]
MaxShortSide = Annotated[
    int | None, typer.Option(help="Scale a larger picture down to this short side, pixels [source's].")
]
Looping = Annotated[LoopMode | None, typer.Option(help="When the audio is longer [pingpong].")]
Label = Annotated[bool, typer.Option("--label", help="Show in a corner that the film is generated.")]
Unseen = Annotated[
    bool, typer.Option("--watermark", help="Put an unseen mark into the face that `verify` finds again.")
]
SideBySide = Annotated[Path | None, typer.Option(help="Also write a before/after video to this file.")]
HeardAudio = Annotated[
    Path | None, typer.Option(help="Sound of the result, where it is not AUDIO (a mix with music).")
]
Consent = Annotated[
    str | None, typer.Option(help="Reference to the consent of the person shown; its hash is signed with it.")
]
Marking = Annotated[
    str | None,
    typer.Option(help="Sign results as generated: required, best_effort or off [LIPSYNC_MARKING, required]."),
]
Detector = Annotated[str | None, typer.Option(help="yunet, drawn or landmarks106:PATH [model's own].")]
Device = Annotated[str | None, typer.Option(help="cuda, mps or cpu [best there is].")]
Dtype = Annotated[str | None, typer.Option(help="fp32, fp16 or bf16 [device's best].")]


@dataclass(frozen=True, slots=True)
class Model:
    """What is loaded, and where."""

    name: str
    detector: str | None
    device: str | None
    dtype: str | None
    marking: str | None


def load(model: Model, *outputs: Path | None) -> LipSyncPipeline:
    """The pipeline, unless the outputs could not be signed: loading can take long."""
    from lipsync_engine.provenance import ManifestSigner

    signer = ManifestSigner.from_environment(model.marking)
    for output in outputs:
        if output is not None:
            signer.check_container(output)
    if model.name == "tiny" and model.detector not in (None, "drawn"):
        warn("tiny knows drawn presenters only; on real people it paints nonsense.")
    from lipsync_engine.pipeline import LipSyncPipeline

    return LipSyncPipeline.from_pretrained(
        model.name,
        device=model.device,
        dtype=model.dtype,
        detector=model.detector,
        marking=model.marking,
    )


def run(
    video: Path,
    audio: Path | list[Speaker],
    output: Path,
    params: SyncParams,
    output_audio: Path | None,
    side_by_side: Path | None,
    model: Model,
    provenance: Provenance,
) -> None:
    """A job with its progress on the terminal."""
    from lipsync_engine import media

    # Before the model loads, which can take long: is there anything to work on, and a place for the result?
    media.probe_video(video)
    voices = [audio] if isinstance(audio, Path) else [speaker.audio for speaker in audio]
    for sound in (*voices, output_audio):
        if sound is not None:
            media.probe_audio(sound)
    media.check_output(output, (video, *voices))
    if side_by_side is not None:
        media.check_output(side_by_side, (video, *voices))
        if side_by_side.absolute() == output.absolute():
            raise ParameterError(f"{output.name!r} is the result: choose another name for --side-by-side.")
    pipeline = load(model, output, side_by_side)
    job = pipeline.run(video, audio, output, params, output_audio=output_audio, provenance=provenance)
    result = followed(job)
    if side_by_side is not None and (
        unmarked := pipeline.write_comparison(video, result, side_by_side, provenance)
    ):
        warn(f"{side_by_side.name}: {unmarked}")

    report(result)
    if side_by_side is not None:
        written(side_by_side, " (before | after)")
