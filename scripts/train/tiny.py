"""Train the bundled `tiny` model on drawn presenters and write weights/tiny.

    python -m scripts.train.tiny --work-dir build/train_tiny

Four networks, each with its own checkpoint in the work folder and skipped when that is complete, so a
stopped run goes on: the face detector; the audio encoder (learns mouth shapes from sound); the autoencoder;
the U-Net. espeak-ng is needed to make the speech. What was tried, and why it is done this way, is in
dev/log.md.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import multiprocessing
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import whisper
from diffusers import AutoencoderKL, DDIMScheduler
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from whisper.model import AudioEncoder

from lipsync_engine import media
from lipsync_engine.faces import align
from lipsync_engine.faces.drawn import STRIDE, FaceNet
from lipsync_engine.models.latentsync.config import UNetConfig
from lipsync_engine.models.latentsync.mask import downsample_mask, load_fixed_mask
from lipsync_engine.models.latentsync.unet import LatentSyncUNet
from tests.support import presenter, speech

ROOT = Path(__file__).parents[2]
RESOLUTION, FACTOR, WINDOW = 64, 4, 16
SEED = 20261120
CLOSED = list(speech.VISEMES).index("closed")

TRACKS, TRACK_S = 480, 30
"""The speech: four hours of it, in pieces as long as Whisper reads."""

CLIPS, CLIP_FRAMES = 320, 48
"""The faces: that many identities, each over a stretch of a track."""

WHISPER = dict(
    n_mels=80, n_audio_ctx=1500, n_audio_state=96, n_audio_head=4, n_audio_layer=3,
    n_vocab=64, n_text_ctx=8, n_text_state=64, n_text_head=4, n_text_layer=1,
)  # fmt: skip
VAE = dict(
    in_channels=3, out_channels=3, latent_channels=4, layers_per_block=1, norm_num_groups=8,
    sample_size=RESOLUTION, block_out_channels=[32, 64, 64], scaling_factor=1.0,
    down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
)  # fmt: skip
UNET = dict(
    in_channels=13, out_channels=4, block_out_channels=[32, 64, 64, 64], layers_per_block=1,
    attention_head_dim=4, cross_attention_dim=96, norm_num_groups=16, norm_eps=1e-5, use_motion_module=True,
    motion_module_kwargs=dict(num_attention_heads=4, temporal_position_encoding_max_len=24),
)  # fmt: skip
SCHEDULER = dict(
    num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
    clip_sample=False, prediction_type="v_prediction", timestep_spacing="trailing", steps_offset=1,
    rescale_betas_zero_snr=True, set_alpha_to_one=True,
)  # fmt: skip
RUN = dict(
    window_frames=WINDOW, audio_context=[0, 0], num_inference_steps=4, guidance_scale=2.0, scheduler=SCHEDULER
)
"""A frame hears its own 40 ms only: the encoder, which hears everything, has put the context there."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work-dir", type=Path, default=ROOT / "build" / "train_tiny")
    parser.add_argument(
        "--minutes",
        type=float,
        nargs=4,
        default=(2, 24, 15, 42),
        help="detector, audio encoder, autoencoder, U-Net",
    )
    arguments = parser.parse_args()
    work: Path = arguments.work_dir
    work.mkdir(parents=True, exist_ok=True)
    for_detector, for_listener, for_vae, for_unet = (60 * minutes for minutes in arguments.minutes)

    detector = stage(work, "detector", FaceNet(), train_detector, for_detector)
    heard = tracks(work)
    listener = stage(work, "listener", Listener(), train_listener, for_listener, heard)
    seen = clips(work, heard)
    vae = stage(work, "vae", AutoencoderKL(**VAE), train_vae, for_vae, seen)
    data = encoded(seen, heard, listener, vae)
    unet = stage(work, "unet", LatentSyncUNet(UNetConfig.from_published(UNET)), train_unet, for_unet, data)
    export(detector, vae, unet, listener.encoder, data.scale)


def stage(work: Path, name: str, net: nn.Module, train: Any, seconds: float, *extra: Any) -> Any:
    """Train a network, or take what an earlier run left; a checkpoint every minute."""
    torch.manual_seed(SEED)
    path, used_s = work / f"{name}.pt", 0.0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        net.load_state_dict(saved["net"])
        used_s = saved["used_s"]
    began, last = time.monotonic() - used_s, time.monotonic()
    if used_s < seconds:
        clock = Clock(began, seconds)
        for step, text in enumerate(train(net, clock, *extra)):
            now = time.monotonic()
            if step % 50 == 0:
                print(f"{name} step {step} {now - began:.0f} s: {text}", flush=True)
            if now - last > 60:
                torch.save({"net": net.state_dict(), "used_s": now - began}, path)
                last = now
        torch.save({"net": net.state_dict(), "used_s": seconds}, path)
    return net.eval().requires_grad_(False)


