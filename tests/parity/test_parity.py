"""Parity: every check of every pack passes, fails on altered outputs, and depends on no name or shape."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from lipsync_engine.models.latentsync.config import RunConfig, UNetConfig
from lipsync_engine.models.latentsync.sampling import DenoiseInputs, sampling_steps
from lipsync_engine.models.latentsync.unet import LatentSyncUNet
from tests.parity.harness import Measure, find_packs, load_kind, read_checks, run_check

# --- packs of the reference ---


def list_checks() -> list:
    """List (pack, check) of all packs."""
    return [
        pytest.param(pack, spec, id=f"{pack.name}-{number}-{spec['kind']}")
        for pack in find_packs()
        for number, spec in enumerate(read_checks(pack))
    ]


@pytest.mark.parametrize(("pack", "spec"), list_checks())
def test_check(pack: Path, spec: dict, record: Callable[[str, list[Measure]], None]) -> None:
    measures = run_check(pack, spec)
    record(spec["kind"], measures)
    assert measures
    violations = [measure for measure in measures if not measure.holds]
    assert not violations, violations


def list_altered_checks() -> list:
    """List all checks; of kinds that run daily from another pack, the second one is slow."""
    checks, kinds = [], set()
    for pack in find_packs():
        for number, spec in enumerate(read_checks(pack)):
            marks = [pytest.mark.slow] if spec["kind"] in kinds else []
            kinds.add(spec["kind"])
            checks.append(pytest.param(pack, spec, id=f"{pack.name}-{number}-{spec['kind']}", marks=marks))
    return checks


OUTPUTS = {
    "unet": ("output",),
    "ddim_steps": ("latents_per_step", "final_latents", "timesteps"),
    "ddim": ("final_latents", "per_step", "timesteps", "init_latents"),
    "vae": ("decoded", "posterior_mean", "posterior_logvar", "latents_scaled"),
    "whisper": ("windows",),
    "align": ("matrices_", "crop_"),
    "restore": ("out_",),
    "mask": ("masked_pixel_values",),
    "job": ("out_frames",),
}
"""Per kind, parts of the names of stored outputs (never inputs) that a test alters."""


def is_output(kind: str, name: str) -> bool:
    return any(part in name for part in OUTPUTS[kind]) and "index" not in name


@pytest.mark.parametrize(("pack", "spec"), list_altered_checks())
def test_altered_outputs_fail(pack: Path, spec: dict, tmp_path: Path) -> None:
    for path in pack.iterdir():
        if path.is_file():
            (tmp_path / path.name).symlink_to(path)
    target = tmp_path / spec["io"]
    target.unlink()
    shutil.copy(pack / spec["io"], target)
    if target.suffix == ".npz":
        with np.load(target) as arrays:
            values = {name: arrays[name] for name in arrays.files}
        for name in values:
            if is_output(spec["kind"], name):
                values[name] = alter(values[name])
        np.savez(target, **values)
    else:
        stored = load_file(target)
        for name, value in stored.items():
            if is_output(spec["kind"], name):
                stored[name] = torch.from_numpy(alter(value.numpy()))
        save_file(stored, target)
    measures = run_check(tmp_path, spec)
    if spec["kind"] in ("unet", "ddim", "vae"):  # all of their stored outputs were altered
        assert not [measure for measure in measures if measure.holds]
    assert [measure for measure in measures if not measure.holds]


def alter(value: np.ndarray) -> np.ndarray:
    """Change a tenth of the values slightly, and always the first one."""
    rng = np.random.default_rng(0)
    changed = rng.random(value.shape) < 0.1
    changed.flat[0] = True
    if value.dtype == np.uint8:
        return np.where(changed, value ^ 32, value).astype(np.uint8)
    step = 0.05 * max(1.0, np.abs(value).max()) if value.dtype.kind == "f" else 1
    return np.where(changed, value + step, value).astype(value.dtype)


@pytest.mark.parametrize("pack", find_packs(), ids=lambda pack: pack.name)
def test_checks_do_not_depend_on_file_names(pack: Path, tmp_path: Path) -> None:
    text = (pack / "pack.json").read_text()
    for path in sorted(pack.iterdir()):
        if path.name != "pack.json" and path.is_file():
            text = text.replace(f'"{path.stem}"', f'"model_{path.stem[::-1]}"')
            text = text.replace(f'"{path.name}"', f'"model_{path.stem[::-1]}{path.suffix}"')
            (tmp_path / f"model_{path.stem[::-1]}{path.suffix}").symlink_to(path)
    (tmp_path / "pack.json").write_text(text)
    kinds = ("vae", "ddim", "ddim_steps", "align", "mask")
    quick = [spec for spec in json.loads(text)["checks"] if spec["kind"] in kinds]
    assert quick
    assert all(measure.holds for spec in quick for measure in run_check(tmp_path, spec))


# --- a pack made here, with other names, shapes and architectures ---

UNET = {
    "in_channels": 13,
    "out_channels": 4,
    "block_out_channels": [32, 32, 64],
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
    "norm_eps": 1e-5,
    "use_motion_module": True,
    "motion_module_decoder_only": True,
}
VAE = {
    "block_out_channels": [16, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "scaling_factor": 0.3,
}


def write(path: Path, stored: Mapping[str, torch.Tensor]) -> None:
    save_file(
        {name: value.clone(memory_format=torch.contiguous_format) for name, value in stored.items()}, path
    )


@pytest.fixture(scope="module")
@torch.inference_mode()
def own_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own_pack")
    torch.manual_seed(5)
    unet = LatentSyncUNet(UNetConfig.from_published(UNET)).eval()
    vae = AutoencoderKL.from_config(VAE).eval()
    for network, name, config in ((unet, "small_unet", UNET), (vae, "small_vae", VAE)):
        for parameter in network.parameters():  # some are zero after initialisation
            parameter.add_(0.05 * torch.randn_like(parameter))
        write(folder / f"{name}.safetensors", network.state_dict())
        (folder / f"{name}.json").write_text(json.dumps(config))
    latents, audio = lambda *shape: torch.randn(1, 4, *shape), lambda *shape: torch.randn(*shape, 24)

    io = {}
    for case, batch, frames, size, time in (("first.one", 1, 3, (6, 10), 7), ("second", 2, 1, (9, 5), 999)):
        sample, tokens = torch.randn(batch, 13, frames, *size), audio(batch * frames, 11)
        timestep = torch.tensor([time])
        io |= {
            f"{case}.sample": sample,
            f"{case}.timestep": timestep,
            f"{case}.encoder_hidden_states": tokens,
        }
        io[f"{case}.output"] = unet(sample, timestep, tokens)
        io[f"{case}.output_f64"] = unet.double()(sample.double(), timestep, tokens.double())
        unet.float()
    write(folder / "single_steps.safetensors", io)

    mask = torch.rand(1, 1, 2, 6, 4).round()
    inputs = DenoiseInputs(mask, latents(2, 6, 4), latents(2, 6, 4), audio(2, 9))
    noise = latents(1, 6, 4)
    loop = list(
        sampling_steps(unet, RunConfig(), inputs, noise=noise, num_inference_steps=3, guidance_scale=2.0)
    )
    io = {
        "num_inference_steps": torch.tensor([3]),
        "guidance_scale": torch.tensor([2.0]),
        "noise_frame": noise,
        "init_latents": noise.repeat(1, 1, 2, 1, 1),
        "mask": inputs.mask,
        "masked_latents": inputs.masked_latents,
        "ref_latents": inputs.reference_latents,
        "audio": inputs.audio,
        "timesteps": torch.tensor([step.timestep for step in loop]),
        "guided_eps_per_step": torch.stack([step.noise_pred for step in loop]),
        "latents_per_step": torch.stack([step.latents for step in loop]),
        "final_latents": loop[-1].latents,
    }
    write(folder / "loop.safetensors", io)

    image = torch.rand(3, 3, 16, 12) * 2 - 1
    posterior = vae.encode(image).latent_dist
    noise = torch.randn_like(posterior.mean)
    scaled = (posterior.mean + posterior.std * noise) * VAE["scaling_factor"]
    io = {
        "image": image,
        "posterior_mean": posterior.mean,
        "posterior_logvar": posterior.logvar,
        "posterior_noise": noise,
        "latents_scaled": scaled,
        "decoded": vae.decode(scaled / VAE["scaling_factor"]).sample,
    }
    write(folder / "images.safetensors", io)

    (folder / "pack.json").write_text(
        json.dumps(
            {
                "checks": [
                    {
                        "kind": "unet",
                        "io": "single_steps.safetensors",
                        "unet": "small_unet",
                        "limits": {"f32_max": 1e-4, "f32_mean": 1e-5, "f64_max": 1e-9},
                    },
                    {
                        "kind": "ddim",
                        "io": "loop.safetensors",
                        "unet": "small_unet",
                        "limits": {"final_latents_max": 1e-3},
                    },
                    {"kind": "vae", "io": "images.safetensors", "vae": "small_vae", "limits": {"max": 1e-4}},
                ]
            }
        )
    )
    return folder


@pytest.mark.parametrize("number", range(3), ids=["unet", "ddim", "vae"])
def test_pack_of_other_shapes_passes(own_pack: Path, number: int) -> None:
    measures = run_check(own_pack, read_checks(own_pack)[number])
    assert measures
    assert not [measure for measure in measures if not measure.holds]


@pytest.mark.parametrize("number", range(3), ids=["unet", "ddim", "vae"])
def test_one_altered_value_in_any_output_fails(own_pack: Path, number: int, tmp_path: Path) -> None:
    spec = read_checks(own_pack)[number]
    shutil.copytree(own_pack, tmp_path, dirs_exist_ok=True)
    stored = load_file(own_pack / spec["io"])
    outputs = [name for name in stored if is_output(spec["kind"], name)]
    assert len(outputs) >= 4
    for name in outputs:
        altered = stored[name].clone()
        altered.view(-1)[-1] += 1 if altered.dtype == torch.int64 else 0.05 * float(altered.abs().max())
        save_file({**stored, name: altered}, tmp_path / spec["io"])
        assert [measure for measure in run_check(tmp_path, spec) if not measure.holds], name


def test_nan_fails(own_pack: Path, tmp_path: Path) -> None:
    spec = read_checks(own_pack)[2]
    shutil.copytree(own_pack, tmp_path, dirs_exist_ok=True)
    stored = load_file(own_pack / spec["io"])
    stored["decoded"].view(-1)[0] = float("nan")
    save_file(stored, tmp_path / spec["io"])
    assert [measure.name for measure in run_check(tmp_path, spec) if not measure.holds] == ["decoded"]


@pytest.mark.parametrize(
    "change",
    [{"kind": "no_such_kind"}, {"kind": "../harness"}, {"limits": {}}, {"io": "not_there.safetensors"}],
    ids=lambda change: next(iter(change.values())) if "limits" not in change else "no limits",
)
def test_check_that_cannot_run_is_an_error(own_pack: Path, change: Mapping[str, Any]) -> None:
    with pytest.raises((LookupError, FileNotFoundError)):
        run_check(own_pack, {**read_checks(own_pack)[2], **change})


def test_every_kind_has_a_check() -> None:
    assert all(callable(load_kind(kind).check) for kind in OUTPUTS)


def test_empty_pack_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "pack.json").write_text('{"checks": []}')
    with pytest.raises(ValueError, match="lists no checks"):
        read_checks(tmp_path)


def test_value_at_its_limit_holds() -> None:
    measure = Measure("x", 1.0, 1.0)
    assert measure.holds
    assert not dataclasses.replace(measure, value=1.0000001).holds
