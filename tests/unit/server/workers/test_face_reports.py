"""`POST /api/native/v1/faces`: the report, the overlay, errors, limits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.application import Api

Make = Callable[..., Api]


def post(api: Api, content: bytes, query: str = "", **headers: str) -> Any:
    all_headers = api.headers | {"Content-Type": "application/octet-stream"} | headers
    return api.client.post(f"/api/native/v1/faces{query}", content=content, headers=all_headers)


def test_faces_of_a_video_are_reported_with_thumbnails(api: Api, clip: Path) -> None:
    answer = post(api, clip.read_bytes(), "?detector=drawn")
    assert answer.status_code == 200, answer.text
    report = answer.json()
    assert (report["frames"], report["untouched"]) == (50, {})
    (track,) = report["tracks"]
    assert track["thumbnail"].startswith("data:image/jpeg;base64,")
    assert str(api.server.settings.data_dir) not in answer.text


def test_overlay_is_returned_as_a_video(api: Api, clip: Path) -> None:
    answer = post(api, clip.read_bytes(), "?detector=drawn&overlay=true")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.content[4:8] == b"ftyp"


def test_unusable_video_is_refused_with_the_engines_code(api: Api) -> None:
    answer = post(api, b"no video at all")
    assert answer.status_code == 400
    assert answer.json()["error"] == "media_not_recognised"
    assert str(api.server.settings.data_dir) not in answer.text


def test_face_report_needs_a_key_and_has_a_size_limit(make_api: Make) -> None:
    api = make_api(max_upload_bytes=1000)
    assert post(api, b"x" * 1001).status_code == 413
    assert post(api, b"x", Authorization="Bearer nobody").status_code == 401
