"""The `lipsync` command: arguments in, progress and results to a terminal.

Every failure ends with one line `error [code]: sentence` on stderr and the code's exit status. It decides
nothing about media or models; heavy modules load only when a command needs them.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import sys
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from lipsync_engine.errors import (
    EXIT_STATUS,
    Cancelled,
    ErrorCode,
    LipSyncError,
    ParameterError,
    WeightsError,
)
from lipsync_engine.params import (
    PRESETS,
    FaceChoice,
    FaceRule,
    LoopMode,
    Motion,
    Order,
    Speaker,
    SyncParams,
    Tail,
)
from lipsync_engine.progress import Progress, Stage

if TYPE_CHECKING:
    from lipsync_engine.pipeline import LipSyncPipeline, SyncResult

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Lip-sync a video to a voice, on your own machine.",
)
weights_app = typer.Typer(no_args_is_help=True, help="Model files: list, download, verify, import.")
app.add_typer(weights_app, name="weights")

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

# Options that several commands have.
OutputFile = Annotated[Path, typer.Option("--output", "-o", help="Video to write: .mp4, .mov or .mkv.")]
ModelName = Annotated[str, typer.Option(help="Name from `lipsync weights list`.")]
Preset = Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")]
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
SideBySide = Annotated[Path | None, typer.Option(help="Also write a before/after video to this file.")]
HeardAudio = Annotated[
    Path | None, typer.Option(help="Sound of the result, where it is not AUDIO (a mix with music).")
]
Detector = Annotated[str | None, typer.Option(help="yunet, drawn or landmarks106:PATH [model's own].")]
Device = Annotated[str | None, typer.Option(help="cuda, mps or cpu [best there is].")]
Dtype = Annotated[str | None, typer.Option(help="fp32, fp16 or bf16 [device's best].")]

STAGE_TEXT = {
    Stage.MOTION: "animating",
    Stage.FACES: "finding faces",
    Stage.AUDIO: "listening",
    Stage.RENDER: "rendering",
    Stage.ASSEMBLE: "assembling",
}


@app.command()
def sync(
    video: Annotated[Path, typer.Argument(help="Video with the person (mp4, mov, mkv, webm).")],
    audio: Annotated[Path, typer.Argument(help="Voice that drives the lips (any file with sound).")],
    output: OutputFile,
    model: ModelName = "tiny",
    preset: Preset = "default",
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    seed: Seed = None,
    face: Annotated[
        str | None,
        typer.Option(help="Who speaks: largest, left, right, 0, 1, … from the left, or X,Y@SECONDS."),
    ] = None,
    faces_file: Annotated[Path | None, typer.Option(help="JSON of per-frame boxes or landmarks.")] = None,
    face_mask: Annotated[Path | None, typer.Option(help="Image, white over the speaker's face.")] = None,
    mask_image: MaskImage = None,
    matte: Annotated[
        Path | None, typer.Option(help="Image or video, white where something is in front of the mouth.")
    ] = None,
    max_yaw_deg: Annotated[
        float | None, typer.Option(help="Leave heads turned further untouched [60].")
    ] = None,
    fps: Annotated[
        str | None, typer.Option(help="Output frame rate, e.g. 25 or 30000/1001 [source's].")
    ] = None,
    max_short_side: MaxShortSide = None,
    loop_mode: Looping = None,
    tail: Annotated[Tail | None, typer.Option(help="When the video is longer [cut].")] = None,
    voice_gate: Annotated[
        bool | None, typer.Option("--voice-gate/--no-voice-gate", help="Rest the mouth in silence [on].")
    ] = None,
    output_audio: HeardAudio = None,
    side_by_side: SideBySide = None,
    detector: Detector = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Make VIDEO speak AUDIO.

    An interrupted run is resumed by giving the same command again.
    """
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
        fps=None if fps is None else _rate(fps),
        max_short_side=max_short_side,
        loop_mode=loop_mode,
        tail=tail,
        voice_gate=voice_gate,
    )
    _run(video, audio, output, params, output_audio, side_by_side, _Model(model, detector, device, dtype))


