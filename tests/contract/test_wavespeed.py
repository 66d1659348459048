"""WaveSpeed's dialect against the contract: every golden body, and the rules that break real clients."""

from __future__ import annotations

import base64
import dataclasses
import json
import time
import uuid
from collections.abc import Callable

import pytest

from server.api import wavespeed
from server.api.errors import ApiError
from server.api.schemas import OPTIONS
from server.api.submission import webhook_headers
from server.api.wavespeed import read_submission
from server.api.wavespeed_models import MODELS, request_schema
from server.jobs import state as job_state
from server.jobs.request import Role, SpeechInterval
from tests.contract.replay import GOLDEN, Replay, load_golden
from tests.support.application import BASE, Api

VIDEO, AUDIO = "https://media.example/in/talk.mp4", "https://media.example/in/voice.wav"
LATENTSYNC = MODELS["bytedance/latentsync"]
STATELESS = [
    "predictions_list", "submit_latentsync", "submit_extras",
    "submit_data_uri", "submit_with_webhook", "submit_kling_lipsync",
    "submit_with_webhook_url_in_body", "submit_v2_alias", "submit_latentsync_alias",
    "submit_avatar_omni_human", "submit_lipsync_audio_to_video", "submit_unknown_fields_ignored",
    "bad_request_missing_parameter",
    "bad_request_invalid_parameter", "bad_request_not_json", "bad_request_webhook_with_base64",
    "model_not_found", "result_not_found", "unauthorized", "unauthorized_bad_key", "unauthorized_missing_key",
    "unauthorized_wrong_scheme", "payload_too_large", "models", "balance", "account_balance", "account_usage",
    "usage_stats", "billings_search", "pricing", "price", "webhook_secret", "upload_binary", "upload_legacy",
    "upload_ticket",
]  # fmt: skip
WITH_STATE = {
    "result_created", "result_without_suffix", "result_processing", "result_completed", "result_failed",
    "result_failed_no_face", "result_cancelled", "prediction_delete_one", "predictions_delete",
    "prediction_cancel_ext", "upload_ticket_put", "sync_completed", "sync_failed", "sync_timeout",
    "base64_completed", "rate_limited", "webhook_completed", "webhook_failed", "webhook_signature_vectors",
}  # fmt: skip


def replay(api: Api, **values: str) -> Replay:
    return Replay(api.client, key=api.key, base=BASE, **values)


def test_stateless_golden_bodies_match(subtests: pytest.Subtests, api: Api) -> None:
    for name in STATELESS:
        with subtests.test(name=name):
            replay(api).play(name)


def test_every_wavespeed_golden_body_is_replayed() -> None:
    names = {path.stem for path in GOLDEN.glob("*.json") if not path.stem.startswith(("_", "studio"))}
    assert names == {*STATELESS, *WITH_STATE}


# --- states ---


def test_prediction_matches_golden_bodies_in_every_state(api: Api) -> None:
    job = api.submit()
    scene = replay(api, task=job)
    scene.play("result_created")
    api.begin()
    scene.play("result_processing")
    scene.play("result_without_suffix")
    now = time.time()
    api.server.store.change(job, now, lambda j: job_state.requeue(j, j.fence, now))
    api.succeed(job)
    done = scene.play("result_completed")
    scene.play("predictions_list")
    (link,) = done["data"]["outputs"]
    whole = api.client.get(link)  # without a key
    assert (whole.content, whole.headers["content-type"]) == (b"an mp4", "video/mp4")
    part = api.client.get(link, headers={"Range": "bytes=3-5"})
    assert (part.status_code, part.content) == (206, b"mp4")
    assert api.client.head(link).headers["content-length"] == "6"
    scene.play("prediction_delete_one")
    assert api.client.get(link).status_code == 404
    assert api.client.get(f"/api/v3/predictions/{job}/result", headers=api.headers).status_code == 404


