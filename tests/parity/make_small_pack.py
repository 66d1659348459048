"""Builds `pack_small` from a full parity pack: arrays are selected and sliced, never computed by our code.

    python -m tests.parity.make_small_pack FULL_PACK tests/parity/pack_small

A small pack has a few of the full pack's arrays, so that a plain clone runs real parity checks. It leaves out
everything that needs the small U-Net or VAE, whose weights take most of 3 MB or more. The faces of `align`,
`restore` and `mask` are one file, because they share a frame and crops.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

MAX_BYTES = 3_000_000
UNCHANGED = ("README.md", "flops.json", "unet_latentsync_config.json", "vae_sd_ft_mse_config.json")
KEY_LISTS = ("unet_latentsync_keys.json", "vae_sd_ft_mse_keys.json", "whisper_tiny_keys.json")
DDIM_FRAMES = 2
FEATURE_STEP = 8


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz file with LZMA, which saves a sixth compared with numpy's own compression."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, np.ascontiguousarray(array))
            file.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_LZMA)


def select_faces(full: Path) -> dict[str, np.ndarray]:
    """Return one crop per size, one paste at 256, and the masks."""
    align, restore, mask = (np.load(full / f"{name}_io.npz") for name in ("align", "restore", "mask"))
    if not (align["frame"] == restore["frame"]).all():
        raise ValueError("align and restore do not share a frame: write them to two files")
    names = [name for name in align.files if not name.startswith(("crop_prewarp", "p_bias", "box"))]
    faces = {name: align[name] for name in names}
    faces |= {name: align[name][:1] for name in ("crop_256", "crop_index_256", "crop_512", "crop_index_512")}
    faces |= {name: restore[name][:1] for name in ("face_256", "matrix_256", "out_256")}
    for size in (256, 512):
        if not (faces[f"crop_{size}"] == mask[f"crop_{size}"]).all():
            raise ValueError(f"align and mask do not share crop_{size}: write them to two files")
    names = [name for name in mask.files if name.startswith(("mask", "latent_mask"))]
    return faces | {name: mask[name] for name in names}


def select_ddim(full: Path) -> dict[str, torch.Tensor]:
    """Return the first frames of the loop; its updates are element-wise."""
    stored = load_file(full / "ddim_small_io.safetensors")
    frames = {
        "guided_eps_per_step": stored["guided_eps_per_step"][:, :, :, :DDIM_FRAMES],
        "latents_per_step": stored["latents_per_step"][:, :, :, :DDIM_FRAMES],
        "init_latents": stored["init_latents"][:, :, :DDIM_FRAMES],
        "final_latents": stored["final_latents"][:, :, :DDIM_FRAMES],
    }
    return {"noise_frame": stored["noise_frame"], "timesteps": stored["timesteps"], **frames}


def select_whisper(full: Path) -> dict[str, torch.Tensor]:
    """Return the short recording: column means of the log-mel, every eighth feature, all stored windows."""
    stored = load_file(full / "whisper_small_io.safetensors")
    features = stored["short.features"]
    last = len(features) - 1
    index = torch.tensor([*range(0, last, FEATURE_STEP), last])
    return {
        "short.log_mel_colmean": stored["short.log_mel"].mean(dim=0),
        "short.feature_index": index,
        "short.features_at_index": features[index],
        "short.window_index": stored["short.window_index"],
        "short.windows": stored["short.windows"],
    }


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def select_encoder(full: Path) -> dict[str, torch.Tensor]:
    """Return the Whisper weights without the decoder, which nothing uses."""
    weights = load_file(full / "whisper_small.safetensors")
    return {key: value for key, value in weights.items() if key.startswith("encoder.")}


def build(full: Path, small: Path) -> None:
    """Write the small pack to an empty or new folder."""
    small.mkdir(parents=True, exist_ok=True)
    for name in (*UNCHANGED, "whisper_small.json", "whisper_small_short.wav"):
        shutil.copyfile(full / name, small / name)
    for name in KEY_LISTS:
        compact = json.dumps(read_json(full / name), separators=(",", ":"))
        (small / name).write_text(compact + "\n")
    write_npz(small / "faces_io.npz", select_faces(full))
    for name, tensors in {
        "ddim_steps_io": select_ddim(full),
        "whisper_small_io": select_whisper(full),
        "whisper_small": select_encoder(full),
    }.items():
        save_file({key: value.contiguous() for key, value in tensors.items()}, small / f"{name}.safetensors")
    summary = {"short": read_json(full / "whisper_small_summary.json")["short"]}
    (small / "whisper_small_summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    limits = {check["kind"]: check["limits"] for check in read_json(full / "pack.json")["checks"]}
    checks = [
        {"kind": "ddim_steps", "io": "ddim_steps_io.safetensors", "limits": limits["ddim"]},
        {
            "kind": "whisper",
            "io": "whisper_small_io.safetensors",
            "whisper": "whisper_small",
            "summary": "whisper_small_summary.json",
            "wav": {"short": "whisper_small_short.wav"},
            "limits": limits["whisper"],
        },
        *(
            {"kind": kind, "io": "faces_io.npz", "limits": limits[kind]}
            for kind in ("align", "restore", "mask")
        ),
    ]
    (small / "pack.json").write_text(json.dumps({"checks": checks}, indent=1) + "\n")
    size = sum(path.stat().st_size for path in small.iterdir())
    print(f"{small}: {size} bytes")
    if size > MAX_BYTES:
        raise ValueError(f"the small pack has {size} bytes, more than {MAX_BYTES}: select fewer arrays")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("full", type=Path)
    parser.add_argument("small", type=Path)
    arguments = parser.parse_args()
    build(arguments.full, arguments.small)


if __name__ == "__main__":
    main()
