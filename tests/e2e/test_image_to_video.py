"""Portraits that an image-to-video model moves, with the real pipeline at tiny size and random weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel
from typer.testing import CliRunner

from lipsync_engine import LipSyncPipeline, Motion, Progress, Stage, SyncParams, SyncResult, media
from lipsync_engine.cli import app
from lipsync_engine.errors import ErrorCode, FaceError, OutputError, WeightsError
from lipsync_engine.models import image_to_video
from lipsync_engine.portrait import animation
from lipsync_engine.portrait.source import ClipCache, store_clip
from lipsync_engine.utils import drain
from lipsync_engine.weights import WeightsStore
from tests.support.paths import DEMO

CPU = torch.device("cpu")
SHORT = dataclasses.replace(image_to_video.WAN_TI2V, frames=9, num_inference_steps=3)

Ffmpeg = Callable[..., None]
T = TypeVar("T")
P = TypeVar("P")


def outcome(steps: Generator[P, None, T]) -> tuple[list[P], T]:
    """Return all reports and the result."""
    reports: list[P] = []
    return reports, drain(steps, reports.append)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as Wan 2.2 TI2V is published: its index names the pipeline for text."""
    torch.manual_seed(5)
    words = Tokenizer(
        models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0), ("e", -2.0)], unk_id=2)
    )
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    pipeline = WanPipeline(
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        ),
        text_encoder=UMT5EncoderModel(
            UMT5Config(vocab_size=8, d_model=8, d_kv=8, d_ff=8, num_layers=1, num_heads=1)
        ),
        vae=AutoencoderKLWan(
            base_dim=4,
            decoder_base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
        ),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
        ),
        transformer=WanTransformer3DModel(
            num_attention_heads=1,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=8,
            freq_dim=16,
            ffn_dim=16,
            num_layers=1,
            rope_max_seq_len=64,
        ),
        expand_timesteps=True,
    )
    path = tmp_path_factory.mktemp("wan") / "mini-wan"
    pipeline.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def store(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> WeightsStore:
    """A list of models with that one, imported file by file."""
    lines = [
        '[models."mini-wan"]\ntitle = "t"\nfamily = "image-to-video"\nlicence = "MIT"\ncommercial = "yes"\n'
        'source = "s"\n'
    ]
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        role = "model_index" if name == "model_index.json" else name.replace("/", "-").lower()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(
            f'[[models."mini-wan".files]]\nrole = "{role}"\nrepo = "Some/Mini-Wan"\nrevision = "abc"\n'
            f'path = "{name}"\nsize = {path.stat().st_size}\nsha256 = "{digest}"\n'
        )
    root = tmp_path_factory.mktemp("store")
    (root / "manifest.toml").write_text("\n".join(lines))
    found = WeightsStore(root / "weights", root / "manifest.toml")
    found.import_path(folder)
    return found


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory, ffmpeg: Ffmpeg) -> Path:
    """The demo's presenter, 384 x 384."""
    path = tmp_path_factory.mktemp("face") / "face.png"
    ffmpeg("-i", DEMO / "presenter.mp4", "-frames:v", 1, path)
    return path


@pytest.fixture(scope="module")
def lips() -> LipSyncPipeline:
    return LipSyncPipeline.from_pretrained("tiny", device="cpu")


@pytest.fixture
def pipeline(lips: LipSyncPipeline, store: WeightsStore, cache_dir: Path) -> LipSyncPipeline:
    return LipSyncPipeline(lips.model, lips.detector, cache_dir=cache_dir, weights=store)


def noise_picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- the model ---


def loaded(folder: Path, settings: image_to_video.GenerationSettings = SHORT) -> image_to_video.ImageToVideo:
    return image_to_video.ImageToVideo(image_to_video.load(folder, CPU).pipeline, settings)


