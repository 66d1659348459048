"""The `lipsync` command: arguments in, progress and results to a terminal.

Every failure ends with one line `error [code]: sentence` on stderr and the code's exit status. It decides
nothing about media or models; heavy modules load only when a command needs them.

    terminal   consoles, bars, what a result looks like
    jobs       what the commands that make videos share
    people     `portrait` and `multi`
    batch      `batch`
    verify     `verify`
    score      `score`
    licences   `doctor --licenses`
    memory     `doctor`'s plans for a GPU's memory
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.table import Column, Table

from lipsync_engine.cli import batch, licences, people, score, verify
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
    run,
)
from lipsync_engine.cli.terminal import downloads, facts, fail, number, out
from lipsync_engine.errors import (
    EXIT_STATUS,
    Cancelled,
    ErrorCode,
    LipSyncError,
    ResourceError,
    WeightsError,
)
from lipsync_engine.params import FaceChoice, Provenance, SyncParams, Tail

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # it takes [defaults] in help texts for markup and leaves them out
    help="Lip-sync a video to a voice, on your own machine.",
)
weights_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Model files: list, download, verify, import."
)
app.add_typer(weights_app, name="weights")


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
    label: Label = False,
    watermark: Unseen = False,
    output_audio: HeardAudio = None,
    side_by_side: SideBySide = None,
    consent: Consent = None,
    marking: Marking = None,
    detector: Detector = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Make VIDEO speak AUDIO.

    An interrupted run is resumed by giving the same command again.
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
        loop_mode=loop_mode,
        tail=tail,
        voice_gate=voice_gate,
        label=label,
        watermark=watermark,
    )
    run(
        video,
        audio,
        output,
        params,
        output_audio,
        side_by_side,
        Model(model, detector, device, dtype, marking),
        Provenance(consent),
    )


app.command()(people.multi)
app.command()(people.portrait)
app.command()(batch.batch)
app.command()(verify.verify)
app.command()(score.score)


@app.command()
def probe(path: Annotated[Path, typer.Argument(help="Video or audio file.")]) -> None:
    """Say what a media file is, as this program sees it."""
    from lipsync_engine import media

    table = facts()
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
        table.add_row("size", f"{form.width}x{form.height}, pixels {number(video.sample_aspect_ratio)}:1")
        table.add_row(
            "rotation", f"{video.rotation_deg}° in the file, applied" if video.rotation_deg else "none"
        )
        table.add_row("frame rate", f"{number(video.frame_rate)} fps")
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
    _become("server.cli.keys", context.args)


@app.command(context_settings=PASSED_ON)
def cluster(context: typer.Context) -> None:
    """Workers on all machines of a Ray cluster: up, join, status, drain."""
    _become("server.cli.cluster", context.args)


@app.command(context_settings=PASSED_ON)
def audit(context: typer.Context) -> None:
    """Export the server's audit log."""
    _become("server.cli.audit_export", context.args)


def _become(module: str, arguments: list[str]) -> NoReturn:
    """The server is another package, which this one never imports: it takes this process over."""
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


@app.command()
def doctor(
    show_licences: Annotated[
        bool, typer.Option("--licenses", help="List the licences of libraries and weights instead.")
    ] = False,
    card_gb: Annotated[
        float | None, typer.Option(help="Show memory plans for a GPU of that size [the one that is there].")
    ] = None,
) -> None:
    """Show device, FFmpeg, weights and effective settings, with what to do where something is missing."""
    from importlib.metadata import version

    if show_licences:
        licences.show()
        return

    from lipsync_engine import media
    from lipsync_engine.cli.memory import plans
    from lipsync_engine.device import choose_compile, choose_device, choose_fp8
    from lipsync_engine.provenance import ManifestSigner
    from lipsync_engine.utils import default_cache_dir
    from lipsync_engine.weights import WeightsStore

    table = facts()
    table.add_row("lipsync", f"{version('lipsync-engine')}, Python {platform.python_version()}")
    for library in ("torch", "diffusers", "openai-whisper", "opencv-python-headless"):
        table.add_row(library, version(library))
    chosen = choose_device(None, None)
    table.add_row("device", f"{chosen.device} {str(chosen.dtype).removeprefix('torch.')} ({chosen.reason})")
    compiling = "on" if choose_compile(None) else "off"
    table.add_row("compiled", f"{compiling} (LIPSYNC_COMPILE)")
    try:
        fp8 = "on" if choose_fp8(None, chosen.device) else "off"
    except ResourceError as error:
        fp8 = str(error)
    table.add_row("fp8", f"{fp8} (LIPSYNC_FP8)")
    table.add_row("ffmpeg", f"{media.find_ffmpeg()} ({media.ffmpeg_version()})")
    table.add_row("isolation", media.check_sandbox().describe())
    signer = ManifestSigner.from_environment()
    table.add_row("marking", f"{signer.policy}, {signer.describe_signer()} (LIPSYNC_MARKING)")
    store = WeightsStore()
    table.add_row("cache", f"{default_cache_dir()} (LIPSYNC_CACHE_DIR)")
    table.add_row("weights", f"{store.root} (LIPSYNC_WEIGHTS_DIR)")
    for entry in store.entries():
        table.add_row(f"  {entry.name}", store.describe_status(entry.name))
    for name, plan in plans(store, chosen.device, chosen.dtype, card_gb):
        table.add_row(f"plan {name}", plan)
    out.print(table)


@weights_app.command("list")
def weights_list() -> None:
    """List the models of the manifest."""
    from lipsync_engine.weights import WeightsStore

    store = WeightsStore()
    name = Column("name", no_wrap=True)
    table = Table(name, "family", "licence", "commercial use", Column("state", overflow="fold"), box=None)
    for entry in store.entries():
        table.add_row(
            entry.name, entry.family, entry.licence, entry.commercial, store.describe_status(entry.name)
        )
    out.print(table)


@weights_app.command("pull")
def weights_pull(name: Annotated[str, typer.Argument(help="Model to download.")]) -> None:
    """Download a model and what it needs; an interrupted download goes on where it stopped."""
    from lipsync_engine.weights import WeightsStore

    with downloads() as report:
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
    for request in (signal.SIGINT, signal.SIGTERM):
        signal.signal(request, _cancel)
    try:
        status = app(standalone_mode=False)
    except LipSyncError as error:
        _fail(error.code, error.message)
    except typer.Abort:
        sys.exit(EXIT_STATUS[ErrorCode.CANCELLED])
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # click's own usage errors
            error.show()
            sys.exit(error.exit_code)
        raise
    sys.exit(status if isinstance(status, int) else 0)  # of commands that end with one, such as `verify`


def _cancel(signum: int, frame: FrameType | None) -> None:
    raise Cancelled


def _fail(code: ErrorCode, message: str) -> NoReturn:
    fail(code, message)
    sys.exit(EXIT_STATUS[code])
