"""Train `sync-tiny`, the sync score of drawn presenters, and write weights/sync_tiny.

    python -m scripts.train.sync --work-dir build/train_sync

SyncNet at a small size: mouths and voices of the same moment come to lie near each other, those of other
moments and of other presenters do not. Data and parts are `train_tiny.py`'s; a stopped run goes on. espeak-ng
is needed.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from lipsync_engine import media
from lipsync_engine.sync_score.cepstrum import SAMPLE_RATE, compute_mfcc
from lipsync_engine.sync_score.crop import compute_squares, crop_square
from lipsync_engine.sync_score.network import CLIP_FRAMES, CLIP_STEPS, SyncConfig, SyncNet, dump_config
from scripts.train.tiny import ROOT, TRACK_S, Clock, Optimiser, fast, random_who, record, stage
from tests.support import presenter, speech

SEED = 20261126
CONFIG = SyncConfig(
    side=96,
    voice_widths=(16, 32, 48, 48, 48, 96),
    face_widths=(12, 32, 48, 48, 48, 96),
    hidden=96,
    embedding=64,
)
TRACKS, CLIPS, CLIP_LENGTH = 160, 320, 48
RUN, ROWS = 12, 8
"""A step sees that many consecutive clips of that many presenters."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work-dir", type=Path, default=ROOT / "build" / "train_sync")
    parser.add_argument("--minutes", type=float, default=15)
    arguments = parser.parse_args()
    work: Path = arguments.work_dir
    work.mkdir(parents=True, exist_ok=True)
    heard = tracks(work)
    faces, numbers, starts = clips(work, heard)
    sounds = torch.stack([track["sound"] for track in heard])
    mouths = torch.stack([track["mouth"] for track in heard])
    data = Data(faces, numbers, starts, sounds, mouths)
    net = stage(work, "sync", Learner(), train, 60 * arguments.minutes, data).net
    export(net)


def export(net: SyncNet) -> None:
    """Half-precision safetensors, sizes as JSON; the manifest's lines are rewritten."""
    folder = ROOT / "weights" / "sync_tiny"
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.half() for key, value in net.state_dict().items() if value.is_floating_point()}
    save_file(state, folder / "sync.safetensors")
    (folder / "sync.safetensors").chmod(0o644)
    (folder / "sync_config.json").write_text(dump_config(CONFIG))
    record("sync-tiny", folder)


def tracks(work: Path) -> list[dict[str, Tensor]]:
    """Speech: `sound` (2, 13, columns), clean and disturbed, and `mouth` (frames, 3)."""
    path = work / "tracks.pt"
    if not path.exists():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            torch.save(pool.map(partial(track, work), range(TRACKS)), path)
    return torch.load(path, weights_only=True)


def track(work: Path, number: int) -> dict[str, Tensor]:
    rng = np.random.default_rng((SEED, 1, number))
    said = speech.random_track(rng, TRACK_S)
    wav = work / f"speech-{number}.wav"
    speech.write_wav(said.samples, said.sample_rate, wav)
    clean = np.concatenate(list(media.read_audio(wav)))
    wav.unlink()
    clean = np.pad(clean, (0, SAMPLE_RATE * TRACK_S - len(clean) + SAMPLE_RATE))
    columns = 100 * TRACK_S
    both = [compute_mfcc(samples, 0, columns) for samples in (clean, disturbed(clean, rng))]
    mouth = speech.articulation(said.events, speech.FPS * TRACK_S)
    return {"sound": torch.from_numpy(np.stack(both)), "mouth": torch.from_numpy(mouth).float()}


