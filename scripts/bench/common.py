"""What every benchmark shares: paths, FFmpeg, timing in pairs, JSON reports, plots."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipsync_engine import media

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
DEMO_VIDEO, DEMO_VOICE = ROOT / "demo" / "presenter.mp4", ROOT / "demo" / "voice.wav"

Report = dict[str, Any]


def run_ffmpeg(*arguments: str | Path) -> str:
    """Run the engine's FFmpeg and return its standard output."""
    command = [str(media.find_ffmpeg()), "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(
        command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ).stdout


def loop_demo(folder: Path, seconds: float, *video_options: str) -> tuple[Path, Path]:
    """Write the demo's video (without audio) and voice, repeated to a length."""
    video, voice = folder / f"{seconds:g}s.mp4", folder / f"{seconds:g}s.wav"
    loop, length = ["-stream_loop", "-1", "-i"], ["-t", f"{seconds:g}"]
    run_ffmpeg(*loop, DEMO_VIDEO, *length, "-an", *video_options, video)
    run_ffmpeg(*loop, DEMO_VOICE, *length, voice)
    return video, voice


def processor_s() -> float:
    """Processor time of this process and of its children that have ended, seconds."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def time_in_pairs(
    first: Callable[[], Any],
    second: Callable[[], Any],
    repeats: int,
    clock: Callable[[], float] = processor_s,
) -> tuple[list[float], list[float]]:
    """Time two functions in turns, so that other load meets both. The first run is not counted.

    Returns:
        seconds of each run of `first`, and of `second`.
    """
    first(), second()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for work, seconds in zip((first, second), times, strict=True):
            began = clock()
            work()
            seconds.append(clock() - began)
    return times


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float], digits: int = 3) -> float:
    """Median of the ratios of values measured in pairs."""
    ratios = (one / other for one, other in zip(numerators, denominators, strict=True))
    return round(statistics.median(ratios), digits)


def write_report(report: Report, path: Path) -> None:
    """Write JSON atomically: a run may be interrupted at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(report, indent=1) + "\n")
    part.replace(path)


def new_plot(columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure that needs no display, and its axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, **options)
    return figure, axes


def save_plot(figure: Figure, path: Path) -> None:
    from matplotlib import pyplot

    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
