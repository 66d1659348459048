"""Model families: the protocol of a lip-sync model, and the registry of families.

base            `LipSyncModel` and the registry; a new family is one folder and one line in `FAMILIES`
latentsync      LatentSync 1.5 and 1.6
image_to_video  portrait motion: turns a still portrait into a short clip
nsfw            image classifier for the content filter

This package does not know media files or command lines.
"""

from lipsync_engine.models.base import (
    FAMILIES,
    IMAGE_TO_VIDEO,
    LipSyncModel,
    ModelInfo,
    find_image_to_video_entry,
    load_model,
)

__all__ = [
    "FAMILIES",
    "IMAGE_TO_VIDEO",
    "LipSyncModel",
    "ModelInfo",
    "find_image_to_video_entry",
    "load_model",
]
