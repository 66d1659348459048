"""Upload links and links to files: one file of the announced size, recognised wherever they lead."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from httpx2 import Response

from tests.support.application import BASE, Api

Make = Callable[..., Api]


def ticket(api: Api, size: int) -> dict[str, Any]:
    body = {"filename": "v.mp4", "size": size}
    response = api.client.post("/api/v3/media/uploads", json=body, headers=api.headers)
    return dict(response.json()["data"]) if response.status_code == 200 else dict(response.json())


def put(api: Api, link: dict[str, Any], content: bytes | Iterator[bytes]) -> Response:
    return api.client.put(link["upload"]["url"], content=content)


def uploaded(api: Api) -> str:
    """A link to an uploaded file."""
    response = api.client.post("/api/v3/upload", files={"file": ("a.mp4", b"film")}, headers=api.headers)
    return str(response.json()["data"]["download_url"])


def submit(api: Api, video: str, base: str = BASE) -> Response:
    body = {"video": video, "audio": "https://media.example/a.wav"}
    return api.client.post(f"{base}/api/v3/bytedance/latentsync", json=body, headers=api.headers)


def test_upload_has_the_announced_size(api: Api) -> None:
    link = ticket(api, 4)
    for content, status in ((b"fil", 400), (b"films", 413), (b"", 400), (iter([b"fi", b"lms"]), 413)):
        response = put(api, link, content)
        assert (response.status_code, response.json()["error_code"]) == (status, "upload_size_mismatch")
        assert api.client.get(link["download_url"]).json()["error_code"] == "link_deleted"
    assert put(api, link, iter([b"fi", b"lm"])).status_code == 200  # after failures the link is still good
    assert api.client.get(link["download_url"]).content == b"film"
    other_size = link["upload"]["url"].replace("size=4", "size=5")
    assert api.client.put(other_size, content=b"films").status_code == 403
    assert ticket(api, 0)["error_code"] == "invalid_parameter"
    empty = api.client.post("/api/v3/upload", files={"file": ("a.mp4", b"")}, headers=api.headers)
    assert (empty.status_code, empty.json()["error_code"]) == (400, "upload_empty")


def test_upload_link_accepts_one_file(api: Api) -> None:
    link = ticket(api, 4)
    assert put(api, link, b"film").status_code == 200
    for content in (b"film", b"evil"):
        second = put(api, link, content)
        assert (second.status_code, second.json()["error_code"]) == (409, "upload_link_used")
    assert api.client.get(link["download_url"]).content == b"film"


def test_link_in_use_is_refused(api: Api) -> None:
    link = ticket(api, 4)
    name = link["download_url"].partition("/files/")[2].partition("/")[2]
    assert api.server.store.claim_upload(name, time.time())  # another upload has begun, in any process
    assert put(api, link, b"film").status_code == 409
    api.server.store.release_upload(name)  # and broke off
    assert put(api, link, b"film").status_code == 200


def test_own_links_are_recognised_under_any_name(subtests: pytest.Subtests, api: Api) -> None:
    path = uploaded(api).removeprefix(BASE)
    for base in (BASE, "http://localhost:8000", "https://proxy.example/lipsync", "http://127.0.0.1"):
        with subtests.test(base=base):
            record = api.server.store.get(submit(api, base + path).json()["data"]["id"])
            assert record is not None
            (video,) = (source for source in record.request.sources if source.role == "video")
            assert (video.url, str(video.blob).partition("/")[0]) == (None, "uploads")


def test_unusable_own_links_are_refused_with_their_reason(make_api: Make) -> None:
    api = make_api()
    link = uploaded(api)
    result = finished(api)
    api.client.delete(f"/api/v3/predictions/{result.rpartition('/')[2][:32]}", headers=api.headers)
    never = ticket(api, 4)["download_url"]
    old = make_api(retention_s=0.001)
    for server, url, code in (
        (api, link.replace("/files/", "/files/1"), "link_damaged"),
        (api, link.replace(BASE, "http://localhost").replace("/files/", "/files/1"), "link_damaged"),
        (api, never, "link_deleted"),
        (api, result, "link_deleted"),
        (old, uploaded(old), "link_expired"),
    ):
        response = submit(server, url)
        assert (response.status_code, response.json()["error_code"]) == (400, code), url
        assert url[:40] in response.json()["message"]
        file = server.client.get(url.replace("http://localhost", BASE))
        assert (file.status_code, file.json()["error_code"]) == (404, code), url
    foreign = link.replace(BASE, "https://other.example").replace("/files/", "/files/1")
    assert submit(api, foreign).status_code == 200  # perhaps that of another installation


def finished(api: Api) -> str:
    """The result's link of a job that has succeeded."""
    job = api.submit()
    api.succeed(job)
    prediction = api.client.get(f"/api/v3/predictions/{job}", headers=api.headers).json()["data"]
    return str(prediction["outputs"][0])