@app.command()
def multi(
    video: Annotated[Path, typer.Argument(help="Video with several people.")],
    output: OutputFile,
    speaker: Annotated[
        list[str] | None,
        typer.Option(help="FACE=AUDIO for each person; FACE is left, right, 0, 1, … or X,Y@SECONDS."),
    ] = None,
    order: Annotated[Order, typer.Option(help="Whether left and right speak together or in turn.")] = (
        Order.TOGETHER
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
    side_by_side: SideBySide = None,
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
    )
    speakers = _speakers(speaker or [], order, segment or [])
    _run(video, speakers, output, params, output_audio, side_by_side, _Model(model, detector, device, dtype))


@app.command()
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
    output_audio: HeardAudio = None,
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
    )
    from lipsync_engine import media

    media.read_picture(image, max_short_side)
    media.probe_audio(audio)
    media.check_output(output, (image, audio))
    pipeline = _pipeline(_Model(model, detector, device, dtype))
    job = pipeline.run_portrait(
        image,
        audio,
        output,
        params,
        motion=motion,
        prompt=prompt,
        motion_model=motion_model,
        output_audio=output_audio,
    )
    _report(_followed(job))


@dataclass(frozen=True, slots=True)
class _Model:
    """What is loaded, and where."""

    name: str
    detector: str | None
    device: str | None
    dtype: str | None


def _run(
    video: Path,
    audio: Path | list[Speaker],
    output: Path,
    params: SyncParams,
    output_audio: Path | None,
    side_by_side: Path | None,
    model: _Model,
) -> None:
    """A job with its progress on the terminal."""
    from lipsync_engine import media

    # Before the model loads, which can take long: is there anything to work on, and a place for the result?
    media.probe_video(video)
    voices = [audio] if isinstance(audio, Path) else [speaker.audio for speaker in audio]
    for voice in voices:
        media.probe_audio(voice)
    media.check_output(output, (video, *voices))
    result = _followed(_pipeline(model).run(video, audio, output, params, output_audio=output_audio))
    if side_by_side is not None:
        media.side_by_side(video, result.output, side_by_side, result.frames)

    _report(result)
    if side_by_side is not None:
        out.print(f"[bold]{side_by_side}[/bold] (before | after)", soft_wrap=True)


@app.command()
def probe(path: Annotated[Path, typer.Argument(help="Video or audio file.")]) -> None:
    """Say what a media file is, as this program sees it."""
    from lipsync_engine import media

    table = Table(show_header=False, box=None)
    sound: media.AudioInfo | None
    try:
        video = media.probe_video(path)
    except LipSyncError as error:
        if error.code is not ErrorCode.MEDIA_NO_VIDEO:
            raise
        sound = media.probe_audio(path)
    else:
        form, sound = video.format, video.audio
        table.add_row("video", f"{video.codec} in {video.container}")
        table.add_row("size", f"{form.width}x{form.height}, pixels {_number(video.sample_aspect_ratio)}:1")
        table.add_row("rotation", f"{video.rotation_deg}° in the file, applied")
        table.add_row("frame rate", f"{_number(video.frame_rate)} fps")
        table.add_row("duration", f"{video.duration_s:.3f} s")
        tags = (video.color_space, video.color_primaries, video.color_transfer, video.color_range)
        table.add_row("pixels", f"{form.pix_fmt}, {' '.join(tag or 'untagged' for tag in tags)}")
    if sound is None:
        table.add_row("audio", "none")
    else:
        table.add_row(
            "audio",
            f"{sound.codec}, {sound.sample_rate} Hz, {sound.channels} channels, {sound.duration_s:.3f} s",
        )
    out.print(table)


PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=PASSED_ON)
def serve(context: typer.Context) -> None:
    """Serve lip-sync over HTTP; `lipsync serve --help` lists the settings."""
    _become("server", context.args)


@app.command(context_settings=PASSED_ON)
def keys(context: typer.Context) -> None:
    """Make, list and revoke the server's API keys."""
    _become("server.keys", context.args)


def _become(module: str, arguments: list[str]) -> NoReturn:
    """The server is another package, which this one never imports: it takes this process over."""
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


