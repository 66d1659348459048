"""From a picture and a sentence to a short clip in which the person idles: Wan 2.2 TI2V as diffusers runs it.

The model is a folder in diffusers' own layout. It is loaded for one clip and freed again, because a lip-sync
model holds the device beside it. This knows neither files of video nor how a clip becomes as long as a voice.
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
import numpy.typing as npt
import torch
import transformers
from PIL import Image

from lipsync_engine.device import BF16_CAPABILITY
from lipsync_engine.errors import ErrorCode, OutputError, WeightsError

Picture = npt.NDArray[np.uint8]

IDLE = (
    "The person looks into the camera, listens quietly with closed lips, breathes calmly, blinks now and "
    "then and moves the head a little. The camera stands still on a tripod. One continuous shot."
)
"""What every clip is asked for: lips are put on it later, and it is also shown backwards."""

NEGATIVE = (
    "talking, open mouth, laughing, turning away, hands before the face, leaving the picture, moving camera, "
    "zoom, cut, other people, text, distorted face, blurred, flickering"
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a family is run.

    Attributes:
        classes: what `model_index.json` may name it.
        area: pixels of a picture that it was trained with.
        frames: of a clip; one more than a multiple of the autoencoder's stride in time.
        num_inference_steps, guidance_scale: its publisher's.
    """

    classes: tuple[str, ...]
    area: int
    frames: int
    num_inference_steps: int
    guidance_scale: float


WAN_TI2V = Recipe(
    classes=("WanPipeline", "WanImageToVideoPipeline"),
    area=1280 * 704,
    frames=121,
    num_inference_steps=50,
    guidance_scale=5.0,
)
"""Wan 2.2 TI2V 5B: one network for text and for pictures, so its index names the pipeline for text. Numbers:
Wan-Video/Wan2.2, wan/configs/wan_ti2v_5B.py. Its 24 frames per second are shown at 25, which nobody sees.
"""


def whole_prompt(prompt: str | None) -> str:
    """What the model is told: the caller's sentence first, then always `IDLE`."""
    given = (prompt or "").strip()
    return f"{given} {IDLE}" if given else IDLE


def clip_size(width: int, height: int, *, area: int, multiple: int, enlarge: bool) -> tuple[int, int]:
    """Width and height to generate at, for a picture of that size.

    Args:
        area: never more pixels than about these.
        multiple: of which both sides must be.
        enlarge: a smaller picture is generated larger, with `area` pixels.
    """
    scale = math.sqrt(area / (width * height))
    if not enlarge:
        scale = min(1.0, scale)
    across, down = (multiple * max(1, round(side * scale / multiple)) for side in (width, height))
    return across, down