def test_failed_predictions_match_golden_bodies(api: Api) -> None:
    job = api.submit()
    api.fail(job, "face_not_found", "No face was found in the video.")
    replay(api, task=job).play("result_failed_no_face")
    job = api.submit()
    api.fail(job, "url_bad_status", "Failed to download the video from the provided URL.")
    replay(api, task=job).play("result_failed")
    job = api.submit()
    api.fail(job, "internal_error", "It failed: HTTP 503 from somewhere.")
    shown = api.client.get(f"/api/v3/predictions/{job}/result", headers=api.headers).json()["data"]
    assert shown["code"] == 5000
    assert "HTTP 5" not in shown["error"]


def test_cancel_and_delete_match_golden_bodies(api: Api) -> None:
    job = api.submit()
    scene = replay(api, task=job)
    scene.play("prediction_cancel_ext")
    scene.play("result_cancelled")
    scene.play("prediction_cancel_ext")  # again: the same
    scene.play("predictions_delete")


def test_base64_output_matches_golden_body(api: Api) -> None:
    image = base64.b64encode(b"a face").decode()
    answer = api.client.post(
        "/api/v3/bytedance/avatar-omni-human",
        json={"image": image, "audio": image, "enable_base64_output": True},
        headers=api.headers,
    )
    job = answer.json()["data"]["id"]
    api.succeed(job, b"the film")
    done = replay(api, task=job).play("base64_completed")
    assert base64.b64decode(done["data"]["outputs"][0]) == b"the film"


@pytest.mark.parametrize("end", ["completed", "failed", "timeout"])
def test_sync_mode_matches_golden_bodies(end: str, make_api: Callable[..., Api]) -> None:
    api = make_api(sync_timeout_s=0.3 if end == "timeout" else 20)
    scene = replay(api)
    portal = api.client.portal
    assert portal is not None

    async def work() -> None:
        """What a worker does, in the application's own loop."""
        jobs = api.server.jobs
        await jobs.job_available.wait()
        api.end_downloads()
        record = await jobs.claim()
        assert record is not None
        if end == "completed":
            output = job_state.Output("results/x.mp4", 1.0)
            await jobs.change(record.job.id, lambda j, now: job_state.succeed(j, j.fence, now, output))
        elif end == "failed":
            failure = job_state.Failure("media_failed", "The video cannot be decoded.")
            await jobs.change(
                record.job.id, lambda j, now: job_state.fail(j, j.fence, now, failure, jobs.policy)
            )

    working = portal.start_task_soon(work)
    scene.play(f"sync_{end}")
    working.result(10)


def test_full_queue_and_rate_limit_match_golden_body(make_api: Callable[..., Api]) -> None:
    api = make_api(max_waiting=1)
    api.submit()
    replay(api).play("rate_limited")
    api = make_api(requests_per_minute=2)
    assert [api.post_job().status_code for _ in range(3)] == [200, 200, 429]
    assert int(api.post_job().headers["Retry-After"]) >= 1
    assert api.post_job(Authorization=f"Bearer {api.other_key}").status_code == 200


# --- uploads ---


def test_uploaded_file_is_accepted_as_input(api: Api) -> None:
    scene = replay(api)
    scene.play("upload_ticket")
    scene.play("upload_ticket_put")
    url = api.client.post(
        "/api/v3/media/uploads", json={"filename": "a.mp4", "size": 5}, headers=api.headers
    ).json()["data"]
    assert api.client.put(url["upload"]["url"], content=b"bytes").status_code == 200
    assert api.client.get(url["download_url"]).content == b"bytes"
    job = api.submit(video=url["download_url"])
    record = api.server.store.get(job)
    assert record is not None
    video = next(source for source in record.request.sources if source.role is Role.VIDEO)
    assert video.url is None
    assert video.blob is not None
    assert video.blob.startswith("uploads/studio/")


def test_upload_of_another_tenant_is_rejected_as_input(api: Api) -> None:
    other = {"Authorization": f"Bearer {api.other_key}"}
    theirs = api.client.post("/api/v3/upload", files={"file": ("a.mp4", b"secret")}, headers=other)
    job = api.submit(video=theirs.json()["data"]["download_url"])
    record = api.server.store.get(job)
    assert record is not None
    assert all(source.blob is None for source in record.request.sources)


