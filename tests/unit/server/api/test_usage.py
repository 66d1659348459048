"""Usage by tenant, model and day."""

from __future__ import annotations

import csv
import time

from server.api.usage import usage_csv
from server.store import Usage
from tests.support.application import Api

MODEL = "bytedance/latentsync"


def test_usage_counts_ended_jobs_and_outlives_them(api: Api) -> None:
    done = api.submit()
    api.succeed(done)
    api.fail(api.submit(), "media_no_video", "no video")
    api.submit()  # waits
    api.client.post("/api/v3/predictions/delete", json={"ids": [done]}, headers=api.headers)
    today = time.strftime("%Y-%m-%d", time.gmtime())
    stats = api.client.post("/api/v3/user/usage_stats", json={}, headers=api.headers).json()["data"]
    assert stats["summary"] == {"total_cost": 0.0, "total_requests": 2, "success_requests": 1}
    (model,) = stats["per_model_usage"]
    assert (model["model_uuid"], model["total_count"], model["device_s"]) == (MODEL, 2, 1.25)
    assert [(day["date"], day["count"]) for day in stats["daily_usage"]] == [(today, 2)]
    account = api.client.get(f"/api/v3/account/usage?start_date={today}", headers=api.headers).json()["data"]
    assert (account["total_requests"], account["by_model"]) == (2, [model])
    others = {"Authorization": f"Bearer {api.other_key}"}
    assert api.client.get("/api/v3/account/usage", headers=others).json()["data"]["total_requests"] == 0


def test_usage_is_limited_to_days_and_a_model(api: Api) -> None:
    api.succeed(api.submit())
    for body, count in [
        ({"start_time": "2020-01-01T00:00:00Z", "end_time": "2020-01-08T00:00:00Z"}, 0),
        ({"start_time": "2020-01-01T00:00:00Z"}, 1),
        ({"model_uuid": MODEL}, 1),
        ({"model_uuid": "another/model"}, 0),
    ]:
        stats = api.client.post("/api/v3/user/usage_stats", json=body, headers=api.headers).json()["data"]
        assert stats["summary"]["total_requests"] == count, body


def test_admin_exports_usage_of_all_tenants_as_csv(api: Api) -> None:
    api.succeed(api.submit())
    response = api.client.get("/admin/usage", headers=api.headers)
    assert response.headers["content-type"].startswith("text/csv")
    (row,) = csv.DictReader(response.text.splitlines())
    assert (row["tenant"], row["model"], row["jobs"], row["succeeded"]) == ("studio", MODEL, "1", "1")
    assert float(row["device_s"]) == 1.25
    assert api.client.get("/admin/usage?until=2020-01-01", headers=api.headers).text.count("\n") == 1
    other = {"Authorization": f"Bearer {api.other_key}"}
    assert api.client.get("/admin/usage", headers=other).status_code == 403


def test_tenant_in_csv_is_no_formula() -> None:
    assert "'=1+1" in usage_csv([Usage(0, "=1+1", MODEL, 1, 1, 1.0, 1.0, 0.0)])
