"""Image to video: a still image and a prompt become a short clip of an idle person (Wan 2.2 TI2V, diffusers).

The model is a folder in diffusers' layout. It is loaded for one clip and released afterwards, because a
lip-sync model shares the device. This module does not know video files, or how a clip is extended to the
length of the audio.
"""

from __future__ import annotations

import gc
import json
import math
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image

from lipsync_engine.device import BF16_CAPABILITY
from lipsync_engine.errors import ErrorCode, OutputError, WeightsError
from lipsync_engine.utils import ImageArray

IDLE_PROMPT = (
    "The person looks into the camera, listens quietly with closed lips, breathes calmly, blinks now and "
    "then and moves the head a little. The camera stands still on a tripod. One continuous shot."
)
"""Part of every prompt: lips are generated later, and the clip is also played backwards."""

NEGATIVE_PROMPT = (
    "talking, open mouth, laughing, turning away, hands before the face, leaving the picture, moving camera, "
    "zoom, cut, other people, text, distorted face, blurred, flickering"
)


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """Generation settings of an image-to-video family.

    Attributes:
        classes: accepted `_class_name` values of `model_index.json`.
        area: pixels per frame in training.
        frames: of a clip; one more than a multiple of the autoencoder's temporal stride.
        num_inference_steps, guidance_scale: the publisher's defaults.
    """

    classes: tuple[str, ...]
    area: int
    frames: int
    num_inference_steps: int
    guidance_scale: float


WAN_TI2V = GenerationSettings(
    classes=("WanPipeline", "WanImageToVideoPipeline"),
    area=1280 * 704,
    frames=121,
    num_inference_steps=50,
    guidance_scale=5.0,
)
"""Wan 2.2 TI2V 5B. One network serves text and images, so its index names the text pipeline. Source:
Wan-Video/Wan2.2, wan/configs/wan_ti2v_5B.py. Its 24 frames per second are played at 25.
"""


def build_prompt(prompt: str | None) -> str:
    """Build the model's prompt: the caller's text, followed by `IDLE_PROMPT`."""
    text = (prompt or "").strip()
    return f"{text} {IDLE_PROMPT}" if text else IDLE_PROMPT


def fit_clip_size(width: int, height: int, *, area: int, multiple: int, enlarge: bool) -> tuple[int, int]:
    """Return the width and height of the clip for an image of the given size.

    Args:
        area: approximate upper limit of pixels.
        multiple: both sides are a multiple of this.
        enlarge: generate small images with `area` pixels.
    """
    scale = math.sqrt(area / (width * height))
    if not enlarge:
        scale = min(1.0, scale)
    clip_width, clip_height = (multiple * max(1, round(side * scale / multiple)) for side in (width, height))
    return clip_width, clip_height


