"""Options that several commands share, as annotated types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipsync_engine.params import PRESETS, HdrMode, LoopMode, Tail, VideoCodec

OutputFile = Annotated[Path, typer.Option("--output", "-o", help="Video to write: .mp4, .mov or .mkv.")]
ModelName = Annotated[str, typer.Option(help="Name from `lipsync weights list`.")]
Preset = Annotated[
    str, typer.Option(help=f"One of {', '.join(PRESETS)}; fast and fastest are for LatentSync.")
]
Steps = Annotated[int | None, typer.Option(help="Denoising steps, 1-200 [model's default].")]
GuidanceScale = Annotated[float | None, typer.Option(help="Audio guidance, 0-20 [model's default].")]
Seed = Annotated[int | None, typer.Option(help="Seed of all random draws [1247].")]
MaskImage = Annotated[
    Path | None, typer.Option(help="Image, white where pixels may change, black elsewhere.")
]
MaxShortSide = Annotated[
    int | None, typer.Option(help="Scale larger frames down to this short side, pixels [source's].")
]
Looping = Annotated[LoopMode | None, typer.Option(help="If the audio is longer than the video [pingpong].")]
VideoTail = Annotated[Tail | None, typer.Option(help="If the video is longer than the audio [cut].")]
Codec = Annotated[
    VideoCodec | None,
    typer.Option("--video-codec", help="h264: 8 bits, plays everywhere; hevc10: HEVC Main 10 [h264]."),
]
Hdr = Annotated[
    HdrMode | None, typer.Option(help="HDR video (PQ, HLG): tonemap to SDR, or refuse [tonemap].")
]
FrameRate = Annotated[str | None, typer.Option(help="Output frame rate, e.g. 25 or 30000/1001 [source's].")]
Face = Annotated[
    str | None,
    typer.Option(help="Who speaks: largest, left, right, 0, 1, … from the left, or X,Y@SECONDS."),
]
Label = Annotated[
    bool, typer.Option("--label", help="Draw a visible “AI-generated” label in a corner of every frame.")
]
Watermark = Annotated[
    bool, typer.Option("--watermark", help="Add an invisible watermark that `lipsync verify` detects.")
]
SideBySide = Annotated[Path | None, typer.Option(help="Also write a before/after video to this file.")]
OutputAudio = Annotated[
    Path | None, typer.Option(help="Audio of the result if it is not AUDIO, such as a mix with music.")
]
Consent = Annotated[
    str | None, typer.Option(help="Reference to the consent of the person shown; its hash is signed.")
]
Marking = Annotated[
    str | None,
    typer.Option(help="Sign results: required, best_effort or off [LIPSYNC_MARKING, else required]."),
]
Detector = Annotated[str | None, typer.Option(help="yunet, drawn or landmarks106:PATH [model's own].")]
Force = Annotated[
    bool, typer.Option("--force", help="Use a detector whose faces the model was not trained on.")
]
Device = Annotated[str | None, typer.Option(help="cuda, mps or cpu [best available].")]
Dtype = Annotated[str | None, typer.Option(help="fp32, fp16 or bf16 [device's best].")]
