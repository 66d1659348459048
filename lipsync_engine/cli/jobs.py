"""What the commands that render videos share: the model that they load, and a job from start to result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lipsync_engine.cli.terminal import print_file, print_result, print_warning, run_with_bars
from lipsync_engine.errors import ParameterError
from lipsync_engine.params import Provenance, Speaker, SyncParams

if TYPE_CHECKING:
    from lipsync_engine.pipeline import LipSyncPipeline


@dataclass(frozen=True, slots=True)
class ModelSelection:
    """The model to load, and how."""

    name: str
    detector: str | None
    device: str | None
    dtype: str | None
    marking: str | None
    force: bool = False


def load_pipeline(model: ModelSelection, *outputs: Path | None) -> LipSyncPipeline:
    """Load the pipeline; check first that the outputs can be signed, because loading can take long."""
    from lipsync_engine.provenance import ManifestSigner

    signer = ManifestSigner.from_environment(model.marking)
    for output in outputs:
        if output is not None:
            signer.check_container(output)
    from lipsync_engine.pipeline import LipSyncPipeline

    return LipSyncPipeline.from_pretrained(
        model.name,
        device=model.device,
        dtype=model.dtype,
        detector=model.detector,
        marking=model.marking,
        force=model.force,
    )


def run_video_job(
    video: Path,
    audio: Path | list[Speaker],
    output: Path,
    params: SyncParams,
    output_audio: Path | None,
    side_by_side: Path | None,
    model: ModelSelection,
    provenance: Provenance,
) -> None:
    """Lip-sync a video with progress on the terminal, and print the result."""
    from lipsync_engine import media

    # Check inputs and outputs before the model loads, which can take long.
    media.check_hdr(media.probe_video(video), params.hdr)
    voices = [audio] if isinstance(audio, Path) else [speaker.audio for speaker in audio]
    for path in (*voices, output_audio):
        if path is not None:
            media.probe_audio(path)
    media.check_output(output, (video, *voices))
    if side_by_side is not None:
        media.check_output(side_by_side, (video, *voices))
        if side_by_side.absolute() == output.absolute():
            raise ParameterError(f"--side-by-side {output.name!r} is the result too: use another name.")
    pipeline = load_pipeline(model, output, side_by_side)
    job = pipeline.run(video, audio, output, params, output_audio=output_audio, provenance=provenance)
    result = run_with_bars(job)
    if side_by_side is not None:
        warning = pipeline.write_comparison(video, result, side_by_side, provenance)
        if warning is not None:
            print_warning(f"{side_by_side.name}: {warning}")

    print_result(result)
    if side_by_side is not None:
        print_file(side_by_side, " (before | after)")