def test_forged_links_are_rejected(api: Api) -> None:
    place = api.client.post("/api/v3/upload", files={"file": ("a.mp4", b"x")}, headers=api.headers)
    link = place.json()["data"]["download_url"]
    token, _, name = link.removeprefix(f"{BASE}/files/").partition("/")
    until, _, mac = token.partition("-")
    bent = [
        f"/files/{int(until, 16) + 999:x}-{mac}/{name}",
        f"/files/{token}/{name[:-5]}0.mp4",
        f"/files/{token}/../../signing.key",
        f"/files/{token}/%2e%2e/%2e%2e/signing.key",
        f"/files/-/{name}",
        f"/files/{token}x/{name}",
    ]
    for path in bent:
        assert api.client.get(path).status_code == 404, path
    assert api.client.put(f"/uploads/{token}/{name}", content=b"evil").status_code == 403
    assert api.client.get(link).content == b"x"


def test_too_large_upload_leaves_no_file(make_api: Callable[..., Api]) -> None:
    api = make_api(max_upload_bytes=1000)
    place = api.client.post(
        "/api/v3/media/uploads", json={"filename": "a.mp4", "size": 10}, headers=api.headers
    ).json()["data"]
    assert api.client.put(place["upload"]["url"], content=bytes(5000)).status_code == 413
    assert api.client.get(place["download_url"]).status_code == 404


# --- webhooks ---


def test_webhook_signatures_match_the_vectors() -> None:
    vectors = load_golden("webhook_signature_vectors")["vectors"]
    assert len(vectors) >= 2
    for vector in vectors:
        body, now = vector["raw_body"].encode(), float(vector["webhook_timestamp"])
        headers = webhook_headers(vector["secret"], vector["webhook_id"], body, now)
        assert headers["webhook-signature"] == vector["webhook_signature"]


@pytest.mark.parametrize("end", ["completed", "failed"])
def test_webhook_bodies_match_golden_bodies(end: str, api: Api) -> None:
    job = api.submit()
    if end == "completed":
        api.succeed(job)
    else:
        api.fail(job, "media_failed", "The video cannot be decoded.")
    record = api.server.store.get(job)
    assert record is not None
    golden = load_golden(f"webhook_{end}")["request"]
    scene = replay(api, task=job)
    body = wavespeed.webhook_body(api.server.context, record)
    scene.match(golden["json"], json.loads(body), "")
    scene.match(golden["headers"], webhook_headers("whsec_x", job, body, 5.0), "headers")


# --- what a body may be ---