@dataclass(frozen=True)
class Clock:
    """The time that a stage has: learning rates fall with it, and it ends with it."""

    began: float
    seconds: float

    @property
    def used(self) -> float:
        return (time.monotonic() - self.began) / self.seconds


class Optimiser:
    """AdamW whose rate rises for 50 steps and falls with the time used; gradients are clipped."""

    def __init__(self, net: nn.Module, rate: float, clock: Clock) -> None:
        self._net, self._rate, self._clock, self._steps = net, rate, clock, 0
        self._adam = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-4, betas=(0.9, 0.98))

    def step(self, loss: Tensor) -> None:
        self._steps += 1
        fall = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, self._clock.used)))
        for group in self._adam.param_groups:
            group["lr"] = self._rate * min(1.0, self._steps / 50) * fall
        self._adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._net.parameters(), 1.0)
        self._adam.step()


def fast() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


# --- detector ---


def train_detector(net: FaceNet, clock: Clock) -> Iterator[str]:
    rng = np.random.default_rng(SEED)
    chosen = Optimiser(net, 2e-3, clock)
    pool = [detector_sample(rng) for _ in range(1800)]
    while clock.used < 1:
        batch = [pool[i] for i in rng.integers(len(pool), size=32)]
        x = torch.stack(
            [torch.from_numpy(image.transpose(2, 0, 1)).float() / 127.5 - 1 for image, _ in batch]
        )
        x = (x * rng.uniform(0.8, 1.15) + rng.normal(0, 0.08) + 0.03 * torch.randn_like(x)).clamp(-1, 1)
        target = torch.from_numpy(np.stack([grid for _, grid in batch]))
        out = net(x)
        care = (target[:, 0] >= 0).float()
        face = (target[:, 0] > 0.5).float()
        score = functional.binary_cross_entropy_with_logits(
            out[:, 0], target[:, 0].clamp(0, 1), reduction="none"
        )
        shape = (out[:, 1:] - target[:, 1:]).abs() * torch.tensor([0.5] + [2.0] * 6)[:, None, None]
        loss = (score * care * (1 + 4 * face)).mean() * 4 + (shape.sum(1) * face).sum() / face.sum().clamp(
            min=1
        )
        chosen.step(loss)
        yield f"loss {loss.item():.3f}"


