"""Every check of the pack as one test; proof that the checks bite and that no name or shape is fixed."""

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
from tests.parity.harness import Measure, checks, load_kind, pack_dir, run

# --- the given pack ---


def specs() -> list:
    folder = pack_dir()
    if not (folder / "pack.json").exists():
        return [
            pytest.param(None, marks=pytest.mark.skip(reason=f"no parity pack at {folder}: set PARITY_DIR"))
        ]
    return [pytest.param(spec, id=f"{i}-{spec['kind']}") for i, spec in enumerate(checks(folder))]


@pytest.mark.parametrize("spec", specs())
def test_check(spec: dict, pack: Path, record: Callable[[str, list[Measure]], None]) -> None:
    measures = run(pack, spec)
    record(spec["kind"], measures)
    assert measures
    broken = [measure for measure in measures if not measure.holds]
    assert not broken, broken


OUTPUTS = {
    "unet": ("output",),
    "ddim": ("final_latents", "per_step", "timesteps", "init_latents"),
    "vae": ("decoded", "posterior_mean", "posterior_logvar", "latents_scaled"),
    "whisper": ("windows",),
    "align": ("matrices_", "crop_"),
    "restore": ("out_",),
    "mask": ("masked_pixel_values",),
    "job": ("out_frames",),
}
"""Per kind, a part of the names of stored outputs (never inputs) to alter."""


def is_output(kind: str, name: str) -> bool:
    return any(mark in name for mark in OUTPUTS[kind]) and "index" not in name


@pytest.mark.parametrize("spec", specs())
def test_altered_outputs_fail(spec: dict, pack: Path, tmp_path: Path) -> None:
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
                values[name] = shake(values[name])
        np.savez(target, **values)
    else:
        stored = load_file(target)
        for name, value in stored.items():
            if is_output(spec["kind"], name):
                stored[name] = torch.from_numpy(shake(value.numpy()))
        save_file(stored, target)
    measures = run(tmp_path, spec)
    if spec["kind"] in ("unet", "ddim", "vae"):  # here every stored output was altered
        assert not [measure for measure in measures if measure.holds]
    assert [measure for measure in measures if not measure.holds]


def shake(value: np.ndarray) -> np.ndarray:
    """A small change in a tenth of the places, and in the first."""
    rng = np.random.default_rng(0)
    touched = rng.random(value.shape) < 0.1
    touched.flat[0] = True
    if value.dtype == np.uint8:
        return np.where(touched, value ^ 32, value).astype(np.uint8)
    step = 0.05 * max(1.0, np.abs(value).max()) if value.dtype.kind == "f" else 1
    return np.where(touched, value + step, value).astype(value.dtype)


def test_nothing_depends_on_names(pack: Path, tmp_path: Path) -> None:
    """The same pack under other file names passes as well."""
    text = (pack / "pack.json").read_text()
    for path in sorted(pack.iterdir()):
        if path.name != "pack.json" and path.is_file():
            text = text.replace(f'"{path.stem}"', f'"model_{path.stem[::-1]}"')
            text = text.replace(f'"{path.name}"', f'"model_{path.stem[::-1]}{path.suffix}"')
            (tmp_path / f"model_{path.stem[::-1]}{path.suffix}").symlink_to(path)
    (tmp_path / "pack.json").write_text(text)
    quick = [spec for spec in json.loads(text)["checks"] if spec["kind"] in ("vae", "ddim", "align", "mask")]
    assert all(measure.holds for spec in quick for measure in run(tmp_path, spec))


