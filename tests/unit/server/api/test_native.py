"""Our own dialect and the page: jobs in full, events, previews, health, who may see what."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest

from server.api import native
from server.api.errors import BusyError
from server.jobs import state as job_state
from server.jobs.state import Output, StageProgress
from server.storage.blobs import preview_folder, still_blob
from tests.support.application import Api, put_blob
from tests.support.paths import ROOT

V1 = native.PREFIX
BASE = "http://lipsync.example"


def get(api: Api, path: str, key: str | None = None, **parameters: object) -> Any:
    answer = api.client.get(
        f"{V1}{path}", params=parameters, headers={"Authorization": f"Bearer {key or api.key}"}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def put(api: Api, name: str, content: bytes = b"x") -> None:
    put_blob(api.server.blobs, name, content)


def change(api: Api, job: str, transition: Callable[..., job_state.Job]) -> None:
    """As a worker would: committed, and told to whoever watches."""
    assert api.client.portal is not None
    api.client.portal.call(api.server.jobs.change, job, transition)


def at_frame(done: int, job: job_state.Job, now: float) -> job_state.Job:
    return job_state.renew_lease(
        job, job.fence, now, job_state.JobPolicy(), StageProgress("render", done, 100, 20.0)
    )


# --- a job ---


def test_job_view_in_every_state(api: Api) -> None:
    job = api.submit(title="Greeting", inference_steps=2)
    waiting = get(api, f"/jobs/{job}")
    assert (waiting["state"], waiting["title"], waiting["tenant"]) == ("waiting", "Greeting", "studio")
    assert waiting["wait"] == {"position": 0, "estimated_start": None}
    assert waiting["request"]["path"] == "/api/v3/bytedance/latentsync"
    assert waiting["request"]["input"]["inference_steps"] == 2
    assert waiting["request"]["files"]["video"] == "https://media.example/in/talk.mp4"
    api.begin()
    change(api, job, partial(at_frame, 25))
    running = get(api, f"/jobs/{job}")
    assert running["progress"] == {
        "stage": "render",
        "done": 25,
        "total": 100,
        "per_second": 20.0,
        "left_s": 3.8,
    }
    assert (running["wait"], running["warnings"], running["output"]) == (None, [], None)
    api.server.store.change(job, time.time(), lambda j: job_state.cancel(j, time.time()))
    assert get(api, f"/jobs/{job}")["is_stopping"] is True
    output = Output(
        f"results/{job}.mp4",
        2.0,
        4.0,
        ("The gate stays open.", "The prompt was not used."),
        sync=job_state.SyncConfidence(5.5, -1, ((0.1, 4.0),)),
        is_nsfw=True,
        warning_codes=("voice_gate_open",),  # results of earlier versions have no codes
        pauses_s=((1.0, 2.5),),
    )
    api.server.store.change(job, time.time(), lambda j: job_state.succeed(j, 1, time.time(), output))
    put(api, f"results/{job}.mp4", b"an mp4")
    done = get(api, f"/jobs/{job}")
    assert (done["state"], done["is_stopping"], done["progress"]) == ("succeeded", False, None)
    assert (done["output"]["duration_s"], done["output"]["device_s"]) == (4.0, 2.0)
    assert done["output"]["is_nsfw"] is True
    seen = api.client.get(f"/api/v3/predictions/{job}/result", headers=api.headers).json()["data"]
    assert seen["has_nsfw_contents"] == [True]
    assert done["output"]["pauses_s"] == [[1.0, 2.5]]
    assert done["warnings"] == [
        {"code": "voice_gate_open", "message": "The gate stays open."},
        {"code": "not_done", "message": "The prompt was not used."},
    ]
    assert done["output"]["sync"] == {"confidence": 5.5, "offset_frames": -1, "curve": [[0.1, 4.0]]}
    assert api.client.get(done["output"]["url"]).content == b"an mp4"


def test_failed_and_retried_jobs_show_their_failure(api: Api) -> None:
    job = api.submit()
    api.fail(job, "face_not_found", "No face was found.")
    assert get(api, f"/jobs/{job}")["failure"] == {"code": "face_not_found", "message": "No face was found."}
    job = api.submit()
    api.begin()
    api.server.store.change(
        job,
        time.time(),
        lambda j: job_state.fail(j, 1, time.time(), job_state.WORKER_LOST, job_state.JobPolicy()),
    )
    api.begin()
    (warning,) = get(api, f"/jobs/{job}")["warnings"]
    assert (warning["code"], warning["attempt"]) == ("tried_again", 2)


def test_job_of_another_dialect_shows_how_to_submit_it_again(api: Api) -> None:
    form = {"image": "data:image/png;base64,aGk=", "left_audio": "https://m.example/l.wav",
            "right_audio": "https://m.example/r.wav", "order": "left_right"}  # fmt: skip
    told = api.client.post(
        "/api/v1/lipsync-image-multi", json={"formState": form}, headers=api.headers
    ).json()
    request = get(api, f"/jobs/{told['id'].replace('-', '')}")["request"]
    assert (request["path"], request["in_form_state"]) == ("/api/v1/lipsync-image-multi", True)
    again = {**form, "image": request["files"]["image"]}
    assert api.client.get(again["image"]).content == b"hi"
    submitted = api.client.post("/api/v1/lipsync-image-multi", json={"formState": again}, headers=api.headers)
    record = api.server.store.get(submitted.json()["id"].replace("-", ""))
    assert record is not None
    assert (
        record.request.sources[0].blob == request["files"]["image"].rpartition("/files/")[2].partition("/")[2]
    )


def test_job_list_is_filtered(api: Api) -> None:
    first, second = api.submit(title="Übung 你好"), api.submit(title="50% more")
    api.succeed(first)

    def listed(**parameters: object) -> list[str]:
        return [job["id"] for job in get(api, "/jobs", **parameters)["jobs"]]

    assert set(listed()) == {first, second}
    assert listed(state="succeeded") == [first]
    assert set(listed(state=["succeeded", "waiting"])) == {first, second}
    assert listed(text="你好") == [first]
    assert listed(text="50% MORE") == [second]
    assert listed(text="5__ more") == []
    assert listed(text=second[:12]) == [second]
    assert listed(since=time.time() + 10) == []
    assert listed(limit=1, offset=1) == [first]
    assert get(api, "/jobs", limit=1)["total"] == 2


# --- who may see what ---


def test_admin_lists_jobs_of_all_tenants(api: Api) -> None:
    job = api.submit()
    assert get(api, "/jobs", api.other_key)["total"] == 0
    for path in (f"/jobs/{job}", f"/jobs/{job}/events"):
        answer = api.client.get(f"{V1}{path}", headers={"Authorization": f"Bearer {api.other_key}"})
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
    other = {"Authorization": f"Bearer {api.other_key}"}
    for tenant in ("*", "studio"):
        answer = api.client.get(f"{V1}/jobs", params={"tenant": tenant}, headers=other)
        assert (answer.status_code, answer.json()["error"]) == (403, "forbidden")
    body = {"video": "https://m.example/v.mp4", "audio": "https://m.example/a.wav"}
    foreign = api.client.post("/api/v3/bytedance/latentsync", json=body, headers=other).json()["data"]["id"]
    assert get(api, "/jobs")["total"] == 1
    assert {found["tenant"] for found in get(api, "/jobs", tenant="*")["jobs"]} == {"studio", "other"}
    assert get(api, "/jobs", tenant="other")["jobs"][0]["id"] == foreign
    assert get(api, f"/jobs/{foreign}")["tenant"] == "other"


def test_every_route_needs_a_key_with_its_scope(api: Api) -> None:
    reader, runner = (
        api.client.post(f"/admin/keys?tenant=studio&scopes={scope}", headers=api.headers).json()["key"]
        for scope in ("read", "run")
    )
    known = api.client.get("/openapi.json").json()["paths"].items()
    routes = [(path, method) for path, entry in known if path.startswith(V1) for method in entry]
    changing = {(f"{V1}/batches", "post"), (f"{V1}/batches/{{batch_id}}/cancel", "post")}
    assert len(routes) == 13
    for path, method in routes:
        place = path.replace("{job_id}", "0" * 32).replace("{batch_id}", "0" * 32)
        answer = api.client.request(method, place)
        assert (answer.status_code, answer.json()["error"]) == (401, "unauthorized"), path
        key = reader if (path, method) in changing else runner
        answer = api.client.request(method, place, headers={"Authorization": f"Bearer {key}"})
        assert (answer.status_code, answer.json()["error"]) == (403, "forbidden"), path


def test_me_describes_the_key(api: Api) -> None:
    told = get(api, "/me")
    assert (told["tenant"], told["scopes"]) == ("studio", ["admin", "metrics", "read", "run"])
    assert told["limits"]["max_upload_bytes"] == api.server.settings.max_upload_bytes


# --- what can be watched already ---


def test_previews_are_listed_while_the_job_runs(api: Api) -> None:
    job = api.submit()
    api.begin()
    folder = preview_folder(job)
    put(api, f"{folder}/00001-6240-9600.mp4", b"second")
    put(api, f"{folder}/00000-0-6240.mp4", b"first")
    put(api, still_blob(job), b"jpeg")
    shown = get(api, f"/jobs/{job}")
    assert [(part["index"], part["start_s"], part["stop_s"]) for part in shown["preview"]] == [
        (0, 0.0, 6.24),
        (1, 6.24, 9.6),
    ]
    assert [api.client.get(part["url"]).content for part in shown["preview"]] == [b"first", b"second"]
    assert api.client.get(shown["thumbnail"]).headers["content-type"] == "image/jpeg"
    change(
        api,
        job,
        lambda j, now: job_state.fail(
            j, j.fence, now, job_state.Failure("media_failed", "No."), job_state.JobPolicy()
        ),
    )
    ended = get(api, f"/jobs/{job}")
    assert ended["preview"] == []
    assert ended["thumbnail"] is not None
    api.client.delete(f"/api/v3/predictions/{job}", headers=api.headers)
    assert not (api.server.settings.data_dir / "blobs" / folder).exists()
    assert asyncio.run(api.server.blobs.info(still_blob(job))) is None


def test_start_removes_previews_of_ended_jobs(api: Api) -> None:
    running, gone = api.submit(), "0" * 32
    for job in (running, gone):
        put(api, f"{preview_folder(job)}/00000-0-6240.mp4")
    asyncio.run(api.server.supervisor.start())
    left = asyncio.run(api.server.blobs.list_folder("previews"))
    assert [blob.name.split("/")[1] for blob in left] == [running]


# --- events ---


def read_events(api: Api, job: str, doing: Callable[[int], None], after: int = -1) -> list[tuple[str, Any]]:
    """All events of a job; `doing` is called with the number of each event after it was read."""
    assert api.client.portal is not None
    found: list[tuple[str, Any]] = []

    async def read() -> None:
        async for text in native.stream_events(api.server.context, job, BASE, after):
            if text.startswith(":"):
                continue
            fields = dict(line.split(": ", 1) for line in text.strip().splitlines())
            found.append((fields["event"], json.loads(fields["data"])))
            await asyncio.to_thread(doing, len(found))

    api.client.portal.call(read)
    return found


def test_event_stream_reports_every_state(api: Api) -> None:
    job = api.submit()

    def act(count: int) -> None:
        match count:
            case 1:
                api.begin()
                put(api, f"{preview_folder(job)}/00000-0-6240.mp4")
                change(api, job, partial(at_frame, 60))
            case 3:
                change(api, job, lambda j, now: job_state.succeed(j, 1, now, Output("results/x.mp4", 1.0)))

    told = read_events(api, job, act)
    assert [name for name, _ in told] == ["job", "segment", "job", "job"]
    assert [data["state"] for name, data in told if name == "job"] == ["waiting", "running", "succeeded"]
    assert told[1][1]["stop_s"] == 6.24


def test_reconnected_stream_resumes_after_the_last_event(api: Api) -> None:
    job = api.submit()
    api.begin()
    for index, name in enumerate(("00000-0-6240", "00001-6240-9600")):
        put(api, f"{preview_folder(job)}/{name}.mp4", bytes([index]))

    def end(count: int) -> None:
        if count == 2:
            change(api, job, lambda j, now: job_state.succeed(j, 1, now, Output("results/x.mp4", 1.0)))

    told = read_events(api, job, end, after=0)
    assert [data["index"] for name, data in told if name == "segment"] == [1]


def test_deletion_and_shutdown_end_the_stream(api: Api) -> None:
    job = api.submit()

    def delete(count: int) -> None:
        if count == 1:
            change(api, job, job_state.cancel)
            api.server.store.delete([job], "studio")

    assert [name for name, _ in read_events(api, job, delete)] == ["job", "gone"]
    job = api.submit()

    def leave(_: int) -> None:
        api.server.jobs.is_stopping = True

    assert len(read_events(api, job, leave)) == 1


def test_event_stream_over_http(api: Api) -> None:
    job = api.submit()
    api.succeed(job)
    answer = api.client.get(f"{V1}/jobs/{job}/events", headers=api.headers | {"Last-Event-ID": "x"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert re.match(r"event: job\ndata: \{.*\}\n\n$", answer.text)


# --- health ---


def test_health_reports_devices_and_queue(make_api: Callable[..., Api]) -> None:
    api = make_api(max_waiting=9)
    told = get(api, "/health", api.other_key)
    assert re.fullmatch(r"\d+\.\d+\.\d+", told["version"])
    assert (told["ready"], told["devices"], told["speed"]["media_s_per_device_s"]) == (True, [], None)
    assert told["disk"]["total_bytes"] >= told["disk"]["free_bytes"] > 0
    for seconds in (4.0, 8.0):
        job = api.submit()
        record = api.begin()
        api.server.store.change(
            job,
            time.time(),
            lambda j, r=record, s=seconds: job_state.succeed(
                j, r.job.fence, time.time(), Output("results/x.mp4", 6.0, s)
            ),
        )
    api.submit()
    told = get(api, "/health")
    assert told["queue"] | {"oldest_wait_s": 0} == {
        "waiting": 1,
        "running": 0,
        "most_waiting": 9,
        "oldest_wait_s": 0,
    }
    assert told["speed"]["media_s_per_device_s"] == 1.0


# --- the page ---


def test_playground_has_a_strict_content_policy(api: Api) -> None:
    answer = api.client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    names = re.findall(r'(?:src|href)="(playground/[^"]+)"', answer.text)
    assert len(names) == 3
    for name in names:
        file = api.client.get(f"/{name}")
        assert file.status_code == 200
        assert file.headers["content-security-policy"] == policy
        again = api.client.get(f"/{name}", headers={"If-None-Match": file.headers["etag"]})
        assert again.status_code == 304
    for name in ("page.py", "..%2fpage.py", ".", "none.js"):
        assert api.client.get(f"/playground/{name}").status_code == 404


def test_playground_has_no_foreign_urls_and_no_inline_code(api: Api) -> None:
    for path in (ROOT / "server" / "playground").iterdir():
        text = path.read_text()
        outside = set(re.findall(r"https?://[^\s\"'`)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert outside == set(), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|\beval\(|new Function", text), path.name
    page = api.client.get("/").text
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", page)


@pytest.mark.parametrize("name", ["server.playground", "server.api"])
def test_playground_files_are_packaged(name: str) -> None:
    assert f'"{name}"' in (ROOT / "pyproject.toml").read_text()


def test_streams_are_limited_and_end_with_their_key() -> None:
    async def scene() -> None:
        streams, is_valid = native.EventStreams(), [True]
        never = asyncio.Event()

        async def events() -> AsyncIterator[str]:
            yield "first"
            await never.wait()

        stream = streams.limit("key", events(), lambda: is_valid[0])
        assert await anext(stream) == "first"
        others = [streams.limit("key", events(), lambda: True) for _ in range(native.MAX_STREAMS_PER_KEY - 1)]
        for other in others:
            await anext(other)
        with pytest.raises(BusyError):
            streams.require_room("key")
        streams.require_room("other")
        is_valid[0] = False
        async with asyncio.timeout(2):
            assert [event async for event in stream] == [], "its key was revoked"
        streams.require_room("key")
        for other in others:
            await other.aclose()  # type: ignore[attr-defined]

    asyncio.run(scene())