@app.command()
def doctor() -> None:
    """Show device, FFmpeg, weights and effective settings, with what to do where something is missing."""
    from importlib.metadata import version

    from lipsync_engine import media, pipeline
    from lipsync_engine.device import choose_device
    from lipsync_engine.weights import WeightsStore

    table = Table(show_header=False, box=None)
    table.add_row("lipsync", f"{version('lipsync-engine')}, Python {platform.python_version()}")
    for library in ("torch", "diffusers", "openai-whisper", "opencv-python-headless"):
        table.add_row(library, version(library))
    chosen = choose_device(None, None)
    table.add_row("device", f"{chosen.device} {str(chosen.dtype).removeprefix('torch.')} ({chosen.reason})")
    table.add_row("ffmpeg", f"{media.find_ffmpeg()} ({media.ffmpeg_version()})")
    store = WeightsStore()
    table.add_row("cache", f"{pipeline.default_cache_dir()} (LIPSYNC_CACHE_DIR)")
    table.add_row("weights", f"{store.root} (LIPSYNC_WEIGHTS_DIR)")
    for entry in store.entries():
        table.add_row(f"  {entry.name}", store.summary(entry.name))
    out.print(table)


@weights_app.command("list")
def weights_list() -> None:
    """List the models of the manifest."""
    from lipsync_engine.weights import WeightsStore

    store = WeightsStore()
    table = Table("name", "family", "licence", "commercial use", "state", box=None)
    for entry in store.entries():
        table.add_row(entry.name, entry.family, entry.licence, entry.commercial, store.summary(entry.name))
    out.print(table)


@weights_app.command("pull")
def weights_pull(name: Annotated[str, typer.Argument(help="Model to download.")]) -> None:
    """Download a model and what it needs; an interrupted download goes on where it stopped."""
    from lipsync_engine.weights import WeightsStore

    with _bars() as bars:
        tasks: dict[str, TaskID] = {}

        def report(file: str, done: int, total: int) -> None:
            if file not in tasks:
                tasks[file] = bars.add_task(file, total=total, unit="bytes")
            bars.update(tasks[file], completed=done, total=total or None)

        WeightsStore().pull(name, report)
    out.print(f"{name} is ready.")


@weights_app.command("verify")
def weights_verify(
    name: Annotated[
        str | None, typer.Argument(help="Model to verify; all that are present without it.")
    ] = None,
) -> None:
    """Hash the files again and compare with the manifest."""
    from lipsync_engine.weights import FileState, WeightsStore

    failures = {
        FileState.MISSING: ErrorCode.WEIGHTS_MISSING,
        FileState.TRUNCATED: ErrorCode.WEIGHTS_TRUNCATED,
        FileState.CHANGED: ErrorCode.WEIGHTS_HASH_MISMATCH,
    }
    store = WeightsStore()
    wrong: ErrorCode | None = None
    for entry_name in [name] if name else [entry.name for entry in store.entries()]:
        for report in store.verify(entry_name):
            if name is None and report.state is FileState.MISSING:
                continue
            out.print(f"{entry_name}  {report.path.name}  {report.state}", soft_wrap=True)
            wrong = wrong or failures.get(report.state)
    if wrong is not None:
        raise WeightsError(wrong, "Some files are not what the manifest says: pull or import them again.")


@weights_app.command("import")
def weights_import(path: Annotated[Path, typer.Argument(help="File or folder with model files.")]) -> None:
    """Take model files from a folder instead of the network; they are verified before use."""
    from lipsync_engine.weights import WeightsStore

    for report in WeightsStore().import_path(path):
        out.print(f"{report.path.name}  {report.state}", soft_wrap=True)


