"""Rate limits of keys: what counts, and what answers report."""

from __future__ import annotations

import time
from collections.abc import Callable

from server.settings import Settings
from tests.support.application import Api


def test_default_limits_let_hundreds_of_clients_wait_on_one_key() -> None:
    clients, polls_per_minute = 200, 120  # the most impatient client polls twice a second
    assert Settings().reads_per_minute > 2 * clients * polls_per_minute


def test_polls_do_not_use_up_submissions(make_api: Callable[..., Api]) -> None:
    api = make_api(requests_per_minute=2, reads_per_minute=50)
    job = api.submit()
    for number in range(50):
        path = ("/api/v3/predictions/" + job, "/api/native/v1/me", "/api/v3/models")[number % 3]
        response = api.client.get(path, headers=api.headers)
        assert response.status_code == 200
        assert response.headers["x-ratelimit-limit"] == "50"
        assert int(response.headers["x-ratelimit-remaining"]) <= 50 - number
        assert 0 <= int(response.headers["x-ratelimit-reset"]) - time.time() <= 61
    assert api.post_job().status_code == 200
    for refused, limit in (
        (api.client.get(f"/api/v3/predictions/{job}", headers=api.headers), "50"),
        (api.post_job(), "2"),
    ):
        assert refused.status_code == 429
        assert (refused.headers["x-ratelimit-limit"], refused.headers["x-ratelimit-remaining"]) == (
            limit,
            "0",
        )
        assert int(refused.headers["retry-after"]) >= 1
        assert limit in refused.json()["message"]
    assert "x-ratelimit-limit" not in api.client.get("/livez").headers
