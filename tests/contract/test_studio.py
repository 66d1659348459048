"""lipsync.studio's dialect against the contract: every golden body, and both dialects on the same jobs."""

from __future__ import annotations

import json
import uuid

import pytest

from server.api import studio
from server.api.errors import ApiError
from tests.contract.replay import GOLDEN, Replay, load_golden
from tests.support.application import BASE, Api

STATELESS = [
    "studio_submit_video", "studio_submit_image", "studio_submit_image_multi", "studio_bad_resolution",
    "studio_missing_audio", "studio_missing_form_state", "studio_unauthorized", "studio_job_not_found",
]  # fmt: skip
WITH_STATE = {
    "studio_job_processing", "studio_job_completed", "studio_job_failed", "studio_webhook_completed",
    "studio_webhook_failed",
}  # fmt: skip
VIDEO, MULTI = studio.ENDPOINTS["lipsync-video"], studio.ENDPOINTS["lipsync-image-multi"]
FORM = {"video": "https://media.example/in/talk.mp4", "audio": "https://media.example/in/voice.wav"}


def replay(api: Api, **values: str) -> Replay:
    return Replay(api.client, studio_key=api.key, base=BASE, **values)


def test_stateless_golden_bodies_match(subtests: pytest.Subtests, api: Api) -> None:
    for name in STATELESS:
        with subtests.test(name=name):
            replay(api).play(name)


def test_every_studio_golden_body_is_replayed() -> None:
    assert {path.stem for path in GOLDEN.glob("studio*.json")} == {*STATELESS, *WITH_STATE}


def body_of(api: Api, job: str) -> dict[str, object]:
    record = api.server.store.get(job)
    assert record is not None
    return dict(json.loads(studio.webhook_body(api.server.context, record)))


@pytest.mark.parametrize("end", ["completed", "failed"])
def test_job_matches_golden_bodies_in_every_state(end: str, api: Api) -> None:
    scene = replay(api)
    name = scene.play("studio_submit_image")["id"]
    job = uuid.UUID(name).hex
    scene.play("studio_job_processing")
    if end == "completed":
        api.succeed(job)
    else:
        api.fail(job, "url_wrong_type", "The audio is no audio file that can be used.")
    response = scene.play(f"studio_job_{end}")
    golden = load_golden(f"studio_webhook_{end}")
    scene.match(golden["request"]["json"], body_of(api, job), "webhook")
    assert body_of(api, job) == response
    if end == "completed":
        assert api.client.get(response["output"]).content == b"an mp4"


def test_both_dialects_return_the_same_job(api: Api) -> None:
    answer = api.client.post("/api/v1/lipsync-video", json={"formState": FORM}, headers=api.headers)
    name = answer.json()["requestId"]
    prediction = api.client.get(
        f"/api/v3/predictions/{uuid.UUID(name).hex}/result", headers=api.headers
    ).json()
    assert (prediction["data"]["status"], prediction["data"]["model"]) == ("created", "lipsync-video")
    other = api.submit()
    response = api.client.get(f"/api/v1/jobs/{uuid.UUID(other)}", headers=api.headers).json()
    assert (response["status"], response["model"]) == ("processing", "bytedance/latentsync")
    cancelled = api.client.post(f"/api/v3/predictions/{other}/cancel", headers=api.headers)
    assert cancelled.status_code == 200
    response = api.client.get(f"/api/v1/jobs/{uuid.UUID(other)}", headers=api.headers).json()
    assert (response["status"], response["error"]) == ("failed", "The task was cancelled.")


def test_invalid_field_is_named_in_error(subtests: pytest.Subtests) -> None:
    for body, named in [
        ({"formState": [FORM]}, "formState"),
        ({"formState": {**FORM, "video": ""}}, "video"),
        ({"formState": {**FORM, "mask_image": 5}}, "mask_image"),
        ({"formState": {**FORM, "seed": 1.5}}, "seed"),
        ({"formState": {**FORM, "seed": 2**32}}, "seed"),
        ({"formState": {**FORM, "segments": [{"audio": FORM["audio"], "face": "left"}]}}, "not both"),
        ({"formState": FORM, "webhook": "http://app.example/hook"}, "https"),
        ({"formState": FORM, "webhook": ["https://app.example/hook"]}, "https"),
    ]:
        with subtests.test(body=body, named=named):
            with pytest.raises(ApiError, match=named) as error:
                studio.read_submission(VIDEO, body)
            assert error.value.status == 400


def test_seed_has_32_bits() -> None:
    for seed in (2**31, 2**32 - 1):
        submission = studio.read_submission(VIDEO, {"formState": {**FORM, "seed": seed}})
        assert submission.job_input.options.seed == seed


def test_speaker_order_is_one_of_three(subtests: pytest.Subtests) -> None:
    for order in ["backwards", ["meanwhile"], 1]:
        with subtests.test(order=order):
            form = {role.value: f"https://media.example/{role}" for role in MULTI.required}
            with pytest.raises(ApiError, match="order"):
                studio.read_submission(MULTI, {"formState": {**form, "order": order}})
            inputs = studio.read_submission(MULTI, {"formState": {**form, "order": "right_left"}})
            assert inputs.job_input.options.order == "right_left"


def test_default_resolution_is_the_vendors() -> None:
    for options, limits, short_side in (
        ({}, True, 480),
        ({"resolution": "720p"}, True, 720),
        ({}, False, None),
    ):
        inputs = studio.read_submission(VIDEO, {"formState": FORM | options}, vendor_limits=limits)
        assert inputs.job_input.options.max_short_side == short_side


def test_http_webhooks_need_an_allowed_host() -> None:
    body = {"formState": FORM, "webhook": "http://app.example:8080/hook"}
    inputs = studio.read_submission(VIDEO, body, http_hosts=("app.example:8080",))
    assert inputs.webhook_url == body["webhook"]
    body["webhook"] = "http://10.1.2.3/hook"
    assert studio.read_submission(VIDEO, body, http_hosts=("10.0.0.0/8",)).webhook_url == body["webhook"]
    for hosts in (("10.2.0.0/16",), ("10.0.0.0/8:8080",), ("app.example",)):
        with pytest.raises(ApiError, match="https"):
            studio.read_submission(VIDEO, body, http_hosts=hosts)


def test_errors_have_the_studio_body(api: Api) -> None:
    for answer in (
        api.client.post("/api/v1/lipsync-video", content=b"{", headers=api.headers),
        api.client.get("/api/v1/nothing", headers=api.headers),
        api.client.get(f"/api/v1/jobs/{uuid.uuid4()}"),
    ):
        assert answer.status_code in (400, 401, 404)
        assert set(answer.json()) == {"error", "message"}
