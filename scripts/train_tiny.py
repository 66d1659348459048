"""Train the bundled `tiny` model on drawn presenters: detector, autoencoder, U-Net, and write weights/tiny.

    python scripts/train_tiny.py --work-dir build/train_tiny

Each stage leaves its checkpoint in the work folder and is skipped when that is complete, so a stopped run
goes on. espeak-ng is needed to make the speech. What was tried is in docs/log.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import presenter
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from whisper.model import AudioEncoder

from lipsync_engine import align, audio
from lipsync_engine.drawn_faces import STRIDE, FaceNet
from lipsync_engine.models.latentsync.config import UNetConfig
from lipsync_engine.models.latentsync.mask import fixed_mask, latent_mask
from lipsync_engine.models.latentsync.unet import LatentSyncUNet

ROOT = Path(__file__).parents[1]
RESOLUTION, FACTOR, WINDOW = 64, 4, 8
SEED = 20261120

WHISPER = dict(
    n_mels=80, n_audio_ctx=1500, n_audio_state=64, n_audio_head=4, n_audio_layer=2,
    n_vocab=64, n_text_ctx=8, n_text_state=64, n_text_head=4, n_text_layer=1,
)  # fmt: skip
VAE = dict(
    in_channels=3, out_channels=3, latent_channels=4, layers_per_block=1, norm_num_groups=8,
    sample_size=RESOLUTION, block_out_channels=[24, 48, 64], scaling_factor=1.0,
    down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
)  # fmt: skip
UNET = dict(
    in_channels=13, out_channels=4, block_out_channels=[32, 64, 64, 64], layers_per_block=1,
    attention_head_dim=4, cross_attention_dim=64, norm_num_groups=16, norm_eps=1e-5, use_motion_module=True,
    motion_module_kwargs=dict(num_attention_heads=4, temporal_position_encoding_max_len=24),
)  # fmt: skip
SCHEDULER = dict(
    num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
    clip_sample=False, prediction_type="v_prediction", timestep_spacing="trailing", steps_offset=1,
    rescale_betas_zero_snr=True, set_alpha_to_one=True,
)  # fmt: skip

SENTENCES = [
    "The morning bus was late again, but nobody seemed to mind.",
    "Please open the window before you make the coffee.",
    "Mary bought a blue umbrella and a map of Boston.",
    "We move the boxes upstairs when the rain begins.",
    "Every summer my father plants tomatoes by the wall.",
    "Could you pass me the paper with the big photo?",
    "Five brave farmers found a way over the mountain.",
    "Do you remember the song about the moon and the sea?",
    "Our studio opens at nine and closes at six.",
    "Bob pays for the apples, peaches and plums.",
    "A good voice makes a small story feel large.",
    "Why would you wait for the water to warm up?",
]
VOICES = ["en-us", "en-gb", "en-us+f3", "en-gb+m4", "de", "es", "fr"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work-dir", type=Path, default=ROOT / "build" / "train_tiny")
    parser.add_argument(
        "--minutes", type=float, nargs=3, default=(3, 6, 12), help="detector, autoencoder, U-Net"
    )
    arguments = parser.parse_args()
    work: Path = arguments.work_dir
    work.mkdir(parents=True, exist_ok=True)
    detector = stage(work, "detector", FaceNet(), train_detector, arguments.minutes[0])
    vae = stage(work, "vae", AutoencoderKL(**VAE), train_vae, arguments.minutes[1], work)
    torch.manual_seed(SEED)
    encoder = AudioEncoder(
        80, 1500, WHISPER["n_audio_state"], WHISPER["n_audio_head"], WHISPER["n_audio_layer"]
    )
    scale = 1.0 / latent_std(vae, clips(work, encoder))
    unet = LatentSyncUNet(UNetConfig.from_published(UNET))
    stage(work, "unet", unet, train_unet, arguments.minutes[2], work, vae, encoder, scale)
    export(work, detector, vae, unet, encoder, scale)


def stage(work: Path, name: str, net: nn.Module, train: Any, minutes: float, *extra: Any) -> Any:
    """Train a network, or take what an earlier run left; checkpoints every minute."""
    path, done = work / f"{name}.pt", work / f"{name}.done"
    if path.exists():
        net.load_state_dict(torch.load(path, weights_only=True))
    if not done.exists():
        began, saved = time.monotonic(), time.monotonic()
        for step, text in enumerate(train(net, minutes * 60, *extra)):
            if step % 20 == 0:
                print(f"{name} step {step} {time.monotonic() - began:.0f} s: {text}", flush=True)
            if time.monotonic() - saved > 60:
                torch.save(net.state_dict(), path)
                saved = time.monotonic()
        torch.save(net.state_dict(), path)
        done.touch()
    return net.eval().requires_grad_(False)


def optimiser(net: nn.Module, rate: float, seconds: float) -> tuple[torch.optim.Optimizer, Any]:
    """AdamW whose rate rises for 20 steps and falls with the time used; `tick()` is False when time is up."""
    chosen = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-4)
    began, steps = time.monotonic(), 0

    def tick() -> bool:
        nonlocal steps
        steps += 1
        used = (time.monotonic() - began) / seconds
        for group in chosen.param_groups:
            group["lr"] = (
                rate * min(1.0, steps / 20) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1, used))))
            )
        return used < 1

    return chosen, tick


# --- detector ---


def train_detector(net: FaceNet, seconds: float) -> Iterator[str]:
    rng = np.random.default_rng(SEED)
    chosen, tick = optimiser(net, 2e-3, seconds)
    pool = [detector_sample(rng) for _ in range(1800)]
    while tick():
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
        chosen.zero_grad()
        loss.backward()
        chosen.step()
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
    names = list(presenter.VISEMES.values())
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


# --- faces and voices ---


def crop(who: presenter.Identity, pose: presenter.Pose, rng: np.random.Generator) -> np.ndarray:
    """float32 (R, R, 3): what the pipeline would cut out, with a detector's usual error."""
    side = 144
    image = presenter.draw(who, pose, side).astype(np.float32)
    points = presenter.alignment(pose, side)
    points = points + rng.normal(0, 0.006 * pose.scale * side, points.shape)
    return align.crop_face(image, align.solve_matrix(points, RESOLUTION), RESOLUTION)


