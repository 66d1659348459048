"""Prometheus metrics."""

from __future__ import annotations

import re

from tests.support.application import Api
from tests.support.paths import ROOT


def test_metrics_are_documented_and_correct(api: Api) -> None:
    result = api.submit()
    api.succeed(result)
    api.submit()
    text = api.client.get("/metrics").text
    documented = (ROOT / "docs" / "operations.md").read_text()
    for name in set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)):
        if not name.endswith("_created"):
            assert f"| `{name}` |" in documented, name
    assert 'lipsync_jobs{state="waiting"} 1.0' in text
    assert 'lipsync_jobs{state="succeeded"} 1.0' in text
    api.client.get(f"/api/v3/predictions/{result}/result", headers=api.headers)
    text = api.client.get("/metrics").text
    labels = 'method="GET",route="/predictions/{job_id}/result",status="200"'
    assert f"lipsync_http_request_seconds_count{{{labels}}} 1.0" in text
    labels = 'method="POST",route="/{vendor}/{name:path}",status="200"'
    assert f"lipsync_http_request_seconds_count{{{labels}}} 2.0" in text
    assert result not in text
