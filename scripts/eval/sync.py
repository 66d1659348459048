"""Does the tiny model speak? Measured on presenters, voices and sentences that it was never trained on.

    python -m scripts.eval.sync full --output benchmarks/tiny_sync   # table, JSON, plot; needs espeak-ng
    python -m scripts.eval.sync video result.mp4 --truth demo/truth.json

Every presenter says one sentence and is made to say another; how far the mouth is open is read back from the
finished video (`mouth_reader.py`) and compared with the articulation that belongs to the voice.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from lipsync_engine import LipSyncPipeline, SyncParams
from lipsync_engine.params import Quality
from tests.support import presenter, speech
from tests.support.mouth_score import (
    CLOSED,
    Score,
    Truth,
    centres,
    correlation,
    inside_held_vowels,
    pictures,
    read_video,
    score,
    spans,
)
from tests.support.presenter import Canvas, Identity

SIDE = 320


VOICES = ["en-us+f4", "en+m2", "it", "en-gb-scotland", "en-us+m5", "en+Denis", "it+f4", "en-us+Michael"]
SENTENCES = [
    "The morning bus was late again, but nobody seemed to mind.",
    "Please open the window before you make the coffee.",
    "Mary bought a blue umbrella and a map of Boston.",
    "La mamma prepara una buona pasta al pomodoro.",
    "Every summer my father plants tomatoes by the wall.",
    "Could you pass me the paper with the big photo?",
    "Bob pays for the apples, the peaches and the plums.",
    "Five brave farmers found a way over the mountain.",
]


# --- one video ---


def score_video(path: Path, truth_path: Path) -> None:
    truth = Truth.load(truth_path)
    found = score(read_video(path, truth), truth)
    print(
        f"lips against the voice: correlation {found.correlation:.2f} (1 is perfect), best offset "
        f"{found.offset} frames; closed in {found.closed:.0%} of p, b, m; "
        f"open in {found.opened:.0%} of open vowels"
    )


# --- the whole evaluation ---


@dataclass(frozen=True)
class Case:
    """A presenter who says one thing (`video`), and the voice that is to be spoken."""

    video: Path
    voice: Path
    truth: Truth
    original: Path


def make_case(number: int, folder: Path) -> Case:
    """Unseen identity, sentence and voice; `original` shows the truth, encoded like the result."""
    seed = 3_000_000 + number
    own = speech.speak(SENTENCES[(number + 3) % len(SENTENCES)], "en-us")
    said = speech.speak(SENTENCES[number % len(SENTENCES)], VOICES[number % len(VOICES)], rate=140)
    n = math.ceil(said.duration_s * speech.FPS)
    mouth = speech.articulation(said.events, n)
    poses = presenter.poses(speech.articulation(own.events, n + 5), seed)
    paths = [folder / f"{number}_{name}" for name in ("video.mp4", "original.mp4", "voice.wav")]
    who = Identity.from_seed(seed)
    presenter.encode([presenter.draw(who, pose, SIDE) for pose in poses], None, paths[0])
    names = ("openness", "width", "rounding")
    spoken = [
        dataclasses.replace(pose, **dict(zip(names, values, strict=True)))
        for pose, values in zip(poses, mouth.tolist(), strict=False)
    ]
    presenter.encode([presenter.draw(who, pose, SIDE) for pose in spoken], None, paths[1])
    speech.write_wav(said.samples, said.sample_rate, paths[2])
    return Case(paths[0], paths[2], Truth(seed, poses, mouth[:, 0], said.events), paths[1])


def evaluate(
    cases: list[Case], pipeline: LipSyncPipeline, folder: Path, steps: int | None
) -> list[np.ndarray]:
    """(N,) read openness of each case's result."""
    reads = []
    for case in cases:
        result = pipeline(case.video, case.voice, folder / "out.mp4", SyncParams(num_inference_steps=steps))
        reads.append(read_video(result.output, case.truth))
    return reads


def resting(case: Case, pipeline: LipSyncPipeline, folder: Path) -> float:
    """The widest opening while nobody speaks."""
    silence = folder / "silence.wav"
    speech.write_wav(np.zeros(2 * 16000, np.int16), 16000, silence)
    result = pipeline(case.video, silence, folder / "silent.mp4")
    return float(read_video(result.output, case.truth).max())


def changed_outside(case: Case, pipeline: LipSyncPipeline, folder: Path) -> int:
    """How many samples outside the lower face a lossless result has that are not the source's."""
    result = pipeline(case.video, case.voice, folder / "lossless.mkv", SyncParams(quality=Quality.LOSSLESS))
    count = 0
    for before, after, pose in zip(
        pictures(case.video), pictures(result.output), case.truth.poses, strict=False
    ):
        canvas = Canvas(SIDE, pose)
        around = np.array([(-0.62, 0.02), (0.62, 0.02), (0.62, 0.95), (-0.62, 0.95)])
        mask = np.zeros((SIDE, SIDE), np.uint8)
        corners = canvas.to_pixels(around) / presenter.SUPERSAMPLE
        cv2.fillPoly(mask, [np.rint(corners).astype(np.int32)], 1)
        count += int(np.count_nonzero((before != after).any(axis=-1) & (mask == 0)))
    return count


