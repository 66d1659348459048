"""One job of the public LatentSync repository, timed in a process of its own, for the GPU benchmark.

    python scripts/bench/reference_job.py ORDER.json      # prints one line of JSON

The checkout runs as it is, with random weights of the published size, except for what cannot run without its
own downloads: its face detector is replaced by points that are given, which costs it no time. `scripts/`,
the engine and its dependencies are not imported: an interpreter with the checkout's own requirements can be
used. Needs ffmpeg on the PATH.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

BROWS_AND_NOSE = ([43, 48, 49, 51, 50], [*range(101, 106)], [74, 77, 83, 86])
"""Of the 106 landmarks, those whose means the reference aligns a face by."""

WHISPER_TINY = {
    "n_mels": 80, "n_audio_ctx": 1500, "n_audio_state": 384, "n_audio_head": 6, "n_audio_layer": 4,
    "n_vocab": 51865, "n_text_ctx": 448, "n_text_state": 384, "n_text_head": 6, "n_text_layer": 4,
}  # fmt: skip


class GivenFace:
    """In the detector's place: the same face in every frame."""

    def __init__(self, points: list[list[float]]) -> None:
        self._landmarks = np.zeros((106, 2), dtype=np.int64)
        for indices, point in zip(BROWS_AND_NOSE, points, strict=True):
            self._landmarks[indices] = np.rint(point)

    def __call__(self, frame: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
        return (0, 0, frame.shape[1], frame.shape[0]), self._landmarks


def load(order: dict[str, Any], folder: Path) -> Any:
    """The reference's pipeline on the device, ready to be called."""
    sys.path.insert(0, order["checkout"])
    # Its detector's library is imported at the top of a module that is needed; it is not used.
    for name in ("insightface", "insightface.app"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["insightface.app"].FaceAnalysis = object  # type: ignore[attr-defined]
    from diffusers import AutoencoderKL, DDIMScheduler
    from latentsync.models.unet import UNet3DConditionModel
    from latentsync.pipelines import lipsync_pipeline
    from latentsync.utils.affine_transform import AlignRestore
    from latentsync.utils.image_processor import ImageProcessor
    from latentsync.whisper.audio2feature import Audio2Feature
    from latentsync.whisper.whisper.model import ModelDimensions, Whisper
    from omegaconf import OmegaConf

    device, dtype = torch.device(order["device"]), getattr(torch, order["dtype"])

    def processor(resolution: int, device: str, mask_image: torch.Tensor) -> Any:
        made = ImageProcessor(resolution, device="cpu", mask_image=mask_image)
        on_gpu = order["device"] != "cpu"
        made.restorer = AlignRestore(
            resolution=resolution, device=order["device"], dtype=torch.float16 if on_gpu else torch.float32
        )
        made.face_detector = GivenFace(order["points"])
        return made

    lipsync_pipeline.ImageProcessor = processor
    torch.manual_seed(0)
    config = OmegaConf.load(Path(order["checkout"]) / "configs" / "unet" / "stage2_512.yaml")
    shape = {**OmegaConf.to_container(config.model), **order["unet"]}
    with device:
        unet = UNet3DConditionModel.from_config(shape).to(dtype)
        vae = AutoencoderKL(**order["vae"]).to(dtype)
    for name, parameter in unet.named_parameters():
        if "temporal_transformer.proj_out" in name or name.startswith(("conv_in", "conv_out")):
            torch.nn.init.normal_(parameter, std=0.02)  # zero at its creation
    for network in (unet, vae):
        network.eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=0.18215, shift_factor=0)
    hearing = Whisper(ModelDimensions(**WHISPER_TINY))
    torch.save({"dims": WHISPER_TINY, "model_state_dict": hearing.state_dict()}, folder / "whisper.pt")
    audio = Audio2Feature(
        str(folder / "whisper.pt"), device=order["device"], num_frames=16, audio_feat_length=[2, 2]
    )
    scheduler = DDIMScheduler.from_pretrained(Path(order["checkout"]) / "configs")
    return lipsync_pipeline.LipsyncPipeline(vae, audio, unet, scheduler).to(device)


def timed(pipeline: Any, order: dict[str, Any], folder: Path) -> float:
    """Seconds of one job, from file to file."""
    on_gpu = order["device"] != "cpu"
    began = time.perf_counter()
    pipeline(
        video_path=order["video"],
        audio_path=order["audio"],
        video_out_path=str(folder / "out.mp4"),
        num_inference_steps=order["steps"],
        guidance_scale=1.5,
        weight_dtype=getattr(torch, order["dtype"]),
        width=order["resolution"],
        height=order["resolution"],
        mask_image_path=str(Path(order["checkout"]) / "latentsync" / "utils" / "mask.png"),
        temp_dir=str(folder / "temp"),
    )
    if on_gpu:
        torch.cuda.synchronize()
    if not (folder / "out.mp4").is_file():
        raise SystemExit("the reference wrote no film")
    return time.perf_counter() - began


def main() -> None:
    order = json.loads(Path(sys.argv[1]).read_text())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # it prints its progress
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)  # it deletes a folder `temp` wherever it runs
        pipeline = load(order, folder)
        found: dict[str, Any] = {}
        for cached in (False, True):
            if cached:
                from DeepCache import DeepCacheSDHelper

                helper = DeepCacheSDHelper(pipe=pipeline)
                helper.set_params(cache_interval=3, cache_branch_id=0)
                helper.enable()
            if order["warm"]:
                timed(pipeline, order, folder)
            found["deepcache" if cached else "plain"] = {"seconds": round(timed(pipeline, order, folder), 3)}
        if order["device"] != "cpu":
            found["peak_bytes"] = torch.cuda.max_memory_allocated()
    answers.write(json.dumps(found) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
