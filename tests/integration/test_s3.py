"""Files in S3, over HTTP: stored whole or not at all, read in ranges, with errors and delays in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from server.storage.blobs import Blobs, StorageUnavailableError, TooLargeError
from tests.support.application import Api
from tests.support.s3 import ENVIRONMENT, Storage

LARGE = bytes(range(256)) * 80_000
"""Three parts of a multipart upload."""


@pytest.fixture(scope="module")
def storage() -> Iterator[Storage]:
    with pytest.MonkeyPatch.context() as changed:
        for name, value in ENVIRONMENT.items():
            changed.setenv(name, value)
        opened = Storage()
        yield opened
        opened.close()


@pytest.fixture(autouse=True)
def healthy(storage: Storage) -> Iterator[None]:
    yield
    storage.is_away, storage.fail_after = False, None
    storage.may_pass.set()
    storage.has_waited.clear()


def open_bucket(storage: Storage) -> Blobs:
    """The bucket, given up sooner than users would want."""
    return Blobs(storage.url, timeout_s=3.0, retry_s=0.5)


async def stream(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 1 << 20):
        yield content[start : start + (1 << 20)]


async def whole(blobs: Blobs, name: str) -> bytes:
    info = await blobs.info(name)
    assert info is not None
    return b"".join([part async for part in blobs.read(name, 0, info.size)])


def test_bucket_behaves_like_folder(storage: Storage, tmp_path: Path) -> None:
    blobs = open_bucket(storage)
    blobs.check_access()
    file = tmp_path / "film.mp4"
    file.write_bytes(LARGE)

    async def go() -> None:
        assert await blobs.write("uploads/t/a.wav", stream(LARGE), len(LARGE)) == len(LARGE)
        assert await whole(blobs, "uploads/t/a.wav") == LARGE
        await blobs.move_in("results/b.mp4", file)
        copy = await blobs.local("results/b.mp4", tmp_path)
        assert copy.read_bytes() == LARGE
        assert copy.parent == tmp_path
        assert [blob.name for blob in await blobs.list_folder("uploads/t")] == ["uploads/t/a.wav"]
        now = (await blobs.list_folder("results"))[0].modified_at
        assert len(await blobs.list_older_than(now + 60)) == 2
        assert await blobs.list_older_than(now - 60) == []
        await blobs.delete_folder("uploads/t")
        await blobs.delete("results/b.mp4")
        await blobs.delete("results/b.mp4")
        assert await blobs.info("results/b.mp4") is None
        with pytest.raises(FileNotFoundError):
            await blobs.local("results/b.mp4", tmp_path)

    asyncio.run(go())
    assert not file.exists(), "it was moved"
    assert any("partNumber=3" in request for request in storage.requests), "not in parts"
    assert storage.names() == []


def test_partial_upload_is_never_visible(storage: Storage, tmp_path: Path) -> None:
    blobs = open_bucket(storage)
    file = tmp_path / "film.mp4"
    file.write_bytes(LARGE)

    async def breaks() -> AsyncIterator[bytes]:
        yield LARGE
        raise ConnectionError

    async def go() -> None:
        with pytest.raises(TooLargeError):
            await blobs.write("uploads/t/b.wav", stream(LARGE), len(LARGE) - 1)
        with pytest.raises(ConnectionError):
            await blobs.write("uploads/t/c.wav", breaks(), 1 << 30)
        storage.fail_after = 2  # the upload has begun, one part is there
        with pytest.raises(StorageUnavailableError):
            await blobs.move_in("results/d.mp4", file)
        storage.fail_after = None
        storage.may_pass.clear()  # slower than anybody waits
        with pytest.raises(StorageUnavailableError):
            await blobs.move_in("results/d.mp4", file)
        storage.may_pass.set()
        assert storage.names() == []
        assert file.read_bytes() == LARGE, "it can be tried again"
        await blobs.move_in("results/d.mp4", file)
        await blobs.delete("results/d.mp4")

    asyncio.run(go())


@pytest.mark.parametrize("url", ["s3://", "http://bucket/x", "s3://bucket?endpont=http://x"])
def test_invalid_location_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="s3://BUCKET"):
        Blobs(url)


def test_access_check_fails_without_bucket(storage: Storage) -> None:
    with pytest.raises(StorageUnavailableError, match="404"):
        Blobs(storage.url.replace("s3://lipsync/", "s3://elsewhere/")).check_access()


# --- through the server ---


def upload(api: Api, content: bytes) -> tuple[int, str, str]:
    """Status of the upload, its error code, and where it can be read."""
    place = api.client.post(
        "/api/v3/media/uploads", json={"filename": "v.mp4", "size": len(content)}, headers=api.headers
    ).json()["data"]
    put = api.client.put(place["upload"]["url"], content=content)
    code = put.json()["error_code"] if put.status_code != 200 else ""
    return put.status_code, code, place["download_url"]


@pytest.fixture(params=["folder", "bucket"])
def any_api(request: pytest.FixtureRequest, storage: Storage, make_api: Callable[..., Api]) -> Api:
    return make_api(open_bucket(storage)) if request.param == "bucket" else make_api()


def test_downloads_support_byte_ranges(any_api: Api) -> None:
    content = LARGE[: 3 << 20]
    status, _, url = upload(any_api, content)
    assert status == 200
    get = any_api.client.get
    answer = get(url)
    assert (answer.status_code, answer.content == content) == (200, True)
    assert answer.headers["accept-ranges"] == "bytes"
    size = len(content)
    for requests, start, stop in (
        ("bytes=0-99", 0, 100),
        ("bytes=1048570-2097160", 1048570, 2097161),
        (f"bytes={size - 5}-", size - 5, size),
        ("bytes=-7", size - 7, size),
        (f"bytes=5-{size * 2}", 5, size),
    ):
        piece = get(url, headers={"Range": requests})
        assert piece.status_code == 206, requests
        assert piece.content == content[start:stop], requests
        assert piece.headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
    past = get(url, headers={"Range": f"bytes={size}-"})
    assert (past.status_code, past.headers["content-range"]) == (416, f"bytes */{size}")
    for requests in ("bytes=9-3", "bytes=0-1,5-6", "lines=1-2", "bytes=-"):
        assert get(url, headers={"Range": requests}).status_code == 200, requests
    same = {"Range": "bytes=0-0", "If-Range": answer.headers["etag"]}
    assert get(url, headers=same).status_code == 206
    assert get(url, headers={**same, "If-Range": '"another"'}).status_code == 200
    head = any_api.client.head(url)
    assert (head.headers["content-length"], head.content) == (str(size), b"")


def test_requests_are_refused_while_storage_is_unavailable(
    storage: Storage, make_api: Callable[..., Api]
) -> None:
    api = make_api(open_bucket(storage))
    status, _, url = upload(api, b"a film")
    assert status == 200
    storage.is_away = True
    status, code, _ = upload(api, b"another film")
    assert (status, code) == (503, "storage_away")
    rejection = api.client.get(url)
    assert (rejection.status_code, rejection.headers["retry-after"]) == (503, "5")
    assert api.client.get("/livez").status_code == 200
    body = {"video": "https://media.example/in/talk.mp4", "audio": "aGVsbG8gd29ybGQ="}  # inline, to be stored
    rejection = api.client.post("/api/v3/bytedance/latentsync", json=body, headers=api.headers)
    assert (rejection.status_code, rejection.json()["error_code"]) == (503, "storage_away")
    assert api.server.store.waiting_jobs() == []
    storage.is_away = False
    assert api.client.get(url).content == b"a film"
