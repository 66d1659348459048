"""Endpoints of the operator."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.application import Api
from tests.support.polling import wait_until


def test_dead_webhooks_are_listed_and_retried(api: Api) -> None:
    job = api.submit(webhook_url="https://hook.example/x")
    api.succeed(job)
    api.server.store.webhook_failed(job, "status 500", None)
    (dead,) = api.client.get("/admin/webhooks/dead", headers=api.headers).json()
    assert (dead["job_id"], dead["last_error"]) == (job, "status 500")
    assert api.client.post(f"/admin/webhooks/{job}/retry", headers=api.headers).status_code == 204
    assert api.client.get("/admin/webhooks/dead", headers=api.headers).json() == []
    assert api.client.post(f"/admin/webhooks/{'0' * 32}/retry", headers=api.headers).status_code == 404


def test_webhook_that_the_policy_rejects_is_dead_at_once(make_api: Callable[..., Api]) -> None:
    api = make_api()
    job = api.submit(webhook_url="https://hook.example/x")
    with api.server.store.transaction() as connection:  # the name leads to another address meanwhile
        request = api.server.store.get(job).request.to_json().replace("hook.example", "127.0.0.1")
        connection.exec_driver_sql("UPDATE jobs SET request = ?", (request,))
    api.succeed(job)
    assert api.client.portal is not None
    api.client.portal.call(api.server.jobs.webhook_due.set)
    wait_until(lambda: api.server.store.dead_webhooks(9), "the webhook is still tried", 10)
    (dead,) = api.client.get("/admin/webhooks/dead", headers=api.headers).json()
    assert (dead["tries"], "not public" in dead["last_error"]) == (1, True)


def test_readyz_tells_why_no_job_would_run(make_api: Callable[..., Api]) -> None:
    alone = make_api().client.get("/readyz")
    assert (alone.status_code, alone.text.partition(":")[0]) == (503, "there can be no worker")


def test_readyz_is_503_while_the_disk_is_full(make_api: Callable[..., Api], postgres_url: str) -> None:
    """With a shared database other processes can have the workers."""
    assert make_api(database_url=postgres_url).client.get("/readyz").status_code == 200
    full = make_api(database_url=postgres_url, min_free_bytes=1 << 60).client.get("/readyz")
    assert (full.status_code, full.json()["message"].partition(":")[0]) == (
        503,
        "The disk of this server is full",
    )