def test_clip_depends_on_seed_and_prompt(folder: Path) -> None:
    model = loaded(folder)
    picture = noise_picture(96, 64)

    def clip(prompt: str, seed: int) -> tuple[list[tuple[int, int]], np.ndarray]:
        steps, frames = outcome(model.generate_clip(picture, prompt, seed, enlarge=False))
        return steps, np.stack(frames)

    steps, frames = clip("he", 1)
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert (frames.shape, frames.dtype) == ((9, 64, 96, 3), np.uint8)
    assert np.array_equal(frames, clip("he", 1)[1])
    assert not np.array_equal(frames, clip("he", 2)[1])
    assert not np.array_equal(frames, clip("e e e", 1)[1])
    model.release()


def test_first_frame_is_the_image(folder: Path) -> None:
    """As the autoencoder renders it, which is all that one with random weights can show."""
    model, picture = loaded(folder), noise_picture(64, 64)
    _, frames = outcome(model.generate_clip(picture, "e", 1, enlarge=False))
    given = torch.from_numpy(picture).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
    with torch.no_grad():
        latents = model.pipeline.vae.encode(given).latent_dist.mode()
        seen = model.pipeline.vae.decode(latents).sample[0, :, 0].permute(1, 2, 0).numpy()
    rendered = np.clip(seen * 127.5 + 127.5, 0, 255)
    assert np.abs(frames[0] - rendered).max() < 2
    assert np.abs(frames[4] - rendered).max() > 2


def test_close_stops_within_a_step_and_leaves_no_thread(folder: Path) -> None:
    model = loaded(folder, dataclasses.replace(SHORT, num_inference_steps=100))
    calls: list[int] = []
    model.pipeline.transformer.register_forward_hook(lambda *_: calls.append(1))
    steps = model.generate_clip(noise_picture(64, 64), "e", 1, enlarge=False)
    while next(steps)[0] < 2:
        pass
    before = len(calls)
    steps.close()
    assert len(calls) <= before + 6  # two in a step; the model may have gone on before it was told
    assert not [thread for thread in threading.enumerate() if "image-to-video" in thread.name]


def test_clip_of_nan_is_rejected(folder: Path) -> None:
    model = loaded(folder)
    with torch.no_grad():
        model.pipeline.transformer.proj_out.bias.fill_(torch.nan)
    with pytest.raises(OutputError) as refused:
        outcome(model.generate_clip(noise_picture(64, 64), "e", 1, enlarge=False))
    assert refused.value.code is ErrorCode.OUTPUT_NOT_FINITE


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"_class_name": "StableDiffusionPipeline"}, "StableDiffusionPipeline"),
        ({"expand_timesteps": False}, "only Wan 2.2 TI2V"),
    ],
)
def test_pipeline_of_another_class_is_rejected(
    folder: Path, tmp_path: Path, changed: dict[str, object], told: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "other")
    index = copy / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | changed))
    with pytest.raises(WeightsError, match=told) as refused:
        image_to_video.load(copy, CPU)
    assert refused.value.code is ErrorCode.WEIGHTS_ARCHITECTURE


@pytest.mark.parametrize(
    ("part", "changed", "told"),
    [
        ("transformer", {"ffn_dim": 32}, r"blocks\.0\.ffn"),
        ("transformer", {"num_layers": 2}, r"tensors missing: blocks\.1\."),
        ("transformer", {"cross_attn_norm": False}, r"2 tensors unexpected: blocks\.0\.norm2"),
        ("text_encoder", {"num_layers": 2}, r"tensors missing: encoder\.block\.1"),
        ("vae", {"num_res_blocks": 2}, "tensors missing"),
    ],
)
def test_mismatching_parts_are_rejected(
    folder: Path, tmp_path: Path, part: str, changed: dict[str, object], told: str
) -> None:
    """The libraries would warn, and fill in random numbers."""
    copy = shutil.copytree(folder, tmp_path / "other")
    config = copy / part / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    with pytest.raises(WeightsError, match=told) as refused:
        image_to_video.load(copy, CPU)
    assert refused.value.code is ErrorCode.WEIGHTS_ARCHITECTURE


