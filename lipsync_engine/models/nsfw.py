"""A classifier of pictures that says how likely one is not safe for work, as transformers runs it.

Any image classifier of transformers with a label `nsfw` will do; the manifest names one. It knows no videos.
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


class ContentClassifier:
    """A loaded classifier.

    Args:
        folder: config.json, model.safetensors and preprocessor_config.json, as transformers writes them.
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
        places = [at for label, at in model.config.label2id.items() if label.lower() == LABEL]
        if not places:
            raise WeightsError(
                ErrorCode.WEIGHTS_ARCHITECTURE,
                f"The content classifier in {folder} knows no label {LABEL!r}, only "
                f"{', '.join(model.config.label2id)}: it is another model.",
            )
        self._model, self._place, self._device = model.eval().to(device), places[0], device

    @torch.inference_mode()
    def scores(self, pictures: Sequence[npt.NDArray[np.uint8]]) -> list[float]:
        """Of each picture, uint8 (H, W, 3) RGB, the probability 0..1 that it is not safe for work."""
        images = [Image.fromarray(picture) for picture in pictures]
        seen = self._processor(images=images, return_tensors="pt")["pixel_values"].to(self._device)
        likely = self._model(pixel_values=seen).logits.float().softmax(dim=-1)
        return [float(one) for one in likely[:, self._place]]
