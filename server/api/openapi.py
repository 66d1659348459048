"""Completes the OpenAPI document: answers, bodies of uploads, keys and servers.

FastAPI derives paths and parameters from the handlers, which read bodies and write answers themselves.
"""

from __future__ import annotations

import re
from typing import Any, Final

from fastapi import FastAPI

from server.api import native, studio, wavespeed
from server.api.schemas import CONSENT, OPTIONS, SEGMENTS

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
NUMBER: Final[Schema] = {"type": "number"}
INTEGER: Final[Schema] = {"type": "integer"}
ANY_OBJECT: Final[Schema] = {"type": "object", "additionalProperties": True}
BINARY: Final[Schema] = {"type": "string", "format": "binary"}
PUBLIC: Final = ("/livez", "/readyz", "/metrics", "/files/{token}/{name}", "/uploads/{token}/{name}")
NO_CONTENT: Final = ("revoke_key", "retry_webhook")
TAGS: Final = {wavespeed.PREFIXES[0]: "wavespeed", studio.PREFIX: "studio", native.PREFIX: "native"}


def _object(optional: tuple[str, ...] = (), /, **properties: Schema) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _envelope(data: Schema) -> Schema:
    return _object(code=INTEGER, message=TEXT, data=data)


FILE_FIELDS: Final = {"type": TEXT, "download_url": TEXT, "filename": TEXT, "size": INTEGER}
SCHEMAS: Final[dict[str, Schema]] = {
    "Prediction": _object(
        ("warnings", "code"),
        id=TEXT,
        model=TEXT,
        input=ANY_OBJECT,
        outputs=_list(TEXT),
        urls=_object(get=TEXT),
        has_nsfw_contents=_list({"type": "boolean"}),
        status={"type": "string", "enum": sorted(set(wavespeed.STATUS.values()))},
        created_at=TEXT,
        error=TEXT,
        executionTime=INTEGER,
        timings=ANY_OBJECT,
        warnings=_list(TEXT),
        code=INTEGER,
    ),
    "UploadTicket": _object(
        (), **FILE_FIELDS, upload=_object(method=TEXT, url=TEXT, headers=ANY_OBJECT, expires_at=TEXT)
    ),
    "UploadedFile": _object(**FILE_FIELDS, url=TEXT),
    "StudioJob": _object(
        ("warnings",),
        id=TEXT,
        model=TEXT,
        status=TEXT,
        output=_nullable(TEXT),
        error=TEXT,
        executionTime=_nullable(INTEGER),
        timings=_nullable(ANY_OBJECT),
        warnings=_list(TEXT),
    ),
    "Job": _object(
        ("preview",),
        id=TEXT,
        tenant=TEXT,
        state=TEXT,
        is_stopping={"type": "boolean"},
        model=TEXT,
        title=TEXT,
        created_at=TEXT,
        started_at=_nullable(TEXT),
        finished_at=_nullable(TEXT),
        wait=_nullable(ANY_OBJECT),
        progress=_nullable(ANY_OBJECT),
        output=_nullable(ANY_OBJECT),
        failure=_nullable(_object(code=TEXT, message=TEXT)),
        warnings=_list(ANY_OBJECT),
        batch=_nullable(_object(id=TEXT, row=INTEGER)),
        thumbnail=_nullable(TEXT),
        request=ANY_OBJECT,
        preview=_list(ANY_OBJECT),
    ),
}
ANSWERS: Final[dict[str, Schema]] = {
    "create_upload": _envelope(_ref("UploadTicket")),
    "upload_file": _envelope(_ref("UploadedFile")),
    "run_model": _envelope(_ref("Prediction")),
    "get_prediction": _envelope(_ref("Prediction")),
    "cancel_prediction": _envelope(_ref("Prediction")),
    "list_predictions": _envelope(_object(page=INTEGER, total=INTEGER, items=_list(_ref("Prediction")))),
    "list_models": _envelope(_list(ANY_OBJECT)),
    "get_balance": _envelope(_object(balance=NUMBER)),
    "lipsync_video": _object(id=TEXT, requestId=TEXT, status=TEXT),
    "lipsync_image": _object(id=TEXT, requestId=TEXT, status=TEXT),
    "lipsync_image_multi": _object(id=TEXT, requestId=TEXT, status=TEXT),
    "studio_get_job": _ref("StudioJob"),
    "native_get_job": _ref("Job"),
    "list_jobs": _object(total=INTEGER, jobs=_list(_ref("Job"))),
    "list_workers": _list(ANY_OBJECT),
    "list_keys": _list(ANY_OBJECT),
    "list_dead_webhooks": _list(ANY_OBJECT),
}
"""JSON answers by handler, where needed with its tag; those that are not listed are objects."""