def test_bad_link_of_a_batch_is_listed_by_row(api: Api) -> None:
    good, audio = uploaded(api), "https://media.example/a.wav"
    never = ticket(api, 4)["download_url"]
    jobs = [
        {"model": "bytedance/latentsync", "input": {"video": url, "audio": audio}} for url in (good, never)
    ]
    response = api.client.post("/api/native/v1/batches", json={"jobs": jobs}, headers=api.headers)
    assert (response.status_code, response.json()["error"]) == (400, "batch_invalid")
    assert [(row["row"], row["code"]) for row in response.json()["problems"]] == [(1, "link_deleted")]
    assert api.server.store.page(None, offset=0, limit=9)[1] == 0


def test_used_links_are_forgotten_after_they_expire(make_api: Make) -> None:
    api = make_api()
    store, now = api.server.store, time.time()
    assert store.claim_upload("uploads/studio/old.mp4", now - 3601)
    assert store.claim_upload("uploads/studio/new.mp4", now)
    assert api.client.portal is not None
    api.client.portal.call(api.server.delete_expired_data)
    assert store.claim_upload("uploads/studio/old.mp4", now)
    assert not store.claim_upload("uploads/studio/new.mp4", now)


def test_ticket_without_size_says_so(api: Api) -> None:
    response = api.client.post("/api/v3/media/uploads", json={"filename": "a.mp4"}, headers=api.headers)
    assert response.status_code == 400
    assert (
        response.json()["message"] == "The parameter size is missing: send the number of bytes of the file."
    )


def multipart(content: bytes, *, before: bytes = b"", end: bytes = b"\r\n--B--\r\n") -> bytes:
    head = (
        b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\nContent-Type: video/mp4\r\n'
    )
    return before + head + b"\r\n" + content + end


def test_multipart_file_is_streamed_within_limits(make_api: Callable[..., Api]) -> None:
    api = make_api(max_upload_bytes=100_000)
    headers = {**api.headers, "Content-Type": "multipart/form-data; boundary=B"}
    field = b'--B\r\nContent-Disposition: form-data; name="x"\r\n\r\n'

    def send(body: bytes) -> Response:
        return api.client.post("/api/v3/upload", content=body, headers=headers)

    content = bytes(range(256)) * 390
    answer = send(multipart(content, before=field + b"1\r\n")).json()["data"]
    assert (answer["size"], answer["filename"], answer["type"]) == (len(content), "a.mp4", "video")
    assert api.client.get(answer["url"]).content == content
    stored = sorted(path for path in (api.server.settings.data_dir / "blobs").rglob("*") if path.is_file())
    for body, status in (
        (multipart(bytes(200_000)), 413),
        (multipart(content, end=b""), 400),
        (field + bytes(200_000), 400),
        (b"A" * 200_000, 400),
        (b"--B\r\nX-A: " + b"x" * 200_000, 400),
        (b"--B\r\n\r\n\r\n--B--", 400),
        (b"", 400),
    ):
        assert send(body).status_code == status, body[:60]
    assert (
        sorted(path for path in (api.server.settings.data_dir / "blobs").rglob("*") if path.is_file())
        == stored
    )
