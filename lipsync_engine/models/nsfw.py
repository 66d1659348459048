"""Image classifier that returns the probability of content that is not safe for work (NSFW).

Any image classifier of transformers with a label `nsfw` works; the manifest names one. This module does not
know videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import transformers
from PIL import Image
from safetensors import SafetensorError

from lipsync_engine.errors import ErrorCode, WeightsError

LABEL = "nsfw"


class NsfwClassifier:
    """A loaded NSFW classifier.

    Args:
        folder: with config.json, model.safetensors and preprocessor_config.json in transformers' format.
        device: where it runs.

    Raises:
        WeightsError: the files cannot be read, or the model has no label `nsfw`.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        try:
            model = transformers.AutoModelForImageClassification.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            )
            self._processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise WeightsError(
                ErrorCode.WEIGHTS_ARCHITECTURE,
                f"The content classifier in {folder} cannot be loaded ({str(error).splitlines()[0]}): get "
                "the files that `lipsync weights list` names.",
            ) from error
        class_ids = [class_id for label, class_id in model.config.label2id.items() if label.lower() == LABEL]
        if not class_ids:
            raise WeightsError(
                ErrorCode.WEIGHTS_ARCHITECTURE,
                f"The content classifier in {folder} has no label {LABEL!r}, only "
                f"{', '.join(model.config.label2id)}: get the files that `lipsync weights list` names.",
            )
        self._model, self._class_id, self._device = model.eval().to(device), class_ids[0], device

    @torch.inference_mode()
    def classify(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[float]:
        """Return the probability 0..1 of NSFW content for each image, uint8 (H, W, 3) RGB."""
        inputs = self._processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")
        logits = self._model(pixel_values=inputs["pixel_values"].to(self._device)).logits
        return [float(probability) for probability in logits.float().softmax(dim=-1)[:, self._class_id]]
