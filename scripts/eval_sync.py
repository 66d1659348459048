"""Does the tiny model speak? Measured on presenters, voices and sentences that it was never trained on.

    python -m scripts.eval_sync full --output benchmarks/tiny_sync   # table, JSON, plot; needs espeak-ng
    python -m scripts.eval_sync video result.mp4 --truth demo/truth.json

Every presenter says one sentence and is made to say another; how far the mouth is open is read back from the
finished video (`mouth_reader.py`) and compared with the articulation that belongs to the voice.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from lipsync_engine import LipSyncPipeline, SyncParams, media
from lipsync_engine.media.yuv import region_to_rgb
from lipsync_engine.params import Quality
from tests.support import presenter, speech
from tests.support.mouth_reader import read_openness
from tests.support.presenter import Canvas, Identity, Pose

SIDE = 320
CLOSED, OPEN = 0.15, 0.30
"""A mouth open less than CLOSED shows no gap; one open further than OPEN shows teeth and tongue."""

MAX_OFFSET = 8
HELD_S = 0.12
VOWELS = ("a", "e", "i", "o", "u", "central")

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


@dataclass(frozen=True)
class Truth:
    """What a finished video should show.

    Attributes:
        identity: seed of the presenter.
        poses: of the source's frames.
        openness: (N,) of the mouth that belongs to the voice, per frame at 25 fps.
        events: the voice's visemes.
    """

    identity: int
    poses: list[Pose]
    openness: np.ndarray
    events: list[speech.Event]

    @classmethod
    def load(cls, path: Path) -> Truth:
        told = json.loads(path.read_text())
        poses = [Pose(**pose) for pose in told["poses"]]
        return cls(told["identity"], poses, np.array(told["openness"]), [tuple(e) for e in told["events"]])

    def save(self, path: Path) -> None:
        head = ("x", "y", "scale", "roll_deg", "turn", "blink")
        poses = [{name: round(getattr(pose, name), 5) for name in head} for pose in self.poses]
        told = {
            "identity": self.identity,
            "poses": poses,
            "openness": [round(float(value), 4) for value in self.openness],
            "events": [[round(start, 3), viseme] for start, viseme in self.events],
        }
        path.write_text(json.dumps(told) + "\n")


@dataclass(frozen=True)
class Score:
    """Attributes: how the read openness follows the truth.

    correlation: at offset 0.
    offset: frames by which the lips come late, where the correlation is best.
    closed: share of the centre frames of /p b m/ with closed lips; opened: of open vowels' with open ones.
    jitter: mean second difference of the openness inside held vowels.
    """

    correlation: float
    offset: int
    closed: float
    opened: float
    jitter: float


def score(read: np.ndarray, truth: Truth) -> Score:
    """Compare (N,) read openness with the truth."""
    n = min(len(read), len(truth.openness))
    read, wanted = read[:n], truth.openness[:n]
    reach = range(-MAX_OFFSET, MAX_OFFSET + 1)
    lags = {lag: correlation(shifted(read, lag), shifted(wanted, -lag)) for lag in reach}
    lips, mouth = centres(truth.events, ("closed",), n), centres(truth.events, ("a",), n)
    held = list(inside_held_vowels(truth.events, n))
    second = np.abs(np.diff(read, 2))
    return Score(
        correlation=lags[0],
        offset=max(lags, key=lambda lag: lags[lag]),
        closed=float(np.mean(read[lips] <= CLOSED)) if lips else math.nan,
        opened=float(np.mean(read[mouth] >= OPEN)) if mouth else math.nan,
        jitter=float(np.mean(second[[f - 1 for f in held]])) if held else math.nan,
    )


def shifted(values: np.ndarray, lag: int) -> np.ndarray:
    """What is left when the first `lag` values are dropped, or the last -lag."""
    return values[lag:] if lag >= 0 else values[:lag]


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    if a.std() < 1e-6 or b.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def spans(events: list[speech.Event], names: tuple[str, ...]) -> Iterator[tuple[float, float]]:
    for (start, viseme), (stop, _) in itertools.pairwise(events):
        if viseme in names:
            yield start, stop


def centres(events: list[speech.Event], names: tuple[str, ...], n: int) -> list[int]:
    found = [int((start + stop) / 2 * speech.FPS) for start, stop in spans(events, names)]
    return [frame for frame in found if frame < n]


def inside_held_vowels(events: list[speech.Event], n: int) -> Iterator[int]:
    """Frames that have both neighbours in the same long vowel."""
    for start, stop in spans(events, VOWELS):
        if stop - start >= HELD_S:
            first, last = math.ceil(start * speech.FPS) + 1, int(stop * speech.FPS) - 1
            yield from range(max(1, first), min(last, n - 2) + 1)


def read_video(path: Path, truth: Truth) -> np.ndarray:
    """(N,) openness of every frame of a finished video."""
    who, found = Identity.from_seed(truth.identity), []
    for picture, pose in zip(pictures(path), truth.poses, strict=False):
        found.append(read_openness(picture, who, pose))
    return np.array(found)


def pictures(path: Path) -> Iterator[np.ndarray]:
    """uint8 (H, W, 3) RGB, frame by frame."""
    info = media.probe_video(path)
    box = (0, 0, info.format.width, info.format.height)
    pts_s = np.array([pts for pts, _ in media.scan_frames(info, 64)])
    with media.FrameReader(info, pts_s) as reader:
        for frame in reader.read(range(len(pts_s))):
            yield np.rint(region_to_rgb(frame, box)).astype(np.uint8)


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