def full(output: Path, n_cases: int) -> int:
    """Print the table, write OUTPUT.json and OUTPUT.png; 1 when a figure misses its bar."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pipeline = LipSyncPipeline.from_pretrained("tiny", cache_dir=folder / "cache")
        cases = [make_case(number, folder) for number in range(n_cases)]
        truths = [read_video(case.original, case.truth) for case in cases]
        reads = {steps: evaluate(cases, pipeline, folder, steps) for steps in (4, 8)}
        rest = resting(cases[0], pipeline, folder)
        outside = changed_outside(cases[0], pipeline, folder)

    drawn = pooled(truths, cases)
    rows = []
    for steps, found in reads.items():
        pooled_score = pooled(found, cases)
        each = [score(read, case.truth) for read, case in zip(found, cases, strict=True)]
        wrong = [
            correlation(read[:n], other.truth.openness[:n])
            for i, read in enumerate(found)
            for j, other in enumerate(cases)
            if i != j and (n := min(len(read), len(other.truth.openness)))
        ]
        rows += [
            (steps, "correlation, mean", np.mean([s.correlation for s in each]), "at least 0.85", 0.85, 1),
            (steps, "correlation, worst", min(s.correlation for s in each), "", -1, 1),
            (steps, "best offset, widest", max(abs(s.offset) for s in each), "at most 1 frame", 0, 1),
            (steps, "wrong audio, mean correlation", np.mean(wrong), "under 0.3", -1, 0.3),
            (steps, "lips closed on p, b, m", pooled_score.closed, "at least 0.90", 0.9, 1),
            (steps, "open on open vowels", pooled_score.opened, "at least 0.90", 0.9, 1),
            (
                steps,
                "jitter in held vowels / truth's",
                pooled_score.jitter / drawn.jitter,
                "at most 1.5",
                0,
                1.5,
            ),
        ]
    rows += [
        (4, "widest opening in silence", rest, f"at most {CLOSED}", 0, CLOSED),
        (4, "samples changed outside, lossless", outside, "0", 0, 0),
    ]
    print(f"{n_cases} presenters, voices and sentences never trained on; read from the truth's own videos: "
          f"closed {drawn.closed:.2f}, open {drawn.opened:.2f}")  # fmt: skip
    for steps, name, value, bar, low, high in rows:
        verdict = "" if not bar else "holds" if low <= value <= high else "MISSED"
        print(f"{steps} steps  {name:<36}{value:>8.3f}   {bar:<16}{verdict}")
    output.parent.mkdir(parents=True, exist_ok=True)
    table = [
        {"steps": row[0], "figure": row[1], "value": round(float(row[2]), 4), "bar": row[3]} for row in rows
    ]
    output.with_suffix(".json").write_text(json.dumps(table, indent=1) + "\n")
    draw_plot(cases, reads, output.with_suffix(".png"))
    return 0 if all(low <= value <= high for _, _, value, bar, low, high in rows if bar) else 1


def pooled(reads: list[np.ndarray], cases: list[Case]) -> Score:
    """Shares and jitter over the frames of all cases."""
    each = [score(read, case.truth) for read, case in zip(reads, cases, strict=True)]
    counts = [
        (
            len(centres(case.truth.events, ("closed",), len(read))),
            len(centres(case.truth.events, ("a",), len(read))),
            len(list(inside_held_vowels(case.truth.events, len(read)))),
        )
        for read, case in zip(reads, cases, strict=True)
    ]
    names = ("closed", "opened", "jitter")
    totals = [sum(count[i] for count in counts) for i in range(len(names))]
    shares = {
        name: sum(getattr(s, name) * c[i] for s, c in zip(each, counts, strict=True) if c[i]) / totals[i]
        for i, name in enumerate(names)
    }
    mean = float(np.mean([s.correlation for s in each]))
    return Score(correlation=mean, offset=0, **shares)


def draw_plot(cases: list[Case], reads: dict[int, list[np.ndarray]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(4, 1, figsize=(11, 9), constrained_layout=True)
    for i, axis in enumerate(axes):
        truth = cases[i].truth
        time = (np.arange(len(truth.openness)) + 0.5) / speech.FPS
        for start, stop in spans(truth.events, ("closed",)):
            axis.axvspan(start, stop, color="#dddddd", lw=0)
        axis.plot(time, truth.openness, color="#222222", lw=1.6, label="truth")
        for (steps, found), colour in zip(reads.items(), ("#d1495b", "#30638e"), strict=True):
            n = min(len(found[i]), len(time))
            axis.plot(time[:n], found[i][:n], color=colour, lw=1.1, label=f"result, {steps} steps")
        axis.set(ylim=(-0.05, 1.05), xlim=(0, time[-1]), ylabel="mouth openness")
        r = score(reads[4][i], truth).correlation
        said, voice = SENTENCES[i % len(SENTENCES)], VOICES[i % len(VOICES)]
        axis.set_title(f"“{said}”, {voice}: correlation {r:.2f}", fontsize=9)
    axes[0].legend(loc="upper right", fontsize=8)
    axes[-1].set_xlabel("seconds (grey: p, b, m)")
    figure.savefig(path, dpi=90)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    whole = actions.add_parser("full", help="the whole evaluation")
    whole.add_argument("--output", type=Path, default=Path("benchmarks/tiny_sync"))
    whole.add_argument("--cases", type=int, default=8)
    single = actions.add_parser("video", help="one finished video")
    single.add_argument("path", type=Path)
    single.add_argument("--truth", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.action == "full":
        return full(arguments.output, arguments.cases)
    score_video(arguments.path, arguments.truth)
    return 0


if __name__ == "__main__":
    sys.exit(main())
