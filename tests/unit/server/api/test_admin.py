"""Endpoints of the operator."""

from __future__ import annotations

from tests.support.application import Api


def test_dead_webhooks_are_listed_and_retried(api: Api) -> None:
    job = api.submit(webhook_url="https://hook.example/x")
    api.succeed(job)
    api.server.store.webhook_failed(job, "status 500", None)
    (dead,) = api.client.get("/admin/webhooks/dead", headers=api.headers).json()
    assert (dead["job_id"], dead["last_error"]) == (job, "status 500")
    assert api.client.post(f"/admin/webhooks/{job}/retry", headers=api.headers).status_code == 204
    assert api.client.get("/admin/webhooks/dead", headers=api.headers).json() == []
    assert api.client.post(f"/admin/webhooks/{'0' * 32}/retry", headers=api.headers).status_code == 404
