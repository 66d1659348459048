"""Nonsense of every kind against the application: no 5xx, no status that its own document does not name."""

from __future__ import annotations

from collections import Counter

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import status_code_conformance

from tests.support.application import Api


def test_generated_requests_match_the_openapi_document(api: Api) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", api.client.app)
    statuses: Counter[int] = Counter()
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path == "/readyz":  # 503 on purpose: this server has no worker
            continue
        costs_a_process = operation.path.endswith("/verify")

        @given(case=operation.as_strategy(), with_key=st.booleans())
        @settings(
            max_examples=3 if costs_a_process else 10,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def strike(case: schemathesis.Case, with_key: bool) -> None:
            headers = api.headers if with_key else {}
            answer = case.call(session=None, app=api.client.app, headers=headers)
            statuses[answer.status_code] += 1
            case.validate_response(answer, checks=[not_a_server_error, status_code_conformance])

        strike()
    print(dict(statuses))
    assert statuses.total() > 200
    assert statuses[200] > 20