def test_invalid_field_is_named_in_error(subtests: pytest.Subtests) -> None:
    for body, named in [
        ({"video": VIDEO, "audio": ""}, "audio"),
        ({"video": VIDEO, "audio": 5}, "audio"),
        ({"video": None, "audio": AUDIO}, "video"),
        ({"video": "not a url", "audio": AUDIO}, "video"),
        ({"video": "file:///etc/passwd", "audio": AUDIO}, "video"),
        ({"video": "data:video/mp4,plain", "audio": AUDIO}, "video"),
        ({"video": VIDEO, "audio": AUDIO, "guidance_scale": "2"}, "guidance_scale"),
        ({"video": VIDEO, "audio": AUDIO, "guidance_scale": 9}, "guidance_scale"),
        ({"video": VIDEO, "audio": AUDIO, "guidance_scale": True}, "guidance_scale"),
        ({"video": VIDEO, "audio": AUDIO, "inference_steps": 2.5}, "inference_steps"),
        ({"video": VIDEO, "audio": AUDIO, "seed": -2}, "seed"),
        ({"video": VIDEO, "audio": AUDIO, "resolution": "4k"}, "resolution"),
        ({"video": VIDEO, "audio": AUDIO, "prompt": "x" * 2001}, "prompt"),
        ({"video": VIDEO, "audio": AUDIO, "segments": [{"audio": AUDIO, "face": "left"}]}, "not both"),
        ({"video": VIDEO, "segments": []}, "1 to 64"),
        ({"video": VIDEO, "segments": [{}] * 65}, "1 to 64"),
        ({"video": VIDEO, "segments": {"audio": AUDIO}}, "1 to 64"),
        ({"video": VIDEO, "segments": ["left"]}, r"segments\[0\]"),
        ({"video": VIDEO, "segments": [{"audio": AUDIO}]}, r"segments\[0\].face"),
        ({"video": VIDEO, "segments": [{"face": "left"}]}, r"segments\[0\].audio"),
        ({"video": VIDEO, "segments": [{"audio": "no", "face": "left"}]}, r"segments\[0\].audio"),
        ({"video": VIDEO, "segments": [{"audio": AUDIO, "face": "left", "start": -1}]}, "seconds"),
        ({"video": VIDEO, "segments": [{"audio": AUDIO, "face": "left", "start": True}]}, "seconds"),
        ({"video": VIDEO, "segments": [{"audio": AUDIO, "face": "left", "end": "4"}]}, "seconds"),
        ({"video": VIDEO, "segments": [{"audio": AUDIO, "face": "left", "start": 4, "end": 2}]}, "end after"),
        ({"video": VIDEO, "audio": AUDIO, "enable_sync_mode": "yes"}, "enable_sync_mode"),
        ({"video": VIDEO, "audio": AUDIO, "webhook_url": "ftp://x"}, "webhook"),
        ([], "object"),
    ]:
        with subtests.test(body=body, named=named):
            with pytest.raises(ApiError, match=named) as refused:
                read_submission(LATENTSYNC, json.dumps(body).encode(), "", vendor_limits=True)
            assert refused.value.status == 400


def test_webhook_is_read_from_the_query(subtests: pytest.Subtests) -> None:
    for query, webhook in [
        ("webhook=https%3A%2F%2Fapp.example%2Fhook%3Fjob%3D7", "https://app.example/hook?job=7"),
        ("webhook=https://app.example/hook?job=7&x=1", "https://app.example/hook?job=7&x=1"),
        ("a=1&webhook=https%3A%2F%2Fapp.example%2Fh", "https://app.example/h"),
        ("", None),
    ]:
        with subtests.test(query=query, webhook=webhook):
            body = json.dumps({"video": VIDEO, "audio": AUDIO}).encode()
            assert read_submission(LATENTSYNC, body, query, vendor_limits=True).webhook_url == webhook


def test_options_and_aliases_are_read() -> None:
    body = {
        "video_url": VIDEO,
        "audio_url": AUDIO,
        "num_inference_steps": 8,
        "seed": 5,
        "fps": 29.97,
        "resolution": "720p",
        "hdr": "refuse",
        "video_codec": "hevc10",
    }
    given = read_submission(LATENTSYNC, json.dumps(body).encode(), "", vendor_limits=False)
    options = given.job_input.options
    assert (options.num_inference_steps, options.seed, options.fps) == (8, 5, "29.97")
    assert options.max_short_side == 720
    assert (options.hdr, options.video_codec) == ("refuse", "hevc10")
    assert all(source.limits.formats == () for source in given.job_input.files.sources)
    random = read_submission(LATENTSYNC, json.dumps(body | {"seed": -1}).encode(), "", vendor_limits=True)
    assert random.job_input.options.seed is not None
    assert random.job_input.options.seed >= 0
    assert random.job_input.files.sources[0].limits.formats == ("mp4",)


