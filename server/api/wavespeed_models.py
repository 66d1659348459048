"""WaveSpeed's model ids that this server serves, and the input of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from server.api.errors import ApiError
from server.api.schemas import (
    PORTRAIT_OPTIONS,
    TWO_VOICES,
    TWO_VOICES_OPTIONS,
    EndpointSchema,
    json_schema_properties,
)
from server.jobs.request import MIB, MediaLimits, Role


@dataclass(frozen=True, slots=True)
class Model:
    """A model id with the description and input of its vendor's page."""

    id: str
    description: str
    schema: EndpointSchema


LATENTSYNC: Final = EndpointSchema(
    limits=(
        (Role.VIDEO, MediaLimits(formats=("mp4",))),
        (Role.AUDIO, MediaLimits(formats=("mp3", "aac", "wav", "m4a"))),
    )
)
KLING: Final = EndpointSchema(
    limits=(
        (
            Role.VIDEO,
            MediaLimits(
                formats=("mp4", "mov"),
                max_bytes=100 * MIB,
                min_s=2,
                max_s=10,
                min_side_px=720,
                max_side_px=1920,
                short_sides_px=(720, 1080),
            ),
        ),
        (Role.AUDIO, MediaLimits(formats=("mp3", "wav", "m4a", "aac"), max_bytes=5 * MIB)),
    )
)
OMNI_HUMAN: Final = EndpointSchema(
    required=(Role.IMAGE, Role.AUDIO),
    options=PORTRAIT_OPTIONS,
    limits=((Role.IMAGE, MediaLimits(formats=("png", "jpg", "webp"), max_bytes=50 * MIB)),),
)
INFINITETALK_S: Final = MediaLimits(min_s=0, max_s=600)
TWO_SPEAKERS: Final = EndpointSchema(
    required=TWO_VOICES,
    optional=(),
    options=TWO_VOICES_OPTIONS,
    limits=((Role.LEFT_AUDIO, INFINITETALK_S), (Role.RIGHT_AUDIO, INFINITETALK_S)),
    resolution="480p",
)
MODELS: Final = {
    model.id: model
    for model in (
        Model("bytedance/latentsync", "Lip-sync of a video to a voice.", LATENTSYNC),
        Model("wavespeed-ai/latentsync", "Lip-sync of a video to a voice.", EndpointSchema()),
        Model("bytedance/lipsync/audio-to-video", "Lip-sync of a video to a voice.", EndpointSchema()),
        Model("kwaivgi/kling-lipsync/audio-to-video", "Lip-sync of a short video to a voice.", KLING),
        Model("bytedance/avatar-omni-human", "A portrait that speaks with a voice.", OMNI_HUMAN),
        Model(
            "wavespeed-ai/infinitetalk",
            "A portrait that speaks with a voice.",
            EndpointSchema(
                required=(Role.IMAGE, Role.AUDIO),
                options=PORTRAIT_OPTIONS,
                limits=((Role.AUDIO, INFINITETALK_S),),
                resolution="480p",
            ),
        ),
        Model(
            "wavespeed-ai/infinitetalk/video-to-video",
            "Lip-sync of a video to a voice.",
            EndpointSchema(limits=((Role.AUDIO, INFINITETALK_S),), resolution="480p"),
        ),
        Model("wavespeed-ai/infinitetalk/multi", "An image of two people who speak.", TWO_SPEAKERS),
        Model("wavespeed-ai/infinitetalk-fast/multi", "An image of two people who speak.", TWO_SPEAKERS),
    )
}


def request_schema(model: Model) -> dict[str, Any]:
    """Return the JSON Schema of a model's body."""
    flag = {
        "type": "boolean",
        "default": False,
        "description": "Return the result as base64 instead of a link.",
    }
    return {
        "type": "object",
        "properties": json_schema_properties(model.schema) | {"enable_base64_output": flag},
        "required": sorted(role.value for role in model.schema.required),
        "x-order-properties": [role.value for role in model.schema.required],
    }


def require_model(model_id: str) -> Model:
    """Return a model by its id.

    Raises:
        ApiError: 404.
    """
    model = MODELS.get(model_id)
    if model is None:
        raise ApiError(
            404, f"There is no model {model_id[:200]!r} here; GET /models lists them.", "model_not_found"
        )
    return model


def catalogue_entry(model: Model, base: str, number: int) -> dict[str, Any]:
    """Build the entry of a model in the list of models."""
    run = {
        "type": "model_run",
        "method": "POST",
        "server": base,
        "api_path": f"/api/v3/{model.id}",
        "request_schema": request_schema(model),
    }
    return {
        "model_id": model.id,
        "name": model.id,
        "base_price": 0.0,
        "description": model.description,
        "type": "digital-human",
        "sort_order": number,
        "formula": "",
        "api_schema": {"api_schemas": [run]},
    }
