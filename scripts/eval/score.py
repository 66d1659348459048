"""Does the sync score tell right from wrong? Measured on presenters, voices and texts never trained on.

    python -m scripts.eval.score --trials 200 --output benchmarks/sync_score.json     # needs espeak-ng

A trial is a film of a drawn presenter who speaks, coded as H.264, with three sounds: the right one, the right
one moved by 2 to 12 frames, and somebody else's words. It counts as ranked correctly when the right sound is
found in place (within a frame), the moved one where it was moved to (within a frame), and both stand out more
than the wrong one.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lipsync_engine.faces import FaceDetector
from lipsync_engine.faces.registry import load_detector
from lipsync_engine.sync_score import SyncScore, SyncScorer, load_scorer
from lipsync_engine.sync_score.video import extract_face_windows
from lipsync_engine.sync_score.windows import attach_audio
from lipsync_engine.weights import WeightsStore
from scripts.eval.sync import SENTENCES, VOICES
from tests.support import presenter, speech
from tests.support.presenter import Identity

SIDE, FRAMES = 200, 75
BAR = 0.95


@dataclass(frozen=True)
class Trial:
    """What one film got: scores of the right, the moved and the wrong sound, and by how much it was moved."""

    right: SyncScore
    moved: SyncScore
    wrong: SyncScore
    late: int

    @property
    def is_correct(self) -> bool:
        return (
            abs(self.right.offset_frames) <= 1
            and abs(self.moved.offset_frames - self.late) <= 1
            and min(self.right.confidence, self.moved.confidence) > self.wrong.confidence
        )


def spoken(rng: np.random.Generator) -> speech.Speech:
    """Two sentences in one of the evaluation's voices."""
    first, second = rng.choice(len(SENTENCES), 2, replace=False)
    text = f"{SENTENCES[first]} {SENTENCES[second]}"
    return speech.speak(text, VOICES[rng.integers(len(VOICES))], rate=int(rng.integers(130, 180)))


def wav(said: speech.Speech, late: int, path: Path) -> Path:
    """The sound so that lips that were in place come `late` frames late."""
    move = round(late * said.sample_rate / speech.FPS)
    samples = said.samples[move:] if move >= 0 else np.pad(said.samples, (-move, 0))
    speech.write_wav(samples, said.sample_rate, path)
    return path


@functools.cache
def tools() -> tuple[SyncScorer, FaceDetector]:
    """Loaded once in a process."""
    store = WeightsStore()
    return load_scorer("sync-tiny", store, torch.device("cpu")), load_detector("drawn", store)


def trial(number: int) -> Trial | None:
    """One film; None where no face was followed for a second."""
    with tempfile.TemporaryDirectory() as folder:
        return ranked(number, *tools(), Path(folder))


def ranked(number: int, scorer: SyncScorer, detector: FaceDetector, folder: Path) -> Trial | None:
    """`trial`, with a folder to work in."""
    rng = np.random.default_rng((77, number))
    said, other = spoken(rng), spoken(rng)
    n = min(FRAMES, math.ceil(said.duration_s * speech.FPS))
    seed = 4_000_000 + number
    poses = presenter.poses(speech.articulation(said.events, n), seed)
    film = folder / "film.mp4"
    presenter.encode([presenter.draw(Identity.from_seed(seed), pose, SIDE) for pose in poses], None, film)
    faces = extract_face_windows(film, scorer.side, detector)
    if not faces:
        return None
    late = int(rng.integers(2, 13) * rng.choice([-1, 1]))

    def score(sound: speech.Speech, move: int) -> SyncScore:
        found = scorer.score(attach_audio(faces, wav(sound, move, folder / "voice.wav")))
        if found is None:
            raise ValueError("a stretch holds a clip")
        return found

    return Trial(score(said, 0), score(said, late), score(other, 0), late)


def table(trials: list[Trial | None]) -> dict[str, float | int]:
    """The figures; a film whose face was lost counts as wrong."""
    seen = [one for one in trials if one is not None]

    def share(values: list[bool]) -> float:
        return round(sum(values) / len(trials), 4)

    def middle(values: list[float]) -> float:
        return round(float(np.median(values)), 3)

    return {
        "trials": len(trials),
        "ranked correctly": share([one.is_correct for one in seen]),
        "right sound found in place, within a frame": share([abs(t.right.offset_frames) <= 1 for t in seen]),
        "moved sound found where it is, within a frame": share(
            [abs(t.moved.offset_frames - t.late) <= 1 for t in seen]
        ),
        "right above wrong": share([t.right.confidence > t.wrong.confidence for t in seen]),
        "confidence, right, median": middle([t.right.confidence for t in seen]),
        "confidence, right, worst": round(min(t.right.confidence for t in seen), 3),
        "confidence, moved, median": middle([t.moved.confidence for t in seen]),
        "confidence, wrong, median": middle([t.wrong.confidence for t in seen]),
        "confidence, wrong, best": round(max(t.wrong.confidence for t in seen), 3),
        "frames compared, median": middle([float(t.right.frames) for t in seen]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    found = []
    with ProcessPoolExecutor(arguments.workers, context) as pool:
        for done in pool.map(trial, range(arguments.trials)):
            found.append(done)
            if len(found) % 20 == 0:
                print(f"{len(found)} trials, ranked correctly {table(found)['ranked correctly']}", flush=True)
                if arguments.output is not None:
                    arguments.output.write_text(json.dumps(table(found), indent=1) + "\n")
    figures = table(found)
    for name, value in figures.items():
        print(f"{name:<50}{value:>8}")
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["ranked correctly"] >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