def test_segments_become_speech_intervals() -> None:
    inline = base64.b64encode(b"RIFF" * 1000).decode()
    body = {
        "video": VIDEO,
        "segments": [
            {"audio": AUDIO, "face": "left", "end": 4},
            {"audio": inline, "face": "right", "start": 2.5},
        ],
    }
    given = read_submission(LATENTSYNC, json.dumps(body).encode(), "", vendor_limits=True)
    assert given.job_input.segments == (
        SpeechInterval("segment_0", "left", 0.0, 4.0),
        SpeechInterval("segment_1", "right", 2.5, None),
    )
    assert [source.name for source in given.job_input.files.sources] == ["video", "segment_0", "segment_1"]
    assert given.job_input.files.sources[1].limits.formats == ("mp3", "aac", "wav", "m4a")
    assert list(given.job_input.files.inline) == ["segment_1"]
    assert b"".join(given.job_input.files.inline["segment_1"].pieces()) == b"RIFF" * 1000
    assert len(json.dumps(given.echoed_input)) < 500


def test_ignored_options_become_warnings(api: Api) -> None:
    job = api.submit(prompt="a happy voice")
    api.succeed(job, warnings=("prompt was not used",))
    for path in (f"/api/v3/predictions/{job}/result", f"/api/v1/jobs/{uuid.UUID(job)}"):
        told = api.client.get(path, headers=api.headers).json()
        assert told.get("data", told)["warnings"] == ["prompt was not used"]
    plain = api.submit()
    api.succeed(plain)
    told = api.client.get(f"/api/v3/predictions/{plain}/result", headers=api.headers).json()
    assert "warnings" not in told["data"]


def test_every_model_accepts_its_schema(subtests: pytest.Subtests, api: Api) -> None:
    """Each option once, at a value that its own schema names."""
    for name in sorted(MODELS):
        with subtests.test(name=name):
            takes = request_schema(MODELS[name])
            body: dict[str, object] = {role: f"https://media.example/{role}" for role in takes["required"]}
            for option, rule in takes["properties"].items():
                if option in ("segments", *takes["required"]):
                    continue
                fitting = {"string": "left", "number": rule.get("maximum"), "integer": rule.get("minimum")}
                body[option] = rule["enum"][-1] if "enum" in rule else fitting.get(rule["type"], False)
                if "x-accept" in rule:
                    body[option] = "https://media.example/mask.png"
            answer = api.client.post(f"/api/v3/{name}", json=body, headers=api.headers)
            assert answer.status_code == 200, answer.text
            record = api.server.store.get(answer.json()["data"]["id"])
            assert record is not None
            wanted = takes["properties"].keys() & set(OPTIONS) - {"inference_steps", "resolution"}
            kept = dataclasses.asdict(record.request.options)
            assert all(kept[option] is not None for option in wanted), kept
            assert ("motion" in wanted) == ("image" in takes["required"])


def test_preset_of_the_request_overrides_the_setting(make_api: Callable[..., Api]) -> None:
    api = make_api(preset="fast")
    for asked, wanted in (
        ({}, "fast"),
        ({"preset": "fastest"}, "fastest"),
        ({"preset": "default"}, "default"),
    ):
        record = api.server.store.get(api.submit(**asked))
        assert record is not None
        assert record.request.options.preset == wanted
    body = json.dumps({"video": VIDEO, "audio": AUDIO, "preset": "hasty"}).encode()
    with pytest.raises(ApiError, match="preset must be one of default, fast, fastest"):
        read_submission(LATENTSYNC, body, "", vendor_limits=True)


# --- the rules that break clients ---


def test_predictions_have_every_key_and_no_null(api: Api) -> None:
    def walk(value: object, where: str) -> None:
        assert value is not None, where
        if isinstance(value, dict):
            for name, part in value.items():
                walk(part, f"{where}.{name}")

    job = api.submit()
    for event in (lambda: None, lambda: api.succeed(job)):
        event()
        data = api.client.get(f"/api/v3/predictions/{job}/result", headers=api.headers).json()["data"]
        walk(data, "data")
        assert data["urls"]["get"].startswith(BASE)