# --- to and fro ---


# --- the job ---


def quick(**changed: object) -> SyncParams:
    return SyncParams.preset(
        "default", num_inference_steps=1, guidance_scale=1.0, max_short_side=128, **changed
    )


def steps_of(reports: list[Progress]) -> int:
    """How often a denoising step was reported."""
    return sum(report.stage is Stage.MOTION and report.total == 50 for report in reports)


def test_clip_is_generated_once_and_a_lost_face_is_reported(
    pipeline: LipSyncPipeline, face: Path, voice: Path, tmp_path: Path, cache_dir: Path
) -> None:
    """Random weights make noise: the job ends where no face is found in it."""
    for generated in (51, 0):
        reports: list[Progress] = []
        steps = pipeline.run_portrait(face, voice, tmp_path / "made.mp4", quick(), motion=Motion.GENERATED)
        with pytest.raises(FaceError, match="lost in the generated motion"):
            reports.extend(steps)
        assert steps_of(reports) == generated
        assert sum(report.stage is Stage.MOTION for report in reports) == generated + 38
    assert not (tmp_path / "made.mp4").exists()
    assert list((cache_dir / "jobs").iterdir()) == []
    assert len(list((cache_dir / "motion").iterdir())) == 1


def test_cached_clip_is_played_back_and_forth_and_lip_synced(
    pipeline: LipSyncPipeline,
    store: WeightsStore,
    face: Path,
    voice: Path,
    tmp_path: Path,
    cache_dir: Path,
    ffmpeg: Ffmpeg,
) -> None:
    """A clip of known frames in the model's place: ten of the presenter, smaller than the picture."""
    ffmpeg("-i", DEMO / "presenter.mp4", "-vf", "scale=96:96", "-frames:v", 10, tmp_path / "ten.mp4")
    frames = [frame for _, frame in media.scan_frames(media.probe_video(tmp_path / "ten.mp4"), 96)]
    params, still = quick(), media.read_image(face, 128)
    clips = ClipCache.from_manifest(None, None, store, cache_dir / "motion", CPU)
    store_clip(clips.clip_path(still, params), frames)

    reports, made = outcome(
        pipeline.run_portrait(face, voice, tmp_path / "made.mp4", params, motion=Motion.GENERATED)
    )
    assert steps_of(reports) == 0
    assert (made.width, made.height, made.frames, made.frames_without_face) == (128, 128, 38, 0)
    assert (made.fps, made.warnings) == (25, ())
    shown = [p.astype(float) for _, p in media.scan_frames(media.probe_video(made.output), 128)]
    assert len(shown) == 38
    brows = np.s_[30:60, 30:100]
    for number, frame in enumerate(animation.pingpong_frames(frames, 38)):
        wanted = np.asarray(Image.fromarray(frame).resize((128, 128), Image.Resampling.BICUBIC))
        assert np.abs(shown[number][brows] - wanted[brows]).mean() < 4, number
    corner = np.s_[:24, :24]
    assert np.abs(shown[0][corner] - still[corner]).mean() < 4


def test_damaged_cached_clip_is_generated_again(store: WeightsStore, cache_dir: Path) -> None:
    clips = ClipCache.from_manifest("mini-wan", " e ", store, cache_dir, CPU)
    picture, params = noise_picture(64, 64), quick()
    store_clip(clips.clip_path(picture, params), [picture] * 3)
    assert len(outcome(clips.load_or_generate(picture, params))[1]) == 3
    clips.clip_path(picture, params).write_bytes(b"cut off")
    reports, frames = outcome(clips.load_or_generate(picture, params))
    assert (steps_of(reports), len(frames), frames[0].shape) == (51, 121, (64, 64, 3))