OTHER_ANSWERS: Final[dict[str, str]] = {
    "livez": "text/plain",
    "readyz": "text/plain",
    "get_metrics": "text/plain",
    "export_usage": "text/csv",
    "read_audit_log": "application/jsonl",
    "stream_job_events": "text/event-stream",
    "download": "application/octet-stream",
    "put_upload": "text/plain",
}
FILE_FIELD: Final = {"multipart/form-data": {"schema": _object(file=BINARY)}}
SUBMISSION: Final = {
    "type": "object",
    "properties": {
        **{name: {"type": "string"} for name in ("video", "audio", "image", "mask_image")},
        **OPTIONS,
        "segments": SEGMENTS,
        "consent": CONSENT,
    },
    "additionalProperties": True,
    "description": "`GET /api/v3/models` has the exact schema of each model.",
}
BODIES: Final[dict[str, Schema]] = {
    "upload_file": FILE_FIELD,
    "put_upload": {"application/octet-stream": {"schema": BINARY}},
    "run_model": {"application/json": {"schema": SUBMISSION}},
}
KEY_REUSED: Final = {"description": "The Idempotency-Key belongs to another request."}
CONFLICT: Final = {"description": "It would remove the last admin key, or the key exists already."}


def complete_document(app: FastAPI, public_url: str | None) -> None:
    """Have the application's OpenAPI document describe what its handlers accept and return.

    Args:
        public_url: by which clients reach the server; None: relative to the document.
    """
    build = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(build(), public_url or "/")
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(document: dict[str, Any], url: str) -> None:
    document["servers"] = [{"url": url}]
    document["security"] = [{"key": []}]
    of_parameters = document.get("components", {}).get("schemas", {})
    document["components"] = {
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key."}},
        "schemas": {
            name: schema for name, schema in of_parameters.items() if not name.endswith("ValidationError")
        }
        | SCHEMAS,
    }
    ids: set[str] = set()
    for path, operations in document["paths"].items():
        tag = next((tag for prefix, tag in TAGS.items() if path.startswith(f"{prefix}/")), "server")
        for method, operation in operations.items():
            suffix = re.sub(r"\W", "_", path) + f"_{method}"
            handler = operation["operationId"].removesuffix(suffix)
            _complete_operation(operation, path, tag, handler)
            name = f"{tag}_{handler}"
            name = name if name not in ids else f"{name}_{path.rpartition('/')[2]}"
            ids.add(name)
            operation["operationId"] = name


def _complete_operation(operation: dict[str, Any], path: str, tag: str, handler: str) -> None:
    operation["tags"] = [tag]
    if path in PUBLIC:
        operation["security"] = []
    if handler in BODIES:
        operation["requestBody"] = {"required": True, "content": BODIES[handler]}
    responses = operation["responses"]
    responses.pop("422", None)  # FastAPI's own; invalid parameters are 400
    if handler in ("run_model", "create_batch") or tag == "studio":
        responses["422"] = KEY_REUSED
    if path.startswith("/admin/keys"):
        responses["409"] = CONFLICT
    if handler == "download":
        responses |= {
            "206": {"description": "A part of the file."},
            "304": {"description": "The client has the file."},
            "416": {"description": "The range is outside of the file."},
        }
    if handler in NO_CONTENT:
        responses["204"] = {"description": "Done."}
        del responses["200"]
    elif (media_type := OTHER_ANSWERS.get(handler)) is not None:
        schema = BINARY if handler == "download" else TEXT
        responses["200"] = {"description": "The content.", "content": {media_type: {"schema": schema}}}
    else:
        schema = ANSWERS.get(f"{tag}_{handler}") or ANSWERS.get(handler, ANY_OBJECT)
        responses["200"] = {"description": "Success.", "content": {"application/json": {"schema": schema}}}
