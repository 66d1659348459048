"""Prometheus metrics."""

from __future__ import annotations

import dataclasses
import re

from server.jobs.state import Output, State
from server.metrics import MAX_TENANTS, Metrics
from server.store import Record
from tests.support.application import Api
from tests.support.paths import ROOT
from tests.support.records import REQUEST, new_job


def test_metrics_are_documented_and_correct(api: Api) -> None:
    result = api.submit()
    api.succeed(result)
    api.submit()
    text = api.client.get("/metrics").text
    documented = (ROOT / "docs" / "operations.md").read_text()
    for name in set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)):
        if not name.endswith("_created"):
            row = "process_*" if name.startswith("process_") else name
            assert f"| `{row}` |" in documented, name
    assert 'lipsync_jobs{state="waiting"} 1.0' in text
    assert 'lipsync_jobs{state="succeeded"} 1.0' in text
    api.client.get(f"/api/v3/predictions/{result}/result", headers=api.headers)
    text = api.client.get("/metrics").text
    labels = 'method="GET",route="/predictions/{job_id}/result",status="200"'
    assert f"lipsync_http_request_seconds_count{{{labels}}} 1.0" in text
    labels = 'method="POST",route="/{vendor}/{name:path}",status="200"'
    assert f"lipsync_http_request_seconds_count{{{labels}}} 2.0" in text
    assert result not in text


def test_wait_run_and_device_time_are_counted_by_model_and_tenant(api: Api) -> None:
    job = new_job()
    output = Output("results/x.mp4", 1.25)
    job = dataclasses.replace(job, state=State.SUCCEEDED, started_at=110.0, finished_at=140.0, output=output)
    api.server.metrics.count_job(Record(job, REQUEST))
    text = api.client.get("/metrics").text
    for name, seconds in (("wait", 10.0), ("run", 30.0)):
        assert f'lipsync_job_{name}_seconds_sum{{model="{REQUEST.endpoint}"}} {seconds}' in text
    assert 'lipsync_tenant_device_seconds_total{tenant="studio"} 1.25' in text
    assert "process_resident_memory_bytes" in text


def test_tenants_after_the_first_ones_share_a_label(api: Api) -> None:
    for number in range(MAX_TENANTS + 5):
        job = dataclasses.replace(new_job(tenant=f"t{number}"), output=Output("results/x.mp4", 1.0))
        api.server.metrics.count_job(Record(job, REQUEST))
    text = api.client.get("/metrics").text
    assert text.count("lipsync_tenant_device_seconds_total{") == MAX_TENANTS + 1
    assert 'lipsync_tenant_device_seconds_total{tenant="(others)"} 5.0' in text


def test_rows_are_counted_at_most_once_a_second(api: Api) -> None:
    metrics, store = Metrics(), api.server.store
    api.submit()
    assert b'lipsync_jobs{state="waiting"} 1.0' in metrics.render(store, [], {}, 100.0)
    api.submit()
    assert b'lipsync_jobs{state="waiting"} 1.0' in metrics.render(store, [], {}, 100.9)
    assert b'lipsync_jobs{state="waiting"} 2.0' in metrics.render(store, [], {}, 101.0)