def clips(work: Path, encoder: AudioEncoder) -> list[dict[str, Tensor]]:
    """Spoken clips: faces (N, 3, R, R) uint8 and tokens (N, T, D) per frame. Made once."""
    path = work / "clips.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    rng = np.random.default_rng(SEED + 1)
    made = []
    for i in range(84):
        wav = work / "speech.wav"
        text = SENTENCES[i % len(SENTENCES)]
        events = presenter.speak(text, VOICES[i % len(VOICES)], wav, rate=int(rng.integers(130, 180)))
        tokens = listen(wav, encoder, work)
        n = min(len(tokens), 90)
        mouth = presenter.articulation(events, n)
        who = presenter.Identity.from_seed(int(rng.integers(10**6)))
        poses = presenter.poses(mouth, int(rng.integers(10**6)), scale=0.5)
        faces = np.stack([crop(who, pose, rng) for pose in poses[:n]])
        made.append(
            {
                "faces": torch.from_numpy(faces.transpose(0, 3, 1, 2).astype(np.uint8)),
                "tokens": tokens[:n].half(),
                "mouth": torch.from_numpy(mouth[:n].astype(np.float32)),
            }
        )
        print(f"clip {i}: {n} frames", flush=True)
    torch.save(made, path)
    return made


def listen(wav: Path, encoder: AudioEncoder, folder: Path) -> Tensor:
    """(N, T, D) tokens of every 25 fps frame of a file."""
    from lipsync_engine import media

    writer = audio.MelWriter(folder / "mel", 80)
    for chunk in media.read_audio(wav):
        writer.add(chunk)
    mel = writer.finish()
    steps = audio.encode(mel, encoder, folder / "features")
    while True:
        try:
            next(steps)
        except StopIteration as finished:
            features = finished.value
            return audio.frame_windows(features, np.arange(int(features.duration_s * 25)) / 25)


def mouth_weight() -> Tensor:
    """(1, 1, R, R): the generated part counts three times."""
    return torch.from_numpy(1 + 2 * (1 - fixed_mask(RESOLUTION)).astype(np.float32))[None, None]


# --- autoencoder ---


