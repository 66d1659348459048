"""Every check of the pack as one test; proof that the checks bite and that no name is fixed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import pack_dir
from harness import Measure, checks, load_kind, run
from safetensors.torch import load_file, save_file


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


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(LookupError):
        load_kind("no_such_kind")


OUTPUTS = {
    "unet": ("output",),
    "ddim": ("final_latents",),
    "vae": ("decoded",),
    "whisper": ("windows",),
    "align": ("matrices_", "crop_"),
    "restore": ("out_",),
    "mask": ("masked_pixel_values",),
    "job": ("out_frames",),
}
"""Per kind, a part of the names of stored outputs (never inputs) to alter."""


@pytest.mark.parametrize("spec", specs())
def test_altered_outputs_fail(spec: dict, pack: Path, tmp_path: Path) -> None:
    for path in pack.iterdir():
        if path.is_file():
            (tmp_path / path.name).symlink_to(path)
    target = tmp_path / spec["io"]
    target.unlink()
    shutil.copy(pack / spec["io"], target)
    marks = OUTPUTS[spec["kind"]]
    if target.suffix == ".npz":
        with np.load(target) as arrays:
            values = {name: arrays[name] for name in arrays.files}
        for name in values:
            if any(mark in name for mark in marks) and "index" not in name:
                values[name] = shake(values[name])
        np.savez(target, **values)
    else:
        import torch

        stored = load_file(target)
        for name, value in stored.items():
            if any(mark in name for mark in marks) and "index" not in name:
                stored[name] = torch.from_numpy(shake(value.numpy()))
        save_file(stored, target)
    assert any(not measure.holds for measure in run(tmp_path, spec))


def shake(value: np.ndarray) -> np.ndarray:
    """A small change in a tenth of the places."""
    rng = np.random.default_rng(0)
    touched = rng.random(value.shape) < 0.1
    if value.dtype == np.uint8:
        return np.where(touched, value ^ 32, value).astype(np.uint8)
    return np.where(touched, value + 0.05, value).astype(value.dtype)


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
