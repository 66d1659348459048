"""Answers that keep out those who guess keys, frame files or read metrics."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from server.__main__ import _print_banner
from server.api import auth
from server.api.auth import Scope, WrongKeyLimiter
from tests.support.application import Api

Make = Callable[..., Api]


def test_wrong_keys_in_a_row_have_to_wait(api: Api) -> None:
    wrong = {"Authorization": "Bearer sk_0000000000000000_guess"}
    statuses = [api.client.get("/api/v3/balance", headers=wrong).status_code for _ in range(59)]
    assert api.client.get("/api/v3/balance", headers=api.headers).status_code == 200  # ends the row
    statuses += [api.client.get("/api/v3/balance", headers=wrong).status_code for _ in range(60)]
    assert set(statuses) == {401}
    assert api.client.get("/api/v3/balance").status_code == 429
    rejected = api.client.get("/api/v3/balance", headers=wrong)
    assert (rejected.status_code, 0 < int(rejected.headers["retry-after"]) <= 60) == (429, True)


def test_pause_ends_a_row_of_wrong_keys() -> None:
    limiter = WrongKeyLimiter(limit=3, wait_s=10)
    for now in (0.0, 1.0, 2.0):
        limiter.record("a", now, is_wrong=True)
    assert (limiter.wait_s("a", 2.0), limiter.wait_s("a", 12.0), limiter.wait_s("b", 2.0)) == (10, 0, 0)
    limiter.record("a", 12.0, is_wrong=True)
    assert limiter.wait_s("a", 12.0) == 0


def test_first_key_is_chosen_or_ends_within_a_day(make_api: Make, capsys: pytest.CaptureFixture[str]) -> None:
    for chosen in (None, "0123456789abcdef" * 2):
        api = make_api(first_key=chosen)
        with api.server.store.transaction() as connection:
            connection.execute(sa.text("DELETE FROM keys"))
        _print_banner(api.server, api.server.settings, 80)
        (key,) = api.server.store.list_keys()
        printed = capsys.readouterr().out
        if chosen is None:
            assert key.expires_at == pytest.approx(time.time() + 86400, abs=60)
            assert "expires in 24 hours" in printed
        else:
            assert (key.expires_at, chosen in printed, "your API key" in printed) == (None, False, False)
            headers = {"Authorization": f"Bearer {chosen}"}
            assert api.client.get("/admin/keys", headers=headers).status_code == 200


def test_files_cannot_be_framed_or_run(api: Api) -> None:
    job_id = api.submit()
    api.succeed(job_id)
    url = api.client.get(f"/api/v3/predictions/{job_id}", headers=api.headers).json()["data"]["outputs"][0]
    headers = api.client.get(url).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["content-security-policy"].startswith("sandbox; default-src 'none'")


def test_metrics_can_need_a_key_or_be_off(make_api: Make) -> None:
    assert make_api().client.get("/metrics").status_code == 200
    assert make_api(metrics="off").client.get("/metrics").status_code == 404
    api = make_api(metrics="key")
    scraper, _ = auth.create_key(api.server.store, 0.0, scopes=frozenset({Scope.METRICS}))
    statuses = [
        api.client.get("/metrics", headers={"Authorization": f"Bearer {key}"}).status_code
        for key in ("none", api.other_key, scraper)
    ]
    assert statuses == [401, 403, 200]
    headers = {"Authorization": f"Bearer {scraper}"}
    assert api.client.get("/api/native/v1/jobs", headers=headers).status_code == 403