class ImageToVideo:
    """A loaded image-to-video model.

    Args:
        pipeline: on its device, or with CPU offload enabled.
        settings: of its family.
    """

    def __init__(
        self, pipeline: diffusers.WanImageToVideoPipeline, settings: GenerationSettings = WAN_TI2V
    ) -> None:
        self.pipeline, self._settings = pipeline, settings

    def generate_clip(
        self, image: ImageArray, prompt: str, seed: int, *, enlarge: bool = True
    ) -> Generator[tuple[int, int], None, list[ImageArray]]:
        """Generate a clip.

        Args:
            image: uint8 (H, W, 3), approximately the first frame.
            prompt: the whole prompt, from `build_prompt`.
            seed: equal seeds give equal clips on the same device; the noise is the same on every device.
            enlarge: see `fit_clip_size`.

        Yields:
            (steps done, steps in total). If the generator is closed, the pipeline stops after this step.

        Returns:
            The frames, uint8 (h, w, 3) with the size from `fit_clip_size`. They keep the image's aspect ratio
            up to the rounding of a side.

        Raises:
            OutputError: OUTPUT_NOT_FINITE.
        """
        settings, pipeline = self._settings, self.pipeline
        height, width = image.shape[:2]
        clip_width, clip_height = fit_clip_size(
            width, height, area=settings.area, multiple=self._patch_pixels, enlarge=enlarge
        )
        steps_done: SimpleQueue[int | None] = SimpleQueue()
        cancelled = threading.Event()

        def after_step(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if cancelled.is_set():
                raise _Cancelled  # the pipeline's own interrupt flag would still decode the latents
            steps_done.put(step + 1)
            return {}

        with ThreadPoolExecutor(1, "image-to-video") as worker:
            clip = worker.submit(
                pipeline,
                image=Image.fromarray(image).resize((clip_width, clip_height), Image.Resampling.LANCZOS),
                prompt=prompt,
                negative_prompt=NEGATIVE_PROMPT,
                width=clip_width,
                height=clip_height,
                num_frames=settings.frames,
                num_inference_steps=settings.num_inference_steps,
                guidance_scale=settings.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(seed),
                callback_on_step_end=after_step,
                output_type="np",
            )
            clip.add_done_callback(lambda _: steps_done.put(None))
            try:
                yield 0, settings.num_inference_steps
                while (step := steps_done.get()) is not None:
                    yield step, settings.num_inference_steps
            finally:
                cancelled.set()
            frames = clip.result().frames[0]
        if not np.isfinite(frames).all():
            raise OutputError(
                ErrorCode.OUTPUT_NOT_FINITE,
                "The motion model produced NaN or Inf: use another seed, or motion=natural.",
            )
        return [np.rint(np.clip(frame, 0, 1) * 255).astype(np.uint8) for frame in frames]

    def release(self) -> None:
        """Release the device memory; the model cannot be used afterwards."""
        self.pipeline.remove_all_hooks()
        del self.pipeline
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def _patch_pixels(self) -> int:
        """Pixels per transformer patch along each side."""
        return int(self.pipeline.vae_scale_factor_spatial * self.pipeline.transformer.config.patch_size[1])


class _Cancelled(Exception):  # noqa: N818  (internal)
    """The generator was closed."""


def load(folder: Path, device: torch.device) -> ImageToVideo:
    """Load a verified model folder, offline and without running code from it.

    The networks are bfloat16 if the device supports it, else float32. The autoencoder is always float32. On
    CUDA, model CPU offload keeps each component on the device only while it runs.

    Args:
        folder: with `model_index.json` and one folder per component.

    Raises:
        WeightsError: WEIGHTS_ARCHITECTURE, the model is of another kind, or its files do not fit together.
    """
    _require_pipeline_class(folder / "model_index.json", WAN_TI2V)
    half = device.type == "cuda" and torch.cuda.get_device_capability(device) >= BF16_CAPABILITY
    dtype = torch.bfloat16 if half else torch.float32
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # it warns about components that are not used here
    try:
        pipeline = diffusers.WanImageToVideoPipeline.from_pretrained(
            folder,
            text_encoder=_load_component(transformers.UMT5EncoderModel, folder / "text_encoder", dtype),
            transformer=_load_component(diffusers.WanTransformer3DModel, folder / "transformer", dtype),
            vae=_load_component(diffusers.AutoencoderKLWan, folder / "vae", torch.float32),
            local_files_only=True,
        )
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, AttributeError) as error:
        raise _mismatch_error(folder, (str(error) or type(error).__name__).splitlines()[0][:200]) from error
    pipeline.set_progress_bar_config(disable=True)
    if device.type == "cuda":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.to(device)
    return ImageToVideo(pipeline)


def _load_component(network_class: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Load a network strictly: missing and unexpected tensors are errors, where the libraries only warn."""
    network, loading_info = network_class.from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    for fault in ("missing", "unexpected"):
        if keys := sorted(loading_info[f"{fault}_keys"]):
            raise _mismatch_error(folder, f"{len(keys)} tensors {fault}: {', '.join(keys[:3])} …")
    return network


def _mismatch_error(folder: Path, problem: str) -> WeightsError:
    return WeightsError(
        ErrorCode.WEIGHTS_ARCHITECTURE,
        f"The files in {folder} do not belong together ({problem}): pull or import the model's files again.",
    )


def _require_pipeline_class(index: Path, settings: GenerationSettings) -> None:
    try:
        fields = json.loads(index.read_text(encoding="utf-8"))
        class_name, expand_timesteps = fields["_class_name"], fields.get("expand_timesteps")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(
            ErrorCode.WEIGHTS_ARCHITECTURE,
            f"{index} does not describe a diffusers pipeline ({error}): pull or import the model again.",
        ) from error
    # `expand_timesteps` marks the models that take an image as the first frame at timestep 0.
    if class_name not in settings.classes or not expand_timesteps:
        raise WeightsError(
            ErrorCode.WEIGHTS_ARCHITECTURE,
            f"{index.parent.name} is a {class_name} model, which cannot generate motion: only Wan 2.2 TI2V "
            "models are supported.",
        )