def disturbed(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same voice louder or softer, in a room, with noise."""
    room = rng.normal(0, 1, SAMPLE_RATE // 8) * np.exp(-np.arange(SAMPLE_RATE // 8) / (SAMPLE_RATE * 0.03))
    room[0] = rng.uniform(4, 12)
    size = len(samples) + len(room)
    heard = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(room, size), size)[: len(samples)]
    heard *= rng.uniform(0.15, 1.2) * np.abs(samples).max() / max(1.0, np.abs(heard).max())
    noise = rng.normal(0, rng.uniform(2, 120), len(samples))
    return np.clip(heard + noise, -32768, 32767).astype(np.int16)


def clip(job: tuple[int, np.ndarray]) -> np.ndarray:
    """uint8 (CLIP_LENGTH, side, side, 3) of one identity with the given mouth, cropped as detectors err."""
    number, mouth = job
    cv2.setNumThreads(1)
    rng = np.random.default_rng((SEED, 2, number))
    who = random_who(rng, bearded=number % 3 == 0)
    side = int(rng.integers(150, 300))
    poses = presenter.poses(mouth, int(rng.integers(10**6)), scale=float(rng.uniform(0.36, 0.52)))
    points = np.stack([presenter.alignment(pose, side) for pose in poses])
    size = poses[0].scale * side
    points = points + rng.normal(0, 0.012 * size, (1, 3, 2)) + rng.normal(0, 0.006 * size, points.shape)
    places = compute_squares(points.astype(np.float32))
    blur, quality = rng.choice([0.0, rng.uniform(0.4, 2.0)]), int(rng.integers(40, 96))
    shown = []
    for pose, place in zip(poses, places, strict=True):
        picture = presenter.draw(who, pose, side)
        if blur:
            picture = cv2.GaussianBlur(picture, (0, 0), blur * side / 300)
        coded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        shown.append(crop_square(cv2.imdecode(coded, cv2.IMREAD_COLOR), place, CONFIG.side))
    return np.stack(shown)


def clips(work: Path, heard: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """faces (CLIPS, CLIP_LENGTH, side, side, 3) uint8, and of each clip its track and first frame."""
    path = work / "clips.pt"
    if not path.exists():
        rng = np.random.default_rng((SEED, 3))
        number = np.arange(CLIPS) % len(heard)
        start = rng.integers(0, speech.FPS * TRACK_S - CLIP_LENGTH, CLIPS)
        mouths = [heard[k]["mouth"][a : a + CLIP_LENGTH].numpy() for k, a in zip(number, start, strict=True)]
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            faces = np.stack(pool.map(clip, enumerate(mouths)))
        torch.save([torch.from_numpy(value) for value in (faces, number, start)], path)
    faces, number, start = torch.load(path, weights_only=True)
    return faces, number, start


@dataclass(frozen=True)
class Data:
    """What is learned from: `clips`, and of each track `sound` and `mouth`."""

    faces: Tensor
    numbers: Tensor
    starts: Tensor
    sounds: Tensor
    mouths: Tensor


class Learner(nn.Module):
    """SyncNet with heads that read the mouth's shapes from either vector; the heads are for training only.

    Without them nothing is learned for hundreds of steps: at first a vector says nothing that the other could
    agree with.
    """

    def __init__(self) -> None:
        super().__init__()
        self.net = SyncNet(CONFIG)
        self.heads = nn.ModuleList(nn.Linear(CONFIG.embedding, 3 * CLIP_FRAMES) for _ in range(2))


def train(learner: Learner, clock: Clock, data: Data) -> Iterator[str]:
    """Each face finds its sound among all of the step's and the reverse; nearest neighbours do not count."""
    learner.train()
    chosen = Optimiser(learner, 3e-3, clock)
    place = torch.arange(RUN * ROWS)
    same = place[:, None] // RUN == place // RUN
    near = ((place[:, None] - place).abs() <= 1) & same & (place[:, None] != place)
    right = 0.0
    while clock.used < 1:
        seen, heard, mouth = zip(*(row(data) for _ in range(ROWS)), strict=True)
        with fast():
            vectors = (
                learner.net.embed_faces(torch.stack(seen)).flatten(0, 1),
                learner.net.embed_audio(torch.cat(heard)),
            )
            said = [head(vector) for head, vector in zip(learner.heads, vectors, strict=True)]
        shape = sum(functional.mse_loss(one.float(), torch.cat(mouth)) for one in said)
        apart = torch.cdist(*(vector.float() for vector in vectors)).masked_fill(near, 1e4)
        match = functional.cross_entropy(-apart, place) + functional.cross_entropy(-apart.T, place)
        chosen.step(match + 30 * shape)
        right = 0.98 * right + 0.02 * (apart.argmin(1) == place).float().mean().item()
        told = f"match {match.item():.3f}, shape {shape.item():.4f}"
        yield f"{told}, the right one of {len(place)} is nearest: {right:.2f}"


def row(data: Data) -> tuple[Tensor, Tensor, Tensor]:
    """One presenter's (3, RUN + 4, side, side), (RUN, 1, 13, 20) of what it says, (RUN, 15) of the mouth."""
    number = int(torch.randint(len(data.faces), ()))
    first = int(torch.randint(CLIP_LENGTH - RUN - CLIP_FRAMES + 2, ()))
    track, frame = int(data.numbers[number]), int(data.starts[number]) + first
    shown = data.faces[number, first : first + RUN + CLIP_FRAMES - 1].permute(3, 0, 1, 2).float()
    if torch.rand(()) < 0.5:
        shown = shown.flip(-1)
    shown = ((shown - 128) * (0.8 + 0.4 * torch.rand(())) + 128 + 40 * (torch.rand(()) - 0.5)).clamp(0, 255)
    sound = data.sounds[track, int(torch.randint(2, ()))][:, 4 * frame : 4 * (frame + RUN - 1) + CLIP_STEPS]
    mouth = data.mouths[track, frame : frame + RUN + CLIP_FRAMES - 1].unfold(0, CLIP_FRAMES, 1).flatten(1)
    return shown, sound.unfold(1, CLIP_STEPS, 4).permute(1, 0, 2)[:, None], mouth


if __name__ == "__main__":
    main()
