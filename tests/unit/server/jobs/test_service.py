"""Queue positions and estimates."""

from __future__ import annotations

import pytest

from server.jobs import state as job_state
from server.jobs.state import Output
from server.store import Record
from tests.support.application import Api


def test_waiting_job_has_an_estimated_start(api: Api) -> None:
    jobs, job = api.server.jobs, api.submit()
    view = api.client.get(f"/api/v3/predictions/{job}/result", headers=api.headers).json()["data"]
    assert "estimated_start" not in view["timings"]  # nobody knows yet
    call = api.client.portal.call if api.client.portal is not None else None
    assert call is not None
    api.end_downloads()
    running: Record = call(jobs.claim)
    began, output = running.job.started_at, Output("results/x.mp4", 1.0)
    assert began is not None
    call(jobs.change, job, lambda j, now: job_state.succeed(j, 1, began + 40.0, output))
    first, second = (api.server.store.get(api.submit()) for _ in range(2))
    assert first is not None
    assert second is not None
    turns = [jobs.queue_position(record.job.id) for record in (first, second)]
    estimates = [turn and jobs.estimate_wait_s(turn) for turn in turns]
    assert estimates == [0.0, pytest.approx(20.0)]  # the only slot is free