def train_vae(vae: AutoencoderKL, seconds: float, work: Path) -> Iterator[str]:
    torch.manual_seed(SEED)
    encoder = AudioEncoder(
        80, 1500, WHISPER["n_audio_state"], WHISPER["n_audio_head"], WHISPER["n_audio_layer"]
    )
    faces = torch.cat([clip["faces"] for clip in clips(work, encoder)])
    weight = mouth_weight()
    mask = torch.from_numpy(fixed_mask(RESOLUTION)).float()
    chosen, tick = optimiser(vae, 2e-3, seconds)
    while tick():
        x = faces[torch.randint(len(faces), (20,))].float() / 127.5 - 1
        x[:6] *= mask  # the masked faces pass through it as well
        posterior = vae.encode(x).latent_dist
        z = posterior.mean + 0.05 * torch.randn_like(posterior.mean)
        out = vae.decode(z).sample
        error = ((out - x) ** 2 * weight).mean() + 0.15 * ((out - x).abs() * weight).mean()
        loss = error + 1e-4 * posterior.mean.square().mean()
        chosen.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        chosen.step()
        yield f"PSNR {10 * math.log10(4 / ((out - x) ** 2).mean().item()):.1f} dB"


@torch.no_grad()
def latent_std(vae: AutoencoderKL, made: list[dict[str, Tensor]]) -> float:
    x = torch.cat([clip["faces"][::20] for clip in made])[:200].float() / 127.5 - 1
    return float(vae.encode(x).latent_dist.mean.std())


# --- U-Net ---


def train_unet(
    unet: LatentSyncUNet, seconds: float, work: Path, vae: AutoencoderKL, encoder: AudioEncoder, scale: float
) -> Iterator[str]:
    """v-prediction with the loss weighted to the mouth; the reference frame shows another mouth."""
    made = clips(work, encoder)
    mask = torch.from_numpy(fixed_mask(RESOLUTION)).float()
    with torch.no_grad():
        for clip in made:
            x = clip["faces"].float() / 127.5 - 1
            clip["latents"] = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(32)]) * scale
            clip["masked"] = (
                torch.cat([vae.encode(part * mask).latent_dist.mean for part in x.split(32)]) * scale
            )
    scheduler = DDIMScheduler(**SCHEDULER)
    kept = torch.from_numpy(latent_mask(fixed_mask(RESOLUTION), FACTOR)).float()
    weight = (1 + 4 * (1 - kept))[None, None, None]
    chosen, tick = optimiser(unet, 1.5e-3, seconds)
    average = None
    while tick():
        rows = [sample_window(made[int(torch.randint(len(made), (1,)))]) for _ in range(6)]
        clean, masked, reference, tokens = (torch.stack(part) for part in zip(*rows, strict=True))
        clean, masked, reference = (part.transpose(1, 2) for part in (clean, masked, reference))
        tokens = tokens * (torch.rand(len(tokens), 1, 1, 1) > 0.1)
        noise = (torch.randn_like(clean) + torch.randn_like(clean[:, :, :1])) / math.sqrt(2)
        t = (999 * (1 - torch.rand(1) ** 1.6)).long()  # the noisiest most
        noisy = scheduler.add_noise(clean, noise, t)
        target = scheduler.get_velocity(clean, noise, t)
        sample = torch.cat([noisy, kept.expand(len(clean), 1, WINDOW, -1, -1), masked, reference], dim=1)
        out = unet(sample, t, tokens.flatten(0, 1))
        loss = ((out - target) ** 2 * weight).mean()
        chosen.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        chosen.step()
        average = loss.item() if average is None else 0.95 * average + 0.05 * loss.item()
        yield f"loss {average:.4f}"


def sample_window(clip: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n = len(clip["latents"])
    start, other = (int(torch.randint(n - WINDOW, (1,))) for _ in range(2))
    now, then = slice(start, start + WINDOW), slice(other, other + WINDOW)
    return clip["latents"][now], clip["masked"][now], clip["latents"][then], clip["tokens"][now].float()


# --- export ---


def export(
    work: Path, detector: nn.Module, vae: nn.Module, unet: nn.Module, encoder: nn.Module, scale: float
) -> None:
    """Half-precision safetensors (positional tables in full) and JSON; manifest lines go to stdout."""
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
    run = dict(
        window_frames=16,
        num_inference_steps=4,
        guidance_scale=1.5,
        vae_scaling_factor=scale,
        scheduler=SCHEDULER,
    )
    for name, fields in {
        "vae_config": VAE,
        "unet_config": UNET,
        "whisper_config": WHISPER,
        "model_config": run,
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n")
    for path in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.json")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f'\n[[models.tiny.files]]\nrole = "{path.stem}"\npath = "tiny/{path.name}"')
        print(f'size = {path.stat().st_size}\nsha256 = "{digest}"')


if __name__ == "__main__":
    main()