class ImageToVideo:
    """A loaded model.

    Args:
        pipeline: on its device, or to be moved there part by part.
        recipe: how to run it.
    """

    def __init__(self, pipeline: diffusers.WanImageToVideoPipeline, recipe: Recipe = WAN_TI2V) -> None:
        self.pipeline, self._recipe = pipeline, recipe

    def clip(
        self, picture: Picture, prompt: str, seed: int, *, enlarge: bool = True
    ) -> Generator[tuple[int, int], None, list[Picture]]:
        """Generate a clip.

        Args:
            picture: uint8 (H, W, 3), about the first frame.
            prompt: all that the model is told.
            seed: equal seeds give equal clips on the same device; the noise is the same on every device.
            enlarge: see `clip_size`.

        Yields:
            (steps done, steps in all). Closed there, it stops at the end of the step that is being computed.

        Returns:
            The frames, uint8 (h, w, 3) of the size that `clip_size` says: the picture's aspect but for the
            rounding of a side.

        Raises:
            OutputError: OUTPUT_NOT_FINITE.
        """
        recipe, pipeline = self._recipe, self.pipeline
        height, width = picture.shape[:2]
        across, down = clip_size(width, height, area=recipe.area, multiple=self._multiple, enlarge=enlarge)
        done: SimpleQueue[int | None] = SimpleQueue()
        stopped = threading.Event()

        def after_step(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if stopped.is_set():
                raise _Stopped  # the pipeline's own flag would still decode what there is
            done.put(step + 1)
            return {}

        with ThreadPoolExecutor(1, "image-to-video") as worker:
            made = worker.submit(
                pipeline,
                image=Image.fromarray(picture).resize((across, down), Image.Resampling.LANCZOS),
                prompt=prompt,
                negative_prompt=NEGATIVE,
                width=across,
                height=down,
                num_frames=recipe.frames,
                num_inference_steps=recipe.num_inference_steps,
                guidance_scale=recipe.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(seed),
                callback_on_step_end=after_step,
                output_type="np",
            )
            made.add_done_callback(lambda _: done.put(None))
            try:
                yield 0, recipe.num_inference_steps
                while (step := done.get()) is not None:
                    yield step, recipe.num_inference_steps
            finally:
                stopped.set()
            frames = made.result().frames[0]
        if not np.isfinite(frames).all():
            raise OutputError(
                ErrorCode.OUTPUT_NOT_FINITE,
                "The generated motion is not a picture (values overflowed): use another seed, or "
                "motion=natural.",
            )
        return [np.rint(np.clip(frame, 0, 1) * 255).astype(np.uint8) for frame in frames]

    def free(self) -> None:
        """Give the device's memory back; the model is of no use afterwards."""
        self.pipeline.remove_all_hooks()
        del self.pipeline
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def _multiple(self) -> int:
        """Pixels per patch, along each side."""
        return int(self.pipeline.vae_scale_factor_spatial * self.pipeline.transformer.config.patch_size[1])


class _Stopped(Exception):  # noqa: N818  (nobody sees it)
    """Nobody waits for the clip any more."""


def load(folder: Path, device: torch.device) -> ImageToVideo:
    """Load a verified folder, without a network and without running code from it.

    Networks are bfloat16 where the device computes in it, else float32; the autoencoder is float32 always. On
    CUDA each part is on the device only while it works.

    Args:
        folder: with `model_index.json` and a folder for each part.

    Raises:
        WeightsError: WEIGHTS_ARCHITECTURE, another kind of model, or files that do not fit together.
    """
    _require_family(folder / "model_index.json", WAN_TI2V)
    half = device.type == "cuda" and torch.cuda.get_device_capability(device) >= BF16_CAPABILITY
    dtype = torch.bfloat16 if half else torch.float32
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # it warns of parts that are not used here
    try:
        pipeline = diffusers.WanImageToVideoPipeline.from_pretrained(
            folder,
            text_encoder=_part(transformers.UMT5EncoderModel, folder / "text_encoder", dtype),
            transformer=_part(diffusers.WanTransformer3DModel, folder / "transformer", dtype),
            vae=_part(diffusers.AutoencoderKLWan, folder / "vae", torch.float32),
            local_files_only=True,
        )
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, AttributeError) as error:
        raise _misfit(folder, (str(error) or type(error).__name__).splitlines()[0][:200]) from error
    pipeline.set_progress_bar_config(disable=True)
    if device.type == "cuda":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.to(device)
    return ImageToVideo(pipeline)


def _part(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A network with exactly the tensors that its files hold; the libraries would only warn."""
    network, loaded = kind.from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    for what in ("missing", "unexpected"):
        if keys := sorted(loaded[f"{what}_keys"]):
            raise _misfit(folder, f"{len(keys)} tensors {what}: {', '.join(keys[:3])} …")
    return network


def _misfit(folder: Path, why: str) -> WeightsError:
    return WeightsError(
        ErrorCode.WEIGHTS_ARCHITECTURE,
        f"The files in {folder} do not go together ({why}): pull or import the model's files again.",
    )


def _require_family(index: Path, recipe: Recipe) -> None:
    try:
        fields = json.loads(index.read_text(encoding="utf-8"))
        named, conditioned = fields["_class_name"], fields.get("expand_timesteps")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(
            ErrorCode.WEIGHTS_ARCHITECTURE, f"{index} does not describe a diffusers pipeline ({error})."
        ) from error
    # A picture enters this family as a first frame at timestep 0, which `expand_timesteps` says.
    if named not in recipe.classes or not conditioned:
        raise WeightsError(
            ErrorCode.WEIGHTS_ARCHITECTURE,
            f"{index.parent.name} is a {named} that this version cannot run: only Wan 2.2 TI2V models make "
            "a clip from a picture here.",
        )