def test_errors_have_no_data_and_an_error_status(api: Api) -> None:
    for method, path in (
        ("POST", "/api/v3/a/b"),
        ("GET", "/api/v3/predictions/x/result"),
        ("GET", "/api/v3/no"),
    ):
        answer = api.client.request(method, path, headers=api.headers)
        assert answer.status_code >= 400
        assert "data" not in answer.json()
        assert answer.json()["code"] == answer.status_code


def test_v2_and_v3_are_served(api: Api) -> None:
    job = api.submit()
    for prefix in ("/api/v2", "/api/v3"):
        assert api.client.get(f"{prefix}/predictions/{job}/result", headers=api.headers).status_code == 200


def test_idempotency_key_creates_one_job(api: Api) -> None:
    body = {"video": VIDEO, "audio": AUDIO}
    headers = {**api.headers, "Idempotency-Key": "k1"}
    ids = {
        api.client.post("/api/v3/bytedance/latentsync", json=body, headers=headers).json()["data"]["id"]
        for _ in range(3)
    }
    assert len(ids) == 1


# --- access ---


def test_every_route_needs_a_key(api: Api) -> None:
    """Every route is either public on purpose, or refuses callers without a key."""
    public = {"/livez", "/readyz", "/metrics", "/files/{token}/{name}", "/uploads/{token}/{name}"}
    walked = 0
    for path, methods in routes(api):
        if path in public:
            continue
        for method in methods - {"HEAD"}:
            place = path.replace("{vendor}/{name:path}", "bytedance/latentsync").replace("{job_id}", "0" * 32)
            place = place.replace("{key_id}", "0" * 16).replace("{notice_id}", "0" * 32)
            place = place.replace("{batch_id}", "0" * 32)
            answer = api.client.request(method, place)
            assert answer.status_code == 401, f"{method} {path}"
            walked += 1
    assert walked > 40


def test_jobs_of_other_tenants_are_not_found(api: Api) -> None:
    job = api.submit()
    other = {"Authorization": f"Bearer {api.other_key}"}
    for method, path in (
        ("GET", f"/api/v3/predictions/{job}/result"),
        ("GET", f"/api/v3/predictions/{job}"),
        ("POST", f"/api/v3/predictions/{job}/cancel"),
        ("DELETE", f"/api/v3/predictions/{job}"),
    ):
        assert api.client.request(method, path, headers=other).status_code == 404, path
    gone = api.client.post("/api/v3/predictions/delete", json={"ids": [job]}, headers=other)
    assert gone.json()["data"]["deleted_count"] == 0
    page = api.client.post("/api/v3/predictions", json={"page": 1, "page_size": 9}, headers=other)
    assert page.json()["data"]["total"] == 0
    secrets = {
        api.client.get("/api/v3/webhook/secret", headers=headers).json()["data"]["secret"]
        for headers in (api.headers, other)
    }
    assert len(secrets) == 2


def test_scopes_expiry_and_revocation_are_enforced(api: Api) -> None:
    made = api.client.post("/admin/keys?tenant=studio&name=viewer&scopes=read", headers=api.headers).json()
    viewer = {"Authorization": f"Bearer {made['key']}"}
    assert api.client.get("/api/v3/balance", headers=viewer).status_code == 200
    assert api.client.post("/api/v3/bytedance/latentsync", json={}, headers=viewer).status_code == 403
    assert api.client.get("/admin/keys", headers=viewer).status_code == 403
    listed = api.client.get("/admin/keys", headers=api.headers).text
    assert made["id"] in listed
    assert made["key"] not in listed
    assert "digest" not in listed
    assert api.client.delete(f"/admin/keys/{made['id']}", headers=api.headers).status_code == 204
    assert api.client.get("/api/v3/balance", headers=viewer).status_code == 401


def routes(api: Api) -> list[tuple[str, set[str]]]:
    """(path, methods) of everything that the application answers."""
    document = api.client.get("/openapi.json").json()["paths"]
    described = [(path, {method.upper() for method in entry}) for path, entry in document.items()]
    return described + [
        (path.replace("/api/v3", "/api/v2"), methods)
        for path, methods in described
        if path.startswith("/api/v3")
    ]