def main() -> NoReturn:
    """Entry point: runs the command and turns errors into one line and an exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _cancel)
    try:
        app(standalone_mode=False)
    except LipSyncError as error:
        _fail(error.code, error.message)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except typer.Abort:
        sys.exit(EXIT_STATUS[ErrorCode.CANCELLED])
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # click's own usage errors
            error.show()
            sys.exit(error.exit_code)
        raise
    sys.exit(0)


def _cancel(signum: int, frame: FrameType | None) -> None:
    raise Cancelled


def _fail(code: ErrorCode, message: str) -> NoReturn:
    err.print(f"[bold red]error[/bold red] \\[{code}]: {message}", soft_wrap=True)
    sys.exit(EXIT_STATUS[code])


def _warn(sentence: str) -> None:
    err.print(f"[yellow]warning[/yellow]: {sentence}", soft_wrap=True)


def _bars() -> Bars:
    return Bars(
        TextColumn("{task.description:<14}"),
        BarColumn(),
        TextColumn("{task.completed:>7.0f}/{task.total:.0f} {task.fields[unit]}"),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        console=err,
    )


def _show(bars: Bars, tasks: dict[Stage, TaskID], progress: Progress) -> None:
    if progress.stage not in tasks:
        tasks[progress.stage] = bars.add_task(STAGE_TEXT[progress.stage], unit="", speed="")
    left = f", {progress.left_s:.0f} s left" if progress.left_s is not None else ""
    bars.update(
        tasks[progress.stage],
        completed=progress.done,
        total=max(progress.total, progress.done),
        unit="pieces" if progress.stage is Stage.AUDIO else "frames",
        speed=f"{progress.per_second:.1f}/s{left}",
    )


def _report(result: SyncResult) -> None:
    for warning in result.warnings:
        _warn(warning)
    took, cached = result.seconds, " (cached)" if result.analysis_cached else ""
    out.print(f"[bold]{result.output}[/bold]", soft_wrap=True)
    out.print(
        f"  {result.width}x{result.height}, {_number(result.fps)} fps, {result.frames} frames "
        f"({result.frames / float(result.fps):.2f} s), {result.frames_without_face} without a usable face"
    )
    out.print(
        f"  model {result.model} ({result.weights_sha256[:12]}), {result.num_inference_steps} steps, "
        f"guidance {result.guidance_scale:g}, seed {result.seed}, {result.device} {result.dtype}"
    )
    out.print(
        f"  faces {took.faces:.1f} s{cached}, audio {took.audio:.1f} s, render {took.render:.1f} s, "
        f"assemble {took.assemble:.1f} s"
    )
    if result.segments_resumed:
        out.print(f"  {result.segments_resumed} of {result.segments} segments came from the interrupted run")


def _pipeline(model: _Model) -> LipSyncPipeline:
    if model.name == "tiny" and model.detector not in (None, "drawn"):
        _warn("tiny knows drawn presenters only; on real people it paints nonsense.")
    from lipsync_engine.pipeline import LipSyncPipeline

    return LipSyncPipeline.from_pretrained(
        model.name, device=model.device, dtype=model.dtype, detector=model.detector
    )


def _followed(steps: Generator[Progress, None, SyncResult]) -> SyncResult:
    """Run to the end with bars on the terminal."""
    with _bars() as bars, closing(steps):
        tasks: dict[Stage, TaskID] = {}
        while True:
            try:
                _show(bars, tasks, next(steps))
            except StopIteration as finished:
                result: SyncResult = finished.value
                return result


def _speakers(named: list[str], order: Order, segments: list[str]) -> list[Speaker]:
    """From `--speaker`, `--order` and `--segment`."""
    found = []
    for text in named:
        face, _, path = text.partition("=")
        if not path:
            raise ParameterError(
                f"speaker={text!r} is not understood: use FACE=AUDIO, such as left=anna.wav."
            )
        found.append(Speaker(FaceChoice.parse(face), Path(path)))
    if order is not Order.TOGETHER:
        by_face = {speaker.face.rule: speaker.audio for speaker in found}
        if len(found) != 2 or by_face.keys() != {FaceRule.LEFT, FaceRule.RIGHT}:
            raise ParameterError(f"order={order} needs two speakers, left=AUDIO and right=AUDIO.")
        from lipsync_engine.cast import dialogue

        found = list(dialogue(by_face[FaceRule.LEFT], by_face[FaceRule.RIGHT], order))
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


def _rate(text: str) -> Fraction:
    from lipsync_engine.timeline import snap_rate

    try:
        given = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ParameterError(
            f"fps={text!r} is not a rate: use a number such as 25, 29.97 or 30000/1001."
        ) from None
    return snap_rate(given) if given > 0 else given  # `SyncParams` refuses the latter


def _number(value: Fraction) -> str:
    return f"{float(value):.6g}"


if __name__ == "__main__":
    main()