# --- a pack of our own: other names, shapes, counts and architectures; needs nothing from outside ---

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
def made_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made_pack")
    torch.manual_seed(5)
    unet = LatentSyncUNet(UNetConfig.from_published(UNET)).eval()
    vae = AutoencoderKL.from_config(VAE).eval()
    for network, name, config in ((unet, "sees", UNET), (vae, "paints", VAE)):
        for parameter in network.parameters():  # so that nothing is left at zero
            parameter.add_(0.05 * torch.randn_like(parameter))
        write(folder / f"{name}.safetensors", network.state_dict())
        (folder / f"{name}.json").write_text(json.dumps(config))
    latents, audio = lambda *shape: torch.randn(1, 4, *shape), lambda *shape: torch.randn(*shape, 24)

    io = {}
    for case, batch, frames, size, time in (("first.one", 1, 3, (6, 10), 7), ("second", 2, 1, (9, 5), 999)):
        sample, heard = torch.randn(batch, 13, frames, *size), audio(batch * frames, 11)
        timestep = torch.tensor([time])
        io |= {f"{case}.sample": sample, f"{case}.timestep": timestep, f"{case}.encoder_hidden_states": heard}
        io[f"{case}.output"] = unet(sample, timestep, heard)
        io[f"{case}.output_f64"] = unet.double()(sample.double(), timestep, heard.double())
        unet.float()
    write(folder / "glances.safetensors", io)

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
    write(folder / "walk.safetensors", io)

    image = torch.rand(3, 3, 16, 12) * 2 - 1
    posterior = vae.encode(image).latent_dist
    drawn = torch.randn_like(posterior.mean)
    scaled = (posterior.mean + posterior.std * drawn) * VAE["scaling_factor"]
    io = {
        "image": image,
        "posterior_mean": posterior.mean,
        "posterior_logvar": posterior.logvar,
        "posterior_noise": drawn,
        "latents_scaled": scaled,
        "decoded": vae.decode(scaled / VAE["scaling_factor"]).sample,
    }
    write(folder / "colours.safetensors", io)

    (folder / "pack.json").write_text(
        json.dumps(
            {
                "checks": [
                    {
                        "kind": "unet",
                        "io": "glances.safetensors",
                        "unet": "sees",
                        "limits": {"f32_max": 1e-4, "f32_mean": 1e-5, "f64_max": 1e-9},
                    },
                    {
                        "kind": "ddim",
                        "io": "walk.safetensors",
                        "unet": "sees",
                        "limits": {"final_latents_max": 1e-3},
                    },
                    {"kind": "vae", "io": "colours.safetensors", "vae": "paints", "limits": {"max": 1e-4}},
                ]
            }
        )
    )
    return folder


@pytest.mark.parametrize("number", range(3), ids=["unet", "ddim", "vae"])
def test_a_pack_of_other_shapes_passes(made_pack: Path, number: int) -> None:
    measures = run(made_pack, checks(made_pack)[number])
    assert measures
    assert not [measure for measure in measures if not measure.holds]


@pytest.mark.parametrize("number", range(3), ids=["unet", "ddim", "vae"])
def test_one_altered_number_in_any_output_fails(made_pack: Path, number: int, tmp_path: Path) -> None:
    spec = checks(made_pack)[number]
    shutil.copytree(made_pack, tmp_path, dirs_exist_ok=True)
    stored = load_file(made_pack / spec["io"])
    outputs = [name for name in stored if is_output(spec["kind"], name)]
    assert len(outputs) >= 4
    for name in outputs:
        altered = stored[name].clone()
        altered.view(-1)[-1] += 1 if altered.dtype == torch.int64 else 0.05 * float(altered.abs().max())
        save_file({**stored, name: altered}, tmp_path / spec["io"])
        assert [measure for measure in run(tmp_path, spec) if not measure.holds], name


def test_a_number_that_is_none_fails(made_pack: Path, tmp_path: Path) -> None:
    spec = checks(made_pack)[2]
    shutil.copytree(made_pack, tmp_path, dirs_exist_ok=True)
    stored = load_file(made_pack / spec["io"])
    stored["decoded"].view(-1)[0] = float("nan")
    save_file(stored, tmp_path / spec["io"])
    assert [measure.name for measure in run(tmp_path, spec) if not measure.holds] == ["decoded"]


@pytest.mark.parametrize(
    "change",
    [{"kind": "no_such_kind"}, {"kind": "../harness"}, {"limits": {}}, {"io": "not_there.safetensors"}],
    ids=lambda change: next(iter(change.values())) if "limits" not in change else "no limits",
)
def test_a_check_that_cannot_run_is_an_error(made_pack: Path, change: Mapping[str, Any]) -> None:
    with pytest.raises((LookupError, FileNotFoundError)):
        run(made_pack, {**checks(made_pack)[2], **change})


def test_every_kind_has_a_check() -> None:
    assert all(callable(load_kind(kind).check) for kind in OUTPUTS)


def test_an_empty_pack_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "pack.json").write_text('{"checks": []}')
    with pytest.raises(ValueError, match="lists no checks"):
        checks(tmp_path)


def test_a_value_at_its_limit_holds() -> None:
    measure = Measure("x", 1.0, 1.0)
    assert measure.holds
    assert not dataclasses.replace(measure, value=1.0000001).holds