def test_closing_the_job_stops_generation(
    pipeline: LipSyncPipeline, face: Path, voice: Path, tmp_path: Path, cache_dir: Path
) -> None:
    steps = pipeline.run_portrait(face, voice, tmp_path / "made.mp4", quick(), motion=Motion.GENERATED)
    while next(steps).done < 3:
        pass
    steps.close()
    assert not [thread for thread in threading.enumerate() if "image-to-video" in thread.name]
    assert list((cache_dir / "jobs").iterdir()) == []
    assert not (cache_dir / "motion").exists()


def test_clip_key_covers_everything_that_changes_a_clip(store: WeightsStore, tmp_path: Path) -> None:
    clips = ClipCache.from_manifest(None, None, store, tmp_path, CPU)
    picture = noise_picture(64, 64)
    paths = [
        clips.clip_path(picture, SyncParams()),
        clips.clip_path(picture, SyncParams(seed=2)),
        clips.clip_path(picture, SyncParams(max_short_side=64)),
        clips.clip_path(picture[:32], SyncParams()),
        clips.clip_path(255 - picture, SyncParams()),
        dataclasses.replace(clips, prompt="e").clip_path(picture, SyncParams()),
        dataclasses.replace(clips, weights_sha256="0" * 64).clip_path(picture, SyncParams()),
    ]
    assert len(set(paths)) == len(paths)
    assert dataclasses.replace(clips, prompt=" ").clip_path(picture, SyncParams()) == paths[0]
    assert clips.clip_path(picture, SyncParams(num_inference_steps=3, fps=None)) == paths[0]


def test_prompt_without_generated_motion_is_a_warning(
    pipeline: LipSyncPipeline, face: Path, voice: Path, tmp_path: Path
) -> None:
    made = pipeline.portrait(
        face,
        voice,
        tmp_path / "made.mp4",
        quick(),
        motion=Motion.STILL,
        prompt="She sings.",
        motion_model="x",
    )
    assert isinstance(made, SyncResult)
    assert [sentence.split(" was")[0] for sentence in made.warnings] == ["The prompt", "The motion model"]
    assert "motion=still" in made.warnings[0]


def test_missing_weights_error_names_the_command(
    lips: LipSyncPipeline, face: Path, voice: Path, tmp_path: Path
) -> None:
    empty = WeightsStore(tmp_path / "weights")
    pipeline = LipSyncPipeline(lips.model, lips.detector, cache_dir=tmp_path / "cache", weights=empty)
    with pytest.raises(WeightsError, match=r"`lipsync weights pull wan2\.2-ti2v-5b`") as refused:
        next(pipeline.run_portrait(face, voice, tmp_path / "made.mp4", motion=Motion.GENERATED))
    assert refused.value.code is ErrorCode.WEIGHTS_MISSING
    assert not (tmp_path / "cache").exists()


def test_image_to_video_model_cannot_lip_sync(lips: LipSyncPipeline, tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"not a model for lip-sync: use one of latentsync-1\.6, .*tiny\.$"
    ) as refused:
        LipSyncPipeline.from_pretrained("wan2.2-ti2v-5b", weights_dir=tmp_path)
    assert refused.value.code is ErrorCode.MODEL_UNKNOWN
    store = WeightsStore(tmp_path)
    for name in ("tiny", "yunet"):
        with pytest.raises(
            WeightsError, match=r"not a model for image-to-video: use one of wan2\.2-ti2v-5b\."
        ):
            ClipCache.from_manifest(name, None, store, tmp_path, CPU)
    with pytest.raises(WeightsError, match="does not exist"):
        ClipCache.from_manifest("won", None, store, tmp_path, CPU)


def test_command_warns_about_unused_options(
    face: Path, voice: Path, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIPSYNC_CACHE_DIR", str(cache_dir))
    made = tmp_path / "made.mp4"
    words = ["portrait", face, voice, "-o", made, "--steps", 1, "--max-short-side", 128, "--motion", "still"]
    done = CliRunner().invoke(app, [*map(str, words), "--prompt", "She sings."])
    assert done.exit_code == 0, done.output
    assert "warning: The prompt was not used" in done.stderr
    assert made.exists()