def detector_sample(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A picture of 128 x 128 with a presenter, or none, and what the net should say."""
    side, n = 128, 128 // STRIDE
    grid = np.zeros((8, n, n), np.float32)
    if rng.random() < 0.3:
        return clutter(rng, side), grid
    pose = random_pose(rng, (0.18, 0.85), spread=0.32)
    image = presenter.draw(presenter.Identity.from_seed(int(rng.integers(10**6))), pose, side)
    if rng.random() < 0.2:  # without the face: shuffle the picture's blocks
        blocks = image.reshape(8, 16, 8, 16, 3).transpose(0, 2, 1, 3, 4).reshape(64, 16, 16, 3)
        image = (
            rng.permutation(blocks).reshape(8, 8, 16, 16, 3).transpose(0, 2, 1, 3, 4).reshape(side, side, 3)
        )
        return np.ascontiguousarray(image), grid
    points = presenter.alignment(pose, side)
    size = pose.scale * side
    middle = (points[0] + points[1]) / 2 + (0, 0.14 * size)
    ys, xs = (np.mgrid[:n, :n] + 0.5) * STRIDE
    away = np.hypot(xs - middle[0], ys - middle[1]) / size
    grid[0] = np.where(away < 0.15, 1, np.where(away < 0.3, -1, 0))
    row, column = (np.clip(middle[::-1] // STRIDE, 0, n - 1)).astype(int)
    grid[0, row, column] = 1
    grid[1] = math.log(size)
    cells = np.stack([xs, ys])
    grid[2:] = ((points[:, :, None, None] - cells[None]) / size).reshape(6, n, n)
    return image, grid


def clutter(rng: np.random.Generator, side: int) -> np.ndarray:
    """A picture of bars, discs, boxes and ramps that is nobody."""
    ramp = (
        np.linspace(0, 1, side)[:, None, None]
        if rng.random() < 0.5
        else np.linspace(0, 1, side)[None, :, None]
    )
    ends = rng.uniform(0, 255, (2, 3))
    image = np.ascontiguousarray(np.broadcast_to(ends[0] + ramp * (ends[1] - ends[0]), (side, side, 3)))
    if rng.random() < 0.4:
        bars = rng.uniform(0, 255, (int(rng.integers(3, 12)), 3))
        image[:] = np.repeat(bars, -(-side // len(bars)), axis=0)[:side][None]
    for _ in range(int(rng.integers(0, 14))):
        colour, (x, y) = rng.uniform(0, 255, 3).tolist(), rng.integers(0, side, 2)
        match int(rng.integers(3)):
            case 0:
                cv2.ellipse(
                    image, (int(x), int(y)), tuple(rng.integers(3, 40, 2).tolist()), 0, 0, 360, colour, -1
                )
            case 1:
                w, h = rng.integers(3, 60, 2)
                cv2.rectangle(image, (int(x), int(y)), (int(x + w), int(y + h)), colour, -1)
            case _:
                cv2.line(image, (int(x), int(y)), tuple(rng.integers(0, side, 2).tolist()), colour, 3)
    return np.clip(image + rng.normal(0, rng.uniform(0, 12), image.shape), 0, 255).astype(np.uint8)


def random_pose(
    rng: np.random.Generator, scales: tuple[float, float], spread: float = 0.05
) -> presenter.Pose:
    names = list(speech.VISEMES.values())
    a, b, mix = names[rng.integers(len(names))], names[rng.integers(len(names))], rng.random()
    openness, width, rounding = (mix * np.array(a) + (1 - mix) * np.array(b)).tolist()
    return presenter.Pose(
        x=0.5 + rng.uniform(-spread, spread),
        y=0.46 + rng.uniform(-spread, spread),
        scale=math.exp(rng.uniform(math.log(scales[0]), math.log(scales[1]))),
        roll_deg=rng.normal(0, 5),
        turn=rng.uniform(-0.6, 0.6),
        blink=float(rng.random() < 0.15),
        openness=openness,
        width=width,
        rounding=rounding,
    )


# --- voices ---


def tracks(work: Path) -> list[dict[str, Tensor]]:
    """Speech and what the mouth does with it: mel (80, 3000), mouth (1500, 3), viseme (1500,); events."""
    path = work / "tracks.pt"
    if not path.exists():
        with multiprocessing.get_context("spawn").Pool() as pool:
            torch.save(pool.map(partial(track, work), range(TRACKS)), path)
    return torch.load(path, weights_only=True)


def track(work: Path, number: int) -> dict[str, Any]:
    said = speech.random_track(np.random.default_rng((SEED, 1, number)), TRACK_S)
    wav = work / f"speech-{number}.wav"
    speech.write_wav(said.samples, said.sample_rate, wav)
    samples = np.concatenate(list(media.read_audio(wav))).astype(np.float32) / 32768
    wav.unlink()
    mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(samples), 80)
    names, steps = list(speech.VISEMES), 50 * TRACK_S
    starts = np.array([start for start, _ in said.events])
    at = np.searchsorted(starts, (np.arange(steps) + 0.5) / 50, side="right") - 1
    visemes = np.array([names.index(name) for _, name in said.events])
    return {
        "mel": mel.half(),
        "mouth": torch.from_numpy(speech.articulation(said.events, steps, fps=50)).float(),
        "viseme": torch.from_numpy(np.where(at < 0, names.index("rest"), visemes[np.maximum(at, 0)])),
        "frames": torch.from_numpy(speech.articulation(said.events, 25 * TRACK_S)).float(),
    }


class Listener(nn.Module):
    """Whisper's encoder with a head that reads mouths; the head is for training only."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AudioEncoder(*(WHISPER[f"n_{name}"] for name in ENCODER_FIELDS))
        self.head = nn.Linear(WHISPER["n_audio_state"], 3 + len(speech.VISEMES))

    def states(self, mel: Tensor, first: int = 0) -> Tensor:
        """(B, 80, 2 N) at place `first` of 1500 and on → (B, layers, N, D), as the engine takes them."""
        x = functional.gelu(self.encoder.conv1(mel))
        x = functional.gelu(self.encoder.conv2(x)).transpose(1, 2)
        states = [x + self.encoder.positional_embedding[first : first + x.shape[1]]]
        for block in self.encoder.blocks:
            states.append(block(states[-1]))
        return torch.stack(states, dim=1)


ENCODER_FIELDS = ("mels", "audio_ctx", "audio_state", "audio_head", "audio_layer")


def train_listener(net: Listener, clock: Clock, heard: list[dict[str, Tensor]]) -> Iterator[str]:
    """Openness, width, rounding and viseme of every 20 ms, from sound changed at random in many ways.

    Frames in which the lips must be closed count three times: they are few, and everybody sees them.
    """
    chosen = Optimiser(net, 1.5e-3, clock)
    care = torch.tensor([3.0, 1.0, 1.0])
    bands = torch.linspace(0, math.pi, 80)[None, :] * torch.arange(1, 4)[:, None]
    held = heard[:4]
    step = 0
    while clock.used < 1:
        # Pieces of ten seconds are quicker; whole ones at the end, because that is what the engine gives it.
        n, count = (500, 12) if clock.used < 0.7 else (1500, 4)
        rows = [heard[i] for i in torch.randint(4, len(heard), (count,)).tolist()]
        starts = torch.randint(1500 - n + 1, (count,)).tolist()
        mel, mouth, viseme = (
            torch.stack(
                [row[key].narrow(axis, rate * at, rate * n) for row, at in zip(rows, starts, strict=True)]
            )
            for key, rate, axis in (("mel", 2, 1), ("mouth", 1, 0), ("viseme", 1, 0))
        )
        tilt = (0.12 * torch.randn(count, 3) @ bands.cos())[:, :, None]
        mel = other_throats(mel.float()) + tilt + 0.1 * torch.rand(count, 1, 1) * torch.randn(mel.shape)
        with fast():
            out = net.head(net.states(mel, int(torch.randint(1500 - n + 1, ())))[:, -1])
        out = out.float()
        shut = (viseme == CLOSED)[..., None]
        loss = ((out[..., :3] - mouth) ** 2 * care * (1 + 2 * shut)).mean()
        loss = loss + 0.05 * functional.cross_entropy(out[..., 3:].flatten(0, 1), viseme.flatten())
        chosen.step(loss)
        if step % 50 == 0:
            with torch.no_grad(), fast():
                said = net.head(net.states(torch.stack([row["mel"].float() for row in held]))[:, -1]).float()
            truth = torch.stack([row["mouth"] for row in held])
            score = [
                float(torch.corrcoef(torch.stack([said[..., i].flatten(), truth[..., i].flatten()]))[0, 1])
                for i in range(3)
            ]
        step += 1
        shown = " ".join(f"{value:.3f}" for value in score)
        yield f"loss {loss.item():.4f}, correlation on unheard tracks {shown}"


def other_throats(mel: Tensor) -> Tensor:
    """(B, 80, T) with each spectrum stretched and moved a little: voices that espeak-ng does not have."""
    n_mels = mel.shape[1]
    stretch, move = torch.empty(2, len(mel), 1).uniform_(-1, 1)
    at = (torch.arange(n_mels) * (1 + 0.12 * stretch) + 3 * move).clamp(0, n_mels - 1)
    low = at.long().clamp(max=n_mels - 2)
    part = (at - low)[..., None]
    rows = torch.arange(len(mel))[:, None]
    return mel[rows, low] * (1 - part) + mel[rows, low + 1] * part


# --- faces ---


def crop(who: presenter.Identity, pose: presenter.Pose, side: int, rng: np.random.Generator) -> np.ndarray:
    """float32 (R, R, 3): what the pipeline would cut out, with a detector's usual error."""
    image = presenter.draw(who, pose, side).astype(np.float32)
    points = presenter.alignment(pose, side)
    points = points + rng.normal(0, 0.006 * pose.scale * side, points.shape)
    return align.crop_face(image, align.solve_matrix(points, RESOLUTION), RESOLUTION)


def clip(job: tuple[int, np.ndarray]) -> np.ndarray:
    """uint8 (CLIP_FRAMES, 3, R, R) of one identity with the given mouth."""
    number, mouth = job
    cv2.setNumThreads(1)
    rng = np.random.default_rng((SEED, 2, number))
    who = random_who(rng, bearded=number % 3 == 0)
    side, scale = int(rng.integers(130, 200)), float(rng.uniform(0.42, 0.55))
    poses = presenter.poses(mouth, int(rng.integers(10**6)), scale=scale)
    faces = np.stack([crop(who, pose, side, rng) for pose in poses])
    return faces.transpose(0, 3, 1, 2).clip(0, 255).astype(np.uint8)


def random_who(rng: np.random.Generator, *, bearded: bool) -> presenter.Identity:
    """Anybody, or somebody with a full beard: few have one, and the mouth is harder to see there."""
    who = presenter.Identity.from_seed(int(rng.integers(10**6)))
    while bearded and who.beard < 0.9:
        who = presenter.Identity.from_seed(int(rng.integers(10**6)))
    return who


def clips(work: Path, heard: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """faces (CLIPS, CLIP_FRAMES, 3, R, R) uint8, and of each clip its track and first frame."""
    path = work / "clips.pt"
    if not path.exists():
        rng = np.random.default_rng((SEED, 3))
        track = np.arange(CLIPS) % len(heard)
        start = rng.integers(0, 25 * TRACK_S - CLIP_FRAMES, CLIPS)
        mouths = [heard[k]["frames"][a : a + CLIP_FRAMES].numpy() for k, a in zip(track, start, strict=True)]
        with multiprocessing.get_context("spawn").Pool() as pool:
            faces = np.stack(pool.map(clip, enumerate(mouths)))
        made = {"faces": faces, "track": track, "start": start}
        torch.save({name: torch.from_numpy(value) for name, value in made.items()}, path)
    return torch.load(path, weights_only=True)


def regions() -> tuple[Tensor, Tensor]:
    """bool (R, R): what is generated, and the part of it where the mouth lies."""
    generated = torch.from_numpy(load_fixed_mask(RESOLUTION)) < 0.5
    mouth = torch.zeros_like(generated)
    rows, columns = (
        slice(*(int(share * RESOLUTION) for share in span)) for span in ((0.52, 0.84), (0.3, 0.7))
    )
    mouth[rows, columns] = True
    return generated, mouth & generated


# --- autoencoder ---


def train_vae(vae: AutoencoderKL, clock: Clock, seen: dict[str, Tensor]) -> Iterator[str]:
    faces = seen["faces"].flatten(0, 1)
    mask = torch.from_numpy(load_fixed_mask(RESOLUTION)).float()
    generated, mouth = regions()
    weight = 1 + generated.float() + 6 * mouth.float()
    vae.to(memory_format=torch.channels_last)
    chosen = Optimiser(vae, 2e-3, clock)
    psnr = 0.0
    while clock.used < 1:
        x = faces[torch.randint(len(faces), (16,))].float() / 127.5 - 1
        x[:4] *= mask  # the masked faces pass through it as well
        with fast():
            mean = vae.encode(x).latent_dist.mean
            out = vae.decode(mean + 0.03 * torch.randn_like(mean)).sample
        error = out.float() - x
        loss = (error**2 * weight).mean() + 0.02 * (error.abs() * weight).mean()
        chosen.step(loss + 1e-4 * mean.float().square().mean())
        in_mouth = 10 * math.log10(4 / (error[4:, :, mouth] ** 2).mean().item())
        psnr = in_mouth if not psnr else 0.95 * psnr + 0.05 * in_mouth
        yield f"PSNR in the mouth {psnr:.1f} dB"


# --- U-Net ---


@dataclass(frozen=True)
class Latents:
    """What the U-Net learns from: clean and masked (CLIPS, F, 4, h, w), tokens (CLIPS, F, T, D)."""

    clean: Tensor
    masked: Tensor
    tokens: Tensor
    scale: float


@torch.no_grad()
def encoded(
    seen: dict[str, Tensor], heard: list[dict[str, Tensor]], listener: Listener, vae: AutoencoderKL
) -> Latents:
    mask = torch.from_numpy(load_fixed_mask(RESOLUTION)).float()
    states = [listener.states(row["mel"][None].float())[0] for row in heard]  # (layers, 1500, D) each
    steps = [
        states[k][:, 2 * a : 2 * (a + CLIP_FRAMES)].transpose(0, 1)
        for k, a in zip(seen["track"].tolist(), seen["start"].tolist(), strict=True)
    ]
    tokens = torch.stack([part.unflatten(0, (CLIP_FRAMES, 2)).flatten(1, 2) for part in steps])
    clean, masked = [], []
    for faces in seen["faces"]:
        x = faces.float() / 127.5 - 1
        clean.append(vae.encode(x).latent_dist.mean)
        masked.append(vae.encode(x * mask).latent_dist.mean)
    scale = 1 / float(torch.stack(clean).std())
    return Latents(torch.stack(clean) * scale, torch.stack(masked) * scale, tokens, scale)


def train_unet(unet: LatentSyncUNet, clock: Clock, data: Latents) -> Iterator[str]:
    """v-prediction, weighted to the mouth; half of all samples are pure noise, where only the sound tells.

    The reference frames are others of the clip, so that their mouths tell nothing. The weights kept are a
    running mean.
    """
    scheduler = DDIMScheduler(**SCHEDULER)
    generated, mouth = (functional.avg_pool2d(area[None, None].float(), FACTOR)[0, 0] for area in regions())
    weight = 0.3 + generated + 4 * mouth
    weight = (weight / weight.mean())[None, None, None]
    kept = torch.from_numpy(downsample_mask(load_fixed_mask(RESOLUTION), FACTOR)).float()
    learner = copy.deepcopy(unet)
    chosen = Optimiser(learner, 1.5e-3, clock)
    average, step = None, 0
    while clock.used < 1:
        rows = [window(data) for _ in range(4)]
        clean, masked, reference, tokens = (torch.stack(part) for part in zip(*rows, strict=True))
        clean, masked, reference = (part.transpose(1, 2) for part in (clean, masked, reference))
        tokens = tokens * (torch.rand(len(tokens), 1, 1, 1) > 0.1)
        noise = torch.randn_like(clean[:, :, :1]).expand_as(clean)
        if torch.rand(1) < 0.5:
            noise = (torch.randn_like(clean) + noise) / math.sqrt(2)
        t = torch.full((1,), 999) if torch.rand(1) < 0.5 else torch.randint(60, 999, (1,))
        noisy = scheduler.add_noise(clean, noise, t)
        target = scheduler.get_velocity(clean, noise, t)
        sample = torch.cat([noisy, kept.expand(len(clean), 1, WINDOW, -1, -1), masked, reference], dim=1)
        with fast():
            out = learner(sample, t, tokens.flatten(0, 1))
        loss = ((out.float() - target) ** 2 * weight).mean()
        chosen.step(loss)
        step += 1
        with torch.no_grad():
            share = max(0.003, 1 / step)
            for mean, now in zip(unet.parameters(), learner.parameters(), strict=True):
                mean.lerp_(now, share)
        if t == 999:
            average = loss.item() if average is None else 0.95 * average + 0.05 * loss.item()
        yield f"loss from pure noise {average or 0:.4f}"


def window(data: Latents) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    clip, start, other = (
        int(torch.randint(high, (1,))) for high in (CLIPS, CLIP_FRAMES - WINDOW, CLIP_FRAMES - WINDOW)
    )
    now, then = slice(start, start + WINDOW), slice(other, other + WINDOW)
    return data.clean[clip, now], data.masked[clip, now], data.clean[clip, then], data.tokens[clip, now]


# --- export ---


def export(detector: nn.Module, vae: nn.Module, unet: nn.Module, encoder: nn.Module, scale: float) -> None:
    """Half-precision safetensors (positional tables in full) and JSON; the manifest's lines are rewritten."""
    folder = ROOT / "weights" / "tiny"
    folder.mkdir(parents=True, exist_ok=True)
    encoder_state = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    states = {
        "detector": detector.state_dict(),
        "vae": vae.state_dict(),
        "unet": unet.state_dict(),
        "whisper": encoder_state,
    }
    for name, state in states.items():
        half = {k: (v if k.endswith(".pe") else v.half()).contiguous() for k, v in state.items()}
        save_file(half, folder / f"{name}.safetensors")
        (folder / f"{name}.safetensors").chmod(0o644)
    for name, fields in {
        "vae_config": VAE,
        "unet_config": UNET,
        "whisper_config": WHISPER,
        "model_config": RUN | {"vae_scaling_factor": scale},
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n")
    record("tiny", folder)


def record(name: str, folder: Path) -> None:
    """Rewrite the files of a bundled model in the manifest, from what lies in its folder."""
    manifest = ROOT / "weights" / "manifest.toml"
    known = re.sub(rf"\n\[\[models\.{name}\.files\]\]\n(?:[^\n]+\n)*", "", manifest.read_text())
    head, table, rest = known.partition(f"[models.{name}]\n")
    fields, _, rest = rest.partition("\n\n")
    lines = [head, table, fields.rstrip("\n"), "\n"]
    for path in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.json")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f'\n[[models.{name}.files]]\nrole = "{path.stem}"\npath = "{folder.name}/{path.name}"\n')
        lines.append(f'size = {path.stat().st_size}\nsha256 = "{digest}"\n')
    manifest.write_text("".join(lines) + (f"\n{rest}" if rest else ""))


if __name__ == "__main__":
    main()
